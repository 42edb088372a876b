"""The walk through `export` in ARCHITECTURE.md is the way that an export takes, and climbs only where it says so."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from icis_deploy.cli.main import run
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.updates.envelope import save_update
from tests.test_architecture import PACKAGES, folders
from tests.test_architecture import ROOMS as ALLOWED

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
WALK = TEXT.partition("## A walk through `export`")[2]
NOT_ALWAYS = {"exporters/loading/torch_export.py", "exporters/gate/head_faults.py"}
"""Only of models from torch, and of exports that are rejected."""

HANDED_DOWN = re.compile(r"exporters/graph exporters/\w+|exporters/targets exporters/bundles")
"""Calls of what a higher room handed to a lower one: edits of a graph (docs/decisions/0062) and the gate of a target
(docs/decisions/0049)."""

ABOVE_ALL = (
    *("icis_deploy/api", "icis_deploy/demo", "icis_deploy/project", "icis_deploy/doctor"),
    *("benchmarks/zero_shot", "icis_deploy/cli"),
)
"""Rooms that reach into the other packages, inside functions (docs/decisions/0010), and one that uses them."""


def files_of(walk: str) -> list[str]:
    """Return the files that a walk names; a bare name is in the folder of the last path before it."""
    files, folder = [], ""
    for name in re.findall(r"`((?:[\w-]+/)*\w+\.py)`", walk):
        folder = name.rpartition("/")[0] or folder
        files.append(name if "/" in name else f"{folder}/{name}")
    return files


def rooms_of(text: str) -> list[str]:
    """Return the rooms in the order of ARCHITECTURE.md's tables: each may import those before it."""
    rooms, package = [], ""
    for names in re.findall(r"^\| (`[\w/]+/`(?:, `[\w/]+/`)*) \| ", text, re.MULTILINE):
        for name in re.findall(r"`([\w/]+)/`", names):
            if name in PACKAGES:
                package = name
            else:
                rooms.append(f"{package}/{name}")
    return rooms


ROOMS = sorted(rooms_of(TEXT), key=lambda room: ABOVE_ALL.index(room) if room in ABOVE_ALL else -1)


def room_of(file: str) -> str | None:
    """Return a file's room; `None` for a file at the root of a package."""
    folder = file.rpartition("/")[0]
    return folder if folder in ROOMS else None


def climbs(caller: str, called: str) -> bool:
    """Return whether a call goes from a room to one that may import it."""
    return None not in (low := room_of(caller), high := room_of(called)) and ROOMS.index(low) < ROOMS.index(high)


@contextmanager
def recorded_calls() -> Iterator[set[tuple[str, str]]]:
    """Record which of our files call which, other libraries in between left out; generators are data, not calls."""
    calls: set[tuple[str, str]] = set()
    root = f"{REPOSITORY}/"
    ours = tuple(f"{root}{folder}/" for folder in (*PACKAGES, "tests"))  # other libraries may be in `.venv/` of it

    def record(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ours) or code.co_flags & inspect.CO_GENERATOR:
            return
        before = frame.f_back
        while before is not None and not before.f_code.co_filename.startswith(ours):
            before = before.f_back
        if before is not None and "<module>" not in (code.co_name, before.f_code.co_name):
            calls.add((before.f_code.co_filename.removeprefix(root), code.co_filename.removeprefix(root)))

    former = sys.getprofile()
    sys.setprofile(record)
    try:
        yield calls
    finally:
        sys.setprofile(former)


@pytest.fixture(scope="module")
def calls(tiny_project, tmp_path_factory) -> set[tuple[str, str]]:
    """The calls of three exports: int8 that takes pixels, float16, and another target."""
    folder = tmp_path_factory.mktemp("walk")
    rng, num_classes = np.random.default_rng(5), len(load_class_list(tiny_project.classes))
    head = read_head(tiny_project)
    update = ClassUpdate(
        base_fingerprint=head.fingerprint, rows=rng.normal(size=(2, head.feature_dim + 1)), added=("okapi", "quagga")
    )
    assert len(head.class_names) == num_classes
    save_update(update, folder / "new.icis")
    common = [
        "--classes",
        tiny_project.classes,
        "--update",
        folder / "new.icis",
        "--preprocess",
        tiny_project.preprocess,
    ]
    slots = ["--head", "updatable", "--capacity", "4"]
    int8 = ["--precision", "int8", "--input", "uint8", "--calibration-images", tiny_project.images]
    with recorded_calls() as found:
        for name, more in {"int8": int8, "fp16": ["--precision", "fp16"], "triton": ["--target", "triton"]}.items():
            arguments = ["export", tiny_project.model, *common, *slots, *more, "--out", folder / name]
            assert run([str(argument) for argument in arguments]) == 0
    return found


def read_head(project):
    from icis_deploy.api.models import head_of
    from icis_deploy.api.models import inspect as inspect_model

    return head_of(inspect_model(project.model, classes=project.classes))


def test_an_export_runs_every_file_that_the_walk_names(calls):
    named = files_of(WALK)

    assert len(named) > 20
    assert set(named) - {called for _, called in calls} == NOT_ALWAYS


def test_an_export_climbs_only_through_what_was_handed_down(calls):
    found = {(caller, called) for caller, called in calls if climbs(caller, called)}

    assert [pair for pair in found if not HANDED_DOWN.fullmatch(" ".join(map(str, map(room_of, pair))))] == []
    assert found, "what is handed down is seen"


def test_rooms_stand_below_what_they_import():
    order = [room.replace("/", ".") for room in ROOMS]

    assert set(order) == ALLOWED.keys() - set(PACKAGES)
    for room in order:
        imported = folders(f"{ALLOWED[room].at_import} {ALLOWED[room].later}")
        assert imported <= set(order[: order.index(room)]), f"{room} stands before what it imports"


def test_files_and_rooms_are_read_from_the_text():
    assert files_of("`a/b/c.py` and `d.py`, then `x/y.py`") == ["a/b/c.py", "a/b/d.py", "x/y.py"]
    assert rooms_of("| word | x |\n| `exporters/` | x |\n| `a/` | x |\n| `a/b/` | x |\n") == [
        "exporters/a",
        "exporters/a/b",
    ]
    assert ROOMS.index("icis_deploy/common") < ROOMS.index("exporters/head") < ROOMS.index("icis_deploy/api")


def test_a_call_to_a_higher_room_is_a_climb():
    assert climbs("exporters/onnx_io/files.py", "exporters/gate/gate.py")
    assert not climbs("exporters/gate/gate.py", "exporters/onnx_io/files.py")
    assert not climbs("icis_deploy/api/export.py", "icis_deploy/workbench.py")
