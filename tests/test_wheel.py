"""What pip installs: a wheel that does everything a checkout does, and claims no name but its own."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, signed_bytes, trust, write_bundle
from testing.environments import linked_environment
from testing.tiny_project import write_tiny_project

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    """Run a command away from the checkout; return what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The `bin` folder of a virtual environment with the wheel in it, and the libraries of the one that runs this."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but .pth files in it are not read: an editable install of the checkout
    # stays out of reach.
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
        "--disable-pip-version-check", wheel, cwd=environment.parent,
    )  # fmt: skip
    return environment / "bin"


@pytest.fixture
def user_folder(tmp_path):
    """A user's working directory, with packages of its own that are called as ours are."""
    for name in ("benchmarks", "exporters"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this package is not ours')\n")
    return tmp_path


def test_the_wheel_claims_no_top_level_name_but_its_own(contents):
    assert {name.split("/")[0] for name in contents if ".dist-info/" not in name} == {"icis_deploy"}


def test_the_wheel_carries_every_module_of_the_checkout(contents):
    expected = {
        f"{prefix}{path.relative_to(REPOSITORY)}"
        for package, prefix in (
            ("icis_deploy", ""),
            ("exporters", "icis_deploy/_workbench/"),
            ("benchmarks", "icis_deploy/_workbench/"),
        )
        for path in (REPOSITORY / package).rglob("*.py")
    }

    assert {name for name in contents if name.endswith(".py")} == expected


def test_the_wheel_carries_the_files_that_modules_read(contents):
    carried = {name.removeprefix("icis_deploy/_workbench/benchmarks/") for name in contents}

    assert {"result.schema.json", "report/page.html", "report/page.css", "report/page.js"} <= carried


def test_the_wheel_carries_license_and_entry_point_and_nothing_that_was_only_lying_around(contents, wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in contents if name.endswith(".dist-info/entry_points.txt"))
        assert "icis-deploy = icis_deploy.__main__:main" in archive.read(entry_points).decode()
    assert any(name.endswith("/LICENSE") for name in contents)
    assert "icis_deploy/_workbench/benchmarks/result.schema.json" in contents
    assert not [name for name in contents if "__pycache__" in name or name.endswith((".pyc", ".onnx", ".icis"))]


def test_what_is_imported_is_the_wheel_and_not_the_checkout(scripts, user_folder):
    code = """
import json, icis_deploy, icis_deploy.workbench
icis_deploy.workbench.enable_workbench()
import exporters, benchmarks
print(json.dumps([icis_deploy.__file__, exporters.__file__, benchmarks.__file__]))
"""
    files = json.loads(run(scripts / "python", "-c", code, cwd=user_folder, PYTHONPATH=str(user_folder)))
    (site_packages,) = scripts.parent.glob("lib/python*/site-packages")
    package = site_packages / "icis_deploy"

    assert files == [
        str(package / "__init__.py"),
        str(package / "_workbench" / "exporters" / "__init__.py"),
        str(package / "_workbench" / "benchmarks" / "__init__.py"),
    ]


def test_the_installed_command_injects_exports_verifies_and_reports(scripts, user_folder):
    project = write_tiny_project(user_folder / "project")

    def run_cli(*arguments):
        return run(scripts / "icis-deploy", *arguments, "--format", "json", cwd=user_folder)

    run_cli(
        "inject", project.model, "--classes", project.classes, "--descriptors", project.descriptors,
        "--unseen", project.unseen, "--method", "ridge", "--out", "new.icis",
    )  # fmt: skip
    exported = run_cli(
        "export", project.model, "--classes", project.classes, "--update", "new.icis",
        "--preprocess", project.preprocess, "--out", "bundle",
    )  # fmt: skip
    verified = run_cli("verify", "bundle", "--against", project.model)

    assert json.loads(exported)["status"] == "ok"
    assert json.loads(verified)["status"] == "ok"
    run_cli("report", REPOSITORY / "tests" / "benchmarks" / "results" / "bench.json", "--out", "report.html")
    assert "<svg" in (user_folder / "report.html").read_text()
    manifest = json.loads((user_folder / "bundle" / "manifest.json").read_text())
    assert manifest["class_names"] == [*project.seen_names, *project.unseen_names]
    assert all(report["passed"] for report in manifest["parity"])


def test_the_installed_command_imports_its_own_packages_where_the_users_come_first(scripts, user_folder):
    project = write_tiny_project(user_folder / "project")
    kept = REPOSITORY / "tests" / "benchmarks" / "results" / "bench.json"

    for command in (
        ("export", project.model, "--classes", project.classes, "--out", "bundle"),
        ("report", kept, "--out", "report.html"),
    ):
        run(scripts / "icis-deploy", *command, cwd=user_folder, PYTHONPATH=".")
    assert "<svg" in (user_folder / "report.html").read_text()
    assert (user_folder / "bundle" / "manifest.json").is_file()


@pytest.fixture(scope="module")
def device_only(wheel, tmp_path_factory):
    """The `bin` folder of a virtual environment with the wheel and what `[cpu]` brings, and nothing else.

    The libraries are linked from the environment that runs this, so nothing is downloaded.
    """
    binaries = linked_environment(tmp_path_factory.mktemp("device") / "venv", {"cpu"})
    run(
        sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--quiet", "--no-deps",
        "--no-index", "--disable-pip-version-check", wheel, cwd=binaries.parent,
    )  # fmt: skip
    return binaries


def test_a_device_with_the_cpu_extra_alone_does_everything_a_device_does(device_only, tmp_path):
    keys = keygen(tmp_path / "KEY")
    bundle = write_bundle(tmp_path / "bundle")
    trust(bundle, keys.public_path)
    (tmp_path / "new.icis").write_bytes(signed_bytes(make_update("okapi", version=1), keys.private_path))

    def run_cli(*arguments):
        return json.loads(run(device_only / "icis-deploy", *arguments, "--format", "json", cwd=tmp_path))

    absent = run(
        device_only / "python", "-c",
        "import importlib.util as u; print([n for n in ('torch', 'onnx', 'scipy', 'pytest') if u.find_spec(n)])",
        cwd=tmp_path,
    )  # fmt: skip
    assert absent == "[]\n"
    assert run_cli("verify-update", "new.icis", "--trust", f"{keys.private_path}.pub")["status"] == "ok"
    assert run_cli("apply", "new.icis", "--to", "bundle")["entry"]["action"] == "apply"
    assert run_cli("classes", "bundle")["version"] == 1
    assert run_cli("disable", "bundle", "okapi")["changed"]
    assert run_cli("rollback", "bundle")["entry"]["version"] == 0
    assert len(run_cli("history", "bundle")["history"]) == 3
    answer = run(
        device_only / "python", "-c",
        "import numpy, icis_deploy; d = icis_deploy.Device.open('bundle'); "
        "print(d.predict(numpy.ones((1, 6), numpy.float32), top=1)[0].version)",
        cwd=tmp_path,
    )  # fmt: skip
    assert answer == "0\n"


def test_a_device_with_the_cpu_extra_alone_is_taught_by_photos(device_only, tmp_path):
    project = write_tiny_project(tmp_path / "project")
    options = icis_deploy.ExportOptions(head="updatable", capacity=4, preprocess=project.preprocess)
    icis_deploy.export(project.model, classes=project.classes, out=tmp_path / "bundle", options=options)
    shown = [str(project.images.parent / f"{name}.png") for name in project.unseen_names[:2]]

    def run_cli(*arguments):
        return json.loads(run(device_only / "icis-deploy", *arguments, "--format", "json", cwd=tmp_path))

    taught = run_cli("teach", "bundle", "okapi", "--images", *shown)
    assert len(taught["entry"]["photos_sha256"]) == 2
    assert run_cli("classes", "bundle")["classes"][-1]["name"] == "okapi"
    features = run(
        device_only / "python", "-c",
        f"import icis_deploy; print(icis_deploy.Device.open('bundle').embed({shown!r}).shape)",
        cwd=tmp_path,
    )  # fmt: skip
    assert features == "(2, 24)\n"
    assert run_cli("rollback", "bundle")["entry"]["action"] == "rollback"
