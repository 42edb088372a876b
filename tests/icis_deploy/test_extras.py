"""The table of extras says what pip is told, and every library of ours leads to an extra that brings it."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from icis_deploy.errors import MissingDependencyError
from icis_deploy.extras import _EXTRAS_OF_IMPORTS, EXTRAS, missing_library

PYPROJECT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8")


def stated_extras():
    """Return the extras of `pyproject.toml` as `{name: [requirement, ...]}`."""
    section = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    lists = re.findall(r"^([a-z-]+) = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r'"([^"]+)"', text) for name, text in lists if name not in ("dev", "docs", "release")}


def test_the_table_is_that_of_pyproject():
    table = {
        name: sorted(
            [f"{library}>={version}" for library, version in extra.requires.items()]
            + [f"icis-deploy[{other}]" for other in extra.includes]
        )
        for name, extra in EXTRAS.items()
    }

    assert table == {name: sorted(requirements) for name, requirements in stated_extras().items()}
    assert list(EXTRAS) == list(stated_extras())


@pytest.fixture(scope="module")
def distributions_of():
    """The distributions that install each import name here: read once, as there are hundreds."""
    return metadata.packages_distributions()


def brought_by(name):
    extra = EXTRAS[name]
    return {*extra.requires, *(library for other in extra.includes for library in brought_by(other))}


@pytest.mark.parametrize("library", sorted(_EXTRAS_OF_IMPORTS))
def test_the_extras_named_for_a_library_bring_it(library, distributions_of):
    distributions = {each.lower().replace("_", "-") for each in distributions_of.get(library, ())}
    if not distributions:
        pytest.skip(f"{library} is not installed here")
    named = {each for extra in _EXTRAS_OF_IMPORTS[library].split(",") for each in brought_by(extra)}

    # Some are named for what bundles the package, as tensorrt-rtx does with its bindings.
    assert any(one.startswith(each) or each.startswith(one.split("-")[0]) for one in distributions for each in named)


def test_a_missing_library_names_its_extra_and_anything_else_none():
    found = missing_library(ModuleNotFoundError("no", name="jinja2.loaders"))

    assert isinstance(found, MissingDependencyError)
    assert str(found) == ("This needs jinja2, which is not installed. Install it: pip install 'icis-deploy[bench]'.")
    assert missing_library(ModuleNotFoundError("no", name="icis_deploy.nothing")) is None
    assert missing_library(ModuleNotFoundError("no")) is None


# Why: docs/decisions/0147.
def test_pip_takes_extras_from_what_is_installed_and_asks_no_index():
    try:
        metadata.version("icis-deploy")
        metadata.version("pip")
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed here, only on the path")

    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-input", "icis-deploy[cpu]"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert asked.returncode == 0, asked.stderr
    assert "Would install" not in asked.stdout
