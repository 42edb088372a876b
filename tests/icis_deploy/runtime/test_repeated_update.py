"""A file that comes again: in effect, it is there already; anything older, or anything else, is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import CorruptFileError, IncompatibleError, SignatureError, VersionRollbackError
from icis_deploy.runtime.changes.rules import max_update_bytes
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state.journal import MAX_HISTORY
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from testing.bundles import files_in, images, make_update, signed_bytes


@pytest.fixture
def device(bundle_folder):
    return Device.open(bundle_folder, num_threads=1)


def test_the_update_in_effect_changes_nothing_and_is_no_error(device, signed, bundle_folder):
    data = signed(make_update("okapi"))
    first = device.apply(data)
    before = files_in(bundle_folder)

    again = device.apply(data)

    assert (first.changed, again.changed) == (True, False)
    assert again.entry == first.entry
    assert again.content == first.content
    assert files_in(bundle_folder) == before


def test_it_still_is_after_what_spends_no_version(device, signed):
    data = signed(make_update("okapi"))
    device.apply(data)
    device.disable("okapi")

    assert not device.apply(data).changed
    assert device.version == 1
    assert "okapi" not in {answer.class_names[0] for answer in device.predict(images())}


def test_an_update_that_another_device_commits_while_it_is_being_refused_is_there_already(
    device, signed, bundle_folder, monkeypatch
):
    first, second = signed(make_update("okapi", version=1)), signed(make_update("zebra", version=2))
    updater = device._opened.updater

    def refuse_late(*_, **__):
        other = Device.open(bundle_folder, num_threads=1)
        other.apply(first)
        other.apply(second)
        raise IncompatibleError("it follows a state that was not there a moment ago")

    monkeypatch.setattr(updater, "_apply_bytes", refuse_late)
    assert not device.apply(second).changed
    assert (device.version, device.classes()[3:]) == (2, ("okapi", "zebra"))


def test_a_device_takes_over_what_another_one_committed(device, signed, bundle_folder):
    data = signed(make_update("okapi"))
    Device.open(bundle_folder, num_threads=1).apply(data)

    assert not device.apply(data).changed
    assert (device.version, device.classes()[-1]) == (1, "okapi")


def test_an_older_one_and_one_that_was_rolled_back_stay_refused(device, signed, bundle_folder):
    first, second = signed(make_update("okapi", version=1)), signed(make_update("bongo", version=2))
    device.apply(first)
    device.apply(second)
    with pytest.raises(VersionRollbackError, match="has held version 2"):
        device.apply(first)
    device.rollback()
    before = files_in(bundle_folder)

    with pytest.raises(VersionRollbackError, match="has held version 2"):
        device.apply(second)

    assert not device.apply(first).changed  # what the rollback went back to
    assert files_in(bundle_folder) == before


@pytest.mark.parametrize("fields", [{"seed": 5}, {"removed": ("okapi",)}])
def test_another_file_of_the_version_in_effect_is_refused(device, signed, fields):
    device.apply(signed(make_update("okapi", version=1)))

    with pytest.raises(VersionRollbackError):
        device.apply(signed(make_update("bongo" if "removed" in fields else "okapi", version=1, **fields)))


def test_a_set_of_keys_that_retired_its_own_signer_is_there_already(device, signed, tmp_path):
    new = keygen(tmp_path / "new")
    newer = keygen(tmp_path / "newer")
    first = signed(replace(trusted_keys_from_files([new.public_path]), version=1))
    device.apply(first)

    assert not device.apply(first).changed
    second = replace(trusted_keys_from_files([newer.public_path]), version=2)
    device.apply(signed_bytes(second, new.private_path))
    with pytest.raises(SignatureError):
        device.apply(first)


def test_an_update_whose_classes_are_in_effect_is_known_however_long_ago_it_came(device, signed):
    data = signed(make_update("okapi"))
    device.apply(data)
    for _ in range(MAX_HISTORY):
        device.disable("cat")
        device.enable("cat")

    assert not device.apply(data).changed


def test_what_the_history_has_forgotten_is_refused_as_spent(device, signed):
    data = signed(make_update("okapi"))
    device.apply(data)
    device.apply(signed(make_update("zebra", version=2)))
    device.rollback()  # of each signer the last line is kept, which is not that of the update in effect
    for _ in range(MAX_HISTORY // 2):
        device.disable("cat")
        device.enable("cat")

    with pytest.raises(VersionRollbackError):
        device.apply(data)


def test_an_update_of_a_bundle_that_was_replaced_is_not_there_though_its_version_is(device, signed, new_folder):
    data = signed(make_update("okapi", version=2))
    device.apply(data)
    device.replace(new_folder)  # exported with version 2, without the class
    assert device.version == 2

    with pytest.raises(VersionRollbackError):
        device.apply(data)


def test_other_bytes_around_the_payload_in_effect_change_nothing(device, signed, bundle_folder):
    data = signed(make_update("okapi"))
    device.apply(data)
    before = files_in(bundle_folder)
    document = json.loads(data)
    document["signatures"] = []
    assert not device.apply(json.dumps(document).encode()).changed
    with pytest.raises(CorruptFileError):
        device.apply(data[:-9])
    document["payload"] = document["payload"][:-8]
    with pytest.raises(SignatureError):
        device.apply(json.dumps(document).encode())
    assert files_in(bundle_folder) == before


def test_a_file_that_is_too_large_is_refused_also_where_it_holds_what_is_in_effect(device, signed, bundle_folder):
    data = signed(make_update("okapi"))
    device.apply(data)
    before = files_in(bundle_folder)

    with pytest.raises(CorruptFileError, match="which no update for this bundle"):
        device.apply(data + b" " * max_update_bytes(load_manifest(bundle_folder)))
    assert files_in(bundle_folder) == before
