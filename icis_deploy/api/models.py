"""Open a user's model: load it, find its head, and read it if its classes are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icis_deploy.api.inputs import ClassNames, PathLike, Preprocess, class_names_from, preprocessing_from
from icis_deploy.common.files import path_from
from icis_deploy.common.given import items, whole_number
from icis_deploy.errors import ICISDeployError, IncompatibleError, UsageError
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.workbench import enable_workbench

if TYPE_CHECKING:
    from exporters.head.finding import HeadLocation
    from exporters.loading.models import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a user's model is, and how to read it.

    Example:
        source = icis_deploy.ModelSource(spec="package.module:make_model", weights="weights.safetensors")
        icis_deploy.inspect(source)
    """

    spec: PathLike | Callable[..., Any]
    """Path of a `.onnx` or `.pt2` file, or of a folder that `save_pretrained` of transformers wrote; `owner/name` or
    `owner/name@revision` on its hub; `package.module:factory`; or an `nn.Module`, which is copied and not changed."""

    weights: PathLike | None = None
    """A `.safetensors` or `.pth` file, for a factory."""

    input_shape: tuple[int, ...] | None = None
    """Shape of one image without the batch, such as `(3, 224, 224)`, where the model does not state it."""

    example: Any = None
    """A batch of images as the model takes them, an array or a tensor, whose shape stands for `input_shape`."""

    head_node: str | None = None
    """Name of the head's node, where several could be it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A user's model with its head found, and read if its classes are known.

    Example:
        opened = icis_deploy.inspect("model.onnx", classes="classes.txt")
        update = icis_deploy.inject(opened, descriptors="descriptors.npz")
        icis_deploy.export(opened, updates=[update], out="bundle")
    """

    loaded: LoadedModel
    """The model as an ONNX graph, and the original to compare with."""

    location: HeadLocation
    """Where in the graph the head is, and how sure that is."""

    head: Head | None
    """Its rows and class names; `None` if no class list was given and the model states none."""

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the model says that its images are prepared; `None` where it does not say, or it cannot be taken over."""
        said = self.loaded.stated_preprocessing
        return None if said is None else said.value

    @property
    def obstacle(self) -> str | None:
        """Why no bundle can hold the model, in words, and what to do; `None` where one can."""
        from exporters.bundles.requirements import require_exportable

        try:
            require_exportable(self.loaded, self.location, None)
        except ICISDeployError as error:
            return str(error)
        return None


Model = PathLike | ModelSource | OpenedModel | Callable[..., Any]
"""What `inspect` takes; the last stands for `torch.nn.Module`, and torch is imported by whoever has one."""


def inspect(model: Model, *, classes: ClassNames | None = None) -> OpenedModel:
    """Load a model and find its head.

    Args:
        model: What `ModelSource.spec` takes, a `ModelSource` that says more, or an `OpenedModel`, which is not
            loaded again: a torch model takes seconds to become an ONNX graph.
        classes: The class names in the order of the logits: a list, a text file with one a line, or names by number; by
            default the names that the model states.

    Example:
        opened = icis_deploy.inspect("model.onnx")
        print(opened.location.num_classes, opened.location.reason)

    Raises:
        ModelLoadError: If it cannot be loaded or has no head.
        AmbiguousHeadError: If several layers could be the head.
        IncompatibleError: If the class list, or the model's own, has another length than the head.
    """
    return open_model(model, classes=classes, preprocessing=None)


def open_model(model: Model, *, classes: ClassNames | None = None, preprocessing: Preprocessing | None) -> OpenedModel:
    """Load a model and find its head, as `inspect` does.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`.
        preprocessing: How images are prepared, where somebody says it: what the model states of that is not read.

    Raises:
        ICISDeployError: As `inspect`.
    """
    enable_workbench()
    from exporters.head.finding import read_head

    names = class_names_from(classes)
    opened = locate_head(model, preprocessing=preprocessing)
    if names is None and opened.head is None:
        names = _stated_names(opened)
    return opened if names is None else replace(opened, head=read_head(opened.loaded.model, opened.location, names))


def locate_head(model: Model, *, preprocessing: Preprocessing | None) -> OpenedModel:
    """Load a model and find its head, whose rows are only read if that was done before.

    Args:
        model: As in `inspect`.
        preprocessing: As in `open_model`.

    Raises:
        ModelLoadError: As `inspect`.
        AmbiguousHeadError: As `inspect`.
    """
    enable_workbench()
    from exporters.head.finding import find_head
    from exporters.loading.models import load_model

    if isinstance(model, OpenedModel):
        return model
    source = model if isinstance(model, ModelSource) else ModelSource(spec=model)
    weights = None if source.weights is None else path_from(source.weights, name="weights")
    spec = str(source.spec) if isinstance(source.spec, str | Path) else source.spec
    loaded = load_model(spec, weights, _input_shape(source), preprocessing=preprocessing)
    return OpenedModel(loaded=loaded, location=find_head(loaded.model, source.head_node), head=None)


def open_with_preprocessing(
    model: Model, *, classes: ClassNames | None, preprocess: Preprocess | None
) -> tuple[OpenedModel, Preprocessing | None]:
    """Load a model and find its head; return also how its images are prepared, as somebody or the model itself says.

    Args:
        model: As in `inspect`.
        classes: As in `inspect`.
        preprocess: What says how images are prepared; by default the model, where it does.

    Raises:
        ICISDeployError: As `inspect` and `preprocessing_from`; and if it is left to the model, and what it says cannot
            be taken over, or contradicts its input.
    """
    explicit = preprocessing_from(preprocess)
    opened = open_model(model, classes=classes, preprocessing=explicit)
    said = opened.loaded.stated_preprocessing
    if explicit is not None or said is None:
        return opened, explicit
    stated = said.require()
    found = opened.loaded.input_shape[1:]
    fits = len(found) == 3 and all(
        isinstance(own, str) or own == size for own, size in zip(found, stated.input_shape, strict=True)
    )
    if not fits:
        raise IncompatibleError(
            f"{said.source} says that images have shape {stated.input_shape}; the model takes {found}.",
            found=stated.input_shape,
            expected=found,
            where=said.source,
            hint="Give `preprocess`, which says how images are prepared.",
        )
    return opened, stated


def _input_shape(source: ModelSource) -> tuple[int, ...] | None:
    stated = source.input_shape
    if stated is not None:
        sizes = items(stated, "sizes, such as (3, 224, 224)", name="input_shape")
        stated = tuple(whole_number(size, name="input_shape", at_least=1) for size in sizes)
    if source.example is None:
        return stated
    shape = tuple(int(size) for size in np.shape(source.example))
    if len(shape) < 2 or stated not in (None, shape[1:]):
        raise UsageError(
            f"The example has shape {shape}, and the input shape is {stated}; expected a batch of images "
            f"of that shape.",
            found=shape,
            expected=stated,
            hint="Give a batch of images as the example, or `input_shape` instead.",
        )
    return shape[1:]


def _stated_names(opened: OpenedModel) -> tuple[str, ...] | None:
    """Return the class names that a model states; `None` where it states none that a head can have.

    Raises:
        IncompatibleError: If there are more or fewer than the head has classes.
    """
    said = opened.loaded.stated_classes
    if said is None or said.value is None:
        return None
    if len(said.value) != opened.location.num_classes:
        raise IncompatibleError(
            f"{said.source} names {len(said.value)} classes; the head {opened.location.node_name} has "
            f"{opened.location.num_classes}.",
            found=len(said.value),
            expected=opened.location.num_classes,
            where=said.source,
            hint="Give `classes`, a text file with one class name a line, in the order of the logits.",
        )
    return said.value


def head_of(opened: OpenedModel) -> Head:
    """Return the head of a model that was opened with its class list.

    Raises:
        UsageError: If it was not, and the model states no class names.
        ModelLoadError: If it states some that a head cannot have.
    """
    if opened.head is None:
        if (said := opened.loaded.stated_classes) is not None:
            said.require()
        raise UsageError(
            f"The classes of {opened.loaded.spec} are not known.",
            where=opened.loaded.spec,
            hint="Give `classes`, a text file with one class name a line.",
        )
    return opened.head
