"""Inject into heads of many kinds, where there are many labelled images: do choices and predictions hold there too?

The demo's rendered images and small networks, trained well and badly, and on their features heads of other kinds:
softmax regression (with much and little decay, stopped early, label smoothing, without biases, on unit features), one
against the rest, nearest class mean, linear discriminant, least squares. No image influences any row or choice.
Prints a line a head. Takes four minutes on one thread. `MODEL_ERROR` in icis_deploy/injection/estimate/intervals.py and
`CONCENTRATIONS` in icis_deploy/injection/pseudo_features/mixtures.py were set on what it prints; another `--seed` gives
another world, with other images and networks.

With `--no-backbone` there are no neutral features. With `--batch-norm` they are moved so that their mean is what the
last batch normalisation's statistics say of the training images: what would be gained if calibration read them.

Usage: python scripts/experiments/other_heads.py [--method ridge] [--seed 0] [--no-backbone] [--batch-norm]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.zero_shot.injection_quality import COLUMNS, measure_injection, summary
from icis_deploy.common.arrays import Float32, Int64
from icis_deploy.demo.network import PREPROCESSING, DemoNetwork, prepared, train_network
from icis_deploy.demo.rendering import IMAGE_SIZE, render_classes
from icis_deploy.demo.world import describe, make_world
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.head.head import Head
from icis_deploy.images.neutral import neutral_images
from icis_deploy.injection.inject import inject
from icis_deploy.injection.options import InjectionOptions

Fit = Callable[[Float32, Int64, int], Float32]
NUM_UNSEEN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A trained network's features."""

    rows: Float32
    training: Float32
    training_labels: Int64
    test: Float32
    test_labels: Int64
    neutral: Float32
    num_seen: int


def softmax(
    features: Float32, labels: Int64, num_seen: int, *, decay: float = 1e-3, smoothing: float = 0.0,
    bias: bool = True, steps: int = 200, cosine: float = 0.0, one_to_rest: bool = False,
) -> Float32:  # fmt: skip
    """Return the rows of a regression on given features; with `cosine`, that is the scale of unit rows."""
    torch.manual_seed(0)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    weight = (0.01 * torch.randn(num_seen, features.shape[1])).requires_grad_()
    offsets = torch.zeros(num_seen, requires_grad=bias)
    optimizer = torch.optim.LBFGS(
        [weight, offsets] if bias else [weight], max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )
    one_hot = F.one_hot(targets, num_seen).float()

    def loss() -> float:
        optimizer.zero_grad()
        rows = cosine * F.normalize(weight, dim=1) if cosine else weight
        logits = inputs @ rows.T + offsets
        if one_to_rest:
            value = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(dim=1).mean()
        else:
            value = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        value = value + (0.0 if cosine else 0.5 * decay) * (weight**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    rows = (cosine * F.normalize(weight, dim=1) if cosine else weight).detach()
    return np.concatenate([rows.numpy(), offsets.detach().numpy()[:, None]], axis=1).astype(np.float32)


def class_means(features: Float32, labels: Int64, num_seen: int) -> NDArray[np.float64]:
    """Return `(num_seen, feature_dim)`."""
    return np.stack([features[labels == index].mean(axis=0, dtype=np.float64) for index in range(num_seen)])


def nearest_mean(features: Float32, labels: Int64, num_seen: int) -> Float32:
    """Return rows `[mean | -|mean|^2 / 2]`."""
    means = class_means(features, labels, num_seen)
    return np.concatenate([means, -0.5 * (means**2).sum(axis=1, keepdims=True)], axis=1).astype(np.float32)


def discriminant(features: Float32, labels: Int64, num_seen: int) -> Float32:
    """Return the rows of a linear discriminant analysis with a little shrinkage."""
    means = class_means(features, labels, num_seen)
    rest = features - means[labels]
    covariance = rest.T @ rest / len(rest)
    covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weight = np.linalg.solve(covariance, means.T).T
    return np.concatenate([weight, -0.5 * (weight * means).sum(axis=1, keepdims=True)], axis=1).astype(np.float32)


def least_squares(features: Float32, labels: Int64, num_seen: int) -> Float32:
    """Return the rows of a ridge regression to one-hot targets."""
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    moment = inputs.T @ inputs / len(inputs)
    penalty = 0.01 * np.trace(moment[:-1, :-1]) / len(moment) * np.eye(len(moment))
    penalty[-1, -1] = 0.0
    return np.linalg.solve(moment + penalty, inputs.T @ np.eye(num_seen)[labels] / len(inputs)).T.astype(np.float32)


HEADS: dict[str, Fit] = {
    "softmax": softmax,
    "softmax, much decay": lambda *data: softmax(*data, decay=2e-2),
    "softmax, little decay": lambda *data: softmax(*data, decay=1e-5, steps=300),
    "softmax, stopped early": lambda *data: softmax(*data, steps=12),
    "label smoothing": lambda *data: softmax(*data, smoothing=0.1, decay=1e-4),
    "no biases": lambda *data: softmax(*data, bias=False),
    "cosine": lambda *data: softmax(*data, bias=False, cosine=20.0),
    "one to rest": lambda *data: softmax(*data, one_to_rest=True),
    "nearest mean": nearest_mean,
    "discriminant": discriminant,
    "least squares": least_squares,
}


def train_backbone(
    training: tuple[NDArray[np.uint8], Int64], test: tuple[NDArray[np.uint8], Int64],
    *, num_seen: int, num_epochs: int, batch_norm: bool,
) -> Backbone:  # fmt: skip
    """Train the demo's network on the first seen classes and return its features of all images."""
    is_used = training[1] < num_seen
    images, labels = training[0][is_used], training[1][is_used]
    network = train_network(images, labels, num_classes=num_seen, seed=0, num_epochs=num_epochs)
    images = neutral_images(128, IMAGE_SIZE, IMAGE_SIZE, seed=0).transpose(0, 2, 3, 1)
    neutral = _features(network, lambda part: torch.from_numpy(PREPROCESSING.normalize(part)), images)
    if batch_norm:
        neutral = np.maximum(neutral + expected_features(network) - neutral.mean(axis=0), 0.0)
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    return Backbone(
        rows=np.concatenate([weight, bias[:, None]], axis=1),
        training=_features(network, prepared, images),
        training_labels=labels,
        test=_features(network, prepared, test[0]),
        test_labels=test[1],
        neutral=neutral,
        num_seen=num_seen,
    )


def expected_features(network: DemoNetwork) -> Float32:
    """Return the mean feature of training images by batch normalisation's statistics, `(feature_dim,)`.

    Before the last ReLU a channel has mean `bias` and deviation `weight`; it is taken to be normal.
    """
    normalisation = network.backbone[-1][1]
    mean, deviation = normalisation.bias.detach().double(), normalisation.weight.detach().double().abs()
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio**2) / (2.0 * torch.pi) ** 0.5
    expected = mean * torch.special.ndtr(ratio) + deviation * density
    return np.asarray(expected.numpy(), dtype=np.float32)


def concentrations(backbone: Backbone) -> tuple[float, float]:
    """Return how alike test images are in their share of class, `c` of `Beta(c mean, c (1 - mean))`.

    By moments; an image's share is the square of its component along its class's mean, as a part of all images' mean
    square distance from the centre, and of its own.
    """
    means = class_means(backbone.training, backbone.training_labels, backbone.num_seen)
    is_seen = backbone.test_labels < backbone.num_seen
    around, labels = backbone.test[is_seen] - means.mean(axis=0), backbone.test_labels[is_seen]
    towards = means - means.mean(axis=0)
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    shown = np.maximum(np.einsum("ij,ij->i", around, towards[labels]), 0.0) ** 2
    distance = (around**2).sum(axis=1)
    found = []
    for share in (np.minimum(shown / distance.mean(), 1.0), shown / distance):
        found.append(float(share.mean() * (1.0 - share.mean()) / share.var() - 1.0))
    return found[0], found[1]


def _features(network: DemoNetwork, prepare: Callable[..., torch.Tensor], images: NDArray[np.generic]) -> Float32:
    with torch.inference_mode():
        parts = [network.backbone(prepare(images[at : at + 256])).mean(dim=(2, 3)) for at in range(0, len(images), 256)]
    return torch.cat(parts).numpy()


def heads(backbones: dict[str, Backbone]) -> Iterator[tuple[str, Backbone, Float32, int, bool]]:
    """Yield name, backbone, rows, number of seen classes, and whether features are of unit length."""
    for name, backbone in backbones.items():
        yield name, backbone, backbone.rows, backbone.num_seen, False
    refitted = [("120", name) for name in HEADS]
    refitted += [("120 badly trained", name) for name in ("softmax", "discriminant", "nearest mean")]
    for backbone_name, name in refitted:
        yield _refitted(backbones[backbone_name], backbone_name, name, None)
    for count in (40, 80, 200):
        for name in ("softmax", "softmax, little decay", "discriminant"):
            yield _refitted(backbones["300"], "300", name, count)


def _refitted(
    backbone: Backbone, backbone_name: str, name: str, count: int | None
) -> tuple[str, Backbone, Float32, int, bool]:
    num_seen, is_unit = count or backbone.num_seen, name == "cosine"
    is_used = backbone.training_labels < num_seen
    features = _unit(backbone.training[is_used]) if is_unit else backbone.training[is_used]
    rows = HEADS[name](features, backbone.training_labels[is_used], num_seen)
    return f"{backbone_name}, {name}{f' of {count}' if count else ''}", backbone, rows, num_seen, is_unit


def _unit(features: Float32) -> Float32:
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True), dtype=np.float32)


def main() -> None:
    """Print one line a head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ridge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-backbone", action="store_true")
    parser.add_argument("--batch-norm", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = make_world(seed=asked.seed, num_seen=300, num_unseen=96)
    training = render_classes(world.seen, 40, seed=2 * asked.seed)
    test = render_classes(world.classes, 30, seed=2 * asked.seed + 1)
    networks = {"120": (120, 12), "120 badly trained": (120, 2), "40": (40, 20), "300": (300, 8)}
    backbones = {
        name: train_backbone(training, test, num_seen=count, num_epochs=epochs, batch_norm=asked.batch_norm)
        for name, (count, epochs) in networks.items()
    }
    for name, backbone in backbones.items():
        print("{}: concentration {:.1f} of all images' spread, {:.1f} of each".format(name, *concentrations(backbone)))
    print(COLUMNS)
    values, found = describe(world.classes).values, []
    for name, backbone, rows, num_seen, is_unit in heads(backbones):
        chosen = backbone.num_seen + np.random.default_rng(0).permutation(396 - backbone.num_seen)[:NUM_UNSEEN]
        used = np.concatenate([np.arange(num_seen), chosen])
        names = tuple(f"class{index}" for index in used)
        at = np.full(len(values), -1)
        at[used] = np.arange(len(used))
        labels = at[backbone.test_labels]
        features, labels = backbone.test[labels >= 0], labels[labels >= 0]
        features, neutral = (_unit(features), _unit(backbone.neutral)) if is_unit else (features, backbone.neutral)
        head = Head(rows=rows, class_names=names[:num_seen])
        is_seen = labels < num_seen
        accuracy = float((head.logits(features[is_seen]).argmax(axis=1) == labels[is_seen]).mean())
        options = InjectionOptions(method=asked.method, balance=0.5, seen_accuracy=min(accuracy, 0.99))
        described = Descriptors(values=values[used], class_names=names)
        injection = inject(head, described, options=options, neutral_features=None if asked.no_backbone else neutral)
        found.append(measure_injection(head, injection, features, labels))
        print(found[-1].line(name), flush=True)
    print(summary(found))


if __name__ == "__main__":
    main()
