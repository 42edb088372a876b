"""The edge kit: what a device without internet gets, and what comes back."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.results.result import load_result
from icis_deploy.errors import IncompatibleError, LoadError, UsageError
from scripts.edge import edge_bench
from testing.exported_bundles import export_bundles

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT = REPOSITORY / "tests" / "benchmarks" / "results" / "bench.json"

needs_sha256sum = pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")


def write_wheel(folder, name, version, *requirements):
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requirements)]
    module = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}-{version}.dist-info/METADATA", "\n".join(metadata) + "\n")


# --- pack ---------------------------------------------------------------------------------------------------------


def test_a_platform_takes_the_wheels_of_every_older_glibc():
    target = edge_bench.parse_target("manylinux_2_19_aarch64", "3.11")

    assert target.platforms == [
        "manylinux_2_19_aarch64",
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
        "linux_aarch64",
    ]
    assert edge_bench.parse_target("manylinux2014_x86_64", "3.10").platforms[0] == "manylinux_2_17_x86_64"


@pytest.mark.parametrize(
    ("tag", "python", "message"),
    [
        ("linux_aarch64", "3.11", "'linux_aarch64' is no manylinux tag"),
        ("manylinux_2_5_x86_64", "3.11", r"is no manylinux tag of glibc 2\.17 or newer"),
        ("musllinux_1_2_aarch64", "3.11", "is no manylinux tag"),
        ("manylinux_2_28_aarch64", "2.7", r"'2\.7' is unknown; expected such as 3\.11"),
        ("manylinux_2_28_aarch64", "3.11.7", r"'3\.11\.7' is unknown"),
    ],
)
def test_what_is_no_platform_is_refused(tag, python, message):
    with pytest.raises(UsageError, match=message):
        edge_bench.parse_target(tag, python)


@pytest.mark.parametrize(("python", "missing"), [("3.10", {"typing-extensions>=4"}), ("3.11", set())])
def test_markers_are_those_of_the_device_and_not_of_the_machine_that_packs(tmp_path, python, missing):
    requirements = ("cryptography", 'onnxruntime; extra == "cpu"', 'torch; extra == "train"', 'x; os_name == "nt"')
    write_wheel(tmp_path, "icis-deploy", "1.0", *requirements)
    write_wheel(tmp_path, "cryptography", "1.0", 'typing-extensions>=4; python_version < "3.11"', 'x; extra == "cpu"')
    write_wheel(tmp_path, "onnxruntime", "1.0")
    target = edge_bench.parse_target("manylinux_2_28_aarch64", python)

    assert edge_bench.missing_requirements(tmp_path, target) == missing


def test_requirements_are_locked_by_version_and_hash(tmp_path):
    for name in ("b", "pip", "a-c"):
        write_wheel(tmp_path, name, "1.0")
    lines = edge_bench.locked_requirements(tmp_path)

    assert [line.split(" --hash=sha256:")[0] for line in lines] == ["a-c==1.0", "b==1.0"]
    assert all(len(line.split(" --hash=sha256:")[1]) == 64 for line in lines)


def test_images_of_equal_names_stay_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.JPG").write_text(folder)
    (tmp_path / "images.csv").write_text("file,class\na/1.JPG,okapi\nb/1.JPG,zebra\n")
    kit = tmp_path / "kit"
    kit.mkdir()

    assert edge_bench.copy_images(tmp_path / "images.csv", kit) == ["--images", "images.csv"]
    lines = (kit / "images.csv").read_text().split()
    assert lines == ["file,class", "images/000000.jpg,okapi", "images/000001.jpg,zebra"]
    assert (kit / "images" / "000001.jpg").read_text() == "b"


def test_a_failed_pack_leaves_no_archive(tmp_path, capsys):
    words = ["pack", str(tmp_path / "nothing"), "--platform", "manylinux2014_aarch64", "--python", "3.11"]

    assert edge_bench.main([*words, "--out", str(tmp_path / "kit.tar.gz")]) == 3
    assert "There is no bundle at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_what_it_needs_is_told_which_one_has_it(tmp_path):
    script = REPOSITORY / "scripts" / "edge" / "edge_bench.py"
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(script), "read", "x"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 5
    (line,) = result.stderr.splitlines()
    assert line.endswith("Run ./scripts/install dev, then .venv/bin/python scripts/edge/edge_bench.py.")


def test_a_folder_called_build_is_not_taken_for_the_module_that_builds_the_wheel(tmp_path, monkeypatch):
    """It is left in the repository by other ways to build; `python -m build` looks into the current folder first."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "__main__.py").write_text("raise SystemExit('the wrong build')")
    (tmp_path / "build" / "__init__.py").write_text("")
    (tmp_path / "wheels").mkdir()
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(edge_bench, "run", lambda command, **options: commands.append((command, options["cwd"])))
    (tmp_path / "wheels" / "built.whl").touch()

    assert edge_bench.copy_wheel(None, tmp_path / "wheels").name == "built.whl"
    ((command, cwd),) = commands
    assert subprocess.run([*command[:3], "--version"], cwd=cwd, check=False).returncode == 0


# --- read ---------------------------------------------------------------------------------------------------------


def write_kit(path, **changes):
    """Write an archive that says it is the kit of the example result, but for these changes."""
    result = load_result(RESULT)
    sections = result.environment.sections
    contents = {
        "kit_version": 1,
        "icis_deploy_version": sections["versions"]["icis-deploy"],
        "platform": f"manylinux_2_28_{sections['cpu']['architecture']}",
        "python": "3.11",
        "bundles": {each.name: each.size_bytes for each in result.targets if each.head_kind != "original"},
    }
    (path.parent / "kit.json").write_text(json.dumps(contents | changes))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "kit.json", "edge-kit/kit.json")
    return path


def read(tmp_path, kit, result=RESULT):
    words = ["read", str(result), "--kit", str(kit), "--out", str(tmp_path / "device.json")]
    arguments = edge_bench.parse_arguments(words)
    return arguments.step(arguments)


def test_a_result_of_the_kit_is_kept_as_it_is(tmp_path):
    said = read(tmp_path, write_kit(tmp_path / "kit.tar.gz"))

    assert (tmp_path / "device.json").read_bytes() == RESULT.read_bytes()
    assert load_result(RESULT).environment.fingerprint in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"icis_deploy_version": "99"}, "its icis-deploy: .*, the kit's: 99"),
        ({"platform": "manylinux_2_28_riscv64"}, "its architecture: .*, the kit's: riscv64"),
        ({"bundles": {"fused": 1}}, "its bundles: .*, the kit's: {'fused': 1}"),
        ({"bundles": {"another": 1}}, "its bundles: {'another': None}"),
    ],
)
def test_a_result_of_another_kit_is_refused(tmp_path, changes, message):
    with pytest.raises(IncompatibleError, match=message):
        read(tmp_path, write_kit(tmp_path / "kit.tar.gz", **changes))
    assert not (tmp_path / "device.json").exists()


def test_what_is_no_kit_or_no_result_is_refused(tmp_path):
    kit = write_kit(tmp_path / "kit.tar.gz")
    (tmp_path / "broken.json").write_text('{"schema_version": 99}')

    with pytest.raises(LoadError, match="It has schema version 99"):
        read(tmp_path, kit, tmp_path / "broken.json")
    with pytest.raises(LoadError, match=r"is not an archive that `edge_bench\.py pack` wrote"):
        read(tmp_path, RESULT)
    with pytest.raises(LoadError, match="kit version 2; this release reads 1"):
        read(tmp_path, write_kit(kit, kit_version=2))


# --- the whole way ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tiny_project, tmp_path_factory):
    """A kit for this machine and Python, with one tiny bundle, where it was unpacked."""
    folder = tmp_path_factory.mktemp("edge")
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "probe", "click"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("pip reaches no package index to download wheels from")
    bundles = export_bundles(tiny_project, folder)
    tag = f"manylinux_2_{platform.libc_ver()[1].split('.')[1]}_{platform.machine()}"
    words = [
        *("pack", bundles.fused, "--against", tiny_project.model, "--images", tiny_project.images),
        *("--platform", tag, "--python", f"{sys.version_info[0]}.{sys.version_info[1]}"),
        *("--out", folder / "kit.tar.gz", "--", "--preset", "quick", "--seconds", "0.3", "--threads", "1"),
    ]
    assert edge_bench.main([str(word) for word in words]) == 0
    shutil.unpack_archive(folder / "kit.tar.gz", folder / "device", filter="data")
    return folder / "device" / "edge-kit"


def run_on_device(kit):
    """Run the kit with nothing of this process: no packages, no settings, and no way to a network."""
    environment = {"PATH": os.defpath, "PYTHON": sys._base_executable, "HTTPS_PROXY": "http://127.0.0.1:9"}
    return subprocess.run(["/bin/sh", kit / "run"], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_sha256sum
def test_a_kit_measures_on_a_bare_device_and_its_result_is_read_back(unpacked, tmp_path):
    finished = run_on_device(unpacked)
    assert finished.returncode == 0, finished.stderr
    read(tmp_path, unpacked.parents[1] / "kit.tar.gz", unpacked / "result.json")

    result = load_result(tmp_path / "device.json")
    assert [target.name for target in result.targets] == ["original", "fused"]
    assert result.target("fused").accuracy.H is not None
    assert result.environment.sections["versions"]["torch"] is None


@pytest.mark.slow
@needs_sha256sum
def test_a_kit_that_was_damaged_on_its_way_measures_nothing(unpacked, tmp_path):
    damaged = tmp_path / "edge-kit"
    shutil.copytree(unpacked, damaged, ignore=shutil.ignore_patterns("venv", "result.json"))
    (damaged / "original.onnx").write_bytes((damaged / "original.onnx").read_bytes()[:-1])
    finished = run_on_device(damaged)

    assert finished.returncode == 6
    assert "original.onnx: FAILED" in finished.stderr
    assert not (damaged / "venv").exists()
