from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from icis_deploy.common.arrays import frozen_float32, owns_its_frozen_memory, same_value
from icis_deploy.errors import IncompatibleError

FINITE = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0), elements=st.floats(-1e30, 1e30))


@given(FINITE)
def test_the_copy_is_float32_contiguous_and_read_only(values):
    frozen = frozen_float32(values.T, name="rows", ndim=2)

    np.testing.assert_array_equal(frozen, values.T.astype(np.float32))
    assert frozen.dtype == np.float32
    assert frozen.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        frozen[...] = 0


@pytest.mark.parametrize("freeze_source", [False, True], ids=["writeable", "read-only view"])
def test_writing_to_the_source_does_not_change_the_copy(freeze_source):
    memory = np.ones((2, 3), dtype=np.float32)
    source = memory.view()
    source.flags.writeable = not freeze_source

    frozen = frozen_float32(source, name="rows", ndim=2)
    memory[:] = 7

    np.testing.assert_array_equal(frozen, np.ones((2, 3)))


def test_a_frozen_array_is_shared_and_not_copied_again():
    frozen = frozen_float32([[1.0, 2.0]], name="rows", ndim=2)

    assert owns_its_frozen_memory(frozen)
    assert frozen_float32(frozen, name="rows", ndim=2) is frozen


def test_a_view_of_a_frozen_array_is_not_taken_for_one_that_owns_its_memory():
    frozen = frozen_float32(np.eye(4), name="rows", ndim=2)

    assert not owns_its_frozen_memory(frozen[:2])
    assert not owns_its_frozen_memory(frozen.T)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, np.float64])
def test_any_real_numbers_are_taken(dtype):
    assert frozen_float32(np.ones((1, 2), dtype=dtype), name="rows", ndim=2).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"The rows have shape \(3,\); expected 2 dimensions\."),
        (np.zeros((1, 2, 3)), r"The rows have shape \(1, 2, 3\); expected 2 dimensions\."),
        ([[1.0, np.nan]], r"The rows hold nan at \(0, 1\); every value must be a finite float32\."),
        ([[1.0], [-np.inf]], r"The rows hold -inf at \(1, 0\);"),
        ([[1e39]], r"The rows hold inf at \(0, 0\);"),
        ([[1.0, 2.0], [3.0]], r"The rows are no array of 2 dimensions: "),
        ([["1", "2"]], r"The rows have type <U1; expected real numbers\."),
        ([[1j]], r"The rows have type complex128; expected real numbers\."),
        ([[None]], r"The rows have type object; expected real numbers\."),
    ],
)
def test_what_is_no_finite_real_array_is_refused(values, message):
    with pytest.raises(IncompatibleError, match=f"^{message}"):
        frozen_float32(values, name="rows", ndim=2)


@dataclass
class Pair:
    array: np.ndarray
    name: str


def test_values_are_the_same_if_every_field_is_and_arrays_are_bit_for_bit():
    pair = Pair(np.array([0.0, 1.0]), "a")

    assert same_value(pair, Pair(np.array([0.0, 1.0]), "a"))
    assert not same_value(pair, Pair(np.array([-0.0, 1.0]), "a"))
    assert not same_value(pair, Pair(np.array([[0.0, 1.0]]), "a"))
    assert not same_value(pair, Pair(np.array([0.0, 1.0]), "b"))
    assert not same_value(pair, "a")
    assert not same_value(pair, Pair(None, "a"))
    assert not same_value(Pair(None, "a"), pair)
    assert same_value(Pair(None, "a"), Pair(None, "a"))


def test_only_memory_that_nobody_can_write_to_is_shared():
    writable = np.zeros((2, 3), np.float32)
    view = writable[:]
    view.flags.writeable = False
    over_bytes = np.frombuffer(bytes(24), np.float32).reshape(2, 3)

    assert frozen_float32(view, name="rows", ndim=2) is not view
    assert frozen_float32(over_bytes, name="rows", ndim=2) is over_bytes
    assert frozen_float32(np.frombuffer(bytearray(24), np.float32).reshape(2, 3), name="rows", ndim=2).base is None
