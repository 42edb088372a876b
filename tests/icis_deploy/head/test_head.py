import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from icis_deploy.errors import ClassConflictError, IncompatibleError, UsageError
from icis_deploy.head.head import Head, fingerprint

ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(2, 6)),
    elements=st.floats(-1e6, 1e6, width=32),
)


def test_names_of_rows_have_an_order():
    with pytest.raises(UsageError, match=r"^`class_names` is a set, which has no order"):
        Head(rows=np.eye(2), class_names={"cat", "dog"})


def named(rows):
    return Head(rows=rows, class_names=[f"class {index}" for index in range(len(rows))])


@pytest.fixture
def head():
    return Head(rows=[[1, 2, 3], [4, 5, 6]], class_names=("ant", "bee"))


def test_a_head_states_its_sizes_weight_and_bias(head):
    assert (head.num_classes, head.feature_dim) == (2, 2)
    assert head.weight.tolist() == [[1, 2], [4, 5]]
    assert head.bias.tolist() == [3, 6]


def test_rows_are_a_copy_and_cannot_be_written_to():
    source = np.ones((2, 3), dtype=np.float32)
    head = Head(rows=source, class_names=["ant", "bee"])
    before = head.fingerprint
    source[:] = 7

    assert head.rows.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert fingerprint(head.rows, head.class_names) == before
    for array in (head.rows, head.weight, head.bias):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@given(ROWS, st.data())
def test_one_other_bit_anywhere_gives_another_fingerprint(rows, data):
    row = data.draw(st.integers(0, rows.shape[0] - 1))
    column = data.draw(st.integers(0, rows.shape[1] - 1))
    bit = data.draw(st.integers(0, 31))
    other = rows.copy()
    other.view(np.uint32)[row, column] ^= np.uint32(1 << bit)
    names = [str(index) for index in range(len(rows))]

    assert fingerprint(rows, names) != fingerprint(other, names)


@given(ROWS)
def test_the_same_values_give_the_same_fingerprint_whatever_array_they_come_in(rows):
    expected = named(rows).fingerprint

    assert named(rows.astype(np.float64)).fingerprint == expected
    assert named(np.asfortranarray(rows)).fingerprint == expected
    assert named(np.repeat(rows, 2, axis=0)[::2]).fingerprint == expected
    assert fingerprint(rows.astype(">f4"), [f"class {index}" for index in range(len(rows))]) == expected


def test_names_order_and_shape_are_part_of_the_fingerprint():
    rows = np.arange(12, dtype=np.float32)
    names = ["a", "b", "c", "d", "e", "f"]
    heads = [
        (rows.reshape(4, 3), names[:4]),
        (rows.reshape(4, 3), ["a", "b", "d", "c"]),
        (rows.reshape(4, 3)[[0, 1, 3, 2]], names[:4]),
        (rows.reshape(4, 3), ["a", "b", "c", "D"]),
        (rows.reshape(4, 3), ["ab", "", "c", "d"]),
        (rows.reshape(4, 3), ["a", "b", "cd", ""]),
        (rows.reshape(3, 4), names[:3]),
        (rows.reshape(6, 2), names),
        (rows.reshape(2, 6), names[:2]),
        (-rows.reshape(4, 3), names[:4]),
    ]

    assert len({fingerprint(*head) for head in heads}) == len(heads)


def test_the_fingerprint_of_a_known_head_never_changes():
    # A device compares it with class updates made by other releases.
    head = Head(rows=[[0.5, -1.0, 2.0], [0.0, 3.25, -0.5]], class_names=("okapi", "Bärin"))

    assert head.fingerprint == "74c98e666d19260fc35f50ccb5bb1c72b56b4ef3de3203a5c93e1e09d2278d52"


def test_heads_are_equal_if_their_fingerprints_are(head):
    same = Head(rows=np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float64), class_names=["ant", "bee"])
    other = Head(rows=[[1, 2, 3], [4, 5, 7]], class_names=("ant", "bee"))

    assert head == same
    assert hash(head) == hash(same)
    assert head != other


def test_expanding_appends_rows_and_keeps_the_others_bit_for_bit(head):
    expanded = head.expand([[7, 8, 9]], ["cat"])

    assert expanded.class_names == ("ant", "bee", "cat")
    assert expanded.rows[:2].tobytes() == head.rows.tobytes()
    assert expanded.rows[2].tolist() == [7, 8, 9]
    assert head.num_classes == 2


def test_expanding_by_nothing_gives_an_equal_head(head):
    assert head.expand(np.empty((0, 3)), []) == head


@pytest.mark.parametrize(
    ("rows", "names", "error", "message"),
    [
        (
            [[7, 8]],
            ["cat"],
            IncompatibleError,
            r"New rows are 2 wide; this head's rows are 3 \(feature_dim 2 and a bias\)",
        ),
        ([[7, 8, 9]], ["bee"], ClassConflictError, r"Class 'bee' is named twice \(again at index 2\)"),
        ([[7, 8, 9]], ["cat", "dog"], IncompatibleError, r"The head has 3 rows but 4 class names were given"),
        ([[7, 8, np.nan]], ["cat"], IncompatibleError, r"The new rows hold nan at \(0, 2\)"),
        ([7, 8, 9], ["cat"], IncompatibleError, r"The new rows have shape \(3,\); expected 2 dimensions"),
    ],
)
def test_expanding_by_what_does_not_fit_is_refused(head, rows, names, error, message):
    with pytest.raises(error, match=f"^{message}"):
        head.expand(rows, names)


@pytest.mark.parametrize(
    ("rows", "names", "error", "message"),
    [
        (
            [[1, 2, 3]],
            ["ant", "bee"],
            IncompatibleError,
            r"The head has 1 rows but 2 class names were given; expected one",
        ),
        (
            np.zeros((2, 1)),
            ["ant", "bee"],
            IncompatibleError,
            r"The head's rows are 1 wide; expected at least one weight",
        ),
        (np.zeros((2, 0)), ["ant", "bee"], IncompatibleError, r"The head's rows are 0 wide"),
        ([[1, np.inf]], ["ant"], IncompatibleError, r"The head rows hold inf at \(0, 1\)"),
        ([[1, 2], [1, 2]], ["ant", "ant"], ClassConflictError, r"Class 'ant' is named twice"),
        ([[1, 2]], [""], ClassConflictError, r"Class 0 has an empty name"),
    ],
)
def test_what_is_no_head_is_refused(rows, names, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Head(rows=rows, class_names=names)


@given(ROWS)
def test_logits_are_features_times_weights_plus_bias_in_float64(rows):
    features = np.random.default_rng(0).normal(size=(3, rows.shape[1] - 1)).astype(np.float32)
    logits = named(rows).logits(features)

    expected = [
        [sum(float(f) * float(w) for f, w in zip(x, row[:-1], strict=True)) + float(row[-1]) for row in rows]
        for x in features
    ]
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-8)
