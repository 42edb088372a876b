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
    listed, is_json = (None, False) if text is None else _parsed(text)
    if listed is None or not new_names or not _lists(listed, num_seen):
        return
    if isinstance(listed, list):
        grown: object = [*listed, *new_names]
    else:
        number = int if all(isinstance(key, int) for key in listed) else str
        grown = listed | {number(num_seen + index): name for index, name in enumerate(new_names)}
    model.metadata_props[NAMES] = json.dumps(grown, ensure_ascii=False) if is_json else repr(grown)


def _lists(listed: dict[object, object] | list[object], num_seen: int) -> bool:
    if isinstance(listed, list):
        return len(listed) == num_seen
    return [str(key) for key in listed] == [str(index) for index in range(num_seen)]


def _parsed(text: str) -> tuple[dict[object, object] | list[object] | None, bool]:
    """Return what a text lists, as JSON or as a Python literal, and whether it is JSON; `None` for anything else."""
    is_json = True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        is_json = False
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    return (value if isinstance(value, (dict, list)) else None), is_json
