"""Sessions of converted models: every one that is installed here answers, updates and refuses as ONNX Runtime does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.bundle.converted_sidecar import (
    CONVERTED_FILES,
    converted_sidecar_name,
    parse_converted_sidecar,
    serialize_converted_sidecar,
)
from icis_deploy.bundle.engine_sidecar import model_sha256
from icis_deploy.bundle.manifest import MANIFEST_NAME, file_entry, load_bundle, serialize_manifest
from icis_deploy.errors import (
    BundleError,
    CapacityError,
    EngineMismatchError,
    IncompatibleError,
    LoadError,
    MissingDependencyError,
    ModelLoadError,
    RuntimeFailureError,
    SignatureError,
)
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.choice import CONVERTED_RUNTIMES, Runtime
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from testing.asking import asking
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

ARBITER = np.array([[0.3, -0.2, 0.5, 0.1, -0.4], [0.0, 0.4, 0.0, -0.3, 0.2]], dtype=np.float32)
NUM_THREADS, NUM_REQUESTS = 3, 60
_KEPT: dict[str, dict[str, bytes]] = {}
"""By runtime and hash of a model, what was converted before: a converter may take a minute."""


@pytest.fixture(params=CONVERTED_RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def converted(folder: Path, runtime: str) -> Path:
    key = f"{runtime} {model_sha256(load_bundle(folder))}"
    if key not in _KEPT:
        try:
            add_targets(folder, runtime)
        except MissingDependencyError as error:
            pytest.skip(str(error))
        _KEPT[key] = {name: (folder / name).read_bytes() for name in files_of(runtime)}
        return folder
    for name, data in _KEPT[key].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    bundle = load_bundle(folder)
    entries = {name: file_entry(folder / name) for name in files_of(runtime)}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files={**bundle.files, **entries})))
    return folder


def files_of(runtime: str) -> tuple[str, ...]:
    return (*CONVERTED_FILES[runtime], converted_sidecar_name(runtime))


@pytest.fixture
def updatable(tmp_path: Path, runtime: str) -> Path:
    return converted(write_bundle(tmp_path / "bundle"), runtime)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file of a bundle, and what the manifest states of it."""
    bundle = load_bundle(folder)
    (folder / name).write_bytes(data)
    bundle = replace(bundle, files={**bundle.files, name: file_entry(folder / name)})
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))


@pytest.mark.parametrize("score_kind", TAILS)
def test_a_device_answers_takes_updates_and_rolls_back(runtime, score_kind, tmp_path, keys, signed):
    folder = converted(write_bundle(tmp_path / "bundle", score_kind=score_kind), runtime)
    trust(folder, keys.public_path)
    reference = Device.open(folder, num_threads=1)
    device = Device.open(folder, runtime=runtime, num_threads=1)
    batch = images(5)

    before = device.logits(batch)
    np.testing.assert_allclose(before.values, reference.logits(batch).values, atol=1e-5)
    device.apply(signed(make_update("okapi", "zebra")))
    reference.refresh()
    after = device.logits(batch)
    assert after.class_names == ("cat", "dog", "owl", "okapi", "zebra")
    np.testing.assert_allclose(after.values, reference.logits(batch).values, atol=1e-5)
    assert np.abs(after.values[:, 3:]).max() > 0.1
    device.rollback()
    np.testing.assert_array_equal(device.logits(batch).values, before.values)


def test_an_arbiter_is_followed(runtime, tmp_path, keys, signed):
    folder = converted(write_bundle(tmp_path / "bundle", arbiter=True), runtime)
    trust(folder, keys.public_path)
    device = Device.open(folder, runtime=runtime, num_threads=1)
    update = make_update("okapi", "zebra", arbiter=ARBITER)

    device.apply(signed(update))
    expected = new_logits(images(5), update.rows, ARBITER)
    np.testing.assert_allclose(device.logits(images(5)).values[:, 3:], expected, atol=1e-4)


def test_a_fused_head_answers_and_has_no_slots(runtime, tmp_path):
    folder = converted(write_bundle(tmp_path / "fused", capacity=0), runtime)
    device = Device.open(folder, runtime=runtime, num_threads=1)

    np.testing.assert_allclose(device.logits(images(3)).values, seen_head().logits(features_of(images(3))), atol=1e-5)
    with pytest.raises(RuntimeFailureError, match=r"its head is fused\. Export it with `head='updatable'`\.$"):
        session_of(device).load_slots(np.zeros((1, FEATURE_DIM), np.float32), np.zeros(1, np.float32))


def test_slots_are_read_back_from_the_interpreters_memory(runtime, updatable):
    session = session_of(Device.open(updatable, runtime=runtime, num_threads=1))
    random = np.random.default_rng(3)
    first, second = (
        session.load_slots(
            random.normal(size=(4, FEATURE_DIM)).astype(np.float32), random.normal(size=4).astype(np.float32)
        )
        for _ in range(2)
    )
    for slots in (first, second, first):
        held = session.read_slots(slots)
        session.run(images(2), slots)
        np.testing.assert_array_equal(held.weight, slots.weight)
        np.testing.assert_array_equal(held.bias, slots.bias)


def test_no_answer_is_torn_while_three_threads_ask_and_classes_change(runtime, updatable, keys, signed):
    trust(updatable, keys.public_path)
    device = Device.open(updatable, runtime=runtime, num_threads=1)
    batch = images(2)
    alone = {device.logits(batch).values.tobytes()}
    updates = [signed(make_update("okapi", "zebra", version=version)) for version in range(1, 9)]
    for update in updates:
        device.apply(update)
        alone.add(device.logits(batch).values.tobytes())
        device.rollback()
    with asking(lambda: device.logits(batch), num_threads=NUM_THREADS) as asked:
        for version in range(9, 17):
            update = make_update("okapi", "zebra", version=version, seed=version - 8)
            device.apply(signed(update))
            asked.wait_for_answers()
            device.rollback()
        asked.wait_for_answers(NUM_REQUESTS)
    assert {answer.values.tobytes() for answer in asked.answers} <= alone


def test_more_classes_than_slots_and_changed_or_unsigned_updates_change_nothing(runtime, updatable, keys, signed):
    trust(updatable, keys.public_path)
    device = Device.open(updatable, runtime=runtime, num_threads=1)
    before = device.logits(images(3)).values

    with pytest.raises(CapacityError):
        device.apply(signed(make_update(*(f"class {index}" for index in range(5)))))
    data = signed(make_update("okapi"))
    at = data.index(b'"payload":') + 40
    for changed in (
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        serialize_envelope(envelope_of(make_update("okapi"))),
    ):
        with pytest.raises((SignatureError, LoadError)):
            device.apply(changed)
    np.testing.assert_array_equal(device.logits(images(3)).values, before)


@pytest.mark.parametrize("batch", [images(2)[:, :5], images(2).astype(np.float64)])
def test_an_input_of_another_shape_or_type_is_an_error_that_states_both(runtime, batch, updatable):
    device = Device.open(updatable, runtime=runtime)
    with pytest.raises(RuntimeFailureError, match=r"on an input of shape \(2, \d\) and type float\d\d; it expects .*6"):
        device.logits(batch)


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_any_number_of_images_is_answered(runtime, number, updatable):
    device = Device.open(updatable, runtime=runtime, num_threads=1)
    expected = Device.open(updatable, num_threads=1).logits(images(number)).values
    np.testing.assert_allclose(device.logits(images(number)).values, expected, atol=1e-5)


def test_slots_must_be_given_and_have_the_shape_that_the_model_takes(runtime, updatable):
    session = session_of(Device.open(updatable, runtime=runtime, num_threads=1))
    with pytest.raises(RuntimeFailureError, match="holds no slots of its own"):
        session.run(images(1))
    with pytest.raises(RuntimeFailureError, match=r"^The slots' slot_bias has shape \(5,\); this model takes \(4,\)\."):
        session.load_slots(np.zeros((4, FEATURE_DIM), np.float32), np.zeros(5, np.float32))


def test_a_bundle_without_the_target_says_how_to_get_it(runtime, tmp_path):
    converted(write_bundle(tmp_path / "with"), runtime)
    folder = write_bundle(tmp_path / "without")
    with pytest.raises(IncompatibleError, match=rf"holds no model for '{runtime}'.*targets=\['{runtime}'\]"):
        Device.open(folder, runtime=runtime)


def test_a_model_converted_from_another_one_is_refused_by_name(runtime, updatable):
    name = converted_sidecar_name(runtime)
    sidecar = parse_converted_sidecar((updatable / name).read_bytes())
    rewrite(updatable, name, serialize_converted_sidecar(replace(sidecar, model_sha256="0" * 64)))
    with pytest.raises(EngineMismatchError, match=r"not converted from this bundle's: model_sha256 is .0{64}., here"):
        Device.open(updatable, runtime=runtime)


@pytest.mark.parametrize("change", [{"inputs": []}, {"more": 1}, {"schema_version": 2}, {"converter": 3}])
def test_a_sidecar_that_is_none_is_refused(runtime, change, updatable):
    name = converted_sidecar_name(runtime)
    values = json.loads((updatable / name).read_bytes()) | change
    rewrite(updatable, name, json.dumps(values).encode())
    with pytest.raises(BundleError, match="sidecar"):
        Device.open(updatable, runtime=runtime)


def test_a_file_that_is_no_model_is_an_error_that_names_it(runtime, updatable):
    for name in CONVERTED_FILES[runtime]:
        rewrite(updatable, name, b"not a model")
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        Device.open(updatable, runtime=runtime)


def test_a_model_without_the_tensors_that_its_sidecar_states_is_refused_when_it_is_opened(runtime, updatable):
    name = converted_sidecar_name(runtime)
    sidecar = parse_converted_sidecar((updatable / name).read_bytes())
    first, *others = sidecar.outputs
    named = first.runtime_name if runtime == "executorch" else "another"  # which numbers them
    other = replace(first, runtime_name=named, shape=(first.shape[0], 99))
    rewrite(updatable, name, serialize_converted_sidecar(replace(sidecar, outputs=(other, *others))))
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        Device.open(updatable, runtime=runtime)


def test_a_runtime_that_is_not_installed_is_an_error_that_names_the_extra(runtime, updatable, monkeypatch):
    modules = {"mnn": "MNN", "litert": "ai_edge_litert.interpreter", "executorch": "executorch.extension.pybindings"}
    module = modules.get(runtime, runtime)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'icis-deploy\[{runtime}\]'\.$"):
        Device.open(updatable, runtime=runtime)


def test_nothing_but_the_answer_is_on_standard_output(runtime, updatable):
    code = (
        "import sys; from icis_deploy.runtime.device import Device; from testing.bundles import images; "
        "device = Device.open(sys.argv[1], runtime=sys.argv[2], num_threads=1); device.logits(images(2)); print('done')"
    )
    command = [sys.executable, "-c", code, str(updatable), runtime]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "done\n"


def test_every_core_is_used_where_no_number_of_threads_is_given(runtime, updatable):
    device = Device.open(updatable, runtime=Runtime(name=runtime))
    assert device.logits(images(1)).values.shape == (1, 3)
