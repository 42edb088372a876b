"""The int8 graph that TensorRT takes: what of the CPU's is kept, and what is said otherwise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from exporters.conversion.int8 import quantize_model
from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head
from exporters.targets.tensorrt.symmetric_quantization import SymmetricQuantizationPass
from icis_deploy.errors import IncompatibleError
from tests.exporters.head_graphs import parsed_model, run_model

RESIDUAL = """
<ir_version: 10, opset_import: ["": 20]>
residual (float[batch, 3, 8, 8] x) => (float[batch, 5] logits) {
    [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
    ra = Clip (a, low, high)
    [middle] m = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (ra, w1, b1)
    sum = Add (ra, m)
    shifted = Add (sum, shift)
    [last] l = Conv <kernel_shape = [1, 1]> (shifted, w2)
    rl = Relu (l)
    pooled = GlobalAveragePool (rl)
    flat = Flatten (pooled)
    [head] logits = Gemm <transB = 1> (flat, w, b)
}
"""


@pytest.fixture(scope="module")
def float_model() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "b1": (8,), "w2": (8, 8, 1, 1), "shift": (1, 8, 1, 1)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {**shapes, "w": (5, 8)}.items()}
    return parsed_model(
        RESIDUAL, **weights, b=np.zeros(5, np.float32), low=np.float32(0).reshape(()), high=np.float32(6).reshape(())
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (32, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(float_model: ir.Model, images: np.ndarray) -> ir.Model:
    return quantize_model(float_model, find_head(float_model), "x", lambda: iter(images[:, None])).model


@pytest.fixture(scope="module")
def symmetric(quantized: ir.Model) -> ir.Model:
    return apply_passes(quantized, SymmetricQuantizationPass())


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def test_every_activation_is_int8_with_a_zero_point_of_zero_and_a_scale_without_an_axis(symmetric: ir.Model) -> None:
    quantize = nodes(symmetric, "QuantizeLinear")
    assert quantize
    for node in quantize:
        scale, zero = (node.inputs[index].const_value.numpy() for index in (1, 2))
        assert scale.shape == zero.shape == ()  # a scale of one number per axis is one that TensorRT does not fuse
        assert (zero.dtype, int(zero)) == (np.int8, 0)
        assert node.outputs[0].dtype == ir.DataType.INT8


def test_a_range_keeps_its_greatest_magnitude(quantized: ir.Model, symmetric: ir.Model) -> None:
    def reach(model: ir.Model, name: str) -> float:
        node = next(node for node in nodes(model, "QuantizeLinear") if node.outputs[0].name == name)
        scale, zero = (node.inputs[index].const_value.numpy() for index in (1, 2))
        return float(scale * max(zero - np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max - int(zero)))

    names = {node.outputs[0].name for node in nodes(symmetric, "QuantizeLinear")}
    assert names
    for name in names:
        assert reach(symmetric, name) == pytest.approx(reach(quantized, name), rel=0.01)


def test_weights_stay_int8_and_other_constants_become_floats(quantized: ir.Model, symmetric: ir.Model) -> None:
    assert ir.DataType.INT32 in {value.dtype for value in quantized.graph.initializers.values()}
    for node in nodes(symmetric, "Conv"):
        weight = node.inputs[1].producer()
        assert weight.op_type == "DequantizeLinear"
        assert weight.inputs[0].dtype == ir.DataType.INT8
        if len(node.inputs) > 2:
            assert node.inputs[2].is_initializer()
            assert node.inputs[2].dtype == ir.DataType.FLOAT
    types = {value.dtype for value in symmetric.graph.initializers.values()}
    assert not types & {ir.DataType.INT32, ir.DataType.UINT8}


def test_an_activation_function_that_was_left_to_the_zero_point_is_there_again(
    quantized: ir.Model, symmetric: ir.Model
) -> None:
    assert not nodes(quantized, "Clip")
    (relu,) = (node for node in nodes(symmetric, "Relu") if node.inputs[0].producer().name == "first")
    assert relu.outputs[0].uses()[0].node.op_type == "QuantizeLinear"


def test_the_product_in_a_sum_is_not_rounded_before_it(quantized: ir.Model, symmetric: ir.Model) -> None:
    def terms(model: ir.Model) -> list[str]:
        add = next(node for node in nodes(model, "Add") if any(_is_middle(value) for value in node.inputs))
        return sorted(value.producer().op_type for value in add.inputs)

    assert terms(quantized) == ["DequantizeLinear", "DequantizeLinear"]
    assert terms(symmetric) == ["Conv", "DequantizeLinear"]


def _is_middle(value: ir.Value | None) -> bool:
    """Say whether a value is the middle convolution's, rounded or not."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            return node.name == "middle"
        value = node.inputs[0]
    return False


def test_it_computes_what_the_float_model_does_nearly_as_well(
    float_model: ir.Model, quantized: ir.Model, symmetric: ir.Model, images: np.ndarray
) -> None:
    expected = run_model(float_model, x=images)["logits"]
    errors = [np.abs(run_model(model, x=images)["logits"] - expected).std() for model in (quantized, symmetric)]
    assert errors[1] < 3 * errors[0] < 0.1 * expected.std()


@pytest.mark.parametrize("bounds", [(-1, 6), (-3, 1), (0.5, 6)])
def test_a_clip_that_does_not_begin_at_zero_is_kept(
    bounds: tuple[float, float], float_model: ir.Model, images: np.ndarray
) -> None:
    """Ranges of integers hold 0, and those of TensorRT are symmetric: neither can stand for such a Clip."""
    model = float_model.clone()
    for name, bound in zip(("low", "high"), bounds, strict=True):
        model.graph.initializers[name].const_value = ir.Tensor(np.float32(bound).reshape(()), name=name)
    integers = quantize_model(model, find_head(model), "x", lambda: iter(images[:, None])).model
    expected = run_model(model, x=images)["logits"]
    for each in (integers, apply_passes(integers, SymmetricQuantizationPass())):
        assert np.abs(run_model(each, x=images)["logits"] - expected).std() < 0.02 * expected.std()


def test_bounds_of_one_dimension_are_read_as_numbers(float_model: ir.Model, images: np.ndarray) -> None:
    model = float_model.clone()
    for name in ("low", "high"):
        bound = model.graph.initializers[name].const_value
        assert bound is not None
        model.graph.initializers[name].const_value = ir.Tensor(bound.numpy().reshape(1), name=name)
        model.graph.initializers[name].shape = ir.Shape([1])
    integers = quantize_model(model, find_head(model), "x", lambda: iter(images[:, None])).model
    assert not nodes(integers, "Clip")


def test_the_given_model_is_not_changed(quantized: ir.Model, symmetric: ir.Model) -> None:
    assert symmetric is not quantized
    assert Counter(value.dtype for value in quantized.graph.initializers.values())[ir.DataType.UINT8] > 0


def test_a_model_without_quantized_layers_is_refused(float_model: ir.Model) -> None:
    with pytest.raises(IncompatibleError, match=r"^The model holds no quantized activation"):
        apply_passes(float_model, SymmetricQuantizationPass())
