from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.common.json_fields import (
    integer_from_json,
    json_from_time,
    list_from_json,
    names_from_json,
    object_from_json,
    text_from_json,
    time_from_json,
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
