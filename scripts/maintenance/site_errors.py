"""A hook of mkdocs: all messages of errors with exit code and cure, read from the sources, so that the page lacks none.

In `docs/reference/messages.md` the line `<!-- all messages -->` becomes a table for each room. A message is what stands
at a place of the code that makes an error: `…` is what is only known when it happens, and a cure speaks of the command
line where it has a word for what the library names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from icis_deploy import errors
from icis_deploy.cli.hints import command_line_hint
from icis_deploy.cli.main import cli
from icis_deploy.errors import ICISDeployError

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("icis_deploy", "exporters", "benchmarks")
PAGE = "reference/messages.md"
MARK = "<!-- all messages -->"
UNKNOWN = "…"
MAX_DEPTH = 4
"""So many names are followed to what they were given; a name can be given itself."""

KINDS: Mapping[str, type[ICISDeployError]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, ICISDeployError)
}

Scope = Mapping[str, ast.expr]
"""What names are given in a module or a function, where that is one expression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An error as one place of the code makes it."""

    path: str
    """File, relative to the repository."""

    line: int
    """Line of the call."""

    kind: type[ICISDeployError]
    """Class of the error."""

    what: str
    """What failed; `…` for what is only known then."""

    hint: str
    """What to do next, in the library's words; empty where there is none."""


@cache
def all_messages() -> tuple[Message, ...]:
    """Return the messages of all packages, by file and line."""
    paths = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    sources = {path: path.read_text("utf-8") for path in paths}
    return tuple(
        message
        for path, source in sources.items()
        if "Error(" in source
        for message in messages_of(path.relative_to(REPOSITORY).as_posix(), source)
    )


def messages_of(path: str, source: str) -> list[Message]:
    """Return the messages of one file that stand in it, not those that are put together elsewhere."""
    found: list[Message] = []
    _collect(ast.parse(source), {}, path, found)
    return sorted(found, key=lambda message: message.line)


def _collect(tree: ast.AST, outer: Scope, path: str, found: list[Message]) -> None:
    scope = {**outer, **_assigned(tree)}
    for node in _own_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            _collect(node, scope, path, found)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
            hints = [_text(keyword.value, scope) for keyword in node.keywords if keyword.arg == "hint"]
            message = Message(
                path=path,
                line=node.lineno,
                kind=KINDS[node.func.id],
                what=" ".join(_text(node.args[0], scope).split()),
                hint=" ".join("".join(hints).split()),
            )
            if message.what.strip(f"{UNKNOWN} .:"):
                found.append(message)


def _own_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a module or function, of functions and classes in it only themselves."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _own_nodes(child)


def _assigned(tree: ast.AST) -> dict[str, ast.expr]:
    """Return the names that are given a value exactly once in a module or function, with the value."""
    values: dict[str, list[ast.expr]] = {}
    for node in _own_nodes(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            values.setdefault(node.target.id, []).append(node.value)
    return {name: given[0] for name, given in values.items() if len(given) == 1}


def _text(node: ast.expr, scope: Scope, depth: int = 0) -> str:
    """Return the text that an expression gives, with `…` for all that is only known when it runs."""
    if isinstance(node, ast.Constant):
        text = "" if node.value is None else str(node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(_text(part, scope, depth) for part in node.values)
    elif isinstance(node, ast.FormattedValue):
        is_plain = isinstance(node.value, ast.Name) and node.conversion == -1 and node.format_spec is None
        text = _text(node.value, scope, depth + 1) if is_plain else UNKNOWN
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = _text(node.left, scope, depth) + _text(node.right, scope, depth)
    elif isinstance(node, ast.IfExp) and depth == 0:
        either = [each for each in (_text(node.body, scope), _text(node.orelse, scope)) if each]
        text = UNKNOWN if UNKNOWN in either else " Or: ".join(either)
    elif isinstance(node, ast.Name) and depth < MAX_DEPTH and node.id in scope:
        text = _text(scope[node.id], scope, depth + 1)
    else:
        text = UNKNOWN
    return text


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes all by keyword
    """Return the text with the mark replaced by the tables."""
    return with_messages(markdown) if page.file.src_uri == PAGE else markdown


def with_messages(markdown: str) -> str:
    """Return the page with its tables."""
    return markdown.replace(MARK, "\n".join(_tables(all_messages())))


def _tables(messages: Sequence[Message]) -> Iterator[str]:
    for room, group in groupby(messages, lambda message: message.path.rpartition("/")[0]):
        yield from (f"## {room}", "", "| message | error, exit code | cure |", "|---|---|---|")
        for message in group:
            cure = command_line_hint(message.hint, cli.commands)
            yield f"| {_cell(message.what)} | {message.kind.__name__}, {message.kind.exit_code} | {_cell(cure)} |"
        yield ""


def _cell(text: str) -> str:
    # Code between backticks stands as it is, except for what would end the cell.
    parts = text.split("`")
    whole = len(parts) % 2 == 1
    escaped = [part if index % 2 and whole else _escaped(part) for index, part in enumerate(parts)]
    return "`".join(part.replace("|", "\\|") for part in escaped)


def _escaped(text: str) -> str:
    for character in "\\<>*_[]":
        text = text.replace(character, f"\\{character}")
    return text
