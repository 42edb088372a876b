"""ICIS: two autoencoders that share a latent space, one of descriptors and one of rows; the whole model.

Source: Christensen, Mancini, Koepke, Winther & Akata, "Image-free Classifier Injection for Zero-Shot Classification",
ICCV 2023, arXiv 2308.10599. A row is predicted by `decode_row(encode_descriptor(descriptor))`. All loss terms are
cosines, so nothing in here sets the length of a predicted row: `icis_deploy.injection.validation.operating_point` does.

Two settings of the same model, loss and optimiser:

- `ICISConfig.published()`: learning rate 1e-5, batches of 16, and the stopping rule of the paper's authors.
- `ICISConfig()`: larger batches, a larger step that is warmed up and annealed, and a fixed number of steps. It reaches
  the same accuracy in a small part of the time, and its cost is known before it starts.
"""

# Why: docs/decisions/0018.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icis_deploy.common.arrays import Float32
from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.injection.rows.predictors import LatentPredictor, Progress

PREDICTION_BATCH = 4096
"""Classes whose rows are decoded at once; bounds the memory of a prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """Stop once the loss falls too slowly, by epoch; the rule of the paper's authors."""

    window: int = 10
    """Epochs over which losses are averaged; the slope compares the last window with the one before."""

    min_slope: float = 2e-3
    """Least fall of the loss per epoch; a slower one counts as none."""

    patience: int = 5
    """Epochs in a row without a fall before training stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ICISConfig:
    """How ICIS is trained; the defaults are the fast recipe.

    Raises:
        UsageError: On construction, if a number is out of range.
    """

    latent_dim: int = 2048
    """Width of the shared latent space."""

    learning_rate: float = 1e-3
    """Adam's step size: the largest one where there is a schedule."""

    batch_size: int = 64
    """Classes in a batch, seen and unseen together."""

    max_epochs: int = 15
    """Times that every class is used."""

    min_steps: int = 120
    """Steps to take even where `max_epochs` has fewer: with few classes an epoch is a step or two."""

    stopping_rule: StoppingRule | None = None
    """When to stop early; without a rule the step size is warmed up and annealed over all steps."""

    init_deviation: float = 0.02
    """Standard deviation of the initial weights; biases start at zero."""

    def __post_init__(self) -> None:
        counts = (self.latent_dim, self.batch_size, self.max_epochs)
        positive = min(counts) >= 1 and self.min_steps >= 0 and self.learning_rate > 0 and self.init_deviation > 0
        if not positive:
            raise UsageError(
                f"Cannot train ICIS with {self}; every number must be positive.",
                found=str(self),
                expected="positive numbers",
            )

    @classmethod
    def published(cls) -> ICISConfig:
        """Return the published recipe: constant small steps, batches of 16, the authors' stopping rule."""
        return cls(learning_rate=1e-5, batch_size=16, max_epochs=1000, min_steps=0, stopping_rule=StoppingRule())

    def num_epochs(self, num_classes: int) -> int:
        """Return how many epochs to train at most, for this many seen and unseen classes together."""
        return max(self.max_epochs, math.ceil(self.min_steps / math.ceil(num_classes / self.batch_size)))


class ICIS(nn.Module):
    """Two autoencoders with a shared latent space: encoders are Linear + ReLU, decoders are one Linear."""

    def __init__(self, descriptor_dim: int, row_dim: int, config: ICISConfig, generator: torch.Generator) -> None:
        super().__init__()

        def linear(num_in: int, num_out: int) -> nn.Linear:
            # skip_init: the usual initialisation would draw from the global generator.
            layer: nn.Linear = nn.utils.skip_init(nn.Linear, num_in, num_out)  # type: ignore[no-untyped-call]
            nn.init.normal_(layer.weight, 0.0, config.init_deviation, generator=generator)
            nn.init.zeros_(layer.bias)
            return layer

        self.descriptor_encoder = linear(descriptor_dim, config.latent_dim)
        self.descriptor_decoder = linear(config.latent_dim, descriptor_dim)
        self.row_encoder = linear(row_dim, config.latent_dim)
        self.row_decoder = linear(config.latent_dim, row_dim)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Predict rows: `(batch, descriptor_dim)` -> `(batch, row_dim)`, of arbitrary length."""
        latent = F.relu(self.descriptor_encoder(descriptors))  # (batch, latent_dim)
        rows: Tensor = self.row_decoder(latent)  # (batch, row_dim)
        return rows

    def loss_terms(self, descriptors: Tensor, rows: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four terms of the loss, each a scalar; their sum is minimised.

        Args:
            descriptors: `(batch, descriptor_dim)`, of seen and unseen classes.
            rows: `(num_seen, row_dim)`, of the batch's seen classes only, in the batch's order.
            is_seen: `(batch,)` bool; `num_seen` of them true.

        Returns:
            Descriptor from descriptor, over the batch; row from row, row from descriptor and descriptor from row, over
            its seen classes, and zero where it has none.
        """
        num_classes, num_seen = descriptors.shape[0], rows.shape[0]
        descriptor_latent = F.relu(self.descriptor_encoder(descriptors))  # (batch, latent_dim)
        row_latent = F.relu(self.row_encoder(rows))  # (num_seen, latent_dim)
        # Each decoder is used once, for what comes from descriptors and what comes from rows together: its weights, and
        # their gradients, go through memory once instead of twice.
        decoded = self.descriptor_decoder(torch.cat([descriptor_latent, row_latent]))
        decoded_rows = self.row_decoder(torch.cat([row_latent, descriptor_latent[is_seen]]))
        descriptor_from_descriptor = mean_cosine_loss(decoded[:num_classes], descriptors)
        if not num_seen:
            zero = descriptors.new_zeros(())
            return descriptor_from_descriptor, zero, zero, zero
        return (
            descriptor_from_descriptor,
            mean_cosine_loss(decoded_rows[:num_seen], rows),
            mean_cosine_loss(decoded_rows[num_seen:], rows),
            mean_cosine_loss(decoded[num_classes:], descriptors[is_seen]),
        )


def mean_cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the batch of 1 - cosine, a scalar; both `(batch, dim)`."""
    return (1.0 - F.cosine_similarity(predicted, target, dim=-1)).mean()


def should_stop(epoch_losses: Sequence[float], rule: StoppingRule) -> bool:
    """Say whether the loss has fallen too slowly for `rule.patience` epochs in a row.

    Args:
        epoch_losses: Mean loss of every epoch so far.
        rule: What too slowly means.
    """
    window = rule.window
    if len(epoch_losses) < 2 * window + rule.patience - 1:
        return False
    for end in range(len(epoch_losses) - rule.patience + 1, len(epoch_losses) + 1):
        last = sum(epoch_losses[end - window : end]) / window
        before = sum(epoch_losses[end - 2 * window : end - window]) / window
        if (before - last) / window >= rule.min_slope:
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A trained ICIS and how its training went."""

    model: ICIS
    """The trained model, in evaluation mode, on the device that it was trained on."""

    epoch_losses: tuple[float, ...]
    """Mean loss of each epoch."""

    stopped_early: bool
    """Whether the stopping rule ended training before `max_epochs`."""


def fit_icis(
    seen_descriptors: Float32,
    seen_rows: Float32,
    unseen_descriptors: Float32,
    *,
    config: ICISConfig | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train ICIS; the same seed, machine and number of threads give the same weights.

    No global state is read or changed: random numbers come from a generator of its own.

    Args:
        seen_descriptors: `(num_seen, descriptor_dim)`.
        seen_rows: `(num_seen, row_dim)`, weight and bias of each seen class, not scaled.
        unseen_descriptors: `(num_unseen, descriptor_dim)`; they train the descriptor autoencoder only.
        config: How to train; `ICISConfig()` by default.
        seed: Of the initial weights and of the order of batches.
        device: A torch device; CUDA where there is one, else the CPU, by default.
        progress: Called after each epoch.

    Raises:
        IncompatibleError: If the shapes do not fit each other, or there is no seen class.
    """
    _check_shapes(seen_descriptors, seen_rows, unseen_descriptors)
    config = config or ICISConfig()
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(seed)
    model = ICIS(seen_descriptors.shape[1], seen_rows.shape[1], config, generator).to(target)
    # (num_seen + num_unseen, descriptor_dim) and (num_seen, row_dim); copied: torch takes no read-only memory.
    descriptors = torch.from_numpy(np.concatenate([seen_descriptors, unseen_descriptors]).astype(np.float32)).to(target)
    rows = torch.from_numpy(np.array(seen_rows, dtype=np.float32)).to(target)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    num_epochs = config.num_epochs(len(descriptors))
    epoch_losses: list[float] = []
    stopped = False
    while len(epoch_losses) < num_epochs and not stopped:
        order = torch.randperm(len(descriptors), generator=generator)  # (num_seen + num_unseen,)
        annealing = None if config.stopping_rule else (len(epoch_losses) / num_epochs, 1 / num_epochs)
        loss = _train_epoch(
            model, optimizer, descriptors=descriptors, rows=rows, order=order, config=config, annealing=annealing
        )
        epoch_losses.append(loss)
        if progress is not None:
            progress(len(epoch_losses), epoch_losses[-1])
        stopped = config.stopping_rule is not None and should_stop(epoch_losses, config.stopping_rule)
    return Fit(model=model.eval(), epoch_losses=tuple(epoch_losses), stopped_early=stopped)


def _train_epoch(
    model: ICIS,
    optimizer: torch.optim.Optimizer,
    *,
    descriptors: Tensor,
    rows: Tensor,
    order: Tensor,
    config: ICISConfig,
    annealing: tuple[float, float] | None,
) -> float:
    """Use every class once, in `order`, and return the mean loss of the batches.

    `annealing` is the part of training that is done before this epoch and the part that this epoch is.
    """
    total = torch.zeros((), device=rows.device)  # summed on the device: reading each loss would wait for it
    batches = torch.split(order, config.batch_size)
    for number, batch in enumerate(batches):
        if annealing is not None:
            done = annealing[0] + annealing[1] * number / len(batches)
            optimizer.param_groups[0]["lr"] = config.learning_rate * step_factor(done)
        is_seen = batch < len(rows)  # (batch,); seen classes come first
        own_rows = rows[batch[is_seen].to(rows.device)]  # (seen in the batch, row_dim)
        terms = model.loss_terms(descriptors[batch.to(rows.device)], own_rows, is_seen.to(rows.device))
        loss = torch.stack(terms).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach()
    return float(total) / len(batches)


def step_factor(fraction: float) -> float:
    """Return the part of the largest step size to use after `fraction` of the steps: a linear rise, then a cosine fall.

    The rise keeps Adam's first steps, whose second moments are not yet estimates, from throwing the weights far off.
    """
    warmup = 0.1
    if fraction < warmup:
        return 0.02 + 0.98 * fraction / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (fraction - warmup) / (1.0 - warmup)))


def latent_predictor(model: ICIS, *, origin: Float32) -> LatentPredictor:
    """Return the part of a trained ICIS that predicts rows, as plain arrays.

    Args:
        model: A trained ICIS.
        origin: `(row_dim,)`: what its target rows were deviations from; zero where they were rows.
    """

    def array(parameter: Tensor) -> Float32:
        return np.array(parameter.detach().cpu().numpy(), dtype=np.float32)

    return LatentPredictor(
        encoder_weight=array(model.descriptor_encoder.weight),
        encoder_bias=array(model.descriptor_encoder.bias),
        decoder_weight=array(model.row_decoder.weight),
        decoder_bias=array(model.row_decoder.bias),
        origin=origin,
    )


def predict_rows(model: ICIS, descriptors: Float32) -> Float32:
    """Return the raw rows of classes from their descriptors alone.

    Args:
        model: A trained ICIS.
        descriptors: `(num_classes, descriptor_dim)`.

    Returns:
        `(num_classes, row_dim)` float32; directions to trust, lengths not.
    """
    device = model.row_decoder.weight.device
    with torch.inference_mode():
        source = torch.from_numpy(np.array(descriptors, dtype=np.float32))  # (num_classes, descriptor_dim)
        batches = torch.split(source, PREDICTION_BATCH)
        rows = torch.cat([model(batch.to(device)).cpu() for batch in batches])  # (num_classes, row_dim)
    return np.asarray(rows.numpy(), dtype=np.float32)


def _check_shapes(seen_descriptors: Float32, seen_rows: Float32, unseen_descriptors: Float32) -> None:
    """Raise `IncompatibleError` unless there is one descriptor per seen row and one width of descriptors."""
    if len(seen_rows) == 0 or len(seen_rows) != len(seen_descriptors):
        raise IncompatibleError(
            f"Cannot train ICIS on {len(seen_rows)} seen rows and {len(seen_descriptors)} seen descriptors; expected "
            f"one descriptor for each row, and at least one row.",
            found=(len(seen_rows), len(seen_descriptors)),
            expected="one descriptor for each row, and at least one row",
        )
    if seen_descriptors.shape[1:] != unseen_descriptors.shape[1:]:
        raise IncompatibleError(
            f"Seen descriptors have shape {seen_descriptors.shape} and unseen ones {unseen_descriptors.shape}; "
            f"expected the same width.",
            found=unseen_descriptors.shape,
            expected=f"(num_unseen, {seen_descriptors.shape[1]})",
        )
