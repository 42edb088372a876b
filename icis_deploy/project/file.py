"""Read a project file: every setting checked before anything is done, and one message about what is wrong first.

An error names the root, not what follows from it: a mistyped `modle` is that, and no missing `model`. It says the line,
what was found, what was expected, and the closest name that there is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from icis_deploy.common.closest import closest
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import UsageError
from icis_deploy.project.settings import STEP_NAMES, OnDisk, Project
from icis_deploy.project.yaml_values import Place, YAMLFile, load_yaml

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "settings, one a line",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "settings, one a line",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "too_short": "at least one value",
}
_MODEL_SUFFIXES = frozenset({".onnx", ".pt2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectFile:
    """A project file that was read and checked."""

    path: Path
    settings: Project
    lines: Mapping[Place, int]

    def resolve(self, name: str) -> Path:
        """Return a path of the file, which is relative to the folder that it is in."""
        return self.path.parent / name

    def optional(self, name: str | None) -> Path | None:
        """Return `resolve`, and `None` for `None`."""
        return None if name is None else self.resolve(name)

    @property
    def out(self) -> Path:
        """The folder of everything that is made."""
        return self.resolve(self.settings.out)

    @property
    def model_file(self) -> Path | None:
        """The model's file or folder; `None` where a factory or a name on the hub is given."""
        path = self.resolve(self.settings.model)
        is_file = path.suffix.lower() in _MODEL_SUFFIXES or path.exists()
        return path if is_file else None

    @property
    def step_names(self) -> tuple[str, ...]:
        """The steps that are done, in order."""
        return tuple(name for name in STEP_NAMES if getattr(self.settings, name) is not None)

    def error(self, place: Place, what: str, *, found: object, expected: object, hint: str | None = None) -> UsageError:
        """Return the error about a setting."""
        return _error(self.path, self.lines, place, what, found=found, expected=expected, hint=hint)


def load_project(path: Path) -> ProjectFile:
    """Read and check a project file.

    Args:
        path: A YAML file.

    Raises:
        LoadError: If it cannot be read, or is no YAML.
        UsageError: If a setting is unknown, has a wrong value, names a file that is not there, or does not go with
            another one.
    """
    read = load_yaml(path)
    value = read.value
    if isinstance(value, dict):
        # `verify:` with nothing after it is a step with its defaults.
        value = {key: {} if key in STEP_NAMES and each is None else each for key, each in value.items()}
    try:
        settings = Project.model_validate(value)
    except ValidationError as error:
        raise _root_error(read, error.errors(include_url=False, include_context=True)) from error
    project = ProjectFile(path=path, settings=settings, lines=read.lines)
    _check_paths(project)
    _check_together(project)
    return project


def _root_error(read: YAMLFile, errors: Iterable[ErrorDetails]) -> UsageError:
    """Return the error of the setting that is wrong first."""
    by_place: dict[Place, list[ErrorDetails]] = {}
    for each in errors:
        by_place.setdefault(_place(read.value, each), []).append(each)
    place, found = min(by_place.items(), key=lambda one: (_rank(one[1]), read.line(one[0])))
    first = found[0]
    if first["type"] == "extra_forbidden":
        known = _names_at(place[:-1])
        what = f"{_called(place)} is no setting{_of_section(place)}"
        meant = closest(str(place[-1]), known)
        cure = f"The settings are {', '.join(known)}." if meant is None else f"Did you mean {meant}?"
        return _error(read.path, read.lines, place, what, found=place[-1], expected=tuple(known), hint=cure)
    if first["type"] == "missing":
        what = f"{_called(place)} is not given"
        return _error(read.path, read.lines, place[:-1], what, found=None, expected=str(place[-1]), hint="Add it.")
    value = _at(read.value, place)
    expected = " or ".join(dict.fromkeys(_expected(each) for each in found))
    hint = None
    if first["type"] == "literal_error" and isinstance(value, str):
        meant = closest(value, re.findall(r"'([^']*)'", str(first["ctx"]["expected"])))
        hint = None if meant is None else f"Did you mean {meant}?"
    what = f"{_called(place)} is {_written(value)}; expected {expected}"
    return _error(read.path, read.lines, place, what, found=value, expected=expected, hint=hint)


def _rank(found: list[ErrorDetails]) -> int:
    return 1 if found[0]["type"] == "missing" else 0


def _place(value: Any, error: ErrorDetails) -> Place:
    """Return where in the file an error is: pydantic also names the members of a union."""
    place: Place = ()
    for part in error["loc"]:
        is_index = isinstance(value, list) and isinstance(part, int)
        is_inside = is_index or (isinstance(value, Mapping) and part in value)
        is_last = part == error["loc"][-1] and error["type"] in {"missing", "extra_forbidden"}
        if is_inside or is_last:
            place = (*place, part)
            value = value[part] if is_inside else None
    return place


def _at(value: Any, place: Place) -> Any:
    for part in place:
        value = value[part]
    return value


def _expected(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"]).replace("'", "")
    return _KINDS.get(error["type"]) or error["msg"].removeprefix("Input should be ").lower()


def _names_at(place: Place) -> list[str]:
    """Return the names of the settings that a section has."""
    model: type[BaseModel] = Project
    for part in place:
        model = next(each for each in _members(model.model_fields[str(part)].annotation) if _is_section(each))
    return list(model.model_fields)


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return get_args(annotation) if is_union else (annotation,)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _called(place: Place) -> str:
    """Return what a setting is called: `export.targets[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"


def _of_section(place: Place) -> str:
    return f" of {_called(place[:-1])}" if len(place) > 1 else " of a project"


def _written(value: Any) -> str:
    """Return a value about as YAML writes it."""
    if isinstance(value, Mapping | list):
        return "a list" if isinstance(value, list) else "a group of settings"
    return shown(value) if isinstance(value, str) else json.dumps(value)


def _error(
    path: Path,
    lines: Mapping[Place, int],
    place: Place,
    what: str,
    *,
    found: object,
    expected: object,
    hint: str | None = None,
) -> UsageError:
    where = f"{path}, line {YAMLFile(path=path, value=None, lines=dict(lines)).line(place)}"
    return UsageError(f"{where}: {what}.", found=found, expected=expected, where=where, hint=hint)


def paths_in(settings: BaseModel, place: Place = ()) -> Iterator[tuple[Place, str, OnDisk]]:
    """Yield each path that must be there: where it stands, the text, and what it is to be."""
    for name, field in type(settings).model_fields.items():
        value, here = getattr(settings, name), (*place, name)
        if isinstance(value, BaseModel):
            yield from paths_in(value, here)
        elif (mark := _mark_of(field.metadata, field.annotation)) is not None:
            if isinstance(value, str):
                yield here, value, mark
            elif isinstance(value, list):
                yield from (((*here, index), each, mark) for index, each in enumerate(value))


def _mark_of(metadata: Iterable[Any], annotation: Any) -> OnDisk | None:
    """Return the mark of an annotation, however it is wrapped: optional, in a list, or one of several kinds."""
    for each in (*metadata, *getattr(annotation, "__metadata__", ())):
        if isinstance(each, OnDisk):
            return each
    for inner in get_args(annotation):
        if (found := _mark_of((), inner)) is not None:
            return found
    return None


def _check_paths(project: ProjectFile) -> None:
    """Check that everything that the file names is there.

    Raises:
        UsageError: About the first that is not.
    """
    settings = project.settings
    named = list(paths_in(settings))
    if Path(settings.model).suffix.lower() in _MODEL_SUFFIXES:
        named.insert(0, (("model",), settings.model, OnDisk("file")))
    for place, name, mark in sorted(named, key=lambda one: project.lines.get(one[0], 0)):
        path = project.resolve(name)
        is_there = path.is_file() if mark.kind == "file" else path.exists()
        if is_there:
            continue
        found = "a folder" if path.is_dir() else "nothing"
        meant = closest(path.name, _names_in(path.parent))
        hint = f"Paths are relative to {project.path.parent.absolute()}."
        if meant is not None and meant != path.name:
            hint = f"Did you mean {Path(name).with_name(meant)}? {hint}"
        what = f"{_called(place)} is {shown(name)}, where there is {found}; expected a {mark.kind}"
        raise project.error(place, what, found=found, expected=mark.kind, hint=hint)


def _names_in(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir()]
    except OSError:
        return []


def _check_together(project: ProjectFile) -> None:
    """Check what needs another setting, or does not go with one.

    Raises:
        UsageError: About the first that is wrong.
    """
    settings = project.settings
    if settings.describe is not None:
        if settings.descriptors is not None:
            what = "descriptors are given, and describe would make others"
            raise project.error(("describe",), what, found="both", expected="one", hint="Leave one of them out.")
        if settings.unseen is None:
            what = "describe needs the names of the new classes"
            raise project.error(("describe",), what, found="no unseen", expected="unseen", hint="Give unseen.")
    elif settings.descriptors is None and settings.inject.photos is None:
        what = "nothing says what the new classes are"
        hint = "Give descriptors, a section describe, or photos in inject."
        raise project.error((), what, found="nothing", expected="descriptors, describe or inject.photos", hint=hint)
    _check_aim(project)
    if settings.evaluate is not None and settings.images is None:
        what = "evaluate needs labelled images"
        raise project.error(("evaluate",), what, found="no images", expected="images", hint="Give images.")
    if settings.report is not None and settings.bench is None and not settings.report.results:
        what = "report has no result to show"
        hint = "Add a section bench, or name results of other devices in report.results."
        raise project.error(("report",), what, found="no bench", expected="bench or report.results", hint=hint)


def _check_aim(project: ProjectFile) -> None:
    """Check that calibration aims at one thing.

    Raises:
        UsageError: If it aims at two, or at nothing where something is asked for.
    """
    inject = project.settings.inject
    if inject.calibration != "auto":
        for name in ("max_seen_loss", "balance"):
            if getattr(inject, name) is not None:
                what = f"inject.{name} would do nothing: only calibration: auto aims at something"
                raise project.error(("inject", name), what, found=inject.calibration, expected="auto")
    if inject.max_seen_loss is not None and inject.balance is not None:
        what = "inject has max_seen_loss and balance, which aim at different things"
        raise project.error(("inject", "balance"), what, found="both", expected="one", hint="Leave one of them out.")
