"""The JSON Schema of a benchmark result, made of its values: the types of their fields, and the words under them.

`scripts/maintenance/make_result_schema.py` writes it to `result.schema.json`, and a test holds the two together.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from benchmarks.results.json_values import derived_names, field_types
from benchmarks.results.result import SCHEMA_VERSION, Result

PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"]},  # null: unbounded
    object: {},
}


def result_schema() -> dict[str, Any]:
    """Return the JSON Schema of a result's file."""
    schema = schema_of(Result, title="A benchmark result of icis-deploy")
    result = schema["$defs"]["Result"]
    result["properties"] = {"schema_version": {"const": SCHEMA_VERSION}} | result["properties"]
    result["required"] = ["schema_version", *result["required"]]
    return schema


def schema_of(kind: type, *, title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a dataclass as `json_from_value` writes it.

    Args:
        kind: The outermost dataclass.
        title: What the schema calls itself.
    """
    definitions: dict[str, Any] = {}
    reference = _schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


def field_docstrings(kind: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass and in its properties, each on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef), "the source of a class"
    found = {}
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                found[statement.target.id] = " ".join(str(following.value.value).split())
        elif isinstance(statement, ast.FunctionDef):
            found[statement.name] = " ".join((ast.get_docstring(statement) or "").split())
    return found


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = {}  # first, so that a value may hold others of its kind
            definitions[name] = _object_schema(typing.cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin in (Union, types.UnionType):
        (each,) = [each for each in typing.get_args(kind) if each is not types.NoneType]
        return _nullable(_schema(each, definitions))
    if origin is Literal:
        return {"enum": list(typing.get_args(kind))}
    if origin is tuple:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0], definitions)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(typing.get_args(kind)[1], definitions)}
    return dict(PLAIN[kind])


def _object_schema(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    words, hints = field_docstrings(kind), typing.get_type_hints
    properties = {name: _schema(each, definitions) for name, each in field_types(kind).items()}
    for name in derived_names(kind):
        properties[name] = _schema(hints(getattr(kind, name).fget)["return"], definitions)
    return {
        "type": "object",
        "description": " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()),
        "properties": {name: each | _described(words.get(name)) for name, each in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


def _described(words: str | None) -> dict[str, str]:
    return {"description": words} if words else {}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return schema if "type" in schema else {"anyOf": [schema, {"type": "null"}]}
