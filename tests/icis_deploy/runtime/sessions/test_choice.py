"""The choice of a runtime, and that every runtime that works here answers as ONNX Runtime does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.bundle.manifest import MANIFEST_NAME, MODEL_NAME, file_entry, load_bundle, serialize_manifest
from icis_deploy.errors import MissingDependencyError, ModelLoadError, RuntimeFailureError, UsageError
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.choice import RUNTIME_NAMES, Runtime, loaded_files, runtime_from
from testing.bundles import (
    FEATURE_DIM,
    TAILS,
    add_targets,
    features_of,
    images,
    make_update,
    new_logits,
    seen_head,
    trust,
    write_bundle,
)


def test_onnxruntime_is_the_default_and_the_one_that_bundles_were_checked_in():
    assert RUNTIME_NAMES[0] == Runtime().name == "onnxruntime"
    assert [name for name in RUNTIME_NAMES if Runtime(name=name).is_reference] == ["onnxruntime"]


def test_every_runtime_computes_on_the_cpu_or_on_an_accelerator():
    on_cpu = [name for name in RUNTIME_NAMES if Runtime(name=name).computes_on_cpu]
    assert on_cpu == ["onnxruntime", "openvino", "litert", "mnn", "executorch", "ncnn", "split", "qnn-emulated"]


def test_a_runtime_comes_from_its_name_or_stays_as_it_is():
    assert runtime_from("openvino") == Runtime(name="openvino")
    assert runtime_from(Runtime(num_threads=2)) == Runtime(num_threads=2)
    assert runtime_from(Runtime(num_threads=2), num_threads=1) == Runtime(num_threads=1)


def test_an_unknown_runtime_is_an_error_that_lists_the_known_ones(bundle_folder):
    with pytest.raises(UsageError, match=r"^There is no runtime 'onnx'; choose among onnxruntime, "):
        Device.open(bundle_folder, runtime="onnx")


def test_a_runtime_without_threads_is_an_error():
    for number in (0, 1025):
        with pytest.raises(UsageError, match=rf"^{number} threads were asked for; expected at least 1, and"):
            Runtime(num_threads=number)


@pytest.mark.parametrize(
    ("name", "setting", "owners"),
    [
        ("onnxruntime", {"num_streams": 2}, "openvino, tensorrt, tensorrt-rtx"),
        ("openvino", {"cuda_graph": True}, "tensorrt, tensorrt-rtx"),
        ("onnxruntime-tensorrt", {"cuda_graph": True}, "tensorrt, tensorrt-rtx"),
        ("onnxruntime-cuda", {"cache_folder": Path("engines")}, "onnxruntime-tensorrt"),
    ],
)
def test_a_setting_that_does_nothing_in_a_runtime_is_refused(name, setting, owners):
    (what,) = setting
    with pytest.raises(UsageError, match=f"^{what} does nothing in the runtime '{name}': it is for {owners}. Leave it"):
        Runtime(name=name, **setting)


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("onnxruntime", {"model.onnx", "model.onnx.data"}),
        ("onnxruntime-cuda", {"model.onnx", "model.onnx.data"}),
        ("openvino", {"openvino/model.xml", "openvino/model.bin"}),
        ("tensorrt-rtx", {"engines/tensorrt-rtx.engine"}),
        ("split", {"backbone.onnx", "baked_rows.safetensors"}),
        ("qnn-emulated", {"qnn/backbone.onnx", "baked_rows.safetensors"}),
        ("mnn", {"mnn/model.mnn"}),
    ],
)
def test_of_a_bundle_for_many_runtimes_each_loads_its_own_model_and_the_slots(runtime, expected, bundle_folder):
    bundle = load_bundle(bundle_folder)
    entry = bundle.files["model.onnx"]
    others = ("model.onnx.data", "injected.safetensors", "generator.onnx", "openvino/model.xml", "openvino/model.bin")
    engines = ("engines/tensorrt.engine", "engines/tensorrt-rtx.engine", "engines/tensorrt-rtx.json")
    backbones = ("backbone.onnx", "qnn/backbone.onnx", "qnn/model.json", "baked_rows.safetensors")
    converted = ("mnn/model.mnn", "mnn/model.json")
    names = (*others, *engines, *backbones, *converted)
    everything = replace(bundle, files={**bundle.files, **dict.fromkeys(names, entry)})

    assert set(loaded_files(everything, Runtime(name=runtime))) == {"slots.safetensors", *expected}
    assert set(loaded_files(bundle, Runtime(name="openvino"))) == {"slots.safetensors", "model.onnx"}
    # In int8 a converted model is the backbone alone.
    of_int8 = set(loaded_files(replace(everything, precision="int8"), Runtime(name="mnn")))
    assert of_int8 == {"slots.safetensors", "mnn/model.mnn", "baked_rows.safetensors"}


@pytest.mark.parametrize(
    "runtime",
    [
        "onnxruntime",
        "openvino",
        pytest.param("onnxruntime-cuda", marks=pytest.mark.gpu),
        pytest.param("onnxruntime-tensorrt", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("score_kind", TAILS)
def test_a_device_answers_takes_updates_and_rolls_back_in_every_runtime(runtime, score_kind, tmp_path, keys, signed):
    folder = write_bundle(tmp_path / "bundle", score_kind=score_kind)
    trust(folder, keys.public_path)
    reference = Device.open(folder, num_threads=1)
    try:
        cache = tmp_path / "cache" if runtime == "onnxruntime-tensorrt" else None
        device = Device.open(folder, runtime=Runtime(name=runtime, num_threads=1, cache_folder=cache))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    # A GPU may multiply in TF32, which has 11 significant bits.
    batch, tolerance = images(5), 2e-6 if runtime in {"onnxruntime", "openvino"} else 5e-3

    before = device.logits(batch)
    np.testing.assert_allclose(before.values, reference.logits(batch).values, atol=tolerance)
    device.apply(signed(make_update("okapi", "zebra")))
    reference.refresh()
    after = device.logits(batch)
    assert after.class_names == ("cat", "dog", "owl", "okapi", "zebra")
    np.testing.assert_allclose(after.values, reference.logits(batch).values, atol=tolerance)
    assert np.abs(after.values[:, 3:]).max() > 0.1
    device.rollback()
    np.testing.assert_array_equal(device.logits(batch).values, before.values)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_fused_head_answers_and_has_no_slots(runtime, tmp_path):
    device = Device.open(write_bundle(tmp_path / "fused", capacity=0), runtime=runtime, num_threads=1)

    expected = seen_head().logits(features_of(images(3)))
    np.testing.assert_allclose(device.logits(images(3)).values, expected, atol=2e-6)
    with pytest.raises(RuntimeFailureError, match=r"its head is fused\. Export it with `head='updatable'`\.$"):
        session_of(device).load_slots(np.zeros((1, FEATURE_DIM), np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [images(2)[:, :5], images(2).astype(np.float64)])
def test_an_input_of_another_shape_or_type_is_an_error_that_states_both(runtime, batch, bundle_folder):
    device = Device.open(bundle_folder, runtime=runtime)

    with pytest.raises(RuntimeFailureError, match=r"on an input of shape \(2, \d\) and type float\d\d; it expects .*6"):
        device.logits(batch)


def test_openvino_gives_the_baked_slots_where_none_are_fed_and_refuses_slots_of_another_shape(bundle_folder):
    device = Device.open(bundle_folder, runtime="openvino", num_threads=1)

    baked = session_of(device).run(images(2), with_features=True)
    assert (baked.logits[:, 3:] < -1e4).all()
    np.testing.assert_allclose(baked.features, features_of(images(2)), atol=2e-6)
    assert session_of(device).run(images(2)).features is None
    with pytest.raises(RuntimeFailureError, match=r"^The slots' slot_bias has shape \(5,\); this model takes \(4,\)\."):
        session_of(device).load_slots(np.zeros((4, FEATURE_DIM), np.float32), np.zeros(5, np.float32))


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino"), ("split", "cpu")])
def test_a_runtime_that_is_not_installed_is_an_error_that_names_the_extra(runtime, extra, bundle_folder, monkeypatch):
    if runtime == "split":
        add_targets(bundle_folder, "backbone")
    monkeypatch.setitem(sys.modules, "openvino" if runtime == "openvino" else "onnxruntime", None)

    with pytest.raises(MissingDependencyError, match=rf"pip install 'icis-deploy\[{extra}\]'"):
        Device.open(bundle_folder, runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model_is_an_error_that_names_it(runtime, bundle_folder):
    path, bundle = bundle_folder / MODEL_NAME, load_bundle(bundle_folder)
    path.write_bytes(b"not a model")
    bundle = replace(bundle, files={**bundle.files, MODEL_NAME: file_entry(path)})
    (bundle_folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))

    with pytest.raises(ModelLoadError, match=rf"cannot load the model {path}: .*[^.]\. Copy the bundle again"):
        Device.open(bundle_folder, runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "split"])
def test_a_model_that_chooses_no_classes_gives_no_choice(runtime, bundle_folder):
    if runtime == "split":
        add_targets(bundle_folder, "backbone")
    session = session_of(Device.open(bundle_folder, runtime=runtime, num_threads=1))

    assert session.top(images(2)) is None


def test_offering_the_names_of_runtimes_loads_no_library():
    module = "icis_deploy.runtime.sessions.choice"
    code = f"import sys, {module}; print({{'numpy', 'onnxruntime', 'openvino'}} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "set()\n"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_model_without_the_input_takes_no_arbiter_but_zeros(runtime, bundle_folder):
    session = session_of(Device.open(bundle_folder, runtime=runtime, num_threads=1))
    weight, bias = np.zeros((4, FEATURE_DIM), np.float32), np.zeros(4, np.float32)

    for nothing in (None, np.zeros((4, 5), np.float32)):
        buffers = session.load_slots(weight, bias, nothing)
        assert buffers.arbiter is None
        assert session.run(images(2), buffers).logits.shape == (2, 7)
    message = (
        r"^The model has no input 'slot_arbiter', so its slots cannot have an arbiter\. Export it again with "
        r"`arbiter='auto'`, or inject with `arbiter='off'`\.$"
    )
    with pytest.raises(RuntimeFailureError, match=message):
        session.load_slots(weight, bias, np.ones((4, 5), np.float32))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_slots_without_an_arbiter_have_none_whatever_the_file_holds(runtime, tmp_path):
    update = make_update("okapi", arbiter=np.ones((1, 5)))
    table = empty_slots(4, FEATURE_DIM).apply(update, seen_names=frozenset())
    device = Device.open(write_bundle(tmp_path / "bundle", arbiter=True, table=table), runtime=runtime, num_threads=1)

    plain = session_of(device).run(images(3), session_of(device).load_slots(table.weight, table.bias)).logits[:, 3]
    expected = features_of(images(3)) @ update.rows[0, :-1] + update.rows[0, -1]
    np.testing.assert_allclose(plain, expected, atol=2e-6)
    baked = session_of(device).run(images(3)).logits[:, 3]
    np.testing.assert_allclose(baked, new_logits(images(3), update.rows, update.arbiter)[:, 0], rtol=1e-5, atol=1e-4)
    with pytest.raises(RuntimeFailureError, match=r"slot_arbiter"):
        session_of(device).run(
            images(3), session_of(device).load_slots(table.weight, table.bias, np.ones((3, 5), np.float32))
        )
