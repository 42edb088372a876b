"""Every release reads descriptors of blocks, and metadata of generators that take them, as they were first written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from icis_deploy.bundle.generator_metadata import parse_metadata
from icis_deploy.descriptors.files import load_descriptors
from tests.golden.make_golden_blocks import DESCRIPTORS, METADATA, METADATA_WITH_ARBITER

BLOCKS = Path(__file__).resolve().parent / "blocks"


def test_descriptors_of_several_blocks():
    read = load_descriptors(BLOCKS / "descriptors.npz")

    assert read == DESCRIPTORS
    assert read.blocks == DESCRIPTORS.blocks
    assert read.missing_in("vectors") == ("cat",)


@pytest.mark.parametrize(
    ("name", "metadata"),
    [("generator-metadata.json", METADATA), ("generator-metadata-arbiter.json", METADATA_WITH_ARBITER)],
)
def test_the_metadata_of_a_generator_that_takes_blocks(name, metadata):
    text = (BLOCKS / name).read_text()

    assert json.loads(text)["schema_version"] == 3
    assert parse_metadata(text) == metadata
