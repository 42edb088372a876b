"""Bytes and names reach the disk by the call that each system has for it."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from icis_deploy.common import syncing
from icis_deploy.common.files import write_file
from icis_deploy.common.syncing import sync_file, sync_folder

FULL = 51
"""`F_FULLFSYNC` on macOS."""


@pytest.fixture
def calls(monkeypatch):
    """The names of the syncing calls, in order; the system does them."""
    made, really = [], os.fsync

    def fsync(descriptor):
        made.append("fsync")
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return made


@pytest.fixture
def macos(monkeypatch, calls):
    """Calls of `fcntl` as on macOS; returns what it raises, which is nothing at first."""
    errors = []

    def control(descriptor, command):
        assert command == FULL
        assert os.fstat(descriptor)
        calls.append("full")
        if errors:
            raise errors[0]

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    return errors


def test_a_file_and_its_folder_are_synced(tmp_path, calls):
    write_file(tmp_path / "file", b"new")
    assert calls == ["fsync", "fsync"]
    sync_file(tmp_path / "file")
    sync_folder(tmp_path)
    assert calls == ["fsync"] * 4


def test_macos_is_asked_to_empty_the_cache_of_the_drive(tmp_path, calls, macos):
    write_file(tmp_path / "file", b"new")
    sync_file(tmp_path / "file")
    sync_folder(tmp_path)

    assert calls == ["full"] * 4


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_macos_gets_a_plain_sync_where_a_file_system_knows_no_other(number, tmp_path, calls, macos):
    macos.append(OSError(number, "not known here"))

    sync_folder(tmp_path)

    assert calls == ["full", "fsync"]


def test_an_error_of_the_drive_is_no_reason_for_a_plain_sync(tmp_path, calls, macos):
    macos.append(OSError(errno.EIO, "Input/output error"))

    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
    assert calls == ["full"]


def test_windows_syncs_what_it_can_write_and_no_folders(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(syncing, "IS_WINDOWS", True)
    opened, really = [], os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(flags & os.O_ACCMODE) or really(path, flags))
    (tmp_path / "file").write_bytes(b"new")

    sync_file(tmp_path / "file")
    sync_folder(tmp_path)

    assert (opened, calls) == ([os.O_RDWR], ["fsync"])


@pytest.mark.parametrize("sync", [sync_file, sync_folder])
def test_what_is_not_there_cannot_be_synced(sync, tmp_path):
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
