"""Compare what a bundle's model gives besides its scores with what the original gives under the same names.

Two comparisons, as an output either follows from the logits or does not:

1. *Outputs of the backbone*, such as an embedding or a second head: on the gate's images, the same as the original's.
2. *Outputs after the logits*, such as a label, the chosen ids, or probabilities: both graphs are cut at their logits,
   and given logits of which every class in turn is the greatest. Where a seen class is, outputs must be the original's,
   those of a list of classes for all seen ones. Where a new class is, an id must be its column, a label its name, and
   its entry the greatest of a list. Images would show that only for the classes that they happen to be of.
"""

# Why: docs/decisions/0100.

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.backbone.inputs import InputBatches
from exporters.graph.edits import apply_passes
from exporters.graph.label_tables import extended_labels
from exporters.graph.reading import fixed_batch, shape_of, value_named
from exporters.head.finding import HeadLocation, pattern_at
from exporters.head.tail import Tail, trace_tail
from exporters.loading.models import LoadedModel
from exporters.loading.original import OriginalOnnx
from exporters.onnx_io.files import save_model
from exporters.onnx_io.shape_inference import infer_shapes
from icis_deploy.bundle.manifest import FEATURES, MODEL_NAME, TOP_CLASS_IDS, TOP_PROBABILITIES, Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.parity import GateProfile

_OWN = frozenset({FEATURES, TOP_PROBABILITIES, TOP_CLASS_IDS})
_MAX_PROBED = 64
"""Number of seen and of new classes that are made the greatest; of more, evenly spaced ones."""

_AHEAD = 12.0
"""How far the greatest logit is ahead of others, which are of standard deviation 1."""

_NEVER = -1e4
"""Logit of a class that must not matter: within float16, and 0 after a softmax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probes:
    """Logits of which one class is the greatest."""

    winners: NDArray[np.intp]
    """`(num_probes,)`: its column among all scores."""

    logits: Float32
    """`(num_probes, num_scores)`."""


def other_output_failures(
    folder: Path,
    bundle: Bundle,
    class_names: Sequence[str],
    *,
    loaded: LoadedModel,
    location: HeadLocation,
    inputs: InputBatches,
    profile: GateProfile,
) -> list[str]:
    """Return what is wrong with the outputs of a bundle's model besides its scores, as clauses.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        class_names: Its classes, in the order of the scores.
        loaded: The original model.
        location: Its head.
        inputs: What the backbone's outputs are compared on.
        profile: How exact these must be.

    Raises:
        ModelLoadError: If ONNX Runtime cannot load a part of the model.
        RuntimeFailureError: If it cannot run it.
    """
    original = [name for name in loaded.output_names if name not in {location.output_name, *_OWN}]
    if not original:
        return []
    exported = ir.load(folder / MODEL_NAME)
    given = {str(output.name) for output in exported.graph.outputs}
    pattern = pattern_at(loaded.model, location)
    tail = trace_tail(pattern.logits, pattern.chain.class_axis, pattern.num_classes)
    values = {str(output.name): output for output in loaded.model.graph.outputs}
    dropped = {name for name in original if values[name] in tail.labels and bundle.head_kind == "updatable"}
    failures = [f"the output {name!r} is missing" for name in original if name not in given | dropped]
    present = [name for name in original if name in given]
    failures += _backbone_failures(
        folder, bundle, [name for name in present if values[name] not in tail.axes], loaded, inputs, profile
    )
    after = [values[name] for name in present if values[name] in tail.axes]
    if after:
        failures += _tail_failures(exported, bundle, class_names, after, loaded, location, tail, inputs)
    return failures


def _backbone_failures(
    folder: Path,
    bundle: Bundle,
    names: list[str],
    loaded: LoadedModel,
    inputs: InputBatches,
    profile: GateProfile,
) -> list[str]:
    """Compare outputs that no class changes."""
    if not names:
        return []
    ours, failures = OriginalOnnx(folder / MODEL_NAME), []
    for name in names:
        for batch in inputs:
            try:
                expected = loaded.original(np.ascontiguousarray(batch.prepared, dtype=loaded.input_dtype), name)
            except IncompatibleError:  # a margin's labels change it: there is nothing to compare with
                break
            found = ours({bundle.model_input.name: batch.given}, name)
            if not _agree(expected[: batch.count], found[: batch.count], profile.max_scaled_error):
                failures.append(f"the output {name!r} is not the original's")
                break
    return failures


def _tail_failures(
    exported: ir.Model,
    bundle: Bundle,
    class_names: Sequence[str],
    after: list[ir.Value],
    loaded: LoadedModel,
    location: HeadLocation,
    tail: Tail,
    inputs: InputBatches,
) -> list[str]:
    """Compare outputs that follow from the logits, with each class the greatest."""
    infer_shapes(exported)
    names, axis, num_seen = [str(value.name) for value in after], tail.axes[tail.logits], location.num_classes
    assert axis is not None, "logits have a class axis"
    image = next(iter(inputs))
    ours = _CutGraph(exported, _logits_in(exported, location), axis, names, {bundle.model_input.name: image.given})
    theirs = _CutGraph(loaded.model, location.logits_name, axis, names, {loaded.input_name: image.prepared})
    num_scores = ours.num_scores(num_seen)
    rng = np.random.default_rng(0)
    seen = _probes(rng, _spaced(0, num_seen), num_seen, num_scores)
    new = _probes(rng, _spaced(num_seen, num_scores), num_seen, num_scores)
    expected, found, found_new = theirs.run(seen.logits[:, :num_seen]), ours.run(seen.logits), ours.run(new.logits)
    tolerance = 1e-2 if ours.is_narrow else 1e-4
    failures = []
    for value in after:
        name, class_axis = str(value.name), _axis_in(found[str(value.name)], value, tail.axes[value])
        of_seen = found[name] if class_axis is None else np.take(found[name], range(num_seen), axis=class_axis)
        if not _agree(expected[name], of_seen, tolerance):
            failures.append(f"the output {name!r} is not the original's where a class is chosen that it knows")
        elif not _fits_new(value, class_axis, found_new[name], new.winners, tail, class_names, num_seen):
            failures.append(f"the output {name!r} does not follow the scores where a new class is chosen")
    return failures


def _axis_in(found: NDArray[Any], value: ir.Value, axis: int | None) -> int | None:
    """Return the class axis of what was found, which has an axis of images where the value has none (`_first`)."""
    return None if axis is None else axis + found.ndim - len(shape_of(value))


def _fits_new(
    value: ir.Value,
    axis: int | None,
    found: NDArray[Any],
    winners: NDArray[np.intp],
    tail: Tail,
    class_names: Sequence[str],
    num_seen: int,
) -> bool:
    """Say whether an output is right where new classes are the greatest, as far as it says which class is."""
    if not len(winners):
        return True
    if axis is not None:
        by_class = np.moveaxis(found, axis, -1).reshape(len(winners), -1)
        own = by_class[np.arange(len(winners)), winners]
        return bool((own >= by_class.max(axis=1)).all())
    expected: Sequence[object]
    if value in tail.columns:  # as numbers, or as a Cast writes these
        expected = [str(winner) for winner in winners] if found.dtype.kind in "OSU" else winners.tolist()
    elif value in tail.labels:
        labels = extended_labels(tail.labels[value], class_names[:num_seen], class_names[num_seen:])
        expected = [labels[winner] for winner in winners]
    else:
        return True  # the greatest score, say: it belongs to no class
    rows = found.reshape(len(winners), -1).tolist()
    return all(_as_label(each) in {_as_label(entry) for entry in row} for each, row in zip(expected, rows, strict=True))


def _as_label(value: object) -> object:
    """Return a label in the form in which labels are compared: numbers may come as floats."""
    return float(value) if isinstance(value, (int, float)) else value


def _agree(expected: NDArray[Any], found: NDArray[Any], tolerance: float) -> bool:
    """Say whether two arrays are equal, or, of floating-point numbers, as near as a share of their spread.

    Infinities and what is no number must be the same in both.
    """
    if expected.shape != found.shape or not np.issubdtype(expected.dtype, np.floating):
        return bool(np.array_equal(expected, found))
    finite = np.isfinite(expected)
    wanted, given = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True) or not np.isfinite(given).all():
        return False
    if not len(wanted):
        return True
    spread = float(wanted.std()) or float(np.abs(wanted).max(initial=1.0))
    return bool(np.abs(wanted - given).max() <= tolerance * spread)


def _probes(rng: np.random.Generator, winners: NDArray[np.intp], num_seen: int, num_scores: int) -> _Probes:
    logits = np.full((len(winners), num_scores), _NEVER, dtype=np.float32)
    logits[:, :num_seen] = rng.normal(size=(len(winners), num_seen))
    logits[np.arange(len(winners)), winners] = _AHEAD
    return _Probes(winners=winners, logits=logits)


def _spaced(first: int, last: int) -> NDArray[np.intp]:
    count = min(last - first, _MAX_PROBED)
    return np.unique(np.linspace(first, last - 1, count).astype(np.intp)) if count > 0 else np.empty(0, np.intp)


def _logits_in(model: ir.Model, location: HeadLocation) -> str:
    """Return the name of the logits that an exported graph goes on with.

    It is what is cast, or made a matrix, for the first output, where others take that too.
    """
    value = value_named(model.graph, location.logits_name)
    while (node := value.producer()) is not None and node.op_type in {"Cast", "Flatten"}:
        source = node.inputs[0]
        if source is None or len(source.uses()) < 2:
            break
        value = source
    return str(value.name)


class _CutGraph:
    """What follows the logits in a graph, as a model that takes logits."""

    def __init__(
        self, model: ir.Model, logits: str, axis: int, outputs: list[str], image: dict[str, NDArray[Any]]
    ) -> None:
        self._model = apply_passes(model, _CutPass(logits, tuple(outputs)))
        self._logits, self._axis, self._outputs = logits, axis, outputs
        value = value_named(self._model.graph, logits)
        self._shape, self._batch = shape_of(value), fixed_batch(value)
        self._dtype = np.float32 if value.dtype is None else value.dtype.numpy()
        taken = {str(each.name) for each in self._model.graph.inputs}
        self._image = {name: array for name, array in image.items() if name in taken}

    @property
    def is_narrow(self) -> bool:
        """Whether its logits have fewer bits than float32."""
        return np.dtype(self._dtype).itemsize < np.dtype(np.float32).itemsize

    def num_scores(self, least: int) -> int:
        size = self._shape[self._axis]
        return size if isinstance(size, int) else least

    def run(self, logits: Float32) -> dict[str, NDArray[Any]]:
        """Return the outputs for `(num_probes, num_scores)` logits."""
        size = self._batch or max(len(logits), 1)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in self._outputs}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_NAME
            save_model(self._model, path)
            run = OriginalOnnx(path)
            for start in range(0, len(logits), size):
                part = logits[start : start + size]
                feed = {self._logits: self._in_shape(np.resize(part, (size, part.shape[1])))}
                feed |= {name: np.resize(array, (size, *array.shape[1:])) for name, array in self._image.items()}
                for name in self._outputs:
                    parts[name].append(_first(run(feed, name), len(part), size))
        return {name: np.concatenate(arrays) if arrays else np.empty(0) for name, arrays in parts.items()}

    def _in_shape(self, logits: Float32) -> NDArray[Any]:
        shape = [1] * len(self._shape)
        shape[0], shape[self._axis] = logits.shape
        return np.ascontiguousarray(logits.reshape(shape), dtype=self._dtype)


def _first(array: NDArray[Any], count: int, size: int) -> NDArray[Any]:
    """Return what belongs to the first images of a batch; what has no axis of images is taken as it is."""
    return array[:count] if array.ndim and len(array) == size else array.reshape(1, *array.shape)


@dataclass(frozen=True, slots=True)
class _CutPass(ir.passes.InPlacePass):
    """Make a value an input, and remove what no output needs any more."""

    logits: str
    outputs: tuple[str, ...]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the graph in place."""
        graph = model.graph
        old = value_named(graph, self.logits)
        wanted = [output for output in graph.outputs if output.name in self.outputs]
        new = ir.Value(name=self.logits, shape=old.shape, type=old.type)
        old.name = f"{self.logits}_before"
        for node, index in list(old.uses()):
            node.replace_input_with(index, new)
        graph.outputs[:] = wanted
        graph.inputs.append(new)
        RemoveUnusedNodesPass()(model)
        used = [value for value in graph.inputs if value.uses() or value is new]
        for value in graph.inputs:
            if value not in used:
                graph.initializers.pop(str(value.name), None)
        graph.inputs[:] = used
        return ir.passes.PassResult(model, modified=True)
