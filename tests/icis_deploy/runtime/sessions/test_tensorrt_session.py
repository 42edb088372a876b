"""The TensorRT session: which buffer, in which order, and what is published when.

Every test runs against `fake_gpu`; those that need nothing of the fake also run on a GPU, with a real engine, under the
marker `gpu`.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icis_deploy.bundle.engine_sidecar import (
    EngineInput,
    EngineOutput,
    EngineSidecar,
    engine_name,
    model_sha256,
    serialize_sidecar,
    sidecar_name,
    this_platform,
)
from icis_deploy.bundle.manifest import (
    FEATURES,
    MANIFEST_NAME,
    SLOT_ARBITER,
    SLOT_BIAS,
    SLOT_WEIGHT,
    Bundle,
    file_entry,
    load_manifest,
    serialize_manifest,
)
from icis_deploy.errors import (
    BundleError,
    EngineMismatchError,
    IncompatibleError,
    MissingDependencyError,
    ModelLoadError,
    RuntimeFailureError,
    SelfTestError,
)
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions import tensorrt_engine as engine_loading
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.sessions.cuda_calls import CudaCalls, load_cuda
from icis_deploy.runtime.sessions.tensorrt_context import MAX_GRAPH_BATCHES
from icis_deploy.runtime.sessions.tensorrt_library import load_tensorrt
from testing.bundles import (
    FEATURE_DIM,
    INPUT_DIM,
    features_of,
    files_in,
    images,
    make_update,
    new_logits,
    seen_head,
    trust,
    write_bundle,
)
from tests.icis_deploy.runtime.fake_gpu import FakeContext, FakeCuda, FakeTensorRT

RUNTIME, CAPACITY, MAX_BATCH = "tensorrt-rtx", 4, 8


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Something to open engines on."""

    add_engine: Callable[..., None]
    """Writes an engine into a bundle: `(folder, bundle, refit)`, as files that the manifest is to state."""

    cuda: FakeCuda | None = None
    trt: FakeTensorRT | None = None

    def bundle(self, folder: Path, *, capacity: int = CAPACITY, refit: bool = False, arbiter: bool = False) -> Path:
        """Write a bundle with an engine."""
        write_bundle(folder, capacity=capacity, arbiter=arbiter)
        self.add_engine(folder, load_manifest(folder), refit)
        return restated(folder)

    def device(self, folder: Path, **settings: Any) -> Device:
        return Device.open(folder, runtime=Runtime(name=RUNTIME, **settings))


def restated(folder: Path) -> Path:
    """Let the manifest state the files of the engine as they are now."""
    bundle = load_manifest(folder)
    names = (engine_name(RUNTIME), sidecar_name(RUNTIME))
    files = {**bundle.files, **{name: file_entry(folder / name) for name in names}}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))
    return folder


def fake_engine_files(folder: Path, bundle: Bundle, refit: bool) -> None:
    image = EngineInput(
        name="image",
        dtype="float32",
        min_shape=(1, INPUT_DIM),
        opt_shape=(1, INPUT_DIM),
        max_shape=(MAX_BATCH, INPUT_DIM),
    )
    shapes = {SLOT_WEIGHT: (bundle.capacity, FEATURE_DIM), SLOT_BIAS: (bundle.capacity,)}
    shapes |= {SLOT_ARBITER: (bundle.capacity, 5)} if bundle.arbiter else {}
    slots = [
        EngineInput(name=name, dtype="float32", min_shape=shape, opt_shape=shape, max_shape=shape)
        for name, shape in shapes.items()
        if bundle.capacity and not refit
    ]
    outputs = [EngineOutput(name="logits", dtype="float32", shape=(-1, 3 + bundle.capacity))]
    if bundle.capacity:
        outputs.append(EngineOutput(name=FEATURES, dtype="float32", shape=(-1, FEATURE_DIM)))
    sidecar = EngineSidecar(
        runtime=RUNTIME,
        runtime_version=FakeTensorRT.__version__,
        platform=this_platform(),
        compute_capabilities=("8.6",),
        hardware_compatibility="none",
        model_sha256=model_sha256(bundle),
        engine_sha256="",
        head_fingerprint=bundle.base_fingerprint,
        inputs=(image, *slots),
        outputs=tuple(outputs),
        refittable=("slot_rows", *([SLOT_ARBITER] if bundle.arbiter else [])) if refit else (),
        precision=bundle.precision,
        created_by="test",
    )
    (folder / "engines").mkdir()
    (folder / engine_name(RUNTIME)).write_text(
        json.dumps({"capacity": bundle.capacity, "refit": refit, "arbiter": bundle.arbiter})
    )
    sidecar = replace(sidecar, engine_sha256=file_entry(folder / engine_name(RUNTIME)).sha256)
    (folder / sidecar_name(RUNTIME)).write_bytes(serialize_sidecar(sidecar))


def real_engine_files(folder: Path, bundle: Bundle, refit: bool) -> None:
    from exporters.targets.tensorrt.target import write_engine
    from icis_deploy.bundle.target_options import EngineSettings

    capability = load_cuda().compute_capability()
    settings = EngineSettings(compute_capabilities=(capability,), max_batch=MAX_BATCH, refit=refit)
    write_engine(RUNTIME, folder, bundle, settings)


@pytest.fixture
def fake(monkeypatch) -> Stand:
    """A machine with the fake GPU."""
    cuda = FakeCuda()
    stand = Stand(add_engine=fake_engine_files, cuda=cuda, trt=FakeTensorRT(cuda))
    monkeypatch.setattr(engine_loading, "load_cuda", lambda: CudaCalls(cuda))
    monkeypatch.setattr(engine_loading, "load_tensorrt", lambda _runtime: stand.trt)
    return stand


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def stand(request) -> Stand:
    """The fake, and a real GPU where there is one."""
    if request.param == "fake":
        return request.getfixturevalue("fake")
    try:
        load_tensorrt(RUNTIME)
        load_cuda()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return Stand(add_engine=real_engine_files)


@pytest.fixture
def folder(stand, tmp_path, keys) -> Path:
    path = stand.bundle(tmp_path / "engine-bundle")
    trust(path, keys.public_path)
    return path


def slots(seed: int, capacity: int = CAPACITY) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(capacity, FEATURE_DIM)).astype(np.float32), rng.normal(size=capacity).astype(np.float32)


def expected_logits(batch: np.ndarray, given: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    features = features_of(batch)
    seen = seen_head().logits(features)
    return seen if given is None else np.hstack([seen, features @ given[0].T.astype(np.float64) + given[1]])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    # A GPU may multiply in TF32, which has 11 significant bits.
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=5e-3)


# What a session computes.


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_every_batch_of_the_range_gives_the_logits_of_its_slots(cuda_graph, refit, stand, tmp_path):
    session = session_of(stand.device(stand.bundle(tmp_path / "b", refit=refit), cuda_graph=cuda_graph))
    given = slots(1)
    buffers = session.load_slots(*given)

    for size in (*range(1, MAX_BATCH + 1), 1, 3):
        batch = images(size, seed=size)
        output = session.run(batch, buffers, with_features=True)
        close(output.logits, expected_logits(batch, given))
        close(output.features, features_of(batch))
    assert session.run(batch, buffers).features is None
    assert session.top(batch, buffers) is None


def test_a_fused_head_has_no_slots_and_needs_none(stand, tmp_path):
    session = session_of(stand.device(stand.bundle(tmp_path / "b", capacity=0)))

    close(session.run(images(3)).logits, expected_logits(images(3), None))
    with pytest.raises(RuntimeFailureError, match=r"its head is fused\. Export it with `head='updatable'`\.$"):
        session.load_slots(*slots(1))


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("refit", [False, True])
def test_slots_that_were_loaded_earlier_stay_what_they_were(refit, cuda_graph, stand, tmp_path):
    session = session_of(stand.device(stand.bundle(tmp_path / "b", refit=refit), cuda_graph=cuda_graph))
    loaded = [(given, session.load_slots(*given)) for given in (slots(1), slots(2), slots(3))]

    for given, buffers in (*loaded, *reversed(loaded), *loaded):
        close(session.run(images(2), buffers).logits, expected_logits(images(2), given))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (images(2)[:, :5], r"on an input of shape \(2, 5\) and type float32; it expects \('batch', 6\) and float32\.$"),
        (images(2).astype(np.float64), "type float64; it expects"),
        (images(MAX_BATCH + 1), r"^The engine takes batches of 1 to 8 images, not 9\. Split the batch, or build"),
        (images(0), "not 0"),
    ],
)
def test_an_input_that_the_engine_does_not_take_is_an_error_that_states_what_it_takes(batch, message, stand, folder):
    device = stand.device(folder)

    with pytest.raises(RuntimeFailureError, match=message):
        device.logits(batch)


def test_an_updatable_engine_holds_no_slots_of_its_own(stand, folder):
    with pytest.raises(
        RuntimeFailureError, match=r"holds no slots of its own\. Load them, and give them with each run"
    ):
        session_of(stand.device(folder)).run(images(1))


def test_slots_of_another_shape_are_refused(stand, folder):
    with pytest.raises(RuntimeFailureError, match=r"slot_weight has shape \(5, 4\); this engine takes \(4, 4\)\.$"):
        session_of(stand.device(folder)).load_slots(*slots(1, capacity=5))


# A device on it.


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_device_takes_updates_and_gives_them_back(cuda_graph, refit, stand, tmp_path, keys, signed):
    folder = stand.bundle(tmp_path / "b", refit=refit)
    trust(folder, keys.public_path)
    device = stand.device(folder, cuda_graph=cuda_graph)
    reference = Device.open(folder, num_threads=1)

    for step in (
        make_update("okapi"),
        make_update("zebra", "quagga", version=2),
        make_update(version=3, replaced=("okapi",)),
        None,
    ):
        device.rollback() if step is None else device.apply(signed(step))
        reference.refresh()
        assert device.classes() == reference.classes()
        close(device.logits(images(3)).values, reference.logits(images(3)).values)
    close(stand.device(folder).logits(images(3)).values, reference.logits(images(3)).values)


def test_threads_get_their_own_answers_while_updates_come(stand, folder, signed):
    device = stand.device(folder, num_streams=2)
    updates = [make_update("okapi", version=1)]
    updates += [make_update(version=version, replaced=("okapi",)) for version in range(2, 12)]
    slots_of = {update.version: (update.rows[:, :-1], update.rows[:, -1]) for update in updates}
    done = threading.Event()

    def ask(seed: int) -> set[int]:
        batch, versions = images(2, seed=seed), set()
        while not done.is_set():
            answer = device.logits(batch)
            close(answer.values, expected_logits(batch, slots_of.get(answer.version)))
            versions.add(answer.version)
        return versions

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, seed) for seed in (1, 2, 3)]
        try:
            for update in updates:
                device.apply(signed(update))
        finally:
            done.set()
        assert set().union(*(each.result() for each in asking)) <= {0, *slots_of}


# Slots with an arbiter.


def arbiters(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(CAPACITY, 5)).astype(np.float32)


def expected_with(batch: np.ndarray, given: tuple[np.ndarray, np.ndarray], arbiter: np.ndarray) -> np.ndarray:
    new = new_logits(batch, np.hstack([given[0], given[1][:, None]]), arbiter)
    return np.hstack([seen_head().logits(features_of(batch)), new])


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("refit", [False, True])
def test_slots_with_arbiters_that_were_loaded_earlier_stay_what_they_were(refit, cuda_graph, stand, tmp_path):
    folder = stand.bundle(tmp_path / "b", refit=refit, arbiter=True)
    session = session_of(stand.device(folder, cuda_graph=cuda_graph))
    loaded = [
        (slots(seed), arbiter, session.load_slots(*slots(seed), arbiter))
        for seed, arbiter in ((1, arbiters(1)), (2, np.zeros((CAPACITY, 5), np.float32)), (3, arbiters(3)))
    ]
    loaded.append((slots(4), np.zeros((CAPACITY, 5)), session.load_slots(*slots(4))))

    for given, arbiter, buffers in (*loaded, *reversed(loaded), *loaded):
        close(session.run(images(2), buffers).logits, expected_with(images(2), given, arbiter))


@pytest.mark.parametrize("refit", [False, True])
def test_a_device_takes_arbiters_and_gives_them_back(refit, stand, tmp_path, keys, signed):
    folder = stand.bundle(tmp_path / "b", refit=refit, arbiter=True)
    trust(folder, keys.public_path)
    device, reference = stand.device(folder), Device.open(folder, num_threads=1)

    for step in (
        make_update("okapi", arbiter=arbiters(1)[:1]),
        make_update("zebra", "quagga", version=2),
        make_update(version=3, replaced=("okapi",), arbiter=arbiters(2)[:1]),
        make_update(version=4, replaced=("okapi",)),
        None,
        None,
    ):
        device.rollback() if step is None else device.apply(signed(step))
        reference.refresh()
        close(device.logits(images(3)).values, reference.logits(images(3)).values)
        close(stand.device(folder).logits(images(3)).values, reference.logits(images(3)).values)


@pytest.mark.parametrize("refit", [False, True])
def test_an_engine_that_takes_no_arbiters_says_what_to_do(refit, stand, tmp_path):
    session = session_of(stand.device(stand.bundle(tmp_path / "b", refit=refit)))

    assert session.load_slots(*slots(1), np.zeros((CAPACITY, 5), np.float32)).arbiter is None
    with pytest.raises(RuntimeFailureError, match=r"^The model has no input 'slot_arbiter'.* `arbiter='off'`\.$"):
        session.load_slots(*slots(1), arbiters(1))


def test_arbiters_of_another_shape_are_refused(stand, tmp_path):
    session = session_of(stand.device(stand.bundle(tmp_path / "b", arbiter=True)))

    with pytest.raises(RuntimeFailureError, match=r"slot_arbiter has shape \(3, 5\); this engine takes \(4, 5\)\.$"):
        session.load_slots(*slots(1), arbiters(1)[:3])


def test_arbiters_that_a_refit_left_out_are_noticed_before_anything_is_published(fake, tmp_path, keys, signed):
    folder = fake.bundle(tmp_path / "b", refit=True, arbiter=True)
    trust(folder, keys.public_path)
    device = fake.device(folder)
    device.apply(signed(make_update("okapi", version=1, arbiter=arbiters(1)[:1])))
    before, bytes_before = device.logits(images(3)).values, files_in(folder)
    fake.trt.refit_fault = f"without {SLOT_ARBITER}"

    with pytest.raises(SelfTestError, match=r"do not hold their rows after they were written: .*was taken back\."):
        device.apply(signed(make_update("zebra", "quagga", version=2, arbiter=arbiters(2)[:2])))
    fake.trt.refit_fault = None
    assert files_in(folder) == bytes_before
    np.testing.assert_array_equal(device.logits(images(3)).values, before)


# Which buffer, in which order: on the fake, which tells.


@pytest.fixture
def fake_folder(fake, tmp_path, keys) -> Path:
    path = fake.bundle(tmp_path / "engine-bundle")
    trust(path, keys.public_path)
    return path


@pytest.mark.parametrize("refit", [False, True])
def test_many_updates_flip_between_two_places(refit, fake, tmp_path, keys, signed):
    folder = fake.bundle(tmp_path / "b", refit=refit)
    trust(folder, keys.public_path)
    device = fake.device(folder)
    device.apply(signed(make_update("okapi", version=1)))
    device.logits(images(1))
    device.apply(signed(make_update(version=2, replaced=("okapi",))))
    held, engines = len(fake.cuda.held), len(fake.trt.engines)

    for version in range(3, 20):
        device.apply(signed(make_update(version=version, replaced=("okapi",))))
        device.logits(images(1))
    assert (len(fake.cuda.held), len(fake.trt.engines)) == (held, engines)
    assert engines == (2 if refit else 1)


@pytest.mark.parametrize("refit", [False, True])
def test_a_request_in_flight_ends_with_the_slots_it_started_with(refit, fake, tmp_path):
    session = session_of(fake.device(fake.bundle(tmp_path / "b", refit=refit), num_streams=2))
    first = slots(1)
    buffers = [session.load_slots(*first)]
    in_flight, go_on = threading.Event(), threading.Event()

    def wait_once() -> None:
        fake.cuda.on_synchronize = lambda: None
        in_flight.set()
        assert go_on.wait(10)

    with ThreadPoolExecutor(1) as pool:
        fake.cuda.on_synchronize = wait_once
        answer = pool.submit(lambda: session.run(images(2), buffers.pop()))
        assert in_flight.wait(10)
        for seed in range(2, 8):
            given = slots(seed)
            newer = session.load_slots(*given)
            close(session.run(images(2), newer).logits, expected_logits(images(2), given))
        go_on.set()
        close(answer.result().logits, expected_logits(images(2), first))


def test_requests_run_at_the_same_time_on_as_many_streams_as_there_are(fake, fake_folder):
    session = session_of(fake.device(fake_folder, num_streams=2))
    buffers = session.load_slots(*slots(1))
    both = threading.Barrier(2, timeout=10)
    fake.cuda.on_synchronize = both.wait

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(session.run, images(2, seed=seed), buffers) for seed in (1, 2)]
        for seed, answer in zip((1, 2), answers, strict=True):
            close(answer.result().logits, expected_logits(images(2, seed=seed), slots(1)))


def test_one_stream_serves_one_request_after_the_other(fake, fake_folder):
    session = session_of(fake.device(fake_folder))
    buffers = session.load_slots(*slots(1))
    running, most = [], []

    def count() -> None:
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.01)
        running.pop()

    fake.cuda.on_synchronize = count
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: session.run(images(1), buffers), range(8)))
    assert max(most) == 1


def test_a_graph_is_captured_once_for_each_batch_and_place_and_then_launched(fake, fake_folder):
    session = session_of(fake.device(fake_folder, cuda_graph=True))
    loaded = [session.load_slots(*slots(seed)) for seed in (1, 2)]
    fake.cuda.calls.clear()
    for size in (1, 2):
        for buffers in (*loaded, *loaded, *loaded):
            session.run(images(size), buffers)

    # The self-test at opening captured a graph of its own, for batch 1 and the first place.
    assert fake.cuda.calls["cudaStreamBeginCapture"] + fake.cuda.calls["cudaGraphLaunch"] == 12
    assert fake.cuda.calls["cudaGraphLaunch"] >= 8


def test_batch_sizes_beyond_those_with_graphs_run_without(fake, fake_folder):
    session = session_of(fake.device(fake_folder, cuda_graph=True))
    buffers = session.load_slots(*slots(1))
    for size in range(1, MAX_GRAPH_BATCHES + 1):
        session.run(images(size), buffers)
    fake.cuda.calls.clear()
    for _ in range(3):
        close(session.run(images(7), buffers).logits, expected_logits(images(7), slots(1)))

    assert fake.cuda.calls["cudaStreamBeginCapture"] == fake.cuda.calls["cudaGraphLaunch"] == 0


def test_memory_of_the_gpu_is_given_back_with_the_session(fake, fake_folder):
    device = fake.device(fake_folder)
    device.logits(images(2))
    assert fake.cuda.held
    del device
    gc.collect()

    assert fake.cuda.held == {}


# What goes wrong.


@pytest.mark.parametrize("refit", [False, True])
def test_slots_that_did_not_arrive_are_noticed_before_anything_is_published(refit, fake, tmp_path, keys, signed):
    folder = fake.bundle(tmp_path / "b", refit=refit)
    trust(folder, keys.public_path)
    device = fake.device(folder)
    device.apply(signed(make_update("okapi", version=1)))
    before, bytes_before = device.logits(images(3)).values, files_in(folder)
    fake.cuda.loses_copies_to_device, fake.trt.refit_fault = not refit, "blend" if refit else None

    with pytest.raises(SelfTestError, match=r"do not hold their rows after they were written: .*was taken back\."):
        device.apply(signed(make_update("zebra", "quagga", version=2)))
    fake.cuda.loses_copies_to_device, fake.trt.refit_fault = False, None
    assert files_in(folder) == bytes_before
    np.testing.assert_array_equal(device.logits(images(3)).values, before)


def test_a_refit_that_is_refused_leaves_the_device_as_it_was(fake, tmp_path, keys, signed):
    folder = fake.bundle(tmp_path / "b", refit=True)
    trust(folder, keys.public_path)
    device = fake.device(folder)
    fake.trt.refit_fault = "refused"

    with pytest.raises(RuntimeFailureError, match=r"^TensorRT could not refit the weight 'slot_rows': Refit failed\.$"):
        device.apply(signed(make_update("okapi")))
    assert device.classes() == ("cat", "dog", "owl")
    close(device.logits(images(3)).values, expected_logits(images(3), None))


def test_slots_that_another_process_wrote_are_tested_by_a_run_where_the_engine_holds_them(fake, tmp_path, keys, signed):
    """Nobody reads weights back from an engine that was refitted, so only what it computes can tell."""
    folder = fake.bundle(tmp_path / "b", refit=True)
    trust(folder, keys.public_path)
    device = fake.device(folder)
    Device.open(folder).apply(signed(make_update("okapi", version=1)))
    fake.trt.refit_fault = "blend"
    with pytest.raises(SelfTestError, match="do not hold their rows"):
        device.refresh()
    assert (device.version, device.classes()) == (0, ("cat", "dog", "owl"))

    fake.trt.refit_fault = None
    assert device.refresh()
    assert device.classes() == ("cat", "dog", "owl", "okapi")


def test_an_engine_that_ignores_its_slots_is_refused_when_it_is_opened(fake, fake_folder, signed):
    Device.open(fake_folder).apply(signed(make_update("okapi")))
    fake.trt.engines_ignore_slots = True

    with pytest.raises(SelfTestError, match="do not hold their rows"):
        fake.device(fake_folder)


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_gpu_that_fails_is_an_error_in_its_own_words(call, fake, fake_folder):
    device = fake.device(fake_folder)
    fake.cuda.failing = call

    with pytest.raises(
        RuntimeFailureError, match=rf"^The GPU failed in {call}: out of memory \(CUDA error 2\)\. Open the device again"
    ):
        device.logits(images(1))


def test_a_gpu_of_another_architecture_is_refused_before_the_engine_is_loaded(fake, fake_folder):
    fake.cuda.capability = (7, 5)

    with pytest.raises(EngineMismatchError, match=r"compute_capabilities is 8\.6, here 7\.5\. Build it here"):
        fake.device(fake_folder)
    assert fake.trt.engines == []


def test_an_engine_that_tensorrt_refuses_all_the_same_is_an_error_in_its_own_words(fake, fake_folder):
    path = fake_folder / engine_name(RUNTIME)
    path.write_bytes(b"not an engine")
    sidecar = json.loads((fake_folder / sidecar_name(RUNTIME)).read_text())
    sidecar["engine_sha256"] = file_entry(path).sha256
    (fake_folder / sidecar_name(RUNTIME)).write_text(json.dumps(sidecar))
    restated(fake_folder)

    with pytest.raises(
        ModelLoadError, match=r"^TensorRT cannot load the engine .*: Magic tag does not match\. Build it"
    ):
        fake.device(fake_folder)


@pytest.mark.parametrize(("runtime", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_a_machine_without_tensorrt_says_what_to_install(runtime, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError,
        match=rf"runtime '{runtime}' cannot be imported .*pip install 'icis-deploy\[{runtime}\]'",
    ) as raised:
        load_tensorrt(runtime)
    assert raised.value.where == module

    # The package index has an empty package of this name.
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=rf"^The module '{module}' is not TensorRT\. Install it: pip"):
        load_tensorrt(runtime)
    monkeypatch.delitem(sys.modules, module)


def test_a_machine_without_cuda_python_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=r"^Using a GPU needs cuda-python\. Install it: pip"):
        load_cuda()


def test_an_engine_that_its_sidecar_does_not_belong_to_is_refused(fake, fake_folder):
    (fake_folder / engine_name(RUNTIME)).write_bytes(b"another engine")
    restated(fake_folder)

    with pytest.raises(EngineMismatchError, match="engine_sha256 is "):
        fake.device(fake_folder)


def test_a_sidecar_that_cannot_be_read_is_an_error_that_names_the_file(fake, fake_folder):
    (fake_folder / sidecar_name(RUNTIME)).write_bytes(b"{}")
    restated(fake_folder)

    with pytest.raises(BundleError, match=r"engines/tensorrt-rtx\.json: The engine's sidecar is not one"):
        fake.device(fake_folder)


def test_a_bundle_without_an_engine_says_how_to_get_one(fake, bundle_folder):
    with pytest.raises(
        IncompatibleError, match=r"holds no engine for 'tensorrt-rtx'\. Export it with `targets=\['tensorrt-rtx'\]`"
    ):
        fake.device(bundle_folder)


# The fake itself.


def test_the_fake_has_only_what_the_real_libraries_have():
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python has no wheel for this platform")
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

    def absent(names: set[str], real: Any) -> set[str]:
        return {name for name in names if not name.startswith("_") and not hasattr(real, name)}

    assert absent({name for name in dir(FakeCuda) if name.startswith("cuda")}, cudart) == set()
    for enumeration in ("cudaDeviceAttr", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert absent(set(vars(getattr(FakeCuda, enumeration))), getattr(cudart, enumeration)) == set()
    assert absent(set(dir(FakeContext)), trt.IExecutionContext) == set()
    assert absent({"create_execution_context"}, trt.ICudaEngine) == set()
    assert absent({"set_named_weights", "refit_cuda_engine"}, trt.Refitter) == set()
    assert absent({"Weights", "Runtime", "Refitter", "ILogger", "Builder"}, trt) == set()
    assert absent({"deserialize_cuda_engine"}, trt.Runtime) == set()
