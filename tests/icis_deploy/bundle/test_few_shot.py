"""What a bundle carries for photos: it comes back bit for bit, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from icis_deploy.bundle.few_shot import (
    MAX_FEW_SHOT_BYTES,
    FewShot,
    load_few_shot,
    parse_few_shot,
    serialize_few_shot,
)
from icis_deploy.bundle.manifest import FEW_SHOT_NAME, load_manifest
from icis_deploy.common.tensor_files import load_tensors
from icis_deploy.errors import BundleError, CorruptFileError, IncompatibleError
from testing.bundles import FEATURE_DIM, write_bundle
from testing.references import add_few_shot, add_reference, make_few_shot


def changed_bytes(data: bytes, *, tensors: dict[str, np.ndarray] | None = None, **fields: object) -> bytes:
    """Return the file with other tensors, or other values in its metadata; `None` leaves one out."""
    metadata = json.loads(load_tensors(data)[1]["few_shot"]) | fields
    text = json.dumps({name: value for name, value in metadata.items() if value is not None})
    return save(load(data) | (tensors or {}), metadata={"few_shot": text})


def test_it_comes_back_bit_for_bit():
    few_shot = make_few_shot(level=-0.3, prior_photos=2.0, max_seen_loss=0.05, has_generator=False)

    data = serialize_few_shot(few_shot)
    found = parse_few_shot(data, feature_dim=FEATURE_DIM)

    assert serialize_few_shot(found) == data
    np.testing.assert_array_equal(found.context.mean_row, few_shot.context.mean_row)
    np.testing.assert_array_equal(found.context.feature_mean, few_shot.context.feature_mean)
    assert (found.context.length, found.context.level) == (few_shot.context.length, -0.3)
    assert (found.context.prior_photos, found.max_seen_loss) == (2.0, 0.05)
    assert (found.seen_accuracy, found.has_generator) == (0.9, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "its schema version is 2, this release reads 1"),
        ({"schema_version": True}, "schema_version|number"),
        ({"level": None}, "it has the fields"),
        ({"more": 1}, "it has the fields"),
        ({"length": 0.0}, "length"),
        ({"prior_photos": -1.0}, "prior"),
        ({"max_seen_loss": 1.5}, "loss of 1.5"),
        ({"seen_accuracy": 0.0}, "accuracy 0.0"),
        ({"has_generator": 1}, "1"),
        ({"tensors": {"mean_row": np.zeros(4, np.float32)}}, "other tensors"),
        ({"tensors": {"mean_row": np.zeros(5, np.float64)}}, "other tensors"),
        ({"tensors": {"more": np.zeros(5, np.float32)}}, "other tensors"),
        ({"tensors": {"feature_mean": np.full(4, np.nan, np.float32)}}, "finite"),
    ],
)
def test_what_is_not_for_this_head_or_out_of_range_is_refused(change: dict[str, object], words: str):
    data = changed_bytes(serialize_few_shot(make_few_shot()), **change)

    with pytest.raises(CorruptFileError, match=words):
        parse_few_shot(data, feature_dim=FEATURE_DIM)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, save({"rows": np.zeros(3, np.float32)})])
def test_bytes_that_are_something_else_are_refused(data: bytes):
    with pytest.raises(CorruptFileError, match="constants for photos are damaged"):
        parse_few_shot(data, feature_dim=FEATURE_DIM)


def test_a_number_out_of_range_is_refused_where_it_is_made():
    few_shot = make_few_shot()
    with pytest.raises(IncompatibleError, match="cannot be kept"):
        replace(few_shot, seen_accuracy=1.1)
    assert isinstance(few_shot, FewShot)


def test_a_bundle_without_it_says_how_to_export_one(tmp_path: Path):
    folder = add_reference(write_bundle(tmp_path / "bundle"))

    with pytest.raises(
        IncompatibleError, match=r"has no few_shot\.safetensors, so it cannot be taught by photos"
    ) as caught:
        load_few_shot(folder, load_manifest(folder))

    assert "`seen_images`" in str(caught.value.hint)


def test_a_file_that_the_manifest_does_not_state_is_refused(tmp_path: Path):
    folder = add_few_shot(add_reference(write_bundle(tmp_path / "bundle")))
    bundle = load_manifest(folder)
    assert load_few_shot(folder, bundle).max_seen_loss == 0.02
    path = folder / FEW_SHOT_NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(CorruptFileError, match="the manifest states"):
        load_few_shot(folder, bundle)
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_few_shot(folder, bundle)


def test_the_limit_holds_features_of_a_million_numbers():
    assert MAX_FEW_SHOT_BYTES > 4 * (2 * 1_000_000 + 1)
