"""What an ONNX model that Ultralytics exported says in its metadata: task, class names, size of its images.

Source: ultralytics, engine/exporter.py (metadata) and data/augment.py (`classify_transforms`): the short side is
resized to the side of a square, bilinear, or the image to a size that is none; pixels are scaled to 0..1 and left so.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from exporters.stated.statement import GIVE_PREPROCESS, Statement, names_by_index, stated
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import IncompatibleError
from icis_deploy.images.preprocessing import Preprocessing

NAMES, SIZE, TASK = "names", "imgsz", "task"
MAX_LITERAL_CHARS = 1 << 21
"""The names of ImageNet-21k have less than half of that; reading it takes a hundred times as much memory."""


def names_of_metadata(metadata: Mapping[str, str], *, where: str) -> Statement[tuple[str, ...]] | None:
    """Return the class names that a model's metadata state; `None` where there are none."""
    if NAMES not in metadata:
        return None
    return names_by_index(_literal(metadata[NAMES]), source=f"{where} ({NAMES} in its metadata)")


def preprocessing_of_metadata(
    metadata: Mapping[str, str], *, num_channels: int, where: str
) -> Statement[Preprocessing] | None:
    """Return how images are prepared for a model of Ultralytics; `None` where the metadata do not say.

    Args:
        metadata: Of an ONNX model, by name.
        num_channels: Of the images that the model takes.
        where: Of which model, for messages.
    """
    if not {SIZE, TASK} <= set(metadata):
        return None
    source = f"{where} ({SIZE} in its metadata)"

    def read() -> Preprocessing:
        size = _literal(metadata[SIZE])
        task = metadata[TASK]
        is_size = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(each, int) for each in size)
        if task != "classify" or not is_size or num_channels not in (1, 3):
            raise IncompatibleError(
                f"{where} is a model of Ultralytics with the task {shown(task)}, {SIZE} {shown(metadata[SIZE])} and "
                f"{num_channels} channels; expected classify, [height, width] and 1 or 3.",
                found=(shown(task), shown(metadata[SIZE]), num_channels),
                expected=("classify", "[height, width]", (1, 3)),
                where=where,
                hint=GIVE_PREPROCESS,
            )
        assert isinstance(size, list | tuple)
        height, width = size
        return Preprocessing(
            resize=height if height == width else (height, width),
            crop=(height, width),
            mean=(0.0,) * num_channels,
            std=(1.0,) * num_channels,
            color="RGB" if num_channels == 3 else "L",
        )

    return stated(read, source=source)


def _literal(text: str) -> Any:
    """Return the value of a literal of Python, as Ultralytics writes dictionaries; `None` where it is none."""
    if len(text) > MAX_LITERAL_CHARS:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
