"""What the public functions take as a value, or as the path of a file that holds it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icis_deploy.common.arrays import row_labels
from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_number, refused
from icis_deploy.common.terminal_text import shown
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.errors import DescriptorError, UsageError
from icis_deploy.head.class_names import load_class_list, names_in_order
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.inputs import as_array, holds_images
from icis_deploy.images.loading import ListedImages, check_labelled
from icis_deploy.images.preprocessing import (
    Preprocessing,
    preprocessing_from_settings,
    read_settings,
)
from icis_deploy.images.python_values import PythonInputs, source_from
from icis_deploy.images.sources import InputSource
from icis_deploy.updates.envelope import load_update
from icis_deploy.workbench import enable_workbench

PathLike = str | Path
OptionsT = TypeVar("OptionsT")

ClassNames = PathLike | Sequence[str] | Mapping[int, str]
"""A text file with one class name a line, the names, or the names by number, as `id2label` of a configuration."""
DescriptorsLike = PathLike | Descriptors | Mapping[str, ArrayLike] | Any
"""A descriptor file, descriptors, a vector by class name, or a table of pandas with a row for each class."""

Preprocess = PathLike | Preprocessing | Mapping[str, Any] | Callable[..., Any]
"""What says how images are prepared (`preprocessing_from`); image processors and transforms are called."""


def descriptors_from(given: Any) -> Descriptors:
    """Return descriptors, read from their file where a path is given.

    Of a table the column `class`, or else the index, has the names, and all other columns are numbers.

    Raises:
        DescriptorError: If a vector has another width than the first, or something is no number.
    """
    if isinstance(given, Descriptors):
        return given
    if isinstance(given, str | os.PathLike):
        return load_descriptors(path_from(given, name="descriptors"))
    if hasattr(given, "columns") and hasattr(given, "to_numpy"):
        if list(given.columns).count("class") > 1:
            raise DescriptorError(
                "The table of descriptors has several columns 'class'.",
                found=list(given.columns).count("class"),
                expected="one column 'class', or none",
                where="descriptors",
                hint="Keep the one with the names that the model's class list has.",
            )
        names = list(given["class"]) if "class" in given.columns else list(given.index)
        values = given[[name for name in given.columns if name != "class"]].to_numpy()
        return _described(names, list(values))
    if isinstance(given, Mapping):
        return _described(list(given), [as_array(value) for value in given.values()])
    raise UsageError(
        f"Descriptors cannot be {shown(type(given).__name__)}.",
        found=type(given).__name__,
        expected="a file, Descriptors, a vector by class name, or a table with a row for each class",
        hint="Give a dict, such as {'okapi': vector}.",
    )


def _described(names: list[Any], vectors: list[Any]) -> Descriptors:
    arrays: list[NDArray[np.float64]] = []
    first: tuple[object, ...] | None = None
    for name, vector in zip(names, vectors, strict=True):
        if not isinstance(name, str):
            raise DescriptorError(
                f"A descriptor is of {shown(name)}; expected the name of a class, as text.",
                found=shown(name),
                expected="names of classes",
                where="descriptors",
                hint="Give a dict with class names as keys, or a table with them as its index.",
            )
        try:
            array = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty((0, 0))
        if array.ndim != 1 or not array.size or (arrays and len(array) != len(arrays[0])):
            expected = f"{len(arrays[0])} numbers, as the first has" if arrays else "numbers, one after the other"
            raise DescriptorError(
                f"The descriptor of {shown(name)} is {shown(vector)}; expected {expected}.",
                found=np.shape(array),
                expected=expected,
                where="descriptors",
            )
        labels = row_labels(vector)
        first = labels if first is None else first
        if labels not in (None, first):
            raise DescriptorError(
                f"The numbers of {shown(name)} are called {shown(labels)}; those of a class before it {shown(first)}.",
                found=labels,
                expected=first,
                where="descriptors",
                hint="Give a table with a row for each class, in which each number stands in the column of its name.",
            )
        arrays.append(array)
    if not arrays:
        raise DescriptorError(
            "There are no descriptors.",
            found=0,
            expected="one for each class",
            where="descriptors",
            hint="Give one for each class that the model knows, and for each new one.",
        )
    return Descriptors(values=np.stack(arrays), class_names=tuple(names))


def class_names_from(given: ClassNames | None, *, name: str = "classes") -> tuple[str, ...] | None:
    """Return class names as `required_class_names` does; `None` stays `None`."""
    return None if given is None else required_class_names(given, name=name)


def required_class_names(given: ClassNames, *, name: str = "classes") -> tuple[str, ...]:
    """Return class names, read from their list where a path is given.

    A lone string is a path, never a class name.

    Args:
        given: What the caller gave.
        name: The parameter.

    Raises:
        UsageError: If it is neither, one is no text, they have no order, or numbered names leave a number out.
    """
    if isinstance(given, str | os.PathLike):
        return load_class_list(path_from(given, name=name))
    listed_names: object = given
    if isinstance(listed_names, bytes) or not isinstance(listed_names, Iterable):
        raise refused(given, "class names, or the path of a list of them", name=name)
    if isinstance(given, set | frozenset):
        raise UsageError(
            f"The class names are a {type(given).__name__}, which has no order.",
            found=type(given).__name__,
            expected="a list of names",
            hint="Give a list: for a model in the order of its outputs, else sorted.",
        )
    if name == "classes":  # the order of others, such as those to inject, means nothing
        _check_numbered(given)
    return names_in_order(given if isinstance(given, Mapping) else list(given))


def _check_numbered(names: object) -> None:
    """Refuse a series of pandas in another order than its numbers: either may be that of the model's outputs."""
    numbers = row_labels(names) or ()
    if not all(isinstance(number, int | np.integer) for number in numbers) or list(numbers) == sorted(numbers):
        return
    raise UsageError(
        f"The class names are a {type(names).__name__} whose rows are numbered {shown([int(each) for each in numbers])}"
        f"; expected numbers that go up, as those of a model's outputs.",
        found=numbers,
        expected="numbers that go up",
        hint="Sort it by these numbers, or give a list in the order that is meant.",
    )


def options_from(given: OptionsT | None, kind: type[OptionsT]) -> OptionsT:
    """Return options, the default ones where none are given.

    Raises:
        UsageError: If something else is given, such as a dict.
    """
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise UsageError(
            f"The options are of type {type(given).__name__}; expected {kind.__name__}.",
            found=type(given).__name__,
            expected=kind.__name__,
            hint=f"Give options={kind.__name__}(...).",
        )
    return given


def inputs_from(
    given: PythonInputs | None, preprocessing: Preprocessing | None, *, parameter: str = "images"
) -> InputSource | None:
    """Return inputs to run models on; `None` stays `None`.

    Args:
        given: As `source_from`. Lists and folders of images must say what they show; arrays need not.
        preprocessing: How images are prepared; arrays need none.
        parameter: What the caller calls them, for messages.

    Raises:
        UsageError: If they are images, and it is not known how these are prepared.
        ImageError: As `source_from`.
    """
    if given is None:
        return None
    source = source_from(given, where=f"`{parameter}`")
    if preprocessing is None and holds_images(source):
        raise UsageError(
            "Images can only be used where it is known how they are prepared.",
            found="no preprocessing",
            expected="how images are prepared",
            hint=f"Export with `preprocess`, give arrays as the model takes them, or leave `{parameter}` out.",
        )
    if isinstance(source, ListedImages):
        check_labelled(source)
    return source


def listed(given: PythonInputs | None, *, where: str) -> PythonInputs | None:
    """Return inputs as what lists them, so that a list that is wrong is refused before a model is loaded for them.

    A pair or an `.npz` file stays as it is: they may hold features, which only the model tells from inputs.

    Args:
        given: In any form of `source_from`; `None` stays `None`.
        where: As in `source_from`.

    Raises:
        ICISDeployError: As `source_from`.
    """
    if given is None or isinstance(given, tuple):
        return given
    if isinstance(given, str | os.PathLike) and str(given).endswith(".npz"):
        return given
    return source_from(given, where=where)


def preprocessing_from(given: Preprocess | None) -> Preprocessing | None:
    """Return how images are prepared; `None` stays `None`.

    Args:
        given: What says it: a preprocessing; a JSON file or a mapping with the same keys; an image processor of
            transformers, or its `preprocessor_config.json` under any name; or transforms of torchvision or timm.

    Raises:
        LoadError: If a file cannot be read.
        IncompatibleError: If a setting is wrong, or a library does what no preprocessing says.
        UsageError: If it is nothing of these.
    """
    if given is None or isinstance(given, Preprocessing):
        return given
    if isinstance(given, Mapping):
        return _preprocessing_of_values(given, where="preprocess")
    if not isinstance(given, str | Path):
        return _preprocessing_of_library(given)
    path = path_from(given, name="preprocess")
    if path.name == _PROCESSOR_FILE and path.is_file():
        return _processor_in(path)
    return _preprocessing_of_values(read_settings(path), where=str(path))


_PROCESSOR_FILE = "preprocessor_config.json"
"""What transformers writes an image processor to; with its class the file also says what it leaves out."""

_PROCESSOR_KEYS = frozenset({"image_processor_type", "feature_extractor_type"})


def _preprocessing_of_values(values: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return what settings of our own say, or those of an image processor under whatever file name."""
    if not _PROCESSOR_KEYS & values.keys():
        return preprocessing_from_settings(values, where=where)
    enable_workbench()
    from exporters.stated.processors import load_processor, preprocessing_of_processor

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _PROCESSOR_FILE).write_text(json.dumps(dict(values)))
        processor = load_processor(folder, name=where, local_files_only=True)
    return preprocessing_of_processor(processor, where=where)


def _processor_in(path: Path) -> Preprocessing:
    enable_workbench()
    from exporters.stated.processors import load_processor, preprocessing_of_processor

    processor = load_processor(str(path.parent), local_files_only=True)
    return preprocessing_of_processor(processor, where=str(path))


def _preprocessing_of_library(given: object) -> Preprocessing:
    enable_workbench()
    from exporters.stated.processors import preprocessing_of_processor
    from exporters.stated.transforms import is_transforms, preprocessing_of_transforms

    name = type(given).__name__
    if is_transforms(given):
        return preprocessing_of_transforms(given, where=name)
    if hasattr(given, "to_dict"):
        return preprocessing_of_processor(given, where=name)
    raise UsageError(
        f"A {name} does not say how images are prepared.",
        found=name,
        expected="a JSON file, a mapping, a Preprocessing, an image processor or transforms of torchvision",
        hint="Give `preprocess` as one of these.",
    )


def update_from(given: PathLike | ClassUpdate) -> ClassUpdate:
    """Return a class update, read from its file where a path is given; nothing checks who signed it."""
    return given if isinstance(given, ClassUpdate) else load_update(path_from(given, name="updates"))


def check_max_seen_loss(max_seen_loss: float | None) -> None:
    """Check a budget of seen accuracy.

    Raises:
        UsageError: If it is not a fraction from 0 to 1.
    """
    if max_seen_loss is None:
        return
    check_number(max_seen_loss, name="max_seen_loss")
    if not 0.0 <= max_seen_loss <= 1.0:
        raise UsageError(
            f"The greatest loss of seen accuracy is {max_seen_loss!r}; expected a fraction from 0 to 1.",
            found=max_seen_loss,
            expected="0 to 1",
            hint="Give 2 points as 0.02 in `max_seen_loss`.",
        )
