"""Who signed the classes of a head: kept with each state, for as long as the classes are in it.

The history lets old lines go. Whether a class that answers today was signed, and by whom, must not go with them: keys
are revoked years later. A class is named by its column among the model's scores, baked ones first, and columns by
ranges, so that thousands of classes of one update take no more room than one.

A class without an origin was exported with the bundle, was taught on the device, or came in before origins were kept.
"""

# Why: docs/decisions/0094.

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Origin:
    """Classes that one key signed, or nobody."""

    signed_by: str | None
    """Id of the key; `None` where nobody signed them, and an operator allowed it."""

    ranges: tuple[tuple[int, int], ...]
    """Their columns, as first ones and those after the last ones, in ascending order."""

    @property
    def columns(self) -> tuple[int, ...]:
        """The columns one by one."""
        return tuple(column for first, end in self.ranges for column in range(first, end))


def ranges_of(columns: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return columns as ranges, in ascending order."""
    numbered = enumerate(sorted(set(columns)))
    runs = [[column for _, column in run] for _, run in groupby(numbered, key=lambda each: each[1] - each[0])]
    return tuple((run[0], run[-1] + 1) for run in runs)


def signer_by_column(origins: Sequence[Origin]) -> dict[int, str | None]:
    """Return who signed the class of each column that has an origin."""
    return {column: origin.signed_by for origin in origins for column in origin.columns}


def origins_from(signers: dict[int, str | None]) -> tuple[Origin, ...]:
    """Return origins in the order of their signers, nobody first."""
    found = dict.fromkeys(signers.values())
    return tuple(
        Origin(signed_by, ranges_of(column for column, each in signers.items() if each == signed_by))
        for signed_by in sorted(found, key=lambda each: each or "")
    )


def origins_after_update(
    origins: Sequence[Origin], *, written: Iterable[int], after: Sequence[str | None], signed_by: str | None
) -> tuple[Origin, ...]:
    """Return the origins after a class update.

    Args:
        origins: Those before it.
        written: Columns whose rows it wrote.
        after: The class of each column after it; `None` for an empty slot.
        signed_by: Id of the key that signed it; `None` if nobody did.
    """
    signers = signer_by_column(origins)
    staying = {column: signers[column] for column in signers if column < len(after) and after[column] is not None}
    return origins_from(staying | dict.fromkeys(written, signed_by))


def origins_without(origins: Sequence[Origin], columns: Iterable[int]) -> tuple[Origin, ...]:
    """Return the origins of all other columns."""
    left_out = set(columns)
    return origins_from({column: each for column, each in signer_by_column(origins).items() if column not in left_out})


def origins_moved(
    origins: Sequence[Origin], before: Sequence[str | None], after: Sequence[str | None]
) -> tuple[Origin, ...]:
    """Return the origins of classes that got other columns.

    Args:
        origins: Those before.
        before: The class of each column before; `None` for an empty slot.
        after: The same afterwards.
    """
    columns = {name: column for column, name in enumerate(after) if name is not None}
    names = {column: before[column] for column in signer_by_column(origins) if column < len(before)}
    signers = signer_by_column(origins)
    return origins_from({columns[name]: signers[column] for column, name in names.items() if name in columns})


def brought_back(now: Sequence[Origin], then: Sequence[Origin], rewritten: Collection[int] = ()) -> frozenset[str]:
    """Return the keys that signed classes of a state which are not in effect now.

    Args:
        now: The origins of what is in effect.
        then: Those of the state.
        rewritten: Columns that have another class or another row now than then, as far as that is known: one key may
            have signed both.
    """
    current = signer_by_column(now)
    return frozenset(
        signed_by
        for column, signed_by in signer_by_column(then).items()
        if signed_by is not None and (column not in current or current[column] != signed_by or column in rewritten)
    )
