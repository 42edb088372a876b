"""Which classes are injected, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import (
    ClassConflictError,
    DescriptorError,
    IncompatibleError,
    MissingDependencyError,
    UntrustworthyError,
    UsageError,
)
from icis_deploy.head.head import Head
from icis_deploy.injection.estimate.estimate import NO_NEUTRAL_FEATURES
from icis_deploy.injection.inject import inject, unseen_classes
from icis_deploy.injection.options import InjectionOptions

RIDGE = InjectionOptions(method="ridge", calibration="length")


@pytest.fixture
def head() -> Head:
    rows = np.random.default_rng(0).normal(size=(30, 13))
    return Head(rows=rows, class_names=tuple(f"seen{index}" for index in range(30)))


@pytest.fixture
def descriptors(head: Head) -> Descriptors:
    values = np.random.default_rng(1).normal(size=(33, 6))
    return Descriptors(values=values, class_names=("new1", *head.class_names, "new2", "new3"))


def test_every_described_class_that_the_head_lacks_is_injected_in_file_order(head: Head, descriptors: Descriptors):
    injection = inject(head, descriptors, options=RIDGE)
    assert injection.class_names == ("new1", "new2", "new3")
    assert injection.rows.shape == (3, 13)
    assert injection.provenance["method"] == "ridge"


def test_injected_rows_have_the_seen_rows_mean_length_unless_they_are_wanted_raw(head: Head, descriptors: Descriptors):
    calibrated = inject(head, descriptors, options=InjectionOptions(method="icis", calibration="length"))
    raw = inject(head, descriptors, options=InjectionOptions(method="icis", calibration="none"))
    mean_length = np.linalg.norm(head.rows, axis=1).mean()
    assert np.linalg.norm(calibrated.rows, axis=1).mean() == pytest.approx(mean_length, rel=1e-5)
    assert np.linalg.norm(raw.rows, axis=1).mean() != pytest.approx(mean_length, rel=1e-2)
    ratio = calibrated.rows / raw.rows
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)


def test_the_injected_head_keeps_the_seen_rows(head: Head, descriptors: Descriptors):
    injection = inject(head, descriptors, options=RIDGE)
    expanded = head.expand(injection.rows, injection.class_names)
    np.testing.assert_array_equal(expanded.rows[:30], head.rows)


@pytest.mark.parametrize(
    ("unseen", "error", "message"),
    [
        (("new1", "seen3"), ClassConflictError, "seen3"),
        (("new1", "new1"), ClassConflictError, "twice"),
        (("nowhere",), DescriptorError, "No descriptor for 'nowhere'"),
        ((), DescriptorError, "no unseen class"),
    ],
)
def test_classes_that_cannot_be_injected_are_refused_by_name(unseen, error, message, head, descriptors):
    with pytest.raises(error, match=message):
        inject(head, descriptors, unseen=unseen, options=RIDGE)


def test_a_seen_class_without_a_descriptor_is_refused_by_name(head: Head, descriptors: Descriptors):
    with pytest.raises(DescriptorError, match="No descriptor for 'seen29'"):
        inject(head, descriptors.select(descriptors.class_names[:30]), options=RIDGE)


def test_nothing_is_unseen_when_the_head_knows_every_described_class(head: Head, descriptors: Descriptors):
    with pytest.raises(DescriptorError, match="all 30 described classes are already in the head"):
        unseen_classes(head, descriptors.select(head.class_names), None)


def linear_world(num_seen: int, num_unseen: int, *, noise: float = 0.3, seed: int = 0) -> tuple[Head, Descriptors]:
    """Rows are a linear function of descriptors and some noise, so that descriptors say much of them."""
    random = np.random.default_rng(seed)
    names = tuple(f"class{index:03d}" for index in range(num_seen + num_unseen))
    values = random.normal(size=(len(names), 12))
    rows = values @ random.normal(size=(12, 33)) + noise * random.normal(size=(len(names), 33))
    head = Head(rows=rows[:num_seen], class_names=names[:num_seen])
    return head, Descriptors(values=values, class_names=names)


def test_auto_is_the_default_and_says_what_it_chose_and_expects():
    head, descriptors = linear_world(80, 20)
    random = np.random.default_rng(5)
    features = random.normal(size=(64, 80)) @ head.rows[:, :-1] + random.normal(size=(64, 32))
    injection = inject(head, descriptors, neutral_features=features.astype(np.float32))
    assert injection.method == injection.selection.chosen.method
    assert injection.estimate.is_trustworthy
    provenance = json.loads(json.dumps(injection.provenance))
    assert provenance["selection"]["reason"].startswith(injection.method)
    assert {one["method"] for one in provenance["selection"]["candidates"]} >= {"ridge", "nearest", "mean"}
    assert len(provenance["estimate"]["confidence"]) == 20
    for name in ("T", "U", "S", "H"):
        interval = provenance["estimate"][name]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    injection.require_trust()


def test_a_head_whose_rows_do_not_follow_its_features_is_warned_of():
    """Least squares divide by the spread of features: rows are short where features are long."""
    head, descriptors = linear_world(80, 20)
    inverse = np.linalg.pinv(head.rows[:, :-1] - head.rows[:, :-1].mean(axis=0)).T
    features = np.random.default_rng(5).normal(size=(64, 80)) @ inverse
    ridge = InjectionOptions(method="ridge")
    injection = inject(head, descriptors, neutral_features=features.astype(np.float32), options=ridge)
    assert any("do not follow its features" in message for message in injection.warnings)
    with pytest.raises(UntrustworthyError, match="measure on images"):
        injection.require_trust()


def test_the_injector_makes_the_rows_one_class_at_a_time():
    head, descriptors = linear_world(60, 8)
    for method, calibration in (("ridge", "auto"), ("mixture", "auto"), ("icis", "length")):
        options = InjectionOptions(method=method, calibration=calibration)
        injection = inject(head, descriptors, options=options)
        for index in (0, 7):
            alone = injection.injector.rows(descriptors.values[60 + index : 61 + index])
            np.testing.assert_allclose(alone[0], injection.rows[index], rtol=1e-3, atol=1e-4)


def test_calibration_none_gives_what_the_method_predicts():
    head, descriptors = linear_world(40, 5)
    injection = inject(head, descriptors, options=InjectionOptions(method="nearest", calibration="none"))
    assert injection.estimate is None
    for row in injection.rows:
        assert np.abs(head.rows - row).max(axis=1).min() < 1e-5


def test_descriptors_that_say_nothing_are_reported_and_refused_when_strict():
    head, descriptors = linear_world(80, 20)
    shuffled = Descriptors(
        values=np.random.default_rng(1).permutation(descriptors.values), class_names=descriptors.class_names
    )
    injection = inject(head, shuffled)
    assert not injection.estimate.is_trustworthy
    assert any("say nothing" in message for message in injection.warnings)
    with pytest.raises(UntrustworthyError, match="told apart"):
        injection.require_trust()


def test_without_neutral_features_the_injection_says_that_its_scale_is_guessed():
    head, descriptors = linear_world(40, 5)
    injection = inject(head, descriptors, options=InjectionOptions(method="ridge"))
    assert NO_NEUTRAL_FEATURES in injection.warnings


def test_too_few_seen_classes_fall_back_to_the_mean_length_with_a_warning():
    head, descriptors = linear_world(5, 2)
    injection = inject(head, descriptors)
    assert injection.method == "ridge"
    assert injection.provenance["calibration"] == "length"
    assert injection.estimate is None
    assert "fewer than 6" in injection.warnings[0]
    lengths = [np.linalg.norm(rows, axis=1).mean() for rows in (injection.rows, head.rows)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
    with pytest.raises(UntrustworthyError, match="no estimate"):
        injection.require_trust()


def test_a_higher_balance_favours_unseen_classes():
    head, descriptors = linear_world(80, 20, noise=1.5)
    rates = [
        inject(head, descriptors, options=InjectionOptions(method="ridge", balance=balance)).selection.chosen.rates
        for balance in (0.2, 0.5, 0.8)
    ]
    assert rates[0].U < rates[1].U < rates[2].U
    assert rates[0].S > rates[1].S > rates[2].S


def test_neutral_features_of_another_width_are_refused():
    head, descriptors = linear_world(40, 5)
    with pytest.raises(IncompatibleError, match=r"\(8, 31\); expected \(num_neutral, 32\)"):
        inject(head, descriptors, neutral_features=np.zeros((8, 31), np.float32))


def test_a_missing_solver_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    head, descriptors = linear_world(40, 5)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependencyError, match=r"needs scipy.*pip install 'icis-deploy\[train\]'"):
        inject(head, descriptors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "no method 'magic'; choose one of icis, "),
        ({"calibration": "magic"}, "no calibration 'magic'; choose one of auto, length, none"),
        ({"balance": 1.0}, "balance is 1.0; expected a number between 0"),
        ({"seen_accuracy": 88.4}, "seen accuracy is 88.4; expected a fraction"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        InjectionOptions(**change)
