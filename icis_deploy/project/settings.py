"""What a project file may say, with the types and limits of each setting.

Names are those of the library's parameters; units are those of the command line: points of accuracy, and percent.
`project.schema.json` is made of this and compared with it in a test. Nothing here looks at a disk: `file.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RuntimeName = Literal[
    "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "litert", "mnn", "executorch", "ncnn",
    "split", "qnn", "qnn-emulated", "tensorrt", "tensorrt-rtx",
]  # fmt: skip
MethodName = Literal["auto", "icis", "icis-centred", "ridge", "nearest", "mean", "mixture", "costa", "wavg", "ensemble"]
TargetName = Literal[
    "onnx",
    "openvino",
    "litert",
    "mnn",
    "executorch",
    "ncnn",
    "qnn",
    "coreml",
    "ort-amd64",
    "ort-arm",
    "tensorrt",
    "tensorrt-rtx",
    "backbone",
    "triton",
    "web",
    "all",
]
ScenarioName = Literal["single-stream", "multi-stream", "server", "offline", "class-swap"]


@dataclass(frozen=True)
class OnDisk:
    """Says of a setting that it is a path, relative to the project file, of something that must be there."""

    kind: Literal["file", "file or folder"]


File = Annotated[str, OnDisk("file"), Field(min_length=1)]
FileOrFolder = Annotated[str, OnDisk("file or folder"), Field(min_length=1)]
Points = Annotated[float, Field(gt=0, lt=100)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Settings that know no others, and of which none is guessed: `"3"` is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class DescribeSettings(Section):
    """Makes descriptors of all classes of `classes` and `unseen`; needs both."""

    tags: File | None = None
    """Words for each class, or answers of a language model, however they are wrapped."""

    attributes: File | None = None
    """Numbers for each class: .csv, att_splits.mat or .npz."""

    vectors: File | None = None
    """Word vectors as text, also .gz."""

    model: str | None = None
    """A text model: a folder, or its name on the hub."""

    texts: File | None = None
    """What classes are called: class name, tab, text on each line."""

    templates: list[str] = []
    """Prompts for the text model, each with a {}."""


class InjectSettings(Section):
    """Predicts rows of the new classes."""

    method: MethodName = "auto"
    """How rows are predicted; auto compares methods on classes that the model knows."""

    calibration: Literal["auto", "length", "none"] = "auto"
    """How rows are brought to compete with the seen ones."""

    max_seen_loss: Points | None = None
    """Points of accuracy that seen classes may lose at most; 2 unless there is a balance."""

    balance: Share | None = None
    """Instead of max_seen_loss, the weight of unseen classes against seen ones."""

    arbiter: Literal["auto", "off"] = "auto"
    """auto: how far new classes are favoured depends on the image, where seen_images speak for it."""

    photos: FileOrFolder | None = None
    """A few photos of new classes: CSV with file and class, a folder of class folders, or arrays."""

    skip_unreadable: bool = False
    """Leave out images that cannot be read, with a warning."""

    seen_accuracy: Share | None = None
    """Accuracy of the model on images of its classes, such as 0.76."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed, the same rows."""

    strict: bool = False
    """End with 1 if there is reason to doubt the rows."""


class ExportSettings(Section):
    """Writes the bundle, if it passes the parity gate."""

    head: Literal["fused", "updatable"] = "fused"
    """fused: the fastest. updatable: a device can change the classes."""

    capacity: Annotated[int, Field(ge=1)] | None = None
    """Number of slots of an updatable head."""

    arbiter: Literal["auto", "off"] = "auto"
    """off: new classes are favoured by a constant alone."""

    max_changed_answers: Annotated[float, Field(ge=0, le=100)] | None = 5.0
    """Percent of answers on known classes that one update may change on a device; null leaves the check out."""

    trust: list[File] = []
    """Public keys whose updates the device takes."""

    generator: File | None = None
    """From export-generator: lets devices learn classes from descriptors."""

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """What the backbone computes in."""

    calibration_images: FileOrFolder | None = None
    """Images of what the device will see, for int8."""

    model_input: Literal["float32", "uint8"] = "float32"
    """uint8: the model takes pixels, and prepares them itself."""

    top: Annotated[int, Field(ge=0)] = 5
    """How many classes per image the model selects itself."""

    targets: list[TargetName] = ["onnx"]
    """What the bundle holds besides model.onnx."""


class VerifySettings(Section):
    """Compares the bundle with the model."""

    runtime: RuntimeName = "onnxruntime"
    """What runs the bundle."""

    max_seen_loss: Annotated[float, Field(ge=0, le=100)] | None = None
    """Points of seen accuracy that new classes may cost; what inject was allowed, where nothing is said."""


class EvaluateSettings(Section):
    """Measures accuracy on `images`, which it needs."""

    runtime: RuntimeName = "onnxruntime"
    """What runs the bundle."""

    max_seen_loss: Annotated[float, Field(ge=0, le=100)] | None = None
    """End with 1 if new classes cost the seen ones more points, with 95 % confidence."""

    curve: bool = False
    """Draw S against U."""


class BenchSettings(Section):
    """Measures the bundle on this machine."""

    preset: Literal["quick", "normal", "submission"] = "normal"
    """How many queries are measured."""

    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Time for one target and one batch size."""

    batch_sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [1]
    """Images in a query."""

    runtimes: Annotated[list[RuntimeName], Field(min_length=1)] = ["onnxruntime"]
    """What runs the bundle; each is measured."""

    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads inside one operator."""

    scenarios: list[ScenarioName] = []
    """Loads besides the rest."""

    against_model: bool = True
    """Compare with the original model, where it is a .onnx or .pt2 file."""


class ReportSettings(Section):
    """Makes a page of the benchmark's result."""

    results: list[File] = []
    """Results of other devices, to stand beside this one's."""

    markdown: bool = False
    """Write report.md as well."""


class Project(Section):
    """A project of icis-deploy: a model, its new classes, and what is done with them, in this order.

    `inject` and `export` are always done; each of the other steps is done where its section is there, if empty.
    """

    model_config = ConfigDict(title="icis-deploy project")

    model: Annotated[str, Field(min_length=1)]
    """A .onnx or .pt2 file, a folder of transformers, owner/name on its hub, or package.module:factory."""

    weights: File | None = None
    """Weights of a factory: .safetensors or .pth."""

    input_shape: list[Annotated[int, Field(ge=1)]] | None = None
    """Shape of one image, where the model does not state it: [3, 224, 224]."""

    head_node: str | None = None
    """The head's node, where several could be it."""

    classes: File | None = None
    """The head's class names, one a line, in the order of the logits; what the model states, where it does."""

    unseen: File | None = None
    """The classes to inject, one a line; every described class that the head lacks, where nothing is said."""

    descriptors: File | None = None
    """Class descriptors, where `describe` makes none: .npz, .csv or att_splits.mat."""

    preprocess: File | dict[str, Any] | None = None
    """How images are prepared: a JSON file, or its keys right here; what the model states, where it does."""

    seen_images: FileOrFolder | None = None
    """Images of classes that the model knows, from where the device will be: they keep the budget."""

    images: FileOrFolder | None = None
    """Labelled images to measure on."""

    out: Annotated[str, Field(min_length=1)] = "build"
    """The folder of everything that is made."""

    describe: DescribeSettings | None = None
    inject: InjectSettings = InjectSettings()
    export: ExportSettings = ExportSettings()
    verify: VerifySettings | None = None
    evaluate: EvaluateSettings | None = None
    bench: BenchSettings | None = None
    report: ReportSettings | None = None


STEP_NAMES = ("describe", "inject", "export", "verify", "evaluate", "bench", "report")
"""The sections that are steps, in the order in which they are done."""


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a project file, in which a section may also be empty.

    `project.schema.json`, for editors and other programs, is this.
    """
    schema = Project.model_json_schema()
    for name in STEP_NAMES:
        section = schema["properties"][name]
        if "$ref" in section:
            section["anyOf"] = [{"$ref": section.pop("$ref")}, {"type": "null"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
