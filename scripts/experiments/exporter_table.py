"""Export classifiers of every kind in both heads and all precisions, and print what the gate says, as a Markdown table.

    python scripts/experiments/exporter_table.py [--data ../shared/data/imagenet-mobilenet-v2]

Twelve kinds of head on a small convolutional backbone, and real architectures from their configuration (ResNet-18,
ResNet-50, a vision transformer: random weights) or from a file (MobileNetV2 with trained weights). A cell is the
greatest scaled error against the original model, seen classes only, or why the export was rejected. int8 is calibrated
and judged on 48 neutral images, MobileNetV2 on 200 photos where the data is there.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx  # noqa: TID253 - a script, which starts for this
import onnx.parser  # noqa: TID253
import PIL.Image
from onnx import numpy_helper  # noqa: TID253

import icis_deploy
from icis_deploy.api.models import head_of
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import GateFailedError, ICISDeployError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.neutral import neutral_images
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing

NUM_CLASSES, WIDTH, SIDE, NUM_IMAGES = 40, 64, 64, 48
PRECISIONS = ("fp32", "fp16", "int8")
HEADS = ("fused", "updatable")

BACKBONE = """
    a = Conv <kernel_shape = [3, 3], strides = [2, 2]> (image, w0, b0)
    ra = Relu (a)
    m = Conv <kernel_shape = [3, 3], strides = [2, 2]> (ra, w1, b1)
    rm = Relu (m)
    pooled = GlobalAveragePool (rm)
    f = Flatten (pooled)
"""
SCORES = "float[batch, 40] y"
KINDS = {
    "Gemm, transB = 1": (SCORES, "y = Gemm <transB = 1> (f, w, b)"),
    "Gemm, transB = 0": (SCORES, "y = Gemm (f, wt, b)"),
    "Gemm with alpha and beta": (SCORES, "y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, w, b)"),
    "MatMul + Add": (SCORES, "p = MatMul (f, wt)\n y = Add (p, b)"),
    "MatMul without bias": (SCORES, "y = MatMul (f, wt)"),
    "1x1 Conv after pooling": (SCORES, "c = Conv (pooled, wc, b)\n y = Flatten (c)"),
    "1x1 Conv before pooling": (SCORES, "c = Conv (rm, wc, b)\n g = GlobalAveragePool (c)\n y = Flatten (g)"),
    "cosine": (SCORES, "u = LpNormalization <axis = 1> (f)\n p = MatMul (u, wu)\n y = Mul (p, scale)"),
    "Gemm, Softmax": (SCORES, "l = Gemm <transB = 1> (f, w, b)\n y = Softmax <axis = 1> (l)"),
    "Gemm, Sigmoid": (SCORES, "l = Gemm <transB = 1> (f, w, b)\n y = Sigmoid (l)"),
    "Gemm, temperature, LogSoftmax": (
        SCORES,
        "l = Gemm <transB = 1> (f, w, b)\n t = Div (l, warmth)\n y = LogSoftmax <axis = 1> (t)",
    ),
    "Gemm, TopK": (
        "float[batch, 3] v, int64[batch, 3] i",
        "l = Gemm <transB = 1> (f, w, b)\n v, i = TopK <axis = 1> (l, k)",
    ),
}


def write_small_model(path: Path, outputs: str, head: str, rng: np.random.Generator) -> None:
    """Write the small backbone with one kind of head."""
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[batch, 3, {SIDE}, {SIDE}] image) => ({outputs}) {{'
    model = onnx.parser.parse_model(f"{text}{BACKBONE}{head}\n}}")
    weight = rng.normal(size=(NUM_CLASSES, WIDTH)).astype(np.float32)
    arrays = {
        "w0": rng.normal(size=(32, 3, 3, 3)).astype(np.float32) / 3,
        "b0": rng.normal(size=32).astype(np.float32) / 3,
        "w1": rng.normal(size=(WIDTH, 32, 3, 3)).astype(np.float32) / 12,
        "b1": rng.normal(size=WIDTH).astype(np.float32) / 3,
        "w": weight,
        "wt": np.ascontiguousarray(weight.T),
        "wc": weight[:, :, None, None],
        "wu": np.ascontiguousarray((weight / np.linalg.norm(weight, axis=1, keepdims=True)).T),
        "b": rng.normal(size=NUM_CLASSES).astype(np.float32) / 3,
        "scale": np.float32(16).reshape(()),
        "warmth": np.float32(2).reshape(()),
        "k": np.array([3], np.int64),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items() if name in used)
    onnx.save(model, path)


def write_real_model(path: Path, name: str) -> None:
    """Write an architecture of transformers with random weights."""
    import torch
    from transformers import (
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    if name == "ViT":
        config = ViTConfig(
            image_size=SIDE, patch_size=16, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
            intermediate_size=768, num_labels=NUM_CLASSES,
        )  # fmt: skip
        module: torch.nn.Module = ViTForImageClassification(config)
    else:
        deep = {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
        flat = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
        config = ResNetConfig(**(deep if name == "ResNet-50" else flat), num_labels=NUM_CLASSES)
        module = ResNetForImageClassification(config)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.module(image).logits

    model = Logits().eval()
    with torch.no_grad():  # as training does: without it, random features hardly differ from image to image
        torch.nn.init.normal_(
            next(m for m in reversed(list(module.modules())) if isinstance(m, torch.nn.Linear)).weight
        )
    torch.onnx.export(
        model, (torch.zeros(2, 3, SIDE, SIDE),), path, dynamo=True, dynamic_shapes=({0: "batch"},),
        external_data=False, verbose=False, input_names=["image"], output_names=["y"],
    )  # fmt: skip


def write_images(folder: Path) -> Path:
    """Write neutral images and return their list, in which no label is a class."""
    neutral = neutral_images(NUM_IMAGES, SIDE, SIDE, seed=1).transpose(0, 2, 3, 1)
    with (folder / "images.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class"])
        for index, image in enumerate(neutral):
            PIL.Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(folder / f"{index}.png")
            rows.writerow([f"{index}.png", "unknown"])
    return folder / "images.csv"


def cell(
    model: Path, classes: Path, preprocessing: Preprocessing, images: Path, head: str, precision: str, out: Path
) -> str:
    """Return what the gate says of one export."""
    opened = icis_deploy.inspect(model, classes=classes)
    seen = head_of(opened)
    rows = seen.rows[:4].mean(axis=0) + seen.rows[4:6] * 0.5
    update = ClassUpdate(base_fingerprint=seen.fingerprint, rows=rows, added=("new 1", "new 2"))
    form = ModelForm(precision=precision, calibration_images=images if precision == "int8" else None)
    try:
        bundle = icis_deploy.export(
            opened,
            updates=[update],
            options=icis_deploy.ExportOptions(
                head=head, capacity=16 if head == "updatable" else None, form=form, preprocess=preprocessing
            ),
            out=out,
            overwrite=True,
        )
    except GateFailedError as error:
        return f"rejected: {str(error).split(': ', 1)[1].split(';')[0].split('. No bundle')[0]}"
    except ICISDeployError as error:
        return f"refused: {str(error).split('. ')[0]}"
    return f"{bundle.parity[1]['max_scaled_error']:.1e}"


def jobs_in(folder: Path, data: Path) -> list[tuple[str, Path, Path, Preprocessing, Path]]:
    """Write every model; return its name, file, classes, preprocessing and images."""
    rng = np.random.default_rng(0)
    small = Preprocessing(resize=SIDE, crop=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    classes, images = folder / "classes.txt", write_images(folder)
    classes.write_text("\n".join(f"class {index}" for index in range(NUM_CLASSES)))
    jobs = []
    for index, (kind, (outputs, head)) in enumerate(KINDS.items()):
        write_small_model(folder / f"small-{index}.onnx", outputs, head, rng)
        jobs.append((kind, folder / f"small-{index}.onnx", classes, small, images))
    for kind in ("ResNet-18", "ResNet-50", "ViT"):
        write_real_model(folder / f"{kind}.onnx", kind)
        jobs.append((f"{kind}, random weights", folder / f"{kind}.onnx", classes, small, images))
    if data.is_dir():
        photos, listed = folder / "photos.csv", (data / "images.csv").read_text().splitlines()
        known = set((data / "classes.txt").read_text().split())
        rows = [row for row in listed[1:] if row.rsplit(",", 1)[1] in known][:200]
        photos.write_text("\n".join([listed[0], *(f"{data.resolve()}/{row}" for row in rows)]))
        settings = load_preprocessing(data / "preprocess.json")
        jobs.append(("MobileNetV2, trained", data / "model.onnx", data / "classes.txt", settings, photos))
    return jobs


def main() -> int:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imagenet-mobilenet-v2"))
    data = parser.parse_args().data
    print("| head | " + " | ".join(f"{head} {precision}" for head in HEADS for precision in PRECISIONS) + " |")
    print("|---" * (1 + len(HEADS) * len(PRECISIONS)) + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, path, classes, settings, images in jobs_in(folder, data):
            cells = [cell(path, classes, settings, images, h, p, folder / "out") for h in HEADS for p in PRECISIONS]
            print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
