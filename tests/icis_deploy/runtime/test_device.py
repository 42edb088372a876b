"""A real device on a real model: what is taken, what is refused, and what stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial

import numpy as np
import pytest

from icis_deploy.bundle.manifest import load_bundle, load_manifest
from icis_deploy.errors import (
    CapacityError,
    ClassConflictError,
    CorruptFileError,
    ExpiredError,
    IncompatibleError,
    LoadError,
    RuntimeFailureError,
    SelfTestError,
    SignatureError,
    UsageError,
    VersionRollbackError,
    WrongBaseError,
)
from icis_deploy.runtime.changes.self_test import self_test_input
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions.openvino_session import OpenVINOSession
from icis_deploy.runtime.state.journal import MAX_HISTORY, MAX_STATES, initial_journal, serialize_journal
from icis_deploy.updates.envelope import envelope_of, save_update, serialize_envelope
from icis_deploy.updates.signing import keygen, load_private_key, trusted_keys_from_files
from testing.bundles import (
    FEATURE_DIM,
    TAILS,
    Clock,
    features_of,
    files_in,
    images,
    make_update,
    seen_head,
    signed_bytes,
    trust,
    write_bundle,
    write_signed,
)
from testing.serving import wait_for

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)


@pytest.fixture
def device(bundle_folder):
    return Device.open(bundle_folder, num_threads=1)


def device_at(folder, now):
    opened = Device.open(folder, num_threads=1)
    clock = Clock(now)
    device = Device(
        folder=folder, bundle=opened.bundle, session=session_of(opened), state=state_of(opened), clock=clock
    )
    device.refresh()
    return device, clock


def expected_logits(update, batch):
    head = seen_head().expand(update.rows, update.class_names)
    return head.logits(features_of(batch))


def test_a_new_class_is_answered_with_from_the_next_request_on(device, signed):
    update = make_update("okapi", "zebra")
    seen_before = device.logits(images()).values

    applied = device.apply(signed(update))

    answer = device.logits(images())
    assert answer.class_names == ("cat", "dog", "owl", "okapi", "zebra")
    assert answer.version == applied.entry.version == 1
    np.testing.assert_allclose(answer.values, expected_logits(update, images()), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(answer.values[:, :3], seen_before)
    assert [prediction.version for prediction in device.predict(images())] == [1, 1, 1]


@pytest.mark.parametrize("score_kind", TAILS)
def test_every_kind_of_model_output_takes_updates_and_gives_the_same_probabilities(score_kind, tmp_path, keys):
    folder = write_bundle(tmp_path / score_kind, score_kind=score_kind)
    trust(folder, keys.public_path)
    device, update = Device.open(folder), make_update("okapi", "zebra")

    device.apply(signed_bytes(update, keys.private_path))

    logits = expected_logits(update, images())
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for prediction, expected in zip(device.predict(images(), top=2), probabilities, strict=True):
        np.testing.assert_allclose(prediction.probabilities, np.sort(expected)[::-1][:2], rtol=1e-5)


def test_an_update_adds_replaces_and_removes_at_once(device, signed):
    device.apply(signed(make_update("okapi", "zebra", version=1)))

    applied = device.apply(signed(make_update("quagga", version=2, replaced=("zebra",), removed=("okapi",))))

    assert device.classes() == ("cat", "dog", "owl", "quagga", "zebra")
    assert (applied.entry.num_added, applied.entry.num_replaced, applied.entry.num_removed) == (1, 1, 1)


def test_the_next_start_finds_what_was_applied(device, bundle_folder, signed):
    device.apply(signed(make_update("okapi")))

    reopened = Device.open(bundle_folder)

    assert (reopened.version, reopened.classes()) == (1, ("cat", "dog", "owl", "okapi"))
    np.testing.assert_array_equal(reopened.logits(images()).values, device.logits(images()).values)


def test_an_update_comes_from_a_file_as_well_as_from_bytes(device, tmp_path, keys):
    path = write_signed(tmp_path / "new.icis", make_update("okapi"), keys.private_path)

    assert device.apply(path).content == make_update("okapi")
    assert device.history()[0].signed_by == keys.key_id


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_may_be_in_any_buffer(kind, device, signed):
    assert device.apply(kind(signed(make_update("okapi")))).content == make_update("okapi")


def test_the_parts_of_the_time_add_up(device, signed):
    timings = device.apply(signed(make_update("okapi"))).timings

    parts = [timings.verify_ms, timings.journal_ms, timings.sync_ms, timings.self_test_ms, timings.swap_ms]
    assert min(parts) > 0
    assert timings.total_ms == pytest.approx(sum(parts) + timings.inference_ms)
    assert timings.work_ms == pytest.approx(timings.total_ms - timings.sync_ms - timings.inference_ms)


# What is refused leaves every byte where it was.


def refused(device, folder, data, error, message, **options):
    before, state = files_in(folder), state_of(device)
    with pytest.raises(error, match=message):
        device.apply(data, **options)
    assert files_in(folder) == before
    assert state_of(device) is state


@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_a_damaged_unsigned_update_is_refused_whatever_is_allowed(allow_unsigned, device, bundle_folder):
    envelope = envelope_of(make_update("okapi"))
    payload = bytearray(envelope.payload)
    payload[-2] ^= 0x10  # within the last row
    envelope.payload = bytes(payload)
    error, message = (CorruptFileError, "is damaged") if allow_unsigned else (SignatureError, "is not signed")
    refused(device, bundle_folder, serialize_envelope(envelope), error, message, allow_unsigned=allow_unsigned)


def test_an_unsigned_update_is_refused(device, bundle_folder):
    data = serialize_envelope(envelope_of(make_update("okapi")))
    refused(device, bundle_folder, data, SignatureError, r"The file is not signed\. .*allow_unsigned=True")


def test_an_unsigned_update_is_taken_where_the_operator_allows_it_and_the_history_says_so(device):
    device.apply(serialize_envelope(envelope_of(make_update("okapi"))), allow_unsigned=True)

    assert device.history()[0].signed_by is None
    assert device.classes()[-1] == "okapi"


@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_a_strangers_signature_is_refused_whatever_is_allowed(allow_unsigned, device, bundle_folder, tmp_path):
    stranger = keygen(tmp_path / "stranger")
    data = signed_bytes(make_update("okapi"), stranger.private_path)
    message = rf"signed by '{stranger.key_id[:16]}'; trusted are '\w{{16}}'"
    refused(device, bundle_folder, data, SignatureError, message, allow_unsigned=allow_unsigned)


def test_a_signature_does_not_carry_over_to_other_rows(device, bundle_folder, keys):
    envelope = envelope_of(make_update("okapi"))
    other = envelope_of(make_update("okapi", seed=5))
    envelope.sign(load_private_key(keys.private_path))
    other.signatures = envelope.signatures
    message = r"The signature by '\w{16}' does not fit the file: it was changed after signing, or damaged"
    refused(device, bundle_folder, serialize_envelope(other), SignatureError, message)


def test_an_update_for_another_head_is_refused(device, bundle_folder, signed):
    update = make_update("okapi", base_fingerprint=seen_head(seed=9).fingerprint)
    refused(
        device, bundle_folder, signed(update), WrongBaseError, r"made for the head \w{16}…; this device's is \w{16}…"
    )


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1.1e30])
def test_an_update_whose_logits_would_overflow_is_at_fault_and_nothing_is_written(value, device, bundle_folder, signed):
    update = make_update("okapi")
    rows = update.rows.copy()
    rows[0, 2] = value
    object.__setattr__(update, "rows", rows)  # as one is signed that another program made
    message = r"breaks its own rules: The row of 'okapi' .* with values above 1e\+30 logits overflow float32\. Inject"
    refused(device, bundle_folder, signed(update), CorruptFileError, message)


@pytest.mark.parametrize("version", [1, 3])
def test_a_version_that_the_device_has_passed_is_refused(version, device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", version=3)))
    message = rf"has version {version}; this device has held version 3, so it takes 4 or greater"
    refused(device, bundle_folder, signed(make_update("zebra", version=version)), VersionRollbackError, message)


def test_a_version_stays_spent_after_a_rollback(device, bundle_folder, signed):
    data = signed(make_update("okapi", version=3))
    device.apply(data)
    device.rollback()

    refused(device, bundle_folder, data, VersionRollbackError, "this device has held version 3")


def test_more_classes_than_slots_are_refused(device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", "zebra", version=1)))
    data = signed(make_update("a", "b", "c", version=2))
    refused(device, bundle_folder, data, CapacityError, "adds 3 classes; 4 slots, 2 used")


def test_a_class_that_is_known_cannot_be_added(device, bundle_folder, signed):
    refused(device, bundle_folder, signed(make_update("owl")), ClassConflictError, "adds 'owl', which the head already")


def test_a_fused_head_takes_no_update(tmp_path, keys, signed):
    folder = write_bundle(tmp_path / "fused", capacity=0)
    trust(folder, keys.public_path)
    device = Device.open(folder)
    refused(device, folder, signed(make_update("okapi")), IncompatibleError, r"head is fused: .* `head='updatable'`")


def test_a_file_too_large_for_any_update_of_this_bundle_is_refused_unread(device, bundle_folder, tmp_path):
    path = tmp_path / "huge.icis"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    refused(device, bundle_folder, path, CorruptFileError, r"which no update for this bundle \(4 slots\) has")


def test_a_file_that_is_not_there_is_named(device, bundle_folder, tmp_path):
    path = tmp_path / "missing.icis"
    refused(device, bundle_folder, path, LoadError, r"Cannot read the class update .*missing\.icis: No such file")


def test_the_message_of_a_damaged_update_says_so(device, bundle_folder, signed):
    data = signed(make_update("okapi"))[:-30]
    refused(device, bundle_folder, data, CorruptFileError, "it is no DSSE envelope")


# Expiry and clocks.


def test_an_update_is_taken_until_it_expires(bundle_folder, signed):
    device, clock = device_at(bundle_folder, NOW)
    update = make_update("okapi", expires=NOW)
    refused(
        device, bundle_folder, signed(update), ExpiredError, r"expired at 2026-11-23T12:00:00Z; .* is 2026-11-23T12:00"
    )

    clock.now = NOW - timedelta(seconds=1)
    device.apply(signed(update))
    assert device.version == 1


def test_a_clock_that_was_set_back_is_not_believed(bundle_folder, signed):
    device, clock = device_at(bundle_folder, NOW)
    device.apply(signed(make_update("okapi", version=1)))
    clock.now = NOW - timedelta(days=300)

    update = make_update("zebra", version=2, expires=NOW - timedelta(days=1))
    message = r"its clock says 2026-01-27T12:00:00Z, which is before the last change it committed"
    refused(device, bundle_folder, signed(update), ExpiredError, message)
    device.apply(signed(make_update("zebra", version=2, expires=NOW + timedelta(days=1))))
    assert device.history()[-1].time == NOW


def test_a_device_that_starts_without_a_clock_takes_nothing_that_expired_before_its_bundle_was_written(tmp_path, keys):
    folder = write_bundle(tmp_path / "written", written_at=NOW)
    trust(folder, keys.public_path)
    device, _ = device_at(folder, datetime(1970, 1, 1, tzinfo=timezone.utc))
    signed = partial(signed_bytes, private_key=keys.private_path)

    message = r"its clock says 1970-01-01T00:00:00Z, which is before the bundle was written"
    refused(device, folder, signed(make_update("okapi", expires=NOW)), ExpiredError, message)
    refused(
        device,
        folder,
        signed(trusted_keys_from_files([keys.public_path]).with_terms(version=1, expires=NOW)),
        ExpiredError,
        message,
    )
    device.apply(signed(make_update("okapi", expires=NOW + timedelta(seconds=1))))
    assert device.history()[-1].time == NOW


def test_a_bundle_that_does_not_say_when_it_was_written_is_not_older_than_the_project(bundle_folder, signed):
    device, _ = device_at(bundle_folder, datetime(1970, 1, 1, tzinfo=timezone.utc))

    expired = make_update("okapi", expires=datetime(2020, 1, 1, tzinfo=timezone.utc))
    refused(device, bundle_folder, signed(expired), ExpiredError, "before the bundle was written")


def test_a_journal_from_a_time_without_a_clock_does_not_lower_the_floor(tmp_path, keys):
    folder = write_bundle(tmp_path / "written", written_at=NOW)
    trust(folder, keys.public_path)
    bundle = load_manifest(folder)
    (folder / "state").mkdir()
    old = replace(initial_journal(bundle), last_seen=datetime(1970, 1, 2, tzinfo=timezone.utc))
    (folder / "state" / "journal.json").write_bytes(serialize_journal(old))

    device, _ = device_at(folder, datetime(1970, 1, 3, tzinfo=timezone.utc))

    update = signed_bytes(make_update("okapi", expires=NOW), keys.private_path)
    refused(device, folder, update, ExpiredError, "before the bundle was written")


# Rollback.


def test_rollback_walks_back_one_state_at_a_time_as_far_as_the_exported_one(device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("zebra", version=2)))
    logits = []
    for version, classes in [(1, ("cat", "dog", "owl", "okapi")), (0, ("cat", "dog", "owl"))]:
        entry = device.rollback()
        assert (entry.version, device.version, device.classes()) == (version, version, classes)
        assert Device.open(bundle_folder).classes() == classes
        logits.append(device.logits(images()).values)

    np.testing.assert_array_equal(logits[0][:, :3], logits[1])
    with pytest.raises(UsageError, match=r"nothing to roll back to: version 0 is the oldest state .* \(at most 8\)"):
        device.rollback()


def test_a_newer_update_goes_on_from_the_state_that_rollback_left(device, signed):
    device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("zebra", version=2)))
    device.rollback()

    device.apply(signed(make_update("quagga", version=3)))
    assert device.classes() == ("cat", "dog", "owl", "okapi", "quagga")
    device.rollback()
    assert device.classes() == ("cat", "dog", "owl", "okapi")


def test_old_states_and_old_history_are_let_go(device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", version=1)))
    for version in range(2, MAX_HISTORY + 4):
        device.apply(signed(make_update(replaced=("okapi",), version=version)))

    assert len(list((bundle_folder / "state").glob("slots-*"))) == MAX_STATES
    assert [entry.sequence for entry in device.history()] == list(range(4, MAX_HISTORY + 4))
    for _ in range(MAX_STATES - 1):
        device.rollback()
    with pytest.raises(UsageError, match="nothing to roll back to"):
        device.rollback()


# Enabling and disabling.


@pytest.mark.parametrize("name", ["dog", "okapi"])
def test_a_disabled_class_is_in_no_answer_until_it_is_enabled(name, device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", "zebra")))
    everything = device.logits(images())

    assert device.disable(name)

    for opened in (device, Device.open(bundle_folder)):
        answer = opened.logits(images())
        kept = [index for index, other in enumerate(everything.class_names) if other != name]
        assert answer.class_names == tuple(everything.class_names[index] for index in kept)
        np.testing.assert_array_equal(answer.values, everything.values[:, kept])
        assert all(name not in prediction.class_names for prediction in opened.predict(images()))
    assert not device.disable(name)
    assert device.enable(name)
    assert not device.enable(name)
    assert device.classes() == everything.class_names
    assert [entry.action for entry in device.history()] == ["apply", "disable", "enable"]


def test_what_an_operator_disabled_no_update_and_no_restart_enables(device, bundle_folder, signed):
    """Neither in the process that applies it nor in the next one, nor where the class itself comes anew."""
    device.apply(signed(make_update("okapi")))
    device.disable("dog")
    device.disable("okapi")
    device.apply(signed(make_update("zebra", replaced=("okapi",), version=2)))

    for running in (device, Device.open(bundle_folder)):
        assert running.classes() == ("cat", "owl", "zebra")
        assert running.disabled_classes() == ("dog", "okapi")


def test_what_an_operator_disabled_no_rollback_enables(device, signed):
    device.apply(signed(make_update("okapi")))
    device.disable("dog")
    device.rollback()

    assert device.classes() == ("cat", "owl")


def test_an_unknown_class_cannot_be_disabled(device):
    with pytest.raises(ClassConflictError, match=r"knows no class 'unicorn'\. `Device\.classes\(\)` lists the 3"):
        device.disable("unicorn")


def test_the_last_class_cannot_be_disabled_nor_taken_away(device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", version=1)))
    for name in ("cat", "dog", "owl"):
        device.disable(name)
    before = files_in(bundle_folder)

    with pytest.raises(ClassConflictError, match="No class would be left to choose"):
        device.disable("okapi")
    with pytest.raises(ClassConflictError, match="No class would be left to choose: 'cat', 'dog', 'owl' are disabled"):
        device.rollback()
    with pytest.raises(ClassConflictError, match="No class would be left to choose"):
        device.apply(signed(make_update(version=2, removed=("okapi",), rows=np.zeros((0, 5)))))
    assert files_in(bundle_folder) == before
    assert device.classes() == ("okapi",)


# Trusted keys.


def test_a_new_key_takes_the_place_of_the_old_one_and_no_rollback_brings_it_back(device, bundle_folder, keys, tmp_path):
    new = keygen(tmp_path / "new-key")
    device.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))

    applied = device.apply(signed_bytes(trusted_keys_from_files([new.public_path]), keys.private_path))

    assert (applied.entry.action, applied.entry.signed_by, device.version) == ("trust", keys.key_id, 1)
    device.rollback()
    for opened in (device, Device.open(bundle_folder)):
        data = signed_bytes(make_update("zebra", version=2), keys.private_path)
        refused(opened, bundle_folder, data, SignatureError, rf"trusted are '{new.key_id[:16]}'")
    device.apply(signed_bytes(make_update("zebra", version=2), new.private_path))
    assert device.classes()[-1] == "zebra"


def test_trusted_keys_are_never_taken_unsigned(device, bundle_folder, tmp_path):
    new = keygen(tmp_path / "new-key")
    data = serialize_envelope(envelope_of(trusted_keys_from_files([new.public_path])))
    message = "Trusted keys must be signed by a key that is trusted now"
    refused(device, bundle_folder, data, SignatureError, message, allow_unsigned=True)


def test_an_old_set_of_trusted_keys_cannot_come_back(device, bundle_folder, keys, signed):
    old = trusted_keys_from_files([keys.public_path])
    device.apply(signed(replace(old, version=2)))
    refused(
        device,
        bundle_folder,
        signed(old),
        VersionRollbackError,
        "set of trusted keys has version 1; this device has held",
    )


def test_an_expired_set_of_trusted_keys_is_refused(bundle_folder, keys, signed):
    device, _ = device_at(bundle_folder, NOW)
    expired = replace(trusted_keys_from_files([keys.public_path]), expires=NOW)
    refused(device, bundle_folder, signed(expired), ExpiredError, "The set of trusted keys expired at")


def test_a_fused_head_takes_new_keys(tmp_path, keys, signed):
    folder = write_bundle(tmp_path / "fused", capacity=0)
    trust(folder, keys.public_path)

    Device.open(folder).apply(signed(trusted_keys_from_files([keys.public_path])))

    assert Device.open(folder).classes() == ("cat", "dog", "owl")


# The self-test.


class StaleSession:
    """A session whose slots stay what they were when it was made: what a refit that did nothing looks like."""

    def __init__(self, session, buffers):
        self._session, self._buffers = session, buffers
        self.load_slots = session.load_slots

    def read_slots(self, slots):
        return None

    def run(self, images, slots=None, *, with_features=False):
        return self._session.run(images, self._buffers, with_features=with_features)


class BrokenSession(StaleSession):
    def run(self, images, slots=None, *, with_features=False):
        raise RuntimeFailureError("the accelerator is gone")


@pytest.mark.parametrize("score_kind", TAILS)
def test_slots_that_do_not_hold_their_rows_are_noticed_and_taken_back(score_kind, tmp_path, keys, signed):
    folder = write_bundle(tmp_path / score_kind, score_kind=score_kind)
    trust(folder, keys.public_path)
    good = Device.open(folder)
    stale = StaleSession(session_of(good), state_of(good).buffers)
    device = Device(folder=folder, bundle=good.bundle, session=stale, state=state_of(good))
    message = {
        "logits": r"2 of 4 slots do not hold their rows after they were written: 'okapi', 'zebra'\. 'okapi' gave",
    }.get(score_kind, "A slot with a known logit does not show in what the model gives")
    refused(device, folder, signed(make_update("okapi", "zebra")), SelfTestError, message)
    assert not (folder / "state").exists()


class DamagedMemory:
    """A session whose memory is damaged when slots are loaded; what reads and what answers see the same."""

    def __init__(self, session, damage):
        self._session, self._damage, self.is_damaged = session, damage, False
        self.run, self.read_slots = session.run, session.read_slots

    def load_slots(self, weight, bias, arbiter=None):
        weight, bias = weight.copy(), bias.copy()
        if self.is_damaged:
            self._damage(weight, bias)
        return self._session.load_slots(weight, bias, arbiter)


def flip_bit(array, index, bit):
    array.view(np.uint32)[index] ^= np.uint32(1 << bit)


@pytest.mark.parametrize("bit", [0, 23, 31])
@pytest.mark.parametrize("change", ["apply", "rollback"])
def test_one_wrong_bit_in_the_memory_of_a_runtime_is_noticed_and_taken_back(change, bit, device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("zebra", version=2)))
    damaged = DamagedMemory(session_of(device), lambda weight, _bias: flip_bit(weight, (0, FEATURE_DIM - 1), bit))
    other = Device(folder=bundle_folder, bundle=device.bundle, session=damaged, state=state_of(device))
    other.refresh()  # so that the change is what is tested, and not what another device committed
    damaged.is_damaged = True
    before = files_in(bundle_folder)

    with pytest.raises(SelfTestError, match=r"1 of 4 slots do not hold their rows .*: 'okapi'\. .* was taken back"):
        other.rollback() if change == "rollback" else other.apply(signed(make_update("ibex", version=3)))
    assert files_in(bundle_folder) == before


@pytest.mark.parametrize("call", ["refresh", "disable", "apply"])
def test_what_another_process_committed_is_tested_before_a_change_goes_on_top_of_it(
    call, device, bundle_folder, signed
):
    damaged = DamagedMemory(session_of(device), lambda weight, _bias: flip_bit(weight, (0, FEATURE_DIM - 1), 0))
    other = Device(folder=bundle_folder, bundle=device.bundle, session=damaged, state=state_of(device))
    device.apply(signed(make_update("okapi", version=1)))
    damaged.is_damaged = True
    arguments = {"disable": ["cat"], "apply": [signed(make_update("zebra", version=2))]}.get(call, [])
    before = files_in(bundle_folder)

    with pytest.raises(SelfTestError, match=r"1 of 4 slots do not hold their rows .*: 'okapi'\."):
        getattr(other, call)(*arguments)

    assert files_in(bundle_folder) == before
    assert (other.version, other.classes()) == (0, ("cat", "dog", "owl"))


def test_the_model_tests_what_another_process_committed_where_the_memory_of_its_runtime_cannot_be_read(
    device, bundle_folder, signed
):
    stale = StaleSession(session_of(device), state_of(device).buffers)
    other = Device(folder=bundle_folder, bundle=device.bundle, session=stale, state=state_of(device))
    device.apply(signed(make_update("okapi", version=1)))

    with pytest.raises(SelfTestError, match=r"1 of 4 slots do not hold their rows .*: 'okapi'\."):
        other.refresh()
    assert (other.version, other.classes()) == (0, ("cat", "dog", "owl"))


def test_slots_that_passed_in_one_runtime_are_tested_again_where_another_one_opens_them(
    device, bundle_folder, signed, monkeypatch
):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    device.apply(signed(make_update("okapi", version=1)))
    load = OpenVINOSession.load_slots

    def load_zeros(session, weight, bias, arbiter=None):
        return load(session, np.zeros_like(weight), bias, arbiter)

    monkeypatch.setattr(OpenVINOSession, "load_slots", load_zeros)
    with pytest.raises(SelfTestError, match=r"1 of 4 slots do not hold their rows .*: 'okapi'\."):
        Device.open(bundle_folder, runtime="openvino", num_threads=1)


def test_the_seed_of_an_update_chooses_the_input_where_the_model_has_to_run(bundle_folder, device, signed):
    patient = PatientSession(session_of(device), bundle_folder / "state")
    other = Device(folder=bundle_folder, bundle=device.bundle, session=patient, state=state_of(device))
    for version, seed in ((1, 3), (2, 6)):
        other.apply(signed(replace(make_update(f"class {version}", version=version), self_test_seed=seed)))
        np.testing.assert_array_equal(patient.seeded[-1], self_test_input(device.bundle, seed))


class CountingSession:
    """A session that counts its runs."""

    def __init__(self, session):
        self._session, self.num_runs = session, 0
        self.load_slots, self.read_slots = session.load_slots, session.read_slots

    def run(self, images, slots=None, *, with_features=False):
        self.num_runs += 1
        return self._session.run(images, slots, with_features=with_features)


def test_no_model_runs_for_a_change_where_the_memory_of_the_runtime_can_be_read(bundle_folder, device, signed):
    counting = CountingSession(session_of(device))
    other = Device(folder=bundle_folder, bundle=device.bundle, session=counting, state=state_of(device))

    applied = other.apply(signed(make_update("okapi", version=1)))
    other.rollback()

    assert counting.num_runs == 0
    assert applied.timings.inference_ms == 0
    assert applied.timings.self_test_ms > 0


class PatientSession:
    """A session whose runs wait until a change is all but committed, and note what the disk holds then."""

    def __init__(self, session, state_folder):
        self._session, self._folder = session, state_folder
        self.load_slots = session.load_slots
        self.names, self.seeded = None, []

    def read_slots(self, slots):
        return None

    def run(self, images, slots=None, *, with_features=False):
        wait_for((self._folder / "journal.json.new").exists)
        self.names = sorted(path.name for path in self._folder.iterdir())
        self.seeded.append(images)
        return self._session.run(images, slots, with_features=with_features)


def test_a_change_is_written_while_the_model_runs_and_committed_after_it(bundle_folder, device, signed):
    patient = PatientSession(session_of(device), bundle_folder / "state")
    other = Device(folder=bundle_folder, bundle=device.bundle, session=patient, state=state_of(device))
    applied = other.apply(signed(make_update("okapi", version=1)))

    journal, slots = patient.names
    assert (journal, slots[:6]) == ("journal.json.new", "slots-")
    assert files_in(bundle_folder / "state").keys() == {"journal.json", slots}
    assert applied.timings.inference_ms < applied.timings.total_ms


def test_a_runtime_that_fails_in_the_self_test_leaves_everything_as_it_was(device, bundle_folder, signed):
    device.apply(signed(make_update("okapi", version=1)))
    broken = BrokenSession(session_of(device), None)
    other = Device(folder=bundle_folder, bundle=device.bundle, session=broken, state=state_of(device))
    before = files_in(bundle_folder)

    with pytest.raises(RuntimeFailureError, match="the accelerator is gone"):
        other.apply(signed(make_update("zebra", version=2)))
    with pytest.raises(RuntimeFailureError, match="the accelerator is gone"):
        other.rollback()
    assert files_in(bundle_folder) == before


# Several devices on one bundle.


def test_a_running_device_takes_over_what_another_process_committed(device, bundle_folder, signed):
    other = Device.open(bundle_folder)
    assert not device.refresh()

    other.apply(signed(make_update("okapi")))

    assert device.classes() == ("cat", "dog", "owl")
    assert device.refresh()
    assert (device.version, device.classes()) == (1, ("cat", "dog", "owl", "okapi"))
    assert not device.refresh()
    other.rollback()
    assert device.refresh()
    assert device.classes() == ("cat", "dog", "owl")


def test_a_commit_between_two_looks_at_the_disk_is_not_missed(device, bundle_folder, signed):
    other, store = Device.open(bundle_folder), device._opened.updater._store
    other.apply(signed(make_update("okapi", version=1)))
    real_load = store.load_journal

    def load_before_a_commit(bundle):
        journal = real_load(bundle)
        store.load_journal = real_load
        other.apply(signed(make_update("zebra", version=2)))
        return journal

    store.load_journal = load_before_a_commit
    assert device.refresh()
    assert device.version == 1

    assert device.refresh()
    assert (device.version, device.classes()[-1]) == (2, "zebra")


def test_an_update_goes_on_top_of_what_another_process_committed(device, bundle_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi", version=1)))

    device.apply(signed(make_update("zebra", version=2)))

    assert device.classes() == ("cat", "dog", "owl", "okapi", "zebra")


def test_the_same_update_is_taken_once(device, bundle_folder, signed):
    data = signed(make_update("okapi"))
    Device.open(bundle_folder).apply(data)
    before = files_in(bundle_folder)

    assert not device.apply(data).changed
    assert files_in(bundle_folder) == before


def test_a_state_that_cannot_be_read_does_not_replace_the_one_that_answers(device, bundle_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi")))
    (path,) = (bundle_folder / "state").glob("slots-*")
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(CorruptFileError):
        device.refresh()
    assert device.classes() == ("cat", "dog", "owl")


def test_a_bundle_exported_with_updates_counts_on_from_their_version(tmp_path, keys, signed):
    folder = write_bundle(tmp_path / "later", head_version=7)
    trust(folder, keys.public_path)
    device = Device.open(folder)

    assert device.version == 7
    refused(device, folder, signed(make_update("okapi", version=7)), VersionRollbackError, "has held version 7")


def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(bundle_folder):
    path = bundle_folder / "slots.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b" ")

    with pytest.raises(CorruptFileError, match=r"slots\.safetensors has"):
        Device.open(bundle_folder)
    with pytest.raises(CorruptFileError, match=r"slots\.safetensors has"):
        Device.from_parts(bundle_folder, load_manifest(bundle_folder))


def test_asking_for_no_class_is_a_mistake(device):
    with pytest.raises(UsageError, match="top is 0"):
        device.predict(images(), top=0)


def test_pictures_need_a_bundle_that_says_how_to_prepare_them(device, tmp_path):
    with pytest.raises(IncompatibleError, match="does not state how images are prepared"):
        device.predict([tmp_path / "cat.png"])


def test_what_the_workbench_saves_unsigned_is_what_a_device_takes_when_allowed(device, tmp_path):
    save_update(make_update("okapi"), tmp_path / "new.icis")

    device.apply(str(tmp_path / "new.icis"), allow_unsigned=True)

    assert device.bundle == load_bundle(tmp_path / "bundle")
