"""Which classes are injected, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.errors import (
    ClassConflictError,
    DescriptorError,
    IncompatibleError,
    MissingDependencyError,
    UntrustworthyError,
    UsageError,
)
from icis_deploy.head.head import Head
from icis_deploy.injection.blocks import BlockWeight, weights_text
from icis_deploy.injection.estimate.estimate import NO_NEUTRAL_FEATURES
from icis_deploy.injection.inject import inject, unseen_classes
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.predictors.ridge import KernelPredictor

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


def test_a_seen_class_under_another_spelling_is_warned_of(head: Head, descriptors: Descriptors):
    again = head.class_names[0].upper() + "_"
    both = Descriptors(
        values=np.vstack([descriptors.values, descriptors.values[:1]]), class_names=(*descriptors.class_names, again)
    )

    injection = inject(head, both, options=RIDGE)

    message = f"The class {again!r} to inject differs from {head.class_names[0]!r} in spelling alone: if both are one"
    assert [warning for warning in injection.warnings if warning.startswith(message)]
    assert not [each for each in inject(head, descriptors, options=RIDGE).warnings if "in spelling alone" in each]


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
        ({"method": "magic"}, "no method 'magic'; choose among icis, "),
        ({"calibration": "magic"}, "no calibration 'magic'; choose among auto, length, none"),
        ({"balance": 1.0}, "balance is 1.0; expected a number between 0"),
        ({"seen_accuracy": 88.4}, "seen accuracy is 88.4; expected a fraction"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        InjectionOptions(**change)


# --- several blocks of descriptors --------------------------------------------------------------------------------


def two_blocks(num_seen: int = 60, num_new: int = 4, *, scale: float = 1.0) -> tuple[Head, Descriptors, Descriptors]:
    """Return a head whose rows follow from two blocks, and these."""
    random = np.random.default_rng(7)
    names = tuple(f"class{index}" for index in range(num_seen + num_new))
    group = random.integers(0, 8, len(names))
    factors = random.normal(size=(8, 8))[group] + 0.4 * random.normal(size=(len(names), 8))
    rows = factors @ random.normal(size=(8, 17)) + random.normal(size=17)
    head = Head(rows=rows[:num_seen], class_names=names[:num_seen])
    vectors = factors[:, :4] @ random.normal(size=(4, 10))
    tags = (factors[:, 4:] @ random.normal(size=(4, 30)) > 0.5) * scale
    tags[:, 0] = scale  # so that no class is missing
    return head, as_block("vectors", vectors, names), as_block("tags", tags, names)


def as_block(name: str, values: np.ndarray, names: tuple[str, ...]) -> Descriptors:
    return Descriptors(values=values, class_names=names, blocks=(DescriptorBlock(name, values.shape[1]),))


def noise_like(descriptors: Descriptors) -> Descriptors:
    values = np.random.default_rng(9).normal(size=(descriptors.num_classes, 40))
    return as_block("noise", values, descriptors.class_names)


@pytest.mark.parametrize("method", ["ridge", "icis-centred", "mixture", "wavg", "costa", "ensemble"])
def test_the_scale_of_a_block_does_not_change_rows(method: str):
    options = InjectionOptions(method=method, calibration="length")
    found = []
    for scale in (1.0, 1000.0):
        head, vectors, tags = two_blocks(scale=scale)
        found.append(inject(head, Descriptors.merged([vectors, tags]), options=options).rows)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_a_block_of_noise_leaves_rows_as_they_are_without_it_and_is_named():
    head, vectors, tags = two_blocks()
    without = inject(head, Descriptors.merged([vectors, tags]), options=RIDGE)
    beside = inject(head, Descriptors.merged([noise_like(tags), vectors, tags]), options=RIDGE)
    np.testing.assert_allclose(beside.rows, without.rows, rtol=1e-4, atol=1e-5)
    assert [block.name for block in beside.blocks] == ["noise", "vectors", "tags"]
    assert beside.blocks[0].weight == 0.0
    assert "Block noise was left out: it does not help to predict rows of known classes" in weights_text(beside.blocks)
    assert beside.provenance["blocks"][0]["weight"] == 0.0
    assert [BlockWeight(**one).name for one in json.loads(json.dumps(beside.provenance["blocks"]))] == [
        "noise",
        "vectors",
        "tags",
    ]


def test_one_good_block_beside_noise_is_taken_as_if_it_were_alone():
    head, vectors, _ = two_blocks()
    alone = inject(head, vectors, options=RIDGE)
    beside = inject(head, Descriptors.merged([noise_like(vectors), vectors]), options=RIDGE)
    np.testing.assert_array_equal(beside.rows, alone.rows)


def test_blocks_together_predict_better_than_each_alone():
    head, vectors, tags = two_blocks(num_seen=150)
    options = InjectionOptions(method="ridge")

    def cosine(descriptors: Descriptors) -> float:
        selection = inject(head, descriptors, options=options).selection
        assert selection is not None
        return selection.chosen.row_cosine

    assert cosine(Descriptors.merged([vectors, tags])) > max(cosine(vectors), cosine(tags)) + 0.05


def test_one_block_is_taken_as_it_is_whatever_its_name():
    head, vectors, _ = two_blocks()
    unnamed = Descriptors(values=vectors.values, class_names=vectors.class_names)
    named, plain = inject(head, vectors, options=RIDGE), inject(head, unnamed, options=RIDGE)
    np.testing.assert_array_equal(named.rows, plain.rows)
    assert isinstance(named.injector.predictor, KernelPredictor)
    assert named.blocks[0].weight == 1.0


def test_the_injector_takes_descriptors_of_all_blocks_and_makes_the_same_rows():
    head, vectors, tags = two_blocks()
    both = Descriptors.merged([vectors, tags])
    for options in (RIDGE, InjectionOptions(method="ridge")):
        injection = inject(head, both, options=options)
        made = injection.injector.rows(both.select(injection.class_names).values)
        np.testing.assert_array_equal(made, injection.rows)


def test_a_class_that_lacks_a_block_is_predicted_from_the_others_and_counted():
    head, vectors, tags = two_blocks()
    known = [name for name in tags.class_names if name not in {"class60", "class3"}]
    injection = inject(head, Descriptors.merged([vectors, tags.select(known)]), options=RIDGE)
    counted = {block.name: (block.num_seen_missing, block.num_unseen_missing) for block in injection.blocks}
    assert counted == {"vectors": (0, 0), "tags": (1, 1)}
    assert np.isfinite(injection.rows).all()


def test_a_new_class_that_only_a_dropped_block_describes_is_refused():
    head, vectors, tags = two_blocks()
    known = list(vectors.class_names[:-1])
    parts = [vectors.select(known), tags.select(known), noise_like(tags)]
    with pytest.raises(
        DescriptorError, match=r"Nothing useful is known of 'class63'.*Block noise was left out"
    ) as info:
        inject(head, Descriptors.merged(parts), options=RIDGE)
    assert info.value.expected == ("vectors", "tags")


def test_blocks_that_describe_no_class_of_the_head_differently_are_refused():
    head, _, tags = two_blocks()
    same = [as_block(name, np.ones((64, 3)), tags.class_names) for name in ("one", "two")]
    with pytest.raises(DescriptorError, match=r"No block of the descriptors .* tells the classes of the head apart"):
        inject(head, Descriptors.merged(same), options=RIDGE)


def test_weights_text_says_what_counts():
    weight = BlockWeight(
        name="tags", weight=0.75, cosine_with=0.3, cosine_without=0.2, num_seen_missing=0, num_unseen_missing=0
    )
    empty = replace(weight, name="empty", weight=0.0, cosine_with=None, cosine_without=None)
    assert weights_text([weight, replace(weight, name="vectors", weight=0.25), empty]) == (
        "Descriptors: tags 75.0 %, vectors 25.0 %. Block empty was left out: it tells no two classes of the head apart."
    )
