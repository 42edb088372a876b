"""Whatever is done to the files that a device starts from, it opens with what they say or refuses them in one line."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from icis_deploy.errors import BundleError, CorruptFileError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.operations import classes, enable
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import trusted_keys_from_files
from scripts.robustness.state_mutations import (
    KINDS,
    StateReport,
    StateTarget,
    count_case,
    run_state_mutations,
    signed_journal,
)
from testing.bundles import files_in, make_update


def test_damaged_and_forged_files_are_refused_or_read_but_never_crash_a_device(tmp_path):
    report = run_state_mutations(tmp_path, num_files=25 * len(KINDS), seed=5)

    assert report.wrong == []
    assert report.is_clean
    assert report.num_refused > 0.6 * report.num_files
    assert report.num_opened > 0.05 * report.num_files


def test_a_device_that_believes_everything_would_be_noticed(tmp_path):
    target, report = StateTarget(tmp_path), StateReport()
    target.good = (target.good[0], ("another", "head"), target.good[2])
    with pytest.raises(AssertionError, match="a damaged file opened as another state"):
        target.open_and_work(is_forged=False)
    for name, work in {
        "crash": lambda **_: 1 / 0,
        "greed": lambda **_: bytearray(101_000_000),
        "talk": lambda **_: refuse("two\nlines"),
    }.items():
        target.open_and_work = work
        tracemalloc.start()
        count_case(target, "manifest", np.random.default_rng(0), report, where=name)
        tracemalloc.stop()
    assert [wrong.partition(",")[0] for wrong in report.wrong] == [
        "crash: ZeroDivisionError: division by zero",
        "greed: 101 MB",
        "talk: a message of 9 characters",
    ]
    assert not report.is_clean


def refuse(message):
    raise BundleError(message)


def forge(folder, **changes):
    path = folder / "state" / "journal.json"
    document = json.loads(path.read_bytes())["journal"]
    if "state" in changes:
        document["states"][-1].update(changes.pop("state"))
    path.write_bytes(signed_journal(document | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disabled": ["cat", "dog", "owl", "okapi"]}, "disables every class of it"),
        ({"highest_version": 0}, "its versions contradict each other"),
        ({"highest_version": 1 << 63}, "its versions contradict each other"),
        ({"trust_version": -1}, "its versions contradict each other"),
        ({"states": []}, "it names no state"),
        ({"state": {"version": -1}}, "a state has version -1"),
        ({"state": {"taught": ["bongo"]}}, "lack taught classes \\('bongo'\\)"),
        ({"base_fingerprint": 7}, "expected a text, found 7"),
    ],
    ids=str,
)
def test_a_journal_that_no_device_writes_is_refused_and_left_as_it_is(changes, message, bundle_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi", version=3)))
    forge(bundle_folder, **changes)
    before = files_in(bundle_folder)

    with pytest.raises(CorruptFileError, match=message):
        Device.open(bundle_folder)
    assert files_in(bundle_folder) == before


@pytest.mark.parametrize("change", ["apply", "allow_unsigned", "trust", "teach", "switch", "enable", "refresh"])
def test_no_change_starts_from_a_journal_that_disables_every_class(change, bundle_folder, signed, keys):
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi", version=3)))
    forge(bundle_folder, disabled=["cat", "dog", "owl", "okapi"])
    before = files_in(bundle_folder)
    unsigned = serialize_envelope(envelope_of(make_update("zebra", version=4)))
    changes = {
        "apply": lambda: device.apply(signed(make_update("zebra", version=4))),
        "allow_unsigned": lambda: device.apply(unsigned, allow_unsigned=True),
        "trust": lambda: device.apply(signed(trusted_keys_from_files([keys.public_path]))),
        "teach": lambda: device._opened.updater.teach("zebra", lambda table: table.rows()[0]),
        "switch": lambda: device.enable("cat"),
        "enable": lambda: enable(bundle_folder, "cat"),
        "refresh": device.refresh,
    }

    with pytest.raises(CorruptFileError, match="disables every class of it"):
        changes[change]()
    assert files_in(bundle_folder) == before
    assert device.classes() == ("cat", "dog", "owl", "okapi")


def test_classes_that_are_all_disabled_can_still_be_listed(bundle_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi", version=3)))
    forge(bundle_folder, disabled=["cat", "dog", "owl", "okapi"])

    assert [each.is_enabled for each in classes(bundle_folder).classes] == [False] * 4


def test_slots_that_hold_a_baked_class_are_refused(bundle_folder, signed, tmp_path):
    import hashlib

    from icis_deploy.bundle.slot_files import serialize_slots
    from tests.icis_deploy.runtime.changes.test_self_test import table_with

    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi", version=3)))
    data = serialize_slots(table_with("cat"))
    sha256 = hashlib.sha256(data).hexdigest()
    (bundle_folder / "state" / f"slots-{sha256}.safetensors").write_bytes(data)
    forge(bundle_folder, state={"slots": {"sha256": sha256, "size_bytes": len(data)}})

    with pytest.raises(CorruptFileError, match="hold baked classes \\('cat'\\)"):
        Device.open(bundle_folder)
