import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.accuracy import (
    MAX_CROSSINGS,
    AccuracyReport,
    Crossing,
    accuracy_report,
    most_frequent_mistakes,
)


def logits_that_predict(predictions, num_classes, runner_up=None):
    """Logits in which `predictions` win and `runner_up` come second."""
    logits = np.zeros((len(predictions), num_classes), dtype=np.float32)
    if runner_up is not None:
        logits[np.arange(len(predictions)), runner_up] = 1.0
    logits[np.arange(len(predictions)), predictions] = 2.0
    return logits


def figures(report):
    return [report.T, report.U, report.S, report.H]


def test_averages_over_classes_and_not_over_images():
    # class 0: 9 of 9 right; class 1: 0 of 1; a mean over images would say 0.9
    report = accuracy_report(logits_that_predict([0] * 10, 2), [0] * 9 + [1], seen=2)

    assert report.S == 0.5
    assert report.class_accuracy == (1.0, 0.0)


def test_unseen_images_choose_among_unseen_classes_for_t_and_among_all_for_u():
    # classes 0, 1 seen; 2, 3 unseen. Image 1 goes to seen class 0, but its best unseen class is the right one.
    logits = logits_that_predict([2, 0, 2, 0], 4, runner_up=[0, 2, 3, 1])
    report = accuracy_report(logits, [2, 2, 3, 0], seen=2)

    t, u, s = (1.0 + 0.0) / 2, (0.5 + 0.0) / 2, 1.0
    assert figures(report) == pytest.approx([t, u, s, 2 * u * s / (u + s)])


def test_h_is_zero_where_u_and_s_are_zero():
    report = accuracy_report(logits_that_predict([1, 0], 2), [0, 1], seen=1)

    assert (report.U, report.S, report.H) == (0.0, 0.0, 0.0)


def test_without_unseen_images_t_u_and_h_are_none():
    report = accuracy_report(logits_that_predict([0, 1], 3), [0, 1], seen=2)

    assert (report.T, report.U, report.S, report.H) == (None, None, 1.0, None)


def test_without_seen_images_s_and_h_are_none():
    report = accuracy_report(
        logits_that_predict([2], 3), [2], seen=2, original_logits=np.zeros((1, 2), dtype=np.float32)
    )

    assert (report.T, report.U, report.S, report.H, report.S_original) == (1.0, 1.0, None, None, None)


def test_without_any_image_every_accuracy_is_none():
    report = accuracy_report(np.zeros((0, 3), dtype=np.float32), [], seen=2)

    assert (report.T, report.U, report.S, report.H) == (None, None, None, None)
    assert report.class_accuracy == (None, None, None)


def test_a_class_without_images_has_no_accuracy_and_no_weight():
    report = accuracy_report(logits_that_predict([0, 0], 3), [0, 0], seen=3)

    assert report.S == 1.0
    assert report.class_accuracy == (1.0, None, None)


def test_seen_classes_need_not_come_first():
    # columns 0 and 2 unseen, 1 and 3 seen; the original model knows 1 and 3 as its 0 and 1
    report = accuracy_report(
        logits_that_predict([1, 0, 0], 4),
        [1, 3, 0],
        seen=[False, True, False, True],
        original_logits=logits_that_predict([0, 1, 0], 2),
    )

    assert (report.S, report.S_original, report.U) == (0.5, 1.0, 1.0)
    assert report.class_change == (None, 0.0, None, -1.0)


def test_counts_what_crosses_between_seen_and_unseen_and_names_the_pairs():
    labels = [0, 0, 0, 1, 2, 2, 3]
    predictions = [2, 2, 1, 3, 0, 2, 2]  # 0 -> 1 and 3 -> 2 stay on their side
    report = accuracy_report(logits_that_predict(predictions, 4), labels, seen=2)

    assert report.num_seen_taken_for_unseen == 3
    assert report.num_unseen_taken_for_seen == 1
    assert report.crossings == (
        Crossing(label=0, prediction=2, num_images=2),
        Crossing(label=1, prediction=3, num_images=1),
        Crossing(label=2, prediction=0, num_images=1),
    )


def test_lists_no_more_crossings_than_a_reader_can_take():
    num_seen = MAX_CROSSINGS + 5
    labels = np.arange(num_seen)
    report = accuracy_report(logits_that_predict([num_seen] * num_seen, num_seen + 1), labels, seen=num_seen)

    assert len(report.crossings) == MAX_CROSSINGS
    assert report.num_seen_taken_for_unseen == num_seen


def test_json_has_the_five_figures_under_their_names_in_the_literature():
    report = accuracy_report(
        logits_that_predict([0, 2], 3), [0, 2], seen=2, original_logits=logits_that_predict([0, 0], 2)
    )
    read_back = json.loads(json.dumps(report.to_json(), allow_nan=False))

    assert list(read_back)[:5] == ["T", "U", "S", "H", "S_original"]
    assert [read_back[key] for key in ("T", "U", "S", "H", "S_original")] == [1.0, 1.0, 1.0, 1.0, 1.0]
    assert (read_back["num_images"], read_back["num_seen_images"], read_back["num_unseen_images"]) == (2, 1, 1)
    assert read_back["class_change"] == [0.0, None, None]


@given(st.integers(0, 2**32 - 1))
def test_agrees_with_a_plain_loop_over_classes(seed):
    random = np.random.default_rng(seed)
    num_classes, num_images = int(random.integers(2, 9)), int(random.integers(1, 60))
    seen = random.random(num_classes) < 0.5
    logits = random.normal(size=(num_images, num_classes))
    labels = random.integers(0, num_classes, num_images)

    def macro(of_seen, candidates):
        accuracies = []
        for cls in np.flatnonzero(seen == of_seen):
            images = np.flatnonzero(labels == cls)
            if len(images):
                chosen = [max(candidates, key=lambda c, image=image: logits[image, c]) for image in images]
                accuracies.append(np.mean([c == cls for c in chosen]))
        return np.mean(accuracies) if accuracies else None

    report = accuracy_report(logits, labels, seen=seen)
    every = range(num_classes)
    expected = [macro(False, np.flatnonzero(~seen)), macro(False, every), macro(True, every)]
    assert figures(report)[:3] == pytest.approx(expected)
    assert report.T is None or report.T >= report.U  # leaving out wrong classes cannot hurt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": np.zeros(3)}, r"The logits have shape \(3,\) and dtype float64; expected floating point of shape"),
        ({"logits": np.zeros((2, 3), dtype=np.int64)}, "dtype int64; expected floating point"),
        ({"logits": np.array([[0, 0, 0], [0, np.nan, 0]])}, r"logits of 1 images hold NaN \(first: image 1\)"),
        ({"labels": [0]}, r"The labels have shape \(1,\) and dtype int64; expected integers of shape \(2,\)"),
        ({"labels": [0.0, 1.0]}, "dtype float64; expected integers"),
        ({"labels": [0, 3]}, "Label 3 of image 1 is not a column of the logits, which have 3"),
        ({"labels": [-1, 0]}, "Label -1 of image 0 is not a column"),
        ({"seen": 4}, "There cannot be 4 seen classes: the logits have 3 columns"),
        (
            {"seen": [True, False]},
            r"mask of seen classes has shape \(2,\) and dtype bool; expected bool of shape \(3,\)",
        ),
        ({"seen": [1, 1, 0]}, "dtype int64; expected bool"),
        ({"original_logits": np.zeros((2, 3))}, r"original logits have shape \(2, 3\); expected \(2, 2\)"),
        ({"original_logits": np.full((2, 2), np.nan)}, r"original logits of 2 images hold NaN \(first: image 0\)"),
    ],
)
def test_refuses_what_does_not_fit_together(changes, message):
    arguments = {"logits": np.zeros((2, 3)), "labels": [0, 1], "seen": 2, **changes}

    with pytest.raises(IncompatibleError, match=message):
        accuracy_report(**arguments)


def test_refuses_an_accuracy_in_percent():
    good = accuracy_report(logits_that_predict([0], 1), [0], seen=1)
    fields = {name: getattr(good, name) for name in AccuracyReport.__dataclass_fields__}

    with pytest.raises(IncompatibleError, match=r"The accuracy S is 88\.4; expected a fraction from 0 to 1"):
        AccuracyReport(**{**fields, "S": 88.4})


# --- top-5, intervals, classes ------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_top5_agrees_with_sorting_the_logits_of_each_image(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 16, 80)
    logits = random.integers(0, 4, (80, 16)).astype(np.float64)  # with many ties
    report = accuracy_report(logits, labels, seen=8, original_logits=logits[:, :8])

    def macro(side, columns):
        kept = [label for label in np.unique(labels) if label in side]
        right = [
            np.mean([label in np.array(columns)[np.argsort(-row[columns], kind="stable")[:5]] for row in rows])
            for label in kept
            for rows in [logits[labels == label]]
        ]
        return np.mean(right) if right else None

    seen, new = range(8), range(8, 16)
    found = [report.top5[name] for name in ("T", "U", "S", "S_original")]
    assert found == pytest.approx([macro(new, new), macro(new, range(16)), macro(seen, range(16)), macro(seen, seen)])


def test_top5_among_five_classes_is_none():
    report = accuracy_report(np.eye(8), range(8), seen=3, original_logits=np.eye(8)[:, :3])

    assert (report.top5["T"], report.top5["S_original"]) == (None, None)
    assert (report.top5["U"], report.top5["S"], report.top5["H"]) == (1.0, 1.0, 1.0)


def test_intervals_hold_the_figures_and_are_of_eight_classes_at_least():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 10)
    logits = random.normal(size=(400, 40))
    logits[np.arange(400), labels] += 2
    report = accuracy_report(logits, labels, seen=30, original_logits=logits[:, :30])
    few = accuracy_report(logits[labels < 37], labels[labels < 37], seen=30)

    assert set(report.intervals) == {"T", "U", "S", "H", "S_original", "AUSUC"}
    for name, interval in report.intervals.items():
        assert interval.low < getattr(report, name) < interval.high
    assert set(few.intervals) == {"S"}


def test_each_class_has_its_name_its_images_and_its_most_frequent_mistake():
    report = accuracy_report(
        logits_that_predict([1, 1, 2, 1, 2], 3), [0, 0, 0, 1, 2], seen=2, class_names=("ant", "bee", "okapi")
    )

    assert report.class_names == ("ant", "bee", "okapi")
    assert report.class_num_images == (3, 1, 1)
    assert report.class_is_seen == (True, True, False)
    assert report.class_mistake == (1, None, None)


def test_a_million_different_mistakes_take_little_memory():
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 1000, (2, 50_000))
    tracemalloc.start()
    mistakes = most_frequent_mistakes(labels, predictions, num_classes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    pairs = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
    own = [(-count, answer) for (label, answer), count in pairs.items() if label == 7 and answer != 7]
    assert mistakes[7] == min(own)[1]
    assert peak < 100 * len(labels)
