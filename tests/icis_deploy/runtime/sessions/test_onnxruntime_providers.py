"""ONNX Runtime's GPU providers: what is asked for, and what is refused. What needs a GPU is in `test_choice.py`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.errors import MissingDependencyError, RuntimeFailureError, StorageError
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.changes.self_test import verify_computed
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.onnxruntime_providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    ProviderChoice,
    check_one_installation,
    check_session,
    cuda_choice,
    forbid_silent_fallback,
    tensorrt_choice,
)
from icis_deploy.runtime.sessions.onnxruntime_session import ONNXRuntimeSession, load_session
from testing.bundles import FEATURE_DIM, images, seen_head, write_bundle


def cache_of(folder: Path, cache_folder: Path) -> Path:
    return Path(tensorrt_choice(load_bundle(folder), cache_folder).options["trt_engine_cache_path"])


def test_two_heads_of_one_graph_have_caches_of_their_own(tmp_path):
    folders = [write_bundle(tmp_path / str(seed), head=seen_head(seed)) for seed in (0, 1)]
    shutil.copytree(folders[0], tmp_path / "copy")
    first, second, copy = (cache_of(folder, tmp_path / "cache") for folder in (*folders, tmp_path / "copy"))

    assert first != second
    assert first == copy
    assert first.is_dir()
    assert load_bundle(folders[0]).base_fingerprint[:16] in first.name


def test_two_fused_models_of_one_seen_head_have_caches_of_their_own(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path / "b", capacity=0))
    entry = bundle.files["model.onnx"]
    other = replace(bundle, files={**bundle.files, "model.onnx": replace(entry, sha256="0" * 64)})
    paths = {tensorrt_choice(each, tmp_path).options["trt_engine_cache_path"] for each in (bundle, other)}

    assert len(paths) == 2


def test_engines_are_kept_in_the_users_cache_by_default(tmp_path, monkeypatch):
    bundle = load_bundle(write_bundle(tmp_path / "b"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = tensorrt_choice(bundle, None).options["trt_engine_cache_path"]

    assert Path(path).parent == tmp_path / "xdg" / "icis-deploy" / "engines"


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"^The engine cache .* cannot be made: Not a directory\. Give another"):
        tensorrt_choice(load_bundle(write_bundle(tmp_path / "b")), tmp_path / "file")


def test_the_tensorrt_provider_may_leave_operators_to_cuda_and_slots_are_kept_on_the_gpu(tmp_path):
    choice = tensorrt_choice(load_bundle(write_bundle(tmp_path / "b")), tmp_path)

    assert [name for name, _ in choice.requested] == [TENSORRT_PROVIDER, CUDA_PROVIDER]
    assert choice.slots_memory == cuda_choice().slots_memory == "cuda"


@pytest.mark.parametrize(
    ("runtime", "provider"), [("onnxruntime-cuda", CUDA_PROVIDER), ("onnxruntime-tensorrt", TENSORRT_PROVIDER)]
)
def test_a_provider_that_was_not_compiled_in_is_an_error_that_says_what_to_install(runtime, provider, bundle_folder):
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")

    with pytest.raises(MissingDependencyError, match=rf"has no {provider}, only .*pip install 'icis-deploy\[gpu\]'"):
        Device.open(bundle_folder, runtime=runtime)


# What a session really got.


def session_with(assigned: dict[str, list[str]], providers: list[str]) -> SimpleNamespace:
    """A session as far as it is asked here."""
    infos = [
        SimpleNamespace(ep_name=name, get_nodes=lambda types=types: [SimpleNamespace(op_type=each) for each in types])
        for name, types in assigned.items()
    ]
    return SimpleNamespace(get_providers=lambda: providers, get_provider_graph_assignment_info=lambda: infos)


@pytest.fixture
def telling_session(bundle_folder) -> onnxruntime.InferenceSession:
    """A real session that tells which provider got each node; here that is the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    forbid_silent_fallback(options, onnxruntime.InferenceSession)
    return onnxruntime.InferenceSession(bundle_folder / "model.onnx", options, providers=[CPU_PROVIDER])


def test_a_real_session_that_computes_on_the_cpu_is_refused_where_another_provider_was_asked_for(telling_session):
    with pytest.raises(MissingDependencyError, match=rf"^ONNX Runtime gave {CPU_PROVIDER} where {CUDA_PROVIDER} was"):
        check_session(telling_session, cuda_choice())


def test_a_real_session_names_the_operators_that_it_left_to_the_cpu(telling_session):
    pretending = SimpleNamespace(
        get_providers=lambda: [CUDA_PROVIDER, CPU_PROVIDER],
        get_provider_graph_assignment_info=telling_session.get_provider_graph_assignment_info,
    )

    with pytest.raises(MissingDependencyError, match=r"would compute .*Gemm.* on the CPU, where CUDAExecutionProvider"):
        check_session(pretending, cuda_choice())


def test_sizes_may_be_computed_on_the_cpu():
    assigned = {CUDA_PROVIDER: ["Conv", "Gemm"], CPU_PROVIDER: ["Shape", "Gather", "Concat"]}

    check_session(session_with(assigned, [CUDA_PROVIDER, CPU_PROVIDER]), cuda_choice())


def test_one_operator_on_the_cpu_is_enough_to_be_refused():
    assigned = {CUDA_PROVIDER: ["Conv"], CPU_PROVIDER: ["Shape", "QLinearConv", "QLinearConv"]}

    with pytest.raises(MissingDependencyError, match=r"^ONNX Runtime would compute 2 QLinearConv on the CPU, where"):
        check_session(session_with(assigned, [CUDA_PROVIDER, CPU_PROVIDER]), cuda_choice())


def test_a_provider_that_got_nothing_to_compute_is_refused():
    choice = ProviderChoice(name=TENSORRT_PROVIDER, helpers=(CUDA_PROVIDER,))
    session = session_with({CUDA_PROVIDER: ["Conv", "Gemm"]}, [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER])

    with pytest.raises(MissingDependencyError, match=rf"left {TENSORRT_PROVIDER} nothing .* uses {CUDA_PROVIDER}\."):
        check_session(session, choice)


def test_a_session_that_cannot_tell_is_forbidden_the_cpu(bundle_folder):
    entries = {}
    forbid_silent_fallback(SimpleNamespace(add_session_config_entry=entries.__setitem__), object)
    assert entries == {"session.disable_cpu_ep_fallback": "1"}

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    forbid_silent_fallback(options, object)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="explicitly disabled"):
        onnxruntime.InferenceSession(bundle_folder / "model.onnx", options, providers=["AzureExecutionProvider"])


# Two installations.


def test_both_distributions_of_onnx_runtime_are_refused(tmp_path, monkeypatch, bundle_folder):
    for name, version in (("onnxruntime", "1.32.0"), ("onnxruntime_gpu", "1.31.0")):
        info = tmp_path / "packages" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    check_one_installation.cache_clear()
    try:
        with pytest.raises(
            MissingDependencyError, match=r"^onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.31\.0 are both"
        ):
            load_session(bundle_folder / "model.onnx")
    finally:
        check_one_installation.cache_clear()


# Slots in another memory: here the CPU's own, through the same calls.


def test_slots_that_are_kept_elsewhere_give_the_same_answers_and_pass_the_self_test(bundle_folder):
    plain = load_session(bundle_folder / "model.onnx", num_threads=1)
    session = ONNXRuntimeSession(plain._session, slots_memory="cpu")
    table = SlotTable(
        weight=np.random.default_rng(1).normal(size=(4, FEATURE_DIM)),
        bias=np.arange(4),
        class_names=("a", "b", "c", "d"),
    )
    buffers = session.load_slots(table.weight, table.bias)

    found = session.run(images(3), buffers, with_features=True)
    expected = plain.run(images(3), plain.load_slots(table.weight, table.bias), with_features=True)
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(session.run(images(3)).logits, plain.run(images(3)).logits)
    verify_computed(session, load_bundle(bundle_folder), table, buffers, seed=0)


def test_a_session_tells_what_computes_and_gives_the_runtimes_own(bundle_folder):
    session = load_session(bundle_folder / "model.onnx", num_threads=1)

    assert session.providers == (CPU_PROVIDER,)
    assert session.inference_session.get_modelmeta().graph_name == "updatable"


def test_slots_of_another_memory_cannot_be_read_back(bundle_folder):
    plain = load_session(bundle_folder / "model.onnx", num_threads=1)
    elsewhere = ONNXRuntimeSession(plain.inference_session, slots_memory="cpu")
    arrays = np.ones((4, FEATURE_DIM), np.float32), np.arange(4, dtype=np.float32)

    found = elsewhere.read_slots(elsewhere.load_slots(*arrays))
    np.testing.assert_array_equal(found.weight, arrays[0])
    np.testing.assert_array_equal(found.bias, arrays[1])
    with pytest.raises(RuntimeFailureError, match=r"^ONNX Runtime could not copy slots back from cpu: "):
        elsewhere.read_slots(plain.load_slots(*arrays))


def test_memory_that_is_not_there_is_an_error(bundle_folder):
    session = ONNXRuntimeSession(load_session(bundle_folder / "model.onnx")._session, slots_memory="cuda")
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime knows the GPU's memory")

    with pytest.raises(RuntimeFailureError, match=r"^ONNX Runtime could not copy slots to cuda: "):
        session.load_slots(np.zeros((4, FEATURE_DIM), np.float32), np.zeros(4, np.float32))
