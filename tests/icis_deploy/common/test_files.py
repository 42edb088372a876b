import errno
import hashlib
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from icis_deploy.common import files
from icis_deploy.common.files import (
    check_free,
    new_folder,
    open_plain,
    read_capped,
    read_plain,
    sha256_of_file,
    sync_folder,
    write_failure,
    write_file,
)
from icis_deploy.errors import LoadError, StorageError, UsageError

OLD, NEW = b"old bytes", b"new bytes" * 1000
NOBODY = 65534


def contents(folder):
    """Everything below a folder, by relative path; `None` for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def fill_and_fail(folder, error):
    fill(folder)
    raise error("the block failed")


def fill(folder):
    (folder / "model.onnx").write_bytes(NEW)
    (folder / "manifest.json").write_bytes(NEW)


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def old_folder(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(OLD)
    return folder


@contextmanager
def unprivileged():
    """Lose root's right to write everywhere; nothing changes for another user."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder():
    """A folder that another user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def run_with_file_size_limit(code, folder, limit_bytes):
    """Run Python code in `folder`, in a process whose files cannot grow beyond the limit; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- write_file ---------------------------------------------------------------------------------------------------


def test_a_file_is_written_where_there_was_none(tmp_path):
    write_file(tmp_path / "state", NEW)

    assert contents(tmp_path) == {"state": NEW}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o644


def test_a_file_replaces_the_old_one_and_leaves_nothing_beside_it(old_file):
    write_file(old_file, NEW)

    assert contents(old_file.parent) == {"state": NEW}


def test_whoever_has_the_old_file_open_still_reads_the_old_bytes(old_file):
    with old_file.open("rb") as reader:
        write_file(old_file, NEW)
        assert reader.read() == OLD


def test_on_a_full_disk_the_old_file_stays_and_nothing_is_left(tiny_disk):
    (tiny_disk / "state").write_bytes(OLD)
    before = contents(tiny_disk)

    with pytest.raises(StorageError, match=r"^Could not write \S+state: No space left on device\. Nothing was"):
        write_file(tiny_disk / "state", b"x" * 100_000)
    assert contents(tiny_disk) == before
    write_file(tiny_disk / "state", NEW)
    assert contents(tiny_disk) == {"state": NEW}


def test_when_a_file_may_not_grow_the_old_one_stays_and_nothing_is_left(old_file):
    code = """
        from pathlib import Path
        from icis_deploy.errors import StorageError
        from icis_deploy.common.files import write_file
        try:
            write_file(Path("state"), b"x" * 100_000)
        except StorageError as error:
            print(error)
    """
    printed = run_with_file_size_limit(code, old_file.parent, limit_bytes=50_000)

    assert printed.startswith("Could not write state: File too large. Nothing was changed.")
    assert contents(old_file.parent) == {"state": OLD}


@pytest.mark.parametrize("step", ["open", "fsync", "fdopen", "replace"])
def test_whichever_step_fails_the_old_file_stays_and_nothing_is_left(old_file, monkeypatch, step):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(StorageError, match="No space left on device"):
            write_file(old_file, NEW)
    assert contents(old_file.parent) == {"state": OLD}


def test_an_interruption_leaves_the_old_file_and_nothing_else(old_file, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_file(old_file, NEW)
    assert contents(old_file.parent) == {"state": OLD}


def test_when_only_the_folder_cannot_be_synced_the_message_says_that_the_new_bytes_are_there(old_file, monkeypatch):
    def fail(folder):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", fail)
        with pytest.raises(
            StorageError, match=r"^Wrote \S+state, but its folder could not be synced: Input/output error\. .*power cut"
        ):
            write_file(old_file, NEW)
    assert contents(old_file.parent) == {"state": NEW}


def test_the_bytes_are_synced_before_the_file_is_moved_and_the_folder_after(old_file, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(*args, **kwargs):
        steps.append("move")
        replace(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(os, "replace", noted_replace)
        write_file(old_file, NEW)
    assert steps == ["file", "move", "folder"]


def test_in_a_read_only_folder_nothing_is_written(open_folder):
    (open_folder / "state").write_bytes(OLD)
    open_folder.chmod(0o500)

    with unprivileged(), pytest.raises(StorageError, match=r"^Could not write \S+state: Permission denied\. Nothing"):
        write_file(open_folder / "state", NEW)
    assert contents(open_folder) == {"state": OLD}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/state", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("folder", "Is a directory"),
        ("null\0byte", "embedded null byte"),
    ],
)
def test_an_impossible_path_is_refused_and_nothing_is_left(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()

    with pytest.raises(StorageError, match=f"^Could not write .*: {reason}. Nothing was changed"):
        write_file(tmp_path / name, NEW)
    assert contents(tmp_path) == {"folder": None}


def test_syncing_a_folder_that_is_not_there_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


# --- new_folder ---------------------------------------------------------------------------------------------------


def test_a_new_folder_appears_whole_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "deep" / "bundle", overwrite=False, marker="model.onnx") as building:
        fill(building)
        assert not (tmp_path / "deep" / "bundle").exists()

    assert contents(tmp_path / "deep") == {"bundle": None, "bundle/model.onnx": NEW, "bundle/manifest.json": NEW}
    assert (tmp_path / "deep" / "bundle").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_is_there_is_not_replaced_unless_asked_for(old_folder):
    message = r"^\S+bundle already exists\. Choose another path, or give `overwrite=True` to replace it\."
    with pytest.raises(UsageError, match=message), new_folder(old_folder, overwrite=False, marker="model.onnx"):
        pytest.fail("the block must not run")
    assert contents(old_folder.parent) == {"bundle": None, "bundle/model.onnx": OLD}


def test_overwriting_leaves_only_the_new_folder(old_folder):
    (old_folder / "old.txt").write_bytes(OLD)
    with new_folder(old_folder, overwrite=True, marker="model.onnx") as building:
        fill(building)

    assert contents(old_folder.parent) == {"bundle": None, "bundle/model.onnx": NEW, "bundle/manifest.json": NEW}


def test_a_folder_with_its_marker_or_with_nothing_in_it_is_replaced(old_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (old_folder, tmp_path / "empty", tmp_path / "new"):
        with new_folder(target, overwrite=True, marker="model.onnx") as building:
            fill(building)

        assert contents(target) == {"model.onnx": NEW, "manifest.json": NEW}


def test_a_folder_without_the_marker_is_somebody_elses_and_stays(tmp_path):
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    (tmp_path / "home" / "thesis" / "chapter.tex").write_bytes(OLD)
    before = contents(tmp_path)

    with (
        pytest.raises(
            UsageError, match=r"^\S+home holds files but no manifest\.json, so it is not what would be written"
        ),
        new_folder(tmp_path / "home", overwrite=True, marker="manifest.json"),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UsageError])
def test_when_the_block_fails_the_old_folder_stays_and_nothing_is_left(old_folder, error):
    with pytest.raises(error), new_folder(old_folder, overwrite=True, marker="model.onnx") as building:
        fill_and_fail(building, error)
    assert contents(old_folder.parent) == {"bundle": None, "bundle/model.onnx": OLD}


def test_when_the_new_folder_cannot_move_in_the_old_one_steps_back(old_folder, monkeypatch):
    replace = os.replace

    def refuse_to_move_in(source, target):
        if str(source).endswith(".building"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse_to_move_in)
        with (
            pytest.raises(StorageError, match=r"^Could not write \S+bundle: Input/output error\. What was there"),
            new_folder(old_folder, overwrite=True, marker="model.onnx") as building,
        ):
            fill(building)
    assert contents(old_folder.parent) == {"bundle": None, "bundle/model.onnx": OLD}


def test_when_the_old_folder_cannot_step_aside_nothing_is_left(old_folder, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with (
            pytest.raises(StorageError, match="Device or resource busy"),
            new_folder(old_folder, overwrite=True, marker="model.onnx"),
        ):
            pass
    assert contents(old_folder.parent) == {"bundle": None, "bundle/model.onnx": OLD}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_folder(old_file, overwrite):
    with (
        pytest.raises(UsageError, match=r"^\S+state (already exists|is a file, where a folder is expected)\. Choose"),
        new_folder(old_file, overwrite=overwrite, marker="model.onnx"),
    ):
        pytest.fail("the block must not run")
    assert contents(old_file.parent) == {"state": OLD}


def test_on_a_full_disk_the_old_folder_stays_and_nothing_is_left(tiny_disk):
    target = tiny_disk / "bundle"
    target.mkdir()
    (target / "model.onnx").write_bytes(OLD)

    with (
        pytest.raises(StorageError, match=r"^Could not write \S+bundle: No space left on device\."),
        new_folder(target, overwrite=True, marker="model.onnx") as building,
    ):
        (building / "model.onnx").write_bytes(b"x" * 100_000)
    assert contents(tiny_disk) == {"bundle": None, "bundle/model.onnx": OLD}


def test_when_a_file_in_it_may_not_grow_no_folder_is_left(tmp_path):
    code = """
        from pathlib import Path
        from icis_deploy.errors import StorageError
        from icis_deploy.common.files import new_folder, write_file
        try:
            with new_folder(Path("bundle"), overwrite=False, marker="model.onnx") as building:
                write_file(building / "small", b"x")
                write_file(building / "model.onnx", b"x" * 100_000)
        except StorageError as error:
            print(error)
    """
    printed = run_with_file_size_limit(code, tmp_path, limit_bytes=50_000)

    assert "model.onnx: File too large." in printed
    assert contents(tmp_path) == {}


def test_in_a_read_only_folder_no_folder_is_made(open_folder):
    open_folder.chmod(0o500)

    with (
        unprivileged(),
        pytest.raises(StorageError, match=r"^\S+bundle cannot be written: the folder \S+ does not allow it\. Choose"),
        new_folder(open_folder / "bundle", overwrite=False, marker="model.onnx"),
    ):
        pytest.fail("the block must not run")
    assert contents(open_folder) == {}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("x" * 300, StorageError, "^Could not create .*: File name too long"),
        ("file/bundle", UsageError, "bundle cannot be written: .*file is a file, where a folder is expected"),
    ],
)
def test_an_impossible_folder_is_refused(tmp_path, name, error, message):
    (tmp_path / "file").write_bytes(OLD)

    with (
        pytest.raises(error, match=message),
        new_folder(tmp_path / name, overwrite=False, marker="model.onnx"),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"file": OLD}


# --- check_free, read_capped, sha256_of_file ----------------------------------------------------------------------


def test_a_folder_is_no_place_for_a_file_even_where_it_may_be_replaced(tmp_path):
    with pytest.raises(UsageError, match=r" is a folder, where a file is to be written\. Name a file\.$"):
        check_free(tmp_path, overwrite=True)
    check_free(tmp_path, overwrite=True, makes_folders=True)


def test_a_free_place_is_free_and_a_taken_one_only_with_overwrite(old_file):
    check_free(old_file.with_name("other"), overwrite=False)
    check_free(old_file, overwrite=True)
    with pytest.raises(UsageError, match=r"^\S+state already exists\. Choose another path, or give `overwrite=True`"):
        check_free(old_file, overwrite=False)


def test_a_link_that_leads_nowhere_is_not_a_free_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")

    with pytest.raises(UsageError, match="already exists"):
        check_free(tmp_path / "link", overwrite=False)


def test_a_place_without_a_folder_is_none_unless_the_folders_are_made(tmp_path):
    with pytest.raises(UsageError, match=r"x cannot be written: there is no folder \S+b\. Create it"):
        check_free(tmp_path / "a" / "b" / "x", overwrite=False)

    check_free(tmp_path / "a" / "b" / "x", overwrite=False, makes_folders=True)


def test_a_place_in_a_folder_that_cannot_be_written_is_refused(open_folder):
    open_folder.chmod(0o555)

    with unprivileged(), pytest.raises(StorageError, match=r"cannot be written: the folder \S+ does not allow it"):
        check_free(open_folder / "x", overwrite=False)


@pytest.mark.parametrize(
    ("code", "cure"),
    [(errno.ENOSPC, "Free some space, then"), (errno.ENOENT, "Create its folder"), (errno.EIO, "Free some space or")],
)
def test_a_write_that_fails_says_what_helps_against_its_cause(tmp_path, code, cure):
    assert cure in str(write_failure(tmp_path / "x", OSError(code, os.strerror(code))))


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_up_to_the_cap_is_read(tmp_path, size):
    (tmp_path / "file").write_bytes(b"x" * size)

    assert read_capped(tmp_path / "file", max_bytes=100, what="list", error_type=LoadError) == b"x" * size


def test_a_file_of_several_chunks_is_read_in_order(tmp_path):
    data = os.urandom(3 * files._CHUNK_BYTES + 5)
    (tmp_path / "file").write_bytes(data)

    assert read_capped(tmp_path / "file", max_bytes=1 << 30, what="list", error_type=LoadError) == data


def test_a_larger_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 101)

    message = r"^The list \S+file is larger than 100 bytes, which no list is\. Not read further\."
    with pytest.raises(LoadError, match=message):
        read_capped(tmp_path / "file", max_bytes=100, what="list", error_type=LoadError)


def test_a_file_that_never_ends_is_refused():
    with pytest.raises(LoadError, match=r"^The list /dev/zero is larger than 5000000 bytes"):
        read_capped(Path("/dev/zero"), max_bytes=5_000_000, what="list", error_type=LoadError)


def test_a_pipe_is_read_to_its_end():
    reading, writing = os.pipe()
    os.write(writing, b"ant\nbee\n")
    os.close(writing)
    try:
        data = read_capped(Path(f"/dev/fd/{reading}"), max_bytes=100, what="list", error_type=LoadError)
    finally:
        os.close(reading)
    assert data == b"ant\nbee\n"


def test_reading_takes_memory_for_what_is_there_and_not_for_the_cap(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    code = """
        from pathlib import Path
        from icis_deploy.errors import LoadError
        from icis_deploy.common.files import read_capped
        import resource
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        print(read_capped(Path("file"), max_bytes=1 << 31, what="list", error_type=LoadError))
    """

    assert run_with_file_size_limit(code, tmp_path, limit_bytes=1 << 20) == f"{OLD!r}\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        (".", "Is a directory"),
        ("x" * 300, "File name too long"),
        ("null\0byte", "embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, name, reason):
    with pytest.raises(LoadError, match=rf"^Cannot read the list .*: {reason}\."):
        read_capped(tmp_path / name, max_bytes=100, what="list", error_type=LoadError)


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_the_hash_is_that_of_all_bytes(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)

    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_hashing_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        sha256_of_file(tmp_path / "missing")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_socket, lambda path: path.symlink_to("/dev/zero")])
def test_only_plain_files_are_opened_and_nothing_is_waited_for(make, tmp_path):
    make(tmp_path / "strange")

    with pytest.raises(OSError, match=r"it is a (pipe|folder|socket|device) and no plain file"):
        open_plain(tmp_path / "strange")
    with pytest.raises(OSError, match=r"no plain file"):
        sha256_of_file(tmp_path / "strange")
    with pytest.raises(LoadError, match=r"Cannot read the list .*strange: it is a \w+ and no plain file"):
        read_plain(tmp_path / "strange", max_bytes=9, what="list", error_type=LoadError)


def test_a_link_to_a_plain_file_is_one(old_file, tmp_path):
    (tmp_path / "link").symlink_to(old_file)

    with open_plain(tmp_path / "link") as file:
        assert file.read() == OLD


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o000, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_cannot_write_what_is_written_and_the_umask_takes_more(umask, file_mode, folder_mode, tmp_path):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file", b"data")
        with new_folder(tmp_path / "folder", overwrite=False, marker="file") as folder:
            write_file(folder / "file", b"data")
    finally:
        os.umask(before)

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder", "folder/file")]
    assert modes == [file_mode, folder_mode, file_mode]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_file(path, b"data")
    assert path.read_bytes() == b"data"
