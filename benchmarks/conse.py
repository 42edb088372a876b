"""ConSE: zero-shot classes by descriptor similarity, without rows; what a user could do in a page of Python.

An image becomes the mean of the descriptors of its most probable seen classes, weighted by their probabilities; the
class whose descriptor is most similar to it (cosine) wins. Chosen among all classes, seen ones compete in the same way.

Source: M. Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, with T = 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from icis_deploy.descriptors.descriptors import Descriptors

NUM_COMBINED = 10

Float32 = NDArray[np.float32]


def conse_from(descriptors: Descriptors, seen_names: Sequence[str], other_names: Sequence[str]) -> ConSE:
    """Return a head that knows the seen classes, and others after them.

    Raises:
        DescriptorError: If a class has no descriptor.
    """
    seen = unit_length(descriptors.select(seen_names).values)
    if not other_names:
        return ConSE(seen=seen, known=seen)
    return ConSE(seen=seen, known=seen).with_classes(descriptors.select(other_names).values)


def unit_length(vectors: Float32) -> Float32:
    """Return vectors of length 1; one that is zero stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConSE:
    """A head that knows classes by their descriptors."""

    seen: Float32
    """`(num_seen, descriptor_dim)`, of length 1, in the order of the original model's logits."""

    known: Float32
    """`(num_classes, descriptor_dim)`, of length 1: all classes that it chooses among."""

    def with_classes(self, descriptors: Float32) -> ConSE:
        """Return a head that knows more classes, after those it knows.

        Args:
            descriptors: `(num_added, descriptor_dim)`.
        """
        return replace(self, known=np.concatenate([self.known, unit_length(descriptors)]))

    def scores(self, logits: Float32) -> Float32:
        """Return the similarity of images to every class.

        Args:
            logits: `(batch, num_seen)`, of the original model.

        Returns:
            `(batch, num_classes)` cosines.
        """
        num_combined = min(NUM_COMBINED, logits.shape[1])
        best = np.argpartition(logits, -num_combined, axis=1)[:, -num_combined:]
        chosen = np.take_along_axis(logits, best, axis=1)
        weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))  # the mean's length cancels in the cosine
        combined = np.einsum("bt,btd->bd", weights, self.seen[best])
        return np.asarray(unit_length(combined) @ self.known.T)
