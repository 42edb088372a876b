"""The example of docs/device.md, run as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.descriptors.files import load_descriptors
from testing.tiny_project import TinyProject
from tests.icis_deploy.api.test_reference import noise_images, write_list

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "device.md").read_text("utf-8")
SECTION = TEXT.split("## A class from a few photos\n")[1].split("\n## ")[0]


def commands(block: str) -> list[list[str]]:
    """Return the arguments of each command in a block."""
    return [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.filterwarnings("ignore::icis_deploy.errors.ICISDeployWarning")
def test_the_example_of_a_class_from_a_few_photos(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    code, first, last = (
        re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)[0],
        *re.findall(r"^```\n(icis-deploy.*?)^```", SECTION, re.MULTILINE | re.DOTALL),
    )
    monkeypatch.chdir(tmp_path)
    for source in (tiny_project.model, tiny_project.classes, tiny_project.preprocess):
        shutil.copy(source, tmp_path)
    write_list(tmp_path / "known.csv", noise_images(tiny_project, tmp_path / "known", num_images=120))
    for name, other in (("okapi-1", "class40"), ("okapi-2", "class41"), ("quagga", "class42")):
        shutil.copy(tiny_project.images.parent / f"{other}.png", f"{name}.jpg")
    described = load_descriptors(tiny_project.descriptors)
    np.savez("okapi.npz", names=np.array(["okapi"]), values=described.select(("class40",)).values)
    icis_deploy.export_generator(
        "model.onnx",
        classes="classes.txt",
        descriptors=described,
        out="generator.onnx",
        options=icis_deploy.GeneratorOptions(injection=icis_deploy.InjectionOptions(method="ridge")),
    )

    for arguments in (*commands(last), *commands(first)):
        assert run(arguments) == 0, arguments
    assert icis_deploy.Device.open("bundle").classes()[-1] == "okapi"
    assert run(["rollback", "bundle"]) == 0
    capsys.readouterr()
    exec(compile(code, "device.md", "exec"), {})
    assert "okapi" in capsys.readouterr().out
    assert icis_deploy.Device.open("bundle").classes() == tiny_project.seen_names
