"""A class update: the rows and names that change a head, and everything a device needs to decide whether to take it.

Rules:

1. An update names the head it was made for by fingerprint; it fits no other.
2. `version` only ever grows on a device; an older one is refused.
3. Rows come in one matrix: first those of `added` classes, then those of `replaced` ones. `removed` classes have none.
4. A class is in one of the three lists at most.
5. An update says what it follows: a state (`follows`), or nothing because it is `complete`. One that says neither is as
   updates were before they could, and is applied to whatever state a device has.
"""

# Why: docs/decisions/0082.

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float32, check_row_order, frozen_float32, same_value
from icis_deploy.common.given import check_time, items, ordered_items, whole_number
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import ClassConflictError, IncompatibleError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.class_names import check_unique, quoted

MAX_VERSION = (1 << 63) - 1
"""A greater number fits neither the file formats nor the shells that versions are passed through."""

MAX_ROW_VALUE = np.float32(1e30)
"""Far above any row of a trained head. The products of a greater number with features overflow float32, whose greatest
is 3.4e38, and an answer would be infinite or no number."""


MAX_TARGETS = 64
"""A fleet has a handful of exports at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedState:
    """The state of a device that a class update was made for.

    Example:
        update = icis_deploy.load_update("new.icis")
        if update.follows is not None:
            print(update.follows.version, update.follows.digest)

    Raises:
        IncompatibleError: On construction, if a field is out of its range.
    """

    version: int
    """Version of the head, 0 for a fresh export; for people, who have to find what is missing."""

    digest: str
    """`SlotTable.digest` of the classes that came with the bundle or by updates: SHA-256, lower-case hexadecimal."""

    def __post_init__(self) -> None:
        if not 0 <= self.version <= MAX_VERSION or not _is_sha256(self.digest):
            raise IncompatibleError(
                f"A class update follows version {shown(self.version)} with the digest {shown(self.digest)}; expected "
                f"0 to 2^63 - 1 and 64 hexadecimal digits.",
                found=(shown(self.version), shown(self.digest)),
                expected="a version and 64 hexadecimal digits",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassUpdate:  # noqa: PLW1641 - compared, never a key
    """A change of classes, made for one head.

    Example:
        >>> head = icis_deploy.Head(rows=[[1.0, 0.0, 0.5]], class_names=("zebra",))
        >>> rows = [[0.0, 1.0, 0.5]]
        >>> update = icis_deploy.ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=("okapi",))
        >>> update.version, update.feature_dim
        (1, 2)

    Raises:
        IncompatibleError: On construction, if the rows do not match the names, or a field is out of its range.
        UsageError: On construction, if a number is no whole one.
        ClassConflictError: On construction, if a class occurs twice.
    """

    base_fingerprint: str
    """Fingerprint of the seen head that the rows were made for."""

    rows: Float32
    """`(num_added + num_replaced, feature_dim + 1)` float32, read-only: `[weight | bias]`."""

    added: tuple[str, ...] = ()
    """Classes that the head must not know yet."""

    replaced: tuple[str, ...] = ()
    """Classes that must already be in a slot."""

    removed: tuple[str, ...] = ()
    """Classes that must be in a slot; their slots become empty."""

    arbiter: Float32 | None = None
    """`(num_added + num_replaced, 5)` float32, read-only: what each row's logit follows from `arbiter.STATISTICS` of
    the image; `None` for rows with a constant offset, which is part of their biases."""

    version: int = 1
    """1 to `MAX_VERSION`; a device only moves to a greater one."""

    expires: datetime | None = None
    """When devices stop taking this update, in UTC with a resolution of a second; `None` is never."""

    self_test_seed: int = 0
    """Seed of the input with which a device tests the rows after writing them."""

    follows: FollowedState | None = None
    """The state that the change was made for, which a device must be in; `None` if the update does not say."""

    complete: bool = False
    """Whether `added` is every class that shall be in slots, so that the result does not depend on what was there."""

    targets: tuple[str, ...] = ()
    """Digests of the bundles that may take the update (`icis_deploy.bundle.manifest.target_digest`); empty: all of this
    head."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the rows were made: method, seed, calibration, estimates. JSON values only; no code reads it to decide."""

    __eq__ = same_value

    def __post_init__(self) -> None:
        for name, listed in (("added", ordered_items), ("replaced", ordered_items), ("removed", items)):
            object.__setattr__(self, name, listed(getattr(self, name), "names of classes", name=name))
        for name in ("version", "self_test_seed"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name=name))
        check_row_order(self.rows, (*self.added, *self.replaced), name="rows of the class update")
        object.__setattr__(self, "rows", frozen_float32(self.rows, name="rows of the class update", ndim=2))
        object.__setattr__(self, "provenance", _frozen_json(self.provenance))
        self._check_names()
        if self.rows.shape[1] < 2:
            raise IncompatibleError(
                f"A row of the class update is {self.rows.shape[1]} wide; expected weight and bias.",
                found=self.rows.shape[1],
                expected="at least 2 columns: weight and bias",
            )
        self._check_arbiter()
        for name in ("version", "self_test_seed"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name=name))
        self._check_range()
        self._check_binding()
        if not _is_sha256(self.base_fingerprint):
            raise IncompatibleError(
                f"The class update's base fingerprint is {shown(self.base_fingerprint)}; expected 64 hexadecimal "
                f"digits.",
                found=shown(self.base_fingerprint),
                expected="64 hexadecimal digits",
            )
        if self.version < 1 or self.self_test_seed < 0:
            raise IncompatibleError(
                f"The class update has version {self.version} and self-test seed {self.self_test_seed}; expected a "
                f"version of at least 1 and a seed of at least 0.",
                found=(self.version, self.self_test_seed),
                expected="a version of at least 1 and a self-test seed of at least 0",
            )
        if self.version > MAX_VERSION:
            raise IncompatibleError(
                "The class update's version does not fit into 63 bits.",
                found=self.version,
                expected=MAX_VERSION,
                hint="Sign it again with a smaller `version`.",
            )
        if self.expires is not None:
            check_time(self.expires, name="expires")
            if self.expires.tzinfo is None:
                raise IncompatibleError(
                    "The class update's expiry has no time zone; expected a time in UTC.",
                    found="a time without a zone",
                    expected="a time in UTC",
                )
            object.__setattr__(self, "expires", self.expires.astimezone(timezone.utc).replace(microsecond=0))

    def _check_names(self) -> None:
        check_unique((*self.added, *self.replaced, *self.removed))
        if len(self.rows) != len(self.added) + len(self.replaced):
            raise IncompatibleError(
                f"The class update has {len(self.rows)} rows for {len(self.added)} added and {len(self.replaced)} "
                f"replaced classes; expected one row for each.",
                found=len(self.rows),
                expected=len(self.added) + len(self.replaced),
            )
        if not (self.added or self.replaced or self.removed or self.complete):
            raise ClassConflictError(
                "The class update changes nothing: it adds, replaces and removes no class.",
                hint="Leave it out, or give it a class.",
            )

    def _check_arbiter(self) -> None:
        if self.arbiter is None:
            return
        object.__setattr__(self, "arbiter", frozen_float32(self.arbiter, name="arbiter of the class update", ndim=2))
        expected = (len(self.rows), len(STATISTICS))
        if self.arbiter.shape != expected:
            raise IncompatibleError(
                f"The arbiter of the class update has shape {self.arbiter.shape}; expected {expected}: "
                f"{len(STATISTICS)} coefficients for each row.",
                found=self.arbiter.shape,
                expected=expected,
            )
        if np.abs(self.arbiter).max(initial=0.0) > MAX_ROW_VALUE:
            raise IncompatibleError(
                f"The arbiter of the class update holds {np.abs(self.arbiter).max():.3g}; with values above "
                f"{MAX_ROW_VALUE:.0e} logits overflow float32.",
                found=float(np.abs(self.arbiter).max()),
                expected=MAX_ROW_VALUE,
            )

    def _check_range(self) -> None:
        # Two passes without a copy: a device asks this of every update.
        if not self.rows.size or (self.rows.max() <= MAX_ROW_VALUE and self.rows.min() >= -MAX_ROW_VALUE):
            return
        first = int(np.argmax(np.abs(self.rows).max(axis=1) > MAX_ROW_VALUE))
        raise IncompatibleError(
            f"The row of {quoted(self.class_names[first : first + 1])} in the class update holds "
            f"{np.abs(self.rows[first]).max():.3g}; with values above {MAX_ROW_VALUE:.0e} logits overflow float32.",
            found=float(np.abs(self.rows[first]).max()),
            expected=MAX_ROW_VALUE,
            where=self.class_names[first],
            hint="Inject again: injected rows have the range of the seen ones.",
        )

    def _check_binding(self) -> None:
        object.__setattr__(self, "targets", tuple(sorted(set(items(self.targets, "digests", name="targets")), key=str)))
        if len(self.targets) > MAX_TARGETS or not all(_is_sha256(target) for target in self.targets):
            raise IncompatibleError(
                f"The class update names {len(self.targets)} targets; expected at most {MAX_TARGETS}, each as 64 "
                f"hexadecimal digits.",
                found=len(self.targets),
                expected=f"at most {MAX_TARGETS} digests",
            )
        if self.complete and (self.replaced or self.removed or self.follows is not None):
            raise ClassConflictError(
                "The class update is complete, so it follows nothing and can only add classes; it replaces "
                f"{len(self.replaced)}, removes {len(self.removed)} and "
                f"{'follows nothing' if self.follows is None else f'follows version {self.follows.version}'}.",
                found=(len(self.replaced), len(self.removed), self.follows is not None),
                expected="added classes alone",
                hint="List every class that devices shall have as added, or leave out `complete`.",
            )

    @property
    def is_bound(self) -> bool:
        """Whether the update says what it follows, or which bundles may take it."""
        return self.complete or self.follows is not None or bool(self.targets)

    @property
    def feature_dim(self) -> int:
        """Width of a feature of the model that the rows are for."""
        return int(self.rows.shape[1]) - 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """`(num_rows,)`: the names that the rows belong to, added before replaced."""
        return (*self.added, *self.replaced)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever made the update was warned of, from its provenance; empty where that says nothing."""
        found = self.provenance.get("warnings")
        return tuple(str(one) for one in found) if isinstance(found, list) else ()

    def bound(
        self, *, follows: FollowedState | None = None, complete: bool = False, targets: tuple[str, ...] = ()
    ) -> ClassUpdate:
        """Return the same change for a state and for bundles, as its publisher decides when signing."""
        return replace(self, follows=follows, complete=complete, targets=targets)

    def with_terms(self, *, version: int, expires: datetime | None) -> ClassUpdate:
        """Return the same change under another version and expiry; what a publisher decides when signing."""
        return replace(self, version=version, expires=expires)


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _frozen_json(values: Mapping[str, Any]) -> Mapping[str, Any]:
    # A round trip through JSON both copies the values and proves that the file format can hold them.
    try:
        text = json.dumps(dict(values), allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a surrogate pair passes JSON, but no file can hold it
        return MappingProxyType(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise IncompatibleError(
            f"The class update's provenance is not plain JSON: {error}.",
            found=str(error),
            expected="plain JSON",
        ) from error
