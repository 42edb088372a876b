"""An interruption at every line of every change: memory and disk agree after the next call."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from icis_deploy.runtime import device as device_module
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.state.store import Store
from testing.bundles import FEATURE_DIM, make_update, trust, write_bundle

# 1 interrupts at every line, which takes minutes: set it in the environment.
STEP = int(os.environ.get("INTERRUPTED_LINES_STEP", "29"))
PACKAGE = str(Path(device_module.__file__).parents[1])
# Between opening a file and entering its `with`, an interruption leaves it to Python's collector, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Interrupter:
    """Counts the lines of this package that a thread runs, and raises `KeyboardInterrupt` before one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.num_lines = 0
        self._at = at

    def __enter__(self) -> Interrupter:
        gc.disable()  # what it would finalize now and then has lines too
        self._former = sys.gettrace()  # a debugger's, or what measures coverage
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._former)
        gc.enable()

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        if event == "line":
            self.num_lines += 1
            if self.num_lines == self._at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


@pytest.fixture
def world(tmp_path, keys, signed):
    """Make a bundle at version 2 that is open, with another one to go over to; a number tells them apart."""

    def make(number: int) -> tuple[Device, Path]:
        folder, new = tmp_path / f"bundle-{number}", tmp_path / f"new-{number}"
        for path, capacity, version in ((folder, 4, 0), (new, 9, 2)):
            trust(write_bundle(path, capacity=capacity, head_version=version), keys.public_path)
        device = Device.open(folder, num_threads=1)
        device.apply(signed(make_update("okapi", version=1)))
        device.apply(signed(make_update("zebra", version=2)))
        return device, new

    return make


def changes(signed) -> dict[str, Callable[[Device, Path], object]]:
    row = np.linspace(-1, 1, FEATURE_DIM + 1, dtype=np.float32)
    data = signed(make_update("gnu", version=3))

    return {
        "apply": lambda device, _: device.apply(data),
        "rollback": lambda device, _: device.rollback(),
        "teach": lambda device, _: device._opened.updater.teach("bongo", lambda _: row),
        "disable": lambda device, _: device.disable("cat"),
        "refresh": lambda device, _: device.refresh(),
        "replace": lambda device, new: device.replace(new, num_threads=1),
    }


def assert_agree(device: Device) -> None:
    opened = Device.open(device._opened.folder, num_threads=1)
    assert (device.version, device.classes()) == (opened.version, opened.classes())
    for one, other in zip(state_of(device).table.rows(), state_of(opened).table.rows(), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in zip(state_of(device).table.class_names, state_of(opened).table.class_names, strict=True):
        assert name == value


NEXT_CALLS = {
    "refresh": lambda device: device.refresh(),
    "a change": lambda device: device.disable("dog"),
    "a change that changes nothing": lambda device: device.enable("owl"),
}


@pytest.mark.parametrize("name", ["apply", "rollback", "teach", "disable", "refresh", "replace"])
def test_memory_and_disk_agree_after_the_call_that_follows_an_interruption(name, world, signed):
    change = changes(signed)[name]

    def start(number: int) -> tuple[Device, Path]:
        device, new = world(number)
        if name == "refresh":  # something to take over
            Device.open(device._opened.folder, num_threads=1).apply(signed(make_update("gnu", version=3)))
        return device, new

    change(*start(-1))  # what is imported or cached by the first one has lines that later ones do not have
    device, new = start(0)
    with Interrupter() as interrupter:
        change(device, new)
    num_lines, num_interrupted, next_calls = interrupter.num_lines, 0, list(NEXT_CALLS.values())
    kept = []  # as a debugger or a notebook keeps the traceback, and with it all that it holds
    for at in range(1, num_lines + 1, STEP):
        device, new = start(at)
        try:
            with Interrupter(at) as interrupter:
                change(device, new)
        except KeyboardInterrupt as error:
            num_interrupted += 1
            kept = [error]
        else:  # lines that its caller ran when they were counted were the store's thread's this time
            assert interrupter.num_lines < at
        next_calls[at % len(next_calls)](device)
        assert_agree(device)
    assert num_interrupted > 0.8 * len(range(1, num_lines + 1, STEP))
    assert kept


def test_an_interruption_between_commit_and_publication_is_made_good_by_refresh(world, signed, monkeypatch):
    device, _ = world(0)
    updater = device._opened.updater

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(updater, "_publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.apply(signed(make_update("gnu", version=3)))
    monkeypatch.undo()

    assert device.version == 2
    assert Store(device._opened.folder).stamp() != updater.held.stamp
    assert device.refresh() is True
    assert device.version == 3
    assert_agree(device)


def test_an_interrupted_change_does_not_keep_the_lock_while_its_traceback_lives(world, signed):
    device, _ = world(0)
    errors = []
    for at in range(1, 400, 7):
        try:
            with Interrupter(at):
                device.disable("cat")
                device.enable("cat")
        except KeyboardInterrupt as error:
            errors.append(error)
        finished = threading.Event()
        thread = threading.Thread(target=lambda done=finished: (device.enable("cat"), done.set()))
        thread.start()
        assert finished.wait(20)
        thread.join()
    assert errors
