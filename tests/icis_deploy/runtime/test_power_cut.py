"""The power goes at any call that writes: the next start finds the old state or the new one, whole, and knows which."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from icis_deploy.runtime.device import state_of
from icis_deploy.runtime.state.journal import MAX_STATES
from testing.bundles import FEATURE_DIM, make_update
from tests.icis_deploy.runtime.file_systems import FailingFiles, Inode, Killed, VolatileDisk

NUM_SEEDS = 20
SYNCS = (".safetensors 0", ".new 0", "state 0", "state 1")
"""Of a change that needs nothing but itself: a slot table, a journal, their names, and the journal's last name."""


def snapshot(device):
    """Everything a device is, so that a mixture of two states equals neither."""
    state = state_of(device)
    return (
        device.version,
        device.classes(),
        state.table.weight.tobytes(),
        state.table.bias.tobytes(),
        device.history(),
    )


def history_of(num_updates, signed):
    """Updates that leave the device with as many states as it keeps, and the change that comes next."""
    first = [signed(make_update("okapi", version=1))]
    more = [signed(make_update(replaced=["okapi"], version=version)) for version in range(2, num_updates + 1)]
    return (first + more)[:num_updates]


def apply_what_a_damaged_table_of_an_earlier_state_holds(device, signed):
    disk = device._opened.updater._store._files
    table = disk.root / "state" / f"slots-{journal_states(disk)[1]['sha256']}.safetensors"
    disk.seen[table] = disk.synced[table] = Inode(b"damaged", b"damaged")
    device.apply(signed(make_update(replaced=["okapi"], version=50, seed=1)))


CHANGES = {
    "first apply": (0, lambda device, signed: device.apply(signed(make_update("okapi", "zebra", version=50)))),
    "second apply": (1, lambda device, signed: device.apply(signed(make_update("zebra", version=50)))),
    "an apply that drops the oldest state": (
        MAX_STATES,
        lambda device, signed: device.apply(signed(make_update("zebra", version=50))),
    ),
    "an apply that repairs a slot table": (2, apply_what_a_damaged_table_of_an_earlier_state_holds),
    "rollback": (3, lambda device, _: device.rollback()),
    "rollback to the exported state": (1, lambda device, _: device.rollback()),
    "disable": (1, lambda device, _: device.disable("okapi")),
    "teach": (
        1,
        lambda device, _: device._opened.updater.teach("zebra", lambda _table: np.ones(FEATURE_DIM + 1, np.float32)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_power_cut_at_any_call_the_old_or_the_new_state_is_there(change, bundle_folder, open_with, signed):
    lost, seen_old, seen_new = cut_everywhere(change, bundle_folder, open_with, signed)

    assert lost == 0
    assert seen_old > 0
    assert seen_new > 0


@pytest.mark.parametrize("skipped_sync", SYNCS)
def test_each_sync_is_needed_without_it_the_same_power_cuts_do_lose_states(
    skipped_sync, bundle_folder, open_with, signed
):
    lost, *_ = cut_everywhere("second apply", bundle_folder, open_with, signed, skipped_sync=skipped_sync)

    assert lost > 0


def cut_everywhere(change, bundle_folder, open_with, signed, *, skipped_sync=None):
    num_updates, make_change = CHANGES[change]
    before = VolatileDisk(bundle_folder)
    device = open_with(before)
    for update in history_of(num_updates, signed):
        device.apply(update)
    old = snapshot(device)
    whole = restarted(before)
    device = open_with(whole)
    make_change(device, signed)
    new, num_calls = snapshot(device), whole.num_calls
    assert num_calls >= 4, "a journal is created, synced, renamed, and its name synced"
    if skipped_sync is not None:
        assert sorted(whole.syncs) == sorted(SYNCS)

    lost = seen_old = seen_new = 0
    for cut_at in range(num_calls + 1):
        disk = restarted(before, cut_at=cut_at, skipped_sync=skipped_sync)
        device = open_with(disk)
        if cut_at < num_calls:
            with pytest.raises(Killed):
                make_change(device, signed)
        else:  # the power goes right after the change was reported as done
            make_change(device, signed)
        for seed in range(NUM_SEEDS):
            left = disk.after_power_cut(seed)
            try:
                device = open_with(left)
                found = without_times(snapshot(device))
                is_old, is_new = found == without_times(old), found == without_times(new)
                lost += not (is_old or is_new) or (cut_at == num_calls and not is_new)
                seen_old, seen_new = seen_old + is_old, seen_new + is_new
                device.apply(signed(make_update("quagga", version=99)))
                named = len({state["sha256"] for state in journal_states(left) if state})  # two may share a table
                assert len(left.names_left()) == 2 + named, "leftovers were not swept away"
            except Exception:  # whatever it is, the state is lost
                lost += 1
    return lost, seen_old, seen_new


def test_a_power_cut_after_a_killed_process_takes_no_slots_that_the_journal_which_comes_back_names(
    bundle_folder, open_with, signed
):
    """A rollback is killed at any call, and the next process sees what the disk may still forget."""
    before = VolatileDisk(bundle_folder)
    device = open_with(before)
    for update in history_of(3, signed):
        device.apply(update)
    whole = restarted(before)
    open_with(whole).rollback()

    versions = set()
    for killed_at in range(whole.num_calls):
        for cut_at in range(6):  # what an earlier change left is removed at the start of the next
            disk = restarted(before, cut_at=killed_at)
            with pytest.raises(Killed):
                open_with(disk).rollback()
            disk.num_calls, disk.cut_at = 0, cut_at
            device = open_with(disk)
            with pytest.raises(Killed):
                device.apply(signed(make_update("quagga", version=99)))
            for seed in range(NUM_SEEDS):
                versions.add(open_with(disk.after_power_cut(seed)).version)
    assert versions == {3, 2, 99}


def restarted(disk, **changes):
    return VolatileDisk(disk.root, dict(disk.seen), dict(disk.seen), **changes)


def journal_states(disk):
    (data,) = [inode.seen for path, inode in disk.seen.items() if path.name == "journal.json"]
    return [state["slots"] for state in json.loads(data)["journal"]["states"]]


def without_times(values):
    *rest, history = values
    return (*rest, [(entry.sequence, entry.action, entry.version) for entry in history])


@pytest.mark.parametrize("change", ["first apply", "second apply", "rollback", "disable"])
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new_state(
    change, bundle_folder, open_with, signed, tmp_path
):
    num_updates, make_change = CHANGES[change]
    device = open_with(FailingFiles())
    for update in history_of(num_updates, signed):
        device.apply(update)
    old = without_times(snapshot(device))
    shutil.copytree(bundle_folder / "state", tmp_path / "before") if num_updates else (tmp_path / "before").mkdir()
    make_change(device, signed)
    new = without_times(snapshot(device))

    outcomes = []
    for fail_at in range(100):
        shutil.rmtree(bundle_folder / "state", ignore_errors=True)
        if num_updates:
            shutil.copytree(tmp_path / "before", bundle_folder / "state")
        try:
            make_change(open_with(FailingFiles(fail_at=fail_at, mode="kill")), signed)
        except Killed:
            outcomes.append(without_times(snapshot(open_with(FailingFiles()))))
        else:
            break

    assert 4 <= len(outcomes) < 100, "a journal is created, synced, renamed, and its name synced"
    assert all(found in (old, new) for found in outcomes)
    assert outcomes[0] == old
    assert outcomes[-1] == new
