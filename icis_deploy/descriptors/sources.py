"""Several sources of descriptors for the same classes, each a named block of one table.

A block holds values as its source has them: attributes in their own units, words as 0 and 1. Methods bring each block
to one scale where they use it, for only they know which classes are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from icis_deploy.common.closest import did_you_mean
from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.errors import DescriptorError, UsageError
from icis_deploy.head.class_names import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedClasses:
    """Descriptors of classes, and what there is to say about their sources."""

    descriptors: Descriptors
    notes: tuple[str, ...] = field(default=())
    """In sentences: what was dropped, missing or not asked for."""


def named_block(descriptors: Descriptors, name: str, class_names: Sequence[str]) -> Descriptors:
    """Return the descriptors of those of the classes that a source describes, as one block of a name.

    Raises:
        DescriptorError: If it describes none of them.
    """
    known = set(descriptors.class_names)
    found = [each for each in class_names if each in known]
    if not found:
        raise DescriptorError(
            f"The {name} describe none of the {len(class_names)} classes, such as {quoted(class_names[:2])}; they are "
            f"about {quoted(descriptors.class_names)}.",
            found=descriptors.class_names,
            expected=tuple(class_names),
            hint="Descriptors are matched to classes by name: check that both use the same names.",
        )
    values = descriptors.select(found).values
    return Descriptors(values=values, class_names=tuple(found), blocks=(DescriptorBlock(name, values.shape[1]),))


def joined_blocks(
    class_names: Sequence[str],
    parts: Sequence[Descriptors],
    *,
    base: Descriptors | None,
    replace: bool,
    unused: Sequence[str] = (),
) -> Descriptors:
    """Return the blocks of all parts in one table, in the order of the classes.

    Args:
        class_names: All classes.
        parts: New blocks; names are unique.
        base: Blocks that there were before, which come first.
        replace: Whether a new block takes the place of one of the same name.
        unused: Names of which sources speak and that no class has, one of which may be what a missing class is called.

    Raises:
        UsageError: If a block is there already and `replace` is false.
        DescriptorError: If a class is in no block.
    """
    kept: list[Descriptors] = []
    if base is not None:
        new = {block.name for part in parts for block in part.blocks}
        twice = [block.name for block in base.blocks if block.name in new]
        if twice and not replace:
            raise UsageError(
                f"The descriptors have a block {quoted(twice)} already.",
                found=tuple(block.name for block in base.blocks),
                expected="blocks of other names",
                hint="Give `replace=True` to take the new one, or leave its source out.",
            )
        kept = [_block_of(base, block.name) for block in base.blocks if block.name not in new]
    merged = Descriptors.merged([*kept, *parts])
    described = set(merged.class_names)
    missing = [name for name in class_names if name not in described]
    if missing:
        meant = did_you_mean(missing, {*merged.class_names, *unused}.difference(class_names))
        raise DescriptorError(
            f"No source describes {quoted(missing)}.",
            found=merged.class_names,
            expected=tuple(missing),
            hint=f"{meant}Describe them in one source at least, or leave them out of the classes.",
        )
    return merged.select(class_names)


def missing_notes(descriptors: Descriptors) -> tuple[str, ...]:
    """Return a sentence for each block that leaves classes out, which other blocks describe."""
    notes = []
    for block in descriptors.blocks:
        missing = descriptors.missing_in(block.name)
        if missing:
            notes.append(f"Block {block.name!r} says nothing of {len(missing)} classes: {quoted(missing)}.")
    return tuple(notes)


def _block_of(descriptors: Descriptors, name: str) -> Descriptors:
    values = descriptors.block(name)
    rows = [index for index, row in enumerate(values) if row.any()]
    return Descriptors(
        values=values[rows],
        class_names=tuple(descriptors.class_names[index] for index in rows),
        blocks=(DescriptorBlock(name, values.shape[1]),),
    )
