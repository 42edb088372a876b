"""The curve of S against U says what shifted logits give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.metrics.accuracy import accuracy_report
from icis_deploy.metrics.trade_off import BUDGETS, MAX_POINTS, best_balance, leads_of


def random_case(seed, *, num_images=60):
    """Logits of seen and new classes, some with more images than others, with labels that they often meet."""
    random = np.random.default_rng(seed)
    num_seen, num_new = int(random.integers(2, 8)), int(random.integers(1, 8))
    labels = np.concatenate([[0, num_seen], random.integers(0, num_seen + num_new, num_images)])
    logits = random.normal(size=(len(labels), num_seen + num_new)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1
    return logits, labels, num_seen


def shifted_report(logits, labels, num_seen, shift):
    shifted = logits.astype(np.float64)
    shifted[:, num_seen:] += shift
    return accuracy_report(shifted, labels, seen=num_seen, original_logits=shifted[:, :num_seen])


@given(st.integers(0, 2**32 - 1))
def test_every_point_of_a_curve_is_what_the_shifted_logits_give(seed):
    logits, labels, num_seen = random_case(seed, num_images=24)  # each point of the curve is measured
    report = accuracy_report(logits, labels, seen=num_seen)

    for point in report.curve[1:-1:5]:
        measured = shifted_report(logits, labels, num_seen, point.shift)
        assert pytest.approx((measured.S, measured.U)) == (point.S, point.U)
    assert report.curve[0].U == 0
    assert pytest.approx(report.T) == report.curve[-1].U
    assert report.curve[-1].S == 0


@given(st.integers(0, 2**32 - 1))
def test_a_point_at_a_budget_keeps_it_and_no_point_of_the_curve_has_more_for_it(seed):
    logits, labels, num_seen = random_case(seed)
    report = accuracy_report(logits, labels, seen=num_seen, original_logits=logits[:, :num_seen])

    assert [point.max_seen_loss for point in report.budget_points] == list(BUDGETS)
    for point in report.budget_points:
        measured = shifted_report(logits, labels, num_seen, point.shift)
        assert pytest.approx((measured.S, measured.U)) == (point.S, point.U)
        assert report.S_original - point.max_seen_loss - 1e-9 <= point.S
        # A point may be rounded off the exact tie at which a seen class still wins.
        better = [each.U for each in report.curve if report.S_original - point.max_seen_loss + 1e-9 <= each.S]
        assert max(better) - 1e-9 <= point.U


@given(st.integers(0, 2**32 - 1))
def test_top5_at_a_budget_is_that_of_the_shifted_logits(seed):
    logits, labels, num_seen = random_case(seed)
    report = accuracy_report(logits, labels, seen=num_seen)

    for point in report.budget_points:
        # Where every shift is within the budget it is infinite, and would make all new logits equal.
        below = min(np.nextafter(point.shift, -np.inf), 1e6)
        expected = shifted_report(logits, labels, num_seen, below).top5["U"]
        assert expected is None or point.U_top5 == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1))
def test_ausuc_is_the_area_below_the_curve(seed):
    logits, labels, num_seen = random_case(seed)
    report = accuracy_report(logits, labels, seen=num_seen)
    s, u = np.array([[point.S, point.U] for point in report.curve]).T

    assert len(report.curve) < MAX_POINTS
    assert pytest.approx(((u[1:] - u[:-1]) * (s[1:] + s[:-1]) / 2).sum()) == report.AUSUC


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_the_best_balance_is_that_of_the_best_shift(seed):
    logits, labels, num_seen = random_case(seed, num_images=24)  # each point of the curve is measured
    leads = leads_of(logits, labels, np.arange(logits.shape[1]) < num_seen)
    reports = [
        shifted_report(logits, labels, num_seen, shift)
        for shift in (point.shift for point in accuracy_report(logits, labels, seen=num_seen).curve)
        if np.isfinite(shift)
    ]
    assert best_balance(leads) == pytest.approx(max((report.H for report in reports), default=0.0))


def test_a_curve_of_many_images_keeps_its_ends_and_its_shape():
    logits, labels, num_seen = random_case(3, num_images=4000)
    report = accuracy_report(logits, labels, seen=num_seen)
    s, u = np.array([[point.S, point.U] for point in report.curve]).T

    assert 100 < len(report.curve) <= MAX_POINTS
    assert (report.curve[0].shift, report.curve[-1].shift) == (-np.inf, np.inf)
    assert (np.diff(s) <= 0).all()
    assert (np.diff(u) >= 0).all()
    assert ((u[1:] - u[:-1]) * (s[1:] + s[:-1]) / 2).sum() == pytest.approx(report.AUSUC, abs=1e-3)


def test_a_class_that_the_head_lacks_is_never_gained():
    logits = np.array([[1.0, 0.0, -np.inf], [0.0, 1.0, -np.inf], [0.0, 1.0, -np.inf]])
    report = accuracy_report(logits, [0, 1, 2], seen=2)

    assert {point.U for point in report.curve} == {0.0}
    assert {(point.S, point.U) for point in report.budget_points} == {(1.0, 0.0)}
    assert report.AUSUC == 0


def test_a_budget_that_is_spent_before_any_new_class_competes_has_no_point():
    # Class 1 is new to the original model but counts as seen, and takes all images of class 0.
    logits = np.tile([0.0, 1.0, 0.5], (4, 1))
    original = np.tile([0.0, -np.inf], (4, 1))
    report = accuracy_report(logits, [0, 0, 0, 2], seen=2, original_logits=original)

    assert report.S_original == 1.0
    assert report.budget_points == ()
    assert report.seen_loss.loss == 1.0


@pytest.mark.parametrize("labels", [[0, 1], [2, 2]])
def test_with_images_of_one_side_there_is_no_curve(labels):
    report = accuracy_report(np.eye(3)[labels], labels, seen=2)

    assert (report.curve, report.budget_points, report.AUSUC) == ((), (), None)
