"""The steps of `gpu-check`, each run as a process: `python -m scripts.edge.gpu_steps STEP --out FILE --work FOLDER`.

A step writes what it has found to FILE each time that it has found something, so that one which is stopped leaves that.
It exits with 0 where everything was tried, whatever the checks say, and with 4 where something that it needs is not
there. What it makes (bundles, keys, an update) stays in the work folder for the steps after it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.errors import GateFailedError, ICISDeployError, MissingDependencyError
from scripts.edge.device_life import live, two_updates
from scripts.edge.gpu_check import REPOSITORY, SKIPPED, write_whole

CAPACITY = 64
BATCHES = (1, 8, 32)
FILES = ("model.onnx", "classes.txt", "descriptors.npz", "preprocess.json", "images.csv")

SAME = 2e-2
"""Greatest difference of a logit from the CPU's, in standard deviations of logits, that an update is judged by: TF32
has eleven significant bits. The gate has its own thresholds, and its verdict is a check of its own."""


class SkippedStepError(Exception):
    """Something that the step needs is not there; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a step works: the user's files, and what earlier steps made."""

    work: Path
    model: Path
    """A folder with `FILES`."""

    is_rehearsal: bool
    out: Path
    found: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, value: Any) -> None:
        """Keep a figure, and write all."""
        self.found[name] = value
        write_whole(self.out, json.dumps(self.found, default=float))

    def check(self, name: str, passed: bool, detail: object) -> None:
        """Keep whether something is as it must be, and write all."""
        checks = [*self.found.get("checks", ()), {"name": name, "passed": bool(passed), "detail": str(detail)}]
        self.note("checks", checks)

    def file(self, name: str) -> Path:
        """Return one of the user's files."""
        return self.model / name

    @property
    def device(self) -> str:
        """What torch computes on."""
        return "cpu" if self.is_rehearsal else "cuda"


# --- what steps share ---------------------------------------------------------------------------------------------


def public_key(bench: Bench) -> Path:
    """Return the key that bundles trust, made at first."""
    import icis_deploy

    if not (bench.work / "KEY").is_file():
        icis_deploy.keygen(bench.work / "KEY")
    return bench.work / "KEY.pub"


def updates(bench: Bench) -> tuple[Path, Path]:
    """Return two signed updates of the unseen classes, made at first."""
    public_key(bench)
    return two_updates(
        bench.file("model.onnx"),
        classes=bench.file("classes.txt"),
        descriptors=bench.file("descriptors.npz"),
        preprocess=bench.file("preprocess.json"),
        unseen=unseen_names(bench),
        key=bench.work / "KEY",
        folder=bench.work,
    )


def unseen_names(bench: Bench) -> list[str]:
    """Return some classes that are described and that the head lacks, at most as many as half of the slots."""
    import icis_deploy

    seen = set(bench.file("classes.txt").read_text("utf-8").split("\n"))
    described = icis_deploy.load_descriptors(bench.file("descriptors.npz")).class_names
    return [name for name in described if name not in seen][: CAPACITY // 2]


def exported(bench: Bench, name: str, *, targets: tuple[str, ...] = ("onnx",), **given: Any) -> tuple[Path, list[Any]]:
    """Return a bundle of the model, and what became of its targets, where it is made now."""
    import icis_deploy

    folder, built = bench.work / "bundles" / name, []
    if not (folder / "manifest.json").is_file():
        folder.parent.mkdir(exist_ok=True)
        form = {key: given.pop(key) for key in ("precision", "calibration_images") if key in given}
        settings = {"head": "updatable", "capacity": CAPACITY, "trust": (public_key(bench),)}
        icis_deploy.export(
            bench.file("model.onnx"),
            classes=bench.file("classes.txt"),
            out=folder,
            options=icis_deploy.ExportOptions(
                preprocess=bench.file("preprocess.json"),
                targets=targets,
                form=icis_deploy.ModelForm(**form),
                max_changed_answers=None,
                **{**settings, **given},
            ),
            on_target=built.append,
        )
    return folder, built


@contextmanager
def needed() -> Iterator[None]:
    """Turn what is missing on this machine into a reason to skip the step."""
    try:
        yield
    except MissingDependencyError as error:
        raise SkippedStepError(str(error)) from error


def check_life(bench: Bench, folder: Path, runtime: Any, label: str) -> None:
    """Live through a device's life in a runtime, next to the CPU, and judge it."""
    with needed():
        life = live(folder, runtime, updates=updates(bench), key=bench.work / "KEY", work=bench.work)
    bench.note(f"{label}: difference from the CPU", life.difference_before)
    bench.note(f"{label}: apply, ms", life.apply_ms)
    for what, passed, detail in (
        ("the update's classes are there", life.has_same_classes, "next to the CPU's"),
        ("logits with the update are the CPU's", life.difference_after <= SAME, f"{life.difference_after:.1e}"),
        ("no answer is torn", life.num_torn == 0, f"{life.num_torn} of {life.num_answers}"),
        ("a damaged update is refused", life.refused_by is not None, life.refused_by),
        ("rolled back, it answers as before, to the bit", life.is_restored, life.is_restored),
    ):
        bench.check(f"{label}: {what}", passed, detail)


def gated(bench: Bench, folder: Path, runtime: Any, label: str) -> None:
    """Run the parity gate in a runtime, as `icis-deploy verify` does, and keep its verdict."""
    import icis_deploy

    try:
        reports = icis_deploy.verify(folder, against=bench.file("model.onnx"), runtime=runtime)
        bench.check(f"{label}: the gate", passed=True, detail=f"{max(each.max_scaled_error for each in reports):.1e}")
    except GateFailedError as error:
        worst = max((each.max_scaled_error for each in error.reports), default=float("nan"))
        bench.check(f"{label}: the gate", passed=False, detail=f"{worst:.1e}; {error}")


# --- the steps ----------------------------------------------------------------------------------------------------


def machine(bench: Bench) -> None:
    """Note what is there: GPU, driver, torch, runtimes, and what each runtime does with a small bundle."""
    from benchmarks.machine.environment import read_environment
    from icis_deploy.doctor.runtimes import runtimes

    environment = read_environment()
    bench.note("machine", environment.name)
    gpus = environment.sections["gpu"]["gpus"]
    bench.note("GPU", gpus[0] if isinstance(gpus, list) else environment.missing.get("gpu.gpus", "none"))
    bench.note("versions", {key: value for key, value in environment.sections["versions"].items() if value})
    try:
        import torch
    except ImportError as error:
        bench.note("torch", f"not there: {error}")
    else:
        bench.note("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, available {torch.cuda.is_available()}")
    for state in runtimes():
        bench.note(f"runtime {state.name}", f"{state.state}: {state.detail}")


def training(bench: Bench) -> None:
    """Train and inject on CUDA and on the CPU, and compare rows: with each other, and with those of another seed."""
    try:
        import torch
    except ImportError as error:
        raise SkippedStepError(f"torch is not there: {error}") from error
    if not bench.is_rehearsal and not torch.cuda.is_available():
        raise SkippedStepError(f"torch {torch.__version__} finds no CUDA device")
    bench.note("on", torch.cuda.get_device_name(0) if bench.device == "cuda" else "the CPU, as a rehearsal")
    rows, seconds = {}, {}
    for label, device, seed in (("CPU", "cpu", 0), ("CPU, another seed", "cpu", 1), (bench.device, bench.device, 0)):
        start = time.perf_counter()
        rows[label] = injected_rows(bench, device, seed)
        seconds[label] = time.perf_counter() - start
    bench.note("seconds of `inject --method icis`, process and backbone included", seconds)
    scale = float(np.linalg.norm(rows["CPU"]))
    apart = float(np.linalg.norm(rows[bench.device] - rows["CPU"])) / scale
    seeds = float(np.linalg.norm(rows["CPU, another seed"] - rows["CPU"])) / scale
    bench.note("rows, relative distance from the CPU's", apart)
    bench.note("rows, relative distance of two seeds on the CPU", seeds)
    bench.check(
        "rows from the GPU are nearer to the CPU's than those of another seed",
        apart < seeds,
        f"{apart:.1e}, {seeds:.1e}",
    )
    bench.check("rows are finite", bool(np.isfinite(rows[bench.device]).all()), rows[bench.device].shape)


def injected_rows(bench: Bench, device: str, seed: int) -> np.ndarray:
    """Return the rows that `inject --method icis` predicts in a process of its own, which sees the GPU or does not."""
    import icis_deploy

    out = bench.work / f"icis-{device}-{seed}.icis"
    names = bench.work / "unseen.txt"
    names.write_text("\n".join(unseen_names(bench)) + "\n", encoding="utf-8")
    options = [
        "--classes",
        bench.file("classes.txt"),
        "--descriptors",
        bench.file("descriptors.npz"),
        "--unseen",
        names,
    ]
    options += ["--preprocess", bench.file("preprocess.json"), "--method", "icis", "--seed", seed, "--overwrite"]
    command = [sys.executable, "-m", "icis_deploy.cli.main", "inject", bench.file("model.onnx"), *options, "--out", out]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}
    subprocess.run(list(map(str, command)), check=True, env=environment, cwd=REPOSITORY)  # noqa: S603 - our own command
    return np.asarray(icis_deploy.load_update(out).rows)


def tests(bench: Bench) -> None:
    """Run the tests that are marked `gpu`, and count."""
    from xml.etree import ElementTree

    if not bench.is_rehearsal:
        with needed():
            from icis_deploy.runtime.sessions.cuda_calls import load_cuda

            load_cuda()
    marked = sorted(
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if ".gpu" in path.read_text("utf-8")
    )
    report = bench.work / "tests.xml"
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    ran = subprocess.run([sys.executable, "-m", "pytest", *options, *marked], cwd=REPOSITORY, check=False)  # noqa: S603
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))  # noqa: S314 - written by pytest just now
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in cases:
        kind = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
        counts[kind] += 1
        if kind == "failed":
            bench.check(f"{case.get('classname')}::{case.get('name')}", passed=False, detail="failed")
    bench.note("tests marked gpu", counts)
    skipped = {str(child.get("message"))[:120] for case in cases for child in case if child.tag == "skipped"}
    bench.note("why some were skipped", sorted(skipped)[:10])
    bench.check(
        "pytest ran", ran.returncode in {0, 1} and bool(cases), f"exit code {ran.returncode}, {len(cases)} tests"
    )


def provider(name: str) -> Callable[[Bench], None]:
    """Return the step of one of ONNX Runtime's providers."""

    def step(bench: Bench) -> None:
        import icis_deploy

        cache = {"cache_folder": bench.work / "engine-cache"} if name == "onnxruntime-tensorrt" else {}
        runtime = (
            icis_deploy.Runtime(name="onnxruntime") if bench.is_rehearsal else icis_deploy.Runtime(name=name, **cache)
        )
        folder, _ = exported(bench, "fp32")
        with needed():
            icis_deploy.Device.open(folder, runtime=runtime).close()
        gated(bench, folder, runtime, "fp32")
        check_life(bench, folder, runtime, "fp32")

    return step


def engine(name: str) -> Callable[[Bench], None]:
    """Return the step of one of the libraries that build engines."""

    def step(bench: Bench) -> None:
        import icis_deploy
        from icis_deploy.runtime.sessions.cuda_calls import load_cuda
        from icis_deploy.runtime.sessions.tensorrt_library import load_tensorrt

        with needed():
            library = load_tensorrt(name)
            capability = None if bench.is_rehearsal and name == "tensorrt-rtx" else load_cuda().compute_capability()
        bench.note("version", library.__version__)
        bench.note("compute capability", capability or "all that the library knows: there is no GPU")
        here = {"compute_capabilities": (capability,)} if capability and name == "tensorrt-rtx" else {}
        cache = {"timing_cache": bench.work / "timing.cache"} if name == "tensorrt" else {}
        forms: list[tuple[str, dict[str, Any], bool]] = [("fp32", {}, False), ("fp32, refit", {}, True)]
        forms.append(("fp16", {"precision": "fp16"}, False))
        forms.append(("int8", {"precision": "int8", "calibration_images": bench.file("images.csv")}, False))
        for label, form, refit in forms:
            if refit and capability is None:
                bench.note(label, "not built: a refittable engine takes a GPU")
                continue
            settings = icis_deploy.EngineSettings(max_batch=max(BATCHES), refit=refit, **here, **cache)
            target_options = icis_deploy.TargetOptions(engine=settings)
            try:
                folder, built = exported(
                    bench, f"{name}-{label.replace(', ', '-')}", targets=(name,), target_options=target_options, **form
                )
            except (GateFailedError, ICISDeployError) as error:
                bench.check(
                    f"{label}: built, and past the gate", passed=False, detail=f"{type(error).__name__}: {error}"
                )
                continue
            for each in built:
                bench.note(f"{label}: build, s", each.build_seconds)
                bench.note(f"{label}: size, MB", each.size_bytes / 1e6)
                worst = max((report.max_scaled_error for report in each.reports), default=float("nan"))
                said = each.reason or f"greatest error {worst:.1e}"
                what = "built" if bench.is_rehearsal else "built, and past the gate"
                bench.check(f"{label}: {what}", bench.is_rehearsal or each.reason is None, said)
            if capability is not None:
                check_life(bench, folder, icis_deploy.Runtime(name=name), label)

    return step


def bench_step(bench: Bench) -> None:
    """Measure latency by runtime and batch size, with what the GPU's clock does meanwhile, and transfers apart."""
    import icis_deploy

    folders = measurable(bench)
    if not bench.is_rehearsal and len(folders) == 1:
        raise SkippedStepError("no runtime uses a GPU here; the reasons are in the steps before")
    options = {"preset": "quick", "max_seconds": 1.0 if bench.is_rehearsal else 2.0, "batch_sizes": BATCHES}
    with watched_gpu() as states:
        for name, folder in folders.items():
            runtimes = tuple(dict.fromkeys(("onnxruntime", name)))
            result = icis_deploy.bench(
                [folder],
                against=bench.file("model.onnx"),
                options=icis_deploy.BenchOptions(runtimes=runtimes, **options),
            )
            path = bench.work / f"bench-{name}.json"
            path.unlink(missing_ok=True)
            icis_deploy.results.save_result(result, path)
            note_latencies(bench, name, result)
    for what in ("clock_mhz", "temperature_c", "power_w"):
        values = [value for state in states if (value := getattr(state, what)) is not None]
        bench.note(f"GPU, {what}, least and most", [min(values), max(values)] if values else "not told")
    slowed = sorted({reason for state in states for reason in state.throttle_reasons})
    bench.note("GPU, slowed down by", slowed or "nothing that it tells")


def measurable(bench: Bench) -> dict[str, Path]:
    """Return the bundles to measure by their runtime: the CPU's, and those that the GPU opens here."""
    import icis_deploy

    folder, _ = exported(bench, "fp32")
    found = {"onnxruntime": folder}
    for name in () if bench.is_rehearsal else ("onnxruntime-cuda", "tensorrt-rtx", "tensorrt", "onnxruntime-tensorrt"):
        own = bench.work / "bundles" / f"{name}-fp32"
        candidate = own if own.is_dir() else folder
        try:
            icis_deploy.Device.open(candidate, runtime=name).close()
        except ICISDeployError as error:
            bench.note(f"{name}: not measured", str(error))
        else:
            found[name] = candidate
    return found


@contextmanager
def watched_gpu() -> Iterator[list[Any]]:
    """Give a list of the GPU's states, which grows twice a second; it stays empty where none can be read."""
    from benchmarks.machine.gpu import read_gpu_state
    from benchmarks.machine.system_files import Unavailable

    states: list[Any] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            state = read_gpu_state()
            if isinstance(state, Unavailable):
                return
            states.append(state)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield states
    finally:
        done.set()
        watcher.join()


def note_latencies(bench: Bench, name: str, result: Any) -> None:
    """Keep medians with their intervals, ratios, and the phases of a query on the GPU."""
    for target in result.targets:
        for batch, latency in result.latencies(target.name):
            median = latency.median_ms
            figure = f"{median.value:.3f} ({median.low:.3f} to {median.high:.3f})"
            bench.note(f"run of {name}: {target.name}, batch {batch}, median ms", figure)
    for phases in result.phases:
        intervals = {
            "to the GPU": phases.host_to_device_ms,
            "model": phases.compute_ms,
            "back": phases.device_to_host_ms,
        }
        for part, interval in intervals.items():
            bench.note(f"run of {name}: {phases.target}, batch {phases.batch_size}, {part}, ms", interval.value)


RUN: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "training": training,
    "onnxruntime-cuda": provider("onnxruntime-cuda"),
    "tensorrt-rtx": engine("tensorrt-rtx"),
    "tests": tests,
    "tensorrt": engine("tensorrt"),
    "onnxruntime-tensorrt": provider("onnxruntime-tensorrt"),
    "bench": bench_step,
}
"""By name, as `gpu_check.STEPS`."""


def files_of(given: Path | None, work: Path) -> Path:
    """Return the folder of the user's files, a tiny classifier's where none was given.

    Raises:
        SkippedStepError: If one is missing.
    """
    if given is not None:
        missing = [name for name in FILES if not (given / name).is_file()]
        if missing:
            raise SkippedStepError(f"{given} has no {missing[0]}; it needs {', '.join(FILES)}")
        return given
    from testing.tiny_project import write_tiny_project

    folder = work / "tiny"
    if not (folder / FILES[-1]).is_file():
        write_tiny_project(folder)
    return folder


def main() -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("step", choices=RUN)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    try:
        model = files_of(arguments.model, arguments.work)
        RUN[arguments.step](
            Bench(work=arguments.work, model=model, is_rehearsal=arguments.rehearse, out=arguments.out, found=found)
        )
    except SkippedStepError as error:
        write_whole(arguments.out, json.dumps({**found, "skipped": str(error)}, default=float))
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
