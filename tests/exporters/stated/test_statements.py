"""Class names and metadata that models state."""

import pytest

from exporters.stated.statement import Statement, names_by_index, stated_names
from exporters.stated.ultralytics import names_of_metadata, preprocessing_of_metadata
from icis_deploy.errors import IncompatibleError, ModelLoadError
from icis_deploy.images.preprocessing import Preprocessing

NAMES = ("tench", "goldfish", "great white shark")


@pytest.mark.parametrize(
    "given",
    [
        dict(enumerate(NAMES)),
        {"0": "tench", "1": "goldfish", "2": " great white shark "},
        {2: "great white shark", 0: "tench", 1: "goldfish"},
        list(NAMES),
    ],
)
def test_names_come_in_the_order_of_their_indices(given):
    assert names_by_index(given, source="config").require() == NAMES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({0: "a", 2: "b"}, r"config does not name classes 0, 1, 2 … one by one\."),
        ({1: "a", 2: "b"}, r"config does not name classes 0, 1, 2 …"),
        ({}, r"config does not name classes"),
        ({"a": 0, "b": 1}, r"config does not name classes"),
        (7, r"config does not name classes"),
        (None, r"config does not name classes"),
        ({0: "LABEL_0", 1: "LABEL_1"}, r"config only counts the classes \(LABEL_0, LABEL_1 …\)"),
        (["a", "b", "a"], r"config: Class 'a' is named twice \(again at index 2\)"),
        (["a", ""], r"config: Class 1 has an empty name"),
        (["a", 3], r"config: Class 1 is named '?3'?; a name is a text"),
    ],
)
def test_names_that_no_head_can_have_are_an_obstacle_that_says_what_to_do(given, message):
    said = names_by_index(given, source="config")

    assert said.value is None
    assert "Give `classes`, a text file with one class name a line." in str(said.obstacle)
    with pytest.raises(ModelLoadError, match=f"^{message}"):
        said.require()


def test_two_classes_may_be_called_label_among_others():
    assert stated_names(["LABEL_0", "other"], source="config").require() == ("LABEL_0", "other")


# --- Ultralytics --------------------------------------------------------------------------------------------------

METADATA = {
    "description": "Ultralytics YOLO11n-cls model trained on mine.yaml", "author": "Ultralytics", "task": "classify",
    "stride": "1", "batch": "1", "imgsz": "[64, 64]", "names": "{0: 'tench', 1: 'goldfish', 2: \"shark's\"}",
    "args": "{'batch': 1}", "channels": "3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "num_channels", "expected"),
    [
        ("[64, 64]", 3, {"resize": 64, "crop": 64, "mean": 0.0, "std": 1.0}),
        ("[64, 96]", 3, {"resize": (64, 96), "crop": (64, 96), "mean": 0.0, "std": 1.0}),
        ("(32, 32)", 1, {"resize": 32, "crop": 32, "mean": 0.0, "std": 1.0, "color": "L"}),
    ],
)
def test_a_classifier_of_ultralytics_states_names_and_size(size, num_channels, expected):
    metadata = METADATA | {"imgsz": size}

    assert names_of_metadata(metadata, where="m.onnx").require() == ("tench", "goldfish", "shark's")
    said = preprocessing_of_metadata(metadata, num_channels=num_channels, where="m.onnx")
    assert said.require() == Preprocessing(**expected)
    assert said.source == "m.onnx (imgsz in its metadata)"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"task": "detect"}, "detect"),
        ({"imgsz": "64"}, "64"),
        ({"imgsz": "[64, x]"}, "x"),
        ({"imgsz": "((" * 999}, r"\(\("),
    ],
)
def test_other_models_of_ultralytics_are_refused_by_name(change, found):
    said = preprocessing_of_metadata(METADATA | change, num_channels=3, where="m.onnx")

    with pytest.raises(IncompatibleError, match=f"^m.onnx is a model of Ultralytics with the task .*{found}"):
        said.require()


@pytest.mark.parametrize("names", ["__import__('os').getcwd()", "{0: f'a'}", "{", "0" * (1 << 22), "-" * 9999 + "1"])
def test_metadata_are_literals_and_nothing_that_runs(names):
    said = names_of_metadata({"names": names}, where="m.onnx")

    assert isinstance(said, Statement)
    with pytest.raises(ModelLoadError, match=r"^m.onnx \(names in its metadata\) does not name classes"):
        said.require()


def test_metadata_of_others_say_nothing():
    assert names_of_metadata({"author": "me"}, where="m.onnx") is None
    assert preprocessing_of_metadata({"names": "{0: 'a'}"}, num_channels=3, where="m.onnx") is None
