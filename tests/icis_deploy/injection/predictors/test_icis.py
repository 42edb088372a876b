"""ICIS against formulas written down a second time, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.injection.predictors.icis import (
    ICIS,
    ICISConfig,
    StoppingRule,
    fit_icis,
    predict_rows,
    should_stop,
    step_factor,
)

SMALL = ICISConfig(latent_dim=128, batch_size=32, max_epochs=60, learning_rate=2e-3)


def linear_problem(
    *, num_seen: int = 80, num_unseen: int = 12, descriptor_dim: int = 8, row_dim: int = 33, seed: int = 0
):
    """Rows that are a linear function of descriptors, so that a method that learns must find the unseen ones."""
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(num_seen + num_unseen, descriptor_dim)).astype(np.float32)
    rows = (descriptors @ rng.normal(size=(descriptor_dim, row_dim))).astype(np.float32)
    return descriptors[:num_seen], rows[:num_seen], descriptors[num_seen:], rows[num_seen:]


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def test_loss_terms_are_the_four_cosine_losses_of_the_paper():
    seen, rows, unseen, _ = linear_problem(num_seen=5, num_unseen=3)
    model = ICIS(seen.shape[1], rows.shape[1], ICISConfig(latent_dim=16), torch.Generator().manual_seed(1))
    order = np.array([5, 0, 1, 6, 2])  # classes of one batch, unseen ones among them
    descriptors = np.concatenate([seen, unseen])[order]
    is_seen = order < 5
    terms = model.loss_terms(
        torch.from_numpy(descriptors), torch.from_numpy(rows[order[is_seen]]), torch.from_numpy(is_seen)
    )

    weights = {name: value.detach().numpy().astype(np.float64) for name, value in model.state_dict().items()}

    def apply(layer: str, values: np.ndarray) -> np.ndarray:
        return values @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]

    of_descriptors = np.maximum(apply("descriptor_encoder", descriptors), 0)
    of_rows = np.maximum(apply("row_encoder", rows[order[is_seen]]), 0)
    expected = [
        1 - cosines(apply("descriptor_decoder", of_descriptors), descriptors).mean(),
        1 - cosines(apply("row_decoder", of_rows), rows[order[is_seen]]).mean(),
        1 - cosines(apply("row_decoder", of_descriptors[is_seen]), rows[order[is_seen]]).mean(),
        1 - cosines(apply("descriptor_decoder", of_rows), descriptors[is_seen]).mean(),
    ]
    np.testing.assert_allclose([float(term.detach()) for term in terms], expected, rtol=1e-5)


def test_a_batch_without_seen_classes_trains_the_descriptor_autoencoder_alone():
    seen, rows, _, _ = linear_problem(num_seen=4)
    model = ICIS(seen.shape[1], rows.shape[1], ICISConfig(latent_dim=16), torch.Generator().manual_seed(1))
    terms = model.loss_terms(torch.from_numpy(seen), torch.empty(0, rows.shape[1]), torch.zeros(4, dtype=torch.bool))
    assert float(terms[0].detach()) > 0
    assert [float(term) for term in terms[1:]] == [0.0, 0.0, 0.0]


def test_rows_of_unseen_classes_point_where_the_true_ones_do():
    seen, rows, unseen, truth = linear_problem()
    fit = fit_icis(seen, rows, unseen, config=SMALL)
    predicted = predict_rows(fit.model, unseen)
    similarity = (predicted / np.linalg.norm(predicted, axis=1, keepdims=True)) @ truth.T
    assert cosines(predicted, truth).mean() > 0.9
    assert (similarity / np.linalg.norm(truth, axis=1)).argmax(1).tolist() == list(range(len(unseen)))


def test_the_loss_falls_and_is_reported_after_each_epoch():
    seen, rows, unseen, _ = linear_problem()
    heard: list[tuple[int, float]] = []
    fit = fit_icis(seen, rows, unseen, config=SMALL, progress=lambda epoch, loss: heard.append((epoch, loss)))
    assert heard == list(enumerate(fit.epoch_losses, start=1))
    assert fit.epoch_losses[-1] < 0.25 * fit.epoch_losses[0]


def test_a_seed_decides_the_rows_and_no_global_state_is_touched():
    seen, rows, unseen, _ = linear_problem()
    config = ICISConfig(latent_dim=32, batch_size=32, max_epochs=3)
    state = torch.get_rng_state()
    fits = [predict_rows(fit_icis(seen, rows, unseen, config=config, seed=seed).model, unseen) for seed in (7, 7, 8)]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


def test_the_stopping_rule_waits_for_a_slow_fall_several_epochs_in_a_row():
    rule = StoppingRule(window=2, min_slope=0.1, patience=3)
    falling = [10.0 - epoch for epoch in range(12)]
    assert not any(should_stop(falling[:end], rule) for end in range(13))
    flat = [*falling[:4], *[6.0] * 8]
    stops = [end for end in range(len(flat) + 1) if should_stop(flat[:end], rule)]
    # Losses 10 9 8 7 6 6 6 6 ...: the slope over two windows of 2 first falls under 0.1 with the 8th loss.
    assert stops[0] == 10


def test_training_ends_by_the_rule_as_soon_as_the_loss_hardly_falls():
    seen, rows, unseen, _ = linear_problem(num_seen=20, num_unseen=2)
    config = ICISConfig(
        latent_dim=16, learning_rate=1e-7, batch_size=22, max_epochs=60, stopping_rule=StoppingRule(patience=5)
    )
    fit = fit_icis(seen, rows, unseen, config=config)
    assert fit.stopped_early
    assert len(fit.epoch_losses) == 24  # two windows of 10, and the rule has to hold for 5 epochs in a row


def test_the_published_recipe_is_the_one_of_the_paper():
    published = ICISConfig.published()
    assert (published.learning_rate, published.batch_size, published.max_epochs) == (1e-5, 16, 1000)
    assert published.stopping_rule == StoppingRule(window=10, min_slope=2e-3, patience=5)
    assert published.latent_dim == 2048


def test_the_step_size_rises_then_falls_to_nothing():
    factors = [step_factor(part / 100) for part in range(101)]
    assert np.argmax(factors) == 10
    assert factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.0)


def test_shapes_that_do_not_fit_are_refused():
    seen, rows, unseen, _ = linear_problem()
    with pytest.raises(IncompatibleError, match="79 seen rows and 80 seen descriptors"):
        fit_icis(seen, rows[:-1], unseen)
    with pytest.raises(IncompatibleError, match="the same width"):
        fit_icis(seen, rows, unseen[:, :-1])
    with pytest.raises(UsageError, match="must be positive"):
        ICISConfig(batch_size=0)
