"""The disk refuses: the device keeps its state, and the bytes on the disk are what they were."""

from __future__ import annotations

import _thread
import errno
import gc
import os
import shutil
import stat
import threading
import weakref
from dataclasses import replace

import pytest

from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.bundle.slot_files import serialize_slots
from icis_deploy.common.background_thread import BackgroundThread, BegunCall
from icis_deploy.errors import (
    BundleError,
    CorruptFileError,
    ICISDeployError,
    ICISDeployWarning,
    IncompatibleError,
    SignatureError,
    StorageError,
)
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.operations import classes
from icis_deploy.runtime.state import store as store_module
from icis_deploy.runtime.state.filesystem import OSFileSystem
from icis_deploy.runtime.state.journal import initial_journal
from icis_deploy.runtime.state.store import Store
from icis_deploy.updates.signing import keygen
from icis_deploy.updates.trusted_keys import MAX_TRUSTED_KEYS
from testing.bundles import FEATURE_DIM, files_in, make_update, seen_head, trust, write_bundle
from tests.icis_deploy.runtime.file_systems import WRITING_CALLS, FailingFiles


def test_a_file_that_is_there_is_not_created_over(tmp_path):
    OSFileSystem().create(tmp_path / "file", b"old and long")
    with pytest.raises(FileExistsError):
        OSFileSystem().create(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old and long"


@pytest.mark.parametrize("is_first", [True, False])
def test_a_full_disk_at_any_call_leaves_disk_and_device_as_they_were(is_first, bundle_folder, open_with, signed):
    if not is_first:
        open_with(FailingFiles()).apply(signed(make_update("okapi", version=1)))
    before = files_in(bundle_folder)
    refusals = []
    for fail_at in range(100):
        files = FailingFiles(fail_at=fail_at)
        device = open_with(files)
        version, classes = device.version, device.classes()
        refusal = refusal_of(device, signed(make_update("zebra", version=2)))
        if refusal is None:
            break
        assert "No space left on device. The device keeps the state it had." in str(refusal)
        assert (device.version, device.classes()) == (version, classes)
        assert files_in(bundle_folder) == before, files.calls
        refusals.append(refusal)

    assert len(refusals) >= 5, "two files are created, both synced, one renamed, and its name synced"
    assert device.version == 2


def refusal_of(device, data):
    try:
        device.apply(data)
    except StorageError as error:
        return error
    return None


def test_a_disk_that_dies_at_any_call_leaves_the_old_state_or_the_new_one(bundle_folder, open_with, signed):
    outcomes = set()
    for fail_at in range(100):
        files = FailingFiles(fail_at=fail_at, mode="for ever")
        device = open_with(files)
        version = device.version
        if refusal_of(device, signed(make_update(f"class {fail_at}", version=version + 1))) is not None:
            assert device.version == version
        reopened = open_with(FailingFiles())
        outcomes.add(reopened.version - version)
        assert len(reopened.classes()) == 3 + reopened.version
        if fail_at >= len(files.calls):
            break

    assert outcomes == {0, 1}


def test_without_a_thread_to_be_had_slots_are_written_by_the_caller(bundle_folder, signed, monkeypatch):
    device, before = Device.open(bundle_folder), files_in(bundle_folder)

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    def full(self, path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        with patch.context() as disk:
            disk.setattr(OSFileSystem, "create", full)
            with pytest.raises(StorageError, match="No space left on device"):
                device.apply(signed(make_update("okapi", version=1)))
        assert files_in(bundle_folder) == before
        device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("zebra", version=2)))

    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl", "okapi", "zebra")


def test_a_change_waits_for_its_slots_to_be_on_the_disk_before_it_renames_its_journal(
    bundle_folder, open_with, signed, monkeypatch
):
    monkeypatch.setattr(BegunCall, "take", lambda _: False)  # on a busy machine the thread comes late, yet it comes
    done, seen = threading.Event(), []

    class SlowFiles(OSFileSystem):
        """A disk on which slots take longer than a journal."""

        def sync_file(self, path):
            if path.suffix == ".safetensors":
                done.wait(0.3)
            super().sync_file(path)
            seen.append(path.suffix)

        def replace(self, source, target):
            seen.append("renamed")
            super().replace(source, target)

    open_with(SlowFiles()).apply(signed(make_update("okapi", version=1)))

    assert seen == [".new", ".safetensors", "renamed"]


def test_who_writes_slots_itself_does_not_wait_for_the_disk_before_its_journal_is_written(
    bundle_folder, open_with, signed, monkeypatch
):
    begin, journal_is_written, seen = BackgroundThread.begin, threading.Event(), []

    def begin_late(self, call):
        if getattr(call, "func", None) == Store._write_and_sync:
            return BegunCall(call)  # a thread that does not come to it
        return begin(self, call)

    class SeenFiles(OSFileSystem):
        def create(self, path, data):
            super().create(path, data)
            if path.suffix == ".new":
                journal_is_written.set()

        def sync_file(self, path):
            if path.suffix == ".safetensors":
                seen.append(journal_is_written.wait(5))
            super().sync_file(path)

    monkeypatch.setattr(BackgroundThread, "begin", begin_late)
    open_with(SeenFiles()).apply(signed(make_update("okapi", version=1)))

    assert seen == [True]


def test_a_change_that_is_interrupted_leaves_no_thread_that_writes(bundle_folder, open_with, signed, monkeypatch):
    started, goes_on = threading.Event(), threading.Event()

    class HeldFiles(OSFileSystem):
        """A disk on which slots are written only when the test says so."""

        def create(self, path, data):
            if path.suffix == ".safetensors":
                started.set()
                goes_on.wait(10)
            super().create(path, data)

    def interrupt(*arguments, **options):
        started.wait(10)
        threading.Timer(0.2, goes_on.set).start()
        raise KeyboardInterrupt

    device = open_with(HeldFiles())
    goes_on.set()
    device.apply(signed(make_update("gnu", version=1)))  # so that the folder to write to is there
    goes_on.clear()
    started.clear()
    before = files_in(bundle_folder)
    with monkeypatch.context() as patch:
        patch.setattr(device._opened.updater.limits, "judged", interrupt)
        with pytest.raises(KeyboardInterrupt):
            device.apply(signed(make_update("okapi", version=2)))

    device._opened.updater._store.thread.wait()  # it has nothing left to do
    assert files_in(bundle_folder) == before
    device.apply(signed(make_update("okapi", version=2)))
    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl", "gnu", "okapi")


@pytest.mark.parametrize("has_thread", [True, False])
def test_whoever_is_interrupted_while_it_writes_the_slots_itself_does_not_wait_for_them(
    has_thread, bundle_folder, open_with, signed, monkeypatch
):
    device, before, goes_on = open_with(OSFileSystem()), files_in(bundle_folder), threading.Event()
    store = device._opened.updater._store

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    def interrupt(*_):  # before anything is said of the slots
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_slots" if has_thread else "_write_and_sync", interrupt)
        if has_thread:
            store.thread.begin(lambda: goes_on.wait(10))
        else:
            patch.setattr(_thread, "start_new_thread", refuse)
        threading.Timer(0.2, goes_on.set).start()
        with pytest.raises(KeyboardInterrupt):
            device.apply(signed(make_update("okapi", version=1)))

    assert files_in(bundle_folder) == before
    device.apply(signed(make_update("okapi", version=1)))
    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl", "okapi")


def test_where_cores_are_busy_no_digest_is_computed_that_nobody_asks_for(bundle_folder, signed, monkeypatch):
    from icis_deploy.runtime.changes import rules

    device, goes_on, computed = Device.open(bundle_folder), threading.Event(), []
    digest_of = rules.digest_of_signed
    monkeypatch.setattr(rules, "digest_of_signed", lambda *given: computed.append(given) or digest_of(*given))
    thread = device._opened.updater._store.thread
    thread.begin(lambda: goes_on.wait(10))  # so it comes to nothing else before the update is committed

    device.apply(signed(make_update("okapi", version=1)))  # which follows nothing
    goes_on.set()
    thread.wait()

    assert not computed


def test_slots_that_nobody_reads_any_more_are_freed_without_the_garbage_collector(bundle_folder, signed):
    device = Device.open(bundle_folder)
    gc.disable()  # a device may run for days between two collections, and each table may take megabytes
    try:
        device.apply(signed(make_update("okapi", version=1)))
        held = [weakref.ref(state_of(device).table.weight)]
        for version in (2, 3, 4):
            device.apply(signed(make_update(f"class {version}", version=version)))
            held.append(weakref.ref(state_of(device).table.weight))
        device._opened.updater._store.thread.wait()  # which may come late to what others have done by then
        assert [reference() is None for reference in held] == [True, True, True, False]
    finally:
        gc.enable()


class Undeletable(OSFileSystem):
    """A disk on which slots cannot be removed: they are somebody else's, or immutable."""

    def remove(self, path):
        if path.suffix == ".safetensors":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().remove(path)


def test_a_leftover_that_cannot_be_removed_refuses_no_change(bundle_folder, open_with, signed):
    leftover = bundle_folder / "state" / f"slots-{'0' * 64}.safetensors"
    leftover.mkdir(parents=True)
    for version in (1, 2):
        with pytest.warns(ICISDeployWarning, match=rf"^{leftover} is left of a change .* remove it yourself\.$"):
            open_with(OSFileSystem()).apply(signed(make_update(f"class {version}", version=version)))
    assert Device.open(bundle_folder).classes()[3:] == ("class 1", "class 2")


@pytest.mark.filterwarnings("error::icis_deploy.errors.ICISDeployWarning")
def test_a_new_journal_that_cannot_be_removed_refuses_the_change_and_is_not_called_harmless(
    bundle_folder, open_with, signed
):
    (bundle_folder / "state" / "journal.json.new").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"The device keeps the state it had\."):
        open_with(OSFileSystem()).apply(signed(make_update("okapi", version=1)))
    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl")


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_leftover_of_the_name_of_new_slots_becomes_these(is_damaged, bundle_folder, open_with, signed):
    data = signed(make_update("okapi", version=1))
    open_with(OSFileSystem()).apply(data)
    (slots,) = (bundle_folder / "state").glob("slots-*")
    written = slots.read_bytes()
    (bundle_folder / "state" / "journal.json").unlink()
    if is_damaged:
        slots.write_bytes(b"x" + written[1:])

    with pytest.warns(ICISDeployWarning, match="cannot be removed: Operation not permitted"):
        open_with(Undeletable()).apply(data)
    assert slots.read_bytes() == written
    assert Device.open(bundle_folder).classes()[3:] == ("okapi",)


class LateRename(OSFileSystem):
    """A disk whose first rename happens and then ends with an error."""

    def __init__(self, error):
        self.error = error

    def replace(self, source, target):
        super().replace(source, target)
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=str)
def test_a_rename_that_happened_and_failed_is_taken_back(error, is_first, bundle_folder, open_with, signed):
    if not is_first:
        open_with(OSFileSystem()).apply(signed(make_update("okapi", version=1)))
    before = files_in(bundle_folder)
    device = open_with(LateRename(error))
    expected = (device.version, device.classes())

    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        device.apply(signed(make_update("zebra", version=2)))
    assert files_in(bundle_folder) == before
    opened = Device.open(bundle_folder)
    assert (opened.version, opened.classes()) == (device.version, device.classes()) == expected


def test_a_disk_that_is_too_full_for_the_way_back_keeps_what_the_new_journal_names(bundle_folder, open_with, signed):
    """It still removes files, and must not remove those."""

    class FullAfterwards(LateRename):
        def create(self, path, data):
            if self.error is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().create(path, data)

    open_with(OSFileSystem()).apply(signed(make_update("okapi", version=1)))
    device = open_with(FullAfterwards(OSError(errno.EIO, "Input/output error")))

    with pytest.raises(StorageError, match="The disk has the new state, and refused to take it back"):
        device.apply(signed(make_update("zebra", version=2)))

    for running in (Device.open(bundle_folder), device):
        running.refresh()
        assert (running.version, running.classes()[-1]) == (2, "zebra")
    assert Device.open(bundle_folder).rollback().version == 1


def test_a_change_whose_old_slots_cannot_be_removed_is_committed_and_the_next_one_removes_them(
    bundle_folder, open_with, signed
):
    class Keeping(OSFileSystem):
        def remove(self, path):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    device = open_with(OSFileSystem())
    for version in range(1, 9):  # as many states as are kept
        device.apply(signed(make_update(f"class {version}", version=version, complete=True)))
    device = open_with(Keeping())

    device.apply(signed(make_update("zebra", version=9, complete=True)))

    assert (device.version, Device.open(bundle_folder).version) == (9, 9)
    assert len(list((bundle_folder / "state").glob("slots-*"))) == 9
    open_with(OSFileSystem()).apply(signed(make_update("okapi", version=10, complete=True)))
    assert len(list((bundle_folder / "state").glob("slots-*"))) == 8


def test_what_a_failed_change_could_not_remove_is_swept_away_by_the_next(bundle_folder, open_with, signed):
    (bundle_folder / "state").mkdir()
    (bundle_folder / "state" / f"slots-{'0' * 64}.safetensors").write_bytes(b"left by a power cut")
    (bundle_folder / "state" / "journal.json.new").write_bytes(b"half")

    open_with(OSFileSystem()).apply(signed(make_update("okapi")))

    assert len(list((bundle_folder / "state").iterdir())) == 2


def test_a_change_removes_nothing_that_is_not_the_devices_own(bundle_folder, signed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter.txt").write_text("mine")
    (elsewhere / "slots-of-mine.safetensors").write_text("mine too")
    (elsewhere / "folder").mkdir()
    (elsewhere / f"slots-{'0' * 64}.safetensors").write_text("left by a power cut")
    (bundle_folder / "state").symlink_to(elsewhere)
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("zebra", version=2)))

    assert {"letter.txt", "slots-of-mine.safetensors", "folder"} < {path.name for path in elsewhere.iterdir()}
    assert not (elsewhere / f"slots-{'0' * 64}.safetensors").exists()
    assert Device.open(bundle_folder).version == 2


def test_a_bundle_on_a_read_only_disk_answers_and_refuses_changes(bundle_folder, signed, monkeypatch):
    # Tests may run as root, whom no mode stops: so the refusal comes from the file system, as EROFS would.
    device = Device.open(bundle_folder)
    before = files_in(bundle_folder)

    def refuse(self, path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(OSFileSystem, "make_folder", refuse)
    with pytest.raises(StorageError, match=r"Read-only file system\. The device keeps the state it had\."):
        device.apply(signed(make_update("okapi")))

    assert device.classes() == ("cat", "dog", "owl")
    assert files_in(bundle_folder) == before


def test_opening_and_asking_write_nothing(bundle_folder):
    before = files_in(bundle_folder)

    device = Device.open(bundle_folder)
    device.history()
    device.refresh()

    assert files_in(bundle_folder) == before


def test_who_waits_too_long_for_the_lock_is_told_that_nothing_changed(bundle_folder, signed, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT_SECONDS", 0.05)
    device = Device.open(bundle_folder)
    before = files_in(bundle_folder)
    message = r"Another process is changing .*bundle and has not finished in 0 seconds\. Nothing was changed"
    with OSFileSystem().locked(bundle_folder, 1.0), pytest.raises(StorageError, match=message):
        device.apply(signed(make_update("okapi")))

    assert files_in(bundle_folder) == before
    assert device.apply(signed(make_update("okapi"))).entry.version == 1


def test_the_lock_holds_between_threads(tmp_path):
    entered = threading.Event()

    def enter():
        with OSFileSystem().locked(tmp_path, 5.0):
            entered.set()

    with OSFileSystem().locked(tmp_path, 1.0):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.1)
    thread.join()
    assert entered.is_set()


@pytest.fixture
def updated(bundle_folder, signed):
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi", version=1)))
    device.apply(signed(make_update("zebra", version=2)))
    return bundle_folder


def slots_files(folder):
    return sorted((folder / "state").glob("slots-*"))


def damage(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_slot_table_is_refused_and_rollback_gets_away_from_it(updated):
    current = Store(updated).load_journal(load_bundle(updated)).current
    damage(updated / "state" / f"slots-{current.slots.sha256}.safetensors")

    with pytest.raises(CorruptFileError, match=r"slots-\w+\.safetensors is damaged: .*`Device\.rollback\(\)` goes"):
        Device.open(updated)
    Device.from_parts(updated, load_bundle(updated)).rollback()
    assert Device.open(updated).classes() == ("cat", "dog", "owl", "okapi")


@pytest.mark.parametrize("damaged", ["a bit", "gone", "a pipe"])
def test_a_damaged_slot_table_of_an_earlier_state_is_not_used_again(damaged, bundle_folder, signed):
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi", version=1, seed=5)))
    (table,) = slots_files(bundle_folder)
    device.apply(signed(make_update(version=2, removed=("okapi",))))
    if damaged == "a bit":
        damage(table)
    else:
        table.unlink()
        if damaged == "a pipe":
            os.mkfifo(table)

    device.apply(signed(make_update("okapi", version=3, seed=5)))  # the same table as that of version 1

    assert table in slots_files(bundle_folder)
    opened = Device.open(bundle_folder)
    assert (opened.version, opened.classes()) == (3, ("cat", "dog", "owl", "okapi"))
    assert not list((bundle_folder / "state").glob("*.new"))


def test_an_exported_slot_table_that_was_exchanged_is_not_gone_back_to(bundle_folder, signed):
    """It is compared whenever it is read, not only when the bundle is opened."""
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi")))
    trojan = empty_slots(4, FEATURE_DIM).apply(make_update("trojan"), seen_names=frozenset())
    (bundle_folder / "slots.safetensors").write_bytes(serialize_slots(trojan))
    before = files_in(bundle_folder)

    with pytest.raises(CorruptFileError, match=r"slots\.safetensors"):
        device.rollback()

    assert files_in(bundle_folder) == before
    assert device.classes() == ("cat", "dog", "owl", "okapi")


def test_a_missing_slot_table_is_refused_by_name(updated):
    for path in slots_files(updated):
        path.unlink()

    with pytest.raises(BundleError, match=r"The journal names .*slots-\w+\.safetensors, which cannot be read: No such"):
        Device.open(updated)


@pytest.mark.parametrize("pattern", ["state/slots-*", "trust/*"])
def test_a_file_of_another_user_is_neither_rolled_back_from_nor_removed(pattern, updated, monkeypatch):
    refused, read = set(updated.glob(pattern)), OSFileSystem.read

    def refuse(self, wanted, max_bytes):
        if wanted in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(self, wanted, max_bytes)

    monkeypatch.setattr(OSFileSystem, "read", refuse)
    with pytest.raises(ICISDeployError, match="Permission denied") as caught:
        classes(updated)
    assert caught.value.hint.startswith("Run it as the user that the bundle belongs to")


@pytest.mark.parametrize("at", [0, 30, 200, -10, -1])
def test_one_flipped_bit_anywhere_in_the_journal_is_noticed(at, updated):
    damage(updated / "state" / "journal.json", at)

    with pytest.raises(CorruptFileError, match=r"state/journal\.json: The journal of the device is damaged: .*Delete"):
        Device.open(updated)


def test_a_truncated_journal_is_noticed(updated):
    path = updated / "state" / "journal.json"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(CorruptFileError, match="The journal of the device is damaged"):
        Device.open(updated)


def test_the_state_of_another_bundle_is_refused(updated, tmp_path):
    other = write_bundle(tmp_path / "other", head=seen_head(seed=9))
    (updated / "state").rename(other / "state")

    with pytest.raises(IncompatibleError, match=r"The bundle's state/ folder is of another head .*Delete it if"):
        Device.open(other)


def test_a_trusted_key_that_is_none_is_named(bundle_folder, signed):
    (bundle_folder / "trust" / "broken.pub").write_text("no key")

    with pytest.raises(SignatureError, match=r"trust/broken\.pub: The text is not a public key in PEM form"):
        Device.open(bundle_folder).apply(signed(make_update("okapi")))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "it is a pipe and no plain file"),
        (os.mkdir, "it is a folder and no plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device and no plain file"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    ],
)
def test_what_is_no_plain_file_among_trusted_keys_is_named_and_never_waited_for(make, reason, bundle_folder, signed):
    make(bundle_folder / "trust" / "strange.pub")

    with pytest.raises(SignatureError, match=rf"the trusted key .*/trust/strange\.pub: {reason}\. .* or remove it"):
        Device.open(bundle_folder).apply(signed(make_update("okapi")))
    assert not (bundle_folder / "state").exists()


def test_a_trusted_key_may_be_a_link(bundle_folder, keys, signed):
    (key,) = (bundle_folder / "trust").iterdir()
    key.unlink()
    key.symlink_to(keys.public_path)

    assert Device.open(bundle_folder).apply(signed(make_update("okapi"))).entry.signed_by == keys.key_id


@pytest.mark.parametrize("num_more", [MAX_TRUSTED_KEYS - 1, MAX_TRUSTED_KEYS])
def test_more_trusted_keys_than_are_read_are_refused_whatever_their_names(num_more, bundle_folder, keys, signed):
    for index in range(num_more):
        shutil.copy(keys.public_path, bundle_folder / "trust" / f"a{index}.pub")

    device = Device.open(bundle_folder)
    if num_more < MAX_TRUSTED_KEYS:
        assert device.apply(signed(make_update("okapi"))).entry.version == 1
        return
    with pytest.raises(SignatureError, match=r"trust holds 17 public keys; at most 16 are trusted\. Remove"):
        device.apply(signed(make_update("okapi")))


def test_keys_that_came_by_an_update_take_the_place_of_those_that_came_with_the_bundle(bundle_folder, keys, tmp_path):
    bundle, other = load_bundle(bundle_folder), keygen(tmp_path / "other")
    store, journal = Store(bundle_folder), initial_journal(bundle)

    assert [key.keyid for key in store.trusted_keys(journal)] == [keys.key_id]
    changed = replace(journal, trusted_keys=(other.public_path.read_text(),))
    assert [key.keyid for key in store.trusted_keys(changed)] == [other.key_id]


def test_one_byte_more_of_an_update_than_is_allowed_is_read_so_that_it_can_be_noticed(bundle_folder, tmp_path):
    (tmp_path / "update").write_bytes(bytes(20))
    assert len(Store(bundle_folder).read_update(tmp_path / "update", 10)) == 11


def test_nothing_is_changed_in_a_folder_that_holds_another_bundle_by_now(bundle_folder):
    bundle, store = load_bundle(bundle_folder), Store(bundle_folder)
    with store.locked(bundle):
        pass
    with (bundle_folder / "manifest.json").open("ab") as manifest:
        manifest.write(b" ")
    with pytest.raises(IncompatibleError, match="holds another bundle than when it was opened"), store.locked(bundle):
        pytest.fail("the block was entered")


def test_only_pub_files_are_trusted(bundle_folder, keys, tmp_path):
    (bundle_folder / "trust" / "README").write_text("keys of the factory")
    trust(bundle_folder, keys.public_path)
    store, bundle = Store(bundle_folder), load_bundle(bundle_folder)

    assert [key.keyid for key in store.trusted_keys(store.load_journal(bundle))] == [keys.key_id]


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o000, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_cannot_write_the_state_and_the_umask_takes_more(umask, file_mode, folder_mode, bundle_folder, signed):
    device = Device.open(bundle_folder)
    before = os.umask(umask)
    try:
        device.apply(signed(make_update("okapi")))
    finally:
        os.umask(before)

    state = bundle_folder / "state"
    assert stat.S_IMODE(state.stat().st_mode) == folder_mode
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {file_mode}


def test_a_disk_that_dies_after_the_rename_is_said_to_have_the_new_state(bundle_folder, open_with, signed):
    class DyingFiles(FailingFiles):
        """Takes the rename of the journal, and nothing afterwards."""

        def __getattr__(self, name):
            real = super().__getattr__(name)
            if name in WRITING_CALLS and self.calls[-1:] == ["replace"]:
                self.dead = True
            if name in WRITING_CALLS and getattr(self, "dead", False):
                return self._refuse
            return real

        def _refuse(self, *arguments):
            raise OSError(errno.EIO, "Input/output error")

    device = open_with(FailingFiles())
    device.disable("cat")
    device = open_with(DyingFiles())

    with pytest.raises(StorageError, match="The disk has the new state, and refused to take it back"):
        device.apply(signed(make_update("okapi")))

    assert device.version == 0
    assert Device.open(bundle_folder).version == 1
    assert device.refresh() is True
    assert device.version == 1
