"""What became of each image: one row of 57 bytes, from which every figure of accuracy follows.

Logits of a million images of a thousand classes are gigabytes; what accuracy is made of is not. An *outcome* says of
one image which class it is of, which one wins among all classes and among those of each side, whether the right one is
among the first five, and by how much the sides are apart. Outcomes of parts of a list, measured in any order, by any
number of processes, on any machines, are put together by `merge`: its rows are ordered by the images' keys, and nothing
else decides what is computed from them, so that the same outcomes give the same figures, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Bool, Float64, Int64, UInt8
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.averages import Logits, winners
from icis_deploy.metrics.trade_off import TOP, lead_of, shift_for_top

OUTCOME = np.dtype(
    [
        ("key", "<u8", (2,)),  # digest of the image's key
        ("label", "<i4"),
        ("answer", "<i4"),  # among all classes
        ("answer_among_seen", "<i4"),
        ("answer_among_unseen", "<i4"),
        ("answer_among_original", "<i4"),  # by the logits of this head
        ("original_answer", "<i4"),  # by the original model's own logits
        ("in_top5", "u1"),  # bits, `IN_TOP5_OF`
        ("lead", "<f8"),  # greatest seen logit less the greatest unseen one
        ("shift_for_top5", "<f8"),  # of unseen logits, above which the right class is among the first five
    ]
)
"""A row. Answers are columns of the head; -1 where it has no class of that kind."""

IN_TOP5_OF = {"all": 1, "unseen": 2, "original": 4}
"""Bits of `in_top5`: among which classes the right one is one of the first five."""

SIDES = ("seen", "unseen", "original")


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeHead:
    """The classes that outcomes are of: their numbers mean nothing without them."""

    class_names: tuple[str, ...]
    """`(num_classes,)`, in the order of the columns."""

    is_seen: Bool
    """`(num_classes,)`."""

    is_original: Bool
    """`(num_classes,)`: the classes that the original model has."""

    has_original: bool
    """Whether the original model's own logits were measured."""

    version: int = 0
    """Version of the head's classes, as a device counts them."""

    digest: str = ""
    """What tells the rows of one head from those of another; empty where nobody asked for it."""

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each class, by name."""
        return {name: index for index, name in enumerate(self.class_names)}

    @cached_property
    def identity(self) -> str:
        """32 hexadecimal digits that two heads share if `difference` finds none."""
        values = (
            *self.class_names,
            self.is_seen.tobytes().hex(),
            self.is_original.tobytes().hex(),
            str(self.has_original),
            str(self.version),
            self.digest,
        )
        return blake2b("\0".join(values).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def difference(self, other: OutcomeHead) -> str | None:
        """Say in a few words how another head differs; `None` where it is the same."""
        if self.class_names != other.class_names:
            return f"{len(self.class_names)} and {len(other.class_names)} classes, or others"
        if not np.array_equal(self.is_seen, other.is_seen):
            return "other unseen classes"
        if not np.array_equal(self.is_original, other.is_original) or self.has_original != other.has_original:
            return "another original model"
        if self.version != other.version:
            return f"versions {self.version} and {other.version}"
        return None if self.digest == other.digest else f"heads {self.digest[:12]} and {other.digest[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Outcomes of images, all with one head."""

    head: OutcomeHead

    rows: NDArray[np.void]
    """`(num_images,)` of dtype `OUTCOME`."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def column(self, name: str) -> NDArray[Any]:
        """Return one field of all rows, `(num_images,)` int32 or float64."""
        return np.ascontiguousarray(self.rows[name])

    def of_labels(self, mask: Bool) -> Bool:
        """Return which images are of classes in a mask, `(num_images,)`."""
        return np.asarray(mask[self.column("label")])

    def in_top5_of(self, kind: str) -> Bool:
        """Return of which images the right class is one of the first five among all, unseen or original classes."""
        return np.asarray((self.rows["in_top5"] & IN_TOP5_OF[kind]) != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """An input that could not be read, and was left out.

    Example:
        options = icis_deploy.EvaluateOptions(on_error="skip")
        report = icis_deploy.evaluate("bundle", images="images.csv", options=options)
        print([(each.key, each.reason) for each in report.skipped])
    """

    key: str
    """What the input is called: a path, or the source with a number."""

    reason: str
    """Why it was left out."""


def measure_outcomes(
    scores: Logits,
    labels: Int64,
    head: OutcomeHead,
    *,
    keys: Sequence[str],
    original_scores: Logits | None = None,
) -> Outcomes:
    """Return the outcomes of a batch of images.

    Args:
        scores: `(num_images, num_classes)`, without NaN; minus infinity for a class that the head lacks.
        labels: `(num_images,)`, columns.
        head: Its classes.
        keys: `(num_images,)`, a name for each image that no other image of the evaluation has, such as its path.
        original_scores: `(num_images, num_classes)`, of the original model, minus infinity for what it lacks; needed
            where the head `has_original`.

    Returns:
        A row for each image, in the order of the keys given.
    """
    rows = np.zeros(len(labels), dtype=OUTCOME)
    rows["key"] = digests_of(keys)
    rows["label"] = labels
    columns = {
        "seen": np.flatnonzero(head.is_seen),
        "unseen": np.flatnonzero(~head.is_seen),
        "original": np.flatnonzero(head.is_original),
    }
    every = np.arange(scores.shape[1])
    rows["answer"] = winners(scores, every)
    for side in SIDES:
        rows[f"answer_among_{side}"] = winners(scores, columns[side])
    of_unseen = ~head.is_seen[labels]
    rows["in_top5"] = _bits(scores, labels, every, "all") | np.where(
        of_unseen, _bits(scores, labels, columns["unseen"], "unseen"), 0
    )
    rows["original_answer"] = -1
    if head.has_original and original_scores is not None:
        rows["original_answer"] = winners(original_scores, columns["seen"])
        rows["in_top5"] |= np.where(of_unseen, 0, _bits(original_scores, labels, columns["seen"], "original"))
    rows["lead"], rows["shift_for_top5"] = np.nan, np.inf
    if len(columns["seen"]) and len(columns["unseen"]):
        rows["lead"] = lead_of(scores, columns["seen"], columns["unseen"])
        rows["shift_for_top5"][of_unseen] = shift_for_top(
            scores[of_unseen], labels[of_unseen], columns["seen"], columns["unseen"]
        )
    return Outcomes(head=head, rows=rows)


def _bits(scores: Logits, labels: Int64, candidates: Int64, kind: str) -> UInt8:
    """Return `(num_images,)` the bit of a kind where the right class is among the first five of the candidates."""
    own = scores[np.arange(len(labels)), labels]
    rivals = scores if len(candidates) == scores.shape[1] else scores[:, candidates]
    # Of equal logits the first wins, as in top-1.
    num_above = (rivals > own[:, None]).sum(axis=1)
    num_above += ((rivals == own[:, None]) & (candidates < labels[:, None])).sum(axis=1)
    is_in = (num_above < TOP) & ~np.isneginf(own)
    return np.asarray(np.where(is_in, IN_TOP5_OF[kind], 0), dtype=np.uint8)


def digests_of(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Return 128 bits of BLAKE2b of each key, `(num_keys, 2)` uint64: what images are told apart by."""
    data = b"".join(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest() for key in keys)
    return np.frombuffer(data, dtype="<u8").reshape(len(keys), 2)


def merge(parts: Iterable[Outcomes], *, keys: Iterable[str] = ()) -> Outcomes:
    """Put outcomes together, ordered by the digests of their keys: the same outcomes always give the same bytes.

    Args:
        parts: At least one; of disjoint images.
        keys: Those of all images, in any order; they are asked for only to name one that is there twice.

    Raises:
        IncompatibleError: If parts are of different heads, or an image is in more than one of them, or twice in one.
    """
    found = list(parts)
    head = found[0].head
    for part in found[1:]:
        difference = None if part.head is head else head.difference(part.head)
        if difference is not None:
            raise IncompatibleError(
                f"Outcomes of different heads cannot be put together: {difference}.",
                found=difference,
                expected="outcomes of one head",
                hint="Evaluate all images with the same bundle in the same state.",
            )
    digests = np.concatenate([part.rows["key"] for part in found])
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    _refuse_repeated(digests[order], keys)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows, start = np.empty(len(order), dtype=OUTCOME), 0
    for part in found:  # piece by piece: a copy of all of them, to be ordered, would be the greatest thing in memory
        rows[place[start : start + len(part)]] = part.rows
        start += len(part)
    return Outcomes(head=head, rows=rows)


def _refuse_repeated(ordered: NDArray[np.uint64], keys: Iterable[str]) -> None:
    """Raise `IncompatibleError` if an image is there twice."""
    is_repeated = (ordered[1:] == ordered[:-1]).all(axis=1)
    if not is_repeated.any():
        return
    first = ordered[:-1][is_repeated][0]
    name = next((key for key in keys if (digests_of([key])[0] == first).all()), None)
    raise IncompatibleError(
        f"{int(is_repeated.sum())} images come more than once{'' if name is None else f', such as {shown(name)}'}; "
        f"each counts once.",
        found=int(is_repeated.sum()) if name is None else name,
        expected="each image once",
        hint="Leave out the lines of the list, or the parts of the evaluation, that repeat them.",
    )


FIELDS = tuple(name for name in OUTCOME.names or () if name != "key")


def columns_of(outcomes: Outcomes, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return outcomes as the columns of a table.

    Args:
        outcomes: Of a batch.
        keys: `(num_images,)`, in the order of its rows.

    Returns:
        `key`, `(num_images,)` texts; `head`, which tells outcomes of one head from those of another; and each field of
        `OUTCOME`, `(num_images,)` numbers.
    """
    return {
        "key": np.array(keys, dtype=object),
        "head": np.array([outcomes.head.identity] * len(outcomes), dtype=object),
        **{name: np.ascontiguousarray(outcomes.rows[name]) for name in FIELDS},
    }


def outcomes_from_columns(columns: Mapping[str, Any], head: OutcomeHead) -> Outcomes:
    """Return outcomes from the columns of a table, in the order of its rows.

    Args:
        columns: As `columns_of` returns them: arrays, or columns of a table.
        head: The classes that the numbers are of.

    Raises:
        IncompatibleError: If a column is missing, or they are of another head.
    """
    missing = [name for name in ("key", "head", *FIELDS) if name not in columns]
    if missing:
        raise IncompatibleError(
            f"A table of outcomes lacks the columns {', '.join(missing)}.",
            found=tuple(missing),
            expected=("key", "head", *FIELDS),
            hint="Give a table that the checkpoint of an evaluation wrote.",
        )
    other = next((each for each in columns["head"] if each != head.identity), None)
    if other is not None:
        raise IncompatibleError(
            f"Outcomes of different heads cannot be put together: {shown(other)} and {head.identity}.",
            found=shown(other),
            expected=head.identity,
            hint="Evaluate all images with the same bundle in the same state, and the same unseen classes.",
        )
    keys = [str(key) for key in columns["key"]]
    rows = np.zeros(len(keys), dtype=OUTCOME)
    rows["key"] = digests_of(keys)
    for name in FIELDS:
        rows[name] = np.asarray(columns[name])
    return Outcomes(head=head, rows=rows)


def leads_in(outcomes: Outcomes) -> tuple[Float64, Int64, Float64]:
    """Return `lead`, the answer on an image's own side, and `shift_for_top5`, `(num_images,)` each."""
    of_seen = outcomes.head.is_seen[outcomes.column("label")]
    own = np.where(of_seen, outcomes.column("answer_among_seen"), outcomes.column("answer_among_unseen"))
    return outcomes.column("lead"), own, outcomes.column("shift_for_top5")
