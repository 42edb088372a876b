"""Which layers of a quantized backbone lose most accuracy: the noise that each adds to its input.

The signal-to-noise ratio of every activation is taken between the float and the int8 backbone on the same images. A
layer's own error is the noise power that its output has more than its input, both relative to their signal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.backbone.activations import inner_values, iterate_activations
from exporters.conversion.int8 import QuantizedModel

NUM_BATCHES = 4
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset({"Clip", "Relu"})

Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """The error of one quantized layer."""

    name: str
    """Name of its node."""

    input_sqnr_db: float
    """Signal to quantization noise ratio of its input, in decibels; infinite for the images."""

    output_sqnr_db: float
    """The same of its output, after its activation function, in decibels."""

    @property
    def added_noise(self) -> float:
        """Noise power of the output less that of the input, relative to their signals."""
        return float(10 ** (-self.output_sqnr_db / 10) - 10 ** (-self.input_sqnr_db / 10))

    def describe(self) -> str:
        """Return the layer and both ratios in words."""
        return f"{self.name} ({_decibels(self.input_sqnr_db)} in, {_decibels(self.output_sqnr_db)} out)"


def worst_layers(quantized: QuantizedModel, batches: Iterator[NDArray[np.float32]], *, limit: int) -> list[LayerError]:
    """Return the layers that add most noise, the worst first.

    Args:
        quantized: The model.
        batches: Prepared images, of which the first few are used.
        limit: At most so many layers.
    """
    images = list(islice(batches, NUM_BATCHES))
    in_float = _activations(quantized.float_backbone, images)
    in_int8 = _activations(quantized.backbone, images)
    sqnr = {name: _sqnr_db(exact, noisy) for name, exact in in_float.items() if (noisy := _dequantized(name, in_int8))}
    found = [
        LayerError(name=str(node.name), input_sqnr_db=sqnr.get(source, np.inf), output_sqnr_db=sqnr[output])
        for node in quantized.float_backbone.graph
        if node.op_type in _LINEAR and (output := _output_of(node)) in sqnr
        for source in [_name(node.inputs[0])]
    ]
    return sorted(found, key=lambda layer: -layer.added_noise)[:limit]


def _dequantized(name: str, in_int8: Mapping[str, Arrays]) -> Arrays | None:
    """Return an activation of the quantized model: dequantized, or the float itself where its layer gives floats."""
    return in_int8.get(f"{name}_DequantizeLinear_Output", in_int8.get(name))


def _sqnr_db(exact: Arrays, noisy: Arrays) -> float:
    signal = sum(float(np.square(each, dtype=np.float64).sum()) for each in exact)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(exact, noisy, strict=True))
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise)) if noise else np.inf


def _activations(model: ir.Model, images: Arrays) -> dict[str, Arrays]:
    names = inner_values(model)
    collected: dict[str, Arrays] = {name: [] for name in names}
    for arrays in iterate_activations(model, names, iter(images)):
        for name, array in arrays.items():
            collected[name].append(array)
    return collected


def _output_of(node: ir.Node) -> str:
    """Return the name of a layer's output, after its activation function where one follows."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type in _ACTIVATIONS:
        return _name(uses[0].node.outputs[0])
    return _name(node.outputs[0])


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _decibels(value: float) -> str:
    return f"{value:.0f} dB" if np.isfinite(value) else "exact"
