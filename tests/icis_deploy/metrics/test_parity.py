import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.errors import IncompatibleError
from icis_deploy.head.head import Head
from icis_deploy.metrics.parity import (
    GATE_PROFILES,
    GateProfile,
    agreement_lower_bound,
    compare_logits,
    measure_errors,
    num_kept_of,
    parity_of,
)

FP32 = GATE_PROFILES["fp32"]
LOOSE = GateProfile(name="loose", max_scaled_error=1.0, p999_scaled_error=1.0, min_agreement=1.0)


def compare(reference, exported, profile=FP32):
    return compare_logits(reference, exported, profile=profile, compared_with="the original")


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(200, 10))


# --- the verdict --------------------------------------------------------------------------------------------------


def test_equal_logits_pass(reference):
    report = compare(reference, reference.copy())

    assert report.passed
    assert report.failures == ()
    assert (report.num_images, report.num_classes) == (200, 10)
    assert (report.max_scaled_error, report.p999_scaled_error) == (0, 0)
    assert (report.num_near_ties, report.num_disagreements, report.agreement) == (0, 0, 1)
    assert report.logit_std == pytest.approx(reference.std())
    assert report.compared_with == "the original"


def test_rounding_to_float32_passes(reference):
    assert compare(reference, reference.astype(np.float32)).passed


def test_errors_are_scaled_so_that_the_unit_of_the_logits_does_not_matter(reference):
    exported = reference + np.random.default_rng(1).normal(size=reference.shape) * 3e-5
    reports = [compare(reference * unit + offset, exported * unit + offset) for unit, offset in [(1, 0), (1e4, -5e5)]]

    assert reports[0].max_scaled_error == pytest.approx(reports[1].max_scaled_error, rel=1e-4)
    assert reports[0].failures[:1] == reports[1].failures[:1]


def test_one_logit_that_is_off_fails_by_the_greatest_error(reference):
    exported = reference.copy()
    exported[7, 3] += 2e-4 * reference.std()
    report = compare(reference, exported)

    assert report.max_scaled_error == pytest.approx(2e-4)
    assert report.failures == ("max_scaled_error 0.0002 is above 0.0001",)


def test_many_logits_that_are_a_little_off_fail_by_the_percentile(reference):
    report = compare(reference, reference + 8e-5 * reference.std())

    assert report.failures == ("p999_scaled_error 8e-05 is above 5e-05",)


def test_the_percentile_is_an_error_that_was_found_and_rounded_up():
    reference = np.zeros((1000, 2))
    reference[:, 1] = 1
    errors = np.zeros(2000)
    errors[:3] = [0.3, 0.2, 0.1]
    report = compare(reference, reference + errors.reshape(1000, 2), LOOSE)

    assert report.p999_scaled_error * report.logit_std == pytest.approx(0.2)
    assert report.p999_scaled_error * report.logit_std == pytest.approx(np.quantile(errors, 0.999, method="higher"))


@given(st.integers(0, 199), st.integers(0, 9), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_nan_or_infinity_anywhere_fails_every_error_threshold(image, logit, value):
    reference = np.random.default_rng(0).normal(size=(200, 10))
    exported = reference.copy()
    exported[image, logit] = value
    report = compare(reference, exported)

    assert not report.passed
    assert report.max_scaled_error == math.inf
    assert report.failures[0] == "max_scaled_error inf is above 0.0001: the exported model gives a NaN or an infinity"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_but_nan_or_infinity_fails_every_threshold(reference, value):
    report = compare(reference, np.full_like(reference, value))

    assert len(report.failures) == 3
    assert report.agreement < 0.5


@pytest.fixture
def head():
    rng = np.random.default_rng(3)
    return Head(rows=rng.normal(size=(8, 9)), class_names=[f"class {index}" for index in range(8)])


@pytest.mark.parametrize(
    "broken",
    [
        lambda weight, bias: (weight.T, bias),
        lambda weight, bias: (weight[::-1], bias[::-1]),
        lambda weight, bias: (weight[[1, 0, *range(2, 8)]], bias[[1, 0, *range(2, 8)]]),
        lambda weight, bias: (weight, np.zeros_like(bias)),
        lambda weight, bias: (weight, -bias),
        lambda weight, bias: (weight, np.roll(bias, 1)),
        lambda weight, bias: (weight[:, ::-1], bias),
        lambda weight, bias: (weight, bias + np.eye(8)[3] * 1e-3),
        lambda weight, bias: (weight.astype(np.float16), bias),
    ],
    ids=[
        "transposed weight",
        "classes reversed",
        "two classes swapped",
        "bias dropped",
        "bias negated",
        "bias of the next class",
        "features reversed",
        "one bias a little off",
        "rounded to float16",
    ],
)
def test_a_head_that_was_rewritten_wrongly_fails(head, broken):
    features = np.random.default_rng(4).normal(size=(64, 8))
    weight, bias = broken(head.weight.astype(np.float64), head.bias.astype(np.float64))

    assert compare(head.logits(features), features @ head.weight.T + head.bias.astype(np.float64)).passed
    assert not compare(head.logits(features), features @ weight.T.astype(np.float64) + bias).passed


# What each precision may do to logits, in standard deviations, and to answers: the greatest error, the 99.9th
# percentile, and how many of a thousand clear answers may change.
ALLOWED = {
    "fp32": (1e-4, 5e-5, 0),
    "fp16": (0.1, 0.05, 5),
    "fp16 head": (1e-2, 5e-3, 0),
    "int8 head": (0.2, 0.1, 10),
    "fp16 rows": (5e-3, 2e-3, 0),
    "int8 rows": (0.1, 0.05, 5),
    "int8": (4.0, 1.0, 100),
}


def failed_by(report):
    return {failure.split(" ", 1)[0] for failure in report.failures}


def test_every_profile_has_its_limits_tested():
    assert ALLOWED.keys() == GATE_PROFILES.keys()


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize(("share", "expected"), [(0.97, set()), (1.03, {"max_scaled_error"})])
def test_one_error_is_passed_below_a_profiles_greatest_and_caught_above_it(name, share, expected, reference):
    exported = reference.copy()
    exported[7, reference[7].argmin()] -= share * ALLOWED[name][0] * reference.std()

    assert failed_by(compare(reference, exported, GATE_PROFILES[name])) == expected


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize(("share", "expected"), [(0.97, set()), (1.03, {"p999_scaled_error"})])
def test_errors_everywhere_are_passed_below_a_profiles_percentile_and_caught_above_it(name, share, expected, reference):
    exported = reference + share * ALLOWED[name][1] * reference.std()

    assert failed_by(compare(reference, exported, GATE_PROFILES[name])) == expected


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("is_over", [False, True])
def test_as_many_answers_may_change_as_a_profile_allows_and_no_more(name, is_over):
    reference = np.tile([[3.0, 0.0], [0.0, 3.0]], (500, 1))
    exported = reference.copy()
    num_changed = ALLOWED[name][2] + is_over
    exported[:num_changed] = exported[:num_changed, ::-1]
    report = compare(reference, exported, GATE_PROFILES[name])

    assert report.num_disagreements == num_changed
    assert ("agreement" in failed_by(report)) == is_over


# --- agreement and near-ties --------------------------------------------------------------------------------------


def counts(reference, exported):
    report = compare(np.array(reference, float), np.array(exported, float), LOOSE)
    return report.num_near_ties, report.num_disagreements


def test_another_winner_by_a_clear_margin_is_a_disagreement():
    assert counts([[0, 3], [3, 0], [0, 3]], [[0, 3], [3, 0], [3.1, 3]]) == (0, 1)


def test_another_winner_between_two_that_were_closer_than_the_error_is_a_near_tie():
    assert counts([[0, 3], [3, 0], [1, 1.1]], [[0, 3], [3, 0], [1.1, 1]]) == (1, 0)


def test_a_near_tie_reaches_to_twice_the_greatest_error():
    exported = [[0, 3], [3, 0.1], [1, 1.2]]  # the greatest error is 0.1

    assert counts([[0, 3], [3, 0], [1, 1.19]], exported) == (1, 0)
    assert counts([[0, 3], [3, 0], [1, 1.22]], exported) == (0, 0)


def test_errors_as_wide_as_the_logits_do_not_make_everything_a_near_tie(reference):
    report = compare(reference, np.random.default_rng(9).normal(size=reference.shape))

    assert report.num_disagreements > report.num_images / 4
    assert any(failure.startswith("agreement ") for failure in report.failures)


def test_a_disagreement_fails_with_how_many_there_are():
    report = compare(np.array([[0, 3], [3, 0.0], [0, 3]]), np.array([[0, 3], [3, 0], [3.1, 3]]), LOOSE)

    assert report.agreement == pytest.approx(2 / 3)
    assert report.failures[-1] == (
        "agreement 0.6667 is below 1.0000: another class wins on 1 images that are no near-ties"
    )


@given(st.integers(0, 2**32 - 1), st.floats(1e-7, 1e-1))
def test_agreeing_images_disagreements_and_near_ties_are_counted_as_defined(seed, noise):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(30, 4))
    exported = reference + rng.normal(size=reference.shape) * noise
    report = compare(reference, exported, LOOSE)

    error = np.abs(exported - reference).max()
    ties = disagreements = 0
    for expected, found in zip(reference, exported, strict=True):
        best, second = sorted(expected, reverse=True)[:2]
        if best - second <= min(2 * error, reference.std() / 2):
            ties += 1
        elif list(expected).index(max(expected)) != list(found).index(max(found)):
            disagreements += 1
    assert (report.num_near_ties, report.num_disagreements) == (ties, disagreements)
    clear = len(reference) - ties
    assert report.agreement == (1 - disagreements / clear if clear else 1)
    assert report.agreement_lower_bound == agreement_lower_bound(clear - disagreements, clear)


def test_a_head_of_one_class_always_agrees():
    report = compare(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]))

    assert report.passed
    assert (report.num_near_ties, report.num_disagreements) == (0, 0)


# --- the bound ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.data())
def test_the_bound_is_that_of_clopper_and_pearson(num_images, data):
    agreeing = data.draw(st.integers(1, num_images))
    from scipy.stats import beta

    expected = beta.ppf(0.01, agreeing, num_images - agreeing + 1)

    assert agreement_lower_bound(agreeing, num_images) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("num_images", [0, 1, 50])
def test_without_agreement_the_bound_is_zero(num_images):
    assert agreement_lower_bound(0, num_images) == 0


@pytest.mark.parametrize("num_images", [1, 64, 5000])
def test_full_agreement_is_bounded_by_the_number_of_images(num_images):
    assert agreement_lower_bound(num_images, num_images) == pytest.approx(0.01 ** (1 / num_images))


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_as_json_states_verdict_thresholds_and_measurements(reference):
    values = compare(reference, reference + 8e-5 * reference.std()).to_json()

    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert next(iter(values)) == "passed"
    assert values["passed"] is False
    assert values["failures"] == ["p999_scaled_error 8e-05 is above 5e-05"]
    assert values["profile"] == {
        "name": "fp32",
        "max_scaled_error": 1e-4,
        "p999_scaled_error": 5e-5,
        "min_seen_kept": None,
        "max_h_loss": 0.01,
        "min_agreement": 1.0,
    }


def test_the_report_of_an_export_that_gives_nan_is_still_json(reference):
    values = compare(reference, np.full_like(reference, np.nan)).to_json()

    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["max_scaled_error"] is None
    assert values["passed"] is False


@pytest.mark.parametrize(
    ("reference", "exported", "message"),
    [
        (
            np.eye(3),
            np.eye(3)[:2],
            r"The exported model gave logits of shape \(2, 3\); the reference has \(3, 3\)\.",
        ),
        (np.eye(3)[0], np.eye(3)[0], r"The exported model gave logits of shape \(3,\); the reference has \(3,\)\."),
        (np.empty((0, 3)), np.empty((0, 3)), r"The exported model gave logits of shape \(0, 3\)"),
        (np.ones((3, 2)), np.ones((3, 2)), r"The reference \(.*\) gives one number as the logit of every class"),
        (
            np.diag([1, np.nan]),
            np.eye(2),
            r"The reference \(.*\) gives a NaN or an infinity, with which nothing can be compared\.",
        ),
        (np.diag([1, np.inf]), np.eye(2), r"The reference \(.*\) gives a NaN or an infinity"),
        (np.diag([1, -np.inf]), np.diag([1, -np.inf]), r"The reference \(.*\) gives a NaN or an infinity"),
    ],
)
def test_what_cannot_be_compared_is_refused(reference, exported, message):
    with pytest.raises(IncompatibleError, match=f"^{message}"):
        compare(reference, exported)


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), data=st.data())
def test_any_partition_in_any_order_gives_the_same_report(seed, data):
    random = np.random.default_rng(seed)
    # Rounded, so that there are near-ties and equal errors; more than a thousand logits, so that there is a tail.
    reference = np.round(random.normal(100.0, 2.0, size=(50, 40)), 1)
    exported = (reference + np.round(random.normal(0.0, 0.05, size=reference.shape), 2)).astype(np.float32)
    whole = compare_logits(reference, exported, profile=GATE_PROFILES["fp32"], compared_with="x")
    order = np.array(data.draw(st.permutations(range(len(reference)))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(reference) - 1), max_size=8)))
    num_kept = num_kept_of(*reference.shape)
    parts = [
        measure_errors(reference[chosen], exported[chosen], num_kept=num_kept, compared_with="x")
        for chosen in np.split(order, cuts)
    ]

    assert parity_of(parts, profile=GATE_PROFILES["fp32"], compared_with="x") == whole
    errors = np.sort(np.abs(exported.astype(np.float64) - reference), axis=None)
    assert whole.logit_std == pytest.approx(reference.std(), rel=1e-12)
    assert whole.max_scaled_error * whole.logit_std == pytest.approx(errors[-1])
    assert whole.p999_scaled_error * whole.logit_std == pytest.approx(np.percentile(errors, 99.9, method="higher"))


def test_logits_far_from_zero_and_near_each_other_have_a_scale():
    reference = 1e6 + np.random.default_rng(0).normal(size=(8, 5)) * 1e-4

    report = compare_logits(reference, reference, profile=GATE_PROFILES["fp32"], compared_with="x")

    assert report.logit_std == pytest.approx(reference.std(), rel=1e-6)
