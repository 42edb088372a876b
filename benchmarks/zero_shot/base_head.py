"""A softmax head on features: the classifier that classes are injected into where none is given.

Adam, steps of 1e-4, batches of 16 and at most 100 epochs, as in the code of the authors of ICIS. They keep the epoch
that is best on the *test* images of seen classes; here the number of epochs is chosen on held-out training images, and
a head is then trained on all of them for that long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.zero_shot.xlsa17 import Images, hold_out
from icis_deploy.common.arrays import Float32
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.metrics.averages import macro, mean_by_class

LEARNING_RATE = 1e-4
BATCH_SIZE = 16
MAX_EPOCHS = 100
INIT_DEVIATION = 0.02
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseHead:
    """A trained head, and how it was selected."""

    rows: Float32
    """`(num_classes, feature_dim + 1)` float32."""

    num_epochs: int
    """Epochs that were best on the held-out images, and that the head was trained for."""

    held_out_accuracy: float
    """Macro accuracy on them after so many epochs, before the head was trained on all images."""


def train_base_head(images: Images, *, num_classes: int, seed: int, max_epochs: int = MAX_EPOCHS) -> BaseHead:
    """Choose the number of epochs on held-out images of each class, then train on all images for as long.

    Args:
        images: Every class has at least one.
        num_classes: Classes; labels are below it.
        seed: Of the initial weights, the order of images, and those that are held out.
        max_epochs: Epochs to choose from.
    """
    held = hold_out(images.labels, share=HELD_OUT_SHARE, seed=seed)
    validation = images.subset(held)
    trainer = _Trainer(images.subset(~held), num_classes=num_classes, seed=seed)
    accuracies = []
    for _ in range(max_epochs):
        trainer.train_epoch()
        right = head_logits(trainer.rows(), validation.features).argmax(axis=1) == validation.labels
        accuracies.append(macro(mean_by_class(right, validation.labels, num_classes=num_classes)) or 0.0)
    num_epochs = int(np.argmax(accuracies)) + 1
    final = _Trainer(images, num_classes=num_classes, seed=seed)
    for _ in range(num_epochs):
        final.train_epoch()
    return BaseHead(rows=final.rows(), num_epochs=num_epochs, held_out_accuracy=accuracies[num_epochs - 1])


class _Trainer:
    """A head in training."""

    def __init__(self, images: Images, *, num_classes: int, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._features = torch.from_numpy(images.features).to(device)  # (num_images, feature_dim)
        self._labels = torch.from_numpy(images.labels).to(device)  # (num_images,)
        weight = torch.randn(num_classes, images.features.shape[1], generator=self._generator) * INIT_DEVIATION
        self._weight = weight.to(device).requires_grad_()
        self._bias = torch.zeros(num_classes, device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._weight, self._bias], lr=LEARNING_RATE, fused=True)

    def train_epoch(self) -> None:
        """Use every image once, in random order."""
        import torch

        order = torch.randperm(len(self._labels), generator=self._generator).to(self._labels.device)
        for batch in torch.split(order, BATCH_SIZE):
            logits = torch.nn.functional.linear(self._features[batch], self._weight, self._bias)
            loss = torch.nn.functional.cross_entropy(logits, self._labels[batch])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def rows(self) -> Float32:
        """Return `(num_classes, feature_dim + 1)`, a copy."""
        import torch

        with torch.no_grad():
            rows = torch.cat([self._weight, self._bias[:, None]], dim=1)  # (num_classes, feature_dim + 1)
        return np.asarray(rows.cpu().numpy(), dtype=np.float32)
