"""Public names that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a module whose public names live elsewhere.

    Args:
        package: The module's own name.
        homes: By public name, the module that defines it; a submodule of the package stands for itself.
    """
    module = sys.modules[package]

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not home.startswith("icis_deploy."):
            from icis_deploy.workbench import enable_workbench

            enable_workbench()
        try:
            found = import_module(home)
        except ModuleNotFoundError as error:
            from icis_deploy.extras import missing_library

            missing = missing_library(error)
            if missing is None:
                raise
            raise missing from error
        value = found if home == f"{package}.{name}" else getattr(found, name)
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(module), *homes})

    return get, names
