"""Every release reads what the first one wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.bundle.engine_sidecar import parse_sidecar
from icis_deploy.bundle.generator_metadata import parse_metadata
from icis_deploy.bundle.manifest import FileEntry, parse_manifest
from icis_deploy.bundle.slot_files import load_injected, serialize_slots
from icis_deploy.errors import SignatureError
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.state.journal import parse_journal, serialize_journal
from icis_deploy.updates.envelope import load_envelope, load_update, parse_content
from icis_deploy.updates.payload import serialize_payload
from icis_deploy.updates.signing import verify_update
from icis_deploy.updates.trusted_keys import TrustedKeys
from tests.golden import make_golden_v3
from tests.golden.make_golden_v2 import INJECTED, JOURNAL, METADATA, SIDECAR, golden_bundle

V1 = Path(__file__).resolve().parent / "v1"
V2, V3 = V1.with_name("v2"), V1.with_name("v3")
EXPECTED = json.loads((V1 / "expected.json").read_text())
NAMES = ("okapi", "Bärtierchen 水熊")


def test_the_class_update_of_version_1():
    signed = verify_update(V1 / "class-update.dsse", [V1 / "release-key.pub"])

    update = signed.content
    assert signed.signed_by == EXPECTED["key_ids"][0]
    assert (update.added, update.replaced, update.removed) == (NAMES, (), ())
    assert (update.version, update.expires, update.self_test_seed) == (3, datetime(2100, 1, 1, tzinfo=timezone.utc), 5)
    assert update.provenance == {"method": "golden", "numbers": [1, 2.5, None], "nested": {"ok": True}}
    np.testing.assert_array_equal(update.rows, np.array(EXPECTED["rows"], np.float32))


def test_an_equal_class_update_is_written_with_the_same_bytes_today():
    update = load_update(V1 / "class-update.dsse")

    assert serialize_payload(update) == load_envelope(V1 / "class-update.dsse").payload


def test_the_trusted_keys_of_version_1():
    keys = parse_content(load_envelope(V1 / "trusted-keys.dsse"))

    assert keys == TrustedKeys(public_keys=((V1 / "next-key.pub").read_text(),), version=1)
    assert verify_update(V1 / "trusted-keys.dsse", [V1 / "release-key.pub"]).signed_by == EXPECTED["key_ids"][0]
    with pytest.raises(SignatureError, match="trusted are"):
        verify_update(V1 / "trusted-keys.dsse", [V1 / "next-key.pub"])


def test_the_bundle_and_the_state_of_version_1(tmp_path):
    shutil.copytree(V1 / "bundle", tmp_path / "bundle")

    device = Device.open(tmp_path / "bundle")

    assert (device.version, device.classes()) == (3, ("cat", "owl", *NAMES))
    answer = device.logits(np.array(EXPECTED["images"], np.float32))
    np.testing.assert_allclose(answer.values, np.array(EXPECTED["logits"]), rtol=1e-4, atol=1e-5)
    assert [(entry.action, entry.class_name) for entry in device.history()] == [
        ("apply", None),
        ("trust", None),
        ("disable", "dog"),
    ]
    assert device.history()[0].time == datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
    assert not device.apply(V1 / "class-update.dsse").changed  # it is in effect, though its key was replaced
    device.enable("dog")
    device.rollback()
    assert device.classes() == ("cat", "dog", "owl")


def test_a_sidecar_of_version_1_is_read_as_what_it_meant():
    assert parse_sidecar((V1 / "sidecar.json").read_bytes()) == replace(SIDECAR, precision="fp32")


def test_a_sidecar_of_version_2():
    assert parse_sidecar((V2 / "sidecar.json").read_bytes()) == SIDECAR


def test_a_manifest_of_version_2_and_the_injected_rows_that_it_names():
    bundle = parse_manifest((V2 / "manifest.json").read_bytes())

    sha256 = "3310b9999d2b88ba05aa8a79353ed92596437cb3b80fd62d65b43732ca1b6a25"
    assert bundle == golden_bundle(FileEntry(sha256=sha256, size_bytes=264))
    assert load_injected(V2, bundle) == INJECTED
    assert serialize_slots(INJECTED) == (V2 / "injected.safetensors").read_bytes()


def test_a_journal_with_taught_classes():
    data = (V2 / "journal.json").read_bytes()

    assert parse_journal(data) == JOURNAL
    assert serialize_journal(JOURNAL) == data


def test_the_metadata_of_a_generator():
    assert parse_metadata((V2 / "generator-facts.json").read_text()) == METADATA


def test_a_class_update_of_version_2_has_an_arbiter():
    update = verify_update(V3 / "class-update.dsse", [V3 / "bundle" / "trust" / "release-key.pub"]).content
    expected = json.loads((V3 / "expected.json").read_text())

    assert update.added == NAMES
    np.testing.assert_array_equal(update.rows, np.array(expected["rows"], np.float32))
    np.testing.assert_array_equal(update.arbiter, make_golden_v3.ARBITER)
    assert serialize_payload(update) == load_envelope(V3 / "class-update.dsse").payload


def test_the_bundle_the_state_and_the_constants_of_version_3(tmp_path):
    shutil.copytree(V3 / "bundle", tmp_path / "bundle")
    expected = json.loads((V3 / "expected.json").read_text())
    batch = np.array(expected["images"], np.float32)

    device = Device.open(tmp_path / "bundle")

    assert (device.version, device.classes()) == (3, ("cat", "owl", *NAMES))
    assert device.bundle.arbiter
    np.testing.assert_allclose(device.logits(batch).values, expected["logits_without_dog"], rtol=1e-4, atol=1e-4)
    device.enable("dog")
    np.testing.assert_allclose(device.logits(batch).values, expected["logits"], rtol=1e-4, atol=1e-4)
    (path,) = (V3 / "bundle" / "state").glob("slots-*")
    assert serialize_slots(state_of(device).table) == path.read_bytes()


def test_the_metadata_of_a_generator_whose_rows_have_an_arbiter():
    assert parse_metadata((V3 / "generator-metadata.json").read_text()) == make_golden_v3.METADATA
