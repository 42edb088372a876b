"""What a model must be so that a bundle can hold it: asked before anything is predicted, and when it is exported."""

from __future__ import annotations

import numpy as np

from exporters.graph.reading import fixed_batch, value_named
from exporters.head.finding import HeadLocation
from exporters.head.outputs import require_room_for_features
from exporters.head.score_kinds import score_kind
from exporters.loading.models import LoadedModel
from icis_deploy.bundle.manifest import ModelInput
from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.images.preprocessing import Preprocessing


def require_exportable(loaded: LoadedModel, location: HeadLocation, preprocessing: Preprocessing | None) -> None:
    """Check that a bundle can hold a model.

    Args:
        loaded: The model.
        location: Its head.
        preprocessing: How images are prepared; `None` where that is not known (yet).

    Raises:
        ModelLoadError: If what follows the head are no scores that can be compared.
        IncompatibleError: If it has an output that is called as the features are, no axis of inputs, or takes another
            type than float32, or if the preprocessing gives images of another shape.
    """
    score_kind(location.node_name, location.followed_by)
    require_room_for_features(location, loaded.model)
    _require_batch_axis(loaded, location)
    found = loaded.input_shape[1:]
    shape = found if preprocessing is None else preprocessing.input_shape
    if len(shape) != len(found) or any(isinstance(a, int) and a != b for a, b in zip(found, shape, strict=True)):
        raise IncompatibleError(
            f"The preprocessing gives images of shape {shape}; {loaded.spec} takes {found}.",
            found=shape,
            expected=found,
            where=loaded.spec,
            hint="Change crop, color or layout.",
        )
    if loaded.input_dtype != np.float32:
        raise IncompatibleError(
            f"{loaded.spec} takes {loaded.input_dtype}; a bundle holds models that take float32.",
            found=loaded.input_dtype,
            expected="float32",
            where=loaded.spec,
            hint="Export it with a float32 input, which the model itself casts where it needs integers.",
        )


def _require_batch_axis(loaded: LoadedModel, location: HeadLocation) -> None:
    """Raise `IncompatibleError` if the first axis of the input is another than that of the scores."""
    num_given = loaded.fixed_batch
    num_scored = fixed_batch(value_named(loaded.model.graph, location.logits_name))
    if num_given is None or num_scored is None or num_given == num_scored:
        return
    raise IncompatibleError(
        f"{loaded.spec} takes an input of shape {loaded.input_shape} and gives {num_scored} rows of scores: its first "
        f"axis is not one of inputs. Expected a batch first, of the same size in both.",
        found=loaded.input_shape,
        expected="a batch on the first axis",
        where=loaded.spec,
        hint="Export it with a batch on the first axis, dynamic or of size 1.",
    )


def model_input(loaded: LoadedModel, preprocessing: Preprocessing | None) -> ModelInput:
    """Return the input of a model that can be exported, with the size that preprocessing gives where it is open.

    Raises:
        UsageError: If the model leaves its size open and there is no preprocessing.
    """
    shape = loaded.input_shape[1:] if preprocessing is None else preprocessing.input_shape
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) != len(shape):
        raise UsageError(
            f"{loaded.spec} takes inputs of any size ({shape}).",
            found=shape,
            where=loaded.spec,
            hint="Say which with `preprocess`, or with `input_shape` where they are no images.",
        )
    return ModelInput(name=loaded.input_name, shape=sizes, dtype=str(loaded.input_dtype))
