"""A signed bundle: what a carrier changes in it is found before anything of it is believed."""

from __future__ import annotations

import base64
import json
import os
import shutil

import pytest

import icis_deploy
from icis_deploy.api.signing import signers_of
from icis_deploy.cli.main import run
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError, SignatureError, UsageError
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, trust


@pytest.fixture
def signed_bundle(bundle_folder, keys):
    icis_deploy.sign_bundle(bundle_folder, key=keys.private_path)
    return bundle_folder


def test_a_signed_bundle_opens_with_the_key_that_signed_it_and_takes_updates(signed_bundle, keys, signed):
    device = Device.open(signed_bundle, trust=[keys.public_path])
    device.apply(signed(make_update("okapi")))

    again = Device.open(signed_bundle, trust=[keys.public_path])

    assert again.classes() == ("cat", "dog", "owl", "okapi")
    assert icis_deploy.verify_bundle(signed_bundle, trust=[keys.public_path]) == keys.key_id


def test_an_unsigned_bundle_is_refused_only_where_keys_are_given(bundle_folder, keys):
    with pytest.raises(SignatureError, match="is not signed"):
        Device.open(bundle_folder, trust=[keys.public_path])

    assert Device.open(bundle_folder).version == 0


def test_no_keys_at_all_trust_nobody(signed_bundle):
    with pytest.raises(SignatureError, match="trusted are none"):
        Device.open(signed_bundle, trust=[])


def test_one_path_is_no_list_of_keys(signed_bundle, new_folder, keys):
    """Whose characters would each be the name of a file."""
    device = Device.open(signed_bundle, trust=[keys.public_path])
    for one in (keys.public_path, str(keys.public_path)):
        for call in (
            lambda given: Device.open(signed_bundle, trust=given),
            lambda given: device.replace(new_folder, trust=given),
            lambda given: icis_deploy.verify_bundle(signed_bundle, trust=given),
        ):
            with pytest.raises(UsageError, match=r"`trust` is one path, '.*\.pub'; expected a list"):
                call(one)


def test_keys_that_the_system_does_not_list_are_named(signed_bundle, keys, monkeypatch):
    real_listdir = os.listdir

    def guarded(path):
        if str(path).endswith("trust"):
            raise PermissionError(13, "Permission denied")
        return real_listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)  # for root, no mode does that
    with pytest.raises(SignatureError, match=r"Cannot read the trusted keys in .*trust: Permission denied"):
        Device.open(signed_bundle, trust=[keys.public_path])


def test_a_strangers_signature_does_not_count(bundle_folder, keys, tmp_path):
    stranger = keygen(tmp_path / "stranger")
    icis_deploy.sign_bundle(bundle_folder, key=stranger.private_path)

    with pytest.raises(SignatureError, match=stranger.key_id[:16]):
        Device.open(bundle_folder, trust=[keys.public_path])


def test_each_of_two_signatures_is_enough(signed_bundle, keys, tmp_path):
    second = keygen(tmp_path / "second")
    icis_deploy.sign_bundle(signed_bundle, key=second.private_path)

    for each in (keys, second):
        assert icis_deploy.verify_bundle(signed_bundle, trust=[each.public_path]) == each.key_id


def test_signing_a_bundle_that_was_changed_drops_the_signatures_over_what_it_was(signed_bundle, keys, tmp_path):
    second = keygen(tmp_path / "second")
    trust(signed_bundle, second.public_path)
    icis_deploy.sign_bundle(signed_bundle, key=second.private_path)

    with pytest.raises(SignatureError):
        icis_deploy.verify_bundle(signed_bundle, trust=[keys.public_path])
    assert icis_deploy.verify_bundle(signed_bundle, trust=[second.public_path]) == second.key_id


def _add_key(folder, tmp_path):
    trust(folder, keygen(tmp_path / "evil").public_path)


def _exchange_key(folder, tmp_path):
    shutil.copy(keygen(tmp_path / "evil").public_path, folder / "trust" / "release-key.pub")


def _change_manifest(folder, _tmp_path):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"cat"', b'"dgo"'))


def _change_model(folder, _tmp_path):
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def _remove_key(folder, _tmp_path):
    (folder / "trust" / "release-key.pub").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_add_key, r"trust/evil\.pub'? was added"),
        (_exchange_key, r"trust/release-key\.pub'? was changed"),
        (_change_manifest, r"manifest\.json'? was changed"),
        (_change_model, "changed or damaged"),
        (_remove_key, r"trust/release-key\.pub'? is missing"),
    ],
)
def test_what_a_carrier_changes_is_named(change, message, signed_bundle, keys, tmp_path):
    change(signed_bundle, tmp_path)

    with pytest.raises(CorruptFileError, match=message) as refused:
        Device.open(signed_bundle, trust=[keys.public_path])
    assert str(signed_bundle) in str(refused.value)


@pytest.mark.parametrize("name", ["bundle.dsse", "trust/release-key.pub", "manifest.json"])
def test_nothing_that_is_compared_is_read_without_end(name, signed_bundle, keys):
    os.truncate(signed_bundle / name, (1 << 26) + 1)  # a hole, which takes no room on the disk

    with pytest.raises(ICISDeployError, match=f"{name} is larger than .* Not read further"):
        Device.open(signed_bundle, trust=[keys.public_path])


def test_nobody_is_named_as_the_signer_of_what_they_did_not_sign(signed_bundle, keys, tmp_path):
    assert signers_of(signed_bundle) == (keys.key_id,)
    _add_key(signed_bundle, tmp_path)

    with pytest.raises(CorruptFileError, match=r"trust/evil\.pub'? was added"):
        signers_of(signed_bundle)


def test_a_signature_with_a_key_twice_is_refused(signed_bundle, keys):
    path = signed_bundle / "bundle.dsse"
    path.write_bytes(path.read_bytes()[:-1] + b',"payload":"e30="}')

    with pytest.raises(CorruptFileError, match="a key occurs twice"):
        Device.open(signed_bundle, trust=[keys.public_path])


def test_a_signature_of_another_bundle_does_not_fit(signed_bundle, new_folder, keys):
    shutil.copy(signed_bundle / "bundle.dsse", new_folder)

    with pytest.raises(CorruptFileError, match=r"manifest\.json'? was changed"):
        Device.open(new_folder, trust=[keys.public_path])


def test_a_device_goes_over_to_a_signed_bundle_alone_where_keys_are_given(signed_bundle, new_folder, keys):
    device = Device.open(signed_bundle, trust=[keys.public_path])

    with pytest.raises(SignatureError, match="is not signed"):
        device.replace(new_folder, trust=[keys.public_path])

    icis_deploy.sign_bundle(new_folder, key=keys.private_path)
    device.replace(new_folder, trust=[keys.public_path])
    assert device.version == 2


def test_a_device_that_was_opened_with_keys_asks_for_them_until_it_is_given_others(
    signed_bundle, new_folder, keys, tmp_path
):
    device, other = Device.open(signed_bundle, trust=[keys.public_path]), keygen(tmp_path / "other")
    with pytest.raises(SignatureError, match="is not signed"):
        device.replace(new_folder)
    assert device.version == 0

    icis_deploy.sign_bundle(new_folder, key=other.private_path)
    with pytest.raises(SignatureError, match=other.key_id[:16]):
        device.replace(new_folder)
    device.replace(new_folder, trust=[other.public_path])
    assert device.version == 2


def test_who_opens_the_bundle_again_asks_for_its_signature_again(signed_bundle, keys):
    """As another process does that gets a device: by spawn, Ray or Spark."""
    open_again, arguments = Device.open(signed_bundle, trust=[keys.public_path]).__reduce__()
    assert open_again(*arguments).version == 0
    (signed_bundle / "bundle.dsse").unlink()

    with pytest.raises(SignatureError, match="is not signed"):
        open_again(*arguments)


def test_a_link_is_followed_to_a_signed_bundle_alone_where_keys_were_given(signed_bundle, keys, signed, tmp_path):
    link, copy = tmp_path / "current", tmp_path / "copy"
    link.symlink_to(signed_bundle)
    device = Device.open(link, trust=[keys.public_path])
    device.apply(signed(make_update("okapi")))
    shutil.copytree(signed_bundle, copy)
    (copy / "bundle.dsse").unlink()
    link.unlink()
    link.symlink_to(copy)

    for call in (device.refresh, lambda: device.disable("cat")):
        with pytest.raises(SignatureError, match="is not signed"):
            call()
    assert Device.open(copy).classes() == device.classes() == ("cat", "dog", "owl", "okapi")


def test_more_files_among_the_keys_than_are_read_are_refused(signed_bundle, keys):
    for number in range(16):
        (signed_bundle / "trust" / f"{number}").write_bytes(b"")

    for call in (
        lambda: Device.open(signed_bundle, trust=[keys.public_path]),
        lambda: icis_deploy.sign_bundle(signed_bundle, key=keys.private_path),
    ):
        with pytest.raises(SignatureError, match="holds 17 files; at most 16 are read"):
            call()


DAMAGES = ["truncated", "bomb", "no statement", "another statement", "another kind", "subject twice", "folder"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_signature_is_refused_in_one_line(damage, signed_bundle, keys):
    path = signed_bundle / "bundle.dsse"
    values = json.loads(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "bomb":
        path.write_bytes(b"[" * (1 << 20))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        from securesystemslib.dsse import Envelope

        from icis_deploy.updates.envelope import serialize_envelope
        from icis_deploy.updates.signing import load_private_key

        statement = json.loads(base64.b64decode(values["payload"]))
        kind = values["payloadType"]
        if damage == "no statement":
            statement = {}
        elif damage == "another statement":  # that the key signed of the same files, such as how they were built
            statement["predicateType"] = "https://slsa.dev/provenance/v1"
        elif damage == "another kind":
            kind = "application/x"
        else:
            statement["subject"] *= 2
        envelope = Envelope(json.dumps(statement).encode(), kind, {})
        envelope.sign(load_private_key(keys.private_path))
        path.write_bytes(serialize_envelope(envelope))

    with pytest.raises((CorruptFileError, SignatureError)) as refused:
        Device.open(signed_bundle, trust=[keys.public_path])

    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_the_commands_sign_and_check_a_bundle(bundle_folder, keys, capsys):
    check = ["verify-bundle", str(bundle_folder), "--trust", str(keys.public_path)]
    assert run(check) == 6
    assert "is not signed" in capsys.readouterr().err

    assert run(["sign-bundle", str(bundle_folder), "--key", str(keys.private_path)]) == 0
    assert run(check) == 0

    assert keys.key_id in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["a carrier's", "empty", "a link to nothing", "a file"])
def test_a_state_that_came_along_is_refused_where_it_must_not_be(kind, signed_bundle, keys, signed, capsys):
    state = signed_bundle / "state"
    check = ["verify-bundle", str(signed_bundle), "--trust", str(keys.public_path)]
    assert run([*check, "--as-delivered"]) == 0
    assert "state/" not in capsys.readouterr().err
    if kind == "a carrier's":
        Device.open(signed_bundle).apply(signed(make_update("okapi")))
    elif kind == "empty":
        state.mkdir()
    elif kind == "a file":
        state.touch()
    else:
        state.symlink_to(signed_bundle / "nothing")

    with pytest.raises(SignatureError, match=r"holds state/, .* which no signature covers"):
        icis_deploy.verify_bundle(signed_bundle, trust=[keys.public_path], as_delivered=True)
    assert run([*check, "--as-delivered"]) == 6
    capsys.readouterr()
    assert run(check) == 0
    assert "holds state/, which no signature covers" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["State", "STATE", "state.", "state. .", "\u017ftate", "\ufb06ate", "st\u200cate"])
def test_what_is_a_state_on_another_system_is_refused_as_well(name, signed_bundle, keys):
    (signed_bundle / name).mkdir()

    with pytest.raises(SignatureError, match=r"holds .*/, the classes and keys of a device") as raised:
        icis_deploy.verify_bundle(signed_bundle, trust=[keys.public_path], as_delivered=True)
    assert (signed_bundle / name).samefile(raised.value.where)


@pytest.mark.parametrize("name", ["trust", "trust/release-key.pub", "manifest.json", "model.onnx", "bundle.dsse"])
def test_no_carrier_brings_a_link(name, signed_bundle, keys, tmp_path):
    shutil.move(signed_bundle / name, tmp_path / "elsewhere")
    (signed_bundle / name).symlink_to(tmp_path / "elsewhere")

    assert icis_deploy.verify_bundle(signed_bundle, trust=[keys.public_path]) == keys.key_id
    with pytest.raises(SignatureError, match=f"{name} is a link"):
        icis_deploy.verify_bundle(signed_bundle, trust=[keys.public_path], as_delivered=True)


def test_no_bundle_is_signed_where_there_is_none(tmp_path, keys):
    with pytest.raises(BundleError, match="no bundle"):
        icis_deploy.sign_bundle(tmp_path / "absent", key=keys.private_path)
