"""`docs/errors.md` says what is said: each line of its tables is a message that a case here brings about.

To add one: the line in the document, and a case with the same command and the beginning of the message.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.bundle.converted_sidecar import ConvertedSidecar, ConvertedTensor, verify_converted
from icis_deploy.bundle.manifest import file_entry, load_manifest, serialize_manifest
from icis_deploy.carriers.transfer import fetch_file
from icis_deploy.cli.main import run
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.class_update import FollowedState
from icis_deploy.head.head import Head
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import keygen, load_private_key
from scripts.maintenance.site_errors import KINDS, all_messages, messages_of, with_messages
from testing.bundles import SEEN_NAMES, features_of, make_update, seen_head, trust, write_bundle, write_signed
from testing.chat_server import running_chat_server
from testing.references import add_reference
from testing.tiny_project import TinyProject

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "errors.md"


@dataclass(frozen=True)
class Line:
    """A line of the document's tables."""

    command: str
    message: str
    kind: str
    exit_code: int
    cure: str


def lines() -> list[Line]:
    found = []
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| `") else []
        if cells:
            command, message, kind, code, *cure = (cell.strip("| ") for cell in cells)
            found.append(Line(command.strip("`"), message, kind, int(code), " ".join(cure)))
    return found


@dataclass(frozen=True)
class Place:
    """What a case works with: an empty folder, a bundle that takes six numbers, and a classifier of images."""

    folder: Path
    bundle: Path
    project: TinyProject
    patch: pytest.MonkeyPatch
    held: ExitStack

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


def calling(command: str, beginning: str, call: Callable[[Place], object]) -> None:
    def raising(at: Place) -> list[str]:
        call(at)
        raise AssertionError("nothing was raised")

    case(command, beginning)(raising)


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
    path.write_bytes(b"\x08\x08\x3a\x7f")
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

# --- models, heads and descriptions -------------------------------------------------------------------------------


def injecting_with(at: Place, *options: str, descriptors: Path | None = None) -> list[str]:
    given = ["--classes", str(at.project.classes), "--descriptors", str(descriptors or at.project.descriptors)]
    return ["inject", str(at.project.model), *given, *options, "--out", str(at.folder / "new.icis")]


@case("inject", "Nothing vouches for these rows")
def _(at: Place) -> list[str]:
    return injecting_with(at, "--strict", "--calibration", "length", "--method", "ridge")


@case("inject", "The descriptor file")
def _(at: Place) -> list[str]:
    (at.folder / "descriptors.doc").write_text("")
    return injecting_with(at, descriptors=at.folder / "descriptors.doc")


def exporting_with(at: Place, preprocessing: str) -> list[str]:
    (at.folder / "preprocess.json").write_text(preprocessing)
    given = ["--classes", str(at.project.classes), "--preprocess", str(at.folder / "preprocess.json")]
    return ["export", str(at.project.model), *given, "--out", str(at.folder / "out")]


case("export", "The preprocessing file")(lambda at: exporting_with(at, "{"))
case("export", "…: unknown keys")(lambda at: exporting_with(at, '{"siez": 3}'))


def tracing(_at: Place) -> object:
    torch = pytest.importorskip("torch")
    from exporters.loading.torch_export import export_module

    class Net(torch.nn.Module):  # type: ignore[misc]
        def forward(self) -> object:
            return torch.zeros(1)

    return export_module(Net().eval(), (3, 8, 8))


calling("export", "….forward takes no argument", tracing)


@case("describe", "What … sends is no answer")
def _(at: Place) -> list[str]:
    server = at.held.enter_context(running_chat_server(lambda _question: ""))
    server.behaviours = [(200, "no JSON", {})]
    given = ["--llm", server.url, "--llm-model", "any"]
    return ["describe", str(at.project.classes), *given, "--out", str(at.folder / "descriptors.npz")]


@case("verify", "The bundle … was made from a head of")
def _(at: Place) -> list[str]:
    return ["verify", str(at.bundle), "--against", str(at.project.model)]


@case("verify", "… disagrees with")
def _(at: Place) -> list[str]:
    import onnx

    out = at.folder / "exported"
    icis_deploy.export(at.project.model, classes=at.project.classes, out=out)
    model = onnx.load(out / "model.onnx")
    filters = next(each for each in model.graph.initializer if len(each.dims) == 4)
    filters.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(filters)[::-1].copy(), filters.name))
    onnx.save(model, out / "model.onnx")
    restate(out, "model.onnx")
    return ["verify", str(out), "--against", str(at.project.model)]


def restate(bundle: Path, name: str) -> None:
    """Let the manifest of a bundle state a file as it is now."""
    manifest = load_manifest(bundle)
    files = {**manifest.files, name: file_entry(bundle / name)}
    (bundle / "manifest.json").write_bytes(serialize_manifest(replace(manifest, files=files)))


@case("evaluate", "…: new classes cost")
def _(at: Place) -> list[str]:
    with Device.open(at.bundle) as device:
        device.apply(make_update("thief", rows=np.full((1, 5), 40.0)), allow_unsigned=True)
        inputs = np.abs(np.random.default_rng(0).normal(size=(90, 6))).astype(np.float32) @ np.eye(6, dtype=np.float32)
        labels = [str(each) for each in np.array(SEEN_NAMES)[seen_head().logits(features_of(inputs)).argmax(axis=1)]]
    return [
        "evaluate",
        str(at.bundle),
        "--images",
        at.file("a.npz", inputs=inputs, labels=labels),
        "--max-seen-loss",
        "2",
    ]


# --- what new users try -------------------------------------------------------------------------------------------


def listing(at: Place, text: str, encoding: str = "utf-8") -> list[str]:
    """Inject with a list of images of seen classes."""
    (at.folder / "seen.csv").write_text(text, encoding)
    return injecting_with(at, "--seen-images", str(at.folder / "seen.csv"), "--preprocess", str(at.project.preprocess))


def one_class_alone(at: Place) -> list[str]:
    (at.folder / "one.csv").write_text("name,a\nclass00,1\n")
    return injecting_with(at, descriptors=at.folder / "one.csv")


def known_alone(at: Place) -> list[str]:
    lines = [f"{name},{index}" for index, name in enumerate(at.project.seen_names, start=1)]
    (at.folder / "known.csv").write_text("\n".join(["name,a", *lines]))
    return injecting_with(at, descriptors=at.folder / "known.csv")


def photo(at: Place, name: str) -> list[str]:
    image = at.project.images.parent / f"{name}.png"
    (at.folder / "photos.csv").write_text(f"file,class\n{image},{name}\n")
    return injecting_with(at, "--photos", str(at.folder / "photos.csv"), "--preprocess", str(at.project.preprocess))


def stating(at: Place, **metadata: str) -> list[str]:
    """Inject into a model whose metadata say something."""
    import onnx

    path = model(at, HEAD)
    written = onnx.load(path)
    onnx.helper.set_model_props(written, metadata)
    onnx.save(written, path)
    return ["inject", path, "--descriptors", str(at.project.descriptors), "--out", str(at.folder / "new.icis")]


def pretrained(at: Place, config: str) -> list[str]:
    """Inspect a folder of transformers that has a configuration alone."""
    (at.folder / "my-vit").mkdir()
    (at.folder / "my-vit" / "config.json").write_text(config)
    return ["inspect", str(at.folder / "my-vit")]


def into(at: Place, out: Path) -> list[str]:
    return ["export", str(at.project.model), "--classes", str(at.project.classes), "--out", str(out)]


def describing(at: Place, option: str) -> list[str]:
    (at.folder / "words.txt").write_text("zebra crossing\n")
    given = [option, str(at.folder / "words.txt"), "--out", str(at.folder / "descriptors.npz")]
    return ["describe", str(at.project.classes), *given]


def trusting_the_private_key(at: Place) -> list[str]:
    keys = keygen(at.folder / "key")
    return [*into(at, at.folder / "out"), "--head", "updatable", "--trust", str(keys.private_path)]


case("inject", "… cannot be written: there is no folder")(
    lambda at: [*injecting_with(at)[:-1], str(at.folder / "none" / "new.icis")]
)
case("export", "… already exists.")(lambda at: into(at, at.bundle))
case("inject", "The image list … names")(lambda at: listing(at, "file,class\nnone.png,class00\n"))
case("inject", "The image list … has")(lambda at: listing(at, "a.png\nb.png\n"))
case("inject", "The image list … is not a CSV")(lambda at: listing(at, "file,class\nhöhle.png,class00\n", "latin-1"))
case("inject", "… is an image; expected a list")(
    lambda at: injecting_with(at, "--seen-images", str(at.project.images.parent / "class00.png"))
)
case("inject", "… is not an image that Pillow")(lambda at: listing(at, "file,class\nseen.csv,class00\n"))
case("inject", "The images of seen classes in")(
    lambda at: listing(at, f"file,class\n{at.project.images.parent / 'class40.png'},class40\n")
)
case("inject", "The photos of new classes show")(lambda at: photo(at, "class00"))
case("inject", "… is no model that can be loaded: found a bundle")(
    lambda at: ["inject", str(at.bundle), *injecting_with(at)[2:]]
)
case("inspect", "transformers cannot load")(lambda at: pretrained(at, '{"model_type": "vit"}'))
case("inspect", "… needs code of its own")(
    lambda at: pretrained(
        at,
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForImageClassification": "own.M"}}',
    )
)
case("inject", "… only counts the classes")(lambda at: stating(at, names="{0: 'LABEL_0', 1: 'LABEL_1', 2: 'LABEL_2'}"))
case("export", "… is a model of Ultralytics")(
    lambda at: [
        *["export", stating(at, task="detect", imgsz="[8, 8]")[1], *classes(at)],
        *["--out", str(at.folder / "out")],
    ]
)
case("export", "Preprocessing has mean")(
    lambda at: exporting_with(at, '{"resize": 8, "crop": 8, "mean": 0.5, "std": 0}')
)
case("export", "Preprocessing has resize")(
    lambda at: exporting_with(at, '{"resize": 0, "crop": 8, "mean": 0.5, "std": 1}')
)
case("export", "Preprocessing has color")(
    lambda at: exporting_with(at, '{"resize": 8, "crop": 8, "mean": 0.5, "std": 1, "color": "HSV"}')
)
case("inject", "Nothing says what the new classes are")(
    lambda at: [
        "inject",
        str(at.project.model),
        "--classes",
        str(at.project.classes),
        "--out",
        str(at.folder / "new.icis"),
    ]
)
case("inject", "No descriptor for")(one_class_alone)
case("inject", "There is no unseen class")(known_alone)
case("inject", "Cannot inject")(lambda at: injecting_with(at, "--unseen", str(at.project.classes)))
case("describe", "… has … fields after the word")(lambda at: describing(at, "--vectors"))
case("describe", "The file of tags")(lambda at: describing(at, "--tags"))
case("export", "A fused head has no slots")(lambda at: [*into(at, at.folder / "out"), "--capacity", "4"])
case("export", "int8 must be calibrated")(lambda at: [*into(at, at.folder / "out"), "--precision", "int8"])
case("export", "…: The text is a private key")(trusting_the_private_key)
case("sign", "Nobody is named")(lambda at: ["sign", unsigned(at), "--version", "1"])
case("disable", "The head knows no class")(lambda at: ["disable", str(at.bundle), "class99"])
case("teach", "The bundle … has no generator")(
    lambda at: ["teach", str(at.bundle), "class40", "--descriptor", str(at.project.descriptors)]
)


@case("sign", "The file would expire")
def _(at: Place) -> list[str]:
    pair = keygen(at.folder / "key")
    return ["sign", unsigned(at), "--key", str(pair.private_path), "--version", "1", "--expires", "2020-01-01"]


@case("keygen", "… already exists")
def _(at: Place) -> list[str]:
    keygen(at.folder / "key")
    return ["keygen", "--out", str(at.folder / "key")]


@case("compact", "The bundle … has a fused head")
def _(at: Place) -> list[str]:
    fused = write_bundle(at.folder / "fused", capacity=0)
    return ["compact", str(fused), "--out", str(at.folder / "compacted")]


# --- bundles and updates on a device ------------------------------------------------------------------------------


@case("classes", "…: The manifest is not a JSON object")
def _(at: Place) -> list[str]:
    (at.bundle / "manifest.json").write_text("{")
    return ["classes", str(at.bundle)]


@case("predict", "… has … bytes and SHA-256")
def _(at: Place) -> list[str]:
    with (at.bundle / "model.onnx").open("ab") as file:
        file.write(b" ")
    return ["predict", str(at.bundle), at.file("a.npy", array=ROWS)]


@dataclass(frozen=True)
class Publisher:
    """Signs updates for the bundle, which trusts its key."""

    at: Place
    private_key: Path

    def file(self, update: icis_deploy.ClassUpdate) -> str:
        path = self.at.folder / f"new-{len(list(self.at.folder.iterdir()))}.icis"
        return str(write_signed(path, update, self.private_key))


def applying(beginning: str, make: Callable[[Place, Publisher], str]) -> None:
    def arguments(at: Place) -> list[str]:
        pair = keygen(at.folder / "key")
        trust(at.bundle, pair.public_path)
        return ["apply", make(at, Publisher(at, pair.private_path)), "--to", str(at.bundle)]

    case("apply", beginning)(arguments)


def garbage(at: Place, _by: Publisher) -> str:
    (at.folder / "new.icis").write_text("{}")
    return str(at.folder / "new.icis")


def unsigned(at: Place, _by: Publisher | None = None) -> str:
    icis_deploy.save_update(make_update("okapi"), at.folder / "new.icis")
    return str(at.folder / "new.icis")


def of_a_stranger(at: Place, _by: Publisher) -> str:
    return Publisher(at, keygen(at.folder / "stranger").private_path).file(make_update("okapi"))


def changed_after_signing(at: Place, by: Publisher) -> str:
    (at.folder / "new.icis").write_bytes(Path(by.file(make_update("okapi"))).read_bytes())
    envelope = json.loads((at.folder / "new.icis").read_text())
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    signature[0] ^= 1
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (at.folder / "new.icis").write_text(json.dumps(envelope))
    return str(at.folder / "new.icis")


def after(*updates: icis_deploy.ClassUpdate) -> Callable[[Place, Publisher], str]:
    """All but the last are applied before."""

    def make(at: Place, by: Publisher) -> str:
        with Device.open(at.bundle) as device:
            for update in updates[:-1]:
                device.apply(by.file(update))
        return by.file(updates[-1])

    return make


def expired(at: Place, by: Publisher) -> str:
    envelope = envelope_of(make_update("okapi", expires=datetime(2020, 1, 1, tzinfo=timezone.utc)))
    envelope.sign(load_private_key(by.private_key))  # `sign` itself refuses a time that has passed
    (at.folder / "new.icis").write_bytes(serialize_envelope(envelope))
    return str(at.folder / "new.icis")


def with_reference(at: Place, by: Publisher) -> str:
    add_reference(at.bundle)
    return by.file(make_update("hijack", rows=np.array([[0.0, 0.0, 0.0, 0.0, 60.0]])))


LATER = FollowedState(version=7, digest="0" * 64)

applying("The file is not a class update", garbage)
applying("The file is not signed.", unsigned)
applying("The file is signed by", of_a_stranger)
applying("The signature by", changed_after_signing)
applying("The class update has version", after(make_update("okapi"), make_update("zebra")))
applying("The class update expired", expired)
applying("Class update … follows", after(make_update("okapi", version=8, follows=LATER)))
applying("The class update was made for the head", after(make_update("okapi", base_fingerprint="0" * 64)))
applying("The class update adds … classes; … slots", after(make_update(*"abcdef")))
applying("The class update adds …, which", after(make_update("cat")))
applying("The change takes", with_reference)


@case("apply", "Another process is changing")
def _(at: Place) -> list[str]:
    from icis_deploy.runtime.state import store

    at.patch.setattr(store, "LOCK_TIMEOUT_SECONDS", 0.05)
    at.held.enter_context(store.Store(at.bundle).locked(load_manifest(at.bundle)))
    return ["apply", unsigned(at), "--to", str(at.bundle), "--allow-unsigned"]


case("rollback", "There is nothing to roll back to")(lambda at: ["rollback", str(at.bundle)])


@case("sign", "… is not a private key")
def _(at: Place) -> list[str]:
    path = unsigned(at)
    (at.folder / "key").write_text("no key")
    return ["sign", path, "--key", str(at.folder / "key"), "--version", "1"]


@case("teach", "… was not taught")
def _(at: Place) -> list[str]:
    from exporters.generator.writing import write_generator
    from icis_deploy.descriptors.descriptors import Descriptors
    from icis_deploy.injection.inject import inject
    from icis_deploy.injection.options import InjectionOptions

    random = np.random.default_rng(3)
    values = random.normal(size=(13, 8)).astype(np.float32)
    names = (*(f"seen {index}" for index in range(12)), "okapi")
    head = Head(rows=values[:12] @ random.normal(size=(8, 5)), class_names=names[:12])
    options = InjectionOptions(method="ridge", calibration="length")
    injector = inject(head, Descriptors(values=values, class_names=names), options=options).injector
    bundle = write_bundle(at.folder / "teachable", head=head)
    given = {"seen_descriptors": values[:12], "unseen_descriptors": values[12:], "method": "ridge"}
    write_generator(bundle / "generator.onnx", injector, head=head, **given)
    restate(bundle, "generator.onnx")
    descriptor = at.file("okapi.npz", names=["okapi"], values=100 * values[12:])
    return ["teach", str(bundle), "okapi", "--descriptor", descriptor]


def replacing_by_a_dead_model(at: Place) -> object:
    import onnx

    new = write_bundle(at.folder / "new")
    model = onnx.load(new / "model.onnx")
    backbone = next(each for each in model.graph.initializer if each.name == "backbone")
    backbone.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(backbone.dims), np.float32), "backbone"))
    onnx.save(model, new / "model.onnx")
    restate(new, "model.onnx")
    return Device.open(at.bundle).replace(new)


def converted_from_another(at: Place) -> object:
    tensor = ConvertedTensor(name="scores", runtime_name="scores", shape=(1, 3), dtype="float32")
    sidecar = ConvertedSidecar(
        runtime="mnn",
        converter="MNN 3",
        model_sha256="0" * 64,
        inputs=(replace(tensor, name="image", shape=(1, 6)),),
        outputs=(tensor,),
        created_by="0.1.0",
    )
    return verify_converted(sidecar, load_manifest(at.bundle), "mnn")


def downloading(at: Place) -> object:
    return fetch_file("http://127.0.0.1:9/new.icis", at.folder / "new.icis", size=1, sha256="0" * 64)


calling("Device.replace", "The model gives features", replacing_by_a_dead_model)
calling("Device.open", "The model for", converted_from_another)
calling("Device.predict", "The model gave the score", lambda at: Device.open(at.bundle).predict(ROWS * np.nan))
calling("a carrier", "… cannot be reached", downloading)


# --- the table ----------------------------------------------------------------------------------------------------


def case_of(line: Line) -> Case:
    (found,) = [made for (command, start), made in CASES.items() if command == line.command and starts(line, start)]
    return found


def starts(line: Line, beginning: str) -> bool:
    return line.message.startswith(beginning)


def matches(pattern: str, text: str) -> bool:
    """Say whether a text has a pattern in it, in which `…` is anything."""
    return compiled(pattern).search(text) is not None


@cache  # each of the sources is asked for each line of the table
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*?".join(map(re.escape, pattern.split("…"))))


@pytest.fixture
def made(monkeypatch):
    """All errors that are made while a test runs; commands catch some, and say in their own way what they are about."""
    errors: list[ICISDeployError] = []
    make = ICISDeployError.__init__

    def noted(self, *arguments, **keywords):
        make(self, *arguments, **keywords)
        errors.append(self)

    monkeypatch.setattr(ICISDeployError, "__init__", noted)
    return errors


@pytest.mark.parametrize("line", lines(), ids=lambda line: f"{line.command}: {line.message[:40]}")
def test_a_line_is_what_is_said(line: Line, tmp_path, tiny_project, monkeypatch, capsys, made):
    with ExitStack() as held:
        place = Place(tmp_path, write_bundle(tmp_path / "bundle"), tiny_project, monkeypatch, held)
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
    assert type(made[-1]).__name__ == line.kind


def test_every_case_has_one_line_and_every_line_one_case():
    known = lines()

    assert len(known) == len(CASES)
    for command, beginning in CASES:
        assert sum(line.command == command and starts(line, beginning) for line in known) == 1, (command, beginning)


def test_every_class_of_errors_has_a_line():
    """All but the bases, and the verdict of a benchmark, which the tests of `bench` bring about."""
    bases, elsewhere = {"ICISDeployError", "VerdictError", "IntegrityError"}, {"RegressionError"}

    assert set(KINDS) - {line.kind for line in lines()} == bases | elsewhere
    assert {line.kind: line.exit_code for line in lines()} == {
        line.kind: KINDS[line.kind].exit_code for line in lines()
    }


def test_the_page_of_all_messages_has_each_line_of_the_table():
    # Of whichever class: a reader of a file says what was wrong in it in the words of another error.
    said = [message.what for message in all_messages()]
    # Of what was measured: no place of the code has their words.
    put_together = {"SeenLossError", "GateFailedError"}

    lacking = [
        line.message
        for line in lines()
        if line.kind not in put_together and not any(alike(line.message, what) for what in said)
    ]
    assert lacking == []


def alike(shown: str, message: str) -> bool:
    """Say whether a line and a message of the sources are the same, `…` of either being anything of the other."""
    return matches(shown.rstrip(" ."), message) or matches(message.rstrip(" ."), shown) or same_words(shown, message)


def same_words(shown: str, message: str) -> bool:
    return first_words(shown) == first_words(message)


@cache
def first_words(text: str) -> list[str]:
    return re.findall(r"\w+", text)[:4]


def test_messages_are_found_in_sources():
    source = (
        'WHY = "too many"\n'
        "def check(path, is_old):\n"
        '    what = f"{path} has {WHY} lines."\n'
        '    raise BundleError(what, hint="Cut it." if is_old else None)\n'
        "def other(text):\n"
        '    raise UsageError(text, hint="Never found.")\n'
        '    raise LoadError("It is " + f"{text!r}." , where=text)\n'
    )

    assert [(each.kind.__name__, each.line, each.what, each.hint) for each in messages_of("a.py", source)] == [
        ("BundleError", 4, "… has too many lines.", "Cut it."),
        ("LoadError", 7, "It is ….", ""),
    ]


def test_the_page_of_all_messages_is_made_of_the_sources():
    page = with_messages((DOCUMENT.parent / "reference" / "messages.md").read_text("utf-8"))

    assert len(all_messages()) > 800
    assert page.count("\n| ") >= len(all_messages())
    assert "## icis_deploy/updates\n" in page
    assert "encrypted, and no passphrase was given. | SignatureError, 6 | Give its --passphrase-file. |" in page


def test_a_message_that_is_another_would_be_noticed():
    assert matches("The class … is …; expected text.", "The class 3 is 'int'; expected text. Do this.")
    assert not matches("The class … is …; expected text.", "The class 3 is 'int'; expected a name.")
