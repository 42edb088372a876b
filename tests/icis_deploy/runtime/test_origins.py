"""Who signed what is in effect: kept as long as it is, whatever the history lets go, and no revoked key comes back."""

from __future__ import annotations

import pytest

from icis_deploy.errors import SignatureError
from icis_deploy.runtime import operations
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state.journal import MAX_HISTORY, parse_journal
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from testing.bundles import files_in, make_update, signed_bytes, trust


@pytest.fixture
def device(bundle_folder):
    return Device.open(bundle_folder, num_threads=1)


@pytest.fixture
def other(tmp_path, bundle_folder):
    """A second key that the bundle trusts."""
    pair = keygen(tmp_path / "other-key")
    trust(bundle_folder, pair.public_path)
    return pair


def unsigned(update):
    return serialize_envelope(envelope_of(update))


def let_history_go(device):
    for _ in range(MAX_HISTORY):
        device.disable("cat")
        device.enable("cat")


def origins(folder):
    return {
        each.name: (each.origin, each.signed_by) for each in operations.classes(folder).classes if each.slot is not None
    }


def revoke(device, signer, *kept):
    device.apply(signed_bytes(trusted_keys_from_files([pair.public_path for pair in kept]), signer.private_path))


def test_that_nobody_signed_a_class_is_known_as_long_as_it_is_in_effect(device, bundle_folder, keys):
    device.apply(unsigned(make_update("okapi", version=1)), allow_unsigned=True)
    device.apply(signed_bytes(make_update("zebra", version=2), keys.private_path))
    let_history_go(device)

    lines = [(line.version, line.signed_by) for line in device.history() if line.action == "apply"]
    assert lines == [(1, None), (2, keys.key_id)]
    assert len(device.history()) == MAX_HISTORY + 2
    assert [line.sequence for line in device.history()] == sorted(line.sequence for line in device.history())
    assert origins(bundle_folder) == {"okapi": ("unsigned", None), "zebra": ("signed", keys.key_id)}
    assert [(each.signed_by, len(each.columns)) for each in operations.doubtful_origins(bundle_folder)] == [(None, 1)]


def test_it_is_forgotten_with_the_last_state_that_has_the_class(device, bundle_folder, keys):
    device.apply(unsigned(make_update("okapi", version=1)), allow_unsigned=True)
    for version in range(2, 12):
        removed = ("okapi",) if version == 2 else (f"class {version - 1}",)
        device.apply(signed_bytes(make_update(f"class {version}", removed=removed, version=version), keys.private_path))
    let_history_go(device)

    assert [line.signed_by for line in device.history() if line.action == "apply"] == [keys.key_id]
    assert operations.doubtful_origins(bundle_folder) == ()


def test_a_signed_row_that_replaces_an_unsigned_one_is_signed(device, bundle_folder, keys):
    device.apply(unsigned(make_update("okapi", version=1)), allow_unsigned=True)
    device.apply(signed_bytes(make_update(replaced=("okapi",), version=2), keys.private_path))

    assert origins(bundle_folder) == {"okapi": ("signed", keys.key_id)}
    assert operations.doubtful_origins(bundle_folder) == ()
    device.rollback()
    assert origins(bundle_folder) == {"okapi": ("unsigned", None)}


def test_a_restart_and_another_process_know_it_too(device, bundle_folder, keys):
    device.apply(unsigned(make_update("okapi", version=1)), allow_unsigned=True)
    other = Device.open(bundle_folder, num_threads=1)
    other.apply(signed_bytes(make_update("zebra", version=2), keys.private_path))

    assert origins(bundle_folder) == {"okapi": ("unsigned", None), "zebra": ("signed", keys.key_id)}
    journal = parse_journal((bundle_folder / "state" / "journal.json").read_bytes())
    assert journal.current.origins == other._opened.updater.held.journal.current.origins


def test_the_classes_of_a_revoked_key_are_named_as_long_as_they_are_in_effect(device, bundle_folder, keys, other):
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))
    revoke(device, keys, other)
    let_history_go(device)

    (listed,) = [each for each in operations.classes(bundle_folder).classes if each.slot is not None]
    assert (listed.origin, listed.signed_by, listed.is_revoked) == ("signed", keys.key_id, True)
    assert [each.signed_by for each in operations.doubtful_origins(bundle_folder)] == [keys.key_id]
    assert keys.key_id in {line.signed_by for line in device.history() if line.action == "apply"}


def test_a_rollback_brings_back_the_classes_of_a_key_that_is_still_trusted(device, keys, other):
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))
    device.apply(signed_bytes(make_update(removed=("okapi",), version=2), other.private_path))

    entry = device.rollback()
    assert "okapi" in device.classes()
    assert not entry.allowed_revoked


def test_no_rollback_brings_back_the_classes_of_a_revoked_key(device, bundle_folder, keys, other):
    device.apply(signed_bytes(make_update("poison", version=1), keys.private_path))
    device.apply(signed_bytes(make_update(removed=("poison",), version=2), other.private_path))
    revoke(device, other, other)
    before = files_in(bundle_folder)

    with pytest.raises(SignatureError, match="would bring back classes signed by") as raised:
        device.rollback()
    assert raised.value.found == (keys.key_id,)
    assert files_in(bundle_folder) == before
    assert "poison" not in device.classes()
    with pytest.raises(SignatureError, match="which this device does not trust any more"):
        operations.rollback(bundle_folder)

    entry = device.rollback(allow_revoked=True)
    assert entry.allowed_revoked
    assert "poison" in device.classes()
    assert Device.open(bundle_folder, num_threads=1).history()[-1].allowed_revoked
    assert [each.signed_by for each in operations.doubtful_origins(bundle_folder)] == [keys.key_id]


def test_a_replaced_row_of_a_revoked_key_does_not_come_back_either(device, bundle_folder, keys, other):
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))
    device.apply(signed_bytes(make_update(replaced=("okapi",), version=2), other.private_path))
    revoke(device, other, other)

    with pytest.raises(SignatureError, match="would bring back"):
        device.rollback()


def test_a_rollback_may_leave_what_a_revoked_key_signed_and_is_in_effect(device, keys, other):
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))
    revoke(device, keys, other)
    device.apply(signed_bytes(make_update("zebra", version=2), other.private_path))

    entry = device.rollback()
    assert (entry.action, entry.allowed_revoked) == ("rollback", False)
    assert device.version == 1


def test_a_taught_class_has_no_signer(device, bundle_folder, keys):
    device.apply(unsigned(make_update("okapi", version=1)), allow_unsigned=True)
    device.apply(signed_bytes(make_update("zebra", removed=("okapi",), version=2), keys.private_path))
    updater = device._opened.updater
    updater.teach("gnu", lambda _: make_update("gnu").rows[0])  # the generator's part is tested where it is

    assert origins(bundle_folder) == {"zebra": ("signed", keys.key_id), "gnu": ("taught", None)}


@pytest.mark.parametrize("is_another_class", [True, False])
def test_a_slot_that_one_key_wrote_twice_does_not_bring_back_what_it_held(is_another_class, device, keys, other):
    """Who signed the column is the same key then and now; what it signed is not."""
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))
    taken, replaced = make_update("gnu", version=2, removed=("okapi",)), make_update(version=2, replaced=("okapi",))
    device.apply(signed_bytes(taken if is_another_class else replaced, keys.private_path))
    before = device.classes()
    revoke(device, keys, other)

    with pytest.raises(SignatureError, match=f"would bring back classes signed by {keys.key_id[:16]}"):
        device.rollback()
    assert device.classes() == before
    assert device.rollback(allow_revoked=True).allowed_revoked
    assert "okapi" in device.classes()


def test_a_damaged_state_is_left_also_where_it_cannot_be_compared(device, bundle_folder, keys, other):
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))
    revoke(device, keys, other)
    device.apply(signed_bytes(make_update("gnu", version=2), other.private_path))
    journal = parse_journal((bundle_folder / "state" / "journal.json").read_bytes())
    (bundle_folder / "state" / f"slots-{journal.current.slots.sha256}.safetensors").write_bytes(b"")

    operations.rollback(bundle_folder)
    assert Device.open(bundle_folder, num_threads=1).classes() == ("cat", "dog", "owl", "okapi")
