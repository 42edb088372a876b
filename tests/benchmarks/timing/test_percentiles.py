from fractions import Fraction
from math import comb

import numpy as np
import pytest

from benchmarks.timing.percentiles import (
    histogram_of,
    median_interval,
    num_queries_needed,
    num_slower_tolerated,
    percentile_of,
    percentile_ratio,
)
from icis_deploy.errors import UsageError


@pytest.mark.parametrize(("percent", "needed"), [(90.0, 64), (95.0, 130), (99.0, 662), (99.9, 6636)])
def test_needs_as_many_queries_as_mlperf_asks_for(percent, needed):
    assert num_queries_needed(percent) == needed


def test_tolerates_the_largest_number_of_slow_queries_that_is_still_unlikely():
    """The rule's definition, in exact fractions: P(at most t of n are slower) <= 1 %."""
    slower = Fraction(1, 10)
    for num_queries in (64, 65, 100, 333):
        tolerated = num_slower_tolerated(num_queries, 90.0)
        mass = [comb(num_queries, t) * slower**t * (1 - slower) ** (num_queries - t) for t in range(tolerated + 2)]
        assert sum(mass[:-1]) <= Fraction(1, 100) < sum(mass)


@pytest.mark.parametrize(("num_queries", "percent"), [(64, 90.0), (3577, 90.0), (10_000, 99.0)])
def test_discards_as_many_slow_queries_as_mlperfs_own_load_generator(num_queries, percent, tmp_path):
    loadgen = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.single_stream_expected_latency_ns = 20_000
    settings.single_stream_target_latency_percentile = percent / 100
    settings.min_query_count = settings.max_query_count = num_queries
    settings.min_duration_ms = 0
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(tmp_path), False
    logs = loadgen.LogSettings()
    logs.log_output = output

    def answer(samples):
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples])

    def load_no_samples(samples):
        pass

    system = loadgen.ConstructSUT(answer, lambda: None)
    library = loadgen.ConstructQSL(8, 8, load_no_samples, load_no_samples)
    loadgen.StartTestWithLogSettings(system, library, settings, logs, "")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()

    # The slowest query that is not discarded is the estimate: the t-th slowest.
    assert f"Would discard {num_slower_tolerated(num_queries, percent) - 1} highest latency queries" in summary
    assert f"Processed at least {num_queries_needed(percent)} queries ({num_queries})" in summary


def test_one_query_too_few_is_refused_with_what_it_needs():
    percentile = percentile_of(np.arange(661.0), 99.0)

    assert (percentile.value_ms, percentile.upper_bound_ms, percentile.num_needed) == (None, None, 662)
    assert percentile.text == "needs 662"
    assert percentile_of(np.arange(6635.0), 99.9).text == "needs 6,636"


def test_from_the_smallest_number_on_the_bound_is_the_slowest_query():
    percentile = percentile_of(np.arange(662.0)[::-1], 99.0)

    assert percentile.upper_bound_ms == 661.0
    assert percentile.value_ms == 655.0  # 656 of 662 queries, 99.09 %, are at most this; of 655 it would be 98.9 %
    assert percentile.text == "655.000 ms"


def test_the_bound_is_above_the_true_percentile_in_99_of_100_runs():
    random = np.random.default_rng(0)
    num_above = sum(
        percentile_of(random.exponential(size=1500), 99.0).upper_bound_ms >= -np.log(0.01) for _ in range(500)
    )

    assert num_above >= 490


@pytest.mark.parametrize("percent", [0.0, 100.0, -1.0])
def test_refuses_percentiles_that_do_not_exist(percent):
    with pytest.raises(UsageError, match=rf"no percentile {percent}; expected a number above 0 and below 100"):
        percentile_of(np.ones(10), percent)


def test_the_interval_of_a_median_holds_the_true_one():
    random = np.random.default_rng(1)
    intervals = [median_interval(list(random.lognormal(sigma=0.3, size=(40, 12)))) for _ in range(100)]

    assert sum(interval.low <= 1.0 <= interval.high for interval in intervals) >= 96
    assert max(interval.relative_half_width for interval in intervals) < 0.1


def test_the_interval_of_a_median_knows_that_neighbours_are_alike():
    """Each block is off by 10 % as a whole: 30 blocks of 100 are little more than 30 values."""
    random = np.random.default_rng(2)
    num_right, widths = 0, []
    for _ in range(50):
        blocks = 10.0 + random.normal(size=(30, 1)) + 0.1 * random.normal(size=(30, 100))
        interval = median_interval(list(blocks))
        num_right += interval.low <= 10.0 <= interval.high
        widths.append(interval.high - interval.low)

    assert num_right >= 47
    assert np.median(widths) > 0.5  # values taken as independent would give 0.12


def test_the_median_of_equal_values_is_certain():
    interval = median_interval([np.full(3, 2.5), np.full(5, 2.5)])

    assert (interval.low, interval.value, interval.high, interval.relative_half_width) == (2.5, 2.5, 2.5, 0.0)


def test_the_same_values_give_the_same_interval():
    blocks = list(np.random.default_rng(3).normal(10, 1, size=(70, 4)))

    assert median_interval(blocks) == median_interval(blocks)


def test_the_ratio_of_percentiles_is_paired_by_rounds():
    """Rounds are slow or fast for both sides, which moves each percentile more than what is looked for."""
    random = np.random.default_rng(0)
    num_held = 0
    for _ in range(60):
        speed = random.uniform(1.0, 3.0, 12)
        rounds, against = (
            [factor * slowness * random.gamma(9.0, size=200) for slowness in speed] for factor in (1.3, 1.0)
        )
        ratio = percentile_ratio(rounds, against, 99.0)
        num_held += ratio.low <= 1.3 <= ratio.high
        assert ratio.low > 1.0
        assert ratio.high - ratio.low < 0.7
    assert num_held >= 57


@pytest.mark.parametrize(("num_rounds", "num_queries"), [(7, 200), (12, 55)])
def test_too_little_gives_no_ratio_of_percentiles(num_rounds, num_queries):
    rounds = list(np.ones((num_rounds, num_queries)))

    assert percentile_ratio(rounds, rounds, 99.0) is None


def test_a_histogram_counts_every_query():
    latencies_ms = np.random.default_rng(4).lognormal(size=5000)
    histogram = histogram_of(latencies_ms)

    assert sum(histogram.counts) == 5000
    assert len(histogram.edges_ms) == len(histogram.counts) + 1 == 61
    assert histogram.edges_ms[0] <= latencies_ms.min()
    assert histogram.edges_ms[-1] >= latencies_ms.max()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_histogram_of_equal_values_has_one_bin(value):
    assert histogram_of(np.full(100, value)).counts == (100,)


def bootstrap_widths(sample, statistic):
    """Return the widths of a 99 % and of a 98 % bootstrap interval over blocks, as the definition has them."""
    random = np.random.default_rng(99)
    drawn = random.integers(0, len(sample), size=(2000, len(sample)))
    values = statistic(drawn)
    return [np.ptp(np.percentile(values, ends)) for ends in ([0.5, 99.5], [1.0, 99.0])]


def test_intervals_are_those_of_99_percent_and_not_narrower():
    """A 98 % interval is a tenth narrower: less than a thousand resamples tell apart, and more than twelve thousand."""
    widths = []
    for seed in range(12):  # other numbers of blocks, as the same number always has the same resamples
        blocks = np.random.default_rng(seed).normal(10.0, 1.0, size=(24 + 2 * seed, 9))
        expected = bootstrap_widths(blocks, lambda drawn, blocks=blocks: np.median(blocks[drawn].reshape(2000, -1), 1))
        found = median_interval(list(blocks))
        widths.append([found.high - found.low, *expected])
    found, of_99, of_98 = np.mean(widths, axis=0)

    assert abs(found - of_99) < abs(found - of_98)
    assert found == pytest.approx(of_99, rel=0.05)


def test_intervals_of_ratios_are_those_of_99_percent_and_not_narrower():
    widths = []
    for seed in range(12):
        ours, theirs = np.random.default_rng(seed).gamma(9.0, 1.0, size=(2, 24 + 2 * seed, 9))
        expected = bootstrap_widths(
            ours,
            lambda drawn, ours=ours, theirs=theirs: (
                np.percentile(ours[drawn].reshape(2000, -1), 90, axis=1)
                / np.percentile(theirs[drawn].reshape(2000, -1), 90, axis=1)
            ),
        )
        found = percentile_ratio(list(ours), list(theirs), 90.0)
        widths.append([found.high - found.low, *expected])
    found, of_99, of_98 = np.mean(widths, axis=0)

    assert abs(found - of_99) < abs(found - of_98)
    assert found == pytest.approx(of_99, rel=0.05)
