"""What a project file may say, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from icis_deploy.api.bench import PRESET_NAMES, SCENARIO_NAMES
from icis_deploy.api.export import ARBITERS
from icis_deploy.bundle.manifest import HEAD_KINDS, PRECISIONS
from icis_deploy.cli.export import TARGET_NAMES
from icis_deploy.errors import LoadError, UsageError
from icis_deploy.injection.options import CALIBRATIONS
from icis_deploy.injection.predictors.registry import METHODS
from icis_deploy.project import settings
from icis_deploy.project.file import load_project
from icis_deploy.project.steps import steps_of
from icis_deploy.project.yaml_values import load_yaml
from icis_deploy.runtime.sessions.choice import RUNTIME_NAMES

SCHEMA = Path(settings.__file__).with_name("project.schema.json")
FILES = ("model.onnx", "classes.txt", "unseen.txt", "descriptors.npz", "images.csv")
START = "model: model.onnx\nclasses: classes.txt\ndescriptors: descriptors.npz\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text("a file")
    (tmp_path / "photos").mkdir()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "project.yaml"
    path.write_text(text)
    return path


def test_the_schema_that_is_committed_is_that_of_the_settings() -> None:
    assert json.loads(SCHEMA.read_text()) == settings.json_schema()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (settings.RuntimeName, RUNTIME_NAMES),
        (settings.MethodName, ("auto", *METHODS)),
        (settings.TargetName, TARGET_NAMES),
        (settings.ScenarioName, SCENARIO_NAMES),
        (settings.BenchSettings.model_fields["preset"].annotation, PRESET_NAMES),
        (settings.InjectSettings.model_fields["calibration"].annotation, CALIBRATIONS),
        (settings.ExportSettings.model_fields["arbiter"].annotation, ARBITERS),
        (settings.ExportSettings.model_fields["head"].annotation, HEAD_KINDS),
        (settings.ExportSettings.model_fields["precision"].annotation, PRECISIONS),
    ],
)
def test_choices_are_those_of_the_library(kind: object, names: tuple[str, ...]) -> None:
    assert sorted(kind.__args__) == sorted(names)  # type: ignore[attr-defined]


WHOLE = """
model: model.onnx
classes: classes.txt
unseen: unseen.txt
preprocess: {resize: 16, crop: 16, mean: [0.5, 0.5, 0.5], std: [1, 1, 1], color: RGB, layout: NCHW}
images: images.csv
out: made
describe:
  texts: unseen.txt
  templates: ["a photo of a {}."]
inject:
  arbiter: off
  max_seen_loss: 1.5
  photos: photos
export:
  head: updatable
  max_changed_answers: null
  targets: [onnx, openvino]
verify:
evaluate:
  runtime: openvino
bench:
  batch_sizes: [1, 8]
report:
"""


def test_a_file_is_read_with_its_types_and_empty_sections_are_steps(folder: Path) -> None:
    project = load_project(write(folder, WHOLE))

    assert project.step_names == settings.STEP_NAMES
    assert project.settings.inject.arbiter == "off"
    assert project.settings.inject.max_seen_loss == 1.5
    assert project.settings.export.max_changed_answers is None
    assert project.settings.export.targets == ["onnx", "openvino"]
    assert project.settings.bench is not None
    assert project.settings.bench.batch_sizes == [1, 8]
    assert project.out == folder / "made"
    assert project.resolve("unseen.txt") == folder / "unseen.txt"


def test_the_schema_takes_what_is_read_and_refuses_what_is_not(folder: Path) -> None:
    schema = json.loads(SCHEMA.read_text())

    jsonschema.validate(load_yaml(write(folder, WHOLE)).value, schema)
    for wrong in ("metod: 1\n", "inject:\n  method: rigde\n", "bench:\n  batch_sizes: []\n"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(load_yaml(write(folder, START + wrong)).value, schema)


def test_the_file_of_the_guide_is_read(folder: Path) -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "project.md").read_text("utf-8")
    text = guide.split("```yaml\n")[1].split("```")[0]
    for name in ("preprocess.json", "known.csv", "answers.txt", "numberbatch-en.txt.gz", "KEY.pub"):
        (folder / name).write_text("a file")

    assert load_project(write(folder, text)).step_names == settings.STEP_NAMES


def test_preprocessing_in_the_file_is_checked_before_anything_is_done(folder: Path) -> None:
    path = write(folder, START + "preprocess: {resize: 16, crop: -1}\n")
    with pytest.raises(UsageError, match=r"line 4: .*preprocess"):
        steps_of(load_project(path))


def test_only_what_is_asked_for_is_done(folder: Path) -> None:
    assert load_project(write(folder, START)).step_names == ("inject", "export")


WRONG = {
    START + "modle: b.onnx\n": "line 4: modle is no setting of a project. Did you mean model?",
    START.replace("model:", "modle:"): "line 1: modle is no setting of a project. Did you mean model?",
    START + "inject:\n\n  metod: ridge\n": "line 6: inject.metod is no setting of inject. Did you mean method?",
    START + "inject:\n  method: rigde\n": "line 5: inject.method is 'rigde'; expected auto, icis",
    START + "export:\n  head: updateable\n": (
        "line 5: export.head is 'updateable'; expected fused or updatable. Did you mean updatable?"
    ),
    START + "export:\n  targets:\n    - onnx\n    - openvin\n": "line 7: export.targets[1] is 'openvin'; expected onnx",
    START + "inject:\n  seed: '3'\n": "line 5: inject.seed is '3'; expected a whole number.",
    START + "inject:\n  seed: true\n": "line 5: inject.seed is true; expected a whole number.",
    START + "inject:\n  strict: yes\n": "line 5: inject.strict is 'yes'; expected true or false.",
    START + "inject:\n  max_seen_loss: 0\n": "line 5: inject.max_seen_loss is 0; expected greater than 0.",
    START + "inject:\n  max_seen_loss: 100\n": "line 5: inject.max_seen_loss is 100; expected less than 100.",
    START + "bench:\n  batch_sizes: []\n": "line 5: bench.batch_sizes is a list; expected at least one value.",
    START + "inject: ridge\n": "line 4: inject is 'ridge'; expected settings, one a line.",
    START + "preprocess: 3\n": "line 4: preprocess is 3; expected a text or settings, one a line.",
    START + "unseen: [a, b]\n": "line 4: unseen is a list; expected a text.",
    "classes: classes.txt\n": "line 1: model is not given. Add it.",
    "- a\n": "line 1: the file is a list; expected settings, one a line.",
    START + "unseen: unsen.txt\n": (
        "line 4: unseen is 'unsen.txt', where there is nothing; expected a file. Did you mean unseen.txt? Paths are "
    ),
    START + "unseen: photos\n": "line 4: unseen is 'photos', where there is a folder; expected a file.",
    START + "export:\n  trust: [a.pub]\n": "line 5: export.trust[0] is 'a.pub', where there is nothing",
    START.replace("model.onnx", "modell.onnx"): "line 1: model is 'modell.onnx', where there is nothing",
    START + "describe:\n": "line 4: descriptors are given, and describe would make others.",
    "model: model.onnx\ndescribe:\n": "line 2: describe needs the names of the new classes. Give unseen.",
    "model: model.onnx\n": "line 1: nothing says what the new classes are. Give descriptors,",
    START + "evaluate:\n": "line 4: evaluate needs labelled images. Give images.",
    START + "report:\n": "line 4: report has no result to show. Add a section bench",
    START + "inject:\n  calibration: length\n  balance: 0.5\n": "line 6: inject.balance would do nothing:",
    START + "inject:\n  max_seen_loss: 2\n  balance: 0.5\n": "line 6: inject has max_seen_loss and balance,",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_the_root_of_what_is_wrong_is_named_with_its_line(folder: Path, text: str, message: str) -> None:
    path = write(folder, text)
    with pytest.raises(UsageError) as caught:
        load_project(path)

    assert str(caught.value).startswith(f"{path}, {message}")
    assert caught.value.where == f"{path}, {message.partition(':')[0]}"
    assert caught.value.expected is not None


BROKEN = {
    "model: [a\n": "line 2: while parsing a flow sequence expected ',' or ']'",
    "model: a\nmodel: b\n": "line 2: 'model' is there again, after line 1.",
    "model: &a b\nclasses: *a\n": "line 1: an anchor or alias is used.",
    "model: !!python/name:os.system x\n": "line 1: a tag is used.",
    "a: b: c\n": "line 1: mapping values are not allowed here",
    "? [a, b]\n: c\n": "line 1: a key is no text.",
    "[" * 5000: "line",
    "model: a\n---\nmodel: b\n": "line 2: expected a single document",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items())
def test_what_is_no_yaml_of_ours_is_refused_with_its_line(folder: Path, text: str, message: str) -> None:
    path = write(folder, text)
    with pytest.raises(LoadError, match=r"^") as caught:
        load_project(path)

    assert str(caught.value).startswith(f"{path}, {message}")


def test_bytes_that_are_no_text_are_refused_with_their_line(folder: Path) -> None:
    path = folder / "project.yaml"
    path.write_bytes(b"model: a\nclasses: \xff\n")
    with pytest.raises(LoadError, match="line 2: it is no text in UTF-8"):
        load_project(path)


def test_scalars_have_the_types_of_yaml_1_2(folder: Path) -> None:
    text = "a: off\nb: 2027-12-31\nc: 1:30\nd: 1e-3\ne: 0x10\nf: '3'\ng: ~\nh: -4\ni: .5\nj: yes\nk: true\nl: 010\n"

    assert load_yaml(write(folder, text)).value == {
        "a": "off", "b": "2027-12-31", "c": "1:30", "d": 0.001, "e": "0x10", "f": "3", "g": None, "h": -4, "i": 0.5,
        "j": "yes", "k": True, "l": 10,
    }  # fmt: skip
