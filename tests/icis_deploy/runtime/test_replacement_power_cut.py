"""The power goes while a device goes over to another bundle: both are whole, in the old state or the new one."""

from __future__ import annotations

import pytest

from icis_deploy.errors import StorageError
from icis_deploy.runtime import device as device_module
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state.store import Store
from testing.bundles import files_in, make_update
from tests.icis_deploy.runtime.file_systems import FailingFiles, Killed, VolatileDisk
from tests.icis_deploy.runtime.test_power_cut import restarted, snapshot, without_times

NUM_SEEDS = 20


@pytest.fixture
def former(bundle_folder, signed):
    """A device whose bundle has a spent version, a replaced set of keys and a disabled class: all of it goes along."""
    device = Device.open(bundle_folder, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("bongo", version=5)))
    device.rollback()
    device.disable("owl")
    return device


@pytest.fixture
def replace_through(former, new_folder, monkeypatch):
    """Switch to the new bundle through a file system."""

    def replace(files):
        real = Store

        def store(folder, layer=None):
            return real(folder, files if folder == new_folder else layer)

        with monkeypatch.context() as patched:
            patched.setattr(device_module, "Store", store)
            return former.replace(new_folder, num_threads=1)

    return replace


def opened(folder, files, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(device_module, "Store", lambda path: Store(path, files))
        return Device.open(folder, num_threads=1)


def committed(device):
    """What a restart finds, with what stands outside the rollback stack."""
    journal = device._opened.updater.held.journal
    return (*without_times(snapshot(device)), journal.highest_version, journal.disabled)


@pytest.mark.parametrize("num_updates", [0, 1])
def test_after_a_power_cut_at_any_call_the_new_bundle_is_whole_and_the_old_one_untouched(
    num_updates, bundle_folder, former, new_folder, replace_through, signed, monkeypatch
):
    start = former._opened
    before, old_files = VolatileDisk(new_folder), files_in(bundle_folder)
    for version in range(3, 3 + num_updates):
        opened(new_folder, before, monkeypatch).apply(signed(make_update("zebra", version=version)))
    old = committed(opened(new_folder, before, monkeypatch))
    whole = restarted(before)
    replace_through(whole)
    new, num_calls = committed(former), whole.num_calls
    assert new != old
    assert new[-2:] == (5, ("owl",))
    assert num_calls >= 4

    seen = {"old": 0, "new": 0}
    for cut_at in range(num_calls + 1):
        former._opened = start
        disk = restarted(before, cut_at=cut_at)
        if cut_at < num_calls:
            with pytest.raises(Killed):
                replace_through(disk)
            assert former._opened is start, "a device switched to a bundle that was not committed"
        else:
            replace_through(disk)
        for seed in range(NUM_SEEDS):
            found = committed(opened(new_folder, disk.after_power_cut(seed), monkeypatch))
            assert found in (old, new)
            assert cut_at < num_calls or found == new
            seen["new" if found == new else "old"] += 1
        assert files_in(bundle_folder) == old_files
    assert min(seen.values()) > 0


def test_a_full_disk_at_any_call_leaves_the_device_with_the_bundle_it_had(
    bundle_folder, former, new_folder, replace_through
):
    start, before = former._opened, (files_in(bundle_folder), files_in(new_folder))
    refused = 0
    for fail_at in range(50):
        try:
            replace_through(FailingFiles(fail_at=fail_at))
        except StorageError:
            refused += 1
            assert former._opened is start
            assert (files_in(bundle_folder), files_in(new_folder)) == before
        else:
            break
    assert 3 < refused < 50
    assert former._opened is not start
