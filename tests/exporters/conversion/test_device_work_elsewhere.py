"""Pixels in and choices out in OpenVINO and in TensorRT-RTX, which answer as ONNX Runtime does.

Engines are real. Without a GPU, what the session does with them runs on the fake one, which computes the graph that
TensorRT was given.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import icis_deploy
from exporters.gate import gate as parity_gate
from exporters.graph.edits import apply_passes
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.tensorrt.graph import graph_for_tensorrt
from exporters.targets.tensorrt.target import ENGINE_REWRITES
from icis_deploy.bundle.engine_sidecar import EngineInput, EngineOutput, parse_sidecar
from icis_deploy.bundle.manifest import (
    FEATURES,
    MODEL_NAME,
    SLOT_ARBITER,
    SLOT_BIAS,
    SLOT_WEIGHT,
    TOP_CLASS_IDS,
    TOP_PROBABILITIES,
    Bundle,
)
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import GateFailedError, IncompatibleError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.loading import load_image_list
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.sessions import tensorrt_engine as engine_loading
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.sessions.cuda_calls import CudaCalls
from icis_deploy.updates.envelope import save_update
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, SIDE, TinyProject
from tests.exporters.conversion.test_device_work import update_for, with_tail
from tests.icis_deploy.runtime.fake_gpu import FakeCuda, FakeTensorRT

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")

CAPACITY, TOP = 4, 5


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle with files for both runtimes, which takes pixels and chooses classes."""

    folder: Path
    bundle: Bundle
    project: TinyProject

    @property
    def files(self) -> tuple[Path, ...]:
        return load_image_list(self.project.images).paths[:9]

    def agrees(self, device: Device) -> None:
        """Ask a device for fewer, as many and more classes than its model chooses."""
        reference = Device.open(self.folder)
        # An int8 engine's graph rounds otherwise than model.onnx does, and OpenVINO otherwise than either.
        tolerance = {"fp32": 1e-5, "fp16": 5e-3, "int8": 5e-2}[self.bundle.precision]
        for top in (1, TOP, TOP + 4):
            found, expected = (each.predict(self.files, top=top) for each in (device, reference))
            for one, other in zip(found, expected, strict=True):
                assert one.class_names[0] == other.class_names[0]
                assert len(one.class_names) == top
                np.testing.assert_allclose(one.probabilities, other.probabilities, atol=tolerance)


def export(
    project: TinyProject,
    out: Path,
    *,
    updates: Sequence[ClassUpdate] = (),
    targets: Sequence[str] = ("openvino", "tensorrt-rtx"),
    **settings: Any,
) -> Bundle:
    updatable = settings.get("head") == "updatable"
    return icis_deploy.export(
        project.model,
        classes=project.classes,
        out=out,
        updates=updates,
        options=icis_deploy.ExportOptions(
            preprocess=project.preprocess, capacity=CAPACITY if updatable else None, targets=targets, **settings
        ),
    )


@pytest.fixture(
    scope="module",
    params=[f"{head}-{precision}" for head in ("fused", "updatable") for precision in ("fp32", "fp16", "int8")],
)
def exported(request: Any, tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("bundle") / request.param
    head, precision = request.param.split("-")
    calibration = tiny_project.images if precision == "int8" else None
    form = ModelForm(model_input="uint8", top=TOP, precision=precision, calibration_images=calibration)
    updates = [update_for(tiny_project.model, tiny_project)] if head == "fused" else []
    bundle = export(tiny_project, folder, head=head, updates=updates, form=form)
    return Exported(folder=folder, bundle=bundle, project=tiny_project)


@pytest.fixture
def fake_gpu(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    model = load_onnx_file(exported.folder / MODEL_NAME)
    rewrite = ENGINE_REWRITES.get(exported.bundle.precision)
    graph = graph_for_tensorrt(model if rewrite is None else apply_passes(model, rewrite))
    save_model(graph, tmp_path / "given.onnx")
    cuda = FakeCuda()
    fake = FakeTensorRT(cuda, graph=tmp_path / "given.onnx")
    fake.__version__ = trt.__version__
    monkeypatch.setattr(engine_loading, "load_cuda", lambda: CudaCalls(cuda))
    monkeypatch.setattr(engine_loading, "load_tensorrt", lambda _runtime: fake)
    return fake


def test_an_engine_takes_bytes_and_gives_the_choice_beside_the_scores(exported: Exported) -> None:
    sidecar = parse_sidecar((exported.folder / "engines" / "tensorrt-rtx.json").read_bytes())
    image, *slots = sidecar.inputs

    assert image == EngineInput(
        name="image",
        dtype="uint8",
        min_shape=(1, SIDE, SIDE, 3),
        opt_shape=(1, SIDE, SIDE, 3),
        max_shape=(32, SIDE, SIDE, 3),
    )
    capacity = exported.bundle.capacity
    shapes = {SLOT_WEIGHT: (capacity, FEATURE_DIM), SLOT_BIAS: (capacity,), SLOT_ARBITER: (capacity, 5)}
    shapes = shapes if capacity else {}
    assert {each.name: each.max_shape for each in slots} == shapes
    outputs = [
        EngineOutput(name="logits", dtype="float32", shape=(-1, NUM_SEEN + (capacity or 2))),
        EngineOutput(name=TOP_PROBABILITIES, dtype="float32", shape=(-1, TOP)),
        EngineOutput(name=TOP_CLASS_IDS, dtype="int64", shape=(-1, TOP)),
        *([EngineOutput(name=FEATURES, dtype="float32", shape=(-1, FEATURE_DIM))] if capacity else []),
    ]
    assert list(sidecar.outputs) == outputs


def test_openvino_takes_bytes_and_chooses_as_onnx_runtime_does(exported: Exported) -> None:
    device = Device.open(exported.folder, runtime="openvino", num_threads=1)
    images = device.prepare(exported.files)
    probabilities, columns = session_of(device).top(images, state_of(device).buffers)

    assert (images.dtype, images.shape[1:]) == (np.uint8, (SIDE, SIDE, 3))
    assert (probabilities.dtype, columns.dtype) == (np.float32, np.int64)
    assert columns.shape == (len(images), TOP)
    exported.agrees(device)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engines_session_takes_bytes_and_chooses_as_onnx_runtime_does(
    cuda_graph: bool, exported: Exported, fake_gpu: FakeTensorRT
) -> None:
    device = Device.open(exported.folder, runtime=Runtime(name="tensorrt-rtx", cuda_graph=cuda_graph))
    for _ in range(3):
        exported.agrees(device)
    assert len(fake_gpu.engines) == 1


@pytest.mark.parametrize("runtime", ["openvino", "tensorrt-rtx"])
def test_the_gate_runs_where_the_bundle_does(runtime: str, exported: Exported, fake_gpu: FakeTensorRT) -> None:
    reports = icis_deploy.verify(
        exported.folder, against=exported.project.model, images=exported.project.images, runtime=runtime
    )
    assert [report.failures for report in reports] == [()] * len(reports)
    assert all(report.compared_with.endswith(f"the bundle in {runtime}") for report in reports)


@pytest.mark.parametrize("runtime", ["openvino", "tensorrt-rtx"])
def test_a_new_class_is_chosen_by_its_name(
    runtime: str, exported: Exported, fake_gpu: FakeTensorRT, tmp_path: Path
) -> None:
    # A copy: a version that was taken once is spent.
    shutil.copytree(exported.folder, folder := tmp_path / "bundle")
    update = update_for(exported.project.model, exported.project)
    rows = np.where(np.arange(FEATURE_DIM + 1) == FEATURE_DIM, [[0], [1e3]], update.rows)
    save_update(replace(update, rows=rows), tmp_path / "new.icis")
    device = Device.open(folder, runtime=runtime)
    if not exported.bundle.capacity:
        with pytest.raises(IncompatibleError, match="fused"):
            device.apply(tmp_path / "new.icis", allow_unsigned=True, allow_changed_answers=True)
        return
    device.apply(tmp_path / "new.icis", allow_unsigned=True, allow_changed_answers=True)
    answers = device.predict(exported.files, top=2)
    assert {(answer.class_names[0], answer.version) for answer in answers} == {("quagga", 1)}


def test_equal_scores_may_be_chosen_in_any_order(tiny_project: TinyProject, tmp_path: Path) -> None:
    # Four empty slots are chosen as well, and OpenVINO sorts them as it likes.
    form = ModelForm(top=NUM_SEEN + CAPACITY)
    bundle = export(tiny_project, tmp_path / "bundle", head="updatable", form=form, targets=["openvino"])
    assert all(report["passed"] for report in bundle.parity)


@pytest.mark.parametrize(
    "columns",
    [[[2, 2]], [[2, 3]], [[1, 2]], [[-1, 2]], [[2, 4]], [[2]]],
    ids=["twice", "a smaller score", "in another order", "negative", "no column", "too few"],
)
def test_what_is_no_choice_of_the_greatest_scores_is_noticed(columns: list[list[int]]) -> None:
    scores, order = np.array([[0.5, 1.0, 2.0, 0.7]], np.float32), np.array([[2, 1]])
    assert parity_gate._is_topk(order, order, scores)
    assert not parity_gate._is_topk(np.array(columns), order, scores)


@pytest.mark.parametrize(("gap", "is_choice"), [(0.0, True), (1e-7, True), (1e-3, False)])
def test_scores_of_two_runs_are_equal_as_far_as_float32_tells_them(gap: float, is_choice: bool) -> None:
    scores, order = np.array([[0.5, 1.0, 1.0 + gap, 0.7]], np.float32), np.array([[2, 1]])
    assert parity_gate._is_topk(order[:, ::-1], order, scores) == is_choice


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_a_model_that_gave_a_class_id_alone_gives_float32_scores_in_float16(
    head: str, tiny_project: TinyProject, tmp_path: Path
) -> None:
    model = with_tail(tiny_project, "argmax", tmp_path)
    icis_deploy.export(
        model,
        classes=tiny_project.classes,
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=CAPACITY if head == "updatable" else None,
            form=ModelForm(top=TOP, precision="fp16"),
            targets=["openvino"],
        ),
        out=tmp_path / "bundle",
    )
    logits = onnx.load(tmp_path / "bundle" / MODEL_NAME).graph.output[0]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)


def test_a_wrong_choice_in_another_runtime_is_rejected(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from icis_deploy.runtime.sessions.openvino_session import OpenVINOSession, TopOutput

    real = OpenVINOSession.top

    def off_by_one(*arguments: Any) -> TopOutput | None:
        found = real(*arguments)
        return found and (found[0], found[1] + 1)

    monkeypatch.setattr(OpenVINOSession, "top", off_by_one)
    with pytest.raises(GateFailedError, match="not passed by openvino: the classes that the model chooses are not"):
        export(tiny_project, tmp_path / "bundle", form=ModelForm(top=TOP), targets=["openvino"])
