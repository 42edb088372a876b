"""Devices in processes that are forked or spawned, and locks that such processes inherit."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle  # noqa: TID251 - whether a device can be pickled is the subject
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.errors import StorageError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.state import store
from icis_deploy.runtime.state.filesystem import OSFileSystem
from testing.bundles import images, make_update

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    # Of CPython, to everybody who forks with threads; here that is the point.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
NUM_FORKS = 25
OPEN_FILES = Path("/proc/self/fd")


def in_child(call) -> int:
    """Fork, call in the child, and return the child's process id; its exit code is 0 if the call returned true."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(60)
        code = 0 if call() else 1
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_children_forked_during_changes_neither_keep_the_lock_nor_hang(bundle_folder, signed, monkeypatch):
    monkeypatch.setattr(store, "LOCK_TIMEOUT_SECONDS", 40.0)
    device, done, failures = Device.open(bundle_folder, num_threads=2), threading.Event(), []
    batch = images(2)

    def change():
        version = 0
        try:
            while not done.is_set():
                version += 1
                device.apply(signed(make_update(f"class {version}", version=version, removed=device.classes()[3:])))
        except BaseException as error:  # shown by the assertion
            failures.append(error)

    def use_inherited_device():
        names = device.predict(batch, top=1)
        device.refresh()
        return len(names) == 2 and len(device.classes()) in (3, 4) and device.disable("dog") in (True, False)

    thread = threading.Thread(target=change)
    thread.start()
    idle, busy = [], []
    try:
        for _ in range(NUM_FORKS):
            idle.append(in_child(lambda: time.sleep(600)))
            time.sleep(0.003)
        for _ in range(3):
            busy.append(in_child(use_inherited_device))
            time.sleep(0.01)
        codes = [exit_code(child) for child in busy]
    finally:
        done.set()
        thread.join()
    try:
        assert failures == []
        assert codes == [0] * len(busy)
        Device.open(bundle_folder).disable("cat")  # while all the idle children live
    finally:
        for child in idle:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert "cat" not in Device.open(bundle_folder).classes()


def test_a_lock_does_not_outlive_a_parent_that_was_killed_while_a_child_lives(bundle_folder):
    ready, pipe = os.pipe()

    def hold_and_fork():
        with OSFileSystem().locked(bundle_folder, 5.0):
            os.write(pipe, f"{in_child(lambda: time.sleep(600))}\n".encode())
            time.sleep(600)

    parent = in_child(hold_and_fork)
    grandchild = int(os.read(ready, 32))
    try:
        time.sleep(0.1)
        with pytest.raises(TimeoutError), OSFileSystem().locked(bundle_folder, 0.0):
            pass
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(grandchild, 0)  # it lives
        with OSFileSystem().locked(bundle_folder, 5.0):
            pass
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(ready)
        os.close(pipe)


def test_a_child_that_is_forked_under_the_lock_does_not_release_it(bundle_folder):
    lock = OSFileSystem().locked(bundle_folder, 5.0)

    def leave():
        lock.__exit__(None, None, None)
        return True

    with lock:
        assert exit_code(in_child(leave)) == 0
        with pytest.raises(TimeoutError), OSFileSystem().locked(bundle_folder, 0.0):
            pass


@pytest.mark.parametrize(
    ("child_does", "step"),
    [
        *(
            (does, step)
            for does in ("goes on", "exits")
            for step in ("before slots", "after slots", "before the commit")
        ),
        ("exits", "after the commit"),
    ],
)
def test_a_child_that_was_forked_in_the_middle_of_a_change_leaves_it_to_its_parent(
    child_does, step, bundle_folder, signed, monkeypatch
):
    """As a handler of signals forks it; `sys.exit` runs what undoes a change."""
    device = Device.open(bundle_folder, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))
    parent, children = os.getpid(), []

    def fork() -> None:
        if children or os.getpid() != parent:
            return
        child = os.fork()
        if child:
            children.append(exit_code(child))  # before the parent goes on
        elif child_does == "exits":
            raise SystemExit

    owner, name = {
        "before slots": (store.PendingChange, "begin_slots"),
        "after slots": (store.PendingChange, "slots_entry"),
        "before the commit": (store.PendingChange, "write_journal"),
        "after the commit": (OSFileSystem, "replace"),
    }[step]
    real = getattr(owner, name)

    def call(*arguments):
        if step == "before slots":
            fork()
        result = real(*arguments)
        if step != "before slots":
            fork()
        return result

    monkeypatch.setattr(owner, name, call)
    code = 0
    try:
        device.apply(signed(make_update("zebra", version=2)))
    except (StorageError, SystemExit) as error:
        code = 9 if isinstance(error, SystemExit) else 7 if "was forked while" in str(error) else 8
    finally:
        if os.getpid() != parent:
            os._exit(code or 1)

    assert children == [7 if child_does == "goes on" else 9]
    assert code == 0
    assert device.classes() == Device.open(bundle_folder).classes() == ("cat", "dog", "owl", "okapi", "zebra")
    assert not list((bundle_folder / "state").glob("*.new"))


def test_a_child_that_python_did_not_fork_keeps_no_lock_either(bundle_folder):
    """Nothing tells the child to close what it inherits: so the lock is released, not only closed."""
    with OSFileSystem().locked(bundle_folder, 5.0):
        child = ctypes.PyDLL(None).fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            while True:
                signal.pause()
    try:
        with OSFileSystem().locked(bundle_folder, 0.0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="this system does not list a process's open files")
def test_a_lock_that_was_left_leaves_no_file_open(bundle_folder):
    before = len(list(OPEN_FILES.iterdir()))
    for _ in range(10):
        with OSFileSystem().locked(bundle_folder, 5.0):
            pass
    assert len(list(OPEN_FILES.iterdir())) == before


def test_a_forked_device_answers_like_its_parent_and_takes_changes_of_its_own(bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=4)
    device.apply(signed(make_update("okapi", version=1)))
    expected = device.logits(images(4)).values

    def child():
        same = np.array_equal(device.logits(images(4)).values, expected)
        device.apply(signed(make_update("zebra", version=2)))
        return same and device.classes()[3:] == ("okapi", "zebra")

    assert exit_code(in_child(child)) == 0
    assert device.refresh() is True
    assert device.classes()[3:] == ("okapi", "zebra")


def test_a_child_of_a_child_opens_the_bundle_too(bundle_folder):
    device = Device.open(bundle_folder)

    def child():
        first = exit_code(in_child(lambda: device.version == 0))  # not used here before
        return first == 0 and device.version == 0 and exit_code(in_child(lambda: device.version == 0)) == 0

    assert exit_code(in_child(child)) == 0


def test_a_pickled_device_opens_the_same_bundle_in_the_same_runtime(bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=3)
    device.apply(signed(make_update("okapi", version=1)))

    copy = pickle.loads(pickle.dumps(device))

    assert (copy.version, copy.classes(), copy._opened.runtime) == (1, device.classes(), device._opened.runtime)
    np.testing.assert_array_equal(copy.logits(images(2)).values, device.logits(images(2)).values)


def answer(device: Device) -> tuple[int, tuple[str, ...]]:
    """What a worker of `multiprocessing` does with a device that it is given."""
    return device.version, device.predict(images(1), top=1)[0].class_names


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_take_a_device_as_an_argument(method, bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=2)
    device.apply(signed(make_update("okapi", version=1)))

    with multiprocessing.get_context(method).Pool(2) as pool:
        answers = pool.map_async(answer, [device] * 4).get(timeout=120)

    assert answers == [answer(device)] * 4
