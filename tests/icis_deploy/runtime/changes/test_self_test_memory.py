"""The comparison of a runtime's memory with what a change wrote: every number of every slot, to its last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.errors import SelfTestError
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, empty_slots
from icis_deploy.runtime.changes.self_test import Written, verify_loaded
from icis_deploy.runtime.sessions.protocol import SlotBuffers, SlotContents
from testing.bundles import FEATURE_DIM, make_update

CAPACITY = 6


class Memory:
    """A runtime that holds arrays, as they are or copied, and shows them."""

    def __init__(self, *, copies):
        self._copies = copies

    def load_slots(self, weight, bias, arbiter=None):
        given = (weight, bias, arbiter)
        return SlotBuffers(
            **{
                name: array.copy() if self._copies and array is not None else array
                for name, array in zip(("weight", "bias", "arbiter"), given, strict=True)
            }
        )

    def read_slots(self, slots):
        return SlotContents(slots.weight, slots.bias, slots.arbiter)


def arbiters(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "arbiter"])
def change(request):
    """The table before, the update, and the table after: one class kept, one replaced, one removed, two added."""
    has_arbiter = request.param
    first = make_update("kept", "old", "gone", arbiter=arbiters(3, 1) if has_arbiter else None)
    update = make_update(
        "a", "b", replaced=("old",), removed=("gone",), seed=2, arbiter=arbiters(3, 2) if has_arbiter else None
    )
    before = empty_slots(CAPACITY, FEATURE_DIM).apply(first, seen_names=frozenset())
    return before, update, before.apply(update, seen_names=frozenset())


def written(before, update):
    return Written(before, update.class_names, update.rows, update.arbiter)


def parts_of(table):
    return {"weight": table.weight.copy(), "bias": table.bias.copy(), "arbiter": table.coefficients.copy()}


@pytest.mark.parametrize("copies", [False, True])
def test_what_a_change_wrote_passes(change, copies):
    before, update, after = change
    memory = Memory(copies=copies)
    assert verify_loaded(memory, after, memory.load_slots(*parts_of(after).values()), written=written(before, update))
    assert verify_loaded(memory, after, memory.load_slots(*parts_of(after).values()))


@pytest.mark.parametrize("is_in_table", [False, True], ids=["in the runtime", "in the table too"])
@settings(max_examples=60, deadline=None)
@given(slot=st.integers(0, CAPACITY - 1), column=st.integers(0, FEATURE_DIM), bit=st.integers(0, 31))
def test_every_bit_of_every_slot_is_seen(change, is_in_table, slot, column, bit):
    before, update, after = change
    parts = parts_of(after)
    array, index = (parts["bias"], slot) if column == FEATURE_DIM else (parts["weight"], (slot, column))
    array.view(np.uint32)[index] ^= np.uint32(1 << bit)
    refuses(before, update, after, parts, slot, is_in_table=is_in_table)


@pytest.mark.parametrize("is_in_table", [False, True], ids=["in the runtime", "in the table too"])
@pytest.mark.parametrize("value", [np.nan, 1e-30, 7.0])
@pytest.mark.parametrize("slot", range(CAPACITY))
def test_every_coefficient_of_every_slot_is_seen(change, is_in_table, value, slot):
    before, update, after = change
    for column in range(5):
        parts = parts_of(after)
        parts["arbiter"][slot, column] = value
        refuses(before, update, after, parts, slot, is_in_table=is_in_table)


def test_the_sign_of_a_zero_in_an_empty_slot_is_seen(change):
    before, update, after = change
    parts = parts_of(after)
    parts["weight"][CAPACITY - 1, 0] = -0.0
    refuses(before, update, after, parts, CAPACITY - 1, is_in_table=True)


def refuses(before, update, after, parts, slot, *, is_in_table):
    """Check that one wrong slot is named: in memory next to a good table, or in a table that the runtime reads."""
    name = after.class_names[slot] or f"(empty slot {slot})"
    memory, table = Memory(copies=True), after
    if is_in_table:
        table = object.__new__(type(after))
        for field in ("class_names", "filled", "filled_names", "slot_of"):
            object.__setattr__(table, field, getattr(after, field))
        for field, array in parts.items():
            object.__setattr__(table, field, array)
        memory = Memory(copies=False)
        verify_loaded(memory, table, memory.load_slots(*parts.values()))  # the table alone cannot tell
    with pytest.raises(SelfTestError, match=r"^1 of 6 slots do not hold their rows") as caught:
        verify_loaded(memory, table, memory.load_slots(*parts.values()), written=written(before, update))
    assert caught.value.where == name


@pytest.mark.parametrize("name", ["weight", "bias", "arbiter"])
def test_a_copy_is_compared_with_the_table_where_nothing_was_written(change, name):
    after = change[2]
    parts, memory = parts_of(after), Memory(copies=True)
    parts[name].reshape(CAPACITY, -1)[2, 0] += 1
    with pytest.raises(SelfTestError, match=r"^1 of 6 slots"):
        verify_loaded(memory, after, memory.load_slots(*parts.values()))


def test_exchanged_rows_are_seen(change):
    before, update, after = change
    parts = parts_of(after)
    for array in parts.values():
        array[[1, 2]] = array[[2, 1]]
    memory = Memory(copies=True)
    with pytest.raises(SelfTestError, match=r"^2 of 6 slots"):
        verify_loaded(memory, after, memory.load_slots(*parts.values()), written=written(before, update))


@pytest.mark.parametrize("part", ["weight", "bias", "arbiter"])
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "after")], ids=["last", "between others"])
def test_a_slot_that_was_emptied_and_kept_a_part_of_its_row_is_seen(part, names):
    before = empty_slots(CAPACITY, FEATURE_DIM).apply(
        make_update(*names, arbiter=arbiters(len(names), 1)), seen_names=frozenset()
    )
    update = make_update("c", removed=("a", "b"), seed=2)
    after = before.apply(update, seen_names=frozenset())
    parts = parts_of(after)
    memory = Memory(copies=False)
    assert parts["bias"][1] == EMPTY_SLOT_BIAS
    assert verify_loaded(memory, after, memory.load_slots(*parts.values()), written=written(before, update))
    parts[part][1] = getattr(before, part)[1]
    refuses(before, update, after, parts, 1, is_in_table=True)


def test_coefficients_that_a_model_cannot_take_are_seen(change):
    before, update, after = change
    memory = Memory(copies=True)
    buffers = memory.load_slots(after.weight, after.bias)
    if after.arbiter is None:
        assert verify_loaded(memory, after, buffers, written=written(before, update))
    else:
        with pytest.raises(SelfTestError, match=r"^4 of 6 slots"):
            verify_loaded(memory, after, buffers, written=written(before, update))


def test_a_negative_zero_of_a_coefficient_is_none():
    update = make_update("a", arbiter=np.array([[-0.0, 0, 0, 0, 0]], dtype=np.float32))
    before = empty_slots(CAPACITY, FEATURE_DIM)
    after = before.apply(update, seen_names=frozenset())
    memory = Memory(copies=False)
    buffers = memory.load_slots(after.weight, after.bias, after.coefficients)
    assert verify_loaded(memory, after, buffers, written=written(before, update))


def test_a_runtime_that_shows_nobody_its_slots_is_not_asked(change):
    class Closed(Memory):
        def read_slots(self, slots):
            return None

    assert not verify_loaded(
        Closed(copies=True), change[2], SlotBuffers(weight=None, bias=None, arbiter=None), written=None
    )
