"""Output that nobody can read: what a command did decides its exit code, as real processes with real descriptors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from icis_deploy.runtime.operations import classes
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, signed_bytes, trust, write_bundle

FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "icis_deploy.cli.main"]

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "KEY")


@pytest.fixture
def bundle(tmp_path, key):
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.public_path)
    return folder


@pytest.fixture
def update(tmp_path, key):
    path = tmp_path / "1.icis"
    path.write_bytes(signed_bytes(make_update("okapi", version=1), key.private_path))
    return path


def shell(line, *arguments, **environment):
    """Run a line of a POSIX shell in which `"$@"` is the command; return code and stderr."""
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    return done.returncode, done.stderr


def reader_has_left(*arguments):
    """Run the command with a pipe as stdout that nobody reads any more; return code and stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": ""},  # what is left in the buffer is tried again at exit
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("lost", [">/dev/full", ">&-", ">&- 2>&-", ">/dev/full 2>/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_change_that_is_committed_is_no_failure_whoever_can_read_of_it(lost, unbuffered, bundle, update):
    code, stderr = shell(f'"$@" {lost}', "apply", update, "--to", bundle, PYTHONUNBUFFERED=unbuffered)

    assert (code, "Traceback" in stderr) == (0, False), stderr
    assert classes(bundle).version == 1


def test_nor_is_any_other_change(bundle, update):
    for arguments, version in (
        (("apply", update, "--to", bundle), 1),
        (("disable", bundle, "okapi"), 1),
        (("rollback", bundle), 0),
    ):
        assert shell('"$@" <&- >&- 2>&-', *arguments)[0] == 0
        assert classes(bundle).version == version


def test_it_says_so_where_stderr_takes_it(bundle, update):
    code, stderr = shell('"$@" >/dev/full', "apply", update, "--to", bundle)

    assert (code, stderr) == (0, "Done, but the result could not be printed: No space left on device.\n")


def test_a_reader_that_has_left_is_no_failure_of_a_change_and_none_to_speak_of_otherwise(bundle, update):
    assert reader_has_left("apply", update, "--to", bundle) == (0, "")
    assert classes(bundle).version == 1
    assert reader_has_left("classes", bundle) == (141, "")
    assert reader_has_left("--help") == (141, "")
    assert reader_has_left("apply", "--help") == (141, "")


@pytest.mark.parametrize("output_format", ["text", "json"])
@pytest.mark.parametrize(
    ("lost", "reason"), [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")]
)
def test_a_command_that_only_reads_fails_where_its_result_is_lost(lost, reason, output_format, bundle):
    code, stderr = shell(f'"$@" {lost}', "classes", bundle, "--format", output_format)

    assert code == 4
    assert f"Error: The result could not be printed: {reason}" in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_that_cannot_be_written_is_an_error_and_no_bug(unbuffered):
    code, stderr = shell('"$@" >/dev/full', "--help", PYTHONUNBUFFERED=unbuffered)

    assert (code, stderr) == (4, "Error: The output could not be written: No space left on device.\n")


@pytest.mark.parametrize("arguments", [("apply", "none.icis", "--to", "."), ("classes", "nowhere")])
def test_an_error_keeps_its_exit_code_where_stderr_does_not_take_it(arguments):
    assert shell('"$@" 2>/dev/full', *arguments)[0] == 2
    assert shell('"$@" >/dev/full 2>/dev/full', *arguments, "--format", "json")[0] == 2
    assert shell('"$@" 2>&-', *arguments)[0] == 2


def test_nothing_that_a_library_prints_reaches_a_file_of_the_bundle(bundle, tmp_path):
    """With descriptors 1 and 2 closed, the next file that is opened would get their numbers."""
    script = tmp_path / "noisy.py"
    script.write_text(
        "import os, sys\n"
        "from icis_deploy.cli import main\n"
        "from icis_deploy.cli.output import open_standard_streams\n"
        "open_standard_streams()\n"
        f"descriptor = os.open({str(tmp_path / 'file')!r}, os.O_WRONLY | os.O_CREAT)\n"
        "os.write(1, b'from a library'); os.write(2, b'from a library')\n"
        "sys.exit(descriptor)\n"
    )
    done = subprocess.run(["/bin/sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, script], check=False)

    assert done.returncode > 2
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("name", ["é中", "🦓"])
def test_a_name_that_the_terminal_has_no_letters_for_is_escaped(name, bundle, key, tmp_path):
    path = tmp_path / "named.icis"
    path.write_bytes(signed_bytes(make_update(name, version=2), key.private_path))
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}

    def output(*arguments):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], capture_output=True, check=True, env=ascii_only
        ).stdout.decode("ascii")

    output("apply", path, "--to", bundle)
    assert json.dumps(name)[1:-1] in output("classes", bundle)
    assert json.loads(output("classes", bundle, "--format", "json"))["classes"][-1]["name"] == name
    assert json.loads(output("disable", bundle, name, "--format", "json"))["class"] == name


def test_an_update_that_comes_again_is_there_already(bundle, update, key, tmp_path):
    arguments = ("apply", str(update), "--to", str(bundle), "--format", "json")
    first = subprocess.run([*COMMAND, *arguments], capture_output=True, check=True)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}

    again = subprocess.run([*COMMAND, *arguments], capture_output=True, check=True)

    assert json.loads(first.stdout)["changed"] is True
    assert json.loads(again.stdout) == json.loads(first.stdout) | {"changed": False}
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    text = subprocess.run([*COMMAND, *arguments[:4]], capture_output=True, check=True, text=True).stdout
    assert text.startswith("Nothing was changed: it is in effect already.\n")

    newer = tmp_path / "2.icis"
    newer.write_bytes(signed_bytes(make_update("bongo", version=2), key.private_path))
    assert shell('"$@"', "apply", newer, "--to", bundle)[0] == 0
    code, stderr = shell('"$@"', "apply", update, "--to", bundle)
    assert code == 6
    assert "has version 1; this device has held version 2" in stderr
