"""What a carrier may do to an inbox between two calls of ours, and what a system may refuse: no file stops another one.

What an inbox is for its users is in `tests/icis_deploy/cli/test_inbox.py`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icis_deploy.errors import CorruptFileError, LoadError, RuntimeFailureError, StorageError
from icis_deploy.runtime import inbox as inbox_module
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.inbox import InboxReport, process_inbox
from testing.bundles import make_update


@pytest.fixture
def inbox(tmp_path, signed) -> Path:
    """An inbox with two updates, the first of which something happens to."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    for version, name in enumerate(("okapi", "zebra"), 1):
        path = folder / f"{version}.icis"
        path.write_bytes(signed(make_update(name, version=version)))
        os.utime(path, (time.time() - 60,) * 2)
    return folder


@pytest.fixture
def before_call(monkeypatch) -> Callable[[str, Callable[..., None]], None]:
    """Let something happen before each of the inbox's calls of one name that are about the first file."""

    def add(name: str, happens: Callable[..., None]) -> None:
        real = getattr(os, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if path == "1.icis":
                happens()
            return real(path, *arguments, **options)

        monkeypatch.setattr(inbox_module.os, "supports_dir_fd", {*os.supports_dir_fd, call})
        monkeypatch.setattr(inbox_module.os, name, call)

    return add


def results(report: InboxReport) -> list[tuple[str, bool]]:
    return [(each.name, each.applied is not None) for each in report.files]


def waiting(inbox: Path) -> list[str]:
    return sorted(path.name for path in inbox.glob("*.icis"))


def refusing(number: int) -> Callable[[], None]:
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_file_that_its_carrier_took_back_is_nobodys_business(call, inbox, bundle_folder, before_call):
    before_call(call, lambda: (inbox / "1.icis").unlink(missing_ok=True))

    report = process_inbox(inbox, bundle_folder)

    assert (results(report), report.fault, report.num_left) == ([("2.icis", True)], None, 0)
    assert not (inbox / "refused").exists()


def test_a_file_that_another_run_takes_meanwhile_is_not_called_refused(inbox, bundle_folder, monkeypatch):
    """A server that watches the inbox, and the command: the second found an update older than what is on."""
    real, others = Device.apply, []

    def apply(self, data):
        if not others:
            others.append(None)
            others.append(process_inbox(inbox, bundle_folder))
        return real(self, data)

    monkeypatch.setattr(Device, "apply", apply)
    report = process_inbox(inbox, bundle_folder)

    assert results(others[1]) == [("1.icis", True), ("2.icis", True)]
    assert (results(report), report.fault, report.num_left) == ([], None, 0)
    assert not (inbox / "refused").exists()


def test_an_old_file_that_its_carrier_takes_back_is_refused_all_the_same(inbox, bundle_folder, monkeypatch):
    process_inbox(inbox, bundle_folder)
    data = (inbox / "done" / "1.icis").read_bytes()
    (inbox / "other.icis").write_bytes(data)
    real = Device.apply
    monkeypatch.setattr(Device, "apply", lambda self, data: ((inbox / "other.icis").unlink(), real(self, data))[1])

    assert results(process_inbox(inbox, bundle_folder)) == [("other.icis", False)]
    assert (inbox / "refused" / "other.icis").read_bytes() == data


def test_a_file_that_became_a_pipe_is_not_waited_for(inbox, bundle_folder, before_call):
    def exchange() -> None:
        (inbox / "1.icis").unlink()
        os.mkfifo(inbox / "1.icis")

    before_call("open", exchange)

    report = process_inbox(inbox, bundle_folder)

    assert results(report) == [("1.icis", False), ("2.icis", True)]
    assert isinstance(report.files[0].reason, LoadError)
    assert str(report.files[0].reason) == "It is no plain file."
    # It is not the one that was looked at, so it has its turn in the next run, which takes it out.
    assert (waiting(inbox), report.num_left) == (["1.icis"], 1)
    assert results(process_inbox(inbox, bundle_folder)) == [("1.icis", False)]
    assert waiting(inbox) == []


def test_a_file_that_became_a_link_is_not_followed(inbox, bundle_folder, before_call, tmp_path):
    private = tmp_path / "private.icis"

    def exchange() -> None:
        if not private.exists():
            (inbox / "1.icis").rename(private)
            (inbox / "1.icis").symlink_to(private)

    before_call("open", exchange)

    report = process_inbox(inbox, bundle_folder)

    assert results(report) == [("1.icis", False), ("2.icis", True)]
    assert str(report.files[0].reason).startswith("It cannot be read: ")
    assert not (inbox / "refused" / "1.icis").exists()


def test_a_file_that_the_disk_does_not_give_is_refused_and_the_next_one_taken(inbox, bundle_folder, before_call):
    before_call("open", refusing(errno.EIO))

    report = process_inbox(inbox, bundle_folder)

    assert results(report) == [("1.icis", False), ("2.icis", True)]
    assert str(report.files[0].reason) == "It cannot be read: Input/output error."
    assert (waiting(inbox), report.fault) == ([], None)
    assert "Input/output error" in (inbox / "refused" / "1.icis.reason").read_text()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_system_without_descriptors_or_memory_refuses_no_file(number, inbox, bundle_folder, before_call):
    before_call("open", refusing(number))

    report = process_inbox(inbox, bundle_folder)

    assert (report.files, report.num_left) == ((), 2)
    assert isinstance(report.fault, StorageError)
    assert report.fault.where == inbox
    assert waiting(inbox) == ["1.icis", "2.icis"]


@pytest.mark.parametrize("short_of", ["JSON", "signature"])
def test_an_update_for_which_there_is_no_memory_waits(short_of, inbox, bundle_folder, monkeypatch):
    from securesystemslib.dsse import Envelope

    def without_memory(*_given: object, **_named: object) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        if short_of == "JSON":
            patched.setattr("icis_deploy.updates.envelope.load_strict", without_memory)
        else:
            patched.setattr(Envelope, "verify", without_memory)
        report = process_inbox(inbox, bundle_folder)

    assert (report.files, report.num_left) == ((), 2)
    assert isinstance(report.fault, RuntimeFailureError)
    assert str(report.fault).startswith("There is not enough memory to apply '1.icis'")
    assert results(process_inbox(inbox, bundle_folder)) == [("1.icis", True), ("2.icis", True)]


def test_a_bug_that_one_file_finds_stops_no_other(inbox, bundle_folder, monkeypatch):
    real, first = Device.apply, (inbox / "1.icis").read_bytes()

    def apply(device: Device, data: bytes) -> Any:
        if data == first:
            raise ZeroDivisionError("division by zero")
        return real(device, data)

    monkeypatch.setattr(Device, "apply", apply)

    report = process_inbox(inbox, bundle_folder)

    assert results(report) == [("1.icis", False), ("2.icis", True)]
    reason = report.files[0].reason
    assert isinstance(reason, CorruptFileError)
    assert str(reason).startswith(
        "Reading it failed: division by zero (ZeroDivisionError). This is a bug in icis-deploy"
    )
    assert (inbox / "refused" / "1.icis").read_bytes() == first, "it is kept for the report"


@pytest.mark.parametrize("call", ["apply", "unlink"])
def test_a_file_that_is_gone_once_it_was_applied_is_no_fault(call, inbox, bundle_folder, before_call, monkeypatch):
    if call == "unlink":
        before_call("unlink", lambda: os.rename(inbox / "1.icis", inbox / "taken back"))  # noqa: PTH104 - another call
    else:
        real = Device.apply

        def apply(device: Device, data: bytes) -> Any:
            (inbox / "1.icis").unlink(missing_ok=True)
            return real(device, data)

        monkeypatch.setattr(Device, "apply", apply)

    report = process_inbox(inbox, bundle_folder)

    assert (results(report), report.fault) == ([("1.icis", True), ("2.icis", True)], None)
    assert (inbox / "done" / "1.icis").exists()


def test_a_link_in_place_of_the_folder_for_copies_is_hidden_and_nothing_written_through_it(
    inbox, bundle_folder, tmp_path
):
    (tmp_path / "private").mkdir()
    (inbox / "done").symlink_to(tmp_path / "private")

    report = process_inbox(inbox, bundle_folder)

    assert results(report) == [("1.icis", True), ("2.icis", True)]
    assert list((tmp_path / "private").iterdir()) == []
    assert not (inbox / "done").is_symlink()
    assert sorted(path.name for path in (inbox / "done").iterdir()) == ["1.icis", "2.icis"]


@pytest.mark.parametrize("is_first", [True, False], ids=["the one that is there", "any"])
def test_a_folder_for_copies_that_takes_none_keeps_no_file_in_the_inbox(is_first, inbox, bundle_folder, monkeypatch):
    (inbox / "done").mkdir()
    foreign = (inbox / "done").stat().st_ino
    real = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:
        if "dir_fd" in options and (not is_first or os.stat(path, dir_fd=options["dir_fd"]).st_ino == foreign):
            return False  # as for a folder of another user; root may write to any
        return real(path, mode, **options)

    monkeypatch.setattr(inbox_module.os, "access", access)

    report = process_inbox(inbox, bundle_folder)

    assert (results(report), report.fault) == ([("1.icis", True), ("2.icis", True)], None)
    assert waiting(inbox) == []
    kept = sorted(path.name for path in inbox.glob("done/*"))
    assert kept == (["1.icis", "2.icis"] if is_first else [])


def test_an_inbox_that_is_not_there_or_is_another_users_is_named(inbox, bundle_folder, tmp_path, monkeypatch):
    with pytest.raises(StorageError, match=r"^The inbox cannot be worked on: No such file or directory \(.*nowhere\)"):
        process_inbox(tmp_path / "nowhere", bundle_folder)

    monkeypatch.setattr(inbox_module.os, "access", lambda *_, **__: False)
    with pytest.raises(StorageError, match=rf"^{inbox} belongs to another user, who alone may move files") as raised:
        process_inbox(inbox, bundle_folder)
    assert raised.value.where == inbox
    assert waiting(inbox) == ["1.icis", "2.icis"]


def test_a_system_that_opens_nothing_below_a_folder_is_told_what_to_do_instead(inbox, bundle_folder, monkeypatch):
    monkeypatch.setattr(inbox_module.os, "supports_dir_fd", set())
    with pytest.raises(StorageError, match=r"opens no files by their folder's descriptor.*`Device\.apply\(\)`"):
        process_inbox(inbox, bundle_folder)
