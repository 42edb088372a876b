"""Every command where the base dependencies alone are installed: it works, or says which extra to install."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.cli.main import cli
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, signed_bytes, trust, write_bundle
from testing.environments import linked_environment
from testing.tiny_project import write_tiny_project

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

WORKS = {
    "bench-scale": False, "bench": False, "bench-fit": False, "bench-peers": False, "bench-update": False,
    "inspect": False, "describe": True, "compare-methods": False, "inject": False, "export-generator": False,
    "export": False, "verify": False, "evaluate": False, "predict": False,
    "keygen": True, "sign": True, "rotate-keys": True, "sign-bundle": True, "verify-update": True,
    "verify-bundle": True, "diff": True,
    "apply": False, "inbox": False, "teach": False, "rollback": False, "history": True, "classes": True,
    "enable": True, "disable": True, "compact": False, "report": False, "demo": False,
    "run": False, "init": False, "doctor": False, "serve": False, "status": True, "fleet-report": False,
}  # fmt: skip
"""Each command, and whether it needs no extra; all others end with 5."""

RUN_ALL = """
import contextlib, io, json, sys
from icis_deploy.cli.main import run
results = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def base_only(tmp_path_factory):
    """A function that runs commands in an environment with the base dependencies, one process for all of them."""
    binaries = linked_environment(tmp_path_factory.mktemp("base") / "venv", ())

    def run_all(commands, cwd):
        result = subprocess.run(
            [str(binaries / "python"), "-c", RUN_ALL],
            input=json.dumps([[str(each) for each in command] for command in commands]),
            cwd=cwd,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run_all


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder with everything that commands take, and the arguments of each."""
    folder = tmp_path_factory.mktemp("work")
    project = write_tiny_project(folder / "project")
    keys = keygen(folder / "KEY")
    for name in ("bundle", "signed", "keyed"):
        write_bundle(folder / name)
    trust(folder / "keyed", keys.public_path)
    for name in ("new.icis", "unsigned.icis"):
        (folder / name).write_bytes(signed_bytes(make_update("okapi", version=1), keys.private_path))
    np.savez(folder / "okapi.npz", names=np.array(["okapi"]), values=np.ones((1, 4), np.float32))
    (folder / "inbox").mkdir()
    (folder / "inbox" / "new.icis").write_bytes((folder / "new.icis").read_bytes())
    (folder / "attributes.csv").write_text("class,a,b\nokapi,1,2\nzebra,2,1\n")
    (folder / "project.yaml").write_text("model: project/model.onnx\ndescriptors: project/descriptors.npz\n")
    (folder / "names.txt").write_text("okapi\nzebra\n")
    described = [project.model, "--classes", project.classes, "--descriptors", project.descriptors]
    (folder / "status.json").write_text("{}")  # a report says of a file that it is no status
    known = json.loads((folder / "bundle" / "manifest.json").read_text())["class_names"][0]
    result = REPOSITORY / "tests" / "benchmarks" / "results" / "bench.json"
    return folder, {
        "inspect": [project.model],
        "describe": ["names.txt", "--attributes", "attributes.csv", "--out", "described.npz"],
        "compare-methods": described,
        "inject": [*described, "--out", "out.icis"],
        "export-generator": [*described, "--out", "generator.onnx"],
        "export": [project.model, "--classes", project.classes, "--out", "exported"],
        "verify": ["bundle", "--against", project.model],
        "evaluate": ["bundle", "--images", project.images],
        "predict": ["bundle", folder / "project" / "class00.png"],
        "keygen": ["--out", "NEXT"],
        "sign": ["new.icis", "--key", "KEY", "--out", "signed.icis"],
        "rotate-keys": ["--trust", "KEY.pub", "--key", "KEY", "--version", "1", "--out", "keys.icis"],
        "sign-bundle": ["signed", "--key", "KEY"],
        "verify-update": ["new.icis", "--trust", "KEY.pub"],
        "verify-bundle": ["signed", "--trust", "KEY.pub"],
        "diff": ["bundle", "new.icis"],
        "apply": ["new.icis", "--to", "keyed"],
        "inbox": ["inbox", "--to", "keyed"],
        "teach": ["bundle", "okapi", "--descriptor", "okapi.npz"],
        "rollback": ["bundle"],
        "history": ["bundle"],
        "classes": ["bundle"],
        "disable": ["bundle", known],
        "enable": ["bundle", known],
        "compact": ["bundle", "--out", "compacted"],
        "bench": ["bundle", "--preset", "quick"],
        "bench-fit": described,
        "bench-update": ["bundle", "--against", project.model, "--classes", "1", "--updates", "1"],
        "bench-peers": ["bundle", "--against", project.model],
        "bench-scale": [],
        "report": [result, "--out", "report.html"],
        "demo": ["--out", "demo"],
        "run": ["project.yaml"],
        "init": [project.model, "--out", "other.yaml"],
        "doctor": [],
        "serve": ["bundle"],
        "status": ["bundle"],
        "fleet-report": ["status.json", "--out", "fleet.html"],
    }  # fmt: skip


def test_every_command_works_or_names_the_extra_that_it_needs(base_only, commands):
    folder, arguments = commands
    assert arguments.keys() == cli.commands.keys() == WORKS.keys()
    results = base_only([[name, *given] for name, given in arguments.items()], folder)

    wrong = {
        name: (code, out + err)
        for name, (code, out, err) in zip(arguments, results, strict=True)
        if code != (0 if WORKS[name] else 5)
        or (code == 5 and "pip install 'icis-deploy[" not in out + err)
        or "bug" in err
    }
    assert wrong == {}


def test_a_text_model_a_parquet_file_and_a_language_model_name_their_extras(base_only, commands):
    folder, _ = commands
    (folder / "inputs.parquet").write_bytes(b"PAR1")
    server = ["--llm", "http://127.0.0.1:9/v1", "--llm-model", "none"]
    results = base_only(
        [
            ["describe", "names.txt", "--model", folder, "--out", "a.npz"],
            ["describe", "names.txt", *server, "--out", "b.npz"],
        ],
        folder,
    )

    assert [code for code, _, _ in results] == [5, 5]
    assert "pip install 'icis-deploy[text]'" in results[0][2]
    assert "pip install 'icis-deploy[llm]'" in results[1][2]
