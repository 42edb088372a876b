"""The inbox as its unit runs it, on real files, in a process of its own where a terminal or a user is concerned.

Its carriers are not trusted.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from icis_deploy.cli import main
from icis_deploy.runtime import inbox as inbox_module
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.inbox import MAX_KEPT_FILES, MAX_RESTLESS, REST_SECONDS, kept_name, process_inbox
from icis_deploy.runtime.operations import classes
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, signed_bytes, trust, write_bundle

COMMAND = [sys.executable, "-m", "icis_deploy.cli.main", "inbox"]
NOBODY = 65534


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "KEY")


@pytest.fixture
def bundle(tmp_path, key):
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.public_path)
    return folder


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def good(key):
    return signed_bytes(make_update("okapi", version=1), key.private_path)


def run(inbox, bundle):
    """Run the command; return code, JSON result and stderr."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main.run(["inbox", str(inbox), "--to", str(bundle), "--format", "json"])
    return code, json.loads(out.getvalue()), err.getvalue()


def put(path, data, age_seconds=60.0):
    """Write a file that its carrier finished a while ago."""
    path.write_bytes(data)
    os.utime(path, (time.time() - age_seconds,) * 2)


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def waiting(inbox):
    return [name for name in names_in(inbox) if name.endswith(".icis")]


def a_file(path):
    put(path, b"not an update")


def an_unreadable_file(path):
    put(path, b"not an update")
    path.chmod(0)


def a_folder(path):
    path.mkdir()


def a_full_folder(path):
    path.mkdir()
    (path / "x").write_bytes(b"")
    path.chmod(0o555)


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.open(path.parent, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def a_link(path):
    path.symlink_to("/etc/passwd")


def a_link_to_itself(path):
    path.symlink_to(path.name)


def a_huge_file(path):
    a_file(path)
    os.truncate(path, 1 << 40)


KINDS = [a_file, an_unreadable_file, a_folder, a_full_folder, a_pipe, a_socket, a_link, a_link_to_itself, a_huge_file]


def test_a_folder_that_is_no_bundle_is_a_fault_in_the_words_of_the_command_line(inbox, tmp_path):
    (tmp_path / "empty").mkdir()
    code, result, stderr = run(inbox, tmp_path / "empty")
    assert code == 4
    assert "Name a folder that `icis-deploy export` wrote." in stderr
    assert "`icis-deploy export`" in result["fault"]


@pytest.mark.parametrize("make", KINDS)
def test_a_file_of_any_kind_is_refused_and_the_next_one_has_its_turn(make, inbox, bundle, good):
    make(inbox / "1.icis")
    put(inbox / "2.icis", good)

    code, result, stderr = run(inbox, bundle)

    assert (code, [each["state"] for each in result["files"]]) == (6, ["refused", "taken"]), stderr
    assert waiting(inbox) == []
    assert (inbox / "refused" / "1.icis.reason").read_text().startswith("Error: ")
    assert (inbox / "done" / "2.icis").read_bytes() == good
    assert classes(bundle).version == 1


@pytest.mark.parametrize(
    "name",
    [
        b"0" * 250 + b".icis",
        b"-rf.icis",
        b"--help.icis",
        b"0\nforged: taken.icis",
        b"\x1b[2J.icis",
        b"\xff\xfe.icis",
        "\u202eé中.icis".encode(),
        b" .icis",
        b".icis",
        b"$(reboot);`id`.icis",
    ],
)
def test_no_name_stops_another_file_or_reaches_a_terminal(name, inbox, bundle, good):
    put(inbox / os.fsdecode(name), b"not an update")
    put(inbox / "~.icis", good)

    code, result, stderr = run(inbox, bundle)
    text = subprocess.run([*COMMAND, inbox, "--to", bundle], capture_output=True, text=True, check=True).stdout

    assert code == 6, stderr
    assert {each["state"] for each in result["files"]} == {"refused", "taken"}
    assert waiting(inbox) == []
    assert all(len(os.fsencode(kept)) < 120 and kept.isprintable() for kept in names_in(inbox / "refused"))
    assert text == "Nothing was taken or refused.\n"


def test_names_that_are_kept_under_others_do_not_meet():
    names = ["a b.icis", "a_b.icis", "a\tb.icis", "x" * 200 + ".icis", "x" * 201 + ".icis", ".icis", "..icis"]

    assert len({kept_name(name) for name in names}) == len(names)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_an_inbox_of_a_service_is_rid_of_files_of_other_users(inbox, bundle, good, tmp_path):
    """As docs/fleet.md sets it up: the service owns the sticky folder, and a carrier puts files there."""
    first = tmp_path / "first"
    first.mkdir()
    put(first / "1.icis", good)
    put(first / "2.icis", b"not an update")
    inbox.chmod(0o1777)
    for path in (bundle, *bundle.rglob("*"), inbox):
        os.chown(path, NOBODY, NOBODY)
    an_unreadable_file(inbox / "1.icis")
    a_full_folder(inbox / "2.icis")
    a_link(inbox / "done")
    a_full_folder(inbox / "refused")
    put(inbox / "3.icis", good)
    folders = [inbox, *inbox.parents]
    if not all(folder.stat().st_mode & stat.S_IXOTH for folder in folders):
        for folder in folders[:5]:  # up to pytest's own, that of a worker among them
            folder.chmod(folder.stat().st_mode | 0o055)
    script = (
        "import os, sys; from pathlib import Path; from icis_deploy.runtime.inbox import process_inbox\n"
        "process_inbox(Path(sys.argv[3]), Path(sys.argv[4]))\n"  # imports what another user may not read
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "report = process_inbox(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print([(each.name, each.applied is not None) for each in report.files], report.fault)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, inbox, bundle, first, shutil.copytree(bundle, tmp_path / "other")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "[('1.icis', False), ('2.icis', False), ('3.icis', True)] None\n", done.stderr
    assert waiting(inbox) == []
    assert (inbox / "done" / "3.icis").read_bytes() == good
    assert sorted(names_in(inbox / "refused")) == ["1.icis.reason", "2.icis.reason"]


@pytest.mark.parametrize("is_movable", [True, False])
def test_a_name_that_the_system_tells_nothing_of_stops_no_other(is_movable, inbox, bundle, good, monkeypatch):
    """As a carrier makes one by a FUSE mount, which answers nobody else and, while it is there, cannot be moved."""
    (inbox / "1.icis").mkdir()
    put(inbox / "2.icis", good)
    real_stat, real_rename = os.stat, os.rename

    def guarded_stat(path, **options):
        if path == "1.icis":
            raise PermissionError(13, "Permission denied")
        return real_stat(path, **options)

    def busy_rename(source, *args, **options):
        if source == "1.icis" and not is_movable:
            raise OSError(16, "Device or resource busy")
        return real_rename(source, *args, **options)

    monkeypatch.setattr(inbox_module.os, "stat", guarded_stat)
    monkeypatch.setattr(inbox_module.os, "rename", busy_rename)
    report = process_inbox(inbox, bundle)

    assert [(each.name, each.applied is not None) for each in report.files] == [("1.icis", False), ("2.icis", True)]
    assert "cannot be looked at: Permission denied" in str(report.files[0].reason)
    assert (report.fault is None, report.num_left) == (is_movable, 0 if is_movable else 1)
    assert (inbox / "done" / "2.icis").read_bytes() == good


def test_a_system_without_memory_refuses_no_file(inbox, bundle, good, monkeypatch):
    put(inbox / "1.icis", good)
    real_stat = os.stat

    def no_memory(path, **options):
        if path == "1.icis":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real_stat(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(inbox_module.os, "stat", no_memory)
        report = process_inbox(inbox, bundle)
    assert (report.files, report.num_left, "Cannot allocate memory" in str(report.fault)) == ((), 1, True)

    assert process_inbox(inbox, bundle).files[0].applied is not None


def test_nothing_is_written_through_a_link(inbox, bundle, good, tmp_path):
    private = tmp_path / "private"
    private.write_text("of the device's user")
    (inbox / "refused").mkdir()
    for name in ("1.icis", "1.icis.reason", ".1.icis.new"):
        (inbox / "refused" / name).symlink_to(private)
    (inbox / "done").symlink_to(bundle / "trust")
    put(inbox / "1.icis", b"not an update")
    put(inbox / "2.icis", good)
    trusted = sorted((bundle / "trust").iterdir())

    assert run(inbox, bundle)[0] == 6
    assert private.read_text() == "of the device's user"
    assert sorted((bundle / "trust").iterdir()) == trusted
    assert (inbox / "done" / "2.icis").read_bytes() == good
    assert (inbox / "refused" / "1.icis").read_bytes() == b"not an update"


def test_a_folder_that_fills_up_is_worked_off_and_keeps_a_quota(inbox, bundle, good, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_FILES", 150)
    for index in range(300):
        put(inbox / f"{index:03}.icis", b"not an update")
    put(inbox / "999.icis", good)

    left = [process_inbox(inbox, bundle).num_left for _ in range(3)]

    assert left == [150, 1, 0]
    assert len(names_in(inbox / "refused")) == MAX_KEPT_FILES
    assert classes(bundle).version == 1


def test_a_file_that_is_still_being_written_has_its_turn_when_it_is_whole(inbox, bundle, good):
    put(inbox / "1.icis", good[:100], age_seconds=0)

    report = process_inbox(inbox, bundle, sleep=lambda _: put(inbox / "1.icis", good, age_seconds=0))

    assert [each.applied.changed for each in report.files] == [True]


def test_one_that_never_rests_waits_and_stops_no_other(inbox, bundle, good):
    put(inbox / "1.icis", b"half", age_seconds=0)
    put(inbox / "2.icis", good)

    report = process_inbox(inbox, bundle, sleep=lambda _: put(inbox / "1.icis", b"half", age_seconds=0))

    assert [each.name for each in report.files] == ["2.icis"]
    assert report.num_left == 1
    os.utime(inbox / "1.icis", (time.time() - REST_SECONDS,) * 2)
    assert [each.applied for each in process_inbox(inbox, bundle).files] == [None]


def test_a_file_of_the_future_is_refused_at_once(inbox, bundle):
    put(inbox / "1.icis", b"half", age_seconds=-3600)

    report = process_inbox(inbox, bundle, sleep=lambda _: pytest.fail("it will not rest"))

    assert ([each.applied for each in report.files], report.num_left) == ([None], 0)


def test_of_many_files_that_never_rest_a_run_waits_for_a_few(inbox, bundle):
    for index in range(MAX_RESTLESS + 3):
        put(inbox / f"{index:02}.icis", b"half", age_seconds=0)

    with pytest.MonkeyPatch.context() as patched:  # no time passes
        now = time.time()
        patched.setattr(inbox_module.time, "time", lambda: now)
        report = process_inbox(inbox, bundle, sleep=lambda _: None)

    assert (len(report.files), report.num_left) == (3, MAX_RESTLESS)


def test_a_file_that_was_exchanged_while_it_was_looked_at_has_its_turn_in_the_next_run(inbox, bundle, good):
    put(inbox / "1.icis", b"not an update")
    device = Device.open(bundle)

    class Watched:
        """A device that a carrier sees work."""

        def apply(self, data):
            put(inbox / "new", good)
            (inbox / "new").replace(inbox / "1.icis")
            return device.apply(data)

    assert process_inbox(inbox, bundle, device=Watched()).num_left == 1

    assert process_inbox(inbox, bundle, device=device).files[0].applied is not None


def test_what_is_kept_has_a_quota_of_bytes(inbox, bundle, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_KEPT_BYTES", 3000)
    for index in range(5):
        put(inbox / f"{index}.icis", b"x" * 1000)

    process_inbox(inbox, bundle)

    assert sum(path.stat().st_size for path in (inbox / "refused").iterdir()) <= 3000
    assert (inbox / "refused" / "4.icis").exists()
    assert not (inbox / "refused" / "0.icis").exists()


def test_a_link_that_appears_while_a_copy_is_written_is_not_followed(inbox, bundle, tmp_path, monkeypatch):
    private = tmp_path / "private"
    private.write_text("of the device's user")
    put(inbox / "1.icis", b"not an update")
    real_unlink = os.unlink

    def unlink_and_lose_the_race(name, **options):
        try:
            real_unlink(name, **options)
        finally:
            if name == ".1.icis.new":
                os.symlink(private, name, dir_fd=options["dir_fd"])

    monkeypatch.setattr(inbox_module.os, "unlink", unlink_and_lose_the_race)
    report = process_inbox(inbox, bundle)

    assert private.read_text() == "of the device's user"
    assert (len(report.files), report.num_left) == (1, 0)


def test_a_damaged_device_keeps_its_files(inbox, bundle, good):
    put(inbox / "1.icis", good)
    (bundle / "trust").rename(bundle / "hidden")
    (bundle / "trust").mkdir()
    (bundle / "trust" / "damaged.pub").write_bytes(b"no key")
    code, result, stderr = run(inbox, bundle)
    assert (code, result["files"], "damaged.pub" in stderr) == (4, [], True)

    (bundle / "manifest.json").unlink()
    assert run(inbox, bundle)[0] == 4
    assert waiting(inbox) == ["1.icis"]


def test_a_file_that_was_taken_before_a_crash_is_there_already(inbox, bundle, good):
    put(inbox / "1.icis", good)
    assert run(inbox, bundle)[1]["files"][0]["state"] == "taken"
    put(inbox / "1.icis", good)

    code, result, _ = run(inbox, bundle)

    assert (code, result["files"][0]["state"]) == (0, "there already")


def test_a_key_that_is_damaged_behind_a_link_is_the_devices_fault_and_no_files(inbox, bundle, good, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(bundle)
    put(inbox / "1.icis", good)
    next((bundle / "trust").iterdir()).write_bytes(b"no key")

    report = process_inbox(inbox, link)

    assert report.fault is not None
    assert (report.files, report.num_left) == ((), 1)
    assert (inbox / "1.icis").exists()


def test_a_copy_that_the_disk_does_not_take_leaves_no_half_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python has the signal ignored
        with pytest.raises(OSError, match="File too large"):
            inbox_module._write(folder, "8.icis", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os.close(folder)

    assert list(tmp_path.iterdir()) == []
