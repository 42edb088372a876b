"""A hook of mkdocs: the page of the public Python names, made of `__all__`, so that it can lack none.

In `docs/reference/python.md` a line `<!-- names of MODULE: KIND -->` becomes the docstrings of the names of that kind:
`functions`, `classes`, `errors`, or `all`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

PAGE = "reference/python.md"
MARK = re.compile(r"^<!-- names of ([\w.]+): (\w+) -->$", re.MULTILINE)
KINDS: dict[str, Callable[[Any], bool]] = {
    "functions": inspect.isfunction,
    "classes": lambda value: inspect.isclass(value) and not issubclass(value, (Exception, Warning)),
    "errors": lambda value: inspect.isclass(value) and issubclass(value, (Exception, Warning)),
    "all": lambda value: inspect.isfunction(value) or inspect.isclass(value),
}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes all by keyword
    """Return the text with the marks replaced by what mkdocstrings reads."""
    return with_names(markdown) if page.file.src_uri == PAGE else markdown


def with_names(markdown: str) -> str:
    """Return a page whose marks are lines `::: module.name`."""
    return MARK.sub(lambda match: "\n\n".join(f"::: {name}" for name in names_of(match[1], match[2])), markdown)


def names_of(module_name: str, kind: str) -> Iterator[str]:
    """Yield where the public names of a module are defined, in the order of the alphabet."""
    module = importlib.import_module(module_name)
    public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in sorted(public):
        value = getattr(module, name)
        if KINDS[kind](value) and value.__module__.partition(".")[0] in {"icis_deploy", "exporters", "benchmarks"}:
            yield f"{value.__module__}.{value.__qualname__}"
