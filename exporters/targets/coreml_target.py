"""Convert a model to Core ML: a package for Apple's systems, made of the torch program, with slots as inputs.

coremltools converts on Linux; what it writes runs on Apple's systems alone. So the gate compares the torch program that
was converted, and says that the package itself was not run.
"""

# Why: docs/decisions/0130.

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from exporters.targets.converted import conversion_failed, keep_converted, run_converter
from exporters.targets.model_comparison import compare_scores
from exporters.targets.torch_program import TorchClassifier, save_program, torch_classifier
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import IncompatibleError
from icis_deploy.head.slots import SlotTable
from icis_deploy.metrics.parity import ParityReport

COREML_FOLDER = "coreml/model.mlpackage"
COREML_FILE = f"{COREML_FOLDER}/Manifest.json"
COMPARED_WITH = "outputs of model.onnx with the same slots; the torch program that the Core ML package was made of"
NOT_RUN = "the gate ran on its torch program alone: Core ML runs on Apple's systems"

_CONVERT = """
import json, sys, torch
import coremltools as ct

names = json.loads(sys.argv[1])
program = torch.export.load("model.pt2").run_decompositions({})
placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
given = set(program.graph_signature.user_inputs)
shapes = [tuple(node.meta["val"].shape) for node in placeholders if node.name in given]
package = ct.convert(
    program,
    inputs=[ct.TensorType(name=name, shape=shape) for name, shape in zip(names["inputs"], shapes, strict=True)],
    outputs=[ct.TensorType(name=name) for name in names["outputs"]],
    convert_to="mlprogram",
    minimum_deployment_target=ct.target.iOS16,
    compute_precision=ct.precision.FLOAT32,
    compute_units=ct.ComputeUnit.CPU_AND_GPU,  # the Neural Engine computes in float16
    skip_model_load=True,
)
package.save("model.mlpackage")
"""


def coreml_obstacle() -> str | None:
    """Return why Core ML packages cannot be written here, and what to install; `None` where they can."""
    if find_spec("coremltools") is None:
        return "coremltools is not installed: pip install 'icis-deploy[coreml]'."
    return None


def write_coreml(folder: Path, bundle: Bundle) -> Sequence[str]:
    """Convert a bundle's model to a Core ML package, whose inputs and outputs have the names of `model.onnx`.

    Args:
        folder: The bundle's files.
        bundle: Its manifest, written or not.

    Returns:
        The package's files, relative to the folder.

    Raises:
        IncompatibleError: If the model does not compute in float32, or takes no float32 images.
        ExportError: If an operator has no translation to torch, or coremltools cannot convert the program.
        StorageError: If the disk refuses.
    """
    classifier = torch_classifier(folder, bundle)
    image, scores = classifier.inputs[0], classifier.outputs[0].name
    if image.dtype != "float32":
        raise IncompatibleError(
            f"The Core ML target takes float32 images; this model takes {image.dtype}.",
            found=image.dtype,
            expected="float32",
            where=image.name,
            hint="Export it with float images, or leave this target out.",
        )
    names = {"inputs": [tensor.name for tensor in classifier.inputs], "outputs": [scores, "features"]}
    with tempfile.TemporaryDirectory() as work:
        save_program(classifier, Path(work) / "model.pt2")
        printed = run_converter(
            [sys.executable, "-I", "-c", _CONVERT, json.dumps(names)], converter="coremltools", folder=Path(work)
        )
        package = Path(work) / "model.mlpackage"
        written = sorted(path for path in package.rglob("*") if path.is_file())
        if not (package / "Manifest.json").is_file():
            raise conversion_failed("coremltools", printed)
        files = [f"{COREML_FOLDER}/{path.relative_to(package).as_posix()}" for path in written]
        for path, name in zip(written, files, strict=True):
            keep_converted(path, folder / name)
    return tuple(files)


def compare_torch_program(folder: Path, bundle: Bundle) -> ParityReport:
    """Feed the same slots to `model.onnx` and to the torch program that was converted, and compare their scores."""
    classifier = torch_classifier(folder, bundle)
    return compare_scores(folder, bundle, lambda table: _runs(classifier, table), COMPARED_WITH)


def _runs(classifier: TorchClassifier, table: SlotTable | None) -> Callable[[Images], Float32]:
    import numpy as np
    import torch

    module = classifier.module()
    arrays = [] if table is None else [table.weight, table.bias, table.coefficients][: len(classifier.inputs) - 1]
    slots = [torch.from_numpy(np.array(array)) for array in arrays]
    size = classifier.inputs[0].shape[0]

    def run(images: Images) -> Float32:
        with torch.no_grad():
            batches = [torch.from_numpy(np.array(images[at : at + size])) for at in range(0, len(images), size)]
            return np.concatenate([module(batch, *slots)[0].numpy() for batch in batches])

    return run
