import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from icis_deploy.bundle.slot_files import parse_slots, serialize_slots
from icis_deploy.errors import CorruptFileError
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable, empty_slots

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def tables(draw):
    capacity, feature_dim = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    filled = sorted(draw(st.sets(st.integers(0, capacity - 1))))
    names = draw(st.lists(NAMES, unique=True, min_size=len(filled), max_size=len(filled)))
    rows = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(len(filled), feature_dim + 1))
    table = table_of(capacity, feature_dim, dict(zip(filled, zip(names, rows, strict=True), strict=True)))
    arbiter = np.zeros((capacity, 5), np.float32)
    arbiter[filled] = np.random.default_rng(0).normal(size=(len(filled), 5)) * draw(st.sampled_from([0, 1]))
    return replace(table, arbiter=arbiter)


def table_of(capacity, feature_dim, filled):
    weight = np.zeros((capacity, feature_dim), np.float32)
    bias = np.full(capacity, EMPTY_SLOT_BIAS, np.float32)
    class_names = [None] * capacity
    for slot, (name, row) in filled.items():
        weight[slot], bias[slot], class_names[slot] = row[:-1], row[-1], name
    return SlotTable(weight=weight, bias=bias, class_names=class_names)


@pytest.fixture
def table():
    return table_of(4, 2, {1: ("okapi", [1, 2, 3]), 3: ("Bärin", [4, 5, 6])})


def parse_as(table, data):
    return parse_slots(data, capacity=table.capacity, feature_dim=table.feature_dim)


def bytes_with(table, tensors=None, **changes):
    """The bytes of `table` with some metadata fields changed."""
    data = serialize_slots(table)
    (size,) = struct.unpack_from("<Q", data)
    fields = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["slot_table"]) | changes
    return save(
        tensors_of(table) if tensors is None else tensors,
        metadata={"slot_table": json.dumps(fields, sort_keys=True)},
    )


def tensors_of(table, **changes):
    return {
        "rows": table.rows(),
        **({} if table.arbiter is None else {"arbiter": table.arbiter[table.filled]}),
        **changes,
    }


@given(tables())
def test_parsing_gives_back_what_was_serialized(table):
    data = serialize_slots(table)

    assert parse_as(table, data) == table
    assert serialize_slots(parse_as(table, data)) == data


@given(tables())
def test_the_bytes_are_those_of_safetensors_own_writer(table):
    assert serialize_slots(table) == bytes_with(table)


def test_the_size_grows_with_the_classes_and_not_with_the_capacity():
    small, large = (len(serialize_slots(empty_slots(capacity, 512))) for capacity in (1, 10_000))

    assert large == pytest.approx(small, abs=16)


def test_arrays_that_were_read_cannot_be_written_to(table):
    parsed = parse_as(table, serialize_slots(table))
    for array in (parsed.weight, parsed.bias):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_every_truncation_is_refused(table):
    data = serialize_slots(table)
    for length in range(len(data)):
        with pytest.raises(CorruptFileError, match=r"^The slot table is damaged: .* Fetch the bundle again\."):
            parse_as(table, data[:length])


def refusal_or_none(data):
    try:
        parse_slots(data, capacity=3, feature_dim=2)
    except CorruptFileError as error:
        return str(error)
    return None


@given(st.data())
def test_damaged_bytes_are_refused_or_give_a_valid_table_but_never_crash(data):
    damaged = bytearray(serialize_slots(table_of(3, 2, {0: ("okapi", [1, 2, 3]), 2: ("quoll", [4, 5, 6])})))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    refusal = refusal_or_none(bytes(damaged))
    assert refusal is None or refusal.startswith("The slot table is damaged: ")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(CorruptFileError, match=r"^The slot table is damaged: "):
        parse_slots(data, capacity=3, feature_dim=2)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": 3},
        {"schema_version": True},
        {"schema_version": 1.0},
        {"class_names": ["okapi"]},
        {"class_names": ["okapi", 1]},
        {"class_names": "ab"},
        {"class_names": ["okapi", "okapi"]},
        {"class_names": ["okapi", "\ud800"]},
        {"slots": [3, 1]},
        {"slots": [1, 1]},
        {"slots": [1, 4]},
        {"slots": [-1, 3]},
        {"slots": [1, True]},
        {"capacity": 3},
        {"capacity": -1},
        {"capacity": 1e9},
        {"capacity": 1 << 40},
        {"capacity": None},
    ],
    ids=str,
)
def test_metadata_that_contradict_the_rows_are_refused(table, change):
    with pytest.raises(CorruptFileError, match=r"^The slot table is damaged: "):
        parse_as(table, bytes_with(table, **change))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": np.zeros((2, 3), np.float32)},
        {"rows": np.zeros((2, 3))},
        {"rows": np.zeros((3, 3), np.float32)},
        {"rows": np.zeros(2, np.float32)},
        {"rows": np.full((2, 3), np.nan, np.float32)},
    ],
    ids=["none", "another name", "float64", "too many", "one dimension", "NaN"],
)
def test_other_tensors_are_refused(table, tensors):
    with pytest.raises(CorruptFileError, match=r"^The slot table is damaged: "):
        parse_as(table, bytes_with(table, tensors))


@pytest.mark.parametrize("sizes", [{"capacity": 5}, {"feature_dim": 3}, {"capacity": 1 << 40}])
def test_a_table_of_another_head_is_refused_before_it_takes_memory(table, sizes):
    wanted = {"capacity": table.capacity, "feature_dim": table.feature_dim} | sizes
    with pytest.raises(CorruptFileError, match=r"it has 4 slots and rows of shape \(2, 3\); expected"):
        parse_slots(serialize_slots(table), **wanted)


# Schema 2: slots with an arbiter.


@pytest.fixture
def arbitrated(table):
    arbiter = np.zeros((4, 5), np.float32)
    arbiter[3] = [1, -2, 0, 0.5, 7]
    return replace(table, arbiter=arbiter)


def test_only_a_table_with_an_arbiter_is_of_schema_2(table, arbitrated):
    assert b'schema_version\\": 1' in serialize_slots(table)
    assert b'schema_version\\": 2' in serialize_slots(arbitrated)
    assert serialize_slots(replace(arbitrated, arbiter=np.zeros((4, 5)))) == serialize_slots(table)
    np.testing.assert_array_equal(parse_as(table, serialize_slots(arbitrated)).arbiter, arbitrated.arbiter)


@pytest.mark.parametrize(
    "changes",
    [
        {"arbiter": np.zeros((4, 5), np.float32)},
        {"arbiter": np.zeros((2, 4), np.float32)},
        {"arbiter": np.zeros((2, 5))},
        {"arbiter": np.full((2, 5), np.nan, np.float32)},
        {"more": np.zeros(1, np.float32)},
    ],
    ids=["one for each slot", "four numbers", "float64", "NaN", "another tensor"],
)
def test_an_arbiter_that_does_not_fit_its_slots_is_refused(changes, arbitrated):
    with pytest.raises(CorruptFileError, match=r"^The slot table is damaged: "):
        parse_as(arbitrated, bytes_with(arbitrated, tensors_of(arbitrated, **changes)))


def test_a_schema_without_its_own_tensors_is_refused(table, arbitrated):
    with pytest.raises(CorruptFileError, match=r"it holds the tensors .*arbiter.*; one of schema 1 has \['rows'\]"):
        parse_as(table, bytes_with(arbitrated, schema_version=1))
    with pytest.raises(CorruptFileError, match=r"one of schema 2 has \['arbiter', 'rows'\]"):
        parse_as(table, bytes_with(table, schema_version=2))
