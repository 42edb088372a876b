"""What `run` does and leaves undone, by the content of files; and what `init` writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.project import running
from icis_deploy.project.content import content_of
from icis_deploy.project.file import load_project
from icis_deploy.project.running import run_project
from icis_deploy.runtime.state.filesystem import system_files
from testing.tiny_project import TinyProject, write_tiny_project

PROJECT = """
model: model.onnx
classes: classes.txt
unseen: unseen.txt
descriptors: descriptors.npz
preprocess: preprocess.json
images: images.csv
inject: {method: ridge, calibration: length}
export:
  head: updatable
  capacity: 10
  max_changed_answers: null
verify:
evaluate:
"""
STEPS = ["inject", "export", "verify", "evaluate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project whose steps are all done; not to be written to."""
    folder = tmp_path_factory.mktemp("project")
    write_tiny_project(folder)
    (folder / "project.yaml").write_text(PROJECT)
    assert run(["run", str(folder / "project.yaml")]) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, at another place."""
    return Path(shutil.copytree(finished, tmp_path / "elsewhere"))


def run_json(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = run(["run", str(folder / "project.yaml"), *options, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def states(result: dict, state: str) -> list[str]:
    return [step["name"] for step in result["steps"] if step["state"] == state]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_that_the_steps_make_is_there_and_says_what_the_library_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run_json(folder, capsys)

    assert code == 0
    assert states(result, "unchanged") == STEPS
    report = icis_deploy.evaluate(folder / "build" / "bundle", images=folder / "images.csv")
    assert json.loads((folder / "build" / "evaluate.json").read_text())["S"] == report.S
    assert result["steps"][3]["result"]["S"] == report.S
    assert json.loads((folder / "build" / "verify.json").read_text())["parity"][0]["passed"]
    update = icis_deploy.load_update(folder / "build" / "new.icis")
    assert list(update.added) == (folder / "unseen.txt").read_text().split()
    assert (folder / "build" / "classes.csv").read_text().startswith("class,kind,images")


def other_settings(old: str, new: str) -> Callable[[Path], object]:
    assert old in PROJECT
    return lambda folder: (folder / "project.yaml").write_text(PROJECT.replace(old, new))


def other_image(folder: Path) -> None:
    first = (folder / "images.csv").read_text().splitlines()[1].split(",")[0]
    second = (folder / "images.csv").read_text().splitlines()[2].split(",")[0]
    shutil.copy(folder / second, folder / first)


def other_descriptors(folder: Path) -> None:
    with np.load(folder / "descriptors.npz") as arrays:
        values = {name: arrays[name] for name in arrays.files}
    values["values"] = values["values"] + np.float32(0.01)
    np.savez(folder / "descriptors.npz", **values)


def written_again(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
            os.utime(path, (1, 1))


CHANGES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "the same bytes, written again": (written_again, [], ""),
    "an image of the list": (other_image, ["export", "verify", "evaluate"], "images changed"),
    "descriptors": (other_descriptors, STEPS, "descriptors changed"),
    "a setting of inject": (other_settings("ridge", "mean"), STEPS, "inject.method changed"),
    "a setting of export": (
        other_settings("capacity: 10", "capacity: 12"), ["export", "verify", "evaluate"], "export.capacity changed",
    ),
    "a setting of evaluate": (
        other_settings("evaluate:", "evaluate: {max_seen_loss: 99}"), ["evaluate"], "evaluate.max_seen_loss changed",
    ),
    "a step less": (other_settings("verify:\n", ""), [], ""),
    "a comment": (other_settings("verify:", "# why\nverify:"), [], ""),
    "a result that was removed": (
        lambda folder: (folder / "build" / "verify.json").unlink(), ["verify"], "verify.json, which it made, changed",
    ),
    "a file of the bundle that was changed": (
        lambda folder: (folder / "build" / "bundle" / "model.onnx").write_bytes(b"x"),
        ["export", "verify", "evaluate"],  # the manifest of another export says another time
        "bundle/model.onnx, which it made, changed",
    ),
    "a record that is cut off": (
        lambda folder: (folder / "build" / ".steps" / "evaluate.json").write_text('{"schema_version": 1'),
        ["evaluate"],
        "it was not finished before",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected", "reason"), CHANGES.values(), ids=CHANGES)
def test_a_change_runs_the_steps_that_it_concerns_and_no_others(
    change: Callable[[Path], object],
    expected: list[str],
    reason: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(folder)
    code, result = run_json(folder, capsys)

    assert code == 0
    assert states(result, "done") == expected
    assert [step["reason"] for step in result["steps"] if step["state"] == "done"][:1] == (
        [reason] if reason else []
    ) or (result["steps"][STEPS.index(expected[0])]["reason"].endswith(reason))
    code, result = run_json(folder, capsys)
    assert (code, states(result, "done")) == (0, [])


def test_another_version_of_a_library_runs_all_steps(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {**running.library_versions(), "onnxruntime": "1.0"}
    monkeypatch.setattr(running, "library_versions", lambda: versions)
    code, result = run_json(folder, capsys, "--dry-run")

    assert (code, states(result, "would run")) == (0, STEPS)
    assert result["steps"][0]["reason"] == "the version of onnxruntime changed"


def test_a_dry_run_says_what_follows_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_descriptors(folder)
    before = snapshot(folder)
    code, result = run_json(folder, capsys, "--dry-run")

    assert code == 0
    assert [(step["name"], step["state"], step["reason"]) for step in result["steps"]] == [
        ("inject", "would run", "descriptors changed"),
        ("export", "would run", "inject would run"),
        ("verify", "would run", "export would run"),
        ("evaluate", "would run", "export would run"),
    ]
    assert snapshot(folder) == before


KILLED = """
import os, signal, sys
import icis_deploy.api.export as api
from icis_deploy.cli.main import run
api.export = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
run(["run", sys.argv[1]])
"""


def test_a_run_that_was_killed_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "build")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / "project.yaml")], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = (folder / "build" / "new.icis").read_bytes()
    (folder / "build" / ".bundle.0123.building").mkdir()  # as export leaves it where it is killed later
    code, result = run_json(folder, capsys)

    assert code == 0
    assert states(result, "unchanged") == ["inject"]
    assert states(result, "done") == ["export", "verify", "evaluate"]
    assert (folder / "build" / "new.icis").read_bytes() == left
    assert not list((folder / "build").glob(".bundle*"))


def test_a_step_that_fails_is_named_and_those_before_it_stay_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = (folder / "images.csv").read_text().replace("class00.png,class00", "class00.png,class99")
    (folder / "images.csv").write_text(broken)
    text = PROJECT.replace("method: ridge", "method: mean").replace("verify:\n", "")
    (folder / "project.yaml").write_text(text)
    code, result = run_json(folder, capsys)

    assert code == 3
    assert result["error"]["message"].startswith("Step evaluate: ")
    code, result = run_json(folder, capsys, "--dry-run")
    assert states(result, "unchanged") == ["inject", "export"]
    assert states(result, "would run") == ["evaluate"]


def test_a_bundle_in_which_a_device_changed_classes_is_not_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_settings("evaluate:\n", "")(folder)
    assert run(["disable", str(folder / "build" / "bundle"), "class00"]) == 0
    code, result = run_json(folder, capsys)
    assert (code, states(result, "done")) == (0, ["verify"])  # it looks at the bundle as it is now
    other_descriptors(folder)
    before = snapshot(folder)
    code, result = run_json(folder, capsys)

    assert code == 2
    assert "in which classes were changed since" in result["error"]["message"]
    assert "give `out` another folder" in result["error"]["hint"]
    assert snapshot(folder) == before


def test_two_runs_do_not_write_into_one_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "build" / "verify.json").unlink()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with system_files().locked(folder / "build" / ".steps", 5.0):
            entered.set()
            leave.wait()

    other = threading.Thread(target=hold)
    other.start()
    entered.wait()
    try:
        code, result = run_json(folder, capsys)
    finally:
        leave.set()
        other.join()

    assert code == 2
    assert "Another run of a project has the folder" in result["error"]["message"]
    assert run_json(folder, capsys)[0] == 0


def test_a_wrong_setting_is_told_as_the_file_writes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "KEY.pub").write_text("no key")
    (folder / "project.yaml").write_text(
        PROJECT.replace("head: updatable", "trust: [KEY.pub]").replace("  capacity: 10\n", "")
    )
    code, result = run_json(folder, capsys)

    assert code == 2
    assert result["error"]["hint"] == "Give `trust` with `head: updatable`, or leave it out."


def test_warnings_of_a_step_are_kept_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PROJECT.replace("method: ridge, calibration: length", "method: ridge, seed: 1")
    (folder / "project.yaml").write_text(text.replace("verify:\nevaluate:\n", ""))
    first, second = run_json(folder, capsys)[1], run_json(folder, capsys)[1]

    assert states(first, "done") == ["inject", "export"]
    assert states(second, "done") == []
    assert first["steps"][0]["warnings"] == second["steps"][0]["warnings"] != []


@pytest.mark.slow
def test_descriptors_a_benchmark_and_its_report_are_steps_too(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_project.model.parent, tmp_path / "p"))
    with np.load(folder / "descriptors.npz") as arrays:
        rows = zip(arrays["names"], arrays["values"], strict=True)
        lines = [",".join([str(name), *map(str, values)]) for name, values in rows]
    header = ",".join(["class", *(f"a{index}" for index in range(lines[0].count(",")))])
    (folder / "attributes.csv").write_text("\n".join([header, *lines]) + "\n")
    text = PROJECT.replace("descriptors: descriptors.npz", "describe: {attributes: attributes.csv}")
    (folder / "project.yaml").write_text(
        text.replace("verify:\nevaluate:\n", "bench: {preset: quick, max_seconds: 0.2}\nreport: {markdown: true}\n")
    )
    code, result = run_json(folder, capsys)

    assert code == 0
    assert states(result, "done") == ["describe", "inject", "export", "bench", "report"]
    assert "<svg" in (folder / "build" / "report.html").read_text()
    assert (folder / "build" / "report.md").is_file()
    assert states(run_json(folder, capsys)[1], "done") == []


# --- content ----------------------------------------------------------------------------------------------------------


def test_content_is_of_a_model_with_its_weights_in_other_files(tmp_path: Path) -> None:
    import onnx

    write_tiny_project(tmp_path / "p")
    model = onnx.load(tmp_path / "p" / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = content_of(tmp_path / "model.onnx")
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)

    assert content_of(tmp_path / "model.onnx") != before


def test_content_of_a_folder_is_of_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "x").write_text("1")
    before = content_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    assert content_of(tmp_path / "b") == before
    (tmp_path / "b" / "inner" / "x").rename(tmp_path / "b" / "inner" / "y")
    assert content_of(tmp_path / "b") != before


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_writes_a_project_that_run_takes(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_project.model.parent, tmp_path / "p"))
    monkeypatch.chdir(tmp_path)
    assert run(["init", "p/model.onnx", "--classes", "p/classes.txt", "--out", "p/project.yaml"]) == 0
    text = (folder / "project.yaml").read_text()

    assert "# 40 classes by a gemm, 24 features; input (batch, 3, 16, 16) float32." in text
    assert "\nmodel: model.onnx\nclasses: classes.txt\n" in text
    project = load_project(folder / "project.yaml")
    assert project.step_names == ("inject", "export", "verify")
    assert project.settings.images == "images.csv"
    assert project.settings.seen_images is None
    assert [each.state for each in run_project(project, dry_run=True)] == ["would run"] * 3
    assert run(["init", "p/model.onnx", "--out", "p/project.yaml"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (folder / "project.yaml").read_text() == text


def test_run_says_which_file_of_a_new_project_is_missing(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_project.model, tmp_path / "a model: 1.onnx")
    monkeypatch.chdir(tmp_path)
    assert run(["init", "a model: 1.onnx"]) == 0
    assert load_names(tmp_path / "project.yaml")["model"] == "a model: 1.onnx"
    assert run(["run"]) == 2
    assert "classes is 'classes.txt', where there is nothing; expected a file." in capsys.readouterr().err


def load_names(path: Path) -> dict:
    from icis_deploy.project.yaml_values import load_yaml

    value = load_yaml(path).value
    assert isinstance(value, dict)
    return value
