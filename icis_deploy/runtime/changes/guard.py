"""The guard: whether a change of classes would take answers from the classes that a device knows.

A signature says who made an update, not whether it is sane: a row with a great bias answers every image. So a bundle
carries features of images of classes that its original model knew (`icis_deploy.bundle.reference`), and states how
many of their answers one change may change. The guard multiplies them with the rows of the slots: no model runs.

Rules:

1. The answer on a reference image is the class with the greatest logit. All seen classes stand as one: what they give
   is in the reference, and no change of slots changes it. Classes that were baked in by `compact` stand for themselves.
2. An answer is changed if it is another class after the change than before. It is not counted where it was a class
   that this very change replaces or removes: its publisher says that these answers change, and no seen class loses by
   it. So a bad class can always be replaced by a better one, or removed.
3. Answers are those that the device would give: disabled classes take no part. Where the original model's own answer
   is a disabled class there is nothing to protect, and the image does not count. The others keep the statistics that
   an arbiter goes by, in which the disabled class took part: that moves all new classes alike, before and after.
   A class that the change itself writes takes part after it though it is disabled: to enable it asks nobody (rule 5).
4. A logit that is no number wins, as it does in a model's answers.
5. Each change is compared with the state that it starts from. `apply` and `teach` ask the guard. `rollback`, `enable`
   and `replace` do not: they are an operator's, and go to what was answered before, or to a bundle with a reference of
   its own.
6. A new row in the direction of a seen class's, within `COPY_COSINE` of it, is a copy of that class: which of the two
   answers is left to their biases, and one class among hundreds is too little for rule 2 to see. It is refused like
   too many changed answers, unless that class is disabled. Large heads have nothing to tell it by.
7. Over the limit, a change is refused before anything is committed, whoever signed it. An operator may allow it; the
   history then says how many answers it changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.bundle.reference import Reference, load_reference, sketching
from icis_deploy.bundle.slot_files import load_injected
from icis_deploy.common.arrays import Bool, Float32
from icis_deploy.common.terminal_text import MAX_SHOWN, percent, printable
from icis_deploy.errors import GuardError
from icis_deploy.head.slots import SlotTable

COPY_COSINE = 0.995
"""Between a row and a seen one, both less the mean seen row, without biases. Predicted rows of classes that are
described nearly alike came up to 0.98; of trained heads, two rows up to 0.56."""

_MAX_NAMED = 5
_SEEN = -1
"""Stands for all classes that no slot holds, where answers are compared."""

_BLOCK_COLUMNS = 16
_SINGLE_THREAD_PRODUCTS = (1 << 19) - 1
"""OpenBLAS gives each thread at least 2^18 multiplications (`SMP_THRESHOLD_MIN` times `GEMM_MULTITHREAD_THRESHOLD`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAnswers:
    """What a change of classes does to the answers on a bundle's reference images.

    Example:
        changed = icis_deploy.diff("bundle", "new.icis").changed_answers
        if changed is not None and changed.is_refused:
            print(changed.share, changed.takers)
    """

    num_reference: int
    """Number of reference images that count."""

    num_changed: int
    """Number of them with another answer after the change."""

    limit: float
    """Share of the answers that the bundle lets a change change, 0..1."""

    takers: tuple[tuple[str, int], ...]
    """The classes that changed answers go to and how many of them, the one that takes most first."""

    copies: tuple[tuple[str, str], ...] = ()
    """Classes of the change whose rows are copies of seen ones', each with the seen class."""

    is_reference_drawn: bool = False
    """Whether the reference is of features that stand in for images: more of their answers change."""

    @property
    def share(self) -> float:
        """Share of the answers that change, 0..1; 0 where no image counts."""
        return self.num_changed / self.num_reference if self.num_reference else 0.0

    @property
    def is_over_limit(self) -> bool:
        """Whether too many answers change."""
        return self.share > self.limit

    @property
    def is_refused(self) -> bool:
        """Whether a device refuses the change unless it is allowed to."""
        return self.is_over_limit or bool(self.copies)

    def require_few(self) -> None:
        """Raise `GuardError` if too many answers change, or a row is a copy of a seen one."""
        if self.is_over_limit:
            self._refuse_answers()
        if self.copies:
            (name, seen), count = self.copies[0], len(self.copies)
            more = f", and {count - 1} more such classes" if count > 1 else ""
            raise GuardError(
                f"The row of {printable(repr(name), max_length=MAX_SHOWN)} is a copy of that of "
                f"{printable(repr(seen), max_length=MAX_SHOWN)}, which the head knows{more}: it would take that "
                f"class's answers. Nothing was changed.",
                found=seen,
                expected=f"a cosine below {COPY_COSINE}",
                where=name,
                hint=(
                    "Leave the class out; where it is meant, give `allow_changed_answers=True`, and the history says "
                    "so."
                ),
            )

    def _refuse_answers(self) -> NoReturn:
        named = [f"{printable(repr(name), max_length=MAX_SHOWN)} ({count})" for name, count in self.takers[:_MAX_NAMED]]
        others = f" and {len(self.takers) - _MAX_NAMED} others" if len(self.takers) > _MAX_NAMED else ""
        raise GuardError(
            f"The change takes {self.num_changed} of {self.num_reference} answers on known classes "
            f"({percent(self.share)}) from the classes that give them now; this bundle lets one change take "
            f"{percent(self.limit)}. They would go to {', '.join(named)}{others}. Nothing was changed.",
            found=self.share,
            expected=f"at most {self.limit}",
            hint=(
                "The bundle looks at features that stand in for images, which are taken more easily: export it again "
                "with `seen_images`. Where there are none, inject again with a smaller `max_seen_loss`, or leave these "
                "classes out; where it is meant, give `allow_changed_answers=True`, and the history says so."
                if self.is_reference_drawn
                else "Inject again with a smaller `max_seen_loss`, or leave these classes out; where it is meant, give "
                "`allow_changed_answers=True`, and the history says so."
            ),
        )


class Guard:
    """The reference of an open bundle, and the logits of its slots.

    Not safe for several threads by itself; a device asks it while it changes nothing else.
    """

    def __init__(self, bundle: Bundle, reference: Reference, *, baked: SlotTable | None = None) -> None:
        """Keep what does not depend on slots.

        Args:
            bundle: Whose reference it is.
            reference: Features of images of known classes.
            baked: Rows that were baked in after the original's; `None` for none.
        """
        self._bundle = bundle
        self._reference = reference
        right, self._sketch_dim = reference.features.T, 0
        self._directions: Float32 | None = None
        if reference.sketches is not None:
            self._mean = reference.sketches.mean(axis=0, dtype=np.float32)
            self._directions = _blocks(_unit(reference.sketches - self._mean).T)
            self._sketch_dim = reference.sketches.shape[1]
            right = np.concatenate([right, sketching(bundle.feature_dim)], axis=1)
        self._right = _blocks(right)
        self._baked = None if baked is None else (baked.class_names, self._products(baked, baked.filled)[0])
        self._held: tuple[tuple[SlotTable, Float32], ...] = ()

    def changed_answers(
        self, before: SlotTable, after: SlotTable, *, written: Collection[str], disabled: Sequence[str] = ()
    ) -> ChangedAnswers:
        """Compare the answers of two states of the slots.

        Args:
            before: The state that the change starts from.
            after: The same but for the rows of `written`, and for classes that it no longer has.
            written: Classes whose rows the change writes.
            disabled: Classes that answers leave out.
        """
        left_out, written = frozenset(disabled), frozenset(written)
        is_written = np.zeros(after.capacity + 1, dtype=np.bool_)  # the last one is for _SEEN
        is_written[[slot for slot, name in _filled(after) if name in written]] = True
        moved, shifted = _moved_and_shifted(before, after, np.flatnonzero(is_written))
        products, sketches = self._products(after, moved)
        logits_before = self._logits(before)
        logits_after = _moved_rows(before, after, logits_before)
        logits_after[np.searchsorted(after.filled, moved)] = products
        if shifted.size:
            shift = (after.bias[shifted] - before.bias[shifted])[:, None]
            logits_after[np.searchsorted(after.filled, shifted)] += shift
        # The next change starts from one of these two.
        self._held = ((before, logits_before), (after, logits_after))
        fixed, counted = self._fixed_logits(left_out), self._counted(left_out)
        silent = left_out - written
        winners = _winners(logits_before, before, fixed, left_out), _winners(logits_after, after, fixed, silent)
        suspects = np.flatnonzero(counted & ((winners[0] != winners[1]) | is_written[winners[1]]))
        staying = frozenset(after.filled_names).difference(written)
        takers: Counter[str] = Counter()
        for index, old, new in zip(suspects, winners[0][suspects], winners[1][suspects], strict=True):
            name_before, name_after = _name(before, old), _name(after, new)
            if name_after == name_before or not (name_before is None or name_before in staying):
                continue
            takers[self._bundle.class_names[self._reference.answers[index]] if name_after is None else name_after] += 1
        return ChangedAnswers(
            num_reference=int(np.count_nonzero(counted)),
            num_changed=takers.total(),
            limit=self.limit,
            takers=tuple(sorted(takers.items(), key=lambda item: (-item[1], item[0]))),
            is_reference_drawn=self._bundle.is_reference_drawn,
            copies=self._copies(sketches, [str(after.class_names[slot]) for slot in moved], silent),
        )

    def leads(
        self,
        row: Float32,
        held: SlotTable,
        *,
        class_name: str,
        companions: Collection[str],
        raised_by: float,
        disabled: Sequence[str] = (),
    ) -> tuple[Float32, NDArray[np.int32]]:
        """Return how far a new row and its companions are above all other classes, on the images that count.

        Args:
            row: `(feature_dim + 1,)`, with a constant offset.
            held: The slots as they are.
            class_name: The row's class, whose row in the slots, if it has one, does not count.
            companions: Classes in the slots that it is compared together with.
            raised_by: What is added to the logits of these, which have constant offsets.
            disabled: Classes that answers leave out.

        Returns:
            `(num_counted,)`, the greatest logit of these rows less that of the others; and which seen class the
            original head answers with, by its index.
        """
        left_out = frozenset(disabled)
        logits = self._logits(held)
        self._held = ((held, logits),)
        named = list(enumerate(held.filled_names))
        beside = [index for index, name in named if name in companions]
        others = [index for index, name in named if name not in companions and name not in {class_name, *left_out}]
        rivals = np.maximum(self._fixed_logits(left_out), logits[others].max(axis=0, initial=-np.inf))
        with np.errstate(over="ignore", invalid="ignore"):
            made = _product(row[None, :-1], self._right, width=self._reference.num_reference)[0] + row[-1]
            made = np.maximum(made, logits[beside].max(axis=0, initial=-np.inf) + np.float32(raised_by))
        counted = self._counted(left_out)
        return np.asarray((made - rivals)[counted], dtype=np.float32), self._reference.answers[counted]

    @property
    def limit(self) -> float:
        """Share of the answers that one change may change, 0..1."""
        limit = self._bundle.max_changed_answers
        return 1.0 if limit is None else limit

    def _products(self, table: SlotTable, slots: NDArray[np.intp]) -> tuple[Float32, Float32]:
        """Return the logits of some slots on all reference images, and sketches of their rows, by one product.

        Returns:
            `(num_slots, num_reference)` and `(num_slots, sketch_dim)` float32; without sketches, that has width 0.
        """
        reference, width = self._reference, self._reference.num_reference + self._sketch_dim
        with np.errstate(over="ignore", invalid="ignore"):  # rule 4
            products = _product(table.weight[slots], self._right, width=width)
            logits = products[:, : reference.num_reference]
            logits += table.bias[slots][:, None]
            if table.arbiter is not None:
                logits += table.arbiter[slots] @ reference.statistics.T
        return logits, products[:, reference.num_reference :]

    def _copies(self, sketches: Float32, names: Sequence[str], left_out: frozenset[str]) -> tuple[tuple[str, str], ...]:
        if self._directions is None or not names:
            return ()
        cosines = _product(_unit(sketches - self._mean), self._directions, width=self._bundle.num_seen)
        found = []
        for index in np.flatnonzero(cosines.max(axis=1) >= COPY_COSINE).tolist():
            name, seen = names[index], self._bundle.class_names[int(cosines[index].argmax())]
            found += [] if {name, seen} & left_out else [(name, seen)]
        return tuple(found)

    def _logits(self, table: SlotTable) -> Float32:
        """Return the logits of all filled slots, `(num_filled, num_reference)`."""
        for held, logits in self._held:
            if held is table:
                return logits
        return self._products(table, table.filled)[0]

    def _fixed_logits(self, left_out: frozenset[str]) -> Float32:
        """Return the greatest logit of all classes that no slot holds, `(num_reference,)`."""
        fixed = self._reference.statistics[:, 0]
        if self._baked is None:
            return fixed
        names, logits = self._baked
        enabled = [index for index, name in enumerate(names) if name not in left_out]
        return np.asarray(np.maximum(fixed, logits[enabled].max(axis=0, initial=-np.inf)), dtype=np.float32)

    def _counted(self, left_out: frozenset[str]) -> Bool:
        """Return which images count, `(num_reference,)`: those whose own class is not disabled."""
        if not left_out:
            return np.ones(self._reference.num_reference, dtype=np.bool_)
        enabled = np.array([name not in left_out for name in self._bundle.seen_names])
        return np.asarray(enabled[self._reference.answers])


def _blocks(right: Float32) -> Float32:
    """Return a matrix `(depth, width)` in blocks of columns, `(num_blocks, depth, num_columns)`, padded by zeros."""
    depth, width = right.shape
    num_columns = max(1, min(_BLOCK_COLUMNS, _SINGLE_THREAD_PRODUCTS // depth))
    padded = np.pad(right, ((0, 0), (0, -width % num_columns)))
    return np.ascontiguousarray(padded.reshape(depth, -1, num_columns).transpose(1, 0, 2))


def _product(left: Float32, blocks: Float32, *, width: int) -> Float32:
    """Return a product of matrices, computed in parts that are too small for BLAS to wake its threads for.

    A whole product takes as long where the cores are idle. Where they are not, BLAS's threads wait for each other: 20
    to 100 ms instead of 0.6, on two cores with other work. All parts of some rows are one call of numpy, which does not
    hold Python's lock meanwhile: what the store writes beside it needs that.

    Args:
        left: `(num_rows, depth)`.
        blocks: The other matrix, as `_blocks` gives it.
        width: How many columns that has.
    """
    num_blocks, depth, num_columns = blocks.shape
    result = np.empty((len(left), num_blocks, num_columns), dtype=np.float32)
    step = max(1, _SINGLE_THREAD_PRODUCTS // (depth * num_columns))
    for start in range(0, len(left), step):
        rows = left[start : start + step]
        np.matmul(rows, blocks, out=result[start : start + step].transpose(1, 0, 2))
    return result.reshape(len(left), num_blocks * num_columns)[:, :width]


def _filled(table: SlotTable) -> Iterator[tuple[int, str]]:
    """Return the slots that hold a class, each with its class."""
    return zip(table.filled.tolist(), table.filled_names, strict=True)


def _moved_and_shifted(
    before: SlotTable, after: SlotTable, slots: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which of the slots have other weights than before, and which at most another bias, of the same class."""
    same = [slot for slot in slots.tolist() if after.class_names[slot] == before.class_names[slot]]
    if not same:  # new classes alone, as in most updates
        return slots, slots[:0]
    is_same = (before.weight[same] == after.weight[same]).all(axis=1)
    is_same &= (before.coefficients[same] == after.coefficients[same]).all(axis=1)
    is_shifted = np.zeros(after.capacity, dtype=np.bool_)
    is_shifted[same] = is_same
    return slots[~is_shifted[slots]], slots[is_shifted[slots]]


def _moved_rows(before: SlotTable, after: SlotTable, logits: Float32) -> Float32:
    """Return an array `(num_filled, num_reference)` for the slots after a change, with the rows of those before it."""
    index_of = np.full(after.capacity, -1, dtype=np.intp)
    index_of[before.filled] = np.arange(before.filled.size)
    rows = index_of[after.filled]
    moved = np.empty((rows.size, logits.shape[1]), dtype=np.float32)
    moved[rows >= 0] = logits[rows[rows >= 0]]
    return moved


def _winners(logits: Float32, table: SlotTable, fixed: Float32, left_out: frozenset[str]) -> NDArray[np.intp]:
    """Return the slot that answers each image, `(num_reference,)`; `_SEEN` where none does.

    Args:
        logits: `(num_filled, num_reference)`.
        table: The slots.
        fixed: `(num_reference,)`: the greatest logit of all classes that no slot holds.
        left_out: Disabled classes.
    """
    disabled = [index for index, name in enumerate(table.filled_names) if name in left_out] if left_out else []
    if disabled:
        logits = logits.copy()
        logits[disabled] = -np.inf
    winners = np.full(len(fixed), _SEEN, dtype=np.intp)
    if not table.filled.size:
        return winners
    # Few images are answered by a slot, and to find a maximum takes less than to find where it is. NaN is not less.
    answered = np.flatnonzero(~(logits.max(axis=0) <= fixed))
    winners[answered] = table.filled[logits[:, answered].argmax(axis=0)]
    return winners


def _unit(vectors: Float32) -> Float32:
    """Return vectors at length 1, `(num_vectors, dim)`; zero stays zero."""
    tiny = np.finfo(np.float32).tiny
    scaled = vectors / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), tiny)  # squares of a row may overflow
    return np.asarray(scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), tiny), dtype=np.float32)


def _name(table: SlotTable, slot: int) -> str | None:
    return None if slot == _SEEN else table.class_names[slot]


def load_guard(folder: Path, bundle: Bundle) -> Guard:
    """Return the guard of a bundle that states how many answers a change may change.

    Raises:
        BundleError: If its reference cannot be read.
        CorruptFileError: If that is not the one that the manifest states.
    """
    return Guard(bundle, load_reference(folder, bundle), baked=load_injected(folder, bundle))
