"""Numbers as a reader sees them."""

import pytest

from benchmarks.report.numbers import duration, enumeration, percent, percentile, points, significant, size, times
from benchmarks.timing.percentiles import Percentile


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00861, "0.00861"),
        (0.5, "0.500"),
        (4.171, "4.17"),
        (46.83, "46.8"),
        (999.6, "1,000"),
        (12345, "12,345"),
    ],
)
def test_three_digits_and_no_power_of_ten(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(0.00861, "8.61 µs"), (4.17, "4.17 ms"), (250, "250 ms"), (4500, "4.50 s")]
)
def test_a_time_has_the_unit_that_suits_it(milliseconds, text):
    assert duration(milliseconds) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(270_000, "270 kB"), (14_100_000, "14.1 MB")])
def test_sizes_have_a_unit(num_bytes, text):
    assert size(num_bytes) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.004, "1.00 times"), (1.62, "1.6 times"), (1500, "1,500 times")])
def test_ratios_are_times(ratio, text):
    assert times(ratio) == text


def test_fractions_are_percent_and_differences_are_points():
    assert [percent(0.1714), percent(None)] == ["17.1", "–"]
    assert [points(-0.035), points(0.01)] == ["3.5 points", "1.0 point"]


def test_a_percentile_that_does_not_exist_says_what_it_needs():
    p99 = Percentile(percent=99.0, num_queries=64, num_needed=662, value_ms=None, upper_bound_ms=None)

    assert percentile(p99) == "needs 662"


def test_names_are_enumerated():
    assert [enumeration(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
