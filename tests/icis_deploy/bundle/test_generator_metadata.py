from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.bundle.generator_metadata import (
    GeneratorBlock,
    GeneratorMetadata,
    Limits,
    parse_metadata,
    serialize_metadata,
)
from icis_deploy.errors import CorruptFileError

RANGE = Limits(low=0.5, high=2.5)
PLAIN = GeneratorMetadata(
    base_fingerprint="2" * 64,
    method="ridge",
    descriptor_dim=300,
    feature_dim=1280,
    row_length=RANGE,
    row_cosine=RANGE,
    descriptor_length=RANGE,
    similarity=RANGE,
)
COEFFICIENTS = tuple(np.array([0.1, -0.9, 0.0, 1.7, 1e-3], np.float32).tolist())


BLOCKS = (
    GeneratorBlock(name="vectors", width=200, is_used=True, length=RANGE),
    GeneratorBlock(name="tags", width=100, is_used=False, length=RANGE),
)


@pytest.mark.parametrize("arbiter", [None, COEFFICIENTS])
def test_only_a_generator_of_several_blocks_is_of_schema_3(arbiter):
    metadata = replace(PLAIN, arbiter=arbiter, blocks=BLOCKS)
    values = json.loads(serialize_metadata(metadata))
    assert values["schema_version"] == 3
    assert [block["name"] for block in values["blocks"]] == ["vectors", "tags"]
    assert parse_metadata(serialize_metadata(metadata)) == metadata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blocks: blocks[:1], "not two or more blocks with names of their own"),
        (lambda blocks: [blocks[0], {**blocks[1], "name": "vectors"}], "not two or more blocks with names"),
        (lambda blocks: [blocks[0], {**blocks[1], "width": 0}], "not two or more blocks"),
        (lambda blocks: [blocks[0], {**blocks[1], "width": 99}], "widths of its blocks do not sum to descriptor_dim"),
        (lambda blocks: [blocks[0], {**blocks[1], "is_used": 1}], "is_used: expected"),
        (lambda _: None, "blocks: expected a list"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(change, message):
    values = json.loads(serialize_metadata(replace(PLAIN, blocks=BLOCKS)))
    with pytest.raises(CorruptFileError, match=message):
        parse_metadata(json.dumps(values | {"blocks": change(values["blocks"])}))


def test_only_a_generator_with_an_arbiter_is_of_schema_2():
    plain = json.loads(serialize_metadata(PLAIN))
    arbitrated = json.loads(serialize_metadata(replace(PLAIN, arbiter=COEFFICIENTS)))

    assert plain["schema_version"] == 1
    assert "arbiter" not in plain
    assert arbitrated == {**plain, "schema_version": 2, "arbiter": list(COEFFICIENTS)}


@pytest.mark.parametrize("arbiter", [None, COEFFICIENTS])
def test_parsing_gives_back_what_was_serialized(arbiter):
    metadata = replace(PLAIN, arbiter=arbiter)

    assert parse_metadata(serialize_metadata(metadata)) == metadata


def test_the_coefficients_are_float32_numbers():
    assert PLAIN.coefficients is None
    coefficients = parse_metadata(serialize_metadata(replace(PLAIN, arbiter=COEFFICIENTS))).coefficients
    assert coefficients.dtype == np.float32
    assert tuple(coefficients.tolist()) == COEFFICIENTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arbiter": [1, 2, 3, 4]}, r"arbiter has not 5 numbers of at most 1e\+30"),
        ({"arbiter": []}, r"arbiter has not 5 numbers|empty"),
        ({"arbiter": [1, 2, 3, 4, 1.1e30]}, "arbiter has not 5 numbers"),
        ({"arbiter": [1, 2, 3, 4, True]}, r"arbiter\[4\]: expected a number"),
        ({"arbiter": None}, "arbiter: expected a list"),
        ({"schema_version": 1}, r"has the unknown .*arbiter"),
        ({"schema_version": 3}, "lacks .*blocks"),
        ({"schema_version": 4}, "its schema version is 4, this release reads 1, 2 and 3"),
        ({"arbiter": ...}, "lacks .*arbiter"),
    ],
)
def test_what_is_no_metadata_is_refused(changes, message):
    values = json.loads(serialize_metadata(replace(PLAIN, arbiter=COEFFICIENTS))) | changes
    text = json.dumps({name: value for name, value in values.items() if value is not ...})

    with pytest.raises(CorruptFileError, match=rf"^The generator's metadata is damaged: .*{message}"):
        parse_metadata(text)
