"""Load the user's model: an ONNX file, a torch.export program, a torch module or its factory, or one of transformers.

All head work happens on the ONNX graph, so a torch model is exported here, once. The user's own model is
kept and can still be run in its own runtime: an export is compared with that, never with another export.
"""

# Why: docs/decisions/0001.

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.graph.dynamic_quantization import WriteOutDynamicHeadsPass
from exporters.graph.edits import apply_passes
from exporters.graph.integer_operators import (
    WIDE_OPSET,
    BypassRoundingPass,
    WriteOutIntegersPass,
    needs_wide_quantization,
)
from exporters.graph.ml_operators import ReplaceMLOperatorsPass
from exporters.graph.plain_forms import PlainFormsPass
from exporters.graph.softmax_fusion import FuseSoftmaxPass
from exporters.graph.training_mode import refuse_training_mode
from exporters.head.slot_inputs import has_slots
from exporters.head.topk_output import RemoveTopKPass
from exporters.loading.margin_removal import Feed, NamedRunner, RemoveMarginPass, without_margin
from exporters.loading.original import OriginalOnnx
from exporters.loading.pretrained import is_pretrained
from exporters.loading.quantized_ends import FloatEndsPass, read_quantized_ends, with_float_ends
from exporters.loading.torch_modules import stated_image_shape
from exporters.loading.unknown_models import unknown_model
from exporters.onnx_io.files import first_line, load_onnx_file, with_opset
from exporters.onnx_io.shape_inference import infer_shapes
from exporters.stated.modules import (
    names_of_module,
    names_of_weights,
    preprocessing_of_module,
    preprocessing_of_weights,
    published_weights,
)
from exporters.stated.statement import Statement
from exporters.stated.ultralytics import names_of_metadata, preprocessing_of_metadata
from icis_deploy.errors import (
    ICISDeployError,
    IncompatibleError,
    ModelLoadError,
    RuntimeFailureError,
    UsageError,
)
from icis_deploy.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch.nn import Module

    from exporters.loading.torch_modules import Runner

Source = Literal["onnx", "pt2", "factory", "module", "transformers"]
_LABEL_TYPES = frozenset({ir.DataType.INT32, ir.DataType.INT64})
Original = Callable[[NDArray[np.generic], str], NDArray[np.generic]]


def _release_nothing() -> None:
    """Do nothing: a torch model belongs to the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A user's model as an ONNX graph, and the original to compare it with.

    Example:
        loaded = icis_deploy.inspect("model.onnx").loaded
        print(loaded.input_name, loaded.input_shape, loaded.input_dtype)
    """

    model: ir.Model = field(repr=False)
    """The ONNX graph; not to be edited: head surgery returns edited copies."""

    source: Source
    """The kind of file or object that it was loaded from."""

    spec: str
    """The path or import path that it was loaded from, as given."""

    input_name: str
    """Name of the graph input that takes the images."""

    input_shape: tuple[int | str, ...]
    """Shape of that input, batch first; a name, such as `"batch"`, stands for any size."""

    input_dtype: np.dtype[np.generic]
    """Type of that input; `original_logits` converts to it."""

    original: Original = field(repr=False)
    """Runs the original model on images of `input_dtype`, and returns the output of the given name."""

    stated_classes: Statement[tuple[str, ...]] | None = field(repr=False, default=None)
    """The class names that the model states, in the order of its logits; `None` where it states none."""

    stated_preprocessing: Statement[Preprocessing] | None = field(repr=False, default=None)
    """How the model says its images are prepared; `None` where it does not, or somebody else did."""

    value_range: tuple[float, float] | None = None
    """The least and the greatest number that the input takes, where it was quantized; `None` for any."""

    release: Callable[[], None] = field(repr=False, default=_release_nothing)
    """Releases the sessions and weights that the original holds between runs; the next run loads them again."""

    @property
    def fixed_batch(self) -> int | None:
        """Batch size of a model that takes no other; `None` for one that takes any."""
        size = self.input_shape[0]
        return size if isinstance(size, int) else None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        return tuple(str(value.name) for value in self.model.graph.outputs)

    def original_logits(self, images: NDArray[np.floating[Any]], output: str | None = None) -> NDArray[np.float32]:
        """Run the original model in its own runtime: the user's file in ONNX Runtime, or torch.

        Args:
            images: `(batch, ...)` as the input has it. A model with a fixed batch is run in pieces of that size.
            output: The output to return, such as `HeadLocation.output_name`; the first one if not given. Of an ONNX
                file any value can be asked for.

        Returns:
            `(batch, num_classes)` float32, for an output that has one score per class.

        Raises:
            IncompatibleError: If the images have another shape than the input, or there is no such output.
            RuntimeFailureError: If the runtime fails.
            MissingDependencyError: If the runtime is not installed.
        """
        _check_images(images, self.input_shape)
        name = self.output_names[0] if output is None else output
        converted = np.ascontiguousarray(images, dtype=self.input_dtype)
        size = self.fixed_batch or len(converted)
        pieces = [self._run(converted[start : start + size], size, name) for start in range(0, len(converted), size)]
        scores = np.concatenate(pieces).astype(np.float32)
        return scores.reshape(len(scores), -1)  # a 1x1 convolution gives axes of length 1 besides the classes

    def _run(self, images: NDArray[np.generic], size: int, output: str) -> NDArray[np.generic]:
        missing = size - len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        try:
            scores = self.original(filled, output)
            # A model of one image at a time may give its scores without an axis of images.
            return (scores[None] if size == 1 and scores.shape[:1] != (1,) else scores)[: len(images)]
        except ICISDeployError:
            raise
        except Exception as error:  # onnxruntime's and torch's own types
            raise RuntimeFailureError(
                f"The original model {self.spec} failed on images of shape {filled.shape}: {first_line(error)}.",
                found=first_line(error),
                where=self.spec,
                hint=("Check that the model runs by itself on inputs of that shape, and what `preprocess` makes."),
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelInput:
    """The input of a model with a training margin that takes one label per image, `(batch,)`."""

    name: str

    dtype: np.dtype[np.generic]
    """int32 or int64."""


def load_model(
    spec: str | Callable[..., Any],
    weights: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> LoadedModel:
    """Load a model and, where it comes from torch, export it to ONNX.

    Args:
        spec: A path to a `.onnx` or `.pt2` file, or to a folder that `save_pretrained` of transformers wrote;
            `owner/name` of a model on its hub; `package.module:factory`; or an `nn.Module`.
        weights: A `.safetensors`, `.pth` or `.pt` file, for a factory and only there.
        input_shape: Shape of one image, such as `(3, 224, 224)`, where the model does not state it.
        preprocessing: How images are prepared, if somebody says it: the model is not asked then, and where nothing
            states the shape of its images they have the shape that this gives.

    Raises:
        UsageError: If the arguments contradict each other.
        ModelLoadError: If the model cannot be loaded, or has not exactly one input.
        ExportError: If torch cannot convert it.
        MissingDependencyError: If torch is needed and not installed.
    """
    if not isinstance(spec, str):
        return _load_module(spec, weights, input_shape, preprocessing)
    suffix = Path(spec).suffix.lower()
    if "://" in spec or not spec:  # an empty path would be the folder that Python runs in
        raise unknown_model(spec)
    if suffix in {".onnx", ".pt2"}:
        _refuse_weights(weights, spec=spec)
        return _load_onnx(spec, input_shape, preprocessing) if suffix == ".onnx" else _load_program(spec, input_shape)
    if ":" in spec and not os.path.exists(spec):  # noqa: PTH110 - a name that is too long is none
        return _load_factory(spec, weights, input_shape, preprocessing)
    if is_pretrained(spec):
        _refuse_weights(weights, spec=spec)
        return _load_pretrained(spec, input_shape, preprocessing)
    raise unknown_model(spec)


def parse_input_shape(text: str) -> tuple[int, ...]:
    """Read an image's shape such as `3,224,224` or `3x224x224`.

    Raises:
        UsageError: If it is anything else.
    """
    parts = text.lower().replace("x", ",").strip("()[] ").split(",")
    try:
        shape = tuple(int(part) for part in parts)
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(
            f"The input shape {text!r} is no shape; expected one image's sizes, such as 3,224,224.",
            found=text,
            expected="the sizes of one image",
            hint="Give another `input_shape`.",
        )
    return shape


def _refuse_weights(weights: Path | None, *, spec: str) -> None:
    if weights is not None:
        raise UsageError(
            f"{spec} holds its own weights; others go with package.module:factory only.",
            where=spec,
            hint="Leave `weights` out.",
        )


def _load_onnx(spec: str, input_shape: tuple[int, ...] | None, preprocessing: Preprocessing | None) -> LoadedModel:
    read = load_onnx_file(Path(spec))
    refuse_training_mode(read, where=spec)
    _refuse_slots(read, where=spec)
    ends, original = read_quantized_ends(read), OriginalOnnx(Path(spec))
    model, run = _in_standard_operators(read, where=spec), with_float_ends(original, ends) if ends else original
    model = apply_passes(model, RemoveTopKPass(), FuseSoftmaxPass(), FloatEndsPass(ends))
    loaded = _loaded(model, source="onnx", spec=spec, image_shape=input_shape, run=run)
    metadata, shape = dict(read.metadata_props), loaded.input_shape
    channels = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 3
    stated = preprocessing_of_metadata(metadata, num_channels=channels, where=spec) if preprocessing is None else None
    return replace(
        loaded,
        release=original.release,
        value_range=None if ends.input is None else ends.input.value_range,
        stated_classes=names_of_metadata(metadata, where=spec),
        stated_preprocessing=stated,
    )


def _refuse_slots(model: ir.Model, *, where: str) -> None:
    """Raise `ModelLoadError` if this is the model of a bundle with an updatable head: classes are in slots already."""
    if has_slots(model):
        raise ModelLoadError(
            f"{where} is the model of a bundle, with slots for classes, and no model that a bundle can be made of.",
            found="a bundle's model with slots",
            expected="the model that the bundle was exported from",
            where=where,
            hint="Give the model that it was exported from; class updates and new classes go into the bundle "
            "afterwards.",
        )


def _in_standard_operators(model: ir.Model, *, where: str) -> ir.Model:
    """Return a model whose operators are ONNX's own, in the forms that are looked for, with inferred shapes."""
    if needs_wide_quantization(model):
        model = with_opset(model, WIDE_OPSET, where=where)
    standard = apply_passes(
        model, PlainFormsPass(), WriteOutIntegersPass(), WriteOutDynamicHeadsPass(), ReplaceMLOperatorsPass()
    )
    if standard is not model:
        infer_shapes(standard)
    return apply_passes(standard, BypassRoundingPass())


def _load_program(spec: str, input_shape: tuple[int, ...] | None) -> LoadedModel:
    from exporters.loading.torch_export import load_program, onnx_from_program
    from exporters.loading.torch_modules import module_runner

    program = load_program(Path(spec))
    model = onnx_from_program(program)
    run = _named(module_runner(program.module()), model)
    return _loaded(model, source="pt2", spec=spec, image_shape=input_shape, run=run)


def _load_pretrained(
    spec: str, input_shape: tuple[int, ...] | None, preprocessing: Preprocessing | None
) -> LoadedModel:
    from exporters.loading.pretrained import load_pretrained

    read = load_pretrained(spec, needs_preprocessing=preprocessing is None)
    return _from_torch(
        read.module,
        source="transformers",
        spec=spec,
        input_shape=input_shape or _shape_of(preprocessing, read.preprocessing) or stated_image_shape(read),
        classes=read.class_names,
        preprocessing=read.preprocessing,
    )


def _load_module(
    module: Callable[..., Any],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    preprocessing: Preprocessing | None,
) -> LoadedModel:
    from exporters.loading.torch_modules import own_copy

    copied, spec = own_copy(module), type(module).__name__
    _refuse_weights(weights, spec=spec)
    stated = preprocessing_of_module(copied, where=spec) if preprocessing is None else None
    return _from_torch(
        copied,
        source="module",
        spec=spec,
        input_shape=input_shape or _shape_of(preprocessing, stated) or stated_image_shape(copied),
        classes=names_of_module(copied, where=spec),
        preprocessing=stated,
    )


def _load_factory(
    spec: str, weights: Path | None, input_shape: tuple[int, ...] | None, preprocessing: Preprocessing | None
) -> LoadedModel:
    from exporters.loading.torch_modules import build_module

    if weights is None:
        raise UsageError(
            f"{spec} needs trained weights.",
            where=spec,
            hint="Give a file (.safetensors or .pth) as `weights`.",
        )
    module = build_module(spec, weights)
    package, _, builder = spec.partition(":")
    published = published_weights(sys.modules[package], builder, weights)
    classes, stated = names_of_module(module, where=spec), None
    if published is not None:
        classes = names_of_weights(published, where=spec)
    if preprocessing is None:
        stated = preprocessing_of_module(module, where=spec)
        stated = stated if published is None else preprocessing_of_weights(published, where=spec)
    return _from_torch(
        module,
        source="factory",
        spec=spec,
        input_shape=input_shape or _shape_of(preprocessing, stated) or stated_image_shape(module),
        classes=classes,
        preprocessing=stated,
    )


def _shape_of(given: Preprocessing | None, stated: Statement[Preprocessing] | None) -> tuple[int, ...] | None:
    """Return the shape of one prepared image; what somebody said counts before what the model states."""
    preprocessing = given or (None if stated is None else stated.value)
    return None if preprocessing is None else preprocessing.input_shape


def _from_torch(
    module: Module,
    *,
    source: Source,
    spec: str,
    input_shape: tuple[int, ...] | None,
    classes: Statement[tuple[str, ...]] | None,
    preprocessing: Statement[Preprocessing] | None,
) -> LoadedModel:
    from exporters.loading.torch_export import export_module, onnx_from_program
    from exporters.loading.torch_modules import module_runner

    if input_shape is None:
        raise UsageError(
            f"{spec} does not state the shape of its input.",
            where=spec,
            hint="Give it, such as `input_shape=(3, 224, 224)`.",
        )
    model = onnx_from_program(export_module(module, input_shape))
    run = _named(module_runner(module), model)
    loaded = _loaded(model, source=source, spec=spec, image_shape=input_shape, run=run)
    return replace(loaded, stated_classes=classes, stated_preprocessing=preprocessing)


def _loaded(
    model: ir.Model, *, source: Source, spec: str, image_shape: tuple[int, ...] | None, run: NamedRunner
) -> LoadedModel:
    images, labels = _inputs_of(model, spec=spec)
    if labels is not None:
        run = without_margin(run, labels.name, str(images.name), labels.dtype)
        model = apply_passes(model, RemoveMarginPass(labels=labels.name, images=str(images.name)))
    if images.shape is None or len(images.shape) < 2 or images.dtype is None:
        raise ModelLoadError(
            f"{spec} does not state the shape of its input {images.name!r}.",
            where=spec,
            hint="Export it with shapes.",
        )
    stated = tuple(
        dim if isinstance(dim, int) else str(dim.value or f"axis_{axis}") for axis, dim in enumerate(images.shape)
    )
    name = str(images.name)
    return LoadedModel(
        model=model,
        source=source,
        spec=spec,
        input_name=name,
        input_shape=_with_image_shape(stated, image_shape, spec=spec),
        input_dtype=np.dtype(images.dtype.numpy()),
        original=lambda batch, output: run({name: batch}, output),
    )


def _inputs_of(model: ir.Model, *, spec: str) -> tuple[ir.Value, _LabelInput | None]:
    """Return the input for images, and the one for labels if a margin has been left in."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(inputs) == 1:
        return inputs[0], None
    integers = [value for value in inputs if value.dtype in _LABEL_TYPES and value.shape is not None]
    if len(inputs) == 2 and len(integers) == 1 and (labels := _label_input(integers[0])) is not None:
        return next(value for value in inputs if value is not integers[0]), labels
    names = ", ".join(str(value.name) for value in inputs) or "none"
    raise ModelLoadError(
        f"{spec} has {len(inputs)} inputs ({names}); expected one, for the images.",
        found=len(inputs),
        expected=1,
        where=spec,
        hint="Export the model in evaluation mode, without labels or masks.",
    )


def _label_input(value: ir.Value) -> _LabelInput | None:
    """Return an input as one for labels; `None` if it does not take one number per image."""
    if value.dtype is None or value.shape is None or len(value.shape) != 1:
        return None
    return _LabelInput(name=str(value.name), dtype=np.dtype(value.dtype.numpy()))


def _with_image_shape(
    stated: tuple[int | str, ...], image_shape: tuple[int, ...] | None, *, spec: str
) -> tuple[int | str, ...]:
    """Replace the sizes that the model leaves open by those that the user gave."""
    if image_shape is None:
        return stated
    given = (stated[0], *image_shape)
    fits = len(given) == len(stated) and all(
        isinstance(own, str) or own == size for own, size in zip(stated, given, strict=True)
    )
    if not fits:
        raise UsageError(
            f"The input shape {list(image_shape)} does not fit {spec}, whose input is {list(stated)}.",
            found=image_shape,
            expected=tuple(stated),
            where=spec,
            hint="Give another `input_shape`, or leave it out.",
        )
    return given


def _named(run: Runner, model: ir.Model) -> NamedRunner:
    """Return a runner that takes and gives a torch model's values by their names in its ONNX export."""
    inputs = [str(value.name) for value in model.graph.inputs]
    outputs = [str(value.name) for value in model.graph.outputs]

    def run_named(feed: Feed, output: str) -> NDArray[np.generic]:
        if output not in outputs:
            raise IncompatibleError(
                f"The torch model does not return {output!r}, only {', '.join(outputs)}.",
                found=tuple(outputs),
                expected=output,
                hint="Let it return its logits.",
            )
        return run(*(feed[name] for name in inputs))[outputs.index(output)]

    return run_named


def _check_images(images: NDArray[np.floating[Any]], input_shape: tuple[int | str, ...]) -> None:
    fits = images.ndim == len(input_shape) and all(
        isinstance(own, str) or own == size for own, size in zip(input_shape[1:], images.shape[1:], strict=True)
    )
    if not fits or len(images) == 0:
        raise IncompatibleError(
            f"The images have shape {images.shape}; the model takes {list(input_shape)}.",
            found=images.shape,
            expected=tuple(input_shape),
            hint="Prepare them as the model takes them, or give `preprocess`.",
        )
