"""Values as JSON and back, by the types of their fields."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest

from benchmarks.results.json_values import json_from_value, value_from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    kind: Literal["good", "bad"]
    parts: tuple[Part, ...]
    by_name: Mapping[str, int]
    note: str | None
    free: object

    DERIVED: ClassVar = ("num_parts",)

    @property
    def num_parts(self) -> int:
        return len(self.parts)


WHOLE = Whole(
    kind="good", parts=(Part(name="a", width=1.5),), by_name={"x": 1}, note=None, free={"any": [1, "thing", None]}
)


def written():
    return json.loads(json.dumps(json_from_value(WHOLE), allow_nan=False))


def test_a_value_comes_back_as_it_was():
    assert value_from_json(Whole, written()) == WHOLE


def test_what_follows_from_the_fields_is_written_but_not_believed():
    values = written()
    assert values["num_parts"] == 1
    values["num_parts"] = 7

    assert value_from_json(Whole, values).num_parts == 1


def test_an_unbounded_number_is_null_and_comes_back_unbounded():
    part = Part(name="a", width=math.inf)
    values = json.loads(json.dumps(json_from_value(part), allow_nan=False))

    assert values["width"] is None
    assert value_from_json(Part, values) == part


def test_a_whole_number_may_stand_for_a_float_and_becomes_one():
    width = value_from_json(Part, {"name": "a", "width": 2}).width

    assert (width, type(width)) == (2.0, float)


def test_numbers_of_numpy_are_written_where_they_are_floats():
    assert json_from_value(Part(name="a", width=np.float64(0.5)))["width"] == 0.5
    with pytest.raises(TypeError, match="int64 has no form in JSON"):
        json_from_value(Part(name="a", width=np.int64(1)))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="a number is NaN"):
        json_from_value(Part(name="a", width=math.nan))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "ugly"}, TypeError, r"the result\.kind is 'ugly'; expected one of \['good', 'bad'\]"),
        ({"parts": {}}, TypeError, r"the result\.parts: expected a list, found an object"),
        ({"parts": [{"name": "a"}]}, ValueError, r"the result\.parts\[0\] lacks \['width'\]"),
        ({"parts": [{"name": "a", "width": True}]}, TypeError, r"parts\[0\]\.width: expected a number, found True"),
        ({"parts": [{"name": 3, "width": 1.0}]}, TypeError, r"parts\[0\]\.name: expected a text, found 3"),
        ({"by_name": {"x": True}}, TypeError, r"the result\.by_name\.x: expected a whole number, found True"),
        ({"by_name": {"x": 1.5}}, TypeError, r"the result\.by_name\.x: expected a whole number, found 1.5"),
        ({"note": 1}, TypeError, r"the result\.note: expected a text, found 1"),
        ({"more": 1}, ValueError, r"the result has the unknown \['more'\]"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change, error, message):
    with pytest.raises(error, match=message):
        value_from_json(Whole, written() | change)
