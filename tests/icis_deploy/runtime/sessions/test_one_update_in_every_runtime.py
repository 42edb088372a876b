"""The same signed update on one bundle: every runtime that is installed here answers with the same classes."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.errors import LoadError, MissingDependencyError, SignatureError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import CONVERTED_RUNTIMES
from testing.asking import asking
from testing.bundles import add_targets, images, make_update, trust, write_bundle

ARBITER = np.array([[0.3, -0.2, 0.5, 0.1, -0.4], [0.0, 0.4, 0.0, -0.3, 0.2]], dtype=np.float32)
TARGETS = {"openvino": "openvino", "split": "backbone", **{name: name for name in CONVERTED_RUNTIMES}}
"""By runtime, the target that a bundle needs for it."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return one bundle with all targets that can be built here, and the runtimes that open it."""
    folder = write_bundle(tmp_path_factory.mktemp("one") / "bundle", arbiter=True)
    opened = ["onnxruntime"]
    for runtime, target in TARGETS.items():
        try:
            add_targets(folder, target)
        except MissingDependencyError:
            continue
        opened.append(runtime)
    return folder, opened


def answers(device: Device, batch: np.ndarray) -> list[str]:
    return [prediction.class_names[0] for prediction in device.predict(batch, top=1)]


def test_every_runtime_follows_it_refuses_what_was_changed_and_rolls_back(bundle, tmp_path, keys, signed):
    whole, runtimes = bundle
    assert {"onnxruntime", "split"} <= set(runtimes)
    assert ("openvino" in runtimes) == (find_spec("openvino") is not None)
    update = signed(make_update("okapi", "zebra", arbiter=ARBITER))
    at = update.index(b'"payload":') + 40
    changed = update[:at] + bytes([update[at] ^ 1]) + update[at + 1 :]
    batch = images(40)
    found = {}
    for runtime in runtimes:
        folder = shutil.copytree(whole, tmp_path / runtime)
        trust(folder, keys.public_path)
        with Device.open(folder, runtime=runtime, num_threads=1) as device:
            before = device.logits(batch).values
            with pytest.raises((SignatureError, LoadError)):
                device.apply(changed)
            np.testing.assert_array_equal(device.logits(batch).values, before)
            device.apply(update)
            after = device.logits(batch)
            found[runtime] = after.class_names, after.values, answers(device, batch)
            device.rollback()
            np.testing.assert_array_equal(device.logits(batch).values, before)
    names, logits, classes = found["onnxruntime"]
    assert {"okapi", "zebra"} & set(classes)
    for runtime, (own_names, own_logits, own_classes) in found.items():
        assert own_names == names, runtime
        assert own_classes == classes, runtime
        np.testing.assert_allclose(own_logits, logits, rtol=1e-5, atol=2e-5, err_msg=runtime)


def test_no_answer_of_any_runtime_is_torn_while_three_threads_ask(bundle, tmp_path, keys, signed):
    whole, runtimes = bundle
    batch = images(2)
    for runtime in runtimes:
        folder = shutil.copytree(whole, tmp_path / runtime)
        trust(folder, keys.public_path)
        device = Device.open(folder, runtime=runtime, num_threads=1)
        alone = {device.logits(batch).values.tobytes()}
        for version in (1, 2):
            device.apply(signed(make_update("okapi", "zebra", version=version, seed=version, arbiter=ARBITER)))
            alone.add(device.logits(batch).values.tobytes())
            device.rollback()
        with asking(lambda device=device: device.logits(batch), num_threads=3) as asked:
            asked.wait_for_answers()
            for version in range(3, 9):
                seed = 1 + version % 2
                device.apply(signed(make_update("okapi", "zebra", version=version, seed=seed, arbiter=ARBITER)))
                asked.wait_for_answers()
                device.rollback()
        assert {answer.values.tobytes() for answer in asked.answers} <= alone, runtime
