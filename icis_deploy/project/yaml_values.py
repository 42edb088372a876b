"""YAML as plain values, and the line of each: strict, so that a file means what it looks like.

Rules:

1. Scalars have the types of YAML 1.2's core schema, and no others: `off` is a text, and so are `2027-12-31` and `1:30`,
   which PyYAML's own loaders make a boolean, a date and 90 of.
2. A key occurs once. Anchors, aliases and tags are refused: they would let a small file be large, or mean another type.
3. Only one document, of at most `MAX_BYTES`.
"""

# Why: docs/decisions/0125.

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from icis_deploy.common.files import read_capped
from icis_deploy.common.terminal_text import printable, shown
from icis_deploy.errors import LoadError

MAX_BYTES = 1 << 20
Place = tuple[str | int, ...]
"""Keys and indices from the top of a file to a value."""

_INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class YAMLFile:
    """What is in a YAML file."""

    path: Path
    value: Any
    lines: dict[Place, int] = field(default_factory=dict)
    """Line of each value, from 1; of a mapping's value the line of its key."""

    def line(self, place: Place) -> int:
        """Return the line of a value, or of the nearest one around it that is there."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


def load_yaml(path: Path) -> YAMLFile:
    """Read a YAML file.

    Raises:
        LoadError: If it cannot be read or breaks a rule; the message names the line.
    """
    data = read_capped(path, max_bytes=MAX_BYTES, what="project file", error_type=LoadError)
    try:
        text = data.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _broken(path, line, "it is no text in UTF-8", "text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        problem = printable(" ".join(filter(None, (error.context, error.problem))), max_length=200)
        raise _broken(path, line, problem, "YAML") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _broken(path, 1, printable(str(error) or "nested too deeply", max_length=200), "YAML") from error
    lines: dict[Place, int] = {}
    _refuse_shared(text, path)
    value = {} if node is None else _value(node, (), lines, path)
    return YAMLFile(path=path, value=value, lines=lines)


def _refuse_shared(text: str, path: Path) -> None:
    """Refuse anchors, aliases and tags."""
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        is_tagged = getattr(event, "tag", None) not in {None, "!"}
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None or is_tagged:
            found = "a tag" if is_tagged else "an anchor or alias"
            raise _broken(path, event.start_mark.line + 1, f"{found} is used", "values written where they are used")


def _value(node: Any, place: Place, lines: dict[Place, int], path: Path) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, (*place, index), lines, path) for index, each in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines, path)
    return _scalar(node.value) if node.style is None else node.value


def _mapping(node: Any, place: Place, lines: dict[Place, int], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _broken(path, line, "a key is no text", "a name of a setting")
        key, here = key_node.value, (*place, key_node.value)
        if key in found:
            first = lines[here]
            raise _broken(path, line, f"{shown(key)} is there again, after line {first}", "each setting once")
        lines[here] = line
        found[key] = _value(value_node, here, lines, path)
    return found


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) < 20:
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _broken(path: Path, line: int, problem: str, expected: str) -> LoadError:
    return LoadError(
        f"{path}, line {line}: {problem}.",
        found=problem,
        expected=expected,
        where=f"{path}, line {line}",
        hint=f"Expected {expected}.",
    )
