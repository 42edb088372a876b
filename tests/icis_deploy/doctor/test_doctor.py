"""What `doctor` says: of installations, of runtimes that work, fail or are missing, and of bundles."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import icis_deploy
from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.cli.doctor import _verdict
from icis_deploy.cli.main import run
from icis_deploy.doctor import bundles, installation, runtimes, tiny_bundle
from icis_deploy.doctor.bundles import check_bundle
from icis_deploy.doctor.installation import _numbers
from icis_deploy.errors import MissingDependencyError
from icis_deploy.extras import Extra
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import RUNTIME_NAMES
from icis_deploy.updates.signing import keygen
from testing.bundles import files_in, make_update, trust, write_bundle, write_signed

SOURCE = Path(__file__).with_name("tiny_model.py")
REPOSITORY = Path(__file__).resolve().parents[3]


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    capsys.readouterr()
    code = run([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


# --- the small bundle -------------------------------------------------------------------------------------------------


def test_the_bytes_of_the_model_are_those_of_its_source() -> None:
    spec = importlib.util.spec_from_file_location("tiny_model", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    empty = empty_slots(tiny_bundle.CAPACITY, tiny_bundle.FEATURE_DIM).bias[0]

    assert onnx.load_from_string(tiny_bundle.model_bytes()) == source.tiny_model(
        tiny_bundle.filters(), tiny_bundle.head().rows, empty
    )


def test_what_the_small_bundle_answers_is_what_is_expected_of_it(tmp_path: Path) -> None:
    device = Device.open(tiny_bundle.write_tiny_bundle(tmp_path))

    expected = tiny_bundle.expected_logits(tiny_bundle.head().rows)
    np.testing.assert_allclose(device.logits(tiny_bundle.inputs()).values, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.01  # the answer depends on the image


# --- runtimes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states() -> dict[str, runtimes.RuntimeState]:
    return {each.name: each for each in runtimes.runtimes()}


def test_each_runtime_is_said_to_do_what_it_does(states: dict[str, runtimes.RuntimeState]) -> None:
    assert list(states) == list(RUNTIME_NAMES)
    assert states["onnxruntime"].state == "works"
    assert "took a class update" in states["onnxruntime"].detail
    if importlib.util.find_spec("openvino"):
        assert states["openvino"].state == "works"


@pytest.mark.usefixtures("no_gpu")
def test_a_runtime_without_its_hardware_is_missing_and_says_what_for(states: dict[str, runtimes.RuntimeState]) -> None:
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"):
        assert states[name].state == "missing"
        assert states[name].hint


@pytest.mark.gpu
def test_on_a_gpu_engines_are_not_claimed_to_work_without_one(states: dict[str, runtimes.RuntimeState]) -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        assert states[name].state in {"not tried", "missing"}


def test_a_runtime_that_computes_something_else_or_fails_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny_bundle.head().rows + np.float32(0.1)
    with monkeypatch.context() as patch:
        patch.setattr(runtimes, "expected_logits", lambda _rows: tiny_bundle.expected_logits(rows)[:, :1])
        assert runtimes._state("onnxruntime").detail == "it computes something else"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such symbol")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    found = runtimes._state("onnxruntime")
    assert found.state == "broken"
    assert "no such symbol" in found.detail


# --- installation -----------------------------------------------------------------------------------------------------


def planted(folder: Path, *names: str) -> Path:
    """Return a folder that makes Python take distributions for installed."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-1.99.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.99.0\n")
    return folder


def test_both_packages_of_onnx_runtime_are_a_conflict_with_the_command_that_ends_it(tmp_path: Path) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(planted(tmp_path / "p", "onnxruntime", "onnxruntime-gpu"))])
    done = subprocess.run(
        [sys.executable, "-c", "from icis_deploy.cli.main import main; main()", "doctor", "--format", "json"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout)

    assert done.returncode == 5, done.stderr
    [conflict] = result["conflicts"]
    assert "onnxruntime 1.99.0 and onnxruntime-gpu 1.99.0 are installed together" in conflict["problem"]
    assert conflict["command"] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'icis-deploy[cpu]'"
    assert result["runtimes"][0]["state"] == "missing"


def test_a_missing_or_old_library_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.32.0", "torch": "2.7.1+cpu", "onnx": "1.18.0", "onnx-ir": "1.1.0", "scipy": "1.13rc1"}
    monkeypatch.setattr(installation, "_version", versions.get)
    states = {each.name: each for each in installation.extras()}

    assert states["cpu"].command is None
    assert states["gpu"].command == "pip uninstall -y onnxruntime && pip install 'icis-deploy[gpu]'"
    assert states["train"].missing == ("torch>=2.8",)
    assert states["train"].command == "pip install 'icis-deploy[train]'"
    assert "transformers>=4.50" in states["hub"].missing
    assert "onnxscript>=0.5" in states["hub"].missing  # of the extra that it brings
    assert installation.conflicts() == ()


def test_a_library_with_extras_of_its_own_is_there_with_what_they_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(name: str, *lines: str) -> None:
        folder = tmp_path / f"{name}-2.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 2.0", *lines]))

    install(
        "kit",
        "Requires-Dist: part>=1; extra == 'hsm'",
        "Requires-Dist: elsewhere; extra == 'hsm' and sys_platform == 'no-such-system'",
        "Requires-Dist: never; extra == 'other'",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        installation,
        "EXTRAS",
        {name: Extra(purpose="x", requires={name: "1.1"}) for name in ("kit", "kit[hsm]", "kit[hsm,other]")},
    )

    def missing() -> list[tuple[str, ...]]:
        return [state.missing for state in installation.extras()]

    assert missing() == [(), ("kit[hsm]>=1.1",), ("kit[hsm,other]>=1.1",)]
    install("part")
    assert missing() == [(), (), ("kit[hsm,other]>=1.1",)]


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", (2, 13, 0)), ("10.3", (10, 3)), ("5.0rc1", (5, 0)), ("x", ())]
)
def test_versions_are_compared_by_their_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert _numbers(version) == expected


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def states_of(bundle: Path, **options: object) -> dict[str, str]:
    return {each.name: each.state for each in check_bundle(bundle, **options)}  # type: ignore[arg-type]


def test_a_sound_bundle_is_looked_at_and_not_changed(bundle: Path, tmp_path: Path) -> None:
    keys = keygen(tmp_path / "KEY")
    trust(bundle, keys.public_path)
    icis_deploy.sign_bundle(bundle, key=keys.private_path)
    before = files_in(bundle)

    assert states_of(bundle, trust=[keys.public_path]) == {
        "files": "ok", "signature": "ok", "state": "ok", "slots": "ok", "answers in onnxruntime": "ok",
    }  # fmt: skip
    assert states_of(bundle)["signature"] == "note"
    assert files_in(bundle) == before


def test_a_bundle_that_was_changed_since_is_looked_at_as_it_is(bundle: Path, tmp_path: Path) -> None:
    keys = keygen(tmp_path / "KEY")
    trust(bundle, keys.public_path)
    names = [f"new{index}" for index in range(4)]
    Device.open(bundle).apply(write_signed(tmp_path / "new.icis", make_update(*names, version=7), keys.private_path))
    found = {each.name: each for each in check_bundle(bundle)}

    assert found["state"].detail == "version 7, 1 change since the export; takes updates signed by one of 1 keys"
    assert found["slots"].state == "note"
    assert found["slots"].detail == "0 of 4 free, 7 classes"


@pytest.mark.parametrize(
    ("installed", "expected", "code"),
    [
        ({"mnn"}, {"onnxruntime": "not looked at", "mnn": "ok"}, 0),
        (set(), {"onnxruntime": "failed", "mnn": "failed"}, 5),
    ],
)
def test_a_device_needs_one_of_the_runtimes_that_a_bundle_is_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str], expected: dict[str, str], code: int
) -> None:
    def answers(_: Path, runtime: str) -> bundles.Check:
        if runtime not in installed:
            raise MissingDependencyError(f"The runtime {runtime!r} is not installed.")
        return bundles.Check(name=f"answers in {runtime}", state="ok", detail="as it should")

    manifest = load_manifest(bundle)
    with_files = replace(manifest, files={**manifest.files, "mnn/model.mnn": manifest.files["model.onnx"]})
    monkeypatch.setattr(bundles, "load_bundle", lambda _: with_files)
    monkeypatch.setattr(bundles, "_answers", answers)

    found = [each for each in check_bundle(bundle) if each.name.startswith("answers in ")]
    assert {each.name.removeprefix("answers in "): each.state for each in found} == expected
    assert {each.exit_code for each in found} == {code}


def test_a_device_with_the_library_of_a_converted_model_alone_is_no_failure() -> None:
    states = [
        runtimes.RuntimeState(name="onnxruntime", state="missing", detail="it is not installed"),
        runtimes.RuntimeState(name="mnn", state="not tried", detail="it runs files that an export makes"),
    ]
    assert _verdict([], states, []) == (0, "")
    assert _verdict([], states[:1], [])[0] == 5


@pytest.mark.parametrize(
    ("damage", "failed", "code"),
    [
        (lambda bundle: (bundle / "model.onnx").write_bytes(b"x"), "files", 6),
        (lambda bundle: (bundle / "manifest.json").unlink(), "files", 3),
        (lambda bundle: (bundle / "state" / "journal.json").write_bytes(b"{}"), "state", 6),
    ],
)
def test_what_is_wrong_with_a_bundle_is_named_and_decides_the_exit_code(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage, failed: str, code: int
) -> None:
    assert run(["disable", str(bundle), "cat"]) == 0
    damage(bundle)
    found, result = run_json(["doctor", "--bundle", str(bundle)], capsys)

    assert next(check["name"] for check in result["checks"] if check["state"] == "failed") == failed
    assert result["status"] == "failed"
    assert found == code


def test_an_unsigned_bundle_fails_where_a_key_is_given(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = keygen(tmp_path / "KEY")
    code, result = run_json(["doctor", "--bundle", str(bundle), "--trust", str(keys.public_path)], capsys)

    assert code == 6
    assert [check["state"] for check in result["checks"]][:2] == ["ok", "failed"]
    assert run(["doctor", "--trust", str(keys.public_path)]) == 2


def test_the_text_is_for_people_and_names_commands(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--bundle", str(bundle)]) == 0
    text = capsys.readouterr().out

    assert text.startswith(f"icis-deploy {icis_deploy.__version__}, Python ")
    assert "\nRuntimes\nonnxruntime           works" in text
    assert f"\nBundle {bundle}\nfiles" in text
    assert "`icis-deploy sign-bundle` signs it." in text
