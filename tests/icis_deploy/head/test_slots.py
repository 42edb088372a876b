import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.errors import CapacityError, ClassConflictError, IncompatibleError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable, empty_slots

BASE = "0123456789abcdef" * 4
FEATURE_DIM = 3
SEEN = frozenset({"ant", "bee"})


def row_of(name, version=1):
    """A row that only this class and version has."""
    return np.random.default_rng([version, *name.encode()]).normal(size=FEATURE_DIM + 1).astype(np.float32)


def update_of(added=(), replaced=(), removed=(), version=1, *, arbiter=False):
    rows = [row_of(name, version) for name in (*added, *replaced)]
    return ClassUpdate(
        base_fingerprint=BASE,
        rows=np.array(rows, dtype=np.float32).reshape(len(rows), FEATURE_DIM + 1),
        added=added,
        replaced=replaced,
        removed=removed,
        version=version,
        arbiter=np.array([arbiter_of(name, version) for name in (*added, *replaced)]).reshape(-1, 5)
        if arbiter
        else None,
    )


def table_with(*names, capacity=4):
    return empty_slots(capacity, FEATURE_DIM).apply(update_of(added=names), seen_names=SEEN)


def arbiter_of(name, version=1):
    """Coefficients that only this class and version has; every third version has none."""
    return np.full(5, len(name) + ord(name[0]) / 100 + version, np.float32) * (version % 3 > 0)


def assert_obeys_its_rules(table):
    """Empty slots are empty, and names are unique."""
    empty = [index for index, name in enumerate(table.class_names) if name is None]
    assert not table.coefficients[empty].any()
    assert table.arbiter is None or table.arbiter.any()
    assert not table.weight[empty].any()
    assert (table.bias[empty] == np.float32(EMPTY_SLOT_BIAS)).all()
    assert len(set(table.filled_names)) == len(table.filled_names) == len(table.filled)


def test_an_empty_table_holds_no_class():
    table = empty_slots(5, FEATURE_DIM)

    assert (table.capacity, table.feature_dim) == (5, FEATURE_DIM)
    assert table.filled.tolist() == []
    assert table.filled_names == ()
    assert table.rows().shape == (0, FEATURE_DIM + 1)
    assert_obeys_its_rules(table)


def test_an_empty_slot_loses_against_any_class_even_in_float16():
    lowest_of_trained_heads = -1e3
    features = np.random.default_rng(0).uniform(-1e4, 1e4, size=(8, FEATURE_DIM)).astype(np.float16)
    logits = features @ empty_slots(2, FEATURE_DIM).weight.T.astype(np.float16) + np.float16(EMPTY_SLOT_BIAS)

    assert np.isfinite(logits).all()
    assert (logits < lowest_of_trained_heads).all()


def test_added_classes_take_the_lowest_empty_slots_in_the_order_of_the_update():
    table = table_with("cat", "dog", "elk").apply(update_of(removed=["cat"]), seen_names=SEEN)
    table = table.apply(update_of(added=["fox", "gnu"]), seen_names=SEEN)

    assert table.class_names == ("fox", "dog", "elk", "gnu")
    assert table.filled.tolist() == [0, 1, 2, 3]


def test_a_replaced_class_keeps_its_slot_and_gets_its_new_row():
    table = table_with("cat", "dog").apply(update_of(replaced=["dog"], version=2), seen_names=SEEN)

    assert table.class_names == ("cat", "dog", None, None)
    np.testing.assert_array_equal(table.rows(), [row_of("cat"), row_of("dog", 2)])


def test_one_update_frees_slots_before_it_fills_them():
    table = table_with("cat", "dog", "elk", "fox").apply(
        update_of(added=["gnu"], replaced=["fox"], removed=["dog"], version=2), seen_names=SEEN
    )

    assert table.class_names == ("cat", "gnu", "elk", "fox")
    np.testing.assert_array_equal(table.rows(), [row_of("cat"), row_of("gnu", 2), row_of("elk"), row_of("fox", 2)])


def test_applying_leaves_the_old_table_as_it_was():
    old = table_with("cat")
    weight, bias, names = old.weight.copy(), old.bias.copy(), old.class_names
    old.apply(update_of(added=["dog"], removed=["cat"]), seen_names=SEEN)

    np.testing.assert_array_equal(old.weight, weight)
    np.testing.assert_array_equal(old.bias, bias)
    assert old.class_names == names


def test_the_rows_of_a_table_expand_a_head():
    head = Head(rows=np.zeros((2, FEATURE_DIM + 1)), class_names=("ant", "bee"))
    table = table_with("cat", "dog").apply(update_of(removed=["cat"]), seen_names=SEEN)
    expanded = head.expand(table.rows(), table.filled_names)

    assert expanded.class_names == ("ant", "bee", "dog")
    np.testing.assert_array_equal(expanded.rows[2], row_of("dog"))


NAMES = ["cat", "dog", "elk", "fox", "gnu", "hen", "ibex"]


@st.composite
def possible_updates(draw, inside, capacity):
    """An update that a table of `capacity` slots with the classes `inside` must take."""
    inside = list(inside)
    removed = draw(st.lists(st.sampled_from(inside), unique=True)) if inside else []
    kept = [name for name in inside if name not in removed]
    replaced = draw(st.lists(st.sampled_from(kept), unique=True)) if kept else []
    outside = [name for name in NAMES if name not in inside]
    free = capacity - len(kept)
    added = draw(st.lists(st.sampled_from(outside), unique=True, max_size=free)) if free and outside else []
    return added, replaced, removed


@given(st.data(), st.integers(1, 5))
def test_after_any_updates_every_class_that_was_put_in_last_has_its_own_row(data, capacity):
    table, expected, arbiters = empty_slots(capacity, FEATURE_DIM), {}, {}
    for version in range(1, 6):
        added, replaced, removed = data.draw(possible_updates(expected, capacity))
        if not (added or replaced or removed):
            continue
        before = {name: index for index, name in enumerate(table.class_names)}
        has_arbiter = data.draw(st.booleans())
        table = table.apply(update_of(added, replaced, removed, version, arbiter=has_arbiter), seen_names=SEEN)
        for name in removed:
            del expected[name], arbiters[name]
        expected |= {name: row_of(name, version) for name in (*added, *replaced)}
        arbiters |= {name: arbiter_of(name, version) * has_arbiter for name in (*added, *replaced)}

        assert_obeys_its_rules(table)
        assert table.capacity == capacity
        found = dict(zip(table.filled_names, table.rows(), strict=True))
        assert found.keys() == expected.keys()
        for name, row in expected.items():
            np.testing.assert_array_equal(found[name], row)
            np.testing.assert_array_equal(table.coefficients[table.class_names.index(name)], arbiters[name])
        stayed = [name for name in expected if name not in added]
        assert {name: table.class_names.index(name) for name in stayed} == {name: before[name] for name in stayed}


@given(st.data(), st.integers(1, 5))
def test_adding_and_removing_the_same_classes_gives_an_empty_table_again(data, capacity):
    names = data.draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=capacity))
    table = table_with(*names, capacity=capacity).apply(update_of(removed=names), seen_names=SEEN)

    assert table == empty_slots(capacity, FEATURE_DIM)


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        (
            update_of(added=["cat"]),
            ClassConflictError,
            r"The class update adds 'cat', which the head already knows\. Replace or remove it instead\.",
        ),
        (update_of(added=["dog", "bee"]), ClassConflictError, r"The class update adds 'bee', which the head already"),
        (
            update_of(replaced=["dog"]),
            ClassConflictError,
            r"The class update replaces or removes 'dog', which is in no slot\.",
        ),
        (update_of(removed=["dog"]), ClassConflictError, r"The class update replaces or removes 'dog', which is in no"),
        (
            update_of(removed=["dog", "ant"]),
            ClassConflictError,
            r"The class update replaces or removes 'ant', which is baked into the head and cannot be changed\.",
        ),
        (update_of(replaced=["bee"]), ClassConflictError, r"The class update replaces or removes 'bee', which is"),
        (
            update_of(added=["dog", "elk", "fox", "gnu"]),
            CapacityError,
            r"The class update adds 4 classes; 4 slots, 1 used\. Remove classes first, .* `compact\(\)` on the "
            r"workbench and hand the new bundle over\.",
        ),
        (
            ClassUpdate(base_fingerprint=BASE, rows=np.ones((1, FEATURE_DIM)), added=["dog"]),
            IncompatibleError,
            r"The class update's rows are for feature_dim 2; this head has 3\.",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_refused_and_changes_nothing(update, error, message):
    table = table_with("cat")

    with pytest.raises(error, match=f"^{message}"):
        table.apply(update, seen_names=SEEN)
    assert table == table_with("cat")


def test_arrays_are_copies_and_cannot_be_written_to():
    weight, bias = np.ones((1, 2), np.float32), np.ones(1, np.float32)
    table = SlotTable(weight=weight, bias=bias, class_names=["cat"])
    weight[:], bias[:] = 7, 7

    assert table.rows().tolist() == [[1, 1, 1]]
    for array in (table.weight, table.bias, table_with("cat").weight, empty_slots(1, 2).bias):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("weight", "bias", "names", "error", "message"),
    [
        (
            np.ones((2, 2)),
            [1],
            ["cat"],
            IncompatibleError,
            r"The slot table has 2 weights, 1 biases and 1 names; expected one of each per slot\.",
        ),
        (np.ones((1, 2)), [1], ["cat", None], IncompatibleError, r"The slot table has 1 weights, 1 biases and 2 names"),
        ([[np.nan]], [1], ["cat"], IncompatibleError, r"The slot weights hold nan at \(0, 0\)"),
        ([[1]], [np.inf], ["cat"], IncompatibleError, r"The slot biases hold inf at \(0,\)"),
        ([1], [1], ["cat"], IncompatibleError, r"The slot weights have shape \(1,\); expected 2 dimensions"),
        (np.ones((3, 2)), [1, 1, 1], ["cat", None, "cat"], ClassConflictError, r"Class 'cat' is named twice"),
    ],
)
def test_what_is_no_slot_table_is_refused(weight, bias, names, error, message):
    with pytest.raises(error, match=f"^{message}"):
        SlotTable(weight=weight, bias=bias, class_names=names)


# Slots with an arbiter.


def test_without_a_class_its_slot_is_empty_and_the_table_stays_as_it_was():
    table = table_with("cat", "dog")
    left = table.without(("cat", "no such class"))

    assert left.class_names[:2] == (None, "dog")
    assert (left.filled_names, left.slot_of) == (("dog",), {"dog": 1})
    assert not left.weight[0].any()
    assert left.bias[0] == np.float32(EMPTY_SLOT_BIAS)
    assert table == table_with("cat", "dog")
    assert table.without(("no such class",)) is table


def test_a_table_without_coefficients_has_no_arbiter_and_gives_zeros():
    table = table_with("cat")
    zeros = SlotTable(weight=table.weight, bias=table.bias, class_names=table.class_names, arbiter=np.zeros((4, 5)))

    assert table.arbiter is None
    assert zeros == table
    assert table.coefficients.shape == (4, 5)
    assert not table.coefficients.any()


def test_leaving_a_class_out_takes_its_coefficients_and_no_others():
    table = empty_slots(4, FEATURE_DIM).apply(update_of(["cat", "dog"], arbiter=True), seen_names=SEEN)
    fewer = table.without({"cat"})

    assert not fewer.coefficients[0].any()
    np.testing.assert_array_equal(fewer.coefficients[1], arbiter_of("dog"))
    assert fewer.without({"dog"}).arbiter is None
    assert table.coefficients[0].any()


def test_coefficients_are_copies_and_cannot_be_written_to():
    arbiter = np.ones((1, 5), np.float32)
    table = SlotTable(weight=np.ones((1, 2)), bias=[1], class_names=["cat"], arbiter=arbiter)
    arbiter[:] = 7
    applied = empty_slots(2, FEATURE_DIM).apply(update_of(["cat"], arbiter=True), seen_names=SEEN)

    assert table.arbiter.tolist() == [[1] * 5]
    for array in (table.arbiter, applied.arbiter, empty_slots(1, 2).coefficients):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("arbiter", "message"),
    [
        (np.ones((2, 5)), r"The arbiters of the slots have shape \(2, 5\); expected \(1, 5\): 5 coefficients for each"),
        (np.ones((1, 4)), r"have shape \(1, 4\); expected \(1, 5\)"),
        (np.ones(5), r"have shape \(5,\); expected 2 dimensions"),
        (np.full((1, 5), np.nan), r"hold nan at \(0, 0\)"),
    ],
)
def test_coefficients_that_do_not_fit_their_slots_are_refused(arbiter, message):
    with pytest.raises(IncompatibleError, match=message):
        SlotTable(weight=np.ones((1, 2)), bias=[1], class_names=["cat"], arbiter=arbiter)
