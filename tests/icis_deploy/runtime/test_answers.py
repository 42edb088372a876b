from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from icis_deploy.bundle.manifest import MANIFEST_NAME, load_manifest, serialize_manifest
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.answers import predictions_from_topk, top_predictions
from icis_deploy.runtime.device import Device, session_of
from testing.bundles import images


def predictions_of(values, top):
    values = np.asarray(values, np.float32)
    return top_predictions(values, top, class_names=[str(index) for index in range(values.shape[1])], version=3)


def softmax(values):
    wide = np.asarray(values, np.float64)
    exponentials = np.exp(wide - wide.max())
    return exponentials / exponentials.sum()


# Few distinct values, so that many are equal; and great ones, where a careless softmax overflows.
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 12)),
    elements=st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 2.5]), st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)
    ),
)


@given(ROWS, st.integers(1, 14))
def test_the_most_probable_come_first_and_equal_ones_in_the_order_of_the_head(values, top):
    for row, prediction in zip(values, predictions_of(values, top), strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))[:top]
        assert prediction.class_names == tuple(str(index) for index in order)
        np.testing.assert_allclose(prediction.probabilities, softmax(row)[order], rtol=1e-5, atol=1e-300)
        assert prediction.version == 3


def test_probabilities_are_over_all_classes_and_not_over_the_shown_ones():
    (prediction,) = predictions_of([[0.0, 0.0, 0.0, 0.0]], 2)

    assert prediction.probabilities == pytest.approx((0.25, 0.25))


def test_an_empty_batch_has_no_predictions():
    assert predictions_of(np.zeros((0, 3)), 2) == []


@pytest.mark.parametrize("top", [3, 40], ids=["picked", "sorted"])
def test_logits_whose_probabilities_vanish_or_are_equal_still_come_in_their_own_order(top):
    tiny = np.float32(1e-30)  # exp(0) and exp(1e-30) are the same number
    (prediction,) = predictions_of([[tiny / 2, tiny, -3000.0, 0.0, -2000.0, -2001.0]], top)

    assert prediction.class_names == ("1", "0", "3", "4", "5", "2")[:top]
    assert sum(prediction.probabilities) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("independent", [False, True])
def test_scores_that_are_no_numbers_are_no_answer(value, independent):
    logits = np.array([[0.0, 1.0, 2.0], [0.0, value, 2.0]], np.float32)

    with pytest.raises(RuntimeFailureError, match=f"gave the score {value} for an image, which is no answer"):
        top_predictions(logits, 2, class_names=("a", "b", "c"), version=1, independent=independent)


def test_probabilities_of_the_model_that_are_no_numbers_are_no_answer():
    topk = np.full((1, 2), np.nan, np.float32), np.array([[0, 1]])

    with pytest.raises(RuntimeFailureError, match="gave the score nan"):
        predictions_from_topk(topk, ("a", "b"), 1, 2)


def topk_of(*columns):
    """What a model of three classes and two empty slots selects, with probabilities of their own."""
    given = np.array([columns])
    return 0.5 ** (given + 1).astype(np.float32), given


SCORE_NAMES = ("a", None, "b", None, "c")


@pytest.mark.parametrize(
    ("columns", "top", "expected"),
    [
        ((0, 2, 4), 3, "abc"),
        ((0, 2, 4), 2, "ab"),  # the model selects more than are asked for
        ((0, 1, 2, 3, 4), 3, "abc"),  # empty slots among them, in an order of the runtime's own
        ((1, 4, 0), 2, "ca"),
        ((0, 2, 4, 1, 3), 5, "abc"),  # no more than there are
    ],
)
def test_empty_slots_are_left_out_of_what_a_model_selects(columns, top, expected):
    (prediction,) = predictions_from_topk(topk_of(*columns), SCORE_NAMES, 7, top)

    assert "".join(prediction.class_names) == expected
    assert prediction.probabilities == tuple(0.5 ** (SCORE_NAMES.index(name) + 1) for name in expected)
    assert prediction.version == 7


@pytest.mark.parametrize(("columns", "top"), [((1, 3, 0), 2), ((1, 3), 1), ((0, 1, 3, 2), 3)])
def test_where_empty_slots_took_the_place_of_classes_the_model_has_not_answered(columns, top):
    """Then they are selected from the scores."""
    assert predictions_from_topk(topk_of(*columns), SCORE_NAMES, 7, top) is None


def test_a_device_whose_model_has_not_answered_selects_from_its_scores(bundle_folder, monkeypatch):
    bundle, expected = load_manifest(bundle_folder), Device.open(bundle_folder).predict(images(3), top=2)
    (bundle_folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, top=2)))
    device = Device.open(bundle_folder)
    assert session_of(device).top(images(3)) is None, "the model of this bundle makes no choice"
    assert device.predict(images(3), top=2) == expected

    # As a runtime that gives equal scores in an order of its own: the two slots before the classes.
    empty = np.zeros((3, 2), np.float32), np.full((3, 2), [3, 4])
    monkeypatch.setattr(session_of(device), "top", lambda *_: empty)
    assert device.predict(images(3), top=2) == expected


def test_a_device_can_be_shown_before_it_is_open():
    """As a debugger does, or what logs a constructor that failed."""
    assert repr(Device.__new__(Device)) == "<Device, not open>"


def test_an_image_that_is_not_finite_is_refused_by_name(bundle_folder):
    batch = images(2)
    batch[1] = np.nan

    with pytest.raises(RuntimeFailureError, match="Check that the image is finite"):
        Device.open(bundle_folder).predict(batch)
