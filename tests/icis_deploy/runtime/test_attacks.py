"""The attacks that The Update Framework names, a test or more for each, against a device with roles and bound updates.

A refused attack leaves every byte of the bundle as it was.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

import icis_deploy
from icis_deploy.errors import (
    ClassConflictError,
    CorruptFileError,
    ExpiredError,
    ICISDeployError,
    IncompatibleError,
    SignatureError,
    VersionRollbackError,
    WrongBaseError,
)
from icis_deploy.head.class_update import MAX_VERSION
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.state.journal import parse_journal
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import keygen, load_private_key
from icis_deploy.updates.trusted_keys import TrustedKeys, parse_trusted_keys, serialize_trusted_keys
from testing.bundles import Clock, files_in, make_update, trust, write_bundle


def signed_by(content, *pairs):
    envelope = envelope_of(content)
    for pair in pairs:
        envelope.sign(load_private_key(pair.private_path))
    return serialize_envelope(envelope)


def pem(pair):
    return pair.public_path.read_text()


@pytest.fixture
def roots(tmp_path):
    return [keygen(tmp_path / f"root-{number}") for number in range(3)]


@pytest.fixture
def evil(tmp_path):
    return keygen(tmp_path / "evil")


@pytest.fixture
def device(bundle_folder, keys, roots):
    """A device with three root keys, two of which must sign, and one key that signs updates."""
    opened = Device.open(bundle_folder)
    with_roles = TrustedKeys(public_keys=(pem(keys),), root_keys=tuple(map(pem, roots)), root_threshold=2)
    opened.apply(signed_by(with_roles, keys, roots[0], roots[1]))
    return opened


@contextmanager
def unchanged(device, folder):
    before, classes, version = files_in(folder), device.classes(), device.version
    yield
    assert files_in(folder) == before
    assert (device.classes(), device.version) == (classes, version)


@contextmanager
def refused(device, folder, error, match):
    with unchanged(device, folder), pytest.raises(error, match=match):
        yield


def test_arbitrary_software_signed_by_a_stranger(device, bundle_folder, evil):
    with refused(device, bundle_folder, SignatureError, "trusted are"):
        device.apply(signed_by(make_update("okapi"), evil))


def test_endless_data(device, bundle_folder, tmp_path):
    endless = tmp_path / "endless.icis"
    with endless.open("wb") as file:
        file.truncate(1 << 40)

    with refused(device, bundle_folder, ICISDeployError, "which no update for this bundle"):
        device.apply(endless)


def test_a_frozen_device_at_least_takes_nothing_that_expired(bundle_folder, keys):
    opened = Device.open(bundle_folder)
    now = datetime(2026, 12, 1, tzinfo=timezone.utc)
    device = Device(
        folder=bundle_folder,
        bundle=opened.bundle,
        session=opened._opened.session,
        state=state_of(opened),
        clock=Clock(now),
    )

    with refused(device, bundle_folder, ExpiredError, "expired at"):
        device.apply(signed_by(make_update("okapi", expires=now - timedelta(days=1)), keys))


def test_mix_and_match_of_a_payload_and_the_signature_of_another(device, bundle_folder, keys):
    one, other = envelope_of(make_update("okapi")), envelope_of(make_update("trojan"))
    one.sign(load_private_key(keys.private_path))
    other.signatures = one.signatures

    with refused(device, bundle_folder, SignatureError, "does not fit"):
        device.apply(serialize_envelope(other))


def test_rollback_to_an_older_update(device, bundle_folder, keys):
    device.apply(signed_by(make_update("okapi", version=2), keys))

    with refused(device, bundle_folder, VersionRollbackError, "has held version 2"):
        device.apply(signed_by(make_update("zebra", version=1), keys))


def test_rollback_to_an_older_set_of_trusted_keys(device, bundle_folder, keys, roots):
    with refused(device, bundle_folder, VersionRollbackError, "set of trusted keys has version 1"):
        device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),)), roots[0], roots[1]))


def test_wrong_target(device, bundle_folder, keys):
    update = make_update("okapi", complete=True, targets=("ab" * 32,))

    with refused(device, bundle_folder, WrongBaseError, "signed for other bundles"):
        device.apply(signed_by(update, keys))


def test_fast_forward_by_a_stolen_key_is_undone_by_the_root_keys(device, bundle_folder, keys, roots, evil):
    device.apply(signed_by(make_update("okapi", version=2), keys))
    device.apply(signed_by(make_update("poison", version=MAX_VERSION), keys))  # the key that signs updates was stolen
    new_set = TrustedKeys(public_keys=(pem(evil),), version=2, highest_version=2)  # `evil` plays the new, good key here

    device.apply(signed_by(new_set, roots[2], roots[0]))

    assert (device.version, device.classes()) == (2, ("cat", "dog", "owl", "okapi"))
    again = Device.open(bundle_folder)
    assert (again.version, again.classes()) == (2, device.classes())
    with refused(again, bundle_folder, VersionRollbackError, "has held version 2"):
        again.apply(signed_by(make_update("zebra", version=2), evil))
    again.apply(signed_by(make_update("zebra", version=3), evil))
    with refused(again, bundle_folder, SignatureError, "trusted are"):
        again.apply(signed_by(make_update("poison", version=4), keys))
    with unchanged(again, bundle_folder):  # the highest version is set once
        assert not again.apply(signed_by(new_set, roots[2], roots[0])).changed


def test_an_update_that_came_again_after_a_recovery_is_in_effect_since_then(device, keys, roots):
    update = signed_by(make_update("okapi", version=5), keys)
    first = device.apply(update)
    device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=2, highest_version=0), *roots))
    second = device.apply(update)

    again = device.apply(update)
    assert not again.changed
    assert again.entry.sequence == second.entry.sequence > first.entry.sequence
    assert [line.sequence for line in device.history()] == [1, 2, 3, 4]


def test_a_recovery_behind_every_kept_state_gives_the_bundle_as_it_was_exported(device, keys, roots):
    for version in range(10, 20):
        device.apply(signed_by(make_update(f"class {version}", version=version, complete=True), keys))

    device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=2, highest_version=5), *roots))

    assert (device.version, device.classes()) == (0, ("cat", "dog", "owl"))
    device.apply(signed_by(make_update("okapi", version=6), keys))


def test_a_recovery_that_would_leave_no_class_says_so(device, bundle_folder, keys, roots):
    device.apply(signed_by(make_update("poison", version=9), keys))
    for name in ("cat", "dog", "owl"):
        device.disable(name)
    recovery = signed_by(TrustedKeys(public_keys=(pem(keys),), version=2, highest_version=0), *roots)

    with refused(device, bundle_folder, ClassConflictError, "No class would be left to choose"):
        device.apply(recovery)
    device.enable("cat")
    device.apply(recovery)
    assert device.classes() == ("cat",)


def test_versions_are_given_back_by_root_keys_alone(bundle_folder, keys):
    device = Device.open(bundle_folder)
    device.apply(signed_by(make_update("okapi", version=5), keys))

    with refused(device, bundle_folder, SignatureError, "has no root keys, which alone may do that"):
        device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), highest_version=1), keys))


def test_a_set_of_keys_that_says_it_is_an_update_is_none(device, bundle_folder, keys, evil):
    """The key that signs updates may sign the type of an update, over any bytes."""
    disguised = envelope_of(make_update("okapi"))
    disguised.payload = serialize_trusted_keys(TrustedKeys(public_keys=(pem(evil),), version=2))
    disguised.sign(load_private_key(keys.private_path))

    with refused(device, bundle_folder, CorruptFileError, "class update"):
        device.apply(serialize_envelope(disguised))


def test_a_stolen_update_key_cannot_take_over_the_trusted_set(device, bundle_folder, keys, evil):
    for keyset in (
        TrustedKeys(public_keys=(pem(evil),), version=2),
        TrustedKeys(public_keys=(pem(evil),), version=MAX_VERSION),
        TrustedKeys(public_keys=(pem(keys),), version=2, root_keys=(pem(evil),)),
    ):
        with refused(device, bundle_folder, SignatureError, "trusted are"):
            device.apply(signed_by(keyset, keys, evil))


def test_root_keys_below_the_threshold_change_nothing(device, bundle_folder, keys, roots, evil):
    new_set = TrustedKeys(public_keys=(pem(evil),), version=2)
    with refused(device, bundle_folder, SignatureError, "signed by 1 of the trusted keys; 2 must"):
        device.apply(signed_by(new_set, roots[0], keys, evil))

    envelope = envelope_of(new_set)
    envelope.sign(load_private_key(roots[0].private_path))
    forged = envelope.signatures[roots[0].key_id]
    envelope.signatures[roots[1].key_id] = type(forged)(roots[1].key_id, forged.signature)
    with refused(device, bundle_folder, SignatureError, "does not fit"):
        device.apply(serialize_envelope(envelope))


def test_root_keys_at_the_threshold_replace_every_key_and_the_thief_is_out(
    device, bundle_folder, keys, roots, tmp_path
):
    release, new_root = keygen(tmp_path / "release-2"), keygen(tmp_path / "root-new")
    new_set = TrustedKeys(public_keys=(pem(release),), version=2, root_keys=(pem(new_root),))
    with refused(device, bundle_folder, SignatureError, "root keys that the set brings must sign it too"):
        device.apply(signed_by(new_set, roots[0], roots[1]))

    device.apply(signed_by(new_set, roots[0], roots[1], new_root))

    with refused(device, bundle_folder, SignatureError, "trusted are"):
        device.apply(signed_by(make_update("okapi"), keys))
    with refused(device, bundle_folder, SignatureError, "trusted are"):
        device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=3), *roots))
    device.apply(signed_by(make_update("okapi"), release))


def test_root_keys_do_not_sign_updates(device, bundle_folder, roots):
    with refused(device, bundle_folder, SignatureError, "trusted are"):
        device.apply(signed_by(make_update("okapi"), *roots))


def test_root_keys_come_along_to_a_bundle_that_replaces_another(device, keys, evil, tmp_path):
    folder = write_bundle(tmp_path / "new", capacity=9)

    device.replace(folder)

    with refused(device, folder, SignatureError, "trusted are"):
        device.apply(signed_by(TrustedKeys(public_keys=(pem(evil),), version=2), keys))


def test_no_rollback_brings_one_role_back(device, bundle_folder, keys, evil):
    device.apply(signed_by(make_update("okapi"), keys))
    device.rollback()

    with refused(device, bundle_folder, SignatureError, "trusted are"):
        device.apply(signed_by(TrustedKeys(public_keys=(pem(evil),), version=2), keys))


def test_a_device_without_root_keys_works_as_before_there_were_roles(bundle_folder, keys, evil):
    device = Device.open(bundle_folder)

    device.apply(signed_by(TrustedKeys(public_keys=(pem(evil),)), keys))

    device.apply(signed_by(make_update("okapi"), evil))
    assert b"root_keys" not in (bundle_folder / "state" / "journal.json").read_bytes()


def test_a_bundle_that_takes_the_place_of_another_takes_its_root_keys_and_how_many_of_them_must_sign(
    device, new_folder, roots
):
    device.replace(new_folder)

    journal = parse_journal((new_folder / "state" / "journal.json").read_bytes())
    assert (journal.root_keys, journal.root_threshold) == (tuple(map(pem, roots)), 2)


def test_the_journal_keeps_root_keys_and_refuses_a_threshold_that_nobody_can_reach(device, bundle_folder, roots):
    import hashlib

    data = (bundle_folder / "state" / "journal.json").read_bytes()
    journal = parse_journal(data)
    assert (journal.root_keys, journal.root_threshold) == (tuple(map(pem, roots)), 2)
    for threshold in (b"0", b"4", b"true", b'"2"'):
        text = data[len(b'{"journal":') : data.rindex(b',"sha256":')]
        text = text.replace(b'"root_threshold":2', b'"root_threshold":' + threshold)
        forged = b'{"journal":' + text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'
        with pytest.raises(CorruptFileError, match="journal of the device is damaged"):
            parse_journal(forged)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"root_threshold": 2}, "2 of 1 root keys"),
        ({"root_threshold": 0}, "0 of 1 root keys"),
        ({"root_keys": (), "root_threshold": 2}, "2 of 0 root keys"),
        ({"highest_version": -1}, "highest version"),
        ({"highest_version": MAX_VERSION + 1}, "highest version"),
    ],
)
def test_roles_that_contradict_themselves_are_refused(fields, match, keys, roots):
    values = {"public_keys": (pem(keys),), "root_keys": (pem(roots[0]),)} | fields

    with pytest.raises(IncompatibleError, match=match):
        TrustedKeys(**values)


def test_one_root_key_counts_once_however_often_it_is_named(keys, roots):
    with pytest.raises(IncompatibleError, match="2 of 1 root keys are to sign"):
        TrustedKeys(public_keys=(pem(keys),), root_keys=(pem(roots[0]), pem(roots[0]) + "\n"), root_threshold=2)


def test_no_more_root_keys_than_a_device_reads_can_be_named(keys, tmp_path):
    many = [pem(keygen(tmp_path / f"many-{number}")) for number in range(17)]

    with pytest.raises(IncompatibleError, match="at most 16"):
        TrustedKeys(public_keys=(pem(keys),), root_keys=tuple(many))


def test_a_key_has_one_role(keys):
    with pytest.raises(IncompatibleError, match="both root keys and keys that sign updates"):
        TrustedKeys(public_keys=(pem(keys),), root_keys=(pem(keys),))


def test_no_later_set_gives_a_root_key_the_other_role(device, bundle_folder, keys, roots):
    """A set without root keys leaves the device's, so what it says must be looked at next to those."""
    for public_keys in ((pem(roots[0]),), (pem(keys), pem(roots[2]))):
        with refused(device, bundle_folder, IncompatibleError, "1 keys of the set are root keys of this device"):
            device.apply(signed_by(TrustedKeys(public_keys=public_keys, version=2), *roots))

    new_roots = TrustedKeys(public_keys=(pem(roots[0]),), version=2, root_keys=(pem(roots[1]), pem(roots[2])))
    device.apply(signed_by(new_roots, *roots))  # it is no root key any more
    device.apply(signed_by(make_update("okapi"), roots[0]))


def test_a_later_set_that_names_no_root_keys_leaves_them_and_their_threshold(device, bundle_folder, keys, roots, evil):
    device.apply(signed_by(TrustedKeys(public_keys=(pem(evil),), version=2), *roots[:2]))

    for running in (device, Device.open(bundle_folder)):
        for signers in ((evil,), (keys,), roots[:1], (roots[2], evil)):
            with refused(running, bundle_folder, SignatureError, "trusted"):
                running.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=3), *signers))
    device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=3), *roots[1:]))


def test_new_root_keys_must_sign_in_the_number_that_their_own_set_says(device, bundle_folder, keys, roots, tmp_path):
    new = [keygen(tmp_path / f"next-{number}") for number in range(2)]
    new_set = TrustedKeys(public_keys=(pem(keys),), version=2, root_keys=tuple(map(pem, new)), root_threshold=2)

    with refused(device, bundle_folder, SignatureError, "root keys that the set brings must sign it too"):
        device.apply(signed_by(new_set, *roots, new[0]))
    device.apply(signed_by(new_set, *roots, *new))
    assert device._opened.updater.held.journal.root_threshold == 2


def test_root_keys_that_come_with_the_set_itself_give_no_versions_back(bundle_folder, keys, roots):
    """Else a stolen key could bring root keys of the thief and undo what spent versions protect, in one file."""
    device = Device.open(bundle_folder)
    device.apply(signed_by(make_update("okapi", version=5), keys))
    at_once = TrustedKeys(public_keys=(pem(keys),), root_keys=(pem(roots[0]),), highest_version=1)

    with refused(device, bundle_folder, SignatureError, "has no root keys, which alone may do that"):
        device.apply(signed_by(at_once, keys, roots[0]))


def test_a_recovery_gives_back_no_version_of_the_bundle_itself(tmp_path, keys, roots):
    folder = write_bundle(tmp_path / "exported with updates", head_version=7)
    trust(folder, keys.public_path)
    device = Device.open(folder)
    device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), root_keys=(pem(roots[0]),)), keys, roots[0]))

    device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=2, highest_version=3), roots[0]))

    again = Device.open(folder)
    assert (device.version, again.version) == (7, 7)
    with refused(again, folder, VersionRollbackError, "has held version 7"):
        again.apply(signed_by(make_update("okapi", version=7), keys))
    again.apply(signed_by(make_update("okapi", version=8), keys))


def test_the_history_says_which_version_a_recovery_went_back_to(device, keys, roots):
    for version in (1, 2, 9):
        device.apply(signed_by(make_update(f"class {version}", version=version), keys))

    entry = device.apply(signed_by(TrustedKeys(public_keys=(pem(keys),), version=2, highest_version=2), *roots)).entry

    assert (entry.action, entry.version, device.version) == ("trust", 2, 2)
    assert device.history()[-1] == entry


def test_a_set_with_roles_comes_back_from_its_file_and_one_without_is_written_as_before(keys, roots):
    plain = TrustedKeys(public_keys=(pem(keys),))
    with_roles = TrustedKeys(
        public_keys=(pem(keys),), root_keys=tuple(map(pem, roots)), root_threshold=3, highest_version=7
    )

    assert b"root" not in serialize_trusted_keys(plain)
    for each in (plain, with_roles):
        assert parse_trusted_keys(serialize_trusted_keys(each)) == each


def test_a_publisher_gives_devices_root_keys_by_the_public_functions(bundle_folder, keys, roots, tmp_path):
    out = tmp_path / "roles.icis"
    icis_deploy.rotate_keys(
        [keys.public_path],
        key=keys.private_path,
        version=1,
        out=out,
        root=[root.public_path for root in roots],
        threshold=2,
    )
    device = Device.open(bundle_folder)
    with refused(device, bundle_folder, SignatureError, "brings must sign it too"):
        device.apply(out)

    for root in roots[:2]:
        icis_deploy.sign(out, key=root.private_path)
    device.apply(out)

    assert np.all([entry.action == "trust" for entry in device.history()])
