"""What it costs to start: model load, first inference, peak memory, each time in a fresh process.

Rules:

1. Nothing is warm: every run is a new interpreter, and the model's files are dropped from the page cache where the
   system allows it.
2. The process that is measured imports the standard library alone before it starts to load, so that every import the
   model needs counts as load, in time and in memory.
3. Peak memory is that of the process itself. On Linux `getrusage` does not tell: its peak survives the start of a new
   program, and so includes the process that started this one.
4. Whatever the system does not tell is None, with the reason.

A factory, `package.module:function`, takes JSON arguments and returns the callable to measure, its model loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.machine.system_files import SYSTEM_ROOT, Unavailable, read_fields
from icis_deploy.errors import LoadError, RuntimeFailureError, UsageError

NUM_RUNS = 5
TIMEOUT_S = 600.0
MAX_STDERR = 2000

CHILD = (
    "import json, sys; request = json.load(sys.stdin); sys.path[:] = request['path']; "
    "from icis_deploy.workbench import enable_workbench; enable_workbench(); "
    "from benchmarks.timing.startup import start_here; start_here(request)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of one process."""

    cold_start_ms: float
    """From the start of the process to the first answer, milliseconds: interpreter, imports, load, first inference."""

    load_ms: float
    """The factory alone, milliseconds: imports of the runtime, and the model."""

    first_query_ms: float
    """Latency of the first query after loading, milliseconds."""

    second_query_ms: float
    """Latency of the second query, which shows what the first one did besides answering, milliseconds."""

    memory_before_bytes: int | None
    """Peak memory of the process before the factory."""

    memory_loaded_bytes: int | None
    """Peak memory of the process once the model is loaded."""

    memory_peak_bytes: int | None
    """Peak memory of the process after two queries."""

    device_memory_bytes: int | None
    """GPU memory that the process holds after two queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupReport:
    """What it costs to start one thing: medians over fresh processes."""

    label: str
    """Name of what was started."""

    starts: tuple[Start, ...]
    """Every run, in the order of time."""

    size_bytes: int
    """Total size of its files in bytes."""

    page_cache: str
    """`dropped`: the files were read from the disk; `warm`: from memory."""

    missing: Mapping[str, str]
    """Why a value is None, by the value's name."""

    DERIVED: ClassVar = ("medians",)

    @property
    def medians(self) -> Mapping[str, float | None]:
        """Median over the runs of every field of `Start`, None where no run has it."""
        return {name: self.median(name) for name in Start.__dataclass_fields__}

    def median(self, name: str) -> float | None:
        """Return the median over the runs of a field of `Start`, None where no run has it."""
        values = [value for start in self.starts if (value := getattr(start, name)) is not None]
        return statistics.median(values) if values else None


def measure_startup(
    label: str,
    factory: str,
    arguments: Mapping[str, object],
    *,
    files: Sequence[Path] = (),
    num_runs: int = NUM_RUNS,
) -> StartupReport:
    """Start something several times, each time in a fresh process.

    Args:
        label: What is started.
        factory: `package.module:function`; it can be imported wherever this process could import it.
        arguments: Keyword arguments of the factory, as JSON has them.
        files: What the factory reads: their size is reported, and they are dropped from the page cache.
        num_runs: How many processes to start, at least 1.

    Raises:
        UsageError: If the factory has no such form, or there is nothing to run.
        LoadError: If one of the files is not there.
        RuntimeFailureError: If the process fails or does not end; the message has its last words.
    """
    if factory.count(":") != 1 or num_runs < 1:
        raise UsageError(
            f"Cannot start {factory!r} {num_runs} times; expected 'package.module:function' and at least one run.",
            found=(factory, num_runs),
            expected="'package.module:function' and at least one run",
        )
    dropped, starts = [], []
    missing: dict[str, str] = {}
    for _ in range(num_runs):
        dropped += [drop_from_page_cache(path) for path in files]
        start, reasons = start_once(label, factory, arguments)
        starts.append(start)
        missing.update(reasons)
    return StartupReport(
        label=label,
        starts=tuple(starts),
        size_bytes=sum(path.stat().st_size for path in files),
        page_cache="dropped" if dropped and all(dropped) else "warm",
        missing=missing,
    )


def start_once(label: str, factory: str, arguments: Mapping[str, object]) -> tuple[Start, dict[str, str]]:
    """Start a process, and return what it measured and why something is missing."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = {
            "path": [entry or str(Path.cwd()) for entry in sys.path],
            "factory": factory,
            "arguments": dict(arguments),
            "answer": str(answer),
            # One clock for the whole machine on Linux, macOS and Windows, so that the child can subtract it.
            "started_ns": time.perf_counter_ns(),
        }
        # Isolated (-I): neither the current folder nor PYTHONPATH decides what `benchmarks` is.
        command = [sys.executable, "-I", "-c", CHILD]
        sent = json.dumps(request).encode()
        try:
            ended = subprocess.run(command, input=sent, capture_output=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise RuntimeFailureError(
                f"Starting {label!r} did not end within {TIMEOUT_S:g} s.",
                expected=f"at most {TIMEOUT_S:g} s",
                where=label,
            ) from error
        if ended.returncode != 0 or not answer.exists():
            last_words = ended.stderr.decode(errors="replace").strip()[-MAX_STDERR:]
            raise RuntimeFailureError(
                f"Starting {label!r} with {factory} failed with exit code {ended.returncode}; the process "
                f"said:\n{last_words or '(nothing)'}",
                found=ended.returncode,
                expected=0,
                where=label,
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
    return Start(**found["start"]), found["missing"]


def start_here(request: Mapping[str, Any]) -> None:
    """Load, call twice, and write down what that took; runs in the fresh process.

    Args:
        request: What `start_once` sent.
    """
    clock = time.perf_counter_ns
    memory = {"memory_before_bytes": peak_memory_bytes()}
    before_ns = clock()
    call = load(request["factory"], request["arguments"])
    loaded_ns = clock()
    memory["memory_loaded_bytes"] = peak_memory_bytes()
    call_ns = clock()
    call()
    answered_ns = clock()
    call()
    again_ns = clock()
    memory["memory_peak_bytes"] = peak_memory_bytes()
    memory["device_memory_bytes"] = device_memory_bytes()
    start = {
        "cold_start_ms": (answered_ns - request["started_ns"]) / 1e6,
        "load_ms": (loaded_ns - before_ns) / 1e6,
        "first_query_ms": (answered_ns - call_ns) / 1e6,
        "second_query_ms": (again_ns - answered_ns) / 1e6,
        **{name: None if isinstance(value, Unavailable) else value for name, value in memory.items()},
    }
    missing = {name: value.reason for name, value in memory.items() if isinstance(value, Unavailable)}
    Path(request["answer"]).write_text(json.dumps({"start": start, "missing": missing}), encoding="utf-8")


def load(factory: str, arguments: Mapping[str, object]) -> Callable[[], object]:
    """Return what a factory makes.

    Raises:
        UsageError: If it makes something that cannot be called.
    """
    module, _, function = factory.partition(":")
    made = getattr(importlib.import_module(module), function)(**arguments)
    if not callable(made):
        raise UsageError(
            f"{factory} returned {type(made).__name__}; expected a callable that answers one query.",
            found=type(made).__name__,
            expected="a callable",
            where=factory,
        )
    return made  # type: ignore[no-any-return]


def peak_memory_bytes(root: Path = SYSTEM_ROOT) -> int | Unavailable:
    """Return the highest memory this process has held: VmHWM on Linux, psutil's or the system's figure elsewhere."""
    fields = read_fields(root, "proc/self/status", ":")
    if not isinstance(fields, Unavailable):
        words = fields.get("VmHWM", "").split()
        return int(words[0]) * 1024 if words else Unavailable("/proc/self/status has no VmHWM")
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there, and only there
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return Unavailable("psutil is not installed; pip install 'icis-deploy[bench]' installs it")
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    return Unavailable(f"{sys.platform} does not tell a process's peak memory") if peak is None else int(peak)


def device_memory_bytes() -> int | Unavailable:
    """Return the GPU memory this process holds now."""
    from benchmarks.machine.gpu import read_gpu_memory

    return read_gpu_memory(os.getpid())


def drop_from_page_cache(path: Path) -> bool:
    """Ask the system to forget a file's contents, so that the next process reads it from the disk.

    Returns:
        False where the system has no such call.

    Raises:
        LoadError: If the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if not hasattr(os, "posix_fadvise"):
                return False
            os.fsync(file.fileno())  # what is not yet written stays in the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise LoadError(
            f"Cannot read {path}: {error.strerror or error}. It is to be measured while it is loaded.",
            found=error.strerror or str(error),
            where=path,
        ) from error
    return True
