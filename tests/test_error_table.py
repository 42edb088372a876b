"""`docs/errors.md` says what is said: each line of its tables is a message that a case here brings about.

To add one: the line in the document, and a case with the same command and the beginning of the message.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.device import Device
from testing.bundles import seen_head, write_bundle
from testing.tiny_project import TinyProject

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "errors.md"


@dataclass(frozen=True)
class Line:
    """A line of the document's tables."""

    command: str
    message: str
    exit_code: int
    cure: str


def lines() -> list[Line]:
    found = []
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| `") else []
        if cells:
            command, message, code, *cure = (cell.strip("| ") for cell in cells)
            found.append(Line(command.strip("`"), message, int(code), " ".join(cure)))
    return found


@dataclass(frozen=True)
class Place:
    """What a case works with: an empty folder, a bundle that takes six numbers, and a classifier of images."""

    folder: Path
    bundle: Path
    project: TinyProject
    patch: pytest.MonkeyPatch

    def file(self, name: str, **arrays: object) -> str:
        path = self.folder / name
        if path.suffix == ".npy":
            np.save(path, arrays["array"])
        else:
            np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
        return str(path)


Case = Callable[[Place], list[str]]
"""Returns the arguments of a command, or calls a function that raises."""

CASES: dict[tuple[str, str], Case] = {}
ROWS = np.zeros((2, 6), np.float32)


def case(command: str, beginning: str) -> Callable[[Case], Case]:
    """Add a case under the command and the beginning of the message that the document has."""

    def add(function: Case) -> Case:
        assert (command, beginning) not in CASES
        CASES[command, beginning] = function
        return function

    return add


def evaluating(beginning: str, name: str, **arrays: object) -> None:
    case("evaluate", beginning)(lambda at: ["evaluate", str(at.bundle), "--images", at.file(name, **arrays)])


def verifying(beginning: str, make: Callable[[Place], str]) -> None:
    def arguments(at: Place) -> list[str]:
        model = str(at.project.model)
        icis_deploy.export(at.project.model, classes=at.project.classes, out=at.folder / "exported")
        return ["verify", str(at.folder / "exported"), "--against", model, "--images", make(at)]

    case("verify", beginning)(arguments)


evaluating("Nothing says which classes the", "a.npy", array=ROWS)
evaluating("…: there are", "a.npz", inputs=ROWS, labels=["cat"])
evaluating("…: the label", "a.npz", inputs=ROWS, labels=[0, 1])
evaluating("… holds …; expected `inputs`", "a.npz", features=ROWS, labels=["cat", "dog"])


@case("evaluate", "… shows …, disabled")
def _(at: Place) -> list[str]:
    Device.open(at.bundle).disable("cat")
    return ["evaluate", str(at.bundle), "--images", at.file("a.npz", inputs=ROWS, labels=["cat", "dog"])]


@case("evaluate", "The bundle does not state how images are prepared, and")
def _(at: Place) -> list[str]:
    return ["evaluate", str(at.bundle), "--images", str(one_image(at))]


def one_image(at: Place) -> Path:
    path = at.folder / "images.csv"
    path.write_text(f"file,class\n{at.project.images.parent / 'class00.png'},cat\n")
    return path


def cut(at: Place) -> str:
    path = Path(at.file("a.npy", array=ROWS))
    path.write_bytes(path.read_bytes()[:-1])
    return str(path)


verifying("Cannot read the array", cut)
verifying("…[0] has shape", lambda at: at.file("a.npy", array=np.zeros((2, 3, 8, 8), np.float32)))
verifying("… holds nan at", lambda at: at.file("a.npy", array=np.full((2, 3, 16, 16), np.nan, np.float32)))
verifying("Images can only be used where", lambda at: str(at.project.images))


@case("inspect", "No head was found: … gives one number")
def _(at: Place) -> list[str]:
    ends = "(float[batch, 4] x) => (float[batch, 1] y)"
    return ["inspect", model(at, "l = MatMul (x, one) y = Sigmoid (l)", ends)]


@case("predict", "The bundle … does not state how images are prepared.")
def _(at: Place) -> list[str]:
    image = str(at.project.images.parent / "class00.png")
    return ["predict", str(at.bundle), image]


@case("predict", "Reading … needs pyarrow")
def _(at: Place) -> list[str]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"] + ["pyarrow", "pyarrow.parquet"]:
        at.patch.setitem(sys.modules, name, None)
    (at.folder / "a.parquet").write_bytes(b"PAR1")
    return ["predict", str(at.bundle), str(at.folder / "a.parquet")]


def model(at: Place, body: str, ends: str = "(float[batch, 4] x) => (float[batch, 3] y)", opset: int = 18) -> str:
    """Write a graph of a head of three classes, `w`, and return its path."""
    import onnx
    import onnx.parser

    imports = f'["": {opset}, "ai.onnx.ml": 3]'
    written = onnx.parser.parse_model(f"<ir_version: 8, opset_import: {imports}>\nnet {ends} {{ {body} }}")
    arrays = {
        "w": np.ones((4, 3), np.float32),
        "one": np.ones((4, 1), np.float32),
        "maps": np.ones((3, 4, 1, 1), np.float32),
        "depth": np.array(3),
        "pair": np.array([0, 1], np.float32),
        "first": np.array([0]),
        "second": np.array([1]),
        "half": np.array(0.5, np.float32),
        "yes": np.array(True),
    }
    taken = {name for node in written.graph.node for name in node.input}
    written.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items() if name in taken
    )
    onnx.save(written, at.folder / "model.onnx")
    return str(at.folder / "model.onnx")


HEAD = "y = MatMul (x, w)"
NAMES = "cat\ndog\nowl\n"


def inspecting(
    beginning: str, body: str, ends: str = "(float[batch, 4] x) => (float[batch, 3] y)", **more: int
) -> None:
    case("inspect", beginning)(lambda at: ["inspect", model(at, body, ends, **more)])


def classes(at: Place, text: str = NAMES) -> list[str]:
    (at.folder / "classes.txt").write_text(text)
    return ["--classes", str(at.folder / "classes.txt")]


def exporting(beginning: str, body: str, ends: str, preprocess: str = "") -> None:
    def arguments(at: Place) -> list[str]:
        found = ["export", model(at, body, ends), *classes(at), "--out", str(at.folder / "exported")]
        if preprocess:
            (at.folder / "preprocess.json").write_text(preprocess)
            found += ["--preprocess", str(at.folder / "preprocess.json")]
        return found

    case("export", beginning)(arguments)


def external(at: Place, size: int | None) -> list[str]:
    """A model whose weight lies in another file, which is missing, or has a few bytes."""
    import onnx

    path = model(at, HEAD)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = at.folder / "weights.bin"
    if size is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:size])
    return ["inspect", path]


def damaged(at: Place) -> list[str]:
    path = at.folder / "model.onnx"
    path.write_bytes(b"<!DOCTYPE html>")
    return ["inspect", str(path)]


TREE = (
    "label, y = ai.onnx.ml.TreeEnsembleClassifier <nodes_treeids = [0], nodes_nodeids = [0], nodes_featureids = [0], "
    'nodes_values = [0.0], nodes_modes = ["LEAF"], nodes_truenodeids = [0], nodes_falsenodeids = [0], '
    "class_treeids = [0], class_nodeids = [0], class_ids = [0], class_weights = [1.0], classlabels_int64s = [0, 1, 2]> "
    "(x)"
)
TWO = "(float[batch, 4] x) => (float[batch, 3] y, float[batch, 3] z)"

case("inspect", "There is no model file")(lambda at: ["inspect", str(at.folder / "none.onnx")])
case("inspect", "… is no model that can be loaded")(lambda at: ["inspect", str(at.folder / "none.tflite")])
case("inspect", "… (… bytes) cannot be read as ONNX")(damaged)
case("inspect", "… keeps the weight … in …, which cannot be read: ….")(lambda at: external(at, None))
case("inspect", "… keeps the weight … in …, which cannot be read: the file")(lambda at: external(at, 5))
case("inspect", "The class list has")(lambda at: ["inspect", model(at, HEAD), *classes(at, "cat\ndog\n")])
case("inspect", "Class … is named twice")(lambda at: ["inspect", model(at, HEAD), *classes(at, "cat\ndog\ncat\n")])
inspecting("… uses ONNX opset", HEAD, opset=999)
inspecting("… was exported in training mode", f"h = Dropout (x, half, yes) {HEAD.replace('x', 'h')}")
inspecting(
    "…: The model gives no tensor",
    f"{HEAD} s = SplitToSequence <axis = 0> (y)",
    "(float[batch, 4] x) => (seq(float[a, b]) s)",
)
inspecting(
    "No head was found: … (Conv) is none",
    "m = Conv (x, maps) r = Relu (m) y = GlobalAveragePool (r)",
    "(float[batch, 4, 5, 5] x) => (float[batch, 3, 1, 1] y)",
)
inspecting("No head was found: output … comes from … (TreeEnsembleClassifier)", TREE)
inspecting("It is not certain that this is the head", f"{HEAD} z = Relu (y)", TWO)
inspecting("Several layers could be the head", f"{HEAD} h = Neg (x) z = MatMul (h, w)", TWO)
inspecting(
    "No class can be added to this model's head",
    f"{HEAD} best = ArgMax <axis = 1, keepdims = 0> (y) z = OneHot (best, depth, pair)",
    TWO,
)
inspecting("The head … is followed by", "l = MatMul (x, w) y = Relu (l)")
exporting("… takes int32", "f = Cast <to = 1> (x) y = MatMul (f, w)", "(int32[batch, 4] x) => (float[batch, 3] y)")
exporting(
    "… takes an input of shape",
    "m = ReduceMean <keepdims = 0> (x, first) f = Unsqueeze (m, first) y = MatMul (f, w)",
    "(float[3, 4] x) => (float[1, 3] y)",
)
exporting(
    "… takes inputs of any size",
    "m = ReduceMean <keepdims = 0> (x, second) y = MatMul (m, w)",
    "(float[batch, tall, 4] x) => (float[batch, 3] y)",
)
exporting(
    "The preprocessing gives images of shape",
    "p = GlobalAveragePool (x) f = Flatten (p) y = MatMul (f, w)",
    "(float[batch, 4, 8, 8] x) => (float[batch, 3] y)",
    preprocess='{"resize": 8, "crop": 8, "mean": 0, "std": 1}',
)


@case("verify", "The bundle … was made from the head")
def _(at: Place) -> list[str]:
    icis_deploy.export(model(at, HEAD), classes=NAMES.split(), out=at.folder / "exported")
    other = model(at, f"n = Neg (w) {HEAD.replace('w', 'n')}")
    return ["verify", str(at.folder / "exported"), "--against", other]


def calling(command: str, beginning: str, call: Callable[[Place], object]) -> None:
    def raising(at: Place) -> list[str]:
        call(at)
        raise AssertionError("nothing was raised")

    case(command, beginning)(raising)


def closed(at: Place) -> object:
    with Device.open(at.bundle) as device:
        pass
    return device.predict(ROWS)


def injecting(descriptors: object) -> Callable[[Place], object]:
    return lambda at: icis_deploy.inject(at.project.model, classes=at.project.classes, descriptors=descriptors)


calling("Device.predict", "the inputs cannot be", lambda at: Device.open(at.bundle).predict(3))
calling("Device.predict", "input 0 is the number", lambda at: Device.open(at.bundle).predict([3]))
calling("Device.predict", "The device of … is closed.", closed)
calling("inspect", "The names by number", lambda at: icis_deploy.inspect(at.project.model, classes={1: "a"}))
calling("inspect", "The class name", lambda at: icis_deploy.inspect(at.project.model, classes=[0, 1]))
calling("inject", "The descriptor of", injecting({"a": [1.0, 2.0], "b": [1.0]}))
calling("inject", "A descriptor is of", injecting({0: [1.0]}))
calling("inject", "Descriptors cannot be", injecting([1.0]))


def adding(change: str) -> Callable[[Place], object]:
    def call(_at: Place) -> object:
        torch = pytest.importorskip("torch")
        head, rows = seen_head(), np.ones((1, 5), np.float32)
        names = {"replaced": ("owl",)} if change == "replaces" else {"added": ("okapi",)}
        update = icis_deploy.ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, **names)
        classes = None if change == "no names" else head.class_names
        return icis_deploy.add_to_module(torch.nn.Linear(4, 3), update, classes=classes)

    return call


calling("add_to_module", "The class update was made for", adding("other rows"))
calling("add_to_module", "Nothing says which classes", adding("no names"))
calling("add_to_module", "The class update replaces", adding("replaces"))


def case_of(line: Line) -> Case:
    (found,) = [made for (command, start), made in CASES.items() if command == line.command and starts(line, start)]
    return found


def starts(line: Line, beginning: str) -> bool:
    return line.message.startswith(beginning)


def matches(pattern: str, text: str) -> bool:
    """Say whether a text has a pattern in it, in which `…` is anything."""
    return re.search(".*?".join(map(re.escape, pattern.split("…"))), text) is not None


@pytest.mark.parametrize("line", lines(), ids=lambda line: f"{line.command}: {line.message[:40]}")
def test_a_line_is_what_is_said(line: Line, tmp_path, tiny_project, monkeypatch, capsys):
    place = Place(tmp_path, write_bundle(tmp_path / "bundle"), tiny_project, monkeypatch)
    try:
        arguments = case_of(line)(place)
        capsys.readouterr()
        code = run(arguments)
        said = " ".join(capsys.readouterr().err.split())
    except ICISDeployError as error:
        code, said = error.exit_code, str(error)

    assert matches(line.message, said), said
    assert matches(line.cure, said), said
    assert code == line.exit_code


def test_every_case_has_one_line_and_every_line_one_case():
    known = lines()

    assert len(known) == len(CASES)
    for command, beginning in CASES:
        assert sum(line.command == command and starts(line, beginning) for line in known) == 1, (command, beginning)


def test_a_message_that_is_another_would_be_noticed():
    assert matches("The class … is …; expected text.", "The class 3 is 'int'; expected text. Do this.")
    assert not matches("The class … is …; expected text.", "The class 3 is 'int'; expected a name.")
