"""Run a model with its inner values as outputs, which precision conversion measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.onnx_io.files import first_line, serialize_model
from icis_deploy.errors import ModelLoadError, RuntimeFailureError
from icis_deploy.runtime.sessions.onnxruntime_session import session_options

Inputs = Callable[[], Iterator[NDArray[np.float32]]]
"""Gives the batches that a model is run on, `(batch, *input_shape)` float32, from the start at each call."""


def inner_values(model: ir.Model) -> list[str]:
    """Return the names of all float32 values that nodes of the graph compute, in order."""
    return [
        str(value.name)
        for node in model.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name
    ]


def iterate_activations(
    model: ir.Model, names: Sequence[str], batches: Iterator[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the named values for each batch; optimizations that would remove them are off.

    Args:
        model: With one input for images; other inputs have defaults.
        names: Values of its graph.
        batches: What to run it on.

    Raises:
        ModelLoadError: If ONNX Runtime cannot load the model.
        RuntimeFailureError: If it cannot run it.
    """
    import onnx
    import onnxruntime

    proto = onnx.load_from_string(serialize_model(model))
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, which share no base
        raise ModelLoadError(
            f"ONNX Runtime cannot load the model with its inner values: {first_line(error)}.",
            found=first_line(error),
        ) from error
    image_input = session.get_inputs()[0].name
    for batch in batches:
        try:
            arrays = session.run(list(names), {image_input: batch}) if names else []  # without names it returns all
        except Exception as error:  # see above
            raise RuntimeFailureError(
                f"ONNX Runtime failed on a calibration image: {first_line(error)}.",
                found=first_line(error),
                hint="Check that the calibration inputs are what the model takes.",
            ) from error
        yield dict(zip(names, arrays, strict=True))
