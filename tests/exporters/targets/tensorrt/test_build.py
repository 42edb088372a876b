"""Real engines of TensorRT-RTX, which builds them without a GPU, and the graphs that they are built from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import icis_deploy
from exporters.conversion.int8 import quantize_model
from exporters.graph.edits import apply_passes
from exporters.graph.required_slots import SlotsAsInputsPass
from exporters.head.expanded_head import expanded_head, seen_row_lengths
from exporters.head.finding import find_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.tensorrt.build import build_engine, known_capabilities
from exporters.targets.tensorrt.graph import SLOT_ROWS, RefittableSlotsPass, refittable_weights
from exporters.targets.tensorrt.symmetric_quantization import SymmetricQuantizationPass
from icis_deploy.api.models import OpenedModel
from icis_deploy.bundle.engine_sidecar import EngineInput, EngineOutput, model_sha256, parse_sidecar, this_platform
from icis_deploy.bundle.manifest import FEATURES, MODEL_NAME, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT, load_bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.bundle.target_options import EngineSettings
from icis_deploy.demo.network import PREPROCESSING, DemoNetwork, export_program
from icis_deploy.errors import EngineMismatchError, ExportError, GateFailedError, MissingDependencyError, UsageError
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.sessions.cuda_calls import load_cuda
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, TinyProject
from tests.exporters.head_graphs import GRAPHS, parsed_model, rows

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

CAPACITY = 8
ARCHITECTURES = ("8.0", "8.6", "8.9", "12.0")


@pytest.fixture(
    scope="module", params=["fused-fp32", "updatable-fp32", "updatable-fp16", "fused-int8", "updatable-int8"]
)
def bundle_folder(request: Any, tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine for every architecture from 8.0 on."""
    folder = tmp_path_factory.mktemp("bundle") / request.param
    head, precision = request.param.split("-")
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=CAPACITY if head == "updatable" else None,
            preprocess=tiny_project.preprocess,
            form=ModelForm(
                precision=precision, calibration_images=tiny_project.images if precision == "int8" else None
            ),
            targets=["tensorrt-rtx"],
        ),
        out=folder,
    )
    return folder


@pytest.fixture(scope="module")
def updatable(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of an updatable bundle whose slots hold random rows with arbiters."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    opened = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    update = icis_deploy.ClassUpdate(
        base_fingerprint=opened.head.fingerprint,
        rows=rng.normal(size=(3, FEATURE_DIM + 1)),
        added=("a", "b", "c"),
        arbiter=rng.normal(size=(3, 5)),
    )
    icis_deploy.export(
        opened,
        updates=[update],
        options=icis_deploy.ExportOptions(head="updatable", capacity=CAPACITY),
        out=folder / "bundle",
    )
    return folder / "bundle" / MODEL_NAME


def table_with_arbiter(num_rows: int) -> SlotTable:
    rng = np.random.default_rng(0)
    return SlotTable(
        weight=rng.normal(size=(num_rows, FEATURE_DIM)).astype(np.float32),
        bias=rng.normal(size=num_rows).astype(np.float32),
        class_names=tuple(f"new {index}" for index in range(num_rows)),
        arbiter=rng.normal(size=(num_rows, 5)).astype(np.float32),
    )


def in_int8(path: Path, out: Path) -> Path:
    """Quantize the backbone of the tiny model as an engine takes it."""
    model = load_onnx_file(path)
    images = np.random.default_rng(2).uniform(-1, 1, (8, 1, 3, 16, 16)).astype(np.float32)
    quantized = quantize_model(model, find_head(model), "image", lambda: iter(images)).model
    save_model(apply_passes(quantized, SymmetricQuantizationPass()), out)
    return out


def in_float16(path: Path, out: Path) -> Path:
    """Cast the backbone of the tiny model to float16 in the graph; input and outputs stay float32."""
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    half (float[batch, 3, 16, 16] image) => (float[batch, 40] logits) {
        half_image = Cast <to = 10> (image)
        maps = Conv <kernel_shape = [5, 5], strides = [3, 3]> (half_image, filters)
        positive = Relu (maps)
        pooled = GlobalAveragePool (positive)
        flat = Flatten (pooled)
        half_logits = Gemm <transB = 1> (flat, weight, bias)
        logits = Cast <to = 1> (half_logits)
    }
    """
    model = onnx.parser.parse_model(text)
    for tensor in onnx.load(path).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.checker.check_model(model)
    onnx.save(model, out)
    return out


# Engines in bundles.


def test_the_sidecar_states_versions_platform_hashes_shapes_and_ranges(bundle_folder):
    bundle = load_bundle(bundle_folder)
    sidecar = parse_sidecar((bundle_folder / "engines" / "tensorrt-rtx.json").read_bytes())

    assert (sidecar.runtime, sidecar.runtime_version) == ("tensorrt-rtx", trt.__version__)
    assert sidecar.platform == this_platform()
    assert set(ARCHITECTURES) <= set(sidecar.compute_capabilities)
    assert sidecar.model_sha256 == model_sha256(bundle)
    assert sidecar.engine_sha256 == bundle.files["engines/tensorrt-rtx.engine"].sha256
    assert sidecar.head_fingerprint == bundle.base_fingerprint
    assert sidecar.precision == bundle.precision
    image, *slots = sidecar.inputs
    assert image == EngineInput(
        name="image", dtype="float32", min_shape=(1, 3, 16, 16), opt_shape=(1, 3, 16, 16), max_shape=(32, 3, 16, 16)
    )
    if bundle.capacity:
        assert {each.name: each.max_shape for each in slots} == {
            SLOT_WEIGHT: (CAPACITY, FEATURE_DIM),
            SLOT_BIAS: (CAPACITY,),
            SLOT_ARBITER: (CAPACITY, 5),
        }
        assert all(each.min_shape == each.opt_shape == each.max_shape for each in slots)
        assert sidecar.outputs[-1] == EngineOutput(name=FEATURES, dtype="float32", shape=(-1, FEATURE_DIM))
    assert sidecar.outputs[0].shape == (-1, NUM_SEEN + bundle.capacity)
    assert sidecar.refittable == ()


def test_without_a_gpu_the_gate_says_that_it_did_not_run(tiny_project, tmp_path, no_gpu):
    built: list[Any] = []
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        options=icis_deploy.ExportOptions(targets=["tensorrt-rtx"]),
        on_target=built.append,
        out=tmp_path / "bundle",
    )

    assert built[0].reports == ()
    assert built[0].reason.startswith("the gate did not run: There is no NVIDIA GPU that can be used here: ")


def test_the_graph_of_an_int8_engine_passes_the_gate_in_its_place(tiny_project, tmp_path, no_gpu, monkeypatch):
    built: list[Any] = []
    options = icis_deploy.ExportOptions(
        preprocess=tiny_project.preprocess,
        form=ModelForm(precision="int8", calibration_images=tiny_project.images),
        targets=["tensorrt-rtx"],
    )
    settings = {"classes": tiny_project.classes, "options": options, "on_target": built.append}
    icis_deploy.export(tiny_project.model, out=tmp_path / "bundle", **settings)
    assert [report.passed for report in built[0].reports] == [True] * 3
    assert all(report.compared_with.endswith("; the graph of tensorrt-rtx") for report in built[0].reports)
    assert built[0].reports[0].accuracy is not None
    assert built[0].reason.startswith("the gate ran on its graph in ONNX Runtime alone: There is no NVIDIA GPU")

    monkeypatch.setattr("exporters.targets.tensorrt.symmetric_quantization._add_relu", lambda *_: None)
    reason = r"not passed by tensorrt-rtx: .*the layers that add most noise are \S+ \(exact in, \d+ dB out\)"
    with pytest.raises(GateFailedError, match=reason):
        icis_deploy.export(tiny_project.model, out=tmp_path / "wrong", **settings)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.gpu
def test_an_int8_engine_passes_the_gate_on_a_gpu(tiny_project, tmp_path):
    try:
        load_cuda()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    built: list[Any] = []
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        options=icis_deploy.ExportOptions(
            preprocess=tiny_project.preprocess,
            form=ModelForm(precision="int8", calibration_images=tiny_project.images),
            targets=["tensorrt-rtx"],
        ),
        on_target=built.append,
        out=tmp_path / "bundle",
    )
    assert built[0].reason is None
    assert [report.passed for report in built[0].reports] == [True] * 5
    assert built[0].reports[3].compared_with.endswith("; the bundle in tensorrt-rtx")


@pytest.mark.parametrize(("runtime", "extra"), [("tensorrt", r"deploy\[tensorrt\]"), ("tensorrt-rtx", "NVIDIA GPU")])
def test_opening_an_engine_says_what_this_machine_lacks(runtime, extra, bundle_folder, no_gpu):
    with pytest.raises(MissingDependencyError, match=extra):
        icis_deploy.Device.open(bundle_folder, runtime=runtime)


@pytest.mark.parametrize(
    ("field", "value"),
    [("runtime_version", "1.0.0.1"), ("platform", "win32-amd64"), ("head_fingerprint", "0" * 64)],
)
def test_an_engine_of_another_version_is_refused_before_its_bytes_are_read(field, value, bundle_folder, tmp_path):
    from tests.exporters.engines import bundle_with_sidecar

    folder = bundle_with_sidecar(bundle_folder, tmp_path / "other", **{field: value})
    with pytest.raises(EngineMismatchError, match=rf"^The tensorrt-rtx engine .*: {field} is {value}, here .*Build it"):
        icis_deploy.Device.open(folder, runtime="tensorrt-rtx")


# The builder.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("head", ["fused", "fused with an arbiter", "updatable", "updatable with an arbiter"])
def test_engines_are_built_for_every_architecture_head_and_precision(
    architecture, precision, head, tiny_project, tmp_path
):
    model = tiny_project.model
    if precision == "fp16":
        model = in_float16(model, tmp_path / "half.onnx")
    if precision == "int8":
        model = in_int8(model, tmp_path / "int8.onnx")
    loaded = load_onnx_file(model)
    location = find_head(loaded)
    edits = {
        "fused": [],
        "fused with an arbiter": [FuseHeadPass(location, expanded_head(loaded, location, [table_with_arbiter(3)]))],
        "updatable": [AddSlotsPass(location, CAPACITY), SlotsAsInputsPass()],
        "updatable with an arbiter": [
            AddSlotsPass(location, CAPACITY, seen_row_lengths(loaded, location)),
            SlotsAsInputsPass(),
        ],
    }[head]
    if edits:
        save_model(apply_passes(loaded, *edits), model := tmp_path / "edited.onnx")
    settings = EngineSettings(compute_capabilities=(architecture,), min_batch=1, opt_batch=4, max_batch=8)
    built = build_engine(trt, model, settings)

    assert len(built.data) > 50_000
    assert built.compute_capabilities == (architecture,)
    assert built.inputs[0].max_shape == (8, 3, 16, 16)
    slots = {"updatable": [SLOT_WEIGHT, SLOT_BIAS], "updatable with an arbiter": [SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER]}
    assert [each.name for each in built.inputs[1:]] == slots.get(head, [])
    assert {each.dtype for each in (*built.inputs, *built.outputs)} == {"float32"}
    num_new = CAPACITY if head in slots else 3 if head == "fused with an arbiter" else 0
    assert built.outputs[0].shape == (-1, NUM_SEEN + num_new)


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """The network of `icis-deploy demo`, untrained, as it leaves torch."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    export_program(DemoNetwork(num_classes=NUM_SEEN), folder / "model.pt2")
    (folder / "classes.txt").write_text("\n".join(f"class {index}" for index in range(NUM_SEEN)))
    return icis_deploy.inspect(folder / "model.pt2", classes=folder / "classes.txt")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_engines_come_of_the_demos_network(head, precision, demo_model, tmp_path):
    bundle = icis_deploy.export(
        demo_model,
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=CAPACITY if head == "updatable" else None,
            preprocess=PREPROCESSING,
            form=ModelForm(precision=precision),
            targets=["tensorrt-rtx"],
        ),
        out=tmp_path / "bundle",
    )
    sidecar = parse_sidecar((tmp_path / "bundle" / "engines" / "tensorrt-rtx.json").read_bytes())
    assert set(ARCHITECTURES) <= set(sidecar.compute_capabilities)
    assert (sidecar.precision, sidecar.model_sha256) == (precision, model_sha256(bundle))
    slots = [SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER] if head == "updatable" else []
    assert [each.name for each in sidecar.inputs] == [bundle.model_input.name, *slots]
    assert sidecar.inputs[0].max_shape == (32, *bundle.model_input.shape)
    assert sidecar.outputs[0].shape == (-1, NUM_SEEN + bundle.capacity)


def test_the_convolutions_of_an_int8_engine_compute_in_int8(tiny_project, tmp_path):
    """Read in the build log: Q/DQ nodes that TensorRT does not fuse build as well, and compute in floats."""
    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # the library asks for a subclass
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, _severity: Any, message: str) -> None:
            lines.extend(message.splitlines())

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse_from_file(str(in_int8(tiny_project.model, tmp_path / "int8.onnx")))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((batch, 3, 16, 16) for batch in (1, 1, 8)))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(known_capabilities(trt)["8.6"], 0)
    assert builder.build_serialized_network(network, config) is not None

    given = [line.split("Outputs:")[0] for line in lines if "LayerType: correlation" in line]
    assert [set(re.findall(r"Name: [^}]*\[[^]]*,[^]]*5,5\][^}]*Datatype: (\w+)", line)) for line in given] == [{"Int8"}]


def test_a_model_with_a_fixed_batch_keeps_it(tmp_path):
    text = '<ir_version: 10, opset_import: ["": 20]> m (float[2, 4] x) => (float[2, 4] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    built = build_engine(trt, tmp_path / "m.onnx", EngineSettings(compute_capabilities=("8.6",)))

    assert (built.inputs[0].min_shape, built.inputs[0].max_shape) == ((2, 4), (2, 4))


def test_a_range_of_batches_is_refused_where_the_model_takes_one_alone(tmp_path):
    text = '<ir_version: 10, opset_import: ["": 20]> m (float[2, 4] x) => (float[2, 4] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(
        UsageError, match=r"^The model takes batches of 2 alone, so the engine cannot take 1 to 8\. Leave"
    ):
        build_engine(trt, tmp_path / "m.onnx", EngineSettings(max_batch=8))

    same = EngineSettings(min_batch=2, opt_batch=2, max_batch=2, compute_capabilities=("8.6",))
    assert build_engine(trt, tmp_path / "m.onnx", same).inputs[0].max_shape == (2, 4)


def test_an_input_whose_size_is_open_is_an_error(tmp_path):
    text = '<ir_version: 10, opset_import: ["": 20]> m (float[b, w] x) => (float[b, w] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")

    with pytest.raises(UsageError, match=r"^The input 'x' has the shape \(-1, -1\); an engine needs every size but"):
        build_engine(trt, tmp_path / "m.onnx", EngineSettings())


def test_an_operator_that_the_parser_refuses_is_named_with_its_node_and_the_reason(tmp_path):
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="odd_one", domain="org.example")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "m", [value("x", TensorProto.FLOAT, ["b", 4])], [value("y", TensorProto.FLOAT, ["b", 4])]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("org.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")

    with pytest.raises(
        ExportError, match=r"^TensorRT's parser refused the node 'odd_one' \(Frobnicate\): .*\. 1 errors"
    ):
        build_engine(trt, tmp_path / "m.onnx", EngineSettings())


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_a_model_that_was_quantized_for_cpus_says_what_to_give_instead(head, tmp_path):
    kind = GRAPHS["int8, one scale"]
    save_model(parsed_model(kind.text, **kind.weights(*rows(0))), tmp_path / "model.onnx")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")

    with pytest.raises(
        ExportError, match=r"^TensorRT's parser refused .* Export the float model .* `precision='int8'`\."
    ):
        icis_deploy.export(
            tmp_path / "model.onnx",
            classes=tmp_path / "classes.txt",
            options=icis_deploy.ExportOptions(
                head=head, capacity=4 if head == "updatable" else None, targets=["tensorrt-rtx"]
            ),
            out=tmp_path / "bundle",
        )

    assert not (tmp_path / "bundle").exists()


def test_a_build_that_fails_says_why_in_the_librarys_own_words(tiny_project):
    with pytest.raises(ExportError, match=r"^tensorrt_rtx \S+ could not build the engine: .*Turing"):
        build_engine(trt, tiny_project.model, EngineSettings(compute_capabilities=("7.5",)))


def test_an_architecture_that_the_library_does_not_know_is_an_error_that_lists_those_it_does(tiny_project):
    with pytest.raises(UsageError, match=r"does not build for the compute capability 9\.0; it knows .*8\.6.*12\.0"):
        build_engine(trt, tiny_project.model, EngineSettings(compute_capabilities=("9.0",)))
    assert set(ARCHITECTURES) <= set(known_capabilities(trt))


def test_batches_out_of_order_are_an_error():
    with pytest.raises(UsageError, match=r"^The batches 1, 8, 4 are not in order"):
        EngineSettings(opt_batch=8, max_batch=4)


def test_a_workspace_limit_reaches_the_builder(tiny_project, monkeypatch):
    limits = []
    real = trt.IBuilderConfig.set_memory_pool_limit
    monkeypatch.setattr(
        trt.IBuilderConfig,
        "set_memory_pool_limit",
        lambda config, pool, size: (limits.append((pool, size)), real(config, pool, size)),
    )
    build_engine(trt, tiny_project.model, EngineSettings(compute_capabilities=("8.6",), workspace_bytes=1 << 28))

    assert limits == [(trt.MemoryPoolType.WORKSPACE, 1 << 28)]


# The graphs.


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_slots_as_inputs_have_no_default_and_a_fixed_shape(updatable, tmp_path):
    save_model(apply_passes(load_onnx_file(updatable), SlotsAsInputsPass()), tmp_path / "inputs.onnx")
    graph = onnx.load(tmp_path / "inputs.onnx").graph

    names = [SLOT_WEIGHT, SLOT_BIAS, SLOT_ARBITER]
    assert [value.name for value in graph.input] == ["image", *names]
    assert not set(names) & {tensor.name for tensor in graph.initializer}
    images = np.random.default_rng(1).normal(size=(5, 3, 16, 16)).astype(np.float32)
    slots = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(updatable).graph.initializer}
    feeds = {"image": images, **{name: slots[name] for name in names}}
    for found, expected in zip(run(tmp_path / "inputs.onnx", feeds), run(updatable, {"image": images}), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_refittable_slots_are_one_weight_with_the_bias_in_it_and_one_of_arbiters_and_give_the_same_logits(
    updatable, tmp_path
):
    save_model(apply_passes(load_onnx_file(updatable), RefittableSlotsPass()), tmp_path / "refit.onnx")
    graph = onnx.load(tmp_path / "refit.onnx").graph

    assert [value.name for value in graph.input] == ["image"]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert shapes[SLOT_ROWS] == (FEATURE_DIM + 1, CAPACITY)
    assert shapes[SLOT_ARBITER] == (5, CAPACITY)
    images = np.random.default_rng(1).normal(size=(5, 3, 16, 16)).astype(np.float32)
    found, expected = (run(path, {"image": images}) for path in (tmp_path / "refit.onnx", updatable))
    np.testing.assert_array_equal(found[0][:, :NUM_SEEN], expected[0][:, :NUM_SEEN])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


def test_only_the_slots_rows_and_arbiters_are_marked_refittable(updatable, tmp_path):
    refittable = apply_passes(load_onnx_file(updatable), RefittableSlotsPass())
    save_model(refittable, path := tmp_path / "refit.onnx")
    assert refittable_weights(refittable) == (SLOT_ROWS, SLOT_ARBITER)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse_from_file(str(path))

    for name in refittable_weights(refittable):
        assert network.mark_weights_refittable(name)
        assert network.are_weights_marked_refittable(name)
    assert not network.are_weights_marked_refittable("weight")


def test_a_weight_that_the_network_does_not_have_cannot_be_made_refittable(tiny_project):
    with pytest.raises(ExportError, match=r"^TensorRT knows no weight 'slot_rows' that could be refitted"):
        build_engine(trt, tiny_project.model, EngineSettings(), refittable=[SLOT_ROWS])


@pytest.mark.parametrize("edit", [SlotsAsInputsPass(), RefittableSlotsPass()])
def test_a_model_without_slots_cannot_be_given_them(edit, tiny_project):
    with pytest.raises(UsageError, match=r"^The model has no slots, so there is nothing to refit or to feed\."):
        apply_passes(load_onnx_file(tiny_project.model), edit)
