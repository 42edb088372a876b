"""Do the steps of a project that have to be done: those whose inputs, settings, libraries or outputs are others.

Each finished step leaves a record in `OUT/.steps/`: hashes of what it read and made, its settings, and the versions of
the libraries that compute. A step is left out if its record says the same as the disk. So a run that was killed goes on
with the step that it was in, as each step writes its outputs whole and its record after them.
"""

# Why: docs/decisions/0124.

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from icis_deploy.common.files import read_capped, sha256_of_file, write_failure, write_file
from icis_deploy.common.json_fields import load_strict
from icis_deploy.errors import ICISDeployError, ICISDeployWarning, LoadError, UsageError
from icis_deploy.extras import missing_library
from icis_deploy.project.content import content_of, files_in, library_versions
from icis_deploy.project.file import ProjectFile
from icis_deploy.project.steps import Result, Say, Step, bundle_of, steps_of
from icis_deploy.runtime.state.filesystem import system_files
from icis_deploy.runtime.state.store import STATE_FOLDER

RECORDS = ".steps"
SCHEMA_VERSION = 1
_MAX_RECORD_BYTES = 1 << 28
_LOCK_SECONDS = 0.5

State = Literal["done", "unchanged", "would run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What became of one step."""

    name: str

    state: State
    """`done`: it was run. `unchanged`: its record says the same as the disk. `would run`: in a dry run."""

    reason: str
    """Why it was run or would be; empty where it is unchanged."""

    outputs: tuple[Path, ...]
    """What it makes."""

    result: Mapping[str, Any]
    """What is worth telling of it, with a sentence in `text`; empty in a dry run that would run it."""

    warnings: tuple[str, ...]
    """What the library warned of when it was run."""

    seconds: float | None
    """How long it took when it was run; `None` in a dry run that would run it."""


def run_project(
    project: ProjectFile,
    *,
    dry_run: bool = False,
    on_start: Callable[[str, str], None] = lambda _name, _reason: None,
    on_outcome: Callable[[StepOutcome], None] = lambda _outcome: None,
    say: Say = lambda _text: None,
) -> tuple[StepOutcome, ...]:
    """Do the steps of a project.

    Args:
        project: What `load_project` returned.
        dry_run: Whether to say what would be done, and do and write nothing.
        on_start: Called with a step's name and the reason before it is run.
        on_outcome: Called with each step's outcome.
        say: Called with what is being done inside of a step.

    Raises:
        MissingDependencyError: Before anything is done, if a step that has to be run lacks a library.
        UsageError: If settings contradict each other, another run has the folder, or a step would replace a bundle
            that a device has changed.
        ICISDeployError: As the step that failed, named in the message; those before it stay done.
    """
    steps, contents = steps_of(project), _Contents()
    planned = tuple(_planned(project, steps, contents))
    waiting = {outcome.name for outcome in planned if outcome.state == "would run"}
    if dry_run or not waiting:
        return _told(planned, on_outcome)
    _require_libraries([step for step in steps if step.name in waiting])
    with _folder_for(project):
        return _told(_done(project, steps, contents, on_start, say), on_outcome)


def _told(outcomes: Iterable[StepOutcome], on_outcome: Callable[[StepOutcome], None]) -> tuple[StepOutcome, ...]:
    found = []
    for outcome in outcomes:
        on_outcome(outcome)
        found.append(outcome)
    return tuple(found)


def _planned(project: ProjectFile, steps: tuple[Step, ...], contents: _Contents) -> Iterator[StepOutcome]:
    """Yield what each step is without running any: what follows from one that would run would run too."""
    changing: dict[Path, str] = {}
    for step in steps:
        before = next((changing[path] for path in step.inputs.values() if path in changing), None)
        record = _load_record(project, step)
        if before is not None:
            reason = f"{before} would run"
        else:
            reason = _reason(project, step, record, _Key.of(step, contents))
        if not reason and record is not None:
            yield _unchanged(step, record)
            continue
        changing |= dict.fromkeys(step.outputs, step.name)
        _refuse_changed_bundle(project, step)
        yield StepOutcome(
            name=step.name,
            state="would run",
            reason=reason,
            outputs=step.outputs,
            result={},
            warnings=(),
            seconds=None,
        )


def _done(
    project: ProjectFile,
    steps: tuple[Step, ...],
    contents: _Contents,
    on_start: Callable[[str, str], None],
    say: Say,
) -> Iterator[StepOutcome]:
    for step in steps:
        key = _Key.of(step, contents)
        record = _load_record(project, step)
        reason = _reason(project, step, record, key)
        if not reason and record is not None:
            yield _unchanged(step, record)
            continue
        _refuse_changed_bundle(project, step)
        on_start(step.name, reason)
        started = time.monotonic()
        result, messages = _run(step, say)
        seconds = round(time.monotonic() - started, 3)
        contents.forget(step.outputs)
        made = {
            "schema_version": SCHEMA_VERSION,
            "inputs": dict(key.inputs),
            "settings": dict(key.settings),
            "libraries": dict(key.libraries),
            "outputs": _hashes_of(project, step.outputs),
            "result": result,
            "warnings": messages,
            "seconds": seconds,
        }
        write_file(_record_path(project, step), json.dumps(made, indent=2, ensure_ascii=False).encode())
        yield StepOutcome(
            name=step.name,
            state="done",
            reason=reason,
            outputs=step.outputs,
            result=result,
            warnings=tuple(messages),
            seconds=seconds,
        )


def _run(step: Step, say: Say) -> tuple[Result, list[str]]:
    """Run a step; return its result and what the library warned of.

    Raises:
        ICISDeployError: As the step, which the message names.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ICISDeployWarning)
        try:
            result = step.run(say)
        except ICISDeployError as error:
            located = type(error).at(f"Step {step.name}", error)
            located.where = error.where or located.where
            raise located from error
    for each in caught:
        if not issubclass(each.category, ICISDeployWarning):
            warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    return result, [str(each.message) for each in caught if issubclass(each.category, ICISDeployWarning)]


def _require_libraries(steps: list[Step]) -> None:
    for step in steps:
        for library in step.extras:
            if find_spec(library) is None:
                missing = missing_library(ModuleNotFoundError(library, name=library))
                assert missing is not None
                raise type(missing).at(f"Step {step.name}", missing)


@contextmanager
def _folder_for(project: ProjectFile) -> Iterator[None]:
    """Make the folder of what is made, and keep other runs out of it."""
    folder = project.out / RECORDS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(folder, error) from error
    with ExitStack() as held:
        try:
            held.enter_context(system_files().locked(folder, _LOCK_SECONDS))
        except TimeoutError as error:
            raise UsageError(
                f"Another run of a project has the folder {project.out}.",
                found="a run that has not ended",
                expected="one run at a time",
                where=project.out,
                hint="Wait for it, or give this project another folder in `out`.",
            ) from error
        except OSError as error:
            raise write_failure(folder, error) from error
        # What a run that was killed was writing: nobody else writes here while the lock is held.
        for left in project.out.glob(f".{bundle_of(project).name}.*.building"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """What the outputs of a step depend on."""

    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    libraries: Mapping[str, str]

    @classmethod
    def of(cls, step: Step, contents: _Contents) -> _Key:
        return cls(
            inputs={name: contents.hash_of(path) for name, path in step.inputs.items()},
            # As JSON has them, since they are compared with what was written.
            settings=json.loads(json.dumps(dict(step.settings))),
            libraries=library_versions(),
        )


class _Contents:
    """Hashes of files and folders, each read once in a run."""

    def __init__(self) -> None:
        self._found: dict[Path, str] = {}

    def hash_of(self, path: Path) -> str:
        if path not in self._found:
            self._found[path] = content_of(path) if path.exists() else "absent"
        return self._found[path]

    def forget(self, paths: tuple[Path, ...]) -> None:
        for path in paths:
            self._found.pop(path, None)


def _reason(project: ProjectFile, step: Step, record: Mapping[str, Any] | None, key: _Key) -> str:
    """Return why a step has to be run; '' if it has not."""
    if record is None:
        return "it was not finished before"
    changes = [
        *_differences(record["inputs"], key.inputs, "{}"),
        *_differences(record["settings"], key.settings, "{}"),
        *_differences(record["libraries"], key.libraries, "the version of {}"),
    ]
    if not changes:
        found = _hashes_of(project, step.outputs)
        changes = [f"{name}, which it made," for name, digest in record["outputs"].items() if found.get(name) != digest]
    if not changes:
        return ""
    more = len(changes) - 3
    return f"{', '.join(changes[:3])}{f' and {more} more' if more > 0 else ''} changed"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], called: str) -> list[str]:
    names = [*now, *(name for name in before if name not in now)]
    return [called.format(name) for name in names if before.get(name) != now.get(name)]


def _hashes_of(project: ProjectFile, outputs: tuple[Path, ...]) -> dict[str, str]:
    """Return the hash of each file that a step made, by its path under `out`; what a device writes is left out."""
    files: dict[str, Path] = {}
    for path in outputs:
        inside = files_in(path) if path.is_dir() else {"": path} if path.is_file() else {}
        for name, file in inside.items():
            if not name.startswith(f"{STATE_FOLDER}/"):
                files[(path / name if name else path).relative_to(project.out).as_posix()] = file
    try:
        return {name: sha256_of_file(file) for name, file in files.items()}
    except OSError as error:
        raise LoadError(
            f"Cannot read {project.out}: {error}.",
            found=str(error),
            where=project.out,
            hint="Check the path and its permissions.",
        ) from error


def _refuse_changed_bundle(project: ProjectFile, step: Step) -> None:
    """Raise `UsageError` if a step would replace a bundle in which a device has changed classes."""
    state = bundle_of(project) / STATE_FOLDER
    if bundle_of(project) in step.outputs and state.is_dir() and any(state.iterdir()):
        raise UsageError(
            f"Step {step.name} would replace {bundle_of(project)}, in which classes were changed since: {state} would "
            f"be lost.",
            found=str(state),
            expected="a bundle as it was exported",
            where=bundle_of(project),
            hint="Move the bundle to where its device is, or give `out` another folder.",
        )


def _unchanged(step: Step, record: Mapping[str, Any]) -> StepOutcome:
    return StepOutcome(
        name=step.name,
        state="unchanged",
        reason="",
        outputs=step.outputs,
        result=record["result"],
        warnings=tuple(record["warnings"]),
        seconds=record["seconds"],
    )


def _record_path(project: ProjectFile, step: Step) -> Path:
    return project.out / RECORDS / f"{step.name}.json"


_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "inputs": dict, "settings": dict, "libraries": dict, "outputs": dict, "result": dict, "warnings": list,
    "seconds": (int, float),
}  # fmt: skip


def _load_record(project: ProjectFile, step: Step) -> Mapping[str, Any] | None:
    """Return what was recorded of a step; `None` if it was not, or cannot be read: then it is done again."""
    path = _record_path(project, step)
    if not path.is_file():
        return None
    try:
        record = load_strict(read_capped(path, max_bytes=_MAX_RECORD_BYTES, what="record", error_type=LoadError))
    except (LoadError, ValueError, RecursionError):
        return None
    is_ours = isinstance(record, dict) and record.get("schema_version") == SCHEMA_VERSION
    is_whole = is_ours and all(isinstance(record.get(name), kind) for name, kind in _FIELDS.items())
    return record if is_whole else None
