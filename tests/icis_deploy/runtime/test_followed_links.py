"""A path that was opened leads to another bundle later: the device goes over to it whole, or refuses it by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import IncompatibleError, VersionRollbackError, WrongBaseError
from icis_deploy.runtime import operations
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state.journal import MAX_HISTORY
from icis_deploy.runtime.state.store import Store
from testing.bundles import (
    FEATURE_DIM,
    files_in,
    images,
    make_update,
    seen_head,
    trust,
    write_bundle,
    write_signed,
)

REPOSITORY = Path(__file__).resolve().parents[3]
SECOND_PROCESS = """
import sys
from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.device import Device
device = Device.open(sys.argv[1], num_threads=1)
print("open", flush=True)
for line in sys.stdin:
    call, *arguments = line.split()
    try:
        getattr(device, call)(*arguments)
        print(device.version, device.bundle.capacity, *device.classes(), flush=True)
    except ICISDeployError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def link(bundle_folder, tmp_path) -> Path:
    path = tmp_path / "current"
    path.symlink_to(bundle_folder.name)
    return path


def point(link: Path, folder: Path) -> None:
    fresh = link.with_name("current.new")
    fresh.symlink_to(folder.name)
    fresh.replace(link)


def test_a_second_process_goes_over_whole_when_the_link_is_pointed_at_the_new_bundle(
    bundle_folder, new_folder, link, signed, keys, tmp_path
):
    with subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS, str(link)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as second:

        def ask(line: str) -> str:
            second.stdin.write(f"{line}\n")
            second.stdin.flush()
            return second.stdout.readline().strip()

        assert second.stdout.readline() == "open\n"
        first = Device.open(link, num_threads=1)
        first.apply(signed(make_update("okapi", version=1)))
        assert ask("refresh") == "1 4 cat dog owl okapi"

        first.replace(new_folder, num_threads=1)
        assert ask("refresh") == "1 4 cat dog owl okapi"
        point(link, new_folder)
        assert ask("refresh") == "2 9 cat dog owl"

        before = files_in(bundle_folder)
        path = write_signed(tmp_path / "next.icis", make_update("zebra", version=3), keys.private_path)
        assert ask(f"apply {path}") == "3 9 cat dog owl zebra"
        first.refresh()
        assert (first.version, first.classes()) == (3, ("cat", "dog", "owl", "zebra"))
        assert files_in(bundle_folder) == before
        second.stdin.close()
    assert [entry.action for entry in Device.open(link).history()] == ["apply", "replace", "apply"]


def test_a_change_goes_over_first_and_fits_the_new_bundle(bundle_folder, new_folder, link, signed):
    first, second = Device.open(link, num_threads=1), Device.open(link, num_threads=1)
    first.replace(new_folder, num_threads=1)
    point(link, new_folder)
    before = files_in(bundle_folder)

    second.apply(signed(make_update("okapi", version=3)))

    assert second.bundle.capacity == 9
    assert Device.open(new_folder).classes() == ("cat", "dog", "owl", "okapi")
    assert files_in(bundle_folder) == before


@pytest.mark.parametrize("call", ["refresh", "apply", "rollback", "disable"])
def test_a_bundle_that_does_not_remember_what_the_device_does_is_refused(call, new_folder, link, signed):
    device = Device.open(link, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    device.disable("dog")
    point(link, new_folder)
    before, answers = files_in(new_folder), device.logits(images(2)).values
    arguments = {"apply": [signed(make_update("zebra", version=3))], "disable": ["cat"]}.get(call, [])

    with pytest.raises(IncompatibleError, match="leads to another bundle by now, which does not remember"):
        getattr(device, call)(*arguments)

    assert (device.version, device.classes()) == (1, ("cat", "owl", "okapi"))
    np.testing.assert_array_equal(device.logits(images(2)).values, answers)
    assert files_in(new_folder) == before
    device.replace(new_folder, num_threads=1)
    assert device.refresh() is False
    assert device.classes() == ("cat", "owl")


def test_a_bundle_with_a_long_history_of_its_own_is_no_later_state_of_the_device(new_folder, link, signed):
    """Its lines are too many to have the device's last one among them, whether or not they ever had it."""
    device = Device.open(link, num_threads=1)
    device.apply(signed(make_update("okapi", version=100)))
    for _ in range(MAX_HISTORY // 2 + 1):
        operations.disable(new_folder, "dog")
        operations.enable(new_folder, "dog")
    point(link, new_folder)

    with pytest.raises(IncompatibleError, match="does not remember what this device does"):
        device.refresh()

    assert (device.version, device.classes()) == (100, ("cat", "dog", "owl", "okapi"))


def test_a_bundle_of_another_head_is_refused(link, tmp_path):
    device = Device.open(link)
    point(link, write_bundle(tmp_path / "other", head=seen_head(seed=9)))

    with pytest.raises(WrongBaseError, match="current was made from the head"):
        device.refresh()
    assert device.bundle.base_fingerprint == seen_head().fingerprint


def test_a_device_that_remembers_nothing_follows_to_any_bundle_of_its_head(link, new_folder):
    device = Device.open(link)
    point(link, new_folder)

    assert device.refresh() is True
    assert (device.version, device.bundle.capacity) == (2, 9)
    assert device.refresh() is False


def test_a_copy_of_the_bundle_with_its_state_is_followed(bundle_folder, link, signed, tmp_path):
    device = Device.open(link, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    shutil.copytree(bundle_folder, tmp_path / "copy")
    point(link, tmp_path / "copy")

    device.disable("cat")

    assert Device.open(tmp_path / "copy").classes() == ("dog", "owl", "okapi")
    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl", "okapi")


def test_a_folder_that_was_overwritten_is_not_changed_as_if_it_were_the_old_bundle(
    bundle_folder, signed, tmp_path, keys
):
    device = Device.open(bundle_folder, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    bundle_folder.rename(tmp_path / "aside")
    trust(write_bundle(bundle_folder, capacity=9), keys.public_path)
    before = files_in(bundle_folder)

    with pytest.raises(IncompatibleError, match="does not remember"):
        device.apply(signed(make_update("zebra", version=2)))
    with pytest.raises(IncompatibleError, match="holds another bundle than when it was opened"):
        device._opened.updater.apply(signed(make_update("zebra", version=2)))
    assert files_in(bundle_folder) == before


def test_files_of_a_new_bundle_beside_the_state_of_an_old_one_do_not_open(bundle_folder, new_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi", version=1)))
    for path in new_folder.iterdir():
        if path.is_file():
            shutil.copy(path, bundle_folder)

    with pytest.raises(IncompatibleError, match="state/ folder is of another bundle of the same head"):
        Device.open(bundle_folder)
    with pytest.raises(IncompatibleError, match="of another bundle of the same head"):
        operations.disable(bundle_folder, "cat")


def test_a_journal_of_a_release_that_noted_no_bundle_opens_and_notes_it_with_the_next_change(bundle_folder, signed):
    from dataclasses import replace

    from icis_deploy.runtime.state.journal import serialize_journal

    Device.open(bundle_folder).apply(signed(make_update("okapi", version=1)))
    path = bundle_folder / "state" / "journal.json"
    journal = Store(bundle_folder).load_journal(load_manifest(bundle_folder))
    path.write_bytes(serialize_journal(replace(journal, bundle_sha256=None)))
    assert b"bundle_sha256" not in path.read_bytes()

    device = Device.open(bundle_folder)
    assert device.classes() == ("cat", "dog", "owl", "okapi")
    device.disable("cat")

    assert f'"bundle_sha256":"{device.bundle.manifest_sha256}"'.encode() in path.read_bytes()


def test_a_relative_path_is_the_one_it_was_after_the_process_moved(bundle_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle_folder.parent)
    device = Device.open(bundle_folder.name)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")

    assert device.disable("cat")
    assert device.refresh() is False
    assert Device.open(bundle_folder).classes() == ("dog", "owl")


def test_a_copy_of_hard_links_is_another_bundle(bundle_folder, link, signed, tmp_path):
    """As `cp -al` makes it: both manifests are one file."""
    device = Device.open(link, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    shutil.copytree(bundle_folder, tmp_path / "copy", copy_function=os.link)
    point(link, tmp_path / "copy")
    Device.open(link, num_threads=1).apply(signed(make_update("zebra", version=2)))

    assert device.refresh() is True

    assert (device.version, device.classes()) == (2, ("cat", "dog", "owl", "okapi", "zebra"))


def exchange(folder: Path, new: Path) -> None:
    folder.rename(folder.with_name("aside"))
    new.rename(folder)


def overlay(folder: Path, new: Path) -> None:
    shutil.copytree(new, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("replaced_by", [exchange, overlay])
def test_a_bundle_that_takes_the_place_of_another_one_during_a_change_is_not_changed(
    replaced_by, bundle_folder, new_folder, signed
):
    new = Device.open(new_folder, num_threads=1)
    new.apply(signed(make_update("okapi", version=3)))
    slots = {path.name for path in (new_folder / "state").iterdir()}
    device = Device.open(bundle_folder, num_threads=1)
    before = files_in(new_folder)

    def row(_held: object) -> np.ndarray:
        replaced_by(bundle_folder, new_folder)
        return np.linspace(-1, 1, FEATURE_DIM + 1, dtype=np.float32)

    with pytest.raises(IncompatibleError, match="holds another bundle than when it was opened"):
        device._opened.updater.teach("bongo", row)

    assert {name: data for name, data in files_in(bundle_folder).items() if name in before} == before
    assert slots <= {path.name for path in (bundle_folder / "state").iterdir()}
    assert Device.open(bundle_folder, num_threads=1).classes() == ("cat", "dog", "owl", "okapi")
    assert device.classes() == ("cat", "dog", "owl")


@pytest.mark.parametrize("call", ["stamp", "replace"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_copy_of_hard_links_that_takes_a_place_during_a_change_keeps_its_own_state(
    call, is_new, bundle_folder, signed, tmp_path, monkeypatch
):
    """Exchanged before the last look at the folder, or after it."""
    device = Device.open(bundle_folder, num_threads=1)
    if not is_new:
        device.apply(signed(make_update("okapi", version=1)))
    copy = tmp_path / "copy"
    shutil.copytree(bundle_folder, copy, copy_function=os.link)
    Device.open(copy, num_threads=1).apply(signed(make_update("zebra", version=7)))
    if call == "stamp":
        (copy / "state" / "journal.json.new").write_text("of another change")
    before = files_in(copy)
    files = device._opened.updater._store._files
    ask = getattr(files, call)

    def exchanged(*paths: Path) -> object:
        if copy.exists() and (bundle_folder / "state" / "journal.json.new").exists():
            exchange(bundle_folder, copy)
        return ask(*paths)

    monkeypatch.setattr(files, call, exchanged)
    with pytest.raises(IncompatibleError, match="another copy of its bundle than when the change began"):
        device.disable("dog")

    assert files_in(bundle_folder) == before


def test_a_replacement_takes_along_what_another_process_went_over_to(new_folder, link, signed, keys, tmp_path):
    first, second = Device.open(link, num_threads=1), Device.open(link, num_threads=1)
    first.replace(new_folder, num_threads=1)
    point(link, new_folder)
    first.apply(signed(make_update("okapi", version=8)))
    first.disable("dog")
    third = Device.open(link, num_threads=1)
    newest = write_bundle(tmp_path / "newest", capacity=9, head_version=1)
    trust(newest, keys.public_path)

    with pytest.raises(VersionRollbackError, match="holds version 1; this device holds version 8"):
        second.replace(newest, num_threads=1)
    second.apply(signed(make_update(removed=("okapi",), version=9)))
    second.rollback()
    newest = write_bundle(tmp_path / "newest still", capacity=9, head_version=8)
    trust(newest, keys.public_path)
    second.replace(newest, num_threads=1)
    point(link, newest)

    assert second.disabled_classes() == ("dog",)
    assert third.refresh() is True
    with pytest.raises(VersionRollbackError):
        third.apply(signed(make_update("zebra", version=9)))


def test_a_replacement_by_what_the_link_leads_to_already_is_one(new_folder, link):
    first, second = Device.open(link, num_threads=1), Device.open(link, num_threads=1)
    first.replace(new_folder, num_threads=1)
    point(link, new_folder)

    assert second.replace(new_folder, num_threads=1).action == "replace"
    assert second.bundle.capacity == 9


def test_a_link_that_leads_nowhere_keeps_no_device_from_another_bundle(new_folder, link):
    device = Device.open(link, num_threads=1)
    device.disable("dog")
    link.unlink()

    device.replace(new_folder, num_threads=1)

    assert (device.version, device.disabled_classes()) == (2, ("dog",))
