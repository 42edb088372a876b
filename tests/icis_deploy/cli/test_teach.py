"""The way of a generator on the command line: export-generator, export --generator, teach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from icis_deploy.cli.export_generator import export_generator
from icis_deploy.cli.main import run
from icis_deploy.injection.predictors.registry import METHODS
from testing.bundles import files_in
from testing.tiny_project import NUM_SEEN, TinyProject
from tests.icis_deploy.cli.test_commands import run_json


@pytest.fixture(scope="module")
def generator(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator") / "generator.onnx"
    assert run([*generator_arguments(tiny_project, out), "--method", "ridge"]) == 0
    return out


@pytest.fixture
def bundle(tiny_project: TinyProject, generator: Path, tmp_path: Path) -> Path:
    out = tmp_path / "bundle"
    assert run([*export_arguments(tiny_project, out), "--generator", str(generator)]) == 0
    return out


def generator_arguments(project: TinyProject, out: Path) -> list[str]:
    files = ["--classes", str(project.classes), "--descriptors", str(project.descriptors)]
    return ["export-generator", str(project.model), *files, "--out", str(out)]


def export_arguments(project: TinyProject, out: Path, *, head: str = "updatable") -> list[str]:
    slots = ["--capacity", "4"] if head == "updatable" else []
    files = ["--classes", str(project.classes), "--out", str(out)]
    return ["export", str(project.model), *files, "--head", head, *slots]


def test_a_generator_is_written_with_the_warnings_of_its_injection(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        [*generator_arguments(tiny_project, tmp_path / name), "--method", "ridge"] for name in ("1.onnx", "2.onnx")
    )
    code, result = run_json(first, capsys)
    assert code == 0, result
    assert result["warnings"]
    capsys.readouterr()
    assert run(second) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\nWarning: ") == len(result["warnings"])
    assert "ICISDeployWarning" not in captured.err


def test_a_bundle_is_taught_a_class_and_answers_with_it(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    teach = ["teach", str(bundle), "class40", "--descriptor", str(tiny_project.descriptors)]
    code, result = run_json(teach, capsys)
    assert (code, result["class"], result["entry"]["action"]) == (0, "class40", "teach")
    _, listing = run_json(["classes", str(bundle)], capsys)
    assert [each["name"] for each in listing["classes"]][NUM_SEEN:] == ["class40"]
    assert run(["history", str(bundle)]) == 0
    line = capsys.readouterr().out
    assert "teach" in line
    assert "class40" in line
    assert "by an operator" in line


def test_an_outlier_is_refused_with_1_and_a_collision_with_3(
    bundle: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptors = np.load(tiny_project.descriptors)["values"]
    values = np.stack([descriptors[40] * 1000, descriptors[7]])
    np.savez(tmp_path / "odd.npz", names=np.array(["loud", "twin"]), values=values)
    before = files_in(bundle)
    for name, code, words in (
        ("loud", 1, "length of its descriptor"),
        ("twin", 3, "described like 'class07'"),
        ("absent", 3, "No descriptor for 'absent'"),
    ):
        assert run(["teach", str(bundle), name, "--descriptor", str(tmp_path / "odd.npz")]) == code
        assert words in capsys.readouterr().err
    assert files_in(bundle) == before


def test_a_generator_says_what_it_is_and_does_not_replace_a_file(
    generator: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half.onnx"
    capsys.readouterr()
    half = [*generator_arguments(tiny_project, out), "--method", "ridge", "--precision", "fp16"]
    code, result = run_json(half, capsys)
    assert (code, result["method"], result["precision"]) == (0, "ridge", "fp16")
    assert result["size_bytes"] == out.stat().st_size < generator.stat().st_size
    assert run(half) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_generator_of_another_head_or_for_a_fused_one_is_refused(
    generator: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = export_arguments(tiny_project, tmp_path / "fused", head="fused")
    assert run([*fused, "--generator", str(generator)]) == 2
    assert "Give --generator with --head updatable" in capsys.readouterr().err
    names = tiny_project.classes.read_text().split()
    (tmp_path / "classes.txt").write_text("\n".join(["renamed", *names[1:]]))
    other = export_arguments(tiny_project, tmp_path / "other")
    other[other.index("--classes") + 1] = str(tmp_path / "classes.txt")
    assert run([*other, "--generator", str(generator)]) == 3
    assert "The generator was made for the head" in capsys.readouterr().err
    assert run([*export_arguments(tiny_project, tmp_path / "no"), "--generator", str(tiny_project.model)]) == 3
    assert "is no generator" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"classes.txt"}


def test_the_command_line_offers_every_method_with_a_closed_form() -> None:
    (method,) = [option for option in export_generator.params if option.name == "method"]
    assert set(method.type.choices) == {"auto", *METHODS} - {"mixture"}


def test_compacting_keeps_the_generator_and_leaves_taught_classes_in_slots(
    bundle: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptors = ["--descriptor", str(tiny_project.descriptors)]
    assert run(["teach", str(bundle), "class40", *descriptors]) == 0
    out = tmp_path / "compacted"
    assert run(["compact", str(bundle), "--out", str(out)]) == 0
    assert run(["teach", str(out), "class41", *descriptors]) == 0
    capsys.readouterr()
    _, listing = run_json(["classes", str(out)], capsys)
    assert [(each["name"], each["slot"]) for each in listing["classes"]][NUM_SEEN:] == [("class40", 0), ("class41", 1)]
    assert run(["compact", str(bundle), "--out", str(out), "--capacity", "0"]) == 2


@pytest.fixture
def photo_bundle(tiny_project: TinyProject, generator: Path, tmp_path: Path) -> Path:
    """A bundle that states how images are prepared, with a generator."""
    out = tmp_path / "photo-bundle"
    arguments = [*export_arguments(tiny_project, out), "--preprocess", str(tiny_project.preprocess)]
    assert run([*arguments, "--generator", str(generator)]) == 0
    return out


def photos(project: TinyProject, *names: str) -> list[str]:
    return [str(project.images.parent / f"{name}.png") for name in names]


def test_a_bundle_is_taught_by_photos_and_says_how_many(
    photo_bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    shown = photos(tiny_project, "class40", "class41")
    code, result = run_json(["teach", str(photo_bundle), "okapi", "--images", *shown], capsys)
    assert (code, result["class"], len(result["entry"]["photos_sha256"])) == (0, "okapi", 2)
    assert any("stand in for images" in warning and "--seen-images" in warning for warning in result["warnings"])
    one = photos(tiny_project, "class42")
    both = ["teach", str(photo_bundle), "class42", "--images", *one, "--descriptor", str(tiny_project.descriptors)]
    assert run(both) == 0
    captured = capsys.readouterr()
    assert "class42 (1 photo)" in captured.out
    assert "\nWarning: " in captured.out
    assert "ICISDeployWarning" not in captured.err
    assert run(["history", str(photo_bundle)]) == 0
    assert "okapi (2 photos)" in capsys.readouterr().out
    assert run(["rollback", str(photo_bundle)]) == 0
    capsys.readouterr()
    _, listing = run_json(["classes", str(photo_bundle)], capsys)
    assert [each["name"] for each in listing["classes"]][NUM_SEEN:] == ["okapi"]


def test_an_unreadable_photo_is_refused_or_left_out(
    photo_bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    before = files_in(photo_bundle)
    mixed = [*photos(tiny_project, "class40"), str(tiny_project.classes)]
    assert run(["teach", str(photo_bundle), "okapi", "--images", *mixed]) == 3
    assert "classes.txt is not an image" in capsys.readouterr().err
    assert files_in(photo_bundle) == before
    code, result = run_json(["teach", str(photo_bundle), "okapi", "--skip-unreadable", "--images", *mixed], capsys)
    assert (code, len(result["entry"]["photos_sha256"])) == (0, 1)
    assert "classes.txt is not an image" in result["warnings"][0]


def test_an_unreadable_array_among_photos_is_refused_or_left_out(
    photo_bundle: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    mixed = [*photos(tiny_project, "class41"), str(tmp_path / "cut.npy"), str(tmp_path / "cot.npy")]
    assert run(["teach", str(photo_bundle), "eland", "--images", *mixed[:2]]) == 3
    assert "Cannot read the array" in capsys.readouterr().err
    assert run(["teach", str(photo_bundle), "eland", "--images", mixed[2]]) == 3
    assert f"cot.npy: No such file or directory. Did you mean '{mixed[1]}'?" in capsys.readouterr().err
    code, result = run_json(["teach", str(photo_bundle), "eland", "--skip-unreadable", "--images", *mixed], capsys)
    assert (code, len(result["entry"]["photos_sha256"])) == (0, 1)
    assert sum("Cannot read the array" in warning for warning in result["warnings"]) == 2
    none = ["teach", str(photo_bundle), "kudu", "--skip-unreadable", "--images", *mixed[1:]]
    assert run(none) == 3
    assert "None of the 2 photos can be read: Cannot read the array" in capsys.readouterr().err


def test_teaching_needs_something_to_be_taught_by(
    photo_bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["teach", str(photo_bundle), "okapi"]) == 2
    assert "Nothing says what 'okapi' is. Give --descriptor or --images." in capsys.readouterr().err
    assert run(["teach", str(photo_bundle), "okapi", *photos(tiny_project, "class40")]) == 2
    assert "Give photos after --images" in capsys.readouterr().err


def test_a_bundle_without_what_photos_need_is_no_crash(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["teach", str(bundle), "okapi", "--images", *photos(tiny_project, "class40")]) in (2, 3)
    error = capsys.readouterr().err
    assert "nothing says how images are prepared" in error or "has no few_shot.safetensors" in error
    assert "--preprocess" in error
