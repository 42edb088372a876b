from __future__ import annotations

import base64
import json
import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from securesystemslib.signer import CryptoSigner

from icis_deploy.errors import CorruptFileError, LoadError, SignatureError, StorageError, UsageError
from icis_deploy.updates.envelope import load_envelope, load_update, save_update
from icis_deploy.updates.signing import (
    MAX_VERSION_STEP,
    Binding,
    keygen,
    load_private_key,
    rotate_keys,
    sign,
    trusted_keys_from_files,
    verify_update,
)
from icis_deploy.updates.trusted_keys import TrustedKeys
from testing.bundles import make_update

EXPIRES = datetime(2100, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def keys(tmp_path):
    return keygen(tmp_path / "key")


@pytest.fixture
def other_keys(tmp_path):
    return keygen(tmp_path / "other-key")


@pytest.fixture
def path(tmp_path):
    """An unsigned class update."""
    save_update(make_update("okapi"), tmp_path / "new.icis")
    return tmp_path / "new.icis"


def test_only_its_owner_can_read_a_private_key(keys):
    assert stat.S_IMODE(keys.private_path.stat().st_mode) == 0o600
    assert keys.private_path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert keys.public_path.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")
    assert keys.public_path.name == "key.pub"


def test_the_mode_of_a_private_key_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0)
    try:
        keys = keygen(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE(keys.private_path.stat().st_mode) == 0o600


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_a_key_is_never_overwritten(taken, tmp_path):
    (tmp_path / taken).write_text("precious")

    with pytest.raises(UsageError, match=rf"{taken} already exists, and a key is never overwritten"):
        keygen(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_a_key_needs_a_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"'\.' is no name of a file"):
        keygen(Path())
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    update = tmp_path / "new.icis"
    save_update(make_update("okapi"), update)
    key = keygen(tmp_path / "signer").private_path
    before = sorted(tmp_path.iterdir())
    for make in (keygen, lambda path: sign(update, key, out=path, version=1)):
        with pytest.raises(UsageError, match=r"key cannot be written: there is no folder .*missing\. Create"):
            make(tmp_path / "missing" / "key")

    def refuse(path, data):
        raise StorageError("no room for the public half")

    monkeypatch.setattr("icis_deploy.updates.signing.write_file", refuse)
    with pytest.raises(StorageError, match="no room"):
        keygen(tmp_path / "key")
    assert sorted(tmp_path.iterdir()) == before


def test_a_key_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("precious")
    monkeypatch.setattr("icis_deploy.updates.signing._check_absent", lambda *_: None)

    with pytest.raises(StorageError, match=r"Could not write the private key .*File exists"):
        keygen(tmp_path / "key")
    assert (tmp_path / "key").read_text() == "precious"


def test_a_private_key_is_on_the_disk_before_its_public_half(tmp_path, monkeypatch):
    events, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino) or fsync(descriptor))

    keys = keygen(tmp_path / "key")

    assert events[0] == keys.private_path.stat().st_ino
    assert keys.public_path.stat().st_ino in events[1:]


def test_a_private_key_that_cannot_be_synced_is_not_kept(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="the disk is gone"):
        keygen(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_signing_sets_the_terms_and_keeps_the_change(path, keys):
    signed = sign(path, keys.private_path, version=7, expires=EXPIRES)

    update = load_update(path)
    assert signed.content == update
    assert update == make_update("okapi").with_terms(version=7, expires=EXPIRES)
    assert verify_update(path, [keys.public_path]).signed_by == signed.signed_by == keys.key_id


def test_terms_that_are_not_given_stay(path, keys):
    sign(path, keys.private_path, version=7, expires=EXPIRES)
    sign(path, keys.private_path, version=8)

    assert (load_update(path).version, load_update(path).expires) == (8, EXPIRES)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"version": 1 << 63}, r"The version lies outside of 1 to 2\^63 - 1\. Give another `version`"),
        ({"version": 0}, "The version lies outside"),
        (
            {"version": 7, "expires": datetime(2020, 1, 1, tzinfo=timezone.utc)},
            r"would expire at 2020-01-01T00:00:00Z; by this machine's clock it is 20.*Z, .*Give a later `expires`",
        ),
    ],
)
def test_terms_that_no_device_takes_are_refused_before_a_key_is_read(terms, message, path, keys, tmp_path):
    before = path.read_bytes()

    with pytest.raises(UsageError, match=message):
        sign(path, tmp_path / "no key", **terms)
    with pytest.raises(UsageError, match=message):
        rotate_keys([tmp_path / "no key"], tmp_path / "no key", out=tmp_path / "keys.icis", **{"version": 1} | terms)
    assert path.read_bytes() == before
    assert not (tmp_path / "keys.icis").exists()


def test_a_version_that_would_spend_all_below_it_needs_to_be_meant(path, keys):
    binding = Binding(highest_version=5)
    with pytest.raises(UsageError, match=r"Version 4294967302 is more than 2\^32 above 5"):
        sign(path, keys.private_path, version=5 + MAX_VERSION_STEP + 1, binding=binding)
    assert not load_envelope(path).signatures

    assert sign(path, keys.private_path, version=5 + MAX_VERSION_STEP, binding=binding).content.version == 2**32 + 5
    assert sign(path, keys.private_path, version=1 << 40, force=True).content.version == 1 << 40


def test_an_update_is_bound_when_it_is_signed_and_trusted_keys_cannot_be(path, keys, other_keys, tmp_path):
    targets = ("a" * 64,)
    signed = sign(path, keys.private_path, version=3, binding=Binding(complete=True, targets=targets))
    assert (signed.content.complete, signed.content.targets) == (True, targets)
    assert verify_update(path, [keys.public_path]).content == signed.content

    rotation = tmp_path / "keys.icis"
    rotate_keys([other_keys.public_path], keys.private_path, out=rotation, version=1)
    before = rotation.read_bytes()
    with pytest.raises(UsageError, match="holds trusted keys, which follow no state and are for every bundle"):
        sign(rotation, keys.private_path, binding=Binding(targets=targets))
    assert rotation.read_bytes() == before


def test_a_file_that_expired_already_gets_no_signature(path, keys, tmp_path):
    save_update(make_update("okapi").with_terms(version=1, expires=datetime(2020, 1, 1, tzinfo=timezone.utc)), path)

    with pytest.raises(UsageError, match="would expire at 2020-01-01"):
        sign(path, tmp_path / "no key")
    sign(path, keys.private_path, expires=EXPIRES)


def test_the_signed_file_can_go_elsewhere(path, keys, tmp_path):
    before = path.read_bytes()
    sign(path, keys.private_path, out=tmp_path / "signed.icis")

    assert path.read_bytes() == before
    verify_update(tmp_path / "signed.icis", [keys.public_path])
    with pytest.raises(UsageError, match=r"signed\.icis already exists, and signing replaces no other file\. Ch"):
        sign(path, keys.private_path, out=tmp_path / "signed.icis")


def test_a_second_signature_joins_the_first_and_new_terms_drop_both(path, keys, other_keys):
    sign(path, keys.private_path)
    sign(path, other_keys.private_path)
    assert set(load_envelope(path).signatures) == {keys.key_id, other_keys.key_id}
    verify_update(path, [keys.public_path])
    verify_update(path, [other_keys.public_path])

    sign(path, keys.private_path, version=2)
    assert set(load_envelope(path).signatures) == {keys.key_id}


def test_one_of_several_trusted_keys_is_enough(path, keys, other_keys):
    sign(path, keys.private_path)

    assert verify_update(path, [other_keys.public_path, keys.public_path]).signed_by == keys.key_id


def test_a_key_that_did_not_sign_is_not_enough(path, keys, other_keys):
    sign(path, keys.private_path)

    message = rf"new\.icis: The file is signed by '{keys.key_id[:16]}'; trusted are '{other_keys.key_id[:16]}'"
    with pytest.raises(SignatureError, match=message):
        verify_update(path, [other_keys.public_path])
    with pytest.raises(SignatureError, match="trusted are none"):
        verify_update(path, [])


def test_a_set_of_trusted_keys_replaces_no_file(path, keys):
    before = path.read_bytes()

    with pytest.raises(UsageError, match=r"new\.icis already exists, and signing replaces no other file\. Choose an"):
        rotate_keys([keys.public_path], keys.private_path, out=path, version=1)
    assert path.read_bytes() == before


def test_who_signs_with_another_key_hears_how_devices_come_to_trust_it(path, keys, other_keys):
    sign(path, keys.private_path)

    with pytest.raises(
        SignatureError, match=r"in the bundle's trust/ folder, or, where keys were rotated, by `rotate_keys\(\)"
    ):
        verify_update(path, [other_keys.public_path])


def test_an_unsigned_file_is_refused(path, keys):
    with pytest.raises(SignatureError, match="The file is not signed"):
        verify_update(path, [keys.public_path])


def test_a_signature_under_anothers_id_is_refused(path, keys, other_keys):
    sign(path, other_keys.private_path)
    document = json.loads(path.read_bytes())
    document["signatures"][0]["keyid"] = keys.key_id
    path.write_text(json.dumps(document))

    with pytest.raises(SignatureError, match="does not fit the file"):
        verify_update(path, [keys.public_path])


@pytest.mark.parametrize("field", ["payload", "payloadType"])
def test_neither_payload_nor_type_can_be_exchanged(field, path, keys, tmp_path):
    sign(path, keys.private_path)
    save_update(trusted_keys_from_files([keys.public_path]), tmp_path / "trusted")
    document, other = json.loads(path.read_bytes()), json.loads((tmp_path / "trusted").read_bytes())
    path.write_text(json.dumps(document | {field: other[field]}))

    with pytest.raises(SignatureError, match="does not fit the file"):
        verify_update(path, [keys.public_path])


def test_of_many_key_ids_a_few_are_shown(path, keys):
    sign(path, keys.private_path)
    document = json.loads(path.read_bytes())
    document["signatures"] = [document["signatures"][0] | {"keyid": f"{number:064d}"} for number in range(300)]
    path.write_text(json.dumps(document))

    with pytest.raises(
        SignatureError, match=r"^\S+: The file is signed by '0+', .* and 296 more; trusted are"
    ) as caught:
        verify_update(path, [keys.public_path])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("keyid", [7, None, True, "\x1b[2J" * 1000])
def test_strange_key_ids_are_shown_short_and_quoted(keyid, path, keys):
    sign(path, keys.private_path)
    document = json.loads(path.read_bytes())
    document["signatures"][0]["keyid"] = keyid
    path.write_text(json.dumps(document))

    with pytest.raises(SignatureError, match="The file is signed by '") as caught:
        verify_update(path, [keys.public_path])
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"signatures": [{"keyid": "\x1b[2J\nversion 9 applied\u202e", "sig": "QQ=="}] * 2},
        {"signatures": [{"keyid": "k" * 10_000, "sig": "QQ=="}] * 2},
        {"payloadType": "\x1b[2J\n"},
        {"payloadType": "t" * 10_000},
        {"payloadType": ["\x1b"] * 1000},
    ],
    ids=["a key id twice", "a long one twice", "type", "long type", "type that is a list"],
)
def test_a_refusal_never_shows_what_rewrites_a_terminal_or_fills_a_log(fields, path, keys):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))

    with pytest.raises(CorruptFileError) as caught:
        verify_update(path, [keys.public_path])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_trusted_keys_are_signed_like_updates(keys, other_keys, tmp_path):
    path = tmp_path / "keys.icis"
    save_update(trusted_keys_from_files([other_keys.public_path]), path)
    sign(path, keys.private_path, version=2)

    content = verify_update(path, [keys.public_path]).content
    assert content == TrustedKeys(public_keys=(other_keys.public_path.read_text(),), version=2)
    with pytest.raises(CorruptFileError, match="holds trusted keys; expected a class update"):
        load_update(path)


def test_files_that_are_no_keys_are_refused(path, keys, tmp_path):
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for name, message in [
        ("ec", "is an ECPrivateKey; expected an Ed25519 private key"),
        ("key.pub", "is not a private key in PEM form"),
        ("missing", "Cannot read the private key .*No such file"),
    ]:
        with pytest.raises(SignatureError, match=message):
            sign(path, tmp_path / name)
    for name, message in [
        ("key", r"key: The text is a private key; expected a public one\. Give the file next to it that ends in \.pub"),
        ("missing", "Cannot read the public key .*No such file"),
    ]:
        with pytest.raises(SignatureError, match=message):
            verify_update(path, [tmp_path / name])
    (tmp_path / "binary").write_bytes(b"\xff" * 100)
    with pytest.raises(SignatureError, match=r"binary is no public key: b'\\xff' is no character of PEM"):
        verify_update(path, [tmp_path / "binary"])


def test_a_public_key_given_as_the_private_one_is_not_called_too_open(path, keys, recwarn):
    keys.public_path.chmod(0o644)
    with pytest.raises(SignatureError, match="is not a private key in PEM form"):
        sign(path, keys.public_path)
    assert [str(each.message) for each in recwarn] == []


def test_files_that_are_no_updates_are_refused(keys, tmp_path):
    with pytest.raises(LoadError, match=r"Cannot read the class update .*missing"):
        sign(tmp_path / "missing", keys.private_path)
    with pytest.raises(CorruptFileError, match=r"key\.pub: The file is not a class update"):
        sign(keys.public_path, keys.private_path)


def test_a_payload_that_is_damaged_gets_no_signature(path, keys):
    envelope = json.loads(path.read_bytes())
    envelope["payload"] = base64.b64encode(base64.b64decode(envelope["payload"])[:-1]).decode()
    damaged = json.dumps(envelope).encode()
    path.write_bytes(damaged)

    with pytest.raises(CorruptFileError, match=rf"^{path}: ") as raised:
        sign(path, keys.private_path)
    assert raised.value.where == path
    assert path.read_bytes() == damaged


def test_a_key_that_another_tool_reads_signs_what_another_tool_verifies(path, keys):
    sign(path, keys.private_path)
    envelope = load_envelope(path)
    other_tool = CryptoSigner(load_pem_private_key(keys.private_path.read_bytes(), None))

    envelope.verify([other_tool.public_key], 1)
    assert load_private_key(keys.private_path).public_key == other_tool.public_key
