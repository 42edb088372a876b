"""What the public functions take as a value, or as the path of a file that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.errors import UsageError
from icis_deploy.head.class_names import load_class_list
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.updates.envelope import load_update

PathLike = str | Path


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


def preprocessing_from(given: PathLike | Preprocessing | None) -> Preprocessing | None:
    """Return how images are prepared, read from its JSON file where a path is given; `None` stays `None`."""
    return load_preprocessing(Path(given)) if isinstance(given, str | Path) else given


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
