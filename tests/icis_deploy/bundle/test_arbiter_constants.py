from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from icis_deploy.bundle.arbiter_constants import ArbiterConstants, load_row_lengths, serialize_row_lengths
from icis_deploy.bundle.manifest import (
    ARBITER_NAME,
    INJECTED_NAME,
    MANIFEST_NAME,
    file_entry,
    load_manifest,
    serialize_manifest,
)
from icis_deploy.errors import BundleError, CorruptFileError
from icis_deploy.head.arbiter import deviation_lengths
from icis_deploy.head.slots import empty_slots
from testing.bundles import FEATURE_DIM, make_update, seen_head, write_bundle

ARBITER = np.arange(10, dtype=np.float32).reshape(2, 5)


@pytest.fixture
def folder(tmp_path):
    """A bundle of a fused head with two new classes, and one of an updatable head."""
    table = empty_slots(2, FEATURE_DIM).apply(make_update("okapi", "zebra", arbiter=ARBITER), seen_names=frozenset())
    return write_bundle(tmp_path / "bundle", capacity=0, arbiter=True, baked=table)


def restated(folder, data):
    (folder / ARBITER_NAME).write_bytes(data)
    bundle = load_manifest(folder)
    bundle = replace(bundle, files={**bundle.files, ARBITER_NAME: file_entry(folder / ARBITER_NAME)})
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    return load_manifest(folder)


def test_the_constants_are_those_of_the_seen_rows_and_of_the_baked_classes(folder):
    constants = ArbiterConstants(folder, load_manifest(folder))

    np.testing.assert_array_equal(constants.row_lengths(), deviation_lengths(seen_head().rows))
    np.testing.assert_array_equal(constants.baked_coefficients(), ARBITER)


def test_they_are_read_when_they_are_asked_for_and_then_kept(folder):
    constants = ArbiterConstants(folder, load_manifest(folder))
    lengths, baked = constants.row_lengths(), constants.baked_coefficients()
    (folder / ARBITER_NAME).unlink()
    (folder / INJECTED_NAME).unlink()

    assert constants.row_lengths() is lengths
    assert constants.baked_coefficients() is baked
    with pytest.raises(BundleError, match="Cannot read the constants of the arbiter"):
        ArbiterConstants(folder, load_manifest(folder)).row_lengths()


def test_a_bundle_without_baked_classes_has_no_coefficients_of_any(tmp_path):
    folder = write_bundle(tmp_path / "bundle", arbiter=True)

    assert ArbiterConstants(folder, load_manifest(folder)).baked_coefficients().shape == (0, 5)


def test_a_file_that_changed_since_it_was_opened_is_refused(folder):
    constants = ArbiterConstants(folder, load_manifest(folder))
    for name in (ARBITER_NAME, INJECTED_NAME):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    with pytest.raises(CorruptFileError, match=r"arbiter\.safetensors is damaged: it does not have the SHA-256"):
        constants.row_lengths()
    with pytest.raises(CorruptFileError, match=r"injected\.safetensors has .* The file was changed or damaged"):
        constants.baked_coefficients()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors",
        save({"row_lengths": np.ones(3)}),
        save({"lengths": np.ones(3, np.float32)}),
        save({"row_lengths": np.ones(3, np.float32), "more": np.ones(3, np.float32)}),
        save({"row_lengths": np.ones((3, 1), np.float32)}),
        serialize_row_lengths(np.ones(4, np.float32)),
        serialize_row_lengths(np.array([1, np.nan, 1], np.float32)),
        serialize_row_lengths(np.array([1, -1, 1], np.float32)),
    ],
)
def test_what_does_not_hold_a_length_for_each_seen_class_is_refused(data, folder):
    with pytest.raises(CorruptFileError, match=r"arbiter\.safetensors is damaged: .* Fetch the bundle again\."):
        load_row_lengths(folder, restated(folder, data))


def test_a_bundle_that_names_no_such_file_says_so(tmp_path):
    folder = write_bundle(tmp_path / "bundle")

    with pytest.raises(BundleError, match=r"has no arbiter\.safetensors, so a device .* Export it again\."):
        load_row_lengths(folder, load_manifest(folder))


def test_a_model_that_ends_in_a_sigmoid_has_no_arbiter(folder):
    with pytest.raises(BundleError, match=r"an arbiter for a model that ends in a sigmoid.* `arbiter='off'`\.$"):
        replace(load_manifest(folder), score_kind="sigmoid")
