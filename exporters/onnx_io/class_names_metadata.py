"""The class names that a model's own metadata lists, brought up to date when it gets more classes.

Ultralytics writes `names`, a Python dictionary of class index to name; others write JSON, as a dictionary or a list.
Programs that read them find the new classes there. Whatever else a model says of itself stays as it is.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

import onnx_ir as ir

NAMES = "names"


def add_class_names(model: ir.Model, new_names: Sequence[str], *, num_seen: int) -> None:
    """Append names to those that the metadata lists, in place and in their form.

    Names of another number of classes, or in no form that is known, stay as they are: they are not of this head.

    Args:
        model: Its metadata may list names.
        new_names: Of the classes after the seen ones.
        num_seen: Number of classes that the original model knows.
    """
    text = model.metadata_props.get(NAMES)
    listed = None if text is None else _parsed(text)
    if text is None or listed is None or not new_names or not _lists(listed, num_seen):
        return
    if isinstance(listed, list):
        grown: object = [*listed, *new_names]
    else:
        number = int if all(isinstance(key, int) for key in listed) else str
        grown = listed | {number(num_seen + index): name for index, name in enumerate(new_names)}
    model.metadata_props[NAMES] = json.dumps(grown, ensure_ascii=False) if _is_json(text) else repr(grown)


def _lists(listed: dict[object, object] | list[object], num_seen: int) -> bool:
    if isinstance(listed, list):
        return len(listed) == num_seen
    return [str(key) for key in listed] == [str(index) for index in range(num_seen)]


def _parsed(text: str) -> dict[object, object] | list[object] | None:
    """Return what a text lists, as JSON or as a Python literal; `None` for anything else."""
    try:
        value = json.loads(text) if _is_json(text) else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
