"""A session of interpreters, on one that is written with ONNX Runtime and fails when it is told to.

What the installed runtimes do with it is in `test_converted_sessions.py`; none of them can be made to fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.graph.edits import apply_passes
from exporters.head.topk_output import AddTopKPass
from exporters.onnx_io.files import serialize_model
from icis_deploy.bundle.converted_sidecar import ConvertedSidecar, ConvertedTensor
from icis_deploy.bundle.manifest import (
    FEATURES,
    MODEL_NAME,
    SLOT_BIAS,
    SLOT_WEIGHT,
    TOP_CLASS_IDS,
    TOP_PROBABILITIES,
    load_bundle,
)
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.sessions.interpreter_session import InterpreterSession
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from testing.bundles import FEATURE_DIM, INPUT_DIM, images, write_bundle

CAPACITY, NUM_SCORES, TOP = 4, 7, 2
INPUTS = (("image", (2, INPUT_DIM)), (SLOT_WEIGHT, (CAPACITY, FEATURE_DIM)), (SLOT_BIAS, (CAPACITY,)))
OUTPUTS = (("logits", (2, NUM_SCORES)), (FEATURES, (2, FEATURE_DIM)))
CHOICE = ((TOP_PROBABILITIES, (2, TOP)), (TOP_CLASS_IDS, (2, TOP)))


class OnnxInterpreter:
    """One at a time may use it, in batches of 2; ids of classes are int32, as in most such runtimes."""

    def __init__(self, model: bytes) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.slots: dict[str, np.ndarray] = {}
        self.num_writes = 0
        self.failing = ""

    def _call(self, name: str) -> None:
        if self.failing == name:
            raise OSError("out of memory")

    def write_slots(self, slots: Mapping[str, np.ndarray]) -> None:
        self.num_writes += 1
        self.slots[SLOT_WEIGHT] = slots[SLOT_WEIGHT].copy()
        self._call("write between weight and bias")
        self.slots[SLOT_BIAS] = slots[SLOT_BIAS].copy()

    def read_slots(self) -> Mapping[str, np.ndarray]:
        self._call("read")
        return dict(self.slots)

    def run(self, images: np.ndarray, names: list[str]) -> list[np.ndarray]:
        self._call("run")
        assert len(images) == 2
        found = self.session.run(names, {"image": images, **self.slots})
        return [each.astype(np.int32) if each.dtype == np.int64 else each for each in found]


class Stand:
    """A session, the one interpreter that it made, and ONNX Runtime's own session of the same model."""

    def __init__(self, folder, *, top: int = 0, chooses: bool = False) -> None:
        write_bundle(folder)
        model = ir.load(folder / MODEL_NAME)
        if chooses:
            model = apply_passes(model, AddTopKPass("logits", TOP))
        data = serialize_model(model)
        self.reference = load_session(data, num_threads=1)
        self.made: list[OnnxInterpreter] = []

        def make() -> OnnxInterpreter:
            self.made.append(OnnxInterpreter(data))
            return self.made[-1]

        outputs = (*OUTPUTS, *(CHOICE if chooses else ()))
        sidecar = ConvertedSidecar(
            runtime="mnn",
            converter="test",
            model_sha256="0" * 64,
            inputs=tuple(tensor(*each) for each in INPUTS),
            outputs=tuple(tensor(*each) for each in outputs),
            created_by="test",
        )
        self.session = InterpreterSession(make, sidecar, replace(load_bundle(folder), top=top), library="Onyx")

    @property
    def interpreter(self) -> OnnxInterpreter:
        assert len(self.made) == 1, "requests that do not overlap share one"
        return self.made[0]


def tensor(name: str, shape: tuple[int, ...]) -> ConvertedTensor:
    dtype = "int64" if name == TOP_CLASS_IDS else "float32"
    return ConvertedTensor(name=name, runtime_name=f"{name}:0", dtype=dtype, shape=shape)


def slots(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(CAPACITY, FEATURE_DIM)).astype(np.float32), random.normal(size=CAPACITY).astype("f4")


@pytest.fixture
def stand(tmp_path) -> Stand:
    return Stand(tmp_path / "bundle")


def assert_answers(stand: Stand, given: tuple[np.ndarray, np.ndarray], buffers) -> None:
    expected = stand.reference.run(images(3), stand.reference.load_slots(*given)).logits
    np.testing.assert_allclose(stand.session.run(images(3), buffers).logits, expected, atol=1e-6)


def test_slots_are_written_only_where_they_are_others(stand):
    first, second = (stand.session.load_slots(*slots(seed)) for seed in (1, 2))
    for buffers, seed in ((first, 1), (first, 1), (second, 2), (first, 1)):
        assert_answers(stand, slots(seed), buffers)
    assert stand.interpreter.num_writes == 3


def test_features_come_where_they_are_asked_for(stand):
    buffers = stand.session.load_slots(*slots(1))
    expected = stand.reference.run(images(3), with_features=True).features
    np.testing.assert_allclose(stand.session.run(images(3), buffers, with_features=True).features, expected, atol=1e-6)
    assert stand.session.run(images(3), buffers).features is None


def test_a_run_that_fails_is_an_error_in_the_runtimes_own_words_and_the_next_one_answers(stand):
    buffers = stand.session.load_slots(*slots(1))
    stand.interpreter.failing = "run"
    with pytest.raises(
        RuntimeFailureError,
        match=r"^Onyx could not run the model on an input of shape \(2, 6\) and type float32; it expects \(2, 6\) and "
        r"float32: out of memory",
    ) as raised:
        stand.session.run(images(3), buffers)
    assert isinstance(raised.value.__cause__, OSError)
    stand.interpreter.failing = ""
    assert_answers(stand, slots(1), buffers)


def test_slots_that_were_written_in_part_are_nobodys(stand):
    """An interpreter with the weight of one state and the bias of another must answer for neither."""
    old, new = (stand.session.load_slots(*slots(seed)) for seed in (1, 2))
    assert_answers(stand, slots(1), old)
    stand.interpreter.failing = "write between weight and bias"
    with pytest.raises(RuntimeFailureError, match="out of memory"):
        stand.session.run(images(3), new)
    stand.interpreter.failing = ""
    assert_answers(stand, slots(1), old)
    assert_answers(stand, slots(2), new)


def test_slots_that_cannot_be_read_back_are_an_error(stand):
    buffers = stand.session.load_slots(*slots(1))
    np.testing.assert_array_equal(stand.session.read_slots(buffers).weight, slots(1)[0])
    stand.interpreter.failing = "read"
    with pytest.raises(RuntimeFailureError, match=r"^Onyx could not read its slots back: out of memory"):
        stand.session.read_slots(buffers)


@pytest.mark.parametrize("chooses", [True, False], ids=["the model", "the host"])
def test_classes_are_chosen_by_the_model_or_by_the_host(chooses, tmp_path):
    stand = Stand(tmp_path / "bundle", top=TOP, chooses=chooses)
    buffers = stand.session.load_slots(*slots(1))
    logits = stand.reference.run(images(3), stand.reference.load_slots(*slots(1))).logits.astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    every = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    probabilities, columns = stand.session.top(images(3), buffers)
    assert columns.dtype == np.int64
    np.testing.assert_array_equal(columns, order)
    np.testing.assert_allclose(probabilities, np.take_along_axis(every, order, axis=1), atol=1e-6)


def test_a_bundle_whose_model_chooses_nothing_gets_no_choice(stand):
    assert stand.session.top(images(3), stand.session.load_slots(*slots(1))) is None
