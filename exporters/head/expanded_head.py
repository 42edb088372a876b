"""All rows of an expanded head without holding them: the original's, read from its graph, and the injected ones.

A `Head` has its rows in memory, which injection needs. Writing and checking an export reads them once each, in order,
so it reads them from the model, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.head.affine_chain import scale_and_offset
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.patterns import pattern_row_blocks
from exporters.onnx_io.lazy_tensors import LazyTensor
from icis_deploy.common.arrays import Float32
from icis_deploy.head.head import Head, logits_of_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandedHead:
    """A model's own rows and those injected after them; it replaces a `Head` wherever rows are only read."""

    model: ir.Model = field(repr=False)
    """The original model's graph, which holds its rows."""

    location: HeadLocation
    """Where its head is in that graph."""

    injected: Float32 = field(repr=False)
    """`(num_injected, feature_dim + 1)` float32: `[weight | bias]` of each new class, in the order of the scores."""

    @property
    def num_classes(self) -> int:
        """Number of rows, the injected ones included."""
        return self.location.num_classes + len(self.injected)

    @property
    def feature_dim(self) -> int:
        """Width of a row without its bias."""
        return int(self.injected.shape[1]) - 1

    @property
    def bias(self) -> Float32:
        """`(num_classes,)` float32."""
        pattern = pattern_at(self.model, self.location)
        offset = scale_and_offset(pattern.node, pattern.chain)[1]
        own = np.broadcast_to(offset.reshape(-1), (pattern.num_classes,)).astype(np.float32)
        return np.concatenate([own, self.injected[:, -1]])

    @property
    def weight(self) -> Float32:
        """`(num_classes, feature_dim)` float32, all in memory, for what cannot work on blocks."""
        return np.concatenate([block[:, :-1] for block in self.blocks()])

    def blocks(self) -> Iterator[Float32]:
        """Yield all rows in order, `(block, feature_dim + 1)` float32 at a time."""
        yield from pattern_row_blocks(pattern_at(self.model, self.location))
        if len(self.injected):
            yield self.injected

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return logits in float64, `(batch, num_classes)`, for features `(batch, feature_dim)`; as `Head.logits`."""
        return logits_of_blocks(features, self.blocks())

    def weight_tensor(self, dtype: ir.DataType, name: str) -> LazyTensor:
        """Return the weight as a tensor that is read from the original model when it is written."""

        def pieces() -> Iterator[NDArray[np.generic]]:
            for block in self.blocks():
                yield np.ascontiguousarray(block[:, :-1], dtype=dtype.numpy())

        return LazyTensor(pieces, dtype=dtype, shape=(self.num_classes, self.feature_dim), name=name)


AnyHead = Head | ExpandedHead
"""All rows of a head, held or read in blocks."""
