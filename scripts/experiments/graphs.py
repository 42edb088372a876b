"""Teach graphs of many producers a class, and print what came of it, as a Markdown table.

    python scripts/experiments/graphs.py --write-images FOLDER    # first: what quantized models are calibrated on
    python scripts/experiments/graph_sources.py SOURCE FOLDER     # then: once for each source, in its environment
    python scripts/experiments/graphs.py FOLDER                   # last

The new class has the row of a seen one. So its scores must be that one's, and those of seen classes what they were:
both is measured in bare ONNX Runtime on the original file and on the exported one. A cell is the greatest difference
of a seen class's score from the original's, in standard deviations of that, for scores after a softmax of their
logarithms, renormalised; *copy* is the same for the new class and the one that it copies. What is refused stands with
its message.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: TID253 - a script, which starts for this
import onnxruntime  # noqa: TID253
from numpy.typing import NDArray

import icis_deploy
from icis_deploy.errors import ICISDeployError
from icis_deploy.images.neutral import neutral_images

SEED, SIDE, NUM_IMAGES = 20230810, 16, 64
COPIED = 1
HEADS = ("fused", "updatable")
_FLOOR = 1e-6
"""Probability below which logarithms are not compared."""


def main(arguments: list[str]) -> None:
    """Write the images, or the table of a folder."""
    if arguments[0] == "--write-images":
        Path(arguments[1]).mkdir(parents=True, exist_ok=True)
        np.save(Path(arguments[1]) / "images.npy", neutral_images(NUM_IMAGES, SIDE, SIDE, seed=SEED))
        return
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(3)
    lines, counts = [], {"taken": 0, "refused": 0, "wrong": 0}
    for path in sorted(Path(arguments[0]).glob("*.onnx")):
        producer, _, head = path.stem.partition("--")
        try:
            outcome, cells = "taken", _taught(path)
            if any(each > 1.0 for _, *figures in cells for each in figures):
                outcome = "wrong"
            shown = "; ".join(f"{name} {seen:.0e}, copy {copy:.0e}" for name, seen, copy in cells)
        except ICISDeployError as error:
            outcome, shown = "refused", f"refused: {_one_line(str(error), path)}"
        counts[outcome] += 1
        lines.append(f"| {producer} | {head} | {shown} |")
        print(lines[-1], file=sys.stderr, flush=True)
    print(f"{len(lines)} graphs: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ".\n")
    print("| producer | head | seen classes, copied class |\n|---|---|---|")
    print("\n".join(lines))


def _taught(path: Path) -> list[tuple[str, float, float]]:
    """Return, for each kind of head, how far seen scores are from the original's, and a copy from what it copies."""
    found = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        num_classes = icis_deploy.inspect(path).location.num_classes
        (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(num_classes)))
        opened = icis_deploy.inspect(path, classes=folder / "classes.txt")
        assert opened.head is not None
        row = np.append(opened.head.weight[COPIED], opened.head.bias[COPIED])[None]
        update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=row, added=("new",))
        for kind in HEADS:
            capacity = 3 if kind == "updatable" else None
            options = icis_deploy.ExportOptions(head=kind, capacity=capacity, max_changed_answers=None)
            bundle = icis_deploy.export(opened, updates=[update], out=folder / kind, options=options)
            given, numbers = _inputs(path, opened)
            before = _scores(path, opened.location.output_name, given)
            after = _run(folder / kind / "model.onnx", bundle.model_input.name, numbers)
            found.append((kind, *_differences(before, after, bundle.score_kind)))
    return found


def _inputs(path: Path, opened: icis_deploy.OpenedModel) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what the original is given, and the numbers that it stands for: for integers with a scale, on the grid."""
    (taken,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()
    shape = [size if isinstance(size, int) and size > 0 else NUM_IMAGES for size in taken.shape]
    rng = np.random.default_rng(0)
    value_range = opened.loaded.value_range
    if value_range is None:
        count = shape[0]
        if len(shape) == 4:
            side = max(shape[2:])
            images = 2 * neutral_images(count, side, side, seed=SEED) - 1
            numbers = images if shape[1] == 3 else images.transpose(0, 2, 3, 1)
        else:
            numbers = rng.uniform(0, 1, shape)
        numbers = np.ascontiguousarray(numbers, dtype=np.float32)
        return numbers, numbers
    dtype = np.dtype({"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}[taken.type])
    least = np.iinfo(dtype).min
    side = max(shape[1:])
    images = neutral_images(shape[0], side, side, seed=SEED)
    steps = np.rint(255 * (images if shape[1] == 3 else images.transpose(0, 2, 3, 1)))
    low, high = value_range
    return (steps + least).astype(dtype), (low + steps * (high - low) / 255).astype(np.float32)


def _scores(path: Path, name: str, given: NDArray[Any]) -> NDArray[Any]:
    """Return a value of the original, outputs or not; integers as what their scale says."""
    model = onnx.load(path)
    if name not in [output.name for output in model.graph.output]:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = session.run([name], {session.get_inputs()[0].name: given})[0]
    scores = scores.reshape(len(given), -1)
    if np.issubdtype(scores.dtype, np.floating):
        return np.asarray(scores, dtype=np.float64)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    by_output = {output: node for node in model.graph.node for output in node.output}
    made = by_output[name]
    while made.op_type != "QuantizeLinear":  # integers that are given in another shape
        made = by_output[made.input[0]]
    scale, zero = (constants[each].astype(np.float64) for each in made.input[1:3])
    return np.asarray((scores - zero) * scale, dtype=np.float64)


def _run(path: Path, name: str, numbers: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: numbers})[0], dtype=np.float64)


def _differences(before: NDArray[Any], after: NDArray[Any], kind: str) -> tuple[float, float]:
    num_seen = before.shape[1]
    seen, copied, copy = after[:, :num_seen], after[:, COPIED], after[:, num_seen]
    if kind == "probabilities":
        compared = (before > _FLOOR) & (seen > _FLOOR)
        seen = np.log(np.maximum(seen / seen.sum(axis=1, keepdims=True), _FLOOR))
        before = np.log(np.maximum(before / before.sum(axis=1, keepdims=True), _FLOOR))
        copied, copy = (np.log(np.maximum(each, _FLOOR)) for each in (copied, copy))
    else:
        compared = np.isfinite(before)
    spread = float(before[compared].std())
    differences = np.abs(seen - before)[compared].max() / spread, np.abs(copy - copied).max() / spread
    return float(differences[0]), float(differences[1])


def _one_line(message: str, path: Path) -> str:
    """Return a message without folders, which are of one run alone."""
    return " ".join(message.replace(str(path), "The model").split(" No bundle was written")[0].split()).replace(
        "|", "\\|"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
