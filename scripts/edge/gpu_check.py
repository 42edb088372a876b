"""Run everything that needs an NVIDIA GPU on a machine that has one, step by step, and write one result.

    scripts/edge/gpu-check pack --python 3.12 --out gpu-wheels      (where there is a package index)
    scripts/edge/gpu-check run --wheels gpu-wheels --model FOLDER   (on the machine with the GPU; again, to go on)

`run` needs a checkout, Python 3.10 to 3.12 with torch, and the GPU's driver; no internet. What is missing is installed
from `--wheels` into an environment in the work folder, which sees the machine's own packages. Rules:

1. Each step is a process of its own with a limit (`scripts/edge/gpu_steps.py`). Its result is written when it ends, and
   the report with it, so that whatever ends the run loses at most the step that was running.
2. A step that is done on this GPU is not run again. One that failed, was stopped or was skipped is, after those that
   were never tried.
3. No step begins that the time left would cut off at once; `--seconds` is the whole of one call.
4. A step that needs something which is not there is skipped and says what. Nothing is faked: `--rehearse` lets steps
   run on the CPU what they can, and the report is marked as a rehearsal.

The exit code is 0 if every step is done or skipped, 1 if one failed, 3 if the time ended before all were tried.
This module imports Python's own library alone, as it runs before anything is installed.
"""

# Why: docs/decisions/0131.

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from scripts.edge.wheel_pieces import PiecesError, load_pieces, pack, unpack

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT_NAME, REPORT_NAME = "gpu-check.json", "gpu-check.md"
RESULT_VERSION = 1
SKIPPED = 4
"""Exit code of a step that needs something which is not there."""

LEAST_S = 10
"""A step that has less than this is not begun."""

PYTHONS = ((3, 10), (3, 12))


@dataclass(frozen=True)
class Step:
    """Something to find out, as a process."""

    name: str
    title: str

    limit_s: int
    """After which it is stopped; what it found until then is kept."""


STEPS = (
    Step("machine", "What is there", 60),
    Step("training", "Training and injection on CUDA, against the CPU's rows", 120),
    Step("onnxruntime-cuda", "ONNX Runtime's CUDA provider", 120),
    Step("tensorrt-rtx", "TensorRT-RTX engines for this GPU", 180),
    Step("tests", "Tests marked `gpu`", 180),
    Step("tensorrt", "TensorRT engines for this GPU", 240),
    Step("onnxruntime-tensorrt", "ONNX Runtime's TensorRT provider", 180),
    Step("bench", "Latency, with clocks and transfers", 180),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step."""

    step: str

    state: str
    """`done`, `skipped`, `failed`, `stopped` (at its limit) or `not tried`."""

    reason: str | None = None
    """Why it was skipped or failed."""

    seconds: float = 0.0
    gpu: str | None = None
    code: str = ""
    """Digest of the project's code that it ran."""

    found: dict[str, Any] = field(default_factory=dict)
    """Its figures, and its `checks`."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run works, and with what."""

    work: Path
    python: Path
    environment: dict[str, str]
    gpu: str | None
    """Name of the first GPU, by its driver; `None` where there is none."""

    code: str
    arguments: tuple[str, ...]
    """Given to every step."""

    @property
    def folder(self) -> Path:
        """Of the results of steps; those of a rehearsal are of no GPU."""
        return self.work / "steps"


# --- the machine --------------------------------------------------------------------------------------------------


def gpu_name() -> str | None:
    """Return the name of the first GPU as its driver states it, `None` where there is no driver or no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = subprocess.run(  # noqa: S603 - as it was found
        [program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=60, check=False
    )
    names = asked.stdout.strip().splitlines()
    return names[0].strip() if asked.returncode == 0 and names else None


def code_digest(root: Path = REPOSITORY) -> str:
    """Return a digest of the project's Python files, by which results of another state of it are known."""
    digest = hashlib.sha256()
    for package in ("icis_deploy", "exporters", "benchmarks", "scripts/edge", "testing", "tests"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def prepared_python(work: Path, wheels: Path | None) -> Path:
    """Return a Python that has what steps need: this one, or an environment with the carried wheels above it.

    Raises:
        PiecesError: If a piece is missing or damaged, or made for another Python.
        RuntimeError: If pip fails, with what it said.
    """
    if wheels is None:
        return Path(sys.executable)
    contents = load_pieces(wheels)
    here = "{}.{}".format(*sys.version_info)
    if contents["python"] != here:
        raise PiecesError(
            f"{wheels} holds wheels for Python {contents['python']}; this is {here}. Pack for it: "
            f"scripts/edge/gpu-check pack --python {here} --out {wheels.name}-{here}"
        )
    environment, ready = work / "venv", work / "venv" / "ready"
    python = environment / "bin" / "python"
    stamp = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    if ready.is_file() and ready.read_text() == stamp:
        return python
    unpacked = work / "wheels"
    shutil.rmtree(environment, ignore_errors=True)
    unpack(wheels, unpacked)
    run_or_raise([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(environment)])
    see_packages_of_this_environment(environment)
    (pip,) = unpacked.glob("pip-*.whl")
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--find-links", str(unpacked)]
    run_or_raise([str(python), str(pip / "pip"), "install", *options, *contents["requirements"]])
    shutil.rmtree(unpacked)
    ready.write_text(stamp)
    return python


def see_packages_of_this_environment(environment: Path) -> None:
    """Let an environment see what this Python sees, torch above all.

    venv by itself lets it see the packages of the machine's Python, even where this one runs in an environment.
    """
    if sys.prefix == sys.base_prefix:
        return
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "machine.pth").write_text("".join(f"{folder}\n" for folder in site.getsitepackages()))


def run_or_raise(command: Sequence[str]) -> None:
    """Run a command.

    Raises:
        RuntimeError: If it fails, with the last lines that it printed.
    """
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - Python and pip
    if ran.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command[:4]))} ... failed: {(ran.stderr or ran.stdout).strip()[-1500:]}"
        )


def step_environment(python: Path, *, rehearse: bool) -> dict[str, str]:
    """Return the environment of steps: the checkout first, and the CUDA libraries that came as wheels to be found."""
    code = "import json, sys; print(json.dumps(sys.path))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    found = [
        folder
        for entry in json.loads(asked.stdout)
        for pattern in ("nvidia/*/lib", "nvidia/*/*/lib", "torch/lib", "tensorrt_libs", "tensorrt_rtx*")
        for folder in sorted(glob.glob(str(Path(entry or ".") / pattern)))  # noqa: PTH207 - entries may be no folders
    ]
    paths = [*found, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    values = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    values |= {"LD_LIBRARY_PATH": os.pathsep.join(paths)} if paths else {}
    return values | ({"CUDA_VISIBLE_DEVICES": ""} if rehearse else {})


# --- steps --------------------------------------------------------------------------------------------------------


def run_step(step: Step, place: Place, limit_s: float) -> Outcome:
    """Run one step in a process of its own, and return what became of it."""
    part = place.folder / f"{step.name}.part.json"
    part.unlink(missing_ok=True)
    command = [str(place.python), "-m", "scripts.edge.gpu_steps", step.name, "--out", str(part), *place.arguments]
    start = time.monotonic()
    with (place.folder / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - a module of this checkout
            command, cwd=REPOSITORY, env=place.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            end_group(process)
        except BaseException:
            end_group(process)
            raise
    seconds = time.monotonic() - start
    found: dict[str, Any] = json.loads(part.read_text()) if part.is_file() else {}
    part.unlink(missing_ok=True)
    state, reason = judged(code, found, place.folder / f"{step.name}.log", limit_s)
    found.pop("skipped", None)
    return Outcome(
        step=step.name,
        state=state,
        reason=reason,
        seconds=round(seconds, 1),
        gpu=place.gpu,
        code=place.code,
        found=found,
    )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started."""
    os.killpg(process.pid, 9)
    process.wait()


def judged(code: int | None, found: dict[str, Any], log: Path, limit_s: float) -> tuple[str, str | None]:
    """Return state and reason of a step that ended with an exit code, `None` if it was stopped."""
    if code is None:
        return "stopped", f"it was stopped after {limit_s:.0f} s; what it had found is kept"
    if code == SKIPPED:
        return "skipped", str(found.get("skipped", "it did not say why"))
    wrong = [check["name"] for check in found.get("checks", ()) if not check["passed"]]
    if code == 0:
        return ("failed", f"not as it must be: {', '.join(wrong)}") if wrong else ("done", None)
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "failed", f"exit code {code}: {said[-1][:500] if said else 'it said nothing'} ({log.name} has all of it)"


def load_outcome(path: Path) -> Outcome | None:
    """Return the result of a step that was run before, `None` where there is none that can be read."""
    try:
        return Outcome(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)


def in_order(steps: Sequence[Step], outcomes: dict[str, Outcome], gpu: str | None) -> list[Step]:
    """Return the steps that are left, those first that were never tried on this GPU."""
    here = {name: outcome for name, outcome in outcomes.items() if outcome.gpu == gpu}
    left = [step for step in steps if here.get(step.name) is None or here[step.name].state != "done"]
    return sorted(left, key=lambda step: step.name in here)


def run_steps(steps: Sequence[Step], place: Place, seconds: float, tell: Callable[[str], None]) -> list[Outcome]:
    """Run what is left of the steps within some seconds, and return the outcomes of all."""
    deadline = time.monotonic() + seconds
    place.folder.mkdir(parents=True, exist_ok=True)
    files = {step.name: place.folder / f"{step.name}.json" for step in steps}
    outcomes = {name: outcome for name, path in files.items() if (outcome := load_outcome(path)) is not None}
    outcomes = {name: outcome for name, outcome in outcomes.items() if outcome.gpu == place.gpu}
    for step in in_order(steps, outcomes, place.gpu):
        left = deadline - time.monotonic()
        if left < LEAST_S:
            tell(f"{step.name}: not begun, the time is over")
            continue
        outcome = run_step(step, place, min(step.limit_s, left))
        outcomes[step.name] = outcome
        write_whole(files[step.name], json.dumps(asdict(outcome), indent=1) + "\n")
        write_report(steps, outcomes, place)
        tell(f"{step.name}: {outcome.state}, {outcome.seconds:.0f} s{f' ({outcome.reason})' if outcome.reason else ''}")
    write_report(steps, outcomes, place)
    return [outcomes.get(step.name, Outcome(step=step.name, state="not tried")) for step in steps]


# --- the report ---------------------------------------------------------------------------------------------------


def write_report(steps: Sequence[Step], outcomes: dict[str, Outcome], place: Place) -> None:
    """Write the one result, as JSON and as Markdown."""
    all_of_them = [outcomes.get(step.name, Outcome(step=step.name, state="not tried")) for step in steps]
    values = {
        "result_version": RESULT_VERSION,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "gpu": place.gpu,
        "rehearsal": "--rehearse" in place.arguments,
        "code": place.code,
        "steps": [asdict(outcome) for outcome in all_of_them],
    }
    write_whole(place.work / RESULT_NAME, json.dumps(values, indent=1) + "\n")
    write_whole(place.work / REPORT_NAME, report(steps, values))


def report(steps: Sequence[Step], values: dict[str, Any]) -> str:
    """Return a result as Markdown."""
    titles = {step.name: step.title for step in steps}
    lines = [f"# GPU check: {values['gpu'] or 'no GPU'}"]
    if values["rehearsal"]:
        lines += ["", "**A rehearsal on a CPU.** No figure here is of a GPU."]
    lines += [
        "",
        f"{values['created']}, code {values['code']}.",
        "",
        "| step | state | seconds | |",
        "|---|---|---|---|",
    ]
    for outcome in values["steps"]:
        other = outcome["code"] not in {"", values["code"]}
        note = " ".join(filter(None, [outcome["reason"], "(of another state of the code)" if other else ""]))
        lines.append(f"| {titles[outcome['step']]} | {outcome['state']} | {outcome['seconds']} | {in_a_cell(note)} |")
    for outcome in values["steps"]:
        found = {name: value for name, value in outcome["found"].items() if name != "checks"}
        checks = outcome["found"].get("checks", [])
        if not found and not checks:
            continue
        lines += ["", f"## {titles[outcome['step']]}"]
        if checks:
            lines += [
                "",
                *(
                    f"- {'yes' if check['passed'] else '**NO**'}: {check['name']} ({check['detail']})"
                    for check in checks
                ),
            ]
        if found:
            lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in flat(found))]
    return "\n".join(lines) + "\n"


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested figures as lines: names joined by commas, and values as text."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += flat(value, f"{prefix}{name}, ")
        else:
            text = (
                f"{value:.4g}"
                if isinstance(value, float)
                else ", ".join(map(str, value))
                if isinstance(value, list)
                else str(value)
            )
            lines.append((f"{prefix}{name}", in_a_cell(text)))
    return lines


def in_a_cell(text: str) -> str:
    """Return a text without what would end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


# --- the command line ---------------------------------------------------------------------------------------------


def parser_of_all() -> argparse.ArgumentParser:
    """Return the parser of both commands."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="download what the machine lacks, in pieces; needs a package index")
    packing.add_argument("--python", required=True, help="the machine's Python: 3.12")
    packing.add_argument("--platform", default="manylinux_2_28_x86_64", help="its manylinux tag (default: %(default)s)")
    packing.add_argument("--piece-mb", type=int, default=48, help="greatest size of a piece (default: %(default)s)")
    packing.add_argument("--constraints", type=Path, default=REPOSITORY / "constraints.txt", help="versions to take")
    packing.add_argument("--also", type=Path, nargs="*", default=[], help="wheels of your own, such as TensorRT's")
    packing.add_argument("--out", type=Path, required=True, help="the folder of pieces")
    running = commands.add_parser("run", help="run what is left, and write the result")
    running.add_argument("--work", type=Path, default=REPOSITORY / "build" / "gpu-check", help="results, environment")
    running.add_argument("--wheels", type=Path, help="the folder of pieces; without it, this Python has everything")
    running.add_argument(
        "--model",
        type=Path,
        help="model.onnx, classes.txt, descriptors.npz, preprocess.json, images.csv;"
        " without it, a tiny classifier that is made here",
    )
    running.add_argument("--seconds", type=float, default=570.0, help="for this call (default: %(default)s)")
    running.add_argument("--steps", help="some of: " + ", ".join(step.name for step in STEPS))
    running.add_argument("--rehearse", action="store_true", help="on a CPU: steps run what they can without a GPU")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    arguments = parser_of_all().parse_args(words)
    if arguments.command == "pack":
        return pack_pieces(arguments)
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        print(
            f"Error: this is Python {sys.version.split()[0]}; expected 3.10 to 3.12. Name one by PYTHON=...",
            file=sys.stderr,
        )
        return 2
    wanted = tuple(arguments.steps.split(",")) if arguments.steps else tuple(step.name for step in STEPS)
    unknown = sorted(set(wanted) - {step.name for step in STEPS})
    if unknown:
        print(
            f"Error: there is no step {unknown[0]!r}; choose among {', '.join(step.name for step in STEPS)}.",
            file=sys.stderr,
        )
        return 2
    steps = [step for step in STEPS if step.name in wanted]
    started = time.monotonic()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        python = prepared_python(work, arguments.wheels)
    except (PiecesError, RuntimeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 5
    given = ["--work", str(work), *(["--rehearse"] if arguments.rehearse else [])]
    given += ["--model", str(arguments.model.resolve())] if arguments.model else []
    place = Place(
        work=work,
        python=python,
        environment=step_environment(python, rehearse=arguments.rehearse),
        gpu=None if arguments.rehearse else gpu_name(),
        code=code_digest(),
        arguments=tuple(given),
    )
    outcomes = run_steps(
        steps, place, arguments.seconds - (time.monotonic() - started), lambda line: print(line, flush=True)
    )
    print(f"{place.work / RESULT_NAME} and {REPORT_NAME}: {place.gpu or 'no GPU'}")
    return exit_code(outcomes)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 1 if a step failed or was stopped, 3 if one was not tried, else 0."""
    states = {outcome.state for outcome in outcomes}
    return 1 if states & {"failed", "stopped"} else 3 if "not tried" in states else 0


def pack_pieces(arguments: argparse.Namespace) -> int:
    """Pack, and return the exit code."""
    from icis_deploy.errors import ICISDeployError

    try:
        print(
            pack(
                arguments.out,
                platform=arguments.platform,
                python=arguments.python,
                constraints=arguments.constraints,
                piece_bytes=arguments.piece_mb << 20,
                also=arguments.also,
            )
        )
    except ICISDeployError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
