"""Virtual environments with some of icis-deploy's libraries, linked from the environment that runs the tests."""

from __future__ import annotations

import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def linked_environment(folder: Path, extras: Iterable[str]) -> Path:
    """Make an environment with the libraries of the package and of some extras, and nothing else; download nothing.

    icis-deploy itself is not in it: whoever wants it installs a wheel, or puts the checkout on the path.

    Args:
        folder: Where the environment goes; its parent exists.
        extras: Names of extras; none: the base dependencies alone.

    Returns:
        Its `bin` folder.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in sorted(required("icis-deploy", extras) - {"icis-deploy"}):
        for file in metadata.files(name) or ():
            top = file.parts[0]
            target = site_packages / top
            if top not in {"..", "__pycache__"} and not target.exists():
                target.symlink_to(Path(str(metadata.distribution(name).locate_file(top))).resolve())
    return folder / "bin"


def required(name: str, extras: Iterable[str]) -> set[str]:
    """Return the distributions that `pip install name[extras]` installs here, by the metadata of what is installed."""
    found: set[str] = set()
    queue = [(str(canonicalize_name(name)), frozenset(extras))]
    while queue:
        current, wanted = queue.pop()
        if current in found:
            continue
        found.add(current)
        for text in metadata.requires(current) or ():
            requirement = Requirement(text)
            environments = [{"extra": extra} for extra in (wanted or {""})] + [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
                queue.append((str(canonicalize_name(requirement.name)), frozenset(requirement.extras)))
    return found
