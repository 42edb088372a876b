"""Make `exporters` and `benchmarks` importable, wherever icis-deploy was installed from.

In a checkout both are folders next to `icis_deploy`. A wheel carries them in `icis_deploy/_workbench/`, because
`benchmarks` at the top of site-packages would collide with other projects. Either way the names must mean ours, also in
a working directory that has a `benchmarks/` of its own, so a finder for exactly these two names goes first.

Where a library of the workbench is not installed, importing a module of these packages that needs it raises
`MissingDependencyError` with the command that installs it, whoever imports the module.
"""

# Why: docs/decisions/0010.

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from icis_deploy.errors import IncompatibleError, MissingDependencyError
from icis_deploy.extras import missing_library

NAMES = ("exporters", "benchmarks")
_PACKAGE = Path(__file__).resolve().parent


@contextmanager
def libraries_required() -> Iterator[None]:
    """Turn an import in this block that fails because a library of an extra is missing into `MissingDependencyError`.

    Raises:
        MissingDependencyError: If a module of the block needs a library that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_library(error)
        if missing is None:
            raise
        raise missing from error


class _WorkbenchLoader(SourceFileLoader):
    """Python's own loader, which names the command that installs a missing library."""

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code."""
        with libraries_required():
            super().exec_module(module)


class _WorkbenchFinder:
    """A finder (`importlib.abc.MetaPathFinder` protocol) for the two top-level packages in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's signature
    ) -> ModuleSpec | None:
        """Return the spec of `exporters`, `benchmarks` or a module in them, `None` for any other name."""
        if fullname in NAMES:
            folder = self.root / fullname
            return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])
        if path is None or fullname.partition(".")[0] not in NAMES:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _WorkbenchLoader(spec.loader.name, spec.loader.path)
        return spec


def workbench_root() -> Path:
    """Return the folder that holds `exporters` and `benchmarks`.

    Raises:
        MissingDependencyError: If this installation has neither form.
    """
    for root in (_PACKAGE / "_workbench", _PACKAGE.parent):
        if all((root / name / "__init__.py").is_file() for name in NAMES):
            return root
    raise MissingDependencyError(
        f"This installation of icis-deploy in {_PACKAGE} has no exporters.",
        hint="Install it again: pip install --force-reinstall --no-deps icis-deploy",
    )


def enable_workbench() -> None:
    """Make `import exporters` and `import benchmarks` give icis-deploy's own; do nothing if they already do.

    Raises:
        MissingDependencyError: If this installation does not have them. A library that is missing shows when a module
            that needs it is imported.
        IncompatibleError: If another package of that name is already imported in this process.
    """
    root = workbench_root()
    for name in NAMES:
        module = sys.modules.get(name)
        if module is None:
            continue
        file = getattr(module, "__file__", None)
        if file is None or Path(file).resolve().parent != root / name:
            raise IncompatibleError(
                f"A module called {name!r} from {file} is already imported; icis-deploy's own is in {root / name}.",
                found=str(file),
                expected=str(root / name),
                where=name,
                hint="Use icis_deploy before importing the other one, or in a process of its own.",
            )
    if not any(isinstance(finder, _WorkbenchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WorkbenchFinder(root))
