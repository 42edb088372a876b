import itertools
import json

import numpy as np
import pytest

from benchmarks.results.json_values import json_from_value, value_from_json
from benchmarks.timing.comparison import Comparison, compare, num_averages_outside, pseudomedian
from benchmarks.timing.percentiles import Interval
from icis_deploy.errors import UsageError


def comparison_with(low, high, margin=0.02):
    ratio = Interval(value=np.sqrt(low * high), low=low, high=high)
    return Comparison(label="fused", against="original", ratio=ratio, margin=margin, num_rounds=20)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "equal"),
        (1.001, 1.015, "equal"),  # certainly slower, but by too little to matter
        (1 / 1.02, 1.02, "equal"),
        (1.03, 1.06, "slower"),
        (0.90, 0.95, "faster"),
        (1.01, 1.03, "inconclusive"),
        (0.97, 0.99, "inconclusive"),
        (0.9802, 1.0, "inconclusive"),  # the margin is 1 / 1.02 below as it is 1.02 above
        (0.90, 1.10, "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_of_the_margin(low, high, verdict):
    assert comparison_with(low, high).verdict == verdict


def test_a_known_ratio_is_found_whatever_the_machine_does_from_round_to_round():
    random = np.random.default_rng(0)
    machine = np.exp(np.cumsum(random.normal(scale=0.2, size=60)))  # wanders over orders of magnitude
    ours = 1.05 * machine * np.exp(random.normal(scale=0.01, size=60))

    comparison = compare(ours, machine, label="fused", against="original", margin=0.02)
    assert comparison.ratio.value == pytest.approx(1.05, rel=0.01)
    assert comparison.verdict == "slower"


def test_a_few_disturbed_rounds_do_not_move_the_ratio():
    random = np.random.default_rng(1)
    ours, theirs = np.exp(random.normal(scale=0.01, size=(2, 60)))
    ours[5:13] *= 5.0

    comparison = compare(ours, theirs, label="a", against="b", margin=0.02)
    assert comparison.verdict == "equal"
    assert comparison.ratio.value == pytest.approx(1.0, abs=0.01)


def test_turning_a_comparison_round_turns_its_verdict_round():
    random = np.random.default_rng(2)
    ours, theirs = np.exp(random.normal(scale=0.01, size=(2, 40))) * [[1.2], [1.0]]
    one = compare(ours, theirs, label="a", against="b", margin=0.02)
    other = compare(theirs, ours, label="b", against="a", margin=0.02)

    assert (one.verdict, other.verdict) == ("slower", "faster")
    assert other.ratio.value == pytest.approx(1 / one.ratio.value)
    assert (other.ratio.low, other.ratio.high) == pytest.approx((1 / one.ratio.high, 1 / one.ratio.low))


@pytest.mark.parametrize("num_rounds", [1, 7])
def test_too_few_rounds_are_inconclusive_however_clear_they_look(num_rounds):
    comparison = compare([2.0] * num_rounds, [1.0] * num_rounds, label="a", against="b", margin=0.02)

    assert comparison.verdict == "inconclusive"
    written = json.loads(json.dumps(json_from_value(comparison), allow_nan=False))
    assert written["ratio"] == {"value": pytest.approx(2.0), "low": 0.0, "high": None}
    assert value_from_json(Comparison, written) == comparison


def test_eight_rounds_that_agree_are_enough():
    assert compare([2.0] * 8, [1.0] * 8, label="a", against="b", margin=0.02).verdict == "slower"


@pytest.mark.parametrize("num_pairs", [6, 8, 10, 12])
def test_the_interval_cuts_as_many_averages_as_counting_all_signs_allows(num_pairs):
    ranks = range(1, num_pairs + 1)
    statistics = [sum(itertools.compress(ranks, signs)) for signs in itertools.product([0, 1], repeat=num_pairs)]
    num_cut = num_averages_outside(num_pairs)

    assert np.mean([statistic <= num_cut - 1 for statistic in statistics]) <= 0.005
    assert np.mean([statistic <= num_cut for statistic in statistics]) > 0.005


@pytest.mark.parametrize("num_rounds", [10, 40, 900])
def test_the_interval_holds_the_true_difference_in_99_of_100_runs_even_with_heavy_tails(num_rounds):
    random = np.random.default_rng(num_rounds)
    intervals = [pseudomedian(0.3 + random.standard_t(2, size=num_rounds)) for _ in range(100)]

    assert sum(interval.low <= 0.3 <= interval.high for interval in intervals) >= 96


def test_refuses_what_was_not_measured_in_the_same_rounds():
    with pytest.raises(UsageError, match=r"'a' was measured in rounds of shape \(3,\) and 'b' in \(2,\); expected the"):
        compare([1.0, 1.0, 1.0], [1.0, 1.0], label="a", against="b", margin=0.02)
    with pytest.raises(UsageError, match="at least one"):
        compare([], [], label="a", against="b", margin=0.02)


def test_refuses_latencies_that_the_clock_could_not_see():
    with pytest.raises(UsageError, match="A latency of 'a' or 'b' is 0 or less; the clock is too coarse"):
        compare([1.0, 0.0], [1.0, 1.0], label="a", against="b", margin=0.02)


@pytest.mark.parametrize("num_rounds", [8, 10, 15, 24])
def test_the_interval_holds_exactly_what_the_signed_rank_test_does_not_refuse(num_rounds):
    """Hollander and Wolfe, section 3.3: inside are the differences that the test at 1 % keeps."""
    differences = np.random.default_rng(num_rounds).normal(size=num_rounds)
    found = pseudomedian(differences)

    def probability(difference):
        from scipy.stats import wilcoxon

        return wilcoxon(differences - difference, method="exact").pvalue

    for end, inwards in ((found.low, 1e-9), (found.high, -1e-9)):
        assert probability(end + inwards) > 0.01
        assert probability(end - inwards) <= 0.01
