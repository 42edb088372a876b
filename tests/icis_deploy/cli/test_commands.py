"""The commands as a user runs them: results, exit codes, and what is left on disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import onnx.parser
import pytest

import icis_deploy
from icis_deploy.cli.inject import inject
from icis_deploy.cli.main import run
from icis_deploy.cli.verify import parity_text
from icis_deploy.injection.predictors.registry import METHODS
from icis_deploy.metrics.parity import GATE_PROFILES, compare_logits
from icis_deploy.updates.envelope import load_update, save_update
from testing.tiny_project import FEATURE_DIM, GRAPH, NUM_SEEN, NUM_UNSEEN, TinyProject


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = run([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def update(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("update") / "new.icis"
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    assert run(["inject", str(tiny_project.model), *files, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module", params=["fused", "updatable"])
def bundle(
    request: pytest.FixtureRequest, tiny_project: TinyProject, update: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundle") / request.param
    assert run(export_arguments(tiny_project, update, out, head=request.param)) == 0
    return out


def export_arguments(project: TinyProject, update: Path, out: Path, *, head: str = "fused") -> list[str]:
    capacity = ["--capacity", str(NUM_UNSEEN + 2)] if head == "updatable" else []
    files = ["--classes", str(project.classes), "--update", str(update), "--preprocess", str(project.preprocess)]
    return ["export", str(project.model), *files, "--head", head, *capacity, "--out", str(out)]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_inspect_names_the_head_and_its_fingerprint(
    tiny_project: TinyProject, update: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run_json(["inspect", str(tiny_project.model), "--classes", str(tiny_project.classes)], capsys)
    assert code == 0
    assert (result["schema_version"], result["command"], result["status"]) == (1, "inspect", "ok")
    assert result["head"]["num_classes"] == NUM_SEEN
    assert result["head"]["weight"] == "weight"
    assert result["head"]["fingerprint"] == load_update(update).base_fingerprint


def test_inspect_writes_the_class_names_for_the_other_commands(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "names.txt"
    command = ["inspect", str(tiny_project.model), "--classes", str(tiny_project.classes), "--classes-out", str(out)]
    assert run(command) == 0
    assert out.read_text().splitlines() == tiny_project.classes.read_text().splitlines()
    capsys.readouterr()
    assert run(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*command, "--overwrite"]) == 0


def test_inspect_writes_no_names_that_a_model_does_not_state(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "names.txt"
    assert run(["inspect", str(tiny_project.model), "--classes-out", str(out)]) == 2
    assert "does not name its classes" in capsys.readouterr().err
    assert not out.exists()


def test_inspect_tells_classes_of_one_name_apart_in_the_list_that_it_writes(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = onnx.load(tiny_project.model), tmp_path / "names.txt"
    names = ["crane" if index in (3, 17) else f"bird {index}" for index in range(NUM_SEEN)]
    onnx.helper.set_model_props(model, {"names": str(dict(enumerate(names)))})
    onnx.save(model, tmp_path / "model.onnx")

    assert run(["inspect", str(tmp_path / "model.onnx"), "--classes-out", str(out)]) == 0

    written = out.read_text().splitlines()
    assert [(index, name) for index, name in enumerate(written) if name != f"bird {index}"] == [
        (3, "crane (3)"),
        (17, "crane (17)"),
    ]
    printed = capsys.readouterr()
    assert "In " in printed.err
    assert "'crane (3)', 'crane (17)'" in printed.err
    assert "--classes-out writes a list in which they are told apart" in printed.out
    assert run(["inspect", str(tmp_path / "model.onnx"), "--classes", str(out)]) == 0
    assert "40, named by the list that was given" in capsys.readouterr().out


def test_inspect_writes_no_list_of_names_that_cannot_be_told_apart(tiny_project: TinyProject, tmp_path: Path) -> None:
    model, out = onnx.load(tiny_project.model), tmp_path / "names.txt"
    onnx.helper.set_model_props(model, {"names": str(dict.fromkeys(range(NUM_SEEN), ""))})
    onnx.save(model, tmp_path / "model.onnx")

    assert run(["inspect", str(tmp_path / "model.onnx"), "--classes-out", str(out)]) == 3
    assert not out.exists()


def test_inject_is_the_same_for_a_seed_and_another_for_another(
    tiny_project: TinyProject, update: Path, tmp_path: Path
) -> None:
    for seed in ("0", "1"):
        files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
        arguments = [
            "inject",
            str(tiny_project.model),
            *files,
            "--method",
            "icis",
            "--calibration",
            "length",
            "--seed",
            seed,
        ]
        assert run([*arguments, "--out", str(tmp_path / seed)]) == 0
    rows = [load_update(tmp_path / seed).rows for seed in ("0", "1")]
    assert not np.array_equal(rows[0], rows[1])


def test_inject_offers_every_method() -> None:
    option = next(parameter for parameter in inject.params if parameter.name == "method")
    assert sorted(option.type.choices) == sorted(["auto", *METHODS])


def test_inject_says_what_was_chosen_what_it_predicts_and_what_to_doubt(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    arguments = ["inject", str(tiny_project.model), *files, "--preprocess", str(tiny_project.preprocess)]
    assert run([*arguments, "--seen-accuracy", "0.9", "--out", str(tmp_path / "new.icis")]) == 0
    text = capsys.readouterr().out
    provenance = load_update(tmp_path / "new.icis").provenance
    assert provenance["selection"]["reason"] in text
    assert "Of classes that the whole network never saw, U was up to 22 points lower" in text
    assert provenance["estimate"]["limit"] in text
    for name in ("T", "U", "S", "H"):
        assert f"{name}  {100 * provenance['estimate'][name]['value']:.1f} %" in text.replace("   ", "  ")
    confidence = provenance["estimate"]["confidence"]
    doubtful = min(confidence, key=confidence.__getitem__)  # the file has its keys in alphabetical order
    assert f"Least likely to be recognised: {doubtful}" in text
    assert provenance["selection"]["seen_accuracy"] == {"value": 0.9, "is_known": True}
    assert provenance["selection"]["num_neutral_features"] > 0


def test_the_command_that_inject_names_next_writes_the_bundle(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where only options find the head, and with a path that a shell would take apart."""
    monkeypatch.chdir(tmp_path)
    text = GRAPH.replace("[batch, 40] logits)", "[batch, 40] logits, float[batch, 7] others)").replace(
        "weight, bias)", "weight, bias) others = Gemm <transB = 1> (flat, other_weight)"
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.load(tiny_project.model).graph.initializer)
    other = np.ones((7, FEATURE_DIM), dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(other, "other_weight"))
    onnx.save(model, "two heads.onnx")
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    options = ["--preprocess", str(tiny_project.preprocess), "--head-node", "logits", "--method", "ridge"]
    assert run(["inject", "two heads.onnx", *files, *options, "--out", "new.icis"]) == 0

    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]

    program, *arguments = shlex.split(command.removeprefix("Next: "))
    assert program == "icis-deploy"
    assert run(arguments) == 0
    assert (tmp_path / "bundle" / "manifest.json").is_file()


@pytest.mark.parametrize("option", [["--balance", "0.5"], ["--seen-accuracy", "0.9"]], ids=lambda option: option[0])
def test_inject_refuses_what_guides_a_choice_where_nothing_is_chosen(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    arguments = ["inject", str(tiny_project.model), *files, "--out", str(tmp_path / "new.icis"), *option]
    assert run([*arguments, "--method", "ridge", "--calibration", "none"]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {option[0]} would do nothing: it guides what is chosen")
    assert names_in(tmp_path) == set()


def test_inject_prints_the_curve_and_what_is_promised_and_warns_in_its_own_words(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    options = ["--preprocess", str(tiny_project.preprocess), "--method", "ridge", "--max-seen-loss", "5"]
    assert run(["inject", str(tiny_project.model), *files, *options, "--out", str(tmp_path / "new.icis")]) == 0
    out, err = capsys.readouterr()
    assert "Budget 5 points. " in out
    assert [line.split()[0] for line in out.splitlines() if re.match(r"\d+ points?  ", line)] == ["1", "2", "5", "10"]
    assert "give images of seen classes with --seen-images." in out
    assert "Warning" not in err
    provenance = load_update(tmp_path / "new.icis").provenance
    assert provenance["budget"]["max_seen_loss"] == 0.05
    assert len(provenance["curve"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-seen-loss", "2", "--balance", "0.5"], "expected one of them. Give --max-seen-loss to keep a budget"),
        (["--max-seen-loss", "2", "--calibration", "length"], "Error: --max-seen-loss would do nothing: only"),
    ],
)
def test_inject_refuses_a_budget_that_would_not_be_kept(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    assert run(["inject", str(tiny_project.model), *files, "--out", str(tmp_path / "new.icis"), *options]) == 2
    assert message in capsys.readouterr().err
    assert names_in(tmp_path) == set()


def test_inject_strict_writes_nothing_when_descriptors_say_nothing(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (*tiny_project.seen_names, *tiny_project.unseen_names)
    values = np.random.default_rng(99).normal(size=(len(names), 10)).astype(np.float32)
    np.savez(tmp_path / "noise.npz", names=np.array(names), values=values)
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tmp_path / "noise.npz")]
    arguments = ["inject", str(tiny_project.model), *files, "--out", str(tmp_path / "new.icis")]
    code, result = run_json([*arguments, "--strict"], capsys)
    assert (code, result["status"], result["error"]["type"]) == (1, "failed", "UntrustworthyError")
    assert "say nothing" in result["error"]["message"]
    assert names_in(tmp_path) == {"noise.npz"}
    assert run(arguments) == 0
    assert "Warning: The descriptors say nothing" in capsys.readouterr().out


def test_compare_methods_prints_a_table_and_draws_it(
    tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    images = ["--preprocess", str(tiny_project.preprocess), "--images", str(tiny_project.images)]
    chosen = ["--method", "auto", "--method", "nearest"]
    arguments = ["compare-methods", str(tiny_project.model), *files, *images, *chosen]
    code, result = run_json([*arguments, "--plot", str(tmp_path / "methods.png")], capsys)
    assert (code, result["command"]) == (0, "compare-methods")
    assert [one["name"] for one in result["methods"]] == ["auto", "nearest"]
    assert result["methods"][0]["method"] != "auto"
    for one in result["methods"]:
        assert one["predicted"]["H"]["low"] <= one["predicted"]["H"]["value"] <= one["predicted"]["H"]["high"]
        assert 0 <= one["measured"]["T"] <= 1
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-5:] == ["T", "U", "S", "H", "seconds"]
    assert [line.split()[0] for line in lines[1:3]] == ["auto", "nearest"]
    assert lines[3].startswith("Predicted U for what seen classes lose")
    assert [line.split()[0] for line in lines[4:7]] == ["method", "auto", "nearest"]
    assert lines[7].startswith("Predictions are of classes that the backbone knows.")
    assert run([*arguments, "--overwrite"]) == 2
    assert "--overwrite would do nothing: no plot is drawn. Give --plot" in capsys.readouterr().err


def test_inject_writes_only_the_unseen_classes_that_were_asked_for(tiny_project: TinyProject, tmp_path: Path) -> None:
    wanted = tiny_project.unseen_names[1:3]
    (tmp_path / "some.txt").write_text("\n".join(wanted))
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    arguments = ["inject", str(tiny_project.model), *files, "--unseen", str(tmp_path / "some.txt")]
    assert run([*arguments, "--out", str(tmp_path / "some.icis")]) == 0
    assert load_update(tmp_path / "some.icis").added == wanted


def test_export_leaves_a_bundle_with_its_parity_reports_and_nothing_else(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert [report["passed"] for report in manifest["parity"]] == [True, True]
    assert names_in(bundle) == {"manifest.json", *manifest["files"]}
    assert names_in(bundle.parent) == {bundle.name}


def test_export_prints_what_became_of_each_target(
    tiny_project: TinyProject, update: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*export_arguments(tiny_project, update, tmp_path / "bundle"), "--target", "openvino"]
    code, result = run_json(arguments, capsys)
    (target,) = result["targets"]
    assert (code, target["name"], target["gate"], target["reason"]) == (0, "openvino", "passed", None)
    assert set(target["files"]) <= set(result["files"])
    assert run([*arguments, "--overwrite"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["target", "precision", "size", "build", "gate"] in rows
    assert next(row for row in rows if row[:1] == ["openvino"])[-1] == "passed"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_verify_passes_on_an_untouched_bundle(
    runtime: str, bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(bundle), "--against", str(tiny_project.model), "--images", str(tiny_project.images)]
    code, result = run_json([*arguments, "--runtime", runtime], capsys)
    assert (code, result["status"], result["passed"], result["runtime"]) == (0, "ok", True, runtime)
    assert result["parity"][0]["num_classes"] == NUM_SEEN + NUM_UNSEEN


def test_verify_takes_images_at_a_uri(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fsspec", reason="needs the extra data")
    arguments = ["verify", str(bundle), "--against", str(tiny_project.model), "--images"]

    at_uri = run_json([*arguments, f"file://{tiny_project.images}"], capsys)

    assert at_uri == run_json([*arguments, str(tiny_project.images)], capsys)
    assert at_uri[0] == 0
    code, refused = run_json([*arguments, "memory://no-such-bucket/images.csv"], capsys)
    assert (code, refused["status"]) == (3, "error")


def test_verify_against_a_model_of_another_type_says_which(
    bundle: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.parser.parse_model(GRAPH.replace("float[", "double["))
    for tensor in onnx.load(tiny_project.model).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "double.onnx")
    assert run(["verify", str(bundle), "--against", str(tmp_path / "double.onnx")]) == 3
    assert "double.onnx takes float64. Verify against" in capsys.readouterr().err


def test_evaluate_prints_five_accuracies_as_fractions(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(bundle), "--images", str(tiny_project.images), "--unseen", str(tiny_project.unseen)]
    code, result = run_json(arguments, capsys)
    assert (code, result["runtime"]) == (0, "onnxruntime")
    assert list(result["accuracy"]) == ["T", "U", "S", "H", "S_original"]
    assert all(0 <= value <= 1 for value in result["accuracy"].values())
    assert result["details"]["num_unseen_images"] == NUM_UNSEEN


def test_evaluate_says_first_what_old_classes_keep_and_what_new_ones_give(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["evaluate", str(bundle), "--images", str(tiny_project.images)]
    files = ["--per-class", str(tmp_path / "classes.csv"), "--curve", str(tmp_path / "curve.png")]
    assert run([*arguments, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"The old classes keep [\d.]+ of [\d.]+ %: [\d.]+ points are lost to new ones \(95 % interval [\d.]+ to "
        r"[\d.]+\), \d+ of 40 images\.",
        lines[0],
    )
    assert re.fullmatch(r"The new classes give [\d.]+ %, [\d.]+ % among the first five\.", lines[1])
    assert any(re.fullmatch("S lost, at most +1 +2 +5 +10 +as exported", line) for line in lines)
    assert (tmp_path / "classes.csv").is_file()
    assert (tmp_path / "curve.png").is_file()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["evaluate", "{bundle}", "--images", "{mine}", "--per-class", "{mine}"], "--images"),
        (["inject", "{mine}", "--descriptors", "{descriptors}", "--out", "{mine}", "--overwrite"], "MODEL"),
        (["describe", "{mine}", "--attributes", "{descriptors}", "--out", "{mine}", "--overwrite"], "CLASSES"),
        (["describe", "{descriptors}", "--tags", "{mine}", "--out", "{mine}", "--overwrite"], "--tags"),
    ],
)
def test_no_command_writes_over_what_it_was_given(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str], tmp_path: Path, command, said: str
) -> None:
    mine = tmp_path / "mine.npz"
    mine.write_bytes(b"mine")
    link = tmp_path / "link.npz"
    link.symlink_to(mine)
    for out in (mine, link):
        given = {"bundle": bundle, "mine": mine, "descriptors": tiny_project.descriptors}
        arguments = [each.format(**given) for each in command]
        arguments[len(command) - 1 - command[::-1].index("{mine}")] = str(out)
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert f"{out} would be written over what is given as {said}" in error
        assert mine.read_bytes() == b"mine"


def test_evaluate_exits_with_1_where_new_classes_cost_more_than_is_allowed(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    device = icis_deploy.Device.open(bundle)
    images = device.prepare([tiny_project.images.parent / f"class{index:02d}.png" for index in range(46)])
    answers = device.logits(images).values[:, :NUM_SEEN].argmax(axis=1)
    np.savez(tmp_path / "images.npz", images=images, labels=np.array(tiny_project.seen_names)[answers])
    arguments = ["evaluate", str(bundle), "--images", str(tmp_path / "images.npz")]
    code, result = run_json(arguments, capsys)
    assert code == 0
    code, failed = run_json([*arguments, "--max-seen-loss", "2"], capsys)
    assert (code, failed["status"]) == (1, "failed")
    assert failed["details"]["seen_loss"] == result["details"]["seen_loss"] | {
        "max_seen_loss": 0.02,
        "verdict": "over",
    }
    assert run([*arguments, "--max-seen-loss", "2"]) == 1
    captured = capsys.readouterr()
    assert "That is over the 2 that are allowed." in captured.out
    assert "over the budget of 2 points; most is lost by" in captured.err


def test_evaluate_measures_what_the_chosen_runtime_answers(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", str(bundle), "--images", str(tiny_project.images)]
    _, expected = run_json(arguments, capsys)
    code, found = run_json([*arguments, "--runtime", "openvino"], capsys)
    assert (code, found["runtime"], found["accuracy"]) == (0, "openvino", expected["accuracy"])
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    assert run([*arguments, "--runtime", "openvino"]) == 5
    assert "pip install 'icis-deploy[openvino]'" in capsys.readouterr().err
    assert run([*arguments, "--runtime", "tensorrt-rtx"]) in {3, 5}  # no engine in the bundle, or no library


def test_predict_gives_the_same_answers_in_any_batch_size_and_runtime(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(str(path) for path in tiny_project.images.parent.glob("*.png"))[:7]
    answers = []
    for settings in (["--batch-size", "1"], ["--batch-size", "4"], ["--runtime", "openvino"]):
        code, result = run_json(["predict", str(bundle), *images, "--top", "3", *settings], capsys)
        assert code == 0
        answers.append([[entry["name"] for entry in each["classes"]] for each in result["predictions"]])
    assert answers[0] == answers[1] == answers[2]
    assert [len(names) for names in answers[0]] == [3] * 7


def test_predict_as_text_names_image_probability_and_class(
    bundle: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(tiny_project.images.parent.glob("*.png"))
    assert run(["predict", str(bundle), str(image), "--top", "1"]) == 0
    path, number, sign, name = capsys.readouterr().out.split()
    assert (path, sign) == (str(image), "%")
    assert 0 <= float(number) <= 100
    assert name in (*tiny_project.seen_names, *tiny_project.unseen_names)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "notes.txt"}, 3, ["notes.txt", ".onnx", ".pt2"]),
        ({"model": "missing.onnx"}, 3, ["no model file", "missing.onnx"]),
        ({"model": "truncated.onnx"}, 3, ["truncated.onnx"]),
        ({"classes": "short.txt"}, 3, ["39 names", "40 classes"]),
        ({"classes": "twice.txt"}, 3, ["class00", "twice"]),
        ({"update": "other.icis"}, 3, ["made for the head", "Inject again"]),
        ({"update": "notes.txt"}, 6, ["not a class update"]),
        ({"preprocess": "notes.txt"}, 3, ["notes.txt", "not JSON"]),
        ({"preprocess": "large.json"}, 3, ["(3, 32, 32)", "(3, 16, 16)"]),
        ({"head": "updatable", "capacity": "2"}, 3, ["adds 6 classes; 2 slots, 0 used"]),
        ({"capacity": "2"}, 2, ["--head updatable"]),
        ({"head": "updatable", "capacity": "99999999999"}, 2, ["99999999999 slots", "at most", "--capacity"]),
        ({"model": "newer.onnx"}, 3, ["newer.onnx", "opset 99", "too new", "or older"]),
        ({"model": "folder.onnx"}, 3, ["folder.onnx is a folder", "expected a .onnx file"]),
        ({"max-batch": "4"}, 2, ["no engine is built", "--target tensorrt"]),
        ({"head": "updatable", "capacity": "8", "generator": "truncated.onnx"}, 3, ["truncated.onnx"]),
        ({"head": "updatable", "capacity": "8", "generator": "newer.onnx"}, 3, ["newer.onnx"]),
    ],
)
def test_export_refuses_bad_input_in_one_line_and_leaves_nothing(
    change: dict[str, str],
    code: int,
    words: list[str],
    tiny_project: TinyProject,
    update: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    write_bad_files(bad, tiny_project, update)
    given = {
        "model": str(tiny_project.model),
        "classes": str(tiny_project.classes),
        "update": str(update),
        "preprocess": str(tiny_project.preprocess),
    }
    given |= {
        key: value if key in ("head", "capacity", "top", "max-batch") else str(bad / value)
        for key, value in change.items()
    }
    out = tmp_path / "out"
    out.mkdir()
    options = [text for key, value in given.items() if key != "model" for text in (f"--{key}", value)]
    assert run(["export", given["model"], *options, "--out", str(out / "bundle")]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("Error: ")
    for word in words:
        assert word in captured.err
    assert names_in(out) == set()


def write_bad_files(folder: Path, project: TinyProject, update: Path) -> None:
    (folder / "notes.txt").write_text("not what you think\n")
    (folder / "truncated.onnx").write_bytes(project.model.read_bytes()[:5000])
    model = onnx.load(project.model)
    model.opset_import[0].version = 99
    onnx.save(model, folder / "newer.onnx")
    (folder / "folder.onnx").mkdir()
    (folder / "short.txt").write_text("\n".join(project.seen_names[:-1]))
    (folder / "twice.txt").write_text("\n".join([*project.seen_names[:-1], "class00"]))
    settings = json.loads(project.preprocess.read_text())
    (folder / "large.json").write_text(json.dumps({**settings, "crop": 32}))
    from dataclasses import replace

    save_update(replace(load_update(update), base_fingerprint="0" * 64), folder / "other.icis")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["name,a,b", "class00,1,2", "new,2,1"], ["No descriptor for 'class01'", "and 34 more"]),
        (["name,a,b", "class00,1,nan"], ["'class00' has a NaN"]),
        (["name,a,b", "class00,0,0"], ["'class00' has an all-zero descriptor"]),
        (["name,a,b", "class00,1"], ["line 2", "1 numbers", "names 2"]),
        (["name,a,b", "class00,1,2", "class00,1,2"], ["'class00' is named twice"]),
    ],
)
def test_inject_refuses_bad_descriptors_by_class_name(
    lines: list[str], words: list[str], tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(lines))
    arguments = ["inject", str(tiny_project.model), "--classes", str(tiny_project.classes), "--descriptors", str(bad)]
    assert run([*arguments, "--out", str(tmp_path / "new.icis")]) == 3
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert names_in(tmp_path) == {"bad.csv"}


def test_only_a_bundle_is_replaced_and_only_when_asked_to(
    tiny_project: TinyProject, update: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert run(export_arguments(tiny_project, update, out)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "mine").read_text() == "precious"
    assert run([*export_arguments(tiny_project, update, out), "--overwrite"]) == 2
    assert "is not replaced" in capsys.readouterr().err
    assert (out / "mine").read_text() == "precious"
    (out / "manifest.json").write_text("an old bundle's")
    assert run([*export_arguments(tiny_project, update, out), "--overwrite"]) == 0
    assert "mine" not in names_in(out)


def test_verify_names_a_changed_file_and_refuses_it(
    tiny_project: TinyProject, update: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert run(export_arguments(tiny_project, update, out)) == 0
    data = bytearray((out / "model.onnx").read_bytes())
    data[-10] ^= 1
    (out / "model.onnx").write_bytes(data)
    capsys.readouterr()
    assert run(["verify", str(out), "--against", str(tiny_project.model)]) == 6
    assert "model.onnx" in capsys.readouterr().err


def test_json_errors_are_on_stdout_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "none.onnx"), "--format", "json"]) == 3
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["command"], result["status"]) == ("inspect", "error")
    assert result["error"]["type"] == "ModelLoadError"
    assert result["error"]["exit_code"] == 3
    assert captured.err.startswith("Error: ")


@pytest.mark.parametrize("stated", [["--format", "json"], ["--format=json"]], ids=["two words", "one word"])
def test_an_unknown_option_is_told_as_json_too(stated: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "none.onnx", "--clases", "list.txt", *stated]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["status"], result["error"]["exit_code"]) == ("error", 2)
    assert "--clases" in result["error"]["message"]


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["injekt"]) == 2
    assert "injekt" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_written_bundle(tiny_project: TinyProject, update: Path, tmp_path: Path) -> None:
    """A file size limit is what a full disk looks like to a process that runs as root, too."""
    out = tmp_path / "out"
    out.mkdir()
    program = (
        "import resource, signal, sys\n"
        "from icis_deploy.cli.main import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *export_arguments(tiny_project, update, out / "bundle")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "Could not write" in done.stderr
    assert done.stderr.count("\n") == 1
    assert names_in(out) == set()


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    from icis_deploy.cli.main import cli

    for name, command in cli.commands.items():
        assert run([name, "--help"]) == 0
        assert command.help
        assert command.short_help
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (name, parameter.name)


def test_a_report_on_a_model_that_gives_an_infinity_can_be_read() -> None:
    exported = np.eye(3)
    exported[0, 0] = np.inf
    report = compare_logits(np.eye(3), exported, profile=GATE_PROFILES["fp32"], compared_with="original")

    text = parity_text([report.to_json()])

    assert text.startswith("FAIL  against the original\n")
    assert "max scaled error infinite (limit 1e-04), p99.9 infinite (limit 5e-05)" in text
    assert "not kept: max_scaled_error inf is above 0.0001: the exported model gives a NaN or an infinity" in text
