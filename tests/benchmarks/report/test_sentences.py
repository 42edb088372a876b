"""What the charts say is what was measured."""

from dataclasses import replace

import pytest

from benchmarks.report.accuracy_intervals import Choice
from benchmarks.report.charts import draw_trade_off
from benchmarks.report.merging import merge
from benchmarks.report.sections import smallest_batches
from benchmarks.report.sentences import (
    say_accuracies,
    say_added_classes,
    say_cut_off,
    say_distributions,
    say_front,
    say_scale,
    say_throughput,
    say_trade_off,
    say_update,
    say_verdict,
)
from benchmarks.results.values import BudgetGain, CurveStep, SeenCost
from benchmarks.timing.comparison import Comparison
from benchmarks.timing.percentiles import Interval
from tests.benchmarks.report.conftest import accuracy, timing


@pytest.fixture(scope="module")
def entries(full):
    return merge([full])[1]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        ((0.5, 0.49, 0.51), "fused is 2.0 times as fast"),
        ((1.5, 1.4, 1.6), "fused takes 1.5 times as long"),
        ((1.0, 0.99, 1.01), "fused is as fast (ratio 0.990 to 1.010)"),
        ((1.0, 0.9, 1.1), "fused is undecided (ratio 0.900 to 1.100)"),
    ],
)
def test_every_verdict_has_its_words(ratio, text):
    value, low, high = ratio
    interval = Interval(value=value, low=low, high=high)

    assert say_verdict(Comparison(label="fused", against="o", ratio=interval, margin=0.02, num_rounds=20)) == text


def test_the_fastest_is_the_one_with_the_smallest_median(entries):
    rows = smallest_batches(entries)
    fastest = min(rows, key=lambda row: row.latency.median_ms.value)
    said = say_distributions(rows)

    assert said[0].startswith(f"The fastest is {fastest.entry.label}: half of its queries of 1 image are answered")
    assert said[1].startswith("Measured in turn with original, fused ")


def test_queries_beyond_the_chart_are_counted(entries):
    rows = smallest_batches(entries)
    num_queries = sum(row.latency.num_queries for row in rows)
    slowest = max(row.latency.max_ms for row in rows)

    assert say_cut_off(rows, slowest * 2) == []
    assert say_cut_off(rows, 0.0)[0].startswith(f"{num_queries:,} of {num_queries:,} queries were slower")


def choice(entries, name, latency_ms, **accuracies):
    entry = next(entry for entry in entries if entry.label == name)
    found = accuracy(**accuracies)
    exactly = Interval(value=found.H, low=found.H, high=found.H)
    return Choice(
        entry=replace(entry, target=replace(entry.target, accuracy=found)),
        latency_ms=Interval(value=latency_ms, low=latency_ms, high=latency_ms),
        accuracy=exactly,
    )


def test_stepping_along_the_front_says_what_is_gained_and_lost(entries):
    faster = choice(entries, "fused", 2.5, U=0.40, S=0.60)
    more_accurate = choice(entries, "updatable", 4.0, U=0.40, S=0.80)
    said = say_front([faster, more_accurate], "H")

    assert said[0] == "On the Pareto front are fused and updatable: each is faster or more accurate than any other."
    assert said[1].startswith("fused is 1.6 times as fast as updatable and loses 5.3 points of H (99 % interval +")


def test_a_loss_that_the_images_cannot_show_is_said_to_be_one(entries):
    faster = choice(entries, "fused", 2.5, U=0.40, S=0.79)
    more_accurate = choice(entries, "updatable", 4.0, U=0.40, S=0.80)

    assert "which these images cannot tell from nothing" in say_front([faster, more_accurate], "H")[1]


def test_a_loss_that_no_figure_shows_is_not_called_zero(entries):
    more_accurate = choice(entries, "updatable", 4.0, U=0.40, S=0.80)
    faster = replace(choice(entries, "fused", 2.5, U=0.40, S=0.80), accuracy=more_accurate.accuracy)

    assert say_front([faster, more_accurate], "H")[1].endswith("and loses less than 0.05 points of H.")


def test_one_that_is_best_in_both_is_said_to_be(entries):
    best = choice(entries, "fused", 2.5, U=0.5, S=0.5)

    assert say_front([best], "H") == ["fused is the fastest, and none is more accurate: H 50.0 %, 2.50 ms."]


def test_accuracies_are_of_the_best_h_with_what_they_cost(entries):
    said = say_accuracies(entries)

    assert said[0] == (
        "updatable has the highest H, 53.3 %: 40.0 % of the images of unseen classes and 80.0 % of those of seen "
        "classes are recognised, choosing among all."
    )
    assert said[1] == "On seen classes that is 10.0 points less than with the original classes alone."
    assert said[2] == "30 of 50 images of unseen classes are taken for seen ones, 3 of 100 the other way."


def test_an_injection_that_recognises_nothing_is_said_to(entries):
    nothing = [replace(e, target=replace(e.target, accuracy=accuracy(U=0.0, S=0.9))) for e in entries]

    assert say_accuracies(nothing)[0] == "No image of an unseen class is recognised by original, fused and updatable."


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"U": None, "H": None}, "No image is of an unseen class: S alone was measured."),
        ({"S": None, "H": None}, "No image is of a seen class: U alone was measured."),
        ({"S": 0.0, "H": 0.0}, "No image of a seen class is recognised by original, fused and updatable."),
    ],
    ids=["seen alone", "unseen alone", "no seen one right"],
)
def test_of_classes_without_an_image_no_figure_is_claimed(figures, said, entries):
    given = replace(accuracy(U=0.4, S=0.9), **figures)

    assert say_accuracies([replace(e, target=replace(e.target, accuracy=given)) for e in entries])[0] == said


def test_targets_that_are_equally_right_are_named_together(entries):
    _, fused, updatable = entries
    equal = replace(fused, target=replace(fused.target, accuracy=updatable.target.accuracy))

    assert say_accuracies([equal, updatable])[0].startswith("fused and updatable have the highest H, 53.3 %: ")


def test_a_speed_that_the_intervals_do_not_show_is_said_not_to_be_sure(entries):
    faster, more_accurate = choice(entries, "fused", 2.5, U=0.4, S=0.6), choice(entries, "updatable", 2.6, U=0.4, S=0.8)
    wide = replace(faster, latency_ms=Interval(value=2.5, low=2.4, high=2.7))

    assert ", which their 99 % intervals do not show, and loses" in say_front([wide, more_accurate], "H")[1]
    assert "do not show" not in say_front([faster, more_accurate], "H")[1]


def test_throughput_says_what_a_larger_batch_is_worth(entries):
    best = max((row for entry in entries for row in entry.rows), key=lambda row: row.images_per_s)

    assert best.batch_size == 8
    assert f"images per second: {best.entry.label}, 8 images in a query, " in say_throughput(entries)[0]


def test_scale_is_compared_with_its_roofline(full):
    (said,) = say_scale(full.scale)

    assert "takes 200 µs with 1,000 classes and 12.0 ms with 100,000: 100 times the classes, 60 times the time" in said
    assert said.endswith("Reading its 512.4 MB at 51.2 GB/s takes 10.0 ms: the head takes 1.2 times as long.")


def test_a_head_that_is_faster_than_the_memory_is_said_to_come_from_the_cache(full):
    (series,) = full.scale
    last = replace(series.points[-1], latency_ms=Interval(value=5.0, low=4.9, high=5.1))
    (said,) = say_scale([replace(series, points=(*series.points[:-1], last))])

    assert said.endswith("takes 10.0 ms: the head is 2.0 times as fast, as it comes from the cache.")


def test_an_update_stands_beside_the_other_ways(full):
    said = say_update(full.update)

    assert said[0].endswith("a class update takes 2.00 ms (median of 700; p99 3.00 ms).")
    assert said[1] == (
        "In comparison: new session 90.0 ms (45 times as long) and export, reload 3.00 s (1,500 times as long)."
    )
    assert said[2] == "Most of it is sync (1.10 ms) and verify (400 µs)."


def test_adding_classes_says_what_has_to_be_done():
    times = {"a": (timing(2.0), 0), "b": (timing(300.0), 1)}

    assert say_added_classes(times, {"a": "a write", "b": "an export"}, 50) == [
        "50 more classes are there soonest with a: 2.00 ms (a write).",
        "b takes 150 times as long (an export).",
    ]


# --- what old classes keep and new ones give ----------------------------------------------------------------------


def with_trade_off(entry, *, max_seen_loss=None):
    """The entry with what new classes cost and give."""
    cost = SeenCost(before=0.9, after=0.8, low=0.07, high=0.14, num_images=400, max_seen_loss=max_seen_loss)
    measured = replace(
        accuracy(U=0.4, S=0.8),
        AUSUC=0.4,
        seen_cost=cost,
        budgets=(
            BudgetGain(max_seen_loss=0.01, S=0.89, U=0.1, U_top5=0.5),
            BudgetGain(max_seen_loss=0.02, S=0.88, U=0.2, U_top5=0.6),
        ),
        curve=(CurveStep(S=0.9, U=0.0), CurveStep(S=0.8, U=0.4), CurveStep(S=0.0, U=0.5)),
    )
    return replace(entry, target=replace(entry.target, accuracy=measured))


def test_what_new_classes_cost_is_said_once_for_targets_that_are_alike(entries):
    _, fused, updatable = entries

    assert say_trade_off([with_trade_off(fused), with_trade_off(updatable)]) == [
        "In fused and updatable the new classes cost 10.0 points of S (95 % interval 7.0 to 14.0).",
        "For 1 and 2 points of S at most there are 10.0 % and 20.0 % of U: the open circles, with the best number "
        "added to all new logits, as these images show it.",
        "Filled markers are the targets as they are; the dashed line is S with the original classes alone.",
    ]


def test_a_budget_that_is_exceeded_is_said_to_be(entries):
    said = say_trade_off([with_trade_off(entries[1], max_seen_loss=0.02)])

    assert said[0].endswith("(95 % interval 7.0 to 14.0), of 2.0 points allowed: too much.")


def test_the_curve_is_drawn_for_targets_that_have_one(entries):
    svg = draw_trade_off("d0r0-trade-off", [with_trade_off(entries[1])])

    assert "what the new classes give" in svg
    assert "fused" in svg
