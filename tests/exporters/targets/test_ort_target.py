"""ONNX Runtime's own format: written for a platform, compared with `model.onnx`, and fed with slots."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from exporters.targets.model_comparison import filled_table
from exporters.targets.ort_target import PLATFORMS, compare_ort, ort_name, write_ort
from exporters.targets.registry import plan_targets
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import ExportError, MissingDependencyError, RuntimeFailureError
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from testing.bundles import add_targets, images, write_bundle


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("kinds", [{}, {"arbiter": True}, {"capacity": 0}, {"score_kind": "probabilities"}])
def test_a_model_in_the_format_gives_what_the_model_does_with_the_same_slots(platform, kinds, tmp_path):
    folder = add_targets(write_bundle(tmp_path / "bundle", **kinds), f"ort-{platform}")
    bundle = load_bundle(folder)
    assert ort_name(platform) in bundle.files
    report = compare_ort(folder, bundle, platform)
    assert report.passed
    assert "ONNX Runtime's own format" in report.compared_with


def test_slots_have_to_be_fed_and_are_followed(tmp_path):
    folder = add_targets(write_bundle(tmp_path / "bundle"), "ort-arm")
    session = load_session(folder / ort_name("arm"))
    table = filled_table(folder, load_bundle(folder))
    assert table is not None
    slots = session.load_slots(table.weight, table.bias, table.arbiter)
    assert np.abs(session.run(images(2), slots).logits[:, 3:]).max() < 100  # an empty slot has -60000
    raw = onnxruntime.InferenceSession(str(folder / ort_name("arm")))
    assert {value.name for value in raw.get_inputs()} == {"image", "slot_weight", "slot_bias"}


def test_a_file_of_another_model_does_not_pass(tmp_path):
    folder = add_targets(write_bundle(tmp_path / "bundle"), "ort-arm")
    other = add_targets(write_bundle(tmp_path / "other", capacity=0), "ort-arm")
    bundle = load_bundle(folder)
    (folder / ort_name("arm")).write_bytes((other / ort_name("arm")).read_bytes())
    with pytest.raises(RuntimeFailureError, match="its head is fused"):
        compare_ort(folder, bundle, "arm")


def test_a_model_that_cannot_be_loaded_is_an_error_and_nothing_is_left(tmp_path):
    import onnx

    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "ImageDecoder"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(ExportError, match=r"^ONNX Runtime cannot write model\.onnx in its own format: "):
        write_ort(folder, "amd64")
    assert not (folder / "ort-amd64").exists()


def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("exporters.targets.ort_target.find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"'ort-arm' cannot be built .*pip install 'icis-deploy\[cpu\]'\."):
        plan_targets(["ort-arm"])
