"""The check of everything that needs a GPU: rehearsed on a CPU, resumed, stopped, and its wheels carried in pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.edge import gpu_check, gpu_steps, wheel_pieces
from scripts.edge.gpu_check import Place, Step, in_order, load_outcome, report, run_steps
from scripts.edge.wheel_pieces import PiecesError

REPOSITORY = Path(__file__).resolve().parents[2]


# --- a rehearsal --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The work folder of a rehearsal of the steps that take seconds here, and what the command said."""
    work = tmp_path_factory.mktemp("gpu") / "work"
    return work, check(work, "--rehearse", "--steps", "machine,onnxruntime-cuda,tensorrt")


def check(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "scripts/edge/gpu-check", "run", "--work", work, *words]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def result_of(work: Path) -> dict[str, Any]:
    return json.loads((work / gpu_check.RESULT_NAME).read_text())


def steps_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in result["steps"]}


@pytest.mark.slow
def test_a_rehearsal_runs_what_a_cpu_can_and_says_what_it_lacks(rehearsal):
    work, said = rehearsal
    assert said.returncode == 0, said.stderr
    result = result_of(work)
    assert result["rehearsal"] is True
    assert result["gpu"] is None
    steps = steps_of(result)
    assert {name: step["state"] for name, step in steps.items()} == {
        "machine": "done",
        "onnxruntime-cuda": "done",
        "tensorrt": "skipped",
    }
    assert "tensorrt" in steps["tensorrt"]["reason"]
    checks = steps["onnxruntime-cuda"]["found"]["checks"]
    assert len(checks) == 6
    assert all(each["passed"] for each in checks)
    text = (work / gpu_check.REPORT_NAME).read_text()
    assert text.startswith("# GPU check: no GPU\n\n**A rehearsal on a CPU.** No figure here is of a GPU.")
    assert "- yes: fp32: a damaged update is refused (SignatureError)" in text


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_a_step_that_needs_one_says_so_and_is_tried_again(rehearsal):
    work, _ = rehearsal
    before = result_of(work)
    said = check(work, "--steps", "machine,onnxruntime-cuda,tests")
    assert said.returncode == 0, said.stderr
    # What was done in the rehearsal is of the same machine and stays; the rest is tried, and lacks a GPU.
    steps = steps_of(result_of(work))
    assert steps["machine"] == steps_of(before)["machine"]
    assert steps["tests"]["state"] == "skipped"
    assert "There is no NVIDIA GPU that can be used here" in steps["tests"]["reason"]
    assert not said.stdout.startswith("machine")


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose steps are programs of the test, in `tmp_path/scripts/edge/gpu_steps.py`."""
    folder = tmp_path / "root" / "scripts" / "edge"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "gpu_steps.py").write_text(
        "import json, sys, time\n"
        "name, out = sys.argv[1], sys.argv[3]\n"
        "open(sys.argv[sys.argv.index('--work') + 1] + '/ran', 'a').write(name + '\\n')\n"
        "if name == 'good': json.dump({'latency ms': 1.5, 'checks': []}, open(out, 'w'))\n"
        "wrong = [{'name': 'the gate', 'passed': False, 'detail': '0.3'}]\n"
        "if name == 'wrong': json.dump({'checks': wrong}, open(out, 'w'))\n"
        "if name == 'lacking': json.dump({'skipped': 'no | GPU'}, open(out, 'w')); sys.exit(4)\n"
        "if name == 'crashing': raise ValueError('no such kernel')\n"
        "if name == 'slow': json.dump({'first': 1}, open(out, 'w')); time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_check, "REPOSITORY", tmp_path / "root")
    return Place(
        work=tmp_path,
        python=Path(sys.executable),
        environment={**os.environ, "PYTHONPATH": str(tmp_path / "root")},
        gpu="NVIDIA Test",
        code="c0de",
        arguments=("--work", str(tmp_path)),
    )


STEPS = tuple(Step(name, f"Title of {name}", 20) for name in ("good", "wrong", "lacking", "crashing"))


def ran(place: Place) -> list[str]:
    return (place.work / "ran").read_text().split()


def test_each_step_gets_its_state_and_its_reason(place):
    outcomes = {outcome.step: outcome for outcome in run_steps(STEPS, place, 300, print)}

    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "good": "done",
        "wrong": "failed",
        "lacking": "skipped",
        "crashing": "failed",
    }
    assert outcomes["wrong"].reason == "not as it must be: the gate"
    assert outcomes["lacking"].reason == "no | GPU"
    assert outcomes["crashing"].reason.startswith("exit code 1: ValueError: no such kernel")
    assert gpu_check.exit_code(list(outcomes.values())) == 1
    text = (place.work / gpu_check.REPORT_NAME).read_text()
    assert "# GPU check: NVIDIA Test" in text
    assert "| Title of lacking | skipped |" in text
    assert r"no \| GPU" in text
    assert "- **NO**: the gate (0.3)" in text
    assert "| latency ms | 1.5 |" in text


def test_what_is_done_is_not_run_again_and_what_failed_is(place):
    run_steps(STEPS[:2], place, 300, print)
    run_steps(STEPS, place, 300, print)

    # Those that were never tried come before those that failed.
    assert ran(place) == ["good", "wrong", "lacking", "crashing", "wrong"]
    other = replace(place, gpu="NVIDIA Other")
    run_steps(STEPS[:1], other, 300, print)
    assert ran(place)[-1] == "good"
    assert load_outcome(place.folder / "good.json").gpu == "NVIDIA Other"


def test_a_step_that_takes_too_long_is_ended_and_keeps_what_it_found(place):
    start = time.monotonic()
    (outcome,) = run_steps((Step("slow", "Slow", 2),), place, 300, print)

    assert time.monotonic() - start < 40
    assert (outcome.state, outcome.found) == ("stopped", {"first": 1})
    assert outcome.reason == "it was stopped after 2 s; what it had found is kept"


def test_no_step_begins_when_the_time_is_over(place):
    said: list[str] = []
    outcomes = run_steps(STEPS, place, gpu_check.LEAST_S - 1, said.append)

    assert [outcome.state for outcome in outcomes] == ["not tried"] * 4
    assert said[0] == "good: not begun, the time is over"
    assert gpu_check.exit_code(outcomes) == 3


def test_a_half_written_result_is_run_again(place):
    run_steps(STEPS[:1], place, 300, print)
    (place.folder / "good.json").write_text('{"step": "go')
    run_steps(STEPS[:1], place, 300, print)
    assert ran(place) == ["good", "good"]


def test_a_result_of_other_code_is_named():
    step = {"step": "good", "state": "done", "reason": None, "seconds": 1.0, "gpu": "x", "code": "old", "found": {}}
    values = {"gpu": "x", "rehearsal": False, "created": "now", "code": "new", "steps": [step]}
    assert "(of another state of the code)" in report(STEPS, values)


def test_steps_are_the_same_in_both_modules_and_the_first_imports_nothing_that_must_be_installed():
    assert list(gpu_steps.RUN) == [step.name for step in gpu_check.STEPS]
    assert sum(step.limit_s for step in gpu_check.STEPS) > 600  # limits, of which no call spends more than its seconds
    assert in_order(gpu_check.STEPS, {}, None) == list(gpu_check.STEPS)
    code = "import scripts.edge.gpu_check, sys; print({'numpy', 'icis_deploy', 'packaging'} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_words_that_mean_nothing_are_refused(capsys):
    assert gpu_check.main(["run", "--steps", "machine,tesnorrt"]) == 2
    assert "there is no step 'tesnorrt'; choose among machine, " in capsys.readouterr().err


# --- wheels in pieces -------------------------------------------------------------------------------------------------


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Two wheels in pieces of a kilobyte."""
    archive = tmp_path / "wheels.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("a-1-py3-none-any.whl", "b-2-py3-none-any.whl"):
            (tmp_path / name).write_bytes(os.urandom(1500))
            file.add(tmp_path / name, name)
    wheel_pieces.write_pieces(archive, tmp_path / "pieces", 1024, {"python": "3.11", "requirements": ["a", "b"]})
    return tmp_path / "pieces"


def test_pieces_are_joined_into_the_wheels_that_were_packed(pieces, tmp_path):
    assert all(path.stat().st_size <= 1024 for path in pieces.glob("wheels.*"))
    wheel_pieces.unpack(pieces, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_missing_or_damaged_piece_is_named_before_anything_is_unpacked(pieces, tmp_path):
    data = bytearray((pieces / "wheels.001").read_bytes())
    data[7] ^= 1
    (pieces / "wheels.001").write_bytes(data)
    with pytest.raises(PiecesError, match=r"wheels\.001 is damaged: .* Copy it again\."):
        wheel_pieces.unpack(pieces, tmp_path / "out")
    (pieces / "wheels.001").unlink()
    with pytest.raises(PiecesError, match=r"wheels\.001 is missing, of \d+\. Carry it over as well\."):
        wheel_pieces.unpack(pieces, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pieces_that_hold_something_else_are_refused(tmp_path):
    archive = tmp_path / "wheels.tar"
    (tmp_path / "x").write_text("x")
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "x", "../x.whl")
    wheel_pieces.write_pieces(archive, tmp_path / "pieces", 1 << 20, {})
    with pytest.raises(PiecesError, match="which is no wheel"):
        wheel_pieces.unpack(tmp_path / "pieces", tmp_path / "out")
    assert not (tmp_path / "x.whl").exists()


def test_wheels_for_another_python_are_refused(pieces, tmp_path):
    text = (pieces / "pieces.json").read_text().replace('"3.11"', '"3.9"')
    (pieces / "pieces.json").write_text(text)
    with pytest.raises(PiecesError, match=r"holds wheels for Python 3\.9; this is 3\.\d+\. Pack for it:"):
        gpu_check.prepared_python(tmp_path / "work", pieces)


def test_a_check_that_runs_in_an_environment_sees_its_packages(tmp_path):
    machine = tmp_path / "machine"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", machine], check=True)
    (packages,) = machine.glob("lib/python*/site-packages")
    (packages / "built_for_the_driver.py").write_text("answer = 42\n")
    code = f"""
import subprocess, sys, venv
from pathlib import Path
from scripts.edge.gpu_check import see_packages_of_this_environment
own = Path({str(tmp_path / "own")!r})
venv.create(own, system_site_packages=True)
see_packages_of_this_environment(own)
sys.exit(subprocess.run([own / "bin" / "python", "-c", "import built_for_the_driver"]).returncode)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run([machine / "bin" / "python", "-c", code], env=environment, check=False)
    assert ran.returncode == 0


def test_torch_is_not_carried_and_what_the_steps_need_is():
    wanted = " ".join(wheel_pieces.requirements())
    assert "torch" not in wanted.split()
    assert not any(each.startswith("torch>") for each in wanted.split())
    for name in ("onnxruntime-gpu", "tensorrt-rtx", "cuda-python", "onnx", "numpy", "nvidia-ml-py", "pytest", "scipy"):
        assert name in wanted
