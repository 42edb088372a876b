"""Every release reads updates of schema 3, trusted keys with roles and signed bundles as they were first written."""

from __future__ import annotations

from pathlib import Path

import pytest

from icis_deploy.errors import SignatureError
from icis_deploy.runtime.state.journal import parse_journal, serialize_journal
from icis_deploy.updates.bundle_signature import verify_bundle_files
from icis_deploy.updates.envelope import load_envelope, parse_content, verify_signature
from icis_deploy.updates.payload import serialize_payload
from icis_deploy.updates.signing import load_public_key, verify_update
from icis_deploy.updates.trusted_keys import TrustedKeys, serialize_trusted_keys
from tests.golden.make_golden_v4 import complete, following

V4 = Path(__file__).resolve().parent / "v4"
RELEASE, ROOTS = V4 / "release-key.pub", [V4 / "root-0.pub", V4 / "root-1.pub"]


@pytest.mark.parametrize(("name", "update"), [("following.dsse", following()), ("complete.dsse", complete())])
def test_class_updates_of_schema_3(name, update):
    assert verify_update(V4 / name, [RELEASE]).content == update
    assert serialize_payload(update) == load_envelope(V4 / name).payload


def test_trusted_keys_of_schema_2():
    envelope = load_envelope(V4 / "trusted-keys.dsse")

    verify_signature(envelope, [load_public_key(path) for path in ROOTS], threshold=2)
    with pytest.raises(SignatureError, match="signed by 1 of the trusted keys; 2 must"):
        verify_signature(envelope, [load_public_key(ROOTS[0])], threshold=2)
    keys = parse_content(envelope)
    assert isinstance(keys, TrustedKeys)
    assert keys.root_keys == tuple(path.read_text() for path in ROOTS)
    assert (keys.public_keys, keys.root_threshold, keys.version) == ((RELEASE.read_text(),), 2, 2)
    assert serialize_trusted_keys(keys) == envelope.payload


def test_the_journal_of_a_device_with_root_keys():
    data = (V4 / "journal.json").read_bytes()

    journal = parse_journal(data)

    assert (journal.root_keys, journal.root_threshold) == (tuple(path.read_text() for path in ROOTS), 2)
    assert serialize_journal(journal) == data


def test_the_signature_of_a_bundle():
    files = {
        "manifest.json": (V4 / "manifest.json").read_bytes(),
        "trust/release-key.pub": RELEASE.read_bytes(),
    }

    key = load_public_key(RELEASE)
    assert verify_bundle_files((V4 / "bundle.dsse").read_bytes(), files, [key]) == key.keyid
