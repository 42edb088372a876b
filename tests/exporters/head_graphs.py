"""Small classifiers as ONNX text, one for each kind of head, with the numpy that says what they must compute.

Each maps images `x` to what its output must be, given the rows of its head: `after(logits)` is what follows the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from exporters.onnx_io.files import normalized, serialize_model

NUM_CLASSES = 5
FEATURE_DIM = 4

Array = NDArray[Any]


def parsed_model(text: str, **weights: Array) -> ir.Model:
    """Return the model of a text, with the weights as initializers, checked and brought to the exporters' form."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(proto)
    return normalized(ir.from_proto(proto), where="the test's graph")


def run_model(model: ir.Model, **inputs: Array) -> dict[str, Array]:
    """Run a model in ONNX Runtime; return its outputs by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(serialize_model(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def identity(logits: Array) -> Array:
    return logits


def softmax(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def log_softmax(logits: Array) -> Array:
    return np.log(softmax(logits))


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


@dataclass(frozen=True, kw_only=True)
class HeadGraph:
    """A classifier with one kind of head."""

    text: str
    """The graph; `w` and `b` and what `weights` returns become its initializers."""

    weights: Callable[[Array, Array], Mapping[str, Array]]
    """From the rows' weight `(NUM_CLASSES, FEATURE_DIM)` and bias `(NUM_CLASSES,)` float32, the initializers."""

    kind: str
    """What the head must be found as."""

    image_shape: tuple[int, ...] = (FEATURE_DIM,)
    """Shape of one image."""

    after: Callable[[Array], Array] = identity
    """What follows the head, in numpy."""

    has_bias: bool = True
    """Whether the rows have a bias; a constant margin is one."""

    tolerance: float = 1e-5
    """Relative to the greatest logit."""

    quantized: bool = False
    """Whether its rows are stored as integers."""

    def model(self, weight: Array, bias: Array) -> ir.Model:
        return parsed_model(self.text, **self.weights(weight, bias))

    def images(self, seed: int, batch: int = 3) -> Array:
        return np.random.default_rng(seed).uniform(0.1, 1.0, (batch, *self.image_shape)).astype(np.float32)


def rows(seed: int, num_rows: int = NUM_CLASSES) -> tuple[Array, Array]:
    """Return random rows: weight `(num_rows, FEATURE_DIM)`, bias `(num_rows,)`."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(num_rows, FEATURE_DIM)).astype(np.float32)
    return weight, generator.normal(size=num_rows).astype(np.float32)


def unit(array: Array) -> Array:
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True), dtype=np.float32)


HEADER = '<ir_version: 10, opset_import: ["": 20]>'

ON_A_COMPUTED_VIEW = """ g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits)
            <int64[1] first = {0}, int64[1] rest = {-1}> {
            h = Relu (x)
            pooled = GlobalAveragePool (h)
            sizes = Shape (pooled)
            batch_size = Gather (sizes, first)
            target = Concat <axis = 0> (batch_size, rest)
            features_of_all = Reshape (pooled, target)
            [head] logits = Gemm <transB = 1> (features_of_all, w, b)
        }"""

GRAPHS: dict[str, HeadGraph] = {
    "gemm": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w, b)
        }}""",
        weights=lambda w, b: {"w": w, "b": b},
        kind="gemm",
    ),
    "gemm, weight not transposed": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] logits = Gemm (h, w, b)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b[None]},
        kind="gemm",
    ),
    "gemm with alpha and beta": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] logits = Gemm <alpha = 0.5, beta = 4.0, transB = 1> (h, w, b)
        }}""",
        weights=lambda w, b: {"w": w * 2, "b": b / 4},
        kind="gemm",
    ),
    "gemm without bias": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w)
        }}""",
        weights=lambda w, _: {"w": w},
        kind="gemm",
        has_bias=False,
    ),
    **{
        f"gemm on a view whose shape is computed, opset {opset}": HeadGraph(
            text=HEADER.replace("20", str(opset)) + ON_A_COMPUTED_VIEW,
            weights=lambda w, b: {"w": w, "b": b},
            kind="gemm",
            image_shape=(FEATURE_DIM, 3, 3),
        )
        for opset in (20, 13)
    },
    "matmul and add": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] product = MatMul (h, w)
            logits = Add (product, b)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b},
        kind="matmul",
    ),
    "matmul, bias first": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] product = MatMul (h, w)
            logits = Add (b, product)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b[None]},
        kind="matmul",
    ),
    "matmul with a transposed weight": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            turned = Transpose <perm = [1, 0]> (w)
            [head] product = MatMul (h, turned)
            logits = Sub (product, minus_b)
        }}""",
        weights=lambda w, b: {"w": w, "minus_b": -b},
        kind="matmul",
    ),
    "matmul without bias": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] logits = MatMul (h, w)
        }}""",
        weights=lambda w, _: {"w": np.ascontiguousarray(w.T)},
        kind="matmul",
        has_bias=False,
    ),
    "matmul, scale per class": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] product = MatMul (h, w)
            scaled = Mul (product, gain)
            logits = Add (scaled, b)
        }}""",
        weights=lambda w, b: {
            "w": np.ascontiguousarray((w / np.arange(1, 6, dtype=np.float32)[:, None]).T),
            "gain": np.arange(1, 6, dtype=np.float32),
            "b": b,
        },
        kind="matmul",
    ),
    "matmul on one token": HeadGraph(
        text=f"""{HEADER} g (float[batch, 1, 4] x) => (float[batch, 5] logits)
            <int64[1] axes = {{1}}> {{
            h = Relu (x)
            [head] product = MatMul (h, w)
            biased = Add (product, b)
            logits = Squeeze (biased, axes)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b},
        kind="matmul",
        image_shape=(1, FEATURE_DIM),
    ),
    "matmul on tokens, then their mean": HeadGraph(
        text=f"""{HEADER} g (float[batch, 7, 4] x) => (float[batch, 5] logits)
            <int64[1] axes = {{1}}> {{
            h = Relu (x)
            [head] product = MatMul (h, w)
            biased = Add (product, b)
            logits = ReduceMean <keepdims = 0> (biased, axes)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b},
        kind="matmul",
        image_shape=(7, FEATURE_DIM),
    ),
    "1x1 conv after pooling": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            pooled = GlobalAveragePool (h)
            [head] map = Conv <kernel_shape = [1, 1]> (pooled, w, b)
            logits = Flatten (map)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "1x1 conv after pooling, flattened before its bias and a temperature": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] scores) {{
            h = Relu (x)
            pooled = GlobalAveragePool (h)
            [head] map = Conv (pooled, w)
            flat = Flatten (map)
            logits = Add (b, flat)
            warm = Div (logits, temperature)
            scores = Softmax <axis = 1> (warm)
        }}""",
        weights=lambda w, b: {"w": 2 * w[..., None, None], "b": 2 * b, "temperature": np.array([2], dtype=np.float32)},
        kind="conv",
        image_shape=(4, 3, 3),
        after=softmax,
    ),
    "matmul on one token, squeezed before its bias": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits)
            <int64[1] token = {{1}}> {{
            h = Relu (x)
            tokens = Unsqueeze (h, token)
            [head] each = MatMul (tokens, w)
            one = Squeeze (each, token)
            logits = Add (one, b)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b},
        kind="matmul",
    ),
    "1x1 conv after pooling, reshape that names the classes": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits)
            <int64[2] target = {{-1, 5}}> {{
            h = Relu (x)
            pooled = GlobalAveragePool (h)
            [head] map = Conv (pooled, w, b)
            logits = Reshape (map, target)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "1x1 conv after pooling, reshape by the shape's own numbers": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits)
            <int64[1] first = {{0}}, int64[1] classes = {{5}}> {{
            h = Relu (x)
            pooled = GlobalAveragePool (h)
            [head] map = Conv (pooled, w, b)
            sizes = Shape (map)
            batch_size = Gather (sizes, first)
            target = Concat <axis = 0> (batch_size, classes)
            logits = Reshape (map, target)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "1x1 conv before pooling": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] map = Conv (h, w)
            biased = Add (map, b)
            pooled = GlobalAveragePool (biased)
            logits = Flatten (pooled)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b[None, :, None, None]},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "1x1 conv before pooling, by mean and squeeze": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits)
            <int64[2] axes = {{2, -1}}> {{
            h = Relu (x)
            [head] map = Conv (h, w, b)
            pooled = ReduceMean <keepdims = 1> (map, axes)
            logits = Squeeze (pooled, axes)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "1x1 conv before pooling, positions flattened": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits)
            <int64[3] target = {{0, 5, -1}}, int64[1] axes = {{2}}> {{
            h = Relu (x)
            [head] map = Conv (h, w, b)
            flat = Reshape (map, target)
            logits = ReduceMean <keepdims = 0> (flat, axes)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "1x1 conv before pooling, classes moved last": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits)
            <int64[2] axes = {{1, 2}}> {{
            h = Relu (x)
            [head] map = Conv (h, w, b)
            moved = Transpose <perm = [0, 2, 3, 1]> (map)
            logits = ReduceMean <keepdims = 0> (moved, axes)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "matmul on a map, positions flattened": HeadGraph(
        text=f"""{HEADER} g (float[batch, 3, 3, 4] x) => (float[batch, 5] logits)
            <int64[3] target = {{0, -1, 5}}, int64[1] axes = {{1}}> {{
            h = Relu (x)
            [head] product = MatMul (h, w)
            biased = Add (product, b)
            flat = Reshape (biased, target)
            logits = ReduceMean <keepdims = 0> (flat, axes)
        }}""",
        weights=lambda w, b: {"w": np.ascontiguousarray(w.T), "b": b},
        kind="matmul",
        image_shape=(3, 3, FEATURE_DIM),
    ),
    "1x1 conv before an average pool of the whole map": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 3, 3] x) => (float[batch, 5] logits) {{
            h = Relu (x)
            [head] map = Conv (h, w, b)
            pooled = AveragePool <kernel_shape = [3, 3]> (map)
            logits = Flatten (pooled)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None], "b": b},
        kind="conv",
        image_shape=(FEATURE_DIM, 3, 3),
    ),
    "cosine": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits)
            <float scale = {{16.0}}, float tiny = {{1e-12}}, int64[1] axes = {{1}}> {{
            length = ReduceL2 <keepdims = 1> (x, axes)
            guarded = Clip (length, tiny)
            same_shape = Shape (x)
            spread = Expand (guarded, same_shape)
            h = Div (x, spread)
            [head] cosine = MatMul (h, w)
            logits = Mul (cosine, scale)
        }}""",
        weights=lambda w, _: {"w": np.ascontiguousarray(unit(w).T)},
        kind="cosine",
        has_bias=False,
    ),
    "cosine, weight normalised in the graph, learned scale": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits)
            <float log_scale = {{2.0}}, int64[1] axes = {{1}}> {{
            h = LpNormalization <axis = 1, p = 2> (x)
            length = ReduceL2 <keepdims = 1> (w, axes)
            unit_rows = Div (w, length)
            [head] cosine = Gemm <transB = 1> (h, unit_rows)
            scale = Exp (log_scale)
            logits = Mul (scale, cosine)
        }}""",
        weights=lambda w, _: {"w": w},
        kind="cosine",
        has_bias=False,
    ),
    "cosine, constant margin left in": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits)
            <float scale = {{16.0}}, float margin = {{0.25}}, float two = {{2.0}}, int64[1] axes = {{1}}> {{
            squared = Pow (x, two)
            summed = ReduceSum <keepdims = 1> (squared, axes)
            length = Sqrt (summed)
            h = Div (x, length)
            [head] cosine = MatMul (h, w)
            held_back = Sub (cosine, margin)
            logits = Mul (held_back, scale)
        }}""",
        weights=lambda w, _: {"w": np.ascontiguousarray(unit(w).T)},
        kind="cosine",
    ),
    "softmax": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] scores) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w, b)
            scores = Softmax <axis = -1> (logits)
        }}""",
        weights=lambda w, b: {"w": w, "b": b},
        kind="gemm",
        after=softmax,
    ),
    "temperature and softmax on a map": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4, 1, 1] x) => (float[batch, 5] scores)
            <float temperature = {{0.5}}> {{
            h = Relu (x)
            [head] map = Conv (h, w, b)
            tempered = Div (map, temperature)
            probable = Softmax <axis = 1> (tempered)
            scores = Flatten (probable)
        }}""",
        weights=lambda w, b: {"w": w[:, :, None, None] / 2, "b": b / 2},
        kind="conv",
        image_shape=(FEATURE_DIM, 1, 1),
        after=softmax,
    ),
    "log-softmax": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] scores) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w, b)
            scores = LogSoftmax <axis = 1> (logits)
        }}""",
        weights=lambda w, b: {"w": w, "b": b},
        kind="gemm",
        after=log_softmax,
    ),
    "sigmoid": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] scores) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w, b)
            scores = Sigmoid (logits)
        }}""",
        weights=lambda w, b: {"w": w, "b": b},
        kind="gemm",
        after=sigmoid,
    ),
    "logits and probabilities": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] probabilities, float[batch, 5] logits) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w, b)
            probabilities = Softmax <axis = 1> (logits)
        }}""",
        weights=lambda w, b: {"w": w, "b": b},
        kind="gemm",
    ),
    "top 2": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 2] values, int64[batch, 2] choices)
            <int64[1] k = {{2}}> {{
            h = Relu (x)
            [head] scores = Gemm <transB = 1> (h, w, b)
            values, choices = TopK <axis = 1> (scores, k)
        }}""",
        weights=lambda w, b: {"w": w, "b": b},
        kind="gemm",
    ),
    "argmax": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (int64[batch] choices) {{
            h = Relu (x)
            [head] scores = MatMul (h, w)
            choices = ArgMax <axis = 1, keepdims = 0> (scores)
        }}""",
        weights=lambda w, _: {"w": np.ascontiguousarray(w.T)},
        kind="matmul",
        has_bias=False,
    ),
    "float16": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            half = Cast <to = 10> (x)
            h = Relu (half)
            [head] scores = Gemm <transB = 1> (h, w, b)
            logits = Cast <to = 1> (scores)
        }}""",
        weights=lambda w, b: {"w": w.astype(np.float16), "b": b.astype(np.float16)},
        kind="gemm",
        tolerance=4e-3,
    ),
    "int8, one scale": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits)
            <float x_scale = {{0.005}}, uint8 x_zero = {{0}}, int8 w_zero = {{0}}> {{
            stored = QuantizeLinear (x, x_scale, x_zero)
            h = DequantizeLinear (stored, x_scale, x_zero)
            rows = DequantizeLinear (w, w_scale, w_zero)
            bias = DequantizeLinear (b, b_scale)
            [head] logits = Gemm <transB = 1> (h, rows, bias)
        }}""",
        weights=lambda w, b: {
            "w": np.rint(w / (np.abs(w).max() / 127)).astype(np.int8),
            "w_scale": np.asarray(np.abs(w).max() / 127, dtype=np.float32),
            "b": np.rint(b / (np.abs(w).max() / 127 * 0.005)).astype(np.int32),
            "b_scale": np.asarray(np.abs(w).max() / 127 * 0.005, dtype=np.float32),
        },
        kind="gemm",
        tolerance=2e-3,
        quantized=True,
    ),
    "uint8, scale per row, quantized logits": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits)
            <float x_scale = {{0.005}}, uint8 x_zero = {{0}}, float y_scale = {{0.05}}, uint8 y_zero = {{128}}> {{
            stored = QuantizeLinear (x, x_scale, x_zero)
            h = DequantizeLinear (stored, x_scale, x_zero)
            rows = DequantizeLinear <axis = 1> (w, w_scale, w_zero)
            [head] product = MatMul (h, rows)
            biased = Add (product, b)
            stored_logits = QuantizeLinear (biased, y_scale, y_zero)
            logits = DequantizeLinear (stored_logits, y_scale, y_zero)
        }}""",
        weights=lambda w, b: {
            "w": np.ascontiguousarray(
                (np.rint(w / (np.abs(w).max(axis=1, keepdims=True) / 127)) + 128).astype(np.uint8).T
            ),
            "w_scale": (np.abs(w).max(axis=1) / 127).astype(np.float32),
            "w_zero": np.full(5, 128, dtype=np.uint8),
            "b": b,
        },
        kind="matmul",
        tolerance=0.03,
        quantized=True,
    ),
    "two linear layers, the last is the head": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits) {{
            hidden = Gemm <transB = 1> (x, inner, inner_bias)
            h = Relu (hidden)
            [head] logits = Gemm <transB = 1> (h, w, b)
        }}""",
        weights=lambda w, b: {
            "inner": np.eye(4, dtype=np.float32)[::-1].copy(),
            "inner_bias": np.ones(4, dtype=np.float32),
            "w": w,
            "b": b,
        },
        kind="gemm",
    ),
    "weight shared with another node": HeadGraph(
        text=f"""{HEADER} g (float[batch, 4] x) => (float[batch, 5] logits, float[batch, 4] again) {{
            h = Relu (x)
            [head] logits = Gemm <transB = 1> (h, w, b)
            code = MatMul (h, inner)
            decoded = MatMul (code, w)
            again = Relu (decoded)
        }}""",
        weights=lambda w, b: {"w": w, "b": b, "inner": np.ones((4, 5), dtype=np.float32)},
        kind="gemm",
    ),
}
