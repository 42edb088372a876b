"""What the public functions take as a value, or as the path of a file that holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.errors import UsageError
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing, preprocessing_from_json
from icis_deploy.updates.envelope import load_update
from icis_deploy.workbench import enable_workbench

PathLike = str | Path
Preprocess = PathLike | Preprocessing | Mapping[str, Any] | Callable[..., Any]
"""What says how images are prepared (`preprocessing_from`); image processors and transforms are called."""


def descriptors_from(given: PathLike | Descriptors) -> Descriptors:
    """Return descriptors, read from their file where a path is given."""
    return given if isinstance(given, Descriptors) else load_descriptors(Path(given))


@overload
def class_names_from(given: PathLike | Sequence[str]) -> tuple[str, ...]: ...
@overload
def class_names_from(given: PathLike | Sequence[str] | None) -> tuple[str, ...] | None: ...
def class_names_from(given: PathLike | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return class names, read from their list where a path is given; `None` stays `None`.

    A lone string is a path, never a class name.
    """
    if given is None:
        return None
    return load_class_list(Path(given)) if isinstance(given, str | Path) else tuple(given)


def preprocessing_from(given: Preprocess | None) -> Preprocessing | None:
    """Return how images are prepared; `None` stays `None`.

    Args:
        given: What says it: a preprocessing; a JSON file or a mapping with the same keys; an image processor of
            transformers, or its `preprocessor_config.json`; or transforms of torchvision or timm.

    Raises:
        LoadError: If a file cannot be read.
        IncompatibleError: If a setting is wrong, or a library does what no preprocessing says.
        UsageError: If it is nothing of these.
    """
    if given is None or isinstance(given, Preprocessing):
        return given
    if isinstance(given, Mapping):
        return preprocessing_from_json(given, where="preprocess")
    if not isinstance(given, str | Path):
        return _preprocessing_of_library(given)
    path = Path(given)
    return _processor_in(path) if path.name == _PROCESSOR_FILE and path.is_file() else load_preprocessing(path)


_PROCESSOR_FILE = "preprocessor_config.json"
"""What transformers writes an image processor to; with its class the file also says what it leaves out."""


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
    return given if isinstance(given, ClassUpdate) else load_update(Path(given))


def check_max_seen_loss(max_seen_loss: float | None) -> None:
    """Check a budget of seen accuracy.

    Raises:
        UsageError: If it is not a fraction from 0 to 1.
    """
    if max_seen_loss is not None and not 0.0 <= max_seen_loss <= 1.0:
        raise UsageError(
            f"The greatest loss of seen accuracy is {max_seen_loss}; expected a fraction from 0 to 1.",
            found=max_seen_loss,
            expected="0 to 1",
            hint="Give 2 points as 0.02 in `max_seen_loss`.",
        )
