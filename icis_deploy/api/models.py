"""Open a user's model: load it, find its head, and read it if its classes are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.api.inputs import ClassNames, PathLike, class_names_from
from icis_deploy.errors import ICISDeployError, UsageError
from icis_deploy.head.head import Head
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

    spec: PathLike
    """Path of a `.onnx` or `.pt2` file, or `package.module:factory`."""

    weights: PathLike | None = None
    """A `.safetensors` or `.pth` file, for a factory."""

    input_shape: tuple[int, ...] | None = None
    """Shape of one image without the batch, such as `(3, 224, 224)`, where the model does not state it."""

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
    """Its rows and class names; `None` if no class list was given."""

    @property
    def obstacle(self) -> str | None:
        """Why no bundle can hold the model, in words, and what to do; `None` where one can."""
        from exporters.bundles.requirements import require_exportable

        try:
            require_exportable(self.loaded, self.location, None)
        except ICISDeployError as error:
            return str(error)
        return None


Model = PathLike | ModelSource | OpenedModel


def inspect(model: Model, *, classes: ClassNames | None = None) -> OpenedModel:
    """Load a model and find its head.

    Args:
        model: A path, `package.module:factory`, a `ModelSource` that says more, or an `OpenedModel`, which is not
            loaded again: a torch model takes seconds to become an ONNX graph.
        classes: The class names in the order of the logits: a list, a text file with one a line, or names by number.

    Example:
        opened = icis_deploy.inspect("model.onnx")
        print(opened.location.num_classes, opened.location.reason)

    Raises:
        ModelLoadError: If it cannot be loaded or has no head.
        AmbiguousHeadError: If several layers could be the head.
        IncompatibleError: If the class list has another length than the head.
    """
    enable_workbench()
    from exporters.head.finding import find_head, read_head
    from exporters.loading.models import load_model

    names = class_names_from(classes)
    if isinstance(model, OpenedModel):
        opened = model
    else:
        source = model if isinstance(model, ModelSource) else ModelSource(spec=model)
        weights = None if source.weights is None else Path(source.weights)
        loaded = load_model(str(source.spec), weights, source.input_shape)
        opened = OpenedModel(loaded=loaded, location=find_head(loaded.model, source.head_node), head=None)
    return opened if names is None else replace(opened, head=read_head(opened.loaded.model, opened.location, names))


def head_of(opened: OpenedModel) -> Head:
    """Return the head of a model that was opened with its class list.

    Raises:
        UsageError: If it was not.
    """
    if opened.head is None:
        raise UsageError(
            f"The classes of {opened.loaded.spec} are not known.",
            where=opened.loaded.spec,
            hint="Give `classes`, a text file with one class name a line.",
        )
    return opened.head
