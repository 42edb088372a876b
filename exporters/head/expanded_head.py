"""All rows of an expanded head without holding them: the original's, read from its graph, and the injected ones.

Injected rows may have an arbiter, with which their logits follow from statistics of the seen ones.

A `Head` has its rows in memory, which injection needs. Writing and checking an export reads them once each, in order,
so it reads them from the model, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.head.affine_chain import scale_and_offset
from exporters.head.arbiter import exact_statistics, require_lengths, row_lengths
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.patterns import pattern_row_blocks
from exporters.onnx_io.lazy_tensors import LazyTensor
from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.head import Head, logits_of_blocks
from icis_deploy.head.slots import SlotTable


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandedHead:
    """A model's own rows and those injected after them; it replaces a `Head` wherever rows are only read."""

    model: ir.Model = field(repr=False)
    """The original model's graph, which holds its rows."""

    location: HeadLocation
    """Where its head is in that graph."""

    injected: Float32 = field(repr=False)
    """`(num_injected, feature_dim + 1)` float32: `[weight | bias]` of each new class, in the order of the scores."""

    arbiter: Float32 | None = field(default=None, repr=False)
    """`(num_injected, 5)` float32: the coefficients of each new class; `None` where all are zero."""

    lengths: Float32 = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    """`(num_seen,)` float32, from `arbiter.row_lengths`; empty where no row has an arbiter."""

    class_names: tuple[str, ...] = field(default=(), repr=False)
    """`(num_classes,)`, in the order of the scores; empty where nothing asks for them."""

    def __post_init__(self) -> None:
        if self.arbiter is None:
            return
        require_lengths(self.lengths, self.location.num_classes)
        expected = (len(self.injected), len(STATISTICS))
        if self.arbiter.shape != expected:
            raise IncompatibleError(
                f"The arbiter of the injected rows has shape {self.arbiter.shape}; expected {expected}.",
                found=self.arbiter.shape,
                expected=expected,
            )

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

    def logits(self, features: NDArray[np.floating]) -> Float64:
        """Return logits in float64, `(batch, num_classes)`, for features `(batch, feature_dim)`; as `Head.logits`."""
        logits = self.products(features)
        if self.arbiter is not None:
            seen = logits[:, : self.location.num_classes]
            self.add_offsets(logits, self.statistics(features, seen, seen.argmax(axis=1)))
        return logits

    def products(self, features: NDArray[np.floating]) -> Float64:
        """Return `features @ weight.T + bias` in float64, `(batch, num_classes)`: logits without the arbiter."""
        return logits_of_blocks(features, self.blocks())

    def statistics(self, features: NDArray[np.floating], seen_logits: Float64, top: NDArray[np.intp]) -> Float64:
        """Return what the arbiter's offsets follow from, `(batch, 5)` float64.

        Args:
            features: `(batch, feature_dim)`.
            seen_logits: `(batch, num_seen)` float64.
            top: `(batch,)`: which seen class counts as that with the greatest logit; chance, where two are as great.
        """
        return exact_statistics(np.asarray(features, dtype=np.float64), seen_logits, self.lengths, top)

    def add_offsets(self, logits: Float64, statistics: Float64) -> None:
        """Add what the arbiter makes of statistics to injected classes' logits, `(batch, num_classes)`, in place."""
        if self.arbiter is not None:
            logits[:, self.location.num_classes :] += statistics @ self.arbiter.astype(np.float64).T

    def weight_tensor(self, dtype: ir.DataType, name: str) -> LazyTensor:
        """Return the weight as a tensor that is read from the original model when it is written."""

        def pieces() -> Iterator[NDArray[np.generic]]:
            for block in self.blocks():
                yield np.ascontiguousarray(block[:, :-1], dtype=dtype.numpy())

        return LazyTensor(pieces, dtype=dtype, shape=(self.num_classes, self.feature_dim), name=name)


def expanded_head(
    model: ir.Model,
    location: HeadLocation,
    tables: Sequence[SlotTable | None],
    *,
    lengths: Float32 | None = None,
) -> ExpandedHead:
    """Return a model's own rows with those that tables hold, in their order.

    Args:
        model: The original model's graph.
        location: Where its head is in that graph.
        tables: Baked rows and slots; empty slots are left out.
        lengths: From `seen_row_lengths`; `None` computes them where a row has an arbiter.
    """
    held = [table for table in tables if table is not None]
    rows = [np.empty((0, location.feature_dim + 1), np.float32), *(table.rows() for table in held)]
    injected = ExpandedHead(model=model, location=location, injected=np.concatenate(rows))
    if all(table.arbiter is None for table in held):
        return injected
    return replace(
        injected,
        arbiter=np.concatenate([table.coefficients[table.filled] for table in held]),
        lengths=seen_row_lengths(model, location) if lengths is None else lengths,
    )


def seen_row_lengths(model: ir.Model, location: HeadLocation) -> Float32:
    """Return the distance of each of a model's own rows from their mean, `(num_seen,)` float32."""
    return row_lengths(lambda: pattern_row_blocks(pattern_at(model, location)))


AnyHead = Head | ExpandedHead
"""All rows of a head, held or read in blocks."""
