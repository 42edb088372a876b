"""A device goes over to another bundle of the same head while it answers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from icis_deploy.errors import (
    ClassConflictError,
    CorruptFileError,
    SelfTestError,
    SignatureError,
    UsageError,
    VersionRollbackError,
    WrongBaseError,
)
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from testing.asking import asking
from testing.bundles import FEATURE_DIM, files_in, images, make_update, seen_head, signed_bytes, write_bundle
from tests.icis_deploy.runtime.test_forged_state import forge


@pytest.fixture
def device(bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    return device


def test_a_device_answers_from_the_new_bundle_and_so_does_the_next_one_to_open_it(device, new_folder):
    entry = device.replace(new_folder, num_threads=1)

    assert (entry.action, entry.version, entry.sequence) == ("replace", 2, 2)
    assert device.version == Device.open(new_folder).version == 2
    assert device.bundle.capacity == 9
    assert [each.action for each in device.history()] == ["apply", "replace"]
    assert device.predict(images(1))[0].version == 2


def test_requests_are_answered_by_one_of_the_two_all_the_time(device, new_folder):
    batch = images(1)

    with asking(lambda: device.logits(batch), num_threads=1) as asked:
        asked.wait_for_answers(20)
        device.replace(new_folder, num_threads=1)
        asked.wait_for_answers(20)

    names = {answer.version: answer.class_names for answer in asked.answers}
    assert names == {1: ("cat", "dog", "owl", "okapi"), 2: ("cat", "dog", "owl")}
    for answer in asked.answers:
        np.testing.assert_array_equal(answer.values[:, :3], asked.answers[0].values[:, :3])
        assert answer.values.shape[1] == len(names[answer.version])


def test_a_bundle_of_the_version_that_the_device_holds_is_taken_and_an_older_one_is_not(device, new_folder, signed):
    device.apply(signed(make_update("bongo", version=2)))
    assert device.replace(new_folder, num_threads=1).version == 2

    device.apply(signed(make_update("bongo", version=3)))
    with pytest.raises(VersionRollbackError, match="The bundle holds version 2; this device holds version 3"):
        Device.open(new_folder, num_threads=1).replace(write_bundle(new_folder.with_name("older"), head_version=2))


def test_a_bundle_whose_state_was_forged_after_it_was_opened_is_not_gone_over_to(device, new_folder, signed):
    new = Device.open(new_folder)
    new.apply(signed(make_update("zebra", version=3)))
    forge(new_folder, disabled=list(new.classes()))
    before = files_in(new_folder)

    with (
        device._opened.updater.locked() as former,
        pytest.raises(CorruptFileError, match="disables every class of it"),
    ):
        new._opened.updater.inherit(former)
    assert files_in(new_folder) == before


def test_a_spent_version_a_disabled_class_and_the_time_go_along(bundle_folder, device, new_folder, signed):
    device.apply(signed(make_update("bongo", version=5)))
    device.rollback()
    device.disable("owl")

    device.replace(new_folder, num_threads=1)

    assert device.classes() == ("cat", "dog")
    with pytest.raises(VersionRollbackError, match="has held version 5"):
        device.apply(signed(make_update("bongo", version=5)))
    device.apply(signed(make_update("bongo", version=6)))
    before = files_in(bundle_folder)
    device.rollback()
    assert device.version == 2
    assert files_in(bundle_folder) == before


def test_what_the_new_bundle_does_not_know_is_no_longer_disabled_and_what_it_disabled_itself_is(
    device, new_folder, signed
):
    device.disable("okapi")
    other = Device.open(new_folder)
    other.disable("owl")
    sequence = device.history()[-1].sequence

    entry = device.replace(new_folder)

    assert (entry.action, entry.sequence) == ("replace", sequence + 1)
    assert device.disabled_classes() == ("owl",)
    device.apply(signed(make_update("okapi", version=3)))  # another class of that name is not off from the start
    assert "okapi" in device.classes()


def test_a_bundle_all_of_whose_classes_the_device_disabled_is_refused(device, bundle_folder, new_folder):
    for name in ("cat", "dog", "owl"):
        device.disable(name)
    before = files_in(bundle_folder), files_in(new_folder)

    with pytest.raises(ClassConflictError, match="No class would be left to choose"):
        device.replace(new_folder)

    assert (files_in(bundle_folder), files_in(new_folder)) == before
    assert device.classes() == ("okapi",)


def test_a_revoked_key_does_not_come_back_with_the_trust_folder_of_a_new_bundle(device, new_folder, signed, tmp_path):
    new_key = keygen(tmp_path / "new-key")
    device.apply(signed(trusted_keys_from_files([new_key.public_path])))

    device.replace(new_folder, num_threads=1)

    with pytest.raises(SignatureError, match="trusted are"):
        device.apply(signed(make_update("bongo", version=6)))


def test_a_spent_set_of_keys_is_not_taken_again_from_a_new_bundle(device, new_folder, signed, keys, tmp_path):
    new_key = keygen(tmp_path / "new-key")
    back = trusted_keys_from_files([keys.public_path]).with_terms(version=1, expires=None)
    device.apply(signed(trusted_keys_from_files([new_key.public_path])))

    device.replace(new_folder, num_threads=1)

    with pytest.raises(VersionRollbackError, match="set of trusted keys has version 1; this device has held version 1"):
        device.apply(signed_bytes(back, new_key.private_path))


def test_of_two_sets_of_one_version_the_devices_own_stays(device, new_folder, signed, tmp_path):
    own, others = (keygen(tmp_path / name) for name in ("own", "others"))
    device.apply(signed(trusted_keys_from_files([own.public_path])))
    Device.open(new_folder).apply(signed(trusted_keys_from_files([others.public_path])))

    device.replace(new_folder, num_threads=1)

    with pytest.raises(SignatureError, match=f"trusted are '{own.key_id[:16]}'"):
        device.apply(signed_bytes(make_update("bongo", version=6), others.private_path))


def test_a_taught_class_does_not_get_lost_on_the_way(device, new_folder, signed):
    device._opened.updater.teach("zebra", lambda _table: np.ones(FEATURE_DIM + 1, np.float32))

    with pytest.raises(ClassConflictError, match="The bundle lacks 'zebra', which this device was taught"):
        device.replace(new_folder, num_threads=1)
    assert "zebra" in device.classes()

    Device.open(new_folder).apply(signed(make_update("zebra", version=3)))
    device.replace(new_folder, num_threads=1)
    assert device.classes() == ("cat", "dog", "owl", "zebra")


def test_the_model_of_a_new_bundle_is_run_before_anything_is_committed(device, new_folder, monkeypatch):
    before, state, run = files_in(new_folder), state_of(device), ONNXRuntimeSession.run

    def wrong(self, images, slots=None, *, with_features=False):
        output = run(self, images, slots, with_features=with_features)
        return output._replace(logits=output.logits + np.float32(1000.0))  # empty slots have -6e4

    monkeypatch.setattr(ONNXRuntimeSession, "run", wrong)
    with pytest.raises(SelfTestError, match="do not hold their rows"):
        device.replace(new_folder, num_threads=1)
    assert files_in(new_folder) == before
    assert state_of(device) is state


def test_a_clock_that_was_set_back_stays_behind_the_last_time_seen(bundle_folder, new_folder, signed, tmp_path):
    device = Device.open(bundle_folder)
    far = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=400)
    device._opened.updater._clock = lambda: far
    device.apply(signed(make_update("okapi", version=1)))

    entry = device.replace(new_folder)

    assert entry.time == far


@pytest.mark.parametrize("problem", ["same folder", "older version", "another head", "damaged"])
def test_a_refused_bundle_leaves_device_and_both_folders_as_they_were(
    problem, bundle_folder, device, new_folder, signed, tmp_path
):
    folder, error, message = {
        "same folder": (bundle_folder, UsageError, "is open already"),
        "older version": (new_folder, VersionRollbackError, "holds version 2; this device holds version 3"),
        "another head": (tmp_path / "other", WrongBaseError, "was made from the head"),
        "damaged": (new_folder, CorruptFileError, "was changed or damaged"),
    }[problem]
    if problem == "older version":
        device.apply(signed(make_update("bongo", version=3)))
    if problem == "another head":
        write_bundle(folder, head=seen_head(seed=9))
    if problem == "damaged":
        model = folder / "model.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"?")
    before, version = (files_in(bundle_folder), files_in(folder)), device.version

    with pytest.raises(error, match=message):
        device.replace(folder, num_threads=1)

    assert device.version == version
    assert (files_in(bundle_folder), files_in(folder)) == before
    device.apply(signed(make_update("gnu", version=9)))
