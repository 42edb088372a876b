"""A result's file: the values, the bytes, and the schema for other languages agree."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from benchmarks.results.result import Result, images_per_s, load_result, parse_result, save_result, serialize_result
from benchmarks.results.schema import field_docstrings, result_schema
from icis_deploy.errors import LoadError

REAL_RESULTS = sorted(Path(__file__).parent.glob("*.json"))
SCHEMA_PATH = Path(__file__).resolve().parents[3] / "benchmarks" / "result.schema.json"


@pytest.fixture
def bench_bytes():
    """A result of `icis-deploy bench` on a tiny model, as this project's own code wrote it."""
    return (Path(__file__).parent / "bench.json").read_bytes()


def changed(data, **changes):
    return json.dumps(json.loads(data) | changes).encode()


@pytest.mark.parametrize("path", REAL_RESULTS, ids=lambda path: path.stem)
def test_a_real_result_is_valid_by_the_schema_and_is_written_again_byte_by_byte(path):
    jsonschema.validate(json.loads(path.read_bytes()), json.loads(SCHEMA_PATH.read_bytes()))

    assert serialize_result(load_result(path)) == path.read_bytes()


def test_the_schema_in_the_repository_is_that_of_the_values():
    assert json.loads(SCHEMA_PATH.read_bytes()) == result_schema(), "run scripts/maintenance/make_result_schema.py"


def test_the_schema_is_one_and_explains_every_field():
    schema = result_schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    for name, definition in schema["$defs"].items():
        for field, value in definition["properties"].items():
            assert "description" in value or field == "schema_version", f"{name}.{field}"


def test_the_schema_refuses_what_the_reader_refuses(bench_bytes):
    for wrong in (
        changed(bench_bytes, more=1),
        changed(bench_bytes, created=7),
        changed(bench_bytes, schema_version=4),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(wrong), result_schema())
        with pytest.raises(LoadError):
            parse_result(wrong)


def test_a_result_of_version_1_is_read_as_one_without_head_shares(bench_bytes):
    values = json.loads(bench_bytes) | {"schema_version": 1}
    assert values.pop("head_shares") == []

    assert parse_result(json.dumps(values).encode()) == parse_result(bench_bytes)


def test_a_result_of_version_2_is_read_as_one_without_a_curve(bench_bytes):
    values = json.loads(bench_bytes) | {"schema_version": 2}
    added = {"S_top5", "U_top5", "AUSUC", "seen_cost", "budgets", "curve"}
    for target in values["targets"]:
        assert added <= set(target["accuracy"])
        target["accuracy"] = {name: value for name, value in target["accuracy"].items() if name not in added}
    accuracy = parse_result(json.dumps(values).encode()).target("fused").accuracy

    assert accuracy.S == parse_result(bench_bytes).target("fused").accuracy.S
    assert (accuracy.AUSUC, accuracy.seen_cost, accuracy.budgets, accuracy.curve) == (None, None, (), ())


def test_docstrings_of_fields_and_properties_are_found():
    words = field_docstrings(Result)

    assert words["created"] == "When, as `2026-11-23T09:00:00Z`."
    assert words["target"].startswith("Return the target of a name.")


def test_latencies_and_comparisons_are_found_by_target(bench_bytes):
    result = parse_result(bench_bytes)
    (first, one), (second, eight) = result.latencies("updatable")

    assert (first, second) == (1, 8)
    assert images_per_s(eight, 8) == pytest.approx(8000 / eight.mean_ms)
    assert one.label == "updatable"
    assert result.comparison("updatable", 8).against == "original"
    assert result.comparison("original", 8) is None
    assert result.target("fused").num_classes == 46
    with pytest.raises(KeyError):
        result.target("nothing")


def test_a_result_is_saved_and_loaded(bench_bytes, tmp_path):
    result = replace(parse_result(bench_bytes), settings={"preset": "normal"})
    save_result(result, tmp_path / "result.json")

    assert load_result(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no JSON object with a `schema_version`"),
        (b"[]", "no JSON object with a `schema_version`"),
        (b"[" * 100_000, "no JSON object with a `schema_version`"),
        (b'{"schema_version": 99}', "It has schema version 99; this release reads 1 to 3. Measure again"),
        (b'{"schema_version": true}', "It has schema version True;"),
        (b'{"schema_version": 2.0}', "It has schema version 2.0;"),
        (b'{"schema_version": 1}', r"lacks \['command', 'created'"),
    ],
)
def test_what_is_no_result_is_refused_with_its_path(data, message, tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(data)

    with pytest.raises(LoadError, match=message) as caught:
        load_result(path)
    assert str(path) in str(caught.value)


def test_a_result_that_contradicts_its_own_rules_is_refused(bench_bytes):
    values = json.loads(bench_bytes)
    values["targets"][0]["head_kind"] = "melted"

    with pytest.raises(LoadError, match=r"the result\.targets\[0\]\.head_kind is 'melted'; expected one of"):
        parse_result(json.dumps(values).encode())
