"""What is not as a device left it, or cannot be read, is said by name; nothing changes, and others get the lock."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import BundleError, IncompatibleError, LoadError, SignatureError, StorageError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state.filesystem import OSFileSystem
from icis_deploy.runtime.state.locking import FolderFlock, FolderLock
from icis_deploy.runtime.state.store import Store
from testing.bundles import files_in, make_update
from tests.icis_deploy.runtime.file_systems import WRITING_CALLS, FailingFiles


class UnreadableFiles(OSFileSystem):
    """A disk with bad blocks: under what has this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, path: Path, max_bytes: int) -> bytes:
        self._check(path)
        return super().read(path, max_bytes)

    def names(self, folder: Path) -> tuple[str, ...]:
        self._check(folder)
        return super().names(folder)

    def _check(self, path: Path) -> None:
        if path.name == self._name:
            raise OSError(errno.EIO, "Input/output error")


def test_a_journal_that_the_disk_does_not_give_is_named(bundle_folder):
    Device.open(bundle_folder).disable("cat")
    store = Store(bundle_folder, UnreadableFiles("journal.json"))

    with pytest.raises(BundleError, match=r"^Cannot read .*state/journal\.json: Input/output error\.") as raised:
        store.load_journal(load_bundle(bundle_folder))
    assert raised.value.where == bundle_folder / "state" / "journal.json"


@pytest.mark.parametrize("name", ["state", "state/journal.json"])
def test_a_state_on_a_disk_that_is_not_there_is_not_that_of_a_new_bundle(name, bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=1)
    device.apply(signed(make_update("okapi")))
    (bundle_folder / name).rename(bundle_folder / "elsewhere")
    (bundle_folder / name).symlink_to("/nowhere/at/all")

    for call in (device.refresh, device.history, device.rollback, lambda: Device.open(bundle_folder)):
        with pytest.raises(BundleError, match=rf"{name} is a link that leads nowhere\. Check .* mounted") as raised:
            call()
        assert raised.value.where == bundle_folder / "state" / "journal.json"

    assert device.classes() == ("cat", "dog", "owl", "okapi")


def test_slots_that_the_disk_does_not_give_are_named_with_the_way_back(bundle_folder, signed):
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi")))
    (slots,) = (bundle_folder / "state").glob("slots-*.safetensors")
    store, bundle = Store(bundle_folder, UnreadableFiles(slots.name)), load_bundle(bundle_folder)

    with pytest.raises(BundleError, match=r"names .*which cannot be read: Input/output error\..*rollback"):
        store.load_table(bundle, store.load_journal(bundle).current)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trust", r"^Cannot read the trusted keys in .*trust: Input/output error\. Check the permissions"),
        ("release-key.pub", r"^Cannot read the trusted key .*release-key\.pub: Input/output error\. Put a key"),
    ],
)
def test_keys_that_the_disk_does_not_give_refuse_an_update(name, message, bundle_folder, open_with, signed):
    device, before = open_with(UnreadableFiles(name)), files_in(bundle_folder)

    with pytest.raises(SignatureError, match=message):
        device.apply(signed(make_update("okapi")))
    assert files_in(bundle_folder) == before
    assert device.classes() == ("cat", "dog", "owl")


def test_an_update_that_cannot_be_read_is_named(bundle_folder):
    with pytest.raises(LoadError, match="Cannot read the class update") as raised:
        Device.open(bundle_folder).apply("missing.icis")
    assert raised.value.where == Path("missing.icis")


def test_a_bundle_that_was_moved_away_takes_no_change(bundle_folder, signed):
    """As by an operator, under a device that runs on."""
    device, bundle = Device.open(bundle_folder), load_bundle(bundle_folder)
    moved = bundle_folder.with_name("moved")
    bundle_folder.rename(moved)
    before = files_in(moved)

    with pytest.raises(BundleError, match=rf"^There is no bundle at {bundle_folder}\."):
        device.apply(signed(make_update("okapi")))
    # A moment later, between looking for it and locking it.
    message = rf"^Cannot lock {bundle_folder}: No such file or directory\."
    with pytest.raises(StorageError, match=message), Store(bundle_folder).locked(bundle):
        pass
    assert not bundle_folder.exists()
    assert files_in(moved) == before


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_a_folder_that_holds_another_bundle_by_now_is_not_changed(change, bundle_folder):
    """A carrier may put one there while a change waits for the lock."""
    bundle = load_bundle(bundle_folder)
    change(bundle_folder / "manifest.json")
    message = r"holds another bundle than when it was opened\. Nothing was changed"

    with pytest.raises(IncompatibleError, match=message), Store(bundle_folder).locked(bundle):
        pytest.fail("the change went on")
    with OSFileSystem().locked(bundle_folder, 0.0):
        pass


def test_a_bundle_that_was_not_read_from_a_manifest_is_taken_at_its_word(bundle_folder):
    """The gate has one before its manifest is written, with which nothing can be compared."""
    bundle = replace(load_bundle(bundle_folder))
    assert bundle.manifest_sha256 is None
    (bundle_folder / "manifest.json").unlink()

    with Store(bundle_folder).locked(bundle):
        pass


def opened_paths() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing, which is closed by now
            found.add(str(link.readlink()))
    return found


def test_an_interruption_of_the_unlocking_keeps_nobody_out(bundle_folder):
    class InterruptedFlock(FolderFlock):
        def __init__(self) -> None:
            self.interruptions = 1

        def unlock(self, descriptor: int) -> None:
            if self.interruptions:
                self.interruptions -= 1
                raise KeyboardInterrupt
            super().unlock(descriptor)

    class Files(OSFileSystem):
        def locked(self, folder: Path, timeout_seconds: float) -> FolderLock:
            return FolderLock(InterruptedFlock(), folder, timeout_seconds)

    bundle = load_bundle(bundle_folder)
    with pytest.raises(KeyboardInterrupt), Store(bundle_folder, Files()).locked(bundle):
        pass

    assert str(bundle_folder) not in opened_paths()
    with OSFileSystem().locked(bundle_folder, 0.0):
        pass


def test_a_change_that_names_no_journal_leaves_nothing(bundle_folder):
    store, bundle = Store(bundle_folder), load_bundle(bundle_folder)
    before = files_in(bundle_folder)

    with pytest.raises(RuntimeError, match="ended without a journal"), store.change(store.load_journal(bundle)):
        pass
    assert files_in(bundle_folder) == before
    assert not (bundle_folder / "state").exists()


def test_a_change_without_slots_has_none_to_name(bundle_folder):
    device, bundle = Device.open(bundle_folder), load_bundle(bundle_folder)
    device.disable("cat")
    store = Store(bundle_folder)
    journal = store.load_journal(bundle)

    with store.change(journal) as pending:
        assert pending.slots_entry() is None
        pending.write_journal(replace(journal, disabled=()))
    assert store.load_journal(bundle).disabled == ()
    assert {path.name for path in (bundle_folder / "state").iterdir()} == {"journal.json"}


class DyingFiles(FailingFiles):
    """Takes the rename of the journal and nothing afterwards; then the journal is gone, or cannot be read."""

    def __init__(self, *, reading: OSError) -> None:
        super().__init__()
        self._reading, self._is_dead = reading, False

    def __getattr__(self, name):
        real = super().__getattr__(name)
        if name in WRITING_CALLS and self.calls[-1:] == ["replace"]:
            self._is_dead = True
        if not self._is_dead or name not in {*WRITING_CALLS, "read"}:
            return real
        return self._unread if name == "read" else self._refuse

    def _refuse(self, *arguments):
        raise OSError(errno.EIO, "Input/output error")

    def _unread(self, *arguments):
        raise self._reading


@pytest.mark.parametrize(
    ("is_first", "error", "outcome"),
    [
        (True, FileNotFoundError(errno.ENOENT, "No such file or directory"), "The device keeps the state it had"),
        (False, FileNotFoundError(errno.ENOENT, "No such file or directory"), "Which state is on the disk cannot be"),
        (True, OSError(errno.EIO, "Input/output error"), "Which state is on the disk cannot be read; the next start"),
        (False, OSError(errno.EIO, "Input/output error"), "Which state is on the disk cannot be read; the next start"),
    ],
)
def test_which_state_a_dead_disk_has_is_said_only_where_it_is_known(
    is_first, error, outcome, bundle_folder, open_with, signed
):
    """A journal that is not there is the state of a device that never had one, and of no other."""
    if not is_first:
        open_with(OSFileSystem()).disable("cat")
    device = open_with(DyingFiles(reading=error))
    classes = device.classes()

    with pytest.raises(StorageError, match=rf"Input/output error\. {outcome}"):
        device.apply(signed(make_update("okapi")))
    assert device.classes() == classes


def test_a_bundle_that_was_removed_has_no_stamp(bundle_folder):
    store = Store(bundle_folder)
    Device.open(bundle_folder).disable("cat")
    assert store.stamp() is not None
    shutil.rmtree(bundle_folder / "state")
    assert store.stamp() is None
