from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.common.json_fields import (
    boolean_from_json,
    dataclass_from_json,
    has_more_values,
    integer_from_json,
    json_from_time,
    list_from_json,
    load_strict,
    mapping_from_json,
    names_from_json,
    number_from_json,
    object_from_json,
    text_from_json,
    time_from_json,
    tuple_from_json,
)


@given(st.datetimes(timezones=st.timezones()))
def test_times_come_back_in_utc_to_the_second(time):
    try:
        expected = time.astimezone(timezone.utc).replace(microsecond=0)
    except OverflowError:  # the first and the last hours of the calendar have no time in UTC
        return
    assert time_from_json(json_from_time(time)) == expected


def test_a_time_is_written_in_one_form():
    time = datetime(26, 1, 2, 3, 4, 5, 999999, tzinfo=timezone(timedelta(hours=1)))

    assert json_from_time(time) == "0026-01-02T02:04:05Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T09:00:00",
        "2026-11-23 09:00:00Z",
        "2026-11-23T09:00:00z",
        "2026-13-23T09:00:00Z",
        "20261123T090000.00Z",
        "",
    ],
)
def test_other_forms_of_a_time_are_refused(text):
    with pytest.raises(ValueError, match=r"has not the form|month must be|Invalid isoformat"):
        time_from_json(text)


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (text_from_json, ["", "a"], [None, 1, ["a"]]),
        (boolean_from_json, [True, False], [0, 1, "true", None]),
        (number_from_json, [0, -1.5], [True, "1", None]),
        (integer_from_json, [0, -1, 10**30], [True, 1.0, "1", None]),
        (list_from_json, [[], [1]], [(), {}, "ab", None]),
        (object_from_json, [{}, {"a": 1}], [[], "ab", None]),
        (names_from_json, [[], ["a", "b"]], ["ab", [1], [None], {"a": 1}, None]),
    ],
)
def test_only_the_right_type_passes(read, good, bad):
    for value in good:
        assert read(value) == (tuple(value) if read is names_from_json else value)
    for value in bad:
        with pytest.raises(TypeError):
            read(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 1}', "a key occurs twice in an object"),
        (b'[{"a": {"b": 1, "b": 2}}]', "a key occurs twice in an object"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"\xef\xbb\xbf{}", "Expecting value"),
        ("{}".encode("utf-16"), "can't decode byte"),
        (b'"\xed\xa0\x80"', "can't decode byte"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
    ],
    ids=repr,
)
def test_what_two_readers_could_read_differently_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        load_strict(data)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_values_nested_without_end_are_a_value_that_is_refused_like_any_other(text):
    for data in (text, text.encode()):
        with pytest.raises(ValueError, match="nested too deeply"):
            load_strict(data)


def test_json_is_read_from_bytes_as_from_text():
    assert load_strict('{"ä": [1, 2.5, null, true]}') == {"ä": [1, 2.5, None, True]}
    assert load_strict('{"ä": [1, 2.5, null, true]}'.encode()) == {"ä": [1, 2.5, None, True]}


@pytest.mark.parametrize("text", ["1e999", "-1e999", "1" + "0" * 400])
def test_a_number_that_no_float_can_hold_is_refused(text):
    with pytest.raises(OverflowError):
        number_from_json(load_strict(text))


@dataclass(frozen=True, kw_only=True)
class Size:
    width: int
    height: int


READ_SIZE = partial(dataclass_from_json, Size, readers={"width": integer_from_json, "height": integer_from_json})


def test_values_inside_others_are_read_by_their_own_readers():
    sizes = tuple_from_json([{"width": 1, "height": 2}], read=READ_SIZE)

    assert sizes == (Size(width=1, height=2),)
    assert mapping_from_json({"a": {"width": 1, "height": 2}}, read=READ_SIZE) == {"a": sizes[0]}


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"width": 1}, ValueError, r"^the file\[1\] lacks \['height'\]$"),
        ({"width": 1, "height": 2, "x": 3}, ValueError, r"^the file\[1\] has the unknown \['x'\]$"),
        ({"w": 1, "height": 2}, ValueError, r"^the file\[1\] lacks \['width'\] and has the unknown \['w'\]$"),
        ({"width": 1, "height": True}, TypeError, r"^the file\[1\]\.height: expected a whole number, found True$"),
        ([1, 2], TypeError, r"^the file\[1\]: expected an object, found a list$"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(value, error, message):
    with pytest.raises(error, match=message):
        tuple_from_json([{"width": 1, "height": 2}, value], read=READ_SIZE, where="the file")


@pytest.mark.parametrize("data", [b"[1,2,[],{}]", "[1,2,[],{}]"])
def test_values_are_counted_before_any_is_made(data):
    assert load_strict(data, max_values=6) == [1, 2, [], {}]
    with pytest.raises(ValueError, match=r"^it holds more than 5 JSON values$"):
        load_strict(data, max_values=5)


def test_a_file_of_as_many_bytes_as_values_is_not_searched():
    assert not has_more_values(b"[[[", 3)
    assert has_more_values(b"[[[", 2)


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_lists_and_objects_are_within_each_other_to_a_depth_that_is_the_same_everywhere(start, end):
    load_strict(start * 255 + "[]" + end * 255)
    with pytest.raises(ValueError, match=r"^its values are nested too deeply$"):
        load_strict(start * 256 + "[]" + end * 256)
    assert load_strict(f"[{'[],' * 3000}[]]") == [[]] * 3001
