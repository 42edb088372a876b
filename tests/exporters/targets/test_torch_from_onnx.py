"""Backbones translated to torch: each operator against ONNX Runtime, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.parser import parse_model

from exporters.targets.head_parts import HeadParts
from exporters.targets.torch_from_onnx import BackboneModule, ClassifierModule
from icis_deploy.bundle.manifest import SCORE_KINDS
from icis_deploy.errors import ExportError
from icis_deploy.runtime.sessions.protocol import SlotBuffers
from tests.exporters.targets.test_ncnn_target import CAPACITY, FEATURE_DIM, head_of, in_numpy

RANDOM = np.random.default_rng(2)
WEIGHTS = {
    "kernel": RANDOM.normal(size=(6, 2, 3, 3)).astype(np.float32),
    "grouped": RANDOM.normal(size=(4, 1, 3, 2)).astype(np.float32),
    "bias": RANDOM.normal(size=6).astype(np.float32),
    "scale": RANDOM.uniform(0.5, 2, size=4).astype(np.float32),
    "shift": RANDOM.normal(size=4).astype(np.float32),
    "mean": RANDOM.normal(size=4).astype(np.float32),
    "variance": RANDOM.uniform(0.5, 2, size=4).astype(np.float32),
    "slope": RANDOM.uniform(0.1, 1, size=(4, 1, 1)).astype(np.float32),
    "wide": RANDOM.normal(size=7).astype(np.float32),
    "matrix": RANDOM.normal(size=(168, 5)).astype(np.float32),
    "five": RANDOM.normal(size=5).astype(np.float32),
    "half": np.float32(0.5),
    "minus": np.float32(-0.3),
    "two": np.array(2, dtype=np.int64),
    "axes": np.array([2, 3], dtype=np.int64),
    "last": np.array([-1], dtype=np.int64),
    "zero": np.array(0, dtype=np.int64),
    "one": np.array([1], dtype=np.int64),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2], dtype=np.int64),
    "index": np.array([3, -4], dtype=np.int64),
    "rest": np.array([0, -1], dtype=np.int64),
    "sizes": np.array([1, 3], dtype=np.int64),
    "starts": np.array([1, -5], dtype=np.int64),
    "ends": np.array([9223372036854775807, -1], dtype=np.int64),
    "steps": np.array([2, 1], dtype=np.int64),
    "tall": np.array([3, 1, 1, 1, 1], dtype=np.int64),
}

UNARY = "Abs Ceil Cos Erf Exp Floor HardSwish Identity Mish Neg Reciprocal Relu Sigmoid Sin Softplus Tanh Dropout"
CASES = [
    *(f"y = {name} (x)" for name in UNARY.split()),
    "a = Abs (x) y = Sqrt (a)",
    "a = Exp (x) y = Log (a)",
    *(f"y = {name} (x, slope)" for name in ("Add", "Sub", "Mul", "Div")),
    *(f"y = {name} (half, x)" for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    "y = Pow (x, two)",
    "y = PRelu (x, slope)",
    "y = Max (x, half, slope)",
    "y = Clip (x, minus, half)",
    "y = Clip (x, minus)",
    "y = Elu <alpha = 0.7> (x)",
    "y = LeakyRelu <alpha = 0.2> (x)",
    "y = HardSigmoid <alpha = 0.3, beta = 0.4> (x)",
    "y = Gelu (x)",
    'y = Gelu <approximate = "tanh"> (x)',
    "y = Conv <pads = [1, 0, 2, 1], strides = [2, 1], group = 2> (x, kernel, bias)",
    "y = Conv <pads = [1, 1, 1, 1], dilations = [1, 2], group = 2> (x, kernel)",
    'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2], group = 4> (x, grouped)',
    'y = Conv <auto_pad = "SAME_LOWER", group = 4> (x, grouped)',
    "y = MaxPool <kernel_shape = [3, 2], pads = [1, 0, 0, 1], strides = [2, 2]> (x)",
    "y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2], ceil_mode = 1> (x)",
    "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)",
    "y = AveragePool <kernel_shape = [3, 2], pads = [0, 0, 1, 1], count_include_pad = 1> (x)",
    "y = GlobalAveragePool (x)",
    "y = GlobalMaxPool (x)",
    "y = BatchNormalization <epsilon = 0.01> (x, scale, shift, mean, variance)",
    "y = InstanceNormalization <epsilon = 0.01> (x, scale, shift)",
    "y = LayerNormalization <epsilon = 0.01> (x, wide, wide)",
    "y = GroupNormalization <num_groups = 2> (x, scale, shift)",
    "y = Softmax <axis = 1> (x)",
    "y = LogSoftmax (x)",
    "a = Flatten (x) y = Gemm <alpha = 0.5, beta = 2.0> (a, matrix, five)",
    "a = Flatten (x) y = Gemm (a, matrix, five)",
    "a = Flatten (x) b = Transpose (a) c = Transpose (matrix) y = Gemm <transA = 1, transB = 1> (b, c)",
    "a = Flatten <axis = -2> (x) y = Transpose (a)",
    "a = Reshape (x, rest) y = MatMul (a, matrix)",
    "y = Transpose <perm = [0, 2, 3, 1]> (x)",
    "a = GlobalAveragePool (x) y = Squeeze (a, axes)",
    "a = GlobalAveragePool (x) y = Squeeze (a)",
    "y = Unsqueeze (x, last)",
    "y = Concat <axis = -1> (x, x)",
    "y, a = Split <axis = 1> (x, sizes)",
    "a, y = Split <axis = 3, num_outputs = 2> (x)",
    "y = Slice (x, starts, ends, axes, steps)",
    "y = Gather <axis = 1> (x, index)",
    "y = Gather <axis = 2> (x, two)",
    "y = Expand (x, tall)",
    "y = Pad (x, pads, half)",
    'y = Pad <mode = "reflect"> (x, pads)',
    'y = Pad <mode = "edge"> (x, pads)',
    "a = Cast <to = 7> (x) y = Cast <to = 1> (a)",
    *(f"y = {name} (x, axes)" for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")),
    "y = ReduceSumSquare <keepdims = 0> (x, last)",
    "y = ReduceMean (x)",
    "y = ReduceMean <noop_with_empty_axes = 1> (x)",
    # What torch writes for x.view(len(x), -1), and numbers that a graph computes of a shape.
    "a = Shape (x) b = Gather (a, zero) c = Unsqueeze (b, zero) d = Concat <axis = 0> (c, last) y = Reshape (x, d)",
    "a = Shape (x) b = Gather (a, two) c = Div (b, two) d = Add (c, c) e = Unsqueeze (d, zero) "
    "f = Concat <axis = 0> (last, e) y = Reshape (x, f)",
]


def parsed(body: str, opset: int = 21, shape: str = "1, 4, 6, 7") -> ir.Model:
    model = parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float y) {{ {body} }}')
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in used
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(model)


def in_onnxruntime(model: ir.Model, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {"x": image})[0]


@pytest.mark.parametrize("body", CASES)
def test_an_operator_computes_what_onnx_runtime_does(body):
    model = parsed(body)
    image = np.random.default_rng(4).normal(scale=2, size=(1, 4, 6, 7)).astype(np.float32)
    expected = in_onnxruntime(model, image)
    found = BackboneModule(model)(torch.from_numpy(image)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", ["y = Softmax <axis = 1> (x)", "y = LogSoftmax (x)"])
def test_softmax_of_old_opsets_takes_all_later_axes(body):
    model = parsed(body, opset=12)
    image = np.random.default_rng(4).normal(size=(1, 4, 6, 7)).astype(np.float32)
    found = BackboneModule(model)(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, in_onnxruntime(model, image), rtol=1e-5, atol=1e-6)


def test_a_trace_holds_operations_of_tensors_alone():
    body = (
        "a = Shape (x) b = Gather (a, zero) c = Unsqueeze (b, zero) d = Concat <axis = 0> (c, last) y = Reshape (x, d)"
    )
    program = torch.export.export(BackboneModule(parsed(body)), (torch.rand(1, 4, 6, 7),))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.reshape.default"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "y = Det (x)",
            r"^The translation to torch does not know the operator Det \(node '.*'\)\. Leave this target out",
        ),
        ("a = Cast <to = 7> (x) y = Gather (x, a)", r"Gather \(node '.*'\) has no translation.*depend on the image"),
        (
            "y = AveragePool <kernel_shape = [3, 2], pads = [0, 0, 1, 1]> (x)",
            r"AveragePool \(node '.*'\) has no translation to torch: it leaves paddings out of its means",
        ),
        ('y = Pad <mode = "wrap"> (x, pads)', r"Pad \(node '.*'\) has no translation to torch: it wraps round"),
    ],
)
def test_what_has_no_translation_is_named_with_its_node(body, message):
    with pytest.raises(ExportError, match=message):
        BackboneModule(parsed(body))(torch.rand(1, 4, 6, 7))


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("arbiter", [False, True])
@pytest.mark.parametrize("capacity", [0, CAPACITY])
@pytest.mark.parametrize("num_new", [0, 3])
def test_a_head_in_torch_computes_what_the_head_in_numpy_does(kind, arbiter, capacity, num_new):
    head: HeadParts = head_of(kind, arbiter=arbiter, capacity=capacity, num_new=num_new)
    random = np.random.default_rng(8)
    features = random.normal(size=(2, FEATURE_DIM)).astype(np.float32)
    arrays = [
        random.normal(size=size).astype(np.float32) for size in ((CAPACITY, FEATURE_DIM), CAPACITY, (CAPACITY, 5))
    ]
    arrays[1][-1] = -6e4  # an empty slot
    slots = SlotBuffers(weight=arrays[0], bias=arrays[1], arbiter=arrays[2] if arbiter else None) if capacity else None
    given = arrays[: 3 if arbiter else 2] if capacity else []

    scores, found_features = ClassifierModule(torch.nn.Identity(), head)(*(map(torch.from_numpy, [features, *given])))
    expected = in_numpy(head, features, slots)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=2e-5, atol=1e-6 * max(1, np.abs(expected).max()))
    np.testing.assert_array_equal(found_features.numpy(), features)
