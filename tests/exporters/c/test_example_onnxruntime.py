"""The example for ONNX Runtime's C API: compiled with every warning an error, linked to the wheel's library, and run.

It needs the header, which no wheel holds: `ONNXRUNTIME_INCLUDE` names its folder, or Debian's libonnxruntime-dev brings
it (from Debian 13 on). A header may be older than the library, not newer.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import KeyPair, keygen
from scripts.robustness.c_reader import FLAGS, SOURCES, libcrypto_flags, missing_tools
from testing.bundles import INPUT_DIM, make_update, trust, write_bundle, write_signed

pytestmark = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))

HEADER = "onnxruntime_c_api.h"
FOLDERS = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/local/include")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def include_folder() -> Path:
    """Return the folder of the header, or skip the test."""
    folders = [Path(folder) for folder in (os.environ.get("ONNXRUNTIME_INCLUDE"), *FOLDERS) if folder]
    found = next((folder for folder in folders if (folder / HEADER).is_file()), None)
    if found is None:
        pytest.skip(f"there is no {HEADER}; ONNXRUNTIME_INCLUDE names its folder")
    return found


def wheel_library(folder: Path) -> Path:
    """Return the library that Python's ONNX Runtime loads under the name that a linker asks for, or skip the test."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this wheel of ONNX Runtime has no shared library of its own")
    library = folder / "libonnxruntime.so.1"
    library.symlink_to(found[-1])
    return library


@dataclass(frozen=True, kw_only=True)
class Example:
    """The program, a bundle and the key that it trusts."""

    program: Path
    keys: KeyPair
    folder: Path

    def run(self, bundle: Path, update: Path, image: bytes) -> subprocess.CompletedProcess[str]:
        manifest, key = load_manifest(bundle), load_pem_public_key(self.keys.public_path.read_bytes())
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        sizes = (str(manifest.feature_dim), str(manifest.capacity))
        words = [self.program, bundle / "model.onnx", raw.hex(), manifest.base_fingerprint, *sizes, update]
        ran = subprocess.run(words, input=image, capture_output=True, check=False)
        return subprocess.CompletedProcess(words, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("example")
    library, include = wheel_library(folder), include_folder()
    sources = [SOURCES / name for name in ("example_onnxruntime.c", "icis_update.c")]
    words = ["cc", *FLAGS, *SANITIZERS, *sources, f"-I{include}", library, f"-Wl,-rpath,{folder}", *libcrypto_flags()]
    built = subprocess.run([*words, "-o", folder / "example"], capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "asan" in built.stderr:
        pytest.skip("this compiler has no address sanitizer")
    assert built.returncode == 0, built.stderr
    return Example(program=folder / "example", keys=keygen(folder / "publisher.key"), folder=folder)


def signed(example: Example, update: ClassUpdate, name: str = "new.icis") -> Path:
    return write_signed(example.folder / name, update, example.keys.private_path)


@pytest.fixture(params=[False, True], ids=["offset", "arbiter"])
def bundle(request: pytest.FixtureRequest, example: Example, tmp_path: Path) -> Path:
    folder = write_bundle(tmp_path / "bundle", arbiter=request.param)
    trust(folder, example.keys.public_path)
    return folder


def image() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(1, INPUT_DIM)).astype(np.float32)


def winning_update(*, arbiter: bool, version: int = 3) -> ClassUpdate:
    """Return an update of two classes, of which the second is the answer on every image."""
    rows = np.zeros((2, 5), np.float32)
    rows[1, -1] = 40.0
    coefficients = np.array([[0.0] * 5, [0.0, 0.5, 0.0, 0.0, 0.25]]) if arbiter else None
    return make_update("okapi", "zèbre", rows=rows, version=version, arbiter=coefficients)


def scores(printed: str) -> list[tuple[str, float]]:
    """Return the class and the score of each answer that the program printed."""
    lines = [line.rsplit(", score ", 1) for line in printed.splitlines() if ", score " in line]
    return [(name, float(score)) for name, score in lines]


def python_score(device: Device) -> tuple[int, float]:
    logits = device.logits(image()).values[0]
    return int(logits.argmax()), float(logits.max())


def test_the_example_answers_as_a_device_does_before_and_after_an_update(example: Example, bundle: Path) -> None:
    device = Device.open(bundle, num_threads=1)
    update = signed(example, winning_update(arbiter=load_manifest(bundle).arbiter))

    ran = example.run(bundle, update, image().tobytes())
    assert ran.returncode == 0, ran.stderr
    (before, score_before), (after, score_after) = scores(ran.stdout)
    best, expected = python_score(device)
    assert before == f"class {best} of the model"
    assert score_before == pytest.approx(expected, rel=1e-4)

    device.apply(update, allow_changed_answers=True)
    assert f"version 3 by {device.history()[-1].signed_by[:16]}" in ran.stdout.splitlines()
    assert after == "zèbre" == device.predict(image(), top=1)[0].class_names[0]
    assert score_after == pytest.approx(python_score(device)[1], rel=1e-4)


def test_the_example_refuses_what_a_device_refuses(example: Example, bundle: Path, tmp_path: Path) -> None:
    is_arbiter = load_manifest(bundle).arbiter
    good = signed(example, winning_update(arbiter=is_arbiter))
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 1
    (example.folder / "damaged.icis").write_bytes(data)
    refused = {
        "damaged.icis": "",
        "many.icis": "more classes",
        "strange.icis": "no signature by a trusted key",
    }
    signed(example, make_update("a", "b", "c", "d", "e"), "many.icis")
    stranger = keygen(tmp_path / "stranger.key").private_path
    write_signed(example.folder / "strange.icis", winning_update(arbiter=is_arbiter), stranger)
    if not is_arbiter:
        signed(example, winning_update(arbiter=True), "arbiter.icis")
        refused["arbiter.icis"] = "arbiter"

    for name, said in refused.items():
        ran = example.run(bundle, example.folder / name, image().tobytes())
        assert ran.returncode == 1, ran.stdout
        assert ran.stderr.startswith("refused: ")
        assert said in ran.stderr
        assert len(scores(ran.stdout)) == 1


def test_the_example_says_that_a_model_has_no_slots(example: Example, tmp_path: Path) -> None:
    fused = write_bundle(tmp_path / "fused", capacity=0)
    good = signed(example, winning_update(arbiter=False))
    manifest = load_manifest(write_bundle(tmp_path / "other"))
    (tmp_path / "other" / "model.onnx").write_bytes((fused / "model.onnx").read_bytes())
    assert manifest.capacity == 4

    ran = example.run(tmp_path / "other", good, image().tobytes())
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "has no slots" in ran.stderr
