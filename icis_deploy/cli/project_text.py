"""The text of a project file for a model: what is known of it filled in, and what its owner has to say left to say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icis_deploy.api.models import ModelSource, OpenedModel

_PLAIN = re.compile(r"[A-Za-z_./][\w./@:+-]*", re.ASCII)
"""What YAML reads as a text without quotes, if it is no word of its own."""
_WORDS = frozenset({"true", "false", "null"})


def project_text(opened: OpenedModel, source: ModelSource, *, classes: Path | None, folder: Path) -> str:
    """Return a project file for a model.

    Files that lie in the folder under the names that README uses are entered; for those that are missing and needed,
    the name is entered all the same, so that `icis-deploy run` says which one it is.

    Args:
        opened: The model, as `inspect` returned it.
        source: How it was named, its files relative to the working directory or absolute.
        classes: The list of class names that was given.
        folder: Where the file will be: what its paths are relative to.
    """
    return "\n".join(
        [
            "# What icis-deploy run does with a model. Paths are relative to this file.",
            "# icis-deploy run --dry-run says what would be done; finished steps are not done again.",
            "",
            *_model_lines(opened, source, classes=classes, folder=folder),
            "",
            *_class_lines(folder),
            "",
            *_image_lines(opened, folder),
            "",
            *_STEPS,
            "",
        ]
    )


def _model_lines(opened: OpenedModel, source: ModelSource, *, classes: Path | None, folder: Path) -> Iterator[str]:
    location, loaded = opened.location, opened.loaded
    shape = ", ".join(str(size) for size in loaded.input_shape)
    yield (
        f"# {location.num_classes} classes by a {location.kind}, {location.feature_dim} features; input ({shape}) "
        + (f"{loaded.input_dtype}.")
    )
    yield f"# The head is {location.node_name}: {location.certainty}, {location.reason}"
    if opened.obstacle is not None:
        yield f"# NOT POSSIBLE YET: {opened.obstacle}"
    spec = Path(str(source.spec))
    yield f"model: {_scalar(_relative(spec, folder) if spec.exists() else str(source.spec))}"
    if source.weights is not None:
        yield f"weights: {_scalar(_relative(Path(source.weights), folder))}"
    if source.input_shape is not None:
        yield f"input_shape: [{', '.join(map(str, source.input_shape))}]"
    if source.head_node is not None:
        yield f"head_node: {_scalar(source.head_node)}"
    said = loaded.stated_classes
    if classes is not None:
        yield f"classes: {_scalar(_relative(classes, folder))}"
    elif said is not None and said.value is not None and len(said.value) == location.num_classes:
        yield f"# classes: classes.txt    # left out: {said.source} names them"
    else:
        yield f"classes: classes.txt    # {location.num_classes} names, one a line, in the order of the logits"


def _class_lines(folder: Path) -> Iterator[str]:
    yield "# The new classes, one a line, named as in the descriptors."
    yield "unseen: unseen.txt"
    yield "# What each class is, seen and new ones: a file, or a section describe that makes one."
    if (folder / "descriptors.npz").is_file() or not (folder / "answers.txt").is_file():
        yield "descriptors: descriptors.npz"
        yield "# describe:"
        yield "#   tags: answers.txt    # words for each class, by any language model: icis-deploy describe --ask"
        yield "#   vectors: numberbatch-en.txt.gz"
    else:
        yield "describe:"
        yield "  tags: answers.txt"


def _image_lines(opened: OpenedModel, folder: Path) -> Iterator[str]:
    said = opened.loaded.stated_preprocessing
    if said is not None and said.value is not None:
        settings = ", ".join(f"{name} {value}" for name, value in said.value.to_json().items())
        yield f"# Images are prepared as {said.source} says: {settings}."
        yield "# preprocess: preprocess.json    # only to say it otherwise"
    elif len(opened.loaded.input_shape) == 4:
        yield "# How images are prepared; the model does not say it. A file, or its keys right here."
        yield "preprocess: preprocess.json"
    yield "# Images of classes that the model knows, from where the device will be: 200 to 400 keep the budget."
    yield f"{_unless('known.csv', folder)}seen_images: known.csv    # columns file and class, or a folder"
    yield "# Labelled images to measure on, of seen and new classes."
    yield f"{_unless('images.csv', folder)}images: images.csv"
    yield "# Everything that is made goes here."
    yield "out: build"


_STEPS = (
    "inject:",
    "  max_seen_loss: 2    # points of accuracy that the classes of today may lose",
    "export:",
    "  head: updatable    # or fused: the fastest, but a device cannot change its classes",
    "  # precision: fp16",
    "  # targets: [openvino]",
    "# Each of these is done where it stands here, with nothing after it for what is usual.",
    "verify:",
    "# evaluate:    # needs images",
    "# bench:",
    "#   preset: quick",
    "# report:    # a page of what bench measured",
)


def _unless(name: str, folder: Path) -> str:
    return "" if (folder / name).exists() else "# "


def _relative(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder; an absolute one where there is no way, as between drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def _scalar(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS and not text.endswith(":") and ": " not in text
    return text if is_plain else json.dumps(text)
