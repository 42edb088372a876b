"""The demo's classifier: a small convolutional network that ends in a linear head, trained on the seen classes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from icis_deploy.common.arrays import UInt8
from icis_deploy.common.files import write_file
from icis_deploy.demo.rendering import IMAGE_SIZE
from icis_deploy.images.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(
    resize=IMAGE_SIZE, crop=IMAGE_SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), color="RGB", layout="NCHW"
)
"""How images are prepared for the network; the same settings go into the bundle."""

BATCH_SIZE = 32
PEAK_LEARNING_RATE = 6e-3
WARM_UP = 0.15
"""Share of the steps in which the learning rate rises to its peak; it falls to nothing in the rest."""

WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05


class DemoNetwork(nn.Module):
    """Five convolutions, their mean over the image, and a linear head: 0.2 million weights.

    The last convolution sees 47 of the 64 pixels each way: enough to tell a large star from a large cross.
    """

    def __init__(self, *, num_classes: int, feature_dim: int = 128) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            convolution(3, 16, stride=2),  # (batch, 16, 32, 32)
            convolution(16, 32, stride=2),  # (batch, 32, 16, 16)
            convolution(32, 64, stride=2),  # (batch, 64, 8, 8)
            convolution(64, 96),  # (batch, 96, 8, 8)
            convolution(96, feature_dim, stride=2),  # (batch, feature_dim, 4, 4)
        )
        self.head = nn.Linear(feature_dim, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(batch, num_classes)` of prepared images `(batch, 3, IMAGE_SIZE, IMAGE_SIZE)`."""
        features = self.backbone(image).mean(dim=(2, 3))  # (batch, feature_dim)
        logits: Tensor = self.head(features)
        return logits


def convolution(in_dim: int, out_dim: int, *, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_dim),
        nn.ReLU(),
    )


def train_network(
    images: UInt8,
    labels: NDArray[np.int64],
    *,
    num_classes: int,
    seed: int,
    num_epochs: int = 10,
    on_epoch: Callable[[int, float], None] | None = None,
) -> DemoNetwork:
    """Train a network with cross-entropy on the class labels; attributes are not shown to it.

    AdamW under a one-cycle learning rate; images are mirrored by chance, which changes no attribute. The same seed on
    the same machine gives the same weights; the caller's random state and number of threads are as they were.

    Args:
        images: `(num_images, IMAGE_SIZE, IMAGE_SIZE, 3)` uint8.
        labels: `(num_images,)`, indices of the classes in the head.
        num_classes: Width of the head.
        seed: Decides first weights, order and mirroring.
        num_epochs: Passes over the images.
        on_epoch: Called after each epoch with its number, from 1, and its mean loss.

    Returns:
        The network in evaluation mode.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DemoNetwork(num_classes=num_classes)
        optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        num_steps = num_epochs * num_batches(len(images))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_LEARNING_RATE, total_steps=num_steps, pct_start=WARM_UP, cycle_momentum=False
        )
        network.train()
        for epoch in range(num_epochs):
            losses = []
            for batch, targets in shuffled_batches(images, labels):
                loss = F.cross_entropy(network(batch), targets, label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            if on_epoch is not None:
                on_epoch(epoch + 1, float(np.mean(losses)))
    return network.eval()


def export_program(network: DemoNetwork, path: Path) -> None:
    """Save a network as a `.pt2` program with input `image` and a dynamic batch.

    Raises:
        StorageError: If the file cannot be written; what was at `path` before is still there.
    """
    images = torch.zeros(2, *PREPROCESSING.input_shape)  # of a batch of 1, torch would make a constant
    program = torch.export.export(
        network.eval(), (images,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}}, strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_file(path, buffer.getvalue())


def predict_logits(network: DemoNetwork, images: UInt8, *, batch_size: int = 256) -> NDArray[np.float32]:
    """Return logits `(num_images, num_classes)` of images `(num_images, IMAGE_SIZE, IMAGE_SIZE, 3)` uint8."""
    with torch.inference_mode():
        parts = [network(prepared(images[start : start + batch_size])) for start in range(0, len(images), batch_size)]
    return np.concatenate([part.numpy() for part in parts])


def shuffled_batches(images: UInt8, labels: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each image once in random order, mirrored half the time, with its label.

    Images that do not fill a batch are left out of this pass: a batch of one has no variance to normalise by.
    """
    order = torch.randperm(len(images)).numpy()
    size = batch_size(len(images))
    for index in range(num_batches(len(images))):
        chosen = order[index * size : (index + 1) * size]
        batch = prepared(images[chosen])
        mirrored = torch.rand(size, 1, 1, 1) < 0.5
        yield torch.where(mirrored, batch.flip(3), batch), torch.from_numpy(labels[chosen])


def batch_size(num_images: int) -> int:
    """Return how many images make a batch."""
    return min(BATCH_SIZE, num_images)


def num_batches(num_images: int) -> int:
    """Return how many full batches a pass over the images has."""
    return num_images // batch_size(num_images)


def prepared(images: UInt8) -> Tensor:
    """Return images as the network's input, `(batch, 3, IMAGE_SIZE, IMAGE_SIZE)` float32."""
    pixels = torch.from_numpy(PREPROCESSING.normalize(images.astype(np.float32) / np.float32(255)))
    return pixels.contiguous(memory_format=torch.channels_last)  # a fifth faster; the values are the same


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in this block.

    A step of this network is so short that two threads wait for each other on a busy machine more than they compute
    (measured: up to 15 times slower than one). And what one thread adds up does not depend on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
