"""Blocks of descriptors in an injection: weighed on seen classes, joined for the methods, and named to the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.common.terminal_text import percent
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import DescriptorError
from icis_deploy.head.class_names import quoted
from icis_deploy.injection.predictors.block_space import BlockPredictor, BlockSpace, standard_block
from icis_deploy.injection.predictors.block_weights import Gain, weigh_blocks
from icis_deploy.injection.rows.predictors import RowPredictor


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeight:
    """How much one block of descriptors counts in an injection.

    Example:
        injection = icis_deploy.train_injector("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        for block in injection.blocks:
            print(block.name, block.weight)
    """

    name: str
    """Name of the block."""

    weight: float
    """Its part of the similarity of two classes that have all blocks, 0..1; 0 where it was dropped."""

    cosine_with: float | None
    """Mean cosine between true deviations of seen classes and those that the other classes predict, with this block
    beside the others; `None` where there was nothing to compare."""

    cosine_without: float | None
    """The same without this block; `None` where there was nothing to compare."""

    num_seen_missing: int
    """Seen classes of which the block says nothing."""

    num_unseen_missing: int
    """Injected classes of which the block says nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, rounded, as a class update's provenance keeps them."""
        return {
            "name": self.name,
            "weight": round(self.weight, 4),
            "cosine_with": None if self.cosine_with is None else round(self.cosine_with, 4),
            "cosine_without": None if self.cosine_without is None else round(self.cosine_without, 4),
            "num_seen_missing": self.num_seen_missing,
            "num_unseen_missing": self.num_unseen_missing,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JoinedBlocks:
    """Descriptors as methods take them, and how they came to be so."""

    space: BlockSpace | None
    """From descriptors to what methods take; `None` of one block, which is taken as it is."""

    seen: Float32
    """`(num_seen, columns)`: what methods take of the seen classes."""

    new: Descriptors
    """The same of the classes to inject."""

    weights: tuple[BlockWeight, ...]
    """`(num_blocks,)`: how much each block counts."""

    def predictor(self, trained: RowPredictor) -> RowPredictor:
        """Return a predictor that was trained on joined blocks as one that takes descriptors."""
        return trained if self.space is None else BlockPredictor(space=self.space, predictor=trained)


def join_blocks(seen: Descriptors, new: Descriptors, rows: Float32, *, seed: int) -> JoinedBlocks:
    """Weigh the blocks of descriptors on the seen classes, and join them.

    Args:
        seen: Of the seen classes.
        new: Of the classes to inject.
        rows: `(num_seen, feature_dim + 1)`.
        seed: Of the draw of classes where there are many.

    Raises:
        DescriptorError: If no block tells seen classes apart, or only dropped blocks describe a class to inject.
    """
    names = [block.name for block in seen.blocks]
    if len(names) == 1:
        weight = _block_weight(names[0], 1.0, None, seen, new)
        return JoinedBlocks(space=None, seen=seen.values, new=new, weights=(weight,))
    blocks = tuple(standard_block(name, seen.block(name)) for name in names)
    points = [block.points(seen.block(name)) for block, name in zip(blocks, names, strict=True)]
    if not any(part.any() for part in points):
        raise DescriptorError(
            f"No block of the descriptors ({quoted(names)}) tells the classes of the head apart: each says the same of "
            f"all of them, or nothing.",
            found=tuple(names),
            expected="a block that describes the head's classes",
            hint="Check that descriptors and classes belong together.",
        )
    weighed = weigh_blocks(points, rows, seed=seed)
    space = BlockSpace(blocks=blocks, weights=weighed.weights)
    weights = tuple(
        _block_weight(name, weight, gain, seen, new)
        for name, weight, gain in zip(names, weighed.weights, weighed.gains, strict=True)
    )
    return JoinedBlocks(space=space, seen=space.apply(seen.values), new=_joined(space, new, weights), weights=weights)


def weights_text(blocks: Sequence[BlockWeight]) -> str:
    """Return in a sentence or two how much each block counts, and why others do not."""
    kept = [block for block in blocks if block.weight > 0.0]
    lines = ["Descriptors: " + ", ".join(f"{block.name} {percent(block.weight)}" for block in kept) + "."]
    for block in blocks:
        if block.weight > 0.0:
            continue
        if block.cosine_with is None or block.cosine_without is None:
            reason = "it tells no two classes of the head apart"
        else:
            reason = (
                f"it does not help to predict rows of known classes (cosine {block.cosine_with:.3f} with it, "
                f"{block.cosine_without:.3f} without)"
            )
        lines.append(f"Block {block.name} was left out: {reason}.")
    return " ".join(lines)


def _block_weight(name: str, weight: float, gain: Gain | None, seen: Descriptors, new: Descriptors) -> BlockWeight:
    return BlockWeight(
        name=name,
        weight=weight,
        cosine_with=None if gain is None else gain.with_it,
        cosine_without=None if gain is None else gain.without_it,
        num_seen_missing=len(seen.missing_in(name)),
        num_unseen_missing=len(new.missing_in(name)),
    )


def _joined(space: BlockSpace, new: Descriptors, weights: Sequence[BlockWeight]) -> Descriptors:
    """Return the joined descriptors of the classes to inject."""
    values = space.apply(new.values)
    unknown = tuple(new.class_names[index] for index in np.flatnonzero(np.logical_not(values.any(axis=1))))
    if unknown:
        kept = tuple(block.name for block in weights if block.weight > 0.0)
        raise DescriptorError(
            f"Nothing useful is known of {quoted(unknown)}: the blocks that help to predict rows ({quoted(kept)}) say "
            f"nothing of it, or nothing but what is average. {weights_text(weights)}",
            found=unknown,
            expected=kept,
            hint="Describe these classes in one of those blocks, or leave them out of `unseen`.",
        )
    return Descriptors(values=values, class_names=new.class_names)
