"""Exports in other precisions: what is converted, what stays float32, and what the gate says of a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import icis_deploy
from exporters.conversion import fp16 as fp16_precision
from exporters.conversion import int8 as int8_precision
from exporters.conversion.bias_correction import correct_biases, rounding_error
from exporters.conversion.fp16 import convert_to_float16, overflowing_nodes
from exporters.conversion.int8 import quantize_model
from exporters.conversion.layer_errors import worst_layers
from exporters.head.finding import find_head, read_head
from exporters.onnx_io.files import save_model
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import GateFailedError, IncompatibleError, UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.loading import load_image_list
from icis_deploy.runtime.device import Device
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, TinyProject
from tests.exporters.head_graphs import GRAPHS, parsed_model, rows, run_model

DEEP = """
<ir_version: 10, opset_import: ["": 20]>
deep (float[batch, 3, 8, 8] x) => (float[batch, 5] logits) {
    [first] a = Conv <kernel_shape = [3, 3]> (x, w0, b0)
    ra = Relu (a)
    [middle] m = Conv <kernel_shape = [3, 3], group = 8> (ra, w1, b1)
    rm = Relu (m)
    pooled = GlobalAveragePool (rm)
    flat = Flatten (pooled)
    [head] logits = Gemm <transB = 1> (flat, w, b)
}
"""


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


@pytest.fixture(scope="module")
def update(opened: OpenedModel) -> ClassUpdate:
    rows = np.random.default_rng(5).normal(size=(2, FEATURE_DIM + 1))
    return ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=("okapi", "quagga"))


def deep_model(seed: int = 0, *, gain: float = 1.0) -> ir.Model:
    rng = np.random.default_rng(seed)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w": (5, 8), "b": (5,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return parsed_model(DEEP, **{**weights, "w1": weights["w1"] * np.float32(gain)})


def batches(num: int = 8, seed: int = 1):
    images = np.random.default_rng(seed).uniform(0, 1, (num, 3, 8, 8)).astype(np.float32)
    return lambda: iter(images[:, None])


def form_for(precision: str, project: TinyProject) -> ModelForm:
    return ModelForm(precision=precision, calibration_images=project.images if precision == "int8" else None)


@pytest.mark.parametrize("head", ["fused", "updatable"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_in_another_precision_passes_its_gate_and_says_so(
    precision: str, head: str, opened: OpenedModel, update: ClassUpdate, tiny_project: TinyProject, tmp_path: Path
) -> None:
    bundle = icis_deploy.export(
        opened,
        updates=[update],
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=8 if head == "updatable" else None,
            preprocess=tiny_project.preprocess,
            form=form_for(precision, tiny_project),
        ),
        out=tmp_path / "bundle",
    )
    assert bundle.precision == precision
    # On its own features a head must be exact: the error of a precision is in the backbone.
    own = {"fp16": "fp16 head", "int8": "fp32"}[precision]
    assert [report["profile"]["name"] for report in bundle.parity] == [precision, precision, own]
    device = Device.open(tmp_path / "bundle")
    assert device.bundle.precision == precision
    assert device.logits(np.zeros((1, 3, 16, 16), np.float32)).values.shape == (1, NUM_SEEN + 2)
    reports = icis_deploy.verify(tmp_path / "bundle", against=tiny_project.model, images=tiny_project.images)
    assert all(report.passed for report in reports)
    assert (reports[0].accuracy is not None) == (precision == "int8")


def test_int8_leaves_the_head_as_it_was_and_makes_the_backbone_integers() -> None:
    model = deep_model()
    location = find_head(model)
    names = [f"class{index}" for index in range(5)]
    quantized = quantize_model(model, location, "x", batches())
    assert read_head(quantized.model, location, names) == read_head(model, location, names)
    weights = {value.dtype for value in quantized.model.graph.initializers.values() if (value.shape or [0])[0] == 8}
    assert ir.DataType.INT8 in weights
    images = next(batches(1)())
    expected, found = run_model(model, x=images)["logits"], run_model(quantized.model, x=images)["logits"]
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_notes_of_the_exporter_do_not_go_into_an_int8_backbone() -> None:
    model = deep_model()
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/somebody/model.py, line 7"
    quantized = quantize_model(model, find_head(model), "x", batches()).model
    head = find_head(quantized).node_name
    assert not [node.name for node in quantized.graph if node.metadata_props and node.name != head]


def test_the_last_layer_before_the_head_gives_floats() -> None:
    quantized = quantize_model(deep_model(), find_head(deep_model()), "x", batches())
    last = quantized.model.graph.outputs[0].producer()
    assert last is not None
    kinds = []
    value = last.inputs[0]
    while value is not None and (node := value.producer()) is not None and len(kinds) < 2:
        kinds.append(node.op_type)
        value = node.inputs[0]
    assert kinds == ["Flatten", "GlobalAveragePool"]


TRANSFORMER = """
<ir_version: 10, opset_import: ["": 20]>
transformer (float[batch, 4, 8] x) => (float[batch, 5] logits) {
    n = LayerNormalization <axis = -1> (x, gain, shift)
    [values] v = MatMul (n, w0)
    t = Transpose <perm = [0, 2, 1]> (n)
    [scores] s = MatMul (n, t)
    weights = Softmax <axis = -1> (s)
    [attention] a = MatMul (weights, v)
    [residual] r = Add (x, a)
    m = LayerNormalization <axis = -1> (r, gain, shift)
    [wide] p = MatMul (m, w1)
    pooled = ReduceMean <keepdims = 0> (p, axis)
    [head] logits = Gemm <transB = 1> (pooled, w, b)
}
"""


def transformer_model(text: str = TRANSFORMER) -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w0": (8, 8), "w1": (8, 8), "w": (5, 8), "b": (5,)}
    return parsed_model(
        text,
        **{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        gain=np.ones(8, np.float32),
        shift=np.zeros(8, np.float32),
        axis=np.array([1], np.int64),
    )


def token_batches() -> np.ndarray:
    tokens = np.random.default_rng(1).normal(size=(32, 1, 4, 8)).astype(np.float32)
    tokens[:, :, 1:] *= (
        100  # the first token is small compared with the others, as one that stands for the class may be
    )
    return tokens


WRITTEN_OUT = """
    mean{0} = ReduceMean <axes = [-1]> ({1})
    from_mean{0} = Sub ({1}, mean{0})
    square{0} = Pow (from_mean{0}, two)
    variance{0} = ReduceMean <axes = [-1]> (square{0})
    guarded{0} = Add (variance{0}, tiny)
    deviation{0} = Sqrt (guarded{0})
    unit{0} = Div (from_mean{0}, deviation{0})
    scaled{0} = Mul (unit{0}, gain)
    {0} = Add (scaled{0}, shift)
"""
MIXER = f"""
<ir_version: 8, opset_import: ["": 13]>
mixer (float[batch, 4, 8] x) => (float[batch, 5] logits) <float two = {{2.0}}, float tiny = {{1e-5}}> {{
    {WRITTEN_OUT.format("n", "x")}
    [values] v = MatMul (n, w0)
    [attention] a = Mul (v, v)
    [residual] r = Add (x, a)
    {WRITTEN_OUT.format("m", "r")}
    [wide] q = MatMul (m, w1)
    pooled = ReduceMean <axes = [1], keepdims = 0> (q)
    [head] logits = Gemm <transB = 1> (pooled, w, b)
}}
"""
"""No Softmax, and a LayerNormalization as exporters write it below opset 17."""


@pytest.mark.parametrize("text", [TRANSFORMER, MIXER], ids=["transformer", "mixer, normalisation written out"])
def test_a_transformer_keeps_floats_between_its_products_with_weights(text: str) -> None:
    model, tokens = transformer_model(text), token_batches()
    transformer = quantize_model(model, find_head(model), "x", lambda: iter(tokens))
    quantized = transformer.model
    sources = {
        str(node.name): [value.producer().op_type if value.producer() else "" for value in node.inputs]
        for node in quantized.graph
        if node.name in {"values", "attention", "residual", "wide"}
    }
    assert sources["values"] == sources["wide"] == ["DequantizeLinear"] * 2
    assert "DequantizeLinear" not in sources["attention"] + sources["residual"]
    # What gives floats is looked at too, where a transformer is rejected.
    named = [layer.name for layer in worst_layers(transformer, iter(tokens), limit=5)]
    assert {"values", "wide"} <= set(named)
    expected, found = (run_model(each, x=tokens[:, 0])["logits"] for each in (model, quantized))
    assert np.abs(found - expected).std() < 0.02 * expected.std()


def test_images_that_the_model_standardises_itself_leave_a_network_of_convolutions_in_integers() -> None:
    standardised = """mean = ReduceMean <axes = [1, 2, 3]> (x)
    from_mean = Sub (x, mean)
    square = Mul (from_mean, from_mean)
    variance = ReduceMean <axes = [1, 2, 3]> (square)
    deviation = Sqrt (variance)
    given = Div (from_mean, deviation)
    """
    weights = {name: value.const_value.numpy() for name, value in deep_model().graph.initializers.items()}
    text = DEEP.replace('"": 20', '"": 13').replace("[first]", f"{standardised}[first]").replace("(x, w0", "(given, w0")
    model = parsed_model(text, **weights)

    quantized = quantize_model(model, find_head(model), "x", batches()).model

    relu = next(node for node in quantized.graph if node.op_type == "Conv" and node.name == "middle").inputs[0]
    assert relu is not None
    assert relu.producer().op_type == "DequantizeLinear"


def test_norms_that_share_a_bias_do_not_keep_a_network_from_int8() -> None:
    """ONNX Runtime copies the shared bias `v` as `v0`, which is the name of a value here."""
    weights = {name: value.const_value.numpy() for name, value in deep_model().graph.initializers.items()}
    norms = "n = InstanceNormalization (a, g, v) v0 = InstanceNormalization (n, g, v) ra = Relu (v0)"
    text = DEEP.replace("ra = Relu (a)", norms)
    model = parsed_model(text, **weights, g=np.ones(8, np.float32), v=np.zeros(8, np.float32))

    quantized = quantize_model(model, find_head(model), "x", batches()).model

    images = next(batches(1)())
    expected, found = run_model(model, x=images)["logits"], run_model(quantized, x=images)["logits"]
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_bias_correction_takes_out_the_mean_error_of_rounded_weights() -> None:
    model = deep_model()
    plain = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    inputs = np.concatenate(list(batches(32)()))
    mean = inputs.mean(axis=(0, 2, 3))
    assert correct_biases(model, iter(inputs[:, None])) == 3
    corrected = model.graph.node("first").inputs[2].const_value.numpy()
    expected = plain["b0"] + (rounding_error(plain["w0"], 0).sum(axis=(2, 3)) * mean).sum(axis=1)
    np.testing.assert_allclose(corrected, expected, rtol=1e-5)


def test_the_layer_whose_weights_are_hard_to_round_is_named_first() -> None:
    model = deep_model()
    weight = model.graph.initializers["w1"]
    array = weight.const_value.numpy().copy()
    array[:, 0, 1, 1] *= 300  # one weight takes the whole range, and the others are rounded away
    weight.const_value = ir.Tensor(array, name="w1")
    quantized = quantize_model(model, find_head(model), "x", batches())
    assert worst_layers(quantized, batches()(), limit=2)[0].name == "middle"


def test_fp16_keeps_inputs_and_outputs_float32_and_sensitive_operators_too() -> None:
    text = DEEP.replace("float[batch, 5] logits", "float[batch, 5] scores").replace(
        "(flat, w, b)\n", "(flat, w, b)\n    scores = Softmax (logits)\n"
    )
    model = parsed_model(text, **{name: v.const_value.numpy() for name, v in deep_model().graph.initializers.items()})
    halved = convert_to_float16(model, batches())
    assert halved.graph.inputs[0].dtype == halved.graph.outputs[0].dtype == ir.DataType.FLOAT
    types = {
        node.op_type: node.outputs[0].dtype for node in halved.graph if node.op_type in {"Conv", "Gemm", "Softmax"}
    }
    assert types == {"Conv": ir.DataType.FLOAT16, "Gemm": ir.DataType.FLOAT16, "Softmax": ir.DataType.FLOAT}


def test_weights_that_stay_float32_in_fp16_are_stated_so() -> None:
    """With a wrong type in it, shape inference leaves the whole graph as it is, and other tools refuse it."""
    model = transformer_model()

    halved = ir.to_proto(convert_to_float16(model, lambda: iter(token_batches())))

    onnx.checker.check_model(halved, full_check=True)
    stored = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    assert stored["gain"] == onnx.TensorProto.FLOAT
    assert stored["w1"] == onnx.TensorProto.FLOAT16
    stated = {value.name: value.type.tensor_type.elem_type for value in halved.graph.value_info}
    assert all(stated.get(name, data_type) == data_type for name, data_type in stored.items())


def test_nodes_that_would_overflow_in_fp16_stay_float32() -> None:
    model = deep_model(gain=1e5)
    kept = overflowing_nodes(model, batches())
    assert "middle" in kept
    assert "first" not in kept
    images = next(batches(1)())
    expected, found = (
        run_model(model, x=images)["logits"],
        run_model(convert_to_float16(model, batches()), x=images)["logits"],
    )
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-2 * np.abs(expected).max())


def test_nodes_whose_values_are_no_numbers_stay_float32_with_the_greatest_ones_beside_them() -> None:
    """A NaN may be masked later on, and must not hide what overflows in the same value."""
    model = parsed_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[batch, 4] x) => (float[batch, 5] logits) {
            [root] r = Sqrt (x)
            [quiet] q = Relu (x)
            s = Add (r, q)
            [head] logits = Gemm <transB = 1> (s, w, b)
        }
        """,
        w=rows(0)[0][:5, :4],
        b=rows(0)[1][:5],
    )
    loud = np.float32([[-1.0, 1.0, 2.0, 3.0]])

    assert "root" in overflowing_nodes(model, lambda: iter([loud]))
    assert "quiet" not in overflowing_nodes(model, lambda: iter([loud]))
    assert overflowing_nodes(model, lambda: iter([np.abs(loud)])) == []


def test_an_overflow_in_fp16_is_rejected_and_named(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = inspect(tiny_project.model).loaded.model
    filters = loaded.graph.initializers["filters"]
    filters.const_value = ir.Tensor(filters.const_value.numpy() * np.float32(1e4), name="filters")
    weight = loaded.graph.initializers["weight"]
    weight.const_value = ir.Tensor(weight.const_value.numpy() / np.float32(1e4), name="weight")
    path = tmp_path / "loud.onnx"
    ir.save(loaded, path)
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess, form=ModelForm(precision="fp16"))
    icis_deploy.export(path, classes=tiny_project.classes, out=tmp_path / "kept", options=options)
    monkeypatch.setattr(fp16_precision, "overflowing_nodes", lambda *_: [])
    with pytest.raises(GateFailedError, match="the exported model gives a NaN or an infinity"):
        icis_deploy.export(path, classes=tiny_project.classes, out=tmp_path / "bundle", options=options)
    assert not (tmp_path / "bundle").exists()
    assert json.loads((tmp_path / "bundle.rejected" / "parity.json").read_text())[0]["max_scaled_error"] is None


def test_an_int8_export_that_loses_accuracy_is_rejected_with_the_layers_that_hurt_most(
    opened: OpenedModel, tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = int8_precision._quantized

    def blurred(prepared: ir.Model, *arguments: object) -> ir.Model:
        filters = next(node for node in prepared.graph if node.op_type == "Conv").inputs[1]
        filters.const_value = ir.Tensor(np.maximum(filters.const_value.numpy(), 0), name=filters.name)
        return real(prepared, *arguments)

    icis_deploy.export(
        opened,
        options=icis_deploy.ExportOptions(preprocess=tiny_project.preprocess),
        out=tmp_path / "fp32",
    )
    files = load_image_list(tiny_project.images).paths
    answers = Device.open(tmp_path / "fp32").predict(files, top=1)
    rows = [f"{file},{answer.class_names[0]}" for file, answer in zip(files, answers, strict=True)]
    (tmp_path / "labelled.csv").write_text("\n".join(["file,class", *rows]))
    monkeypatch.setattr(int8_precision, "_quantized", blurred)
    with pytest.raises(GateFailedError, match=r"accuracy on seen classes is kept.*the layers that add most noise are"):
        icis_deploy.export(
            opened,
            options=icis_deploy.ExportOptions(
                preprocess=tiny_project.preprocess,
                form=ModelForm(precision="int8", calibration_images=tmp_path / "labelled.csv"),
            ),
            out=tmp_path / "bundle",
        )
    assert (tmp_path / "bundle.rejected" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int8"}, r"Give an image list .* as `calibration_images`"),
        (
            {"precision": "fp16", "calibration_images": "list.csv"},
            r"for int8 only; the precision is fp16\. Give `precision='int8'`",
        ),
        ({"precision": "int4"}, r"no precision 'int4'; choose among fp32, fp16, int8"),
    ],
)
def test_a_form_that_does_not_go_together_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelForm(**settings)


def test_a_model_that_is_float16_already_is_refused() -> None:
    halved = convert_to_float16(deep_model(), batches())
    with pytest.raises(IncompatibleError, match=r"is not float32: its node .* is half precision.*`precision='fp32'`"):
        convert_to_float16(halved, batches())
    with pytest.raises(IncompatibleError, match="is not float32"):
        quantize_model(halved, find_head(halved), "x", batches())


NARROW_HEADS = [
    "float16",
    "int8, one scale",
    "int8, one scale, opset 13",
    "uint8, scale per row, quantized logits",
    "uint8, scale per row, quantized logits, opset 13",
]


@pytest.mark.parametrize("capacity", [None, 8])
@pytest.mark.parametrize("kind", NARROW_HEADS)
def test_a_head_of_fewer_bits_is_exported_as_it_is(kind: str, capacity: int | None, tmp_path: Path) -> None:
    text, is_old = GRAPHS[kind.removesuffix(", opset 13")].text, kind.endswith("13")
    weights = GRAPHS[kind.removesuffix(", opset 13")].weights(*rows(0))
    model = parsed_model(text.replace('"": 20', '"": 13') if is_old else text, **weights)
    save_model(model, tmp_path / "model.onnx")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    opened = inspect(tmp_path / "model.onnx", classes=tmp_path / "classes.txt")
    added = np.random.default_rng(7).normal(size=(2, 5))
    update = ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=added, added=("okapi", "quagga"))

    bundle = icis_deploy.export(
        opened,
        updates=[update],
        options=icis_deploy.ExportOptions(head="fused" if capacity is None else "updatable", capacity=capacity),
        out=tmp_path / "bundle",
    )

    profiles = {report["profile"]["name"] for report in bundle.parity}
    assert profiles == {"fp16 head" if kind == "float16" else "int8 head"}
    assert Device.open(tmp_path / "bundle").classes()[-2:] == ("okapi", "quagga")


def test_scores_that_are_rounded_before_and_after_a_softmax_are_given_as_they_are(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 13, "com.microsoft": 1]> g (float[batch, 4] x) => (float[batch, 5] y)
        <float step = {0.004}, uint8 zero = {0}, float wide = {0.1}, uint8 middle = {128}> {
        h = Relu (x)
        [head] logits = Gemm <transB = 1> (h, w, b)
        rounded = QuantizeLinear (logits, wide, middle)
        stored = com.microsoft.QLinearSoftmax <axis = 1, opset = 13> (rounded, wide, middle, step, zero)
        y = DequantizeLinear (stored, step, zero)
    }"""
    save_model(parsed_model(text, **GRAPHS["gemm"].weights(*rows(0))), tmp_path / "model.onnx")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    icis_deploy.export(tmp_path / "model.onnx", classes=tmp_path / "classes.txt", out=tmp_path / "bundle")
    images = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    given = run_model(ir.load(tmp_path / "bundle" / "model.onnx"), x=images)["y"]
    weights = GRAPHS["gemm"].weights(*rows(0))
    logits = np.maximum(images, 0) @ weights["w"].T + weights["b"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_a_backbone_in_which_nothing_takes_integers_is_refused() -> None:
    """As one that ONNX Runtime has optimized, whose quantizer does not know what it makes of convolutions."""
    weights = {name: value.const_value.numpy() for name, value in deep_model().graph.initializers.items()}
    text = DEEP.replace('"": 20', '"": 20, "com.microsoft": 1').replace("= Conv", "= com.microsoft.FusedConv")
    model = parsed_model(text, **weights)

    with pytest.raises(IncompatibleError, match=r"No layer .* takes integers; its operators are .*FusedConv"):
        quantize_model(model, find_head(model), "x", batches())
