from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from icis_deploy.runtime.answers import top_predictions


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
