"""What is wrong with one argument is said before a model is loaded for the others, which may take minutes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import bench as benchmark
from exporters.loading import models
from icis_deploy.cli.main import run
from icis_deploy.runtime import device
from icis_deploy.updates.signing import keygen
from testing.bundles import write_bundle
from testing.tiny_project import TinyProject

Arguments = Callable[[Path, TinyProject], list[str]]


def model_command(name: str, *options: str, out: str = "out") -> Arguments:
    """Return a command that reads a model; `{}` in an option stands for the folder of the wrong files."""

    def arguments(folder: Path, project: TinyProject) -> list[str]:
        given = ["--classes", str(project.classes), *(option.format(folder) for option in options)]
        return [name, str(project.model), *given, *(["--out", str(folder / out)] if out else [])]

    return arguments


def described(name: str, *options: str, out: str = "out") -> Arguments:
    """Return a command that reads a model and good descriptors."""

    def arguments(folder: Path, project: TinyProject) -> list[str]:
        command = model_command(name, *options, out=out)(folder, project)
        return [*command, "--descriptors", str(project.descriptors)]

    return arguments


def bundle_command(name: str, *options: str) -> Arguments:
    """Return a command that runs a bundle's model."""
    return lambda folder, _: [name, str(folder / "bundle"), *(option.format(folder) for option in options)]


WRONG: dict[str, tuple[Arguments, int]] = {
    "inject: no folder for the update": (described("inject", out="none/new.icis"), 2),
    "inject: nothing to inject": (model_command("inject"), 2),
    "inject: no table of descriptors": (model_command("inject", "--descriptors", "{}/text.txt"), 3),
    "inject: a class without a descriptor": (model_command("inject", "--descriptors", "{}/one.csv"), 3),
    "inject: no list of new classes": (described("inject", "--unseen", "{}/empty.txt"), 3),
    "inject: a list that names what is not there": (described("inject", "--seen-images", "{}/gone.csv"), 3),
    "inject: photos without a list": (described("inject", "--photos", "{}/folder"), 3),
    "inject: no preprocessing": (described("inject", "--preprocess", "{}/text.txt"), 3),
    "export: no update": (model_command("export", "--update", "{}/text.txt"), 6),
    "export: no key": (model_command("export", "--head", "updatable", "--trust", "{}/text.txt"), 6),
    "export: a private key": (model_command("export", "--head", "updatable", "--trust", "{}/key"), 6),
    "export: a public key to sign with": (model_command("export", "--key", "{}/key.pub"), 6),
    "export: no generator": (model_command("export", "--head", "updatable", "--generator", "{}/text.txt"), 3),
    "export: slots of a fused head": (model_command("export", "--capacity", "4"), 2),
    "export: a folder that is a file": (model_command("export", out="text.txt/bundle"), 2),
    "export: no images for the gate": (model_command("export", "--images", "{}/gone.csv"), 3),
    "export: no images for the guard": (
        model_command("export", "--head", "updatable", "--seen-images", "{}/gone.csv"),
        3,
    ),
    "export: no images to calibrate on": (
        model_command("export", "--precision", "int8", "--calibration-images", "{}/gone.csv"),
        3,
    ),
    "export: batches in no order": (model_command("export", "--min-batch", "8", "--opt-batch", "2"), 2),
    "export-generator: a class without a descriptor": (
        model_command("export-generator", "--descriptors", "{}/one.csv"),
        3,
    ),
    "export-generator: no folder": (described("export-generator", out="none/generator.onnx"), 2),
    "compare-methods: no images": (described("compare-methods", "--images", "{}/gone.csv", out=""), 3),
    "compare-methods: no seen images": (described("compare-methods", "--seen-images", "{}/gone.csv", out=""), 3),
    "compare-methods: no folder for the plot": (described("compare-methods", "--plot", "{}/none/plot.png", out=""), 2),
    "init: no folder": (model_command("init", out="none/project.yaml"), 2),
    "inspect: no folder for the names": (model_command("inspect", "--classes-out", "{}/none/classes.txt", out=""), 2),
    "verify: no images": (bundle_command("verify", "--against", "{}/text.txt", "--images", "{}/gone.csv"), 3),
    "evaluate: no images": (bundle_command("evaluate", "--images", "{}/gone.csv"), 3),
    "evaluate: a list without classes": (bundle_command("evaluate", "--images", "{}/unlabelled.csv"), 3),
    "evaluate: no folder for the table": (
        bundle_command("evaluate", "--images", "{}/gone.csv", "--per-class", "{}/none/classes.csv"),
        2,
    ),
    "compact: no key": (bundle_command("compact", "--out", "{}/out", "--key", "{}/text.txt"), 6),
    "bench: no folder for the result": (bundle_command("bench", "--out", "{}/none/result.json"), 2),
    "bench: no numbers": (bundle_command("bench", "--batch", "a,b"), 2),
}
"""Commands with one wrong argument, and the exit code that they end with."""


@pytest.fixture
def wrong_files(tmp_path):
    (tmp_path / "text.txt").write_text("a text\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.csv").write_text("name,a\nclass00,1\n")
    (tmp_path / "gone.csv").write_text("file,class\nnone.png,class00\n")
    (tmp_path / "unlabelled.csv").write_text("file\nunlabelled.csv\n")
    (tmp_path / "folder").mkdir()
    keygen(tmp_path / "key")
    write_bundle(tmp_path / "bundle")
    return tmp_path


@pytest.fixture
def loads(monkeypatch):
    """What loads models, each time that it is called."""
    found: list[str] = []
    for module, name in ((models, "load_model"), (device, "open_session")):
        load = getattr(module, name)

        def counted(*arguments, load=load, name=name, **keywords):
            found.append(name)
            return load(*arguments, **keywords)

        monkeypatch.setattr(module, name, counted)
    return found


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_before_a_model_is_loaded(wrong, wrong_files, tiny_project, loads):
    arguments, code = WRONG[wrong]
    before = {path: path.stat().st_mtime_ns for path in sorted(wrong_files.rglob("*"))}

    assert run(arguments(wrong_files, tiny_project)) == code

    assert loads == []
    assert {path: path.stat().st_mtime_ns for path in sorted(wrong_files.rglob("*"))} == before


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_runtime_that_is_not_there_is_said_before_the_original_is_loaded(
    command, wrong_files, tiny_project, loads, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark, "onnx_file", lambda *_: loads.append("onnx_file"))
    arguments = [command, str(wrong_files / "bundle"), "--against", str(tiny_project.model), "--runtime", "tensorrt"]

    assert run(arguments) in {3, 5}  # the bundle holds no engine, and this machine has perhaps no TensorRT

    assert "tensorrt" in capsys.readouterr().err.lower()
    assert loads == ["open_session"]


def test_a_load_would_be_counted(wrong_files, tiny_project, loads):
    arrays = wrong_files / "arrays.npz"
    np.savez(arrays, inputs=np.zeros((1, 6), np.float32), labels=["cat"])

    assert run(["inspect", str(tiny_project.model)]) == 0
    assert run(["evaluate", str(wrong_files / "bundle"), "--images", str(arrays)]) == 0

    assert loads == ["load_model", "open_session"]
