"""The head of a classifier: one row per class, and the classes' names.

Rules:

1. A row is `[weight | bias]`, `(feature_dim + 1,)` float32. A head without biases has zeros there.
2. `logits = features @ weight.T + bias`; whatever a model does around that (pooling, softmax, a learned scale that is
   folded into the rows) is handled by `exporters`.
3. Two heads are the same head when their fingerprints are equal: same names, same order, same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from icis_deploy.common.arrays import Float32, Float64, check_row_order, frozen_float32
from icis_deploy.common.given import ordered_items
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.class_names import check_unique

BLOCK_BYTES = 8 << 20
"""How many bytes of rows are converted to float64 at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """All rows of a classifier's last linear layer, with the name of each.

    Example:
        >>> head = icis_deploy.Head(rows=[[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]], class_names=("zebra", "horse"))
        >>> head.num_classes, head.feature_dim
        (2, 2)
        >>> head.logits([[1.0, 1.0]])
        array([[1.5, 2. ]])

    Raises:
        IncompatibleError: On construction, if the rows are not a finite matrix with a weight and one row per name.
        ClassConflictError: On construction, if two rows have the same name, or one has none.
    """

    rows: Float32 = field(compare=False)
    """`(num_classes, feature_dim + 1)` float32, read-only: weight, then bias."""

    class_names: tuple[str, ...] = field(compare=False)
    """`(num_classes,)`, unique, in the order of the logits."""

    fingerprint: str = field(init=False)
    """SHA-256 over the float32 rows and the names, lower-case hexadecimal; heads are compared by it alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", ordered_items(self.class_names, "names of classes", name="class_names"))
        check_row_order(self.rows, self.class_names, name="head rows")
        object.__setattr__(self, "rows", frozen_float32(self.rows, name="head rows", ndim=2))
        if self.rows.shape[1] < 2:
            raise IncompatibleError(
                f"The head's rows are {self.rows.shape[1]} wide; expected at least one weight, and a bias.",
                found=self.rows.shape[1],
                expected="at least 2 columns: one weight, and a bias",
            )
        if len(self.class_names) != len(self.rows):
            raise IncompatibleError(
                f"The head has {len(self.rows)} rows but {len(self.class_names)} class names were given; expected one "
                f"name per row, in the order of the logits.",
                found=len(self.class_names),
                expected=len(self.rows),
                hint="Check the class list.",
            )
        check_unique(self.class_names)
        object.__setattr__(self, "fingerprint", fingerprint(self.rows, self.class_names))

    @property
    def num_classes(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def feature_dim(self) -> int:
        """Width of a feature: a row's width less its bias."""
        return int(self.rows.shape[1]) - 1

    @property
    def weight(self) -> Float32:
        """`(num_classes, feature_dim)` float32, a read-only view."""
        return self.rows[:, :-1]

    @property
    def bias(self) -> Float32:
        """`(num_classes,)` float32, a read-only view."""
        return self.rows[:, -1]

    def expand(self, rows: ArrayLike, class_names: Sequence[str]) -> Head:
        """Return this head with `rows` appended; the rows that were there keep their bits and their order.

        Args:
            rows: `(num_new, feature_dim + 1)`.
            class_names: `(num_new,)`, none of them known to this head.

        Raises:
            IncompatibleError: If the rows have another width.
            ClassConflictError: If a name is already taken.
        """
        new = frozen_float32(rows, name="new rows", ndim=2)
        if new.shape[1] != self.rows.shape[1]:
            raise IncompatibleError(
                f"New rows are {new.shape[1]} wide; this head's rows are {self.rows.shape[1]} (feature_dim "
                f"{self.feature_dim} and a bias). They were made for another model.",
                found=new.shape[1],
                expected=self.rows.shape[1],
                hint="Inject again with this model.",
            )
        return Head(rows=np.concatenate([self.rows, new]), class_names=(*self.class_names, *class_names))

    def logits(self, features: ArrayLike) -> Float64:
        """Return logits in float64, the reference that every export is compared with.

        Args:
            features: `(batch, feature_dim)`.

        Returns:
            `(batch, num_classes)` float64.
        """
        return logits_of_blocks(features, row_blocks(self.rows))


def row_blocks(rows: Float32) -> Iterator[Float32]:
    """Yield rows in order, in blocks whose float64 copies are small compared with a large head.

    Args:
        rows: `(num_classes, feature_dim + 1)`.
    """
    size = rows_per_block(rows.shape[1])
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def rows_per_block(row_dim: int) -> int:
    """Return how many rows of this width make one block."""
    return max(1, BLOCK_BYTES // (4 * row_dim))


def logits_of_blocks(features: ArrayLike, blocks: Iterable[Float32]) -> Float64:
    """Return `features @ weight.T + bias` in float64, the rows coming in blocks.

    Args:
        features: `(batch, feature_dim)`.
        blocks: Each `(block, feature_dim + 1)`, in order.

    Returns:
        `(batch, num_classes)` float64.
    """
    wide = np.asarray(features, dtype=np.float64)
    parts = [wide @ block[:, :-1].astype(np.float64).T + block[:, -1].astype(np.float64) for block in blocks]
    return np.concatenate(parts, axis=1)


def fingerprint(rows: Float32, class_names: Sequence[str]) -> str:
    """Return the SHA-256 of rows and names, with the shape in front so that no two heads share their bytes.

    Args:
        rows: `(num_classes, feature_dim + 1)` float32.
        class_names: `(num_classes,)`.
    """
    digest = hashlib.sha256(b"icis-deploy head v1\0")
    digest.update(np.asarray(rows.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(rows, dtype="<f4").data)
    for name in class_names:
        encoded = name.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
