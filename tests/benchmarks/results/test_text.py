"""What `bench` prints: what a verdict means, and nothing of what was not measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.results.result import load_result
from benchmarks.results.text import meaning_of, text_of
from benchmarks.timing.percentiles import Interval


@pytest.fixture(scope="module")
def measured():
    return load_result(Path(__file__).parent / "bench.json")


@pytest.mark.parametrize(
    ("ratio", "num_rounds", "expected"),
    [
        ((1.0, 0.99, 1.01), 40, "fused is as fast as original, to within 2.0 %: choose by size and accuracy"),
        ((1.5, 1.4, 1.6), 40, "fused is slower than original by more than 2.0 %: it costs about 5.000 ms a query"),
        ((0.5, 0.4, 0.6), 40, "fused is faster than original by more than 2.0 %: it saves about 5.000 ms a query"),
        ((1.02, 0.9, 1.2), 40, "fused against original is not decided: the interval still holds both less and more"),
        ((1.02, 0.0, 9.0), 5, "fused against original is not decided: there were 5 rounds of the 8"),
    ],
)
def test_a_verdict_says_what_it_means(measured, ratio, num_rounds, expected):
    measurement = measured.runs[0].measurement
    median = Interval(value=10.0, low=10.0, high=10.0)
    measurement = replace(
        measurement, latencies=tuple(replace(each, median_ms=median) for each in measurement.latencies)
    )
    value, low, high = ratio
    comparison = replace(
        next(each for each in measurement.comparisons if each.label == "fused"),
        ratio=Interval(value=value, low=low, high=high),
        margin=0.02,
        num_rounds=num_rounds,
    )

    assert meaning_of(comparison, measurement).startswith(expected)


def test_each_compared_target_has_a_line_of_its_own(measured):
    lines = text_of(measured).splitlines()
    labels = {each.label for each in measured.runs[0].measurement.comparisons}

    for label in labels:
        means = [line for line in lines if line.startswith((f"  {label} is ", f"  {label} against "))]
        assert len(means) == len(measured.runs)


def test_without_labelled_images_there_are_no_columns_of_accuracy_and_a_line_says_why(measured):
    bare = replace(measured, targets=tuple(replace(each, accuracy=None) for each in measured.targets))
    with_accuracy, without = text_of(measured).splitlines(), text_of(bare).splitlines()
    heading = ["target", "T", "U", "S", "H", "same", "answer", "max", "error"]

    assert heading in [line.split() for line in with_accuracy]
    assert ["target", "same", "answer", "max", "error"] in [line.split() for line in without]
    assert "  accuracy was not measured: no labelled images were given (--images)" in without
    assert not any("accuracy was not measured" in line for line in with_accuracy)
