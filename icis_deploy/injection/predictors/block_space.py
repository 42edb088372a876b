"""Descriptors of several blocks as one vector, for every method alike: each block standardised, then weighed.

Rules:

1. A block is centred on the seen classes that have it and brought to unit length, so that neither the scale of a block
   nor its width says how much it counts: its weight does.
2. What methods see is the concatenation, each block times the square root of its weight, at unit length. The product of
   two such vectors is the weighted sum of the blocks' cosines, and a kernel of their distance is the product of one
   kernel for each block, its exponent in proportion to the weight.
3. A block that says nothing of a class is zero there before the vector is brought to unit length: the class is compared
   by the blocks that it has. Two classes are never alike because both lack a block.
4. Whatever follows takes these vectors as it takes the descriptors of one block. Where one block is left that all seen
   classes have, it is taken as it is: a block that is dropped changes nothing.
"""

# Why: docs/decisions/0070.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.injection.rows.predictors import RowPredictor

NEGLIGIBLE = 1e-5
"""A part this much shorter than the block's usual descriptor, once centred, is rounding and has no direction."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StandardBlock:
    """What standardises the columns of one block."""

    name: str
    """Name of the block."""

    width: int
    """Number of columns."""

    centre: Float32
    """`(width,)`: the mean over the seen classes that have the block."""

    negligible: float
    """Length up to which a centred part counts as zero."""

    is_complete: bool
    """Whether it describes all seen classes."""

    def points(self, columns: Float32) -> Float64:
        """Return centred parts of unit length, `(num_classes, width)`; zero where a class is missing or average."""
        centred = columns.astype(np.float64) - self.centre
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        is_known = columns.any(axis=1, keepdims=True) & (length > self.negligible)
        return np.asarray(np.where(is_known, centred / np.where(is_known, length, 1.0), 0.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSpace:
    """The space in which methods compare classes whose descriptors have several blocks."""

    blocks: tuple[StandardBlock, ...]
    """In the order of the columns, at least one."""

    weights: tuple[float, ...]
    """`(num_blocks,)`, of each block, 0 or more; a block of weight 0 is left out. Their sum is 1."""

    @property
    def sole(self) -> int | None:
        """Index of the block that is taken as it is; `None` where blocks are joined."""
        kept = [index for index, weight in enumerate(self.weights) if weight > 0.0]
        return kept[0] if len(kept) == 1 and self.blocks[kept[0]].is_complete else None

    def apply(self, descriptors: Float32) -> Float32:
        """Return what methods take, `(num_classes, descriptor_dim)` -> `(num_classes, kept columns)` float32.

        A class that no kept block describes is zero.
        """
        if self.sole is not None:
            return self.columns(descriptors)[self.sole]
        return concatenated(
            [block.points(part) for block, part in zip(self.blocks, self.columns(descriptors), strict=True)],
            self.weights,
        )

    def columns(self, descriptors: Float32) -> list[Float32]:
        """Return the columns of each block, `(num_classes, width)`."""
        return np.split(descriptors, np.cumsum([block.width for block in self.blocks])[:-1], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockPredictor:
    """A predictor that was trained in a space of blocks, with the way there."""

    space: BlockSpace
    """From descriptors to what the predictor takes."""

    predictor: RowPredictor
    """Trained on what the space gave of the seen classes."""

    def rows(self, descriptors: Float32) -> Float32:
        """Predict raw rows, `(num_classes, descriptor_dim)` -> `(num_classes, feature_dim + 1)` float32."""
        return self.predictor.rows(self.space.apply(descriptors))


def standard_block(name: str, columns: Float32) -> StandardBlock:
    """Return what standardises a block.

    Args:
        name: Name of the block.
        columns: `(num_seen, width)`, of the seen classes; zero rows are missing ones.
    """
    width = columns.shape[1]
    known = columns[columns.any(axis=1)].astype(np.float64)
    if not len(known):
        nothing = np.zeros(width, dtype=np.float32)
        return StandardBlock(name=name, width=width, centre=nothing, negligible=np.inf, is_complete=False)
    return StandardBlock(
        name=name,
        width=width,
        centre=known.mean(axis=0).astype(np.float32),
        negligible=NEGLIGIBLE * float(np.linalg.norm(known, axis=1).mean()),
        is_complete=len(known) == len(columns),
    )


def concatenated(points: Sequence[Float64], weights: Sequence[float]) -> Float32:
    """Return the weighted concatenation of blocks at unit length, without blocks of weight 0.

    Args:
        points: `(num_classes, width)` for each block, rows of unit length or zero.
        weights: Of each block, at least one above 0.

    Returns:
        `(num_classes, kept columns)` float32; zero where all kept blocks are.
    """
    kept = [np.sqrt(weight) * part for part, weight in zip(points, weights, strict=True) if weight > 0.0]
    joined = np.concatenate(kept, axis=1)
    length = np.linalg.norm(joined, axis=1, keepdims=True)
    return np.asarray(joined / np.where(length > 0.0, length, 1.0), dtype=np.float32)
