"""Heads against their number of classes, and the memory's roofline with them."""

from functools import partial

import numpy as np
import pytest

from benchmarks.bench import scale
from benchmarks.bench.scale import HeadSettings, head_model, measure_scale, random_arbiter, random_rows, saved_heads
from benchmarks.machine.bandwidth import memory_bandwidth
from benchmarks.results.result import parse_result, serialize_result
from benchmarks.results.text import text_of
from icis_deploy.errors import UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.runtime.sessions.onnxruntime_session import load_session


@pytest.fixture(scope="module")
def result():
    small = partial(memory_bandwidth, array_bytes=16 << 20, num_passes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "memory_bandwidth", small)
        return measure_scale((200, 50), HeadSettings(feature_dim=32, capacity=8, batch_size=2, budget_s=0.2))


def test_both_heads_are_measured_at_every_size_in_ascending_order(result):
    assert [series.head_kind for series in result.scale] == ["fused", "updatable"]
    for series in result.scale:
        assert [point.num_classes for point in series.points] == [50, 200]
        assert (series.feature_dim, series.batch_size, series.num_threads) == (32, 2, 1)


def test_the_roofline_is_the_bytes_of_all_rows_over_the_bandwidth(result):
    fused, updatable = result.scale

    assert [point.head_bytes for point in fused.points] == [4 * 33 * 50, 4 * 33 * 200]
    assert [point.head_bytes for point in updatable.points] == [4 * 33 * 58, 4 * 33 * 208]
    for series in result.scale:
        for point in series.points:
            assert point.roofline_ms == pytest.approx(1000 * point.head_bytes / series.bandwidth_bytes_per_s)
            assert point.latency_ms.value > 0
            assert point.memory_bytes > 20e6  # an interpreter with numpy and a runtime


def test_the_result_can_be_written_down_and_read_by_people(result):
    assert parse_result(serialize_result(result)) == result
    assert "updatable head" in text_of(result)


def test_the_heads_give_features_times_rows():
    with saved_heads(20, 16, 4) as paths:
        weight, bias = random_rows(20, 16, seed=0)
        features = np.random.default_rng(3).random((3, 16), dtype=np.float32)
        fused = load_session(paths["fused"]).run(features).logits
        session = load_session(paths["updatable"])
        slot_weight, slot_bias = random_rows(4, 16, seed=1)
        arbiter = random_arbiter(4)
        updatable = session.run(features, session.load_slots(slot_weight, slot_bias, arbiter)).logits

    np.testing.assert_allclose(fused, features @ weight.T + bias, rtol=1e-5)
    np.testing.assert_allclose(updatable[:, :20], fused, rtol=1e-5)
    lengths = deviation_lengths(np.concatenate([weight, bias[:, None]], axis=1))
    offsets = seen_statistics(features, fused, lengths) @ arbiter.T
    assert np.abs(offsets).min() > 0.1
    np.testing.assert_allclose(updatable[:, 20:], features @ slot_weight.T + slot_bias + offsets, rtol=1e-4)
    assert not paths["fused"].exists()


def test_a_head_too_large_or_empty_is_refused():
    with pytest.raises(UsageError, match="at most 8 GiB"):
        measure_scale((10_000_000,), HeadSettings(feature_dim=2048))
    with pytest.raises(UsageError, match="at least one class"):
        measure_scale((0,), HeadSettings())
    with pytest.raises(UsageError, match="capacity is 0; expected a positive number"):
        HeadSettings(capacity=0)


def test_the_bandwidth_is_one_that_memory_can_have():
    bandwidth = memory_bandwidth(2, array_bytes=32 << 20, num_passes=3)

    assert 1e8 < bandwidth < 1e13
    with pytest.raises(UsageError, match="at least one thread"):
        memory_bandwidth(0)


def test_the_head_is_found_where_it_is():
    from exporters.head.finding import find_head

    assert find_head(head_model(7, 5)).num_classes == 7
