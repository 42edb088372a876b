"""The device half where files and processes behave as on Windows; see `windows.py` for what is simulated.

Nothing here has run on Windows. Every scenario is a process of its own, as what is changed is changed for good.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from icis_deploy.runtime.device import Device
from testing.bundles import files_in, make_update, write_signed

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is Linux that is made a Windows")
START = """
import sys
from pathlib import Path
from tests.icis_deploy.runtime.windows import become_windows
become_windows()
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state import filesystem
from icis_deploy.errors import StorageError
folder, updates = Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]
"""


def started(code: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def output_of(code: str, *arguments: Path) -> str:
    process = started(code, *arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return output.strip()


@pytest.fixture
def updates(tmp_path, keys):
    """Two updates, the second of which takes away what the first brings."""
    contents = (make_update("okapi", version=1), make_update("zebra", version=2, removed=("okapi",)))
    paths = [tmp_path / f"update-{number}.icis" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        write_signed(path, content, keys.private_path)
    return paths


def test_a_device_lives_its_whole_life(bundle_folder, updates):
    code = """
    device = Device.open(folder, num_threads=1)
    for path in updates:
        device.apply(path)
    device.rollback()
    print(device.disable("cat"), device.refresh(), *device.classes())
    """
    assert type(Device.open(bundle_folder)._opened.updater._store._files).__name__ == "OSFileSystem"

    assert output_of(dedented(code), bundle_folder, *updates) == "True False dog owl okapi"

    opened = Device.open(bundle_folder)
    assert (opened.version, opened.classes()) == (1, ("dog", "owl", "okapi"))
    assert [entry.action for entry in opened.history()] == ["apply", "apply", "rollback", "disable"]
    names = {path.name for path in (bundle_folder / "state").iterdir()}
    assert (len(names), {name.split(".")[-1] for name in names}) == (2, {"json", "safetensors"})
    assert (bundle_folder / ".lock").read_bytes() == b""


def test_one_process_waits_for_the_other_and_a_killed_one_holds_nothing(bundle_folder, updates):
    holder = started(
        """
with filesystem.system_files().locked(folder, 5.0):
    print("held", flush=True)
    sys.stdin.read()
""",
        bundle_folder,
    )
    assert holder.stdout.readline() == "held\n"
    refused = """
    from icis_deploy.runtime.state import store
    store.LOCK_TIMEOUT_SECONDS = 0.2
    try:
        Device.open(folder, num_threads=1).apply(updates[0])
    except StorageError as error:
        print(error.what)
    """
    assert "Another process is changing" in output_of(dedented(refused), bundle_folder, updates[0])

    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    taken = "print(Device.open(folder, num_threads=1).apply(updates[0]).entry.version)"
    assert output_of(taken, bundle_folder, updates[0]) == "1"


READER = """
import os, threading, time
device = Device.open(folder, num_threads=1)
device.apply(updates[0])
reader = os.open(folder / "state" / "journal.json", os.O_RDONLY)
"""


def test_a_reader_that_has_the_journal_open_for_a_moment_stops_no_change(bundle_folder, updates):
    code = """
threading.Timer(0.5, os.close, [reader]).start()
device.apply(updates[1])
print(*device.classes())
"""
    assert output_of(READER + code, bundle_folder, *updates) == "cat dog owl zebra"
    assert Device.open(bundle_folder).version == 2


def test_a_reader_that_never_closes_the_journal_is_an_error_that_changes_nothing(bundle_folder, updates):
    code = """
filesystem._SHARING_SECONDS = 0.1
try:
    device.apply(updates[1])
except StorageError as error:
    print(error.what)
print(*device.classes())
"""
    said, classes = output_of(READER + code, bundle_folder, *updates).splitlines()

    assert "because it is being used" in said
    assert said.endswith("The device keeps the state it had.")
    assert classes == "cat dog owl okapi"
    assert Device.open(bundle_folder).version == 1
    assert not [name for name in files_in(bundle_folder) if str(name).endswith(".new")]


def test_every_module_of_the_device_half_is_imported_and_the_inbox_says_what_is_missing(bundle_folder, tmp_path):
    code = """
    import icis_deploy, icis_deploy.cli.main
    from icis_deploy.runtime.inbox import process_inbox
    try:
        process_inbox(folder.parent, folder)
    except StorageError as error:
        print(error.what, error.hint)
    """
    assert "no files by their folder's descriptor" in output_of(dedented(code), bundle_folder)


def dedented(code: str) -> str:
    return "\n".join(line[4:] for line in code.splitlines())
