"""The check that two machines live a device's life alike: what it compares, and that each difference is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts.edge import device_check


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which this machine stood for both."""
    folder = tmp_path_factory.mktemp("check")
    device_check.prepare(folder, None)
    life = device_check.run(folder, "onnxruntime", folder / "state")
    for machine in device_check.MACHINES:
        (folder / f"{machine}.onnxruntime.json").write_text(json.dumps(life))
    return folder


@pytest.fixture
def folder(lives: Path, tmp_path: Path) -> Path:
    shutil.copytree(lives, tmp_path / "check")
    return tmp_path / "check"


def change(folder: Path, **values: Any) -> None:
    """Change what the emulated machine gave after the first update."""
    path = folder / "arm64.onnxruntime.json"
    life = json.loads(path.read_text())
    life["steps"]["update 1"] |= values
    path.write_text(json.dumps(life))


def test_a_life_that_is_the_same_passes_with_the_damaged_update_refused(folder, capsys):
    assert device_check.compare(folder) == 0
    said = capsys.readouterr().out
    assert "| `onnxruntime` | 0.0e+00 | 0.0e+00 | 48 | SignatureError | passed |" in said
    assert said.endswith("PASS  same classes, first predictions, versions, history\n")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"classes": ["cat"]}, "onnxruntime: update 1: other classes"),
        ({"version": 7}, "onnxruntime: update 1: other version"),
        ({"predictions": [["owl"], ["owl"]]}, "onnxruntime: update 1: predicts"),
        ({"logits": [[9.0] * 5] * 2}, "more than 1e-04"),
    ],
)
def test_each_difference_fails_and_is_named(folder, values, reason, capsys):
    change(folder, **values)
    assert device_check.compare(folder) == 1
    said = capsys.readouterr().out
    assert reason in said
    assert "**failed**" in said


def test_a_damaged_update_that_is_taken_fails(folder, capsys):
    path = folder / "arm64.onnxruntime.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"refused_by": "nothing"}))
    assert device_check.compare(folder) == 1
    assert "refused by nothing, not by SignatureError" in capsys.readouterr().out


def test_a_runtime_that_died_is_a_line_with_its_last_words(folder, capsys):
    (folder / "arm64.onnxruntime.json").unlink()
    (folder / "arm64.onnxruntime.log").write_text("loading\nqemu: uncaught target signal 4\nexit code 132\n")
    assert device_check.compare(folder) == 1
    said = capsys.readouterr().out
    assert "| `onnxruntime` | - | - | - | - | **not run** |" in said
    assert "arm64: qemu: uncaught target signal 4; exit code 132" in said
