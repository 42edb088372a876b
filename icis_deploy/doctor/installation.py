"""What is installed of each extra, and what stands in the way of each other."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from icis_deploy.extras import EXTRAS, install_command


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraState:
    """What is installed of one extra."""

    name: str
    purpose: str

    found: dict[str, str]
    """Versions of its libraries that are there, by distribution."""

    missing: tuple[str, ...]
    """Its libraries that are not there, or too old, as `pip` takes them: `torch>=2.8`."""

    rival: str | None
    """A library that is there and must be uninstalled first; `None` where there is none."""

    @property
    def command(self) -> str | None:
        """What installs the rest; `None` where nothing is missing."""
        if not self.missing:
            return None
        first = "" if self.rival is None else f"pip uninstall -y {self.rival} && "
        return first + install_command(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Packages that must not be installed together."""

    problem: str
    command: str
    """What mends it."""


def system_text() -> str:
    """Return the system and the Python that this runs in."""
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"


def extras() -> tuple[ExtraState, ...]:
    """Return the state of each extra, in the order of `pyproject.toml`."""
    return tuple(_state(name) for name in EXTRAS)


def _state(name: str) -> ExtraState:
    found: dict[str, str] = {}
    missing: list[str] = []
    for library, lowest in _requirements(name):
        version = _version(library)
        if version is not None:
            found[library] = version
        if version is None or _numbers(version) < _numbers(lowest):
            missing.append(f"{library}>={lowest}")
    wanted = {library for library, _ in _requirements(name)}
    rivals = [other for names, _ in _RIVALS if wanted & set(names) for other in names if other not in wanted]
    return ExtraState(
        name=name,
        purpose=EXTRAS[name].purpose,
        found=found,
        missing=tuple(missing),
        rival=next((other for other in rivals if _version(other) is not None), None),
    )


def _requirements(name: str) -> Iterator[tuple[str, str]]:
    extra = EXTRAS[name]
    for other in extra.includes:
        yield from _requirements(other)
    yield from extra.requires.items()


def _version(library: str) -> str | None:
    """Return the version of a library, `None` without it or without what its own extras bring: `ray[data]`."""
    distribution, _, own_extras = library.rstrip("]").partition("[")
    try:
        version, requirements = metadata.version(distribution), metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for extra in filter(None, own_extras.split(",")):
        for requirement in requirements:
            needed, _, marker = requirement.partition(";")
            # What a system alone asks for besides is not judged.
            is_asked = re.fullmatch(rf"""\s*extra\s*==\s*["']{re.escape(extra)}["']\s*""", marker)
            name = re.match(r"[\w.-]+", needed)
            if is_asked and name and _version(name[0]) is None:
                return None
    return version


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release of a version, `2.13.0+cpu` as (2, 13, 0): as much of PEP 440 as lowest versions need."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


_RIVALS = (
    (("onnxruntime", "onnxruntime-gpu"), "both install the import package onnxruntime, and the last one unpacked wins"),
)


def conflicts() -> tuple[Conflict, ...]:
    """Return what must not be installed together, and is."""
    found = []
    for names, reason in _RIVALS:
        versions = {name: version for name in names if (version := _version(name)) is not None}
        if len(versions) > 1:
            listed = " and ".join(f"{name} {version}" for name, version in versions.items())
            command = f"pip uninstall -y {' '.join(names)} && {install_command('cpu')}"
            found.append(Conflict(problem=f"{listed} are installed together: {reason}.", command=command))
    return tuple(found)
