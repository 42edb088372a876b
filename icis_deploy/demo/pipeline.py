"""The demo: the whole job on rendered images, through the same functions that a user calls.

Everything is written to one folder, so that each step can be run again by hand: the model, its class list, the
descriptors, the images, the class update, two bundles, and the image sheet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.api.evaluate import evaluate
from icis_deploy.api.export import ExportOptions, export
from icis_deploy.api.inject import inject
from icis_deploy.api.models import OpenedModel, inspect
from icis_deploy.common.files import new_folder, write_file
from icis_deploy.common.terminal_text import percent
from icis_deploy.demo.image_files import save_images
from icis_deploy.demo.image_sheet import SheetCard, save_image_sheet
from icis_deploy.demo.network import PREPROCESSING, export_program, train_network
from icis_deploy.demo.rendering import render_classes
from icis_deploy.demo.world import World, make_world
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.metrics.accuracy import AccuracyReport
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import save_update

TRAINING_IMAGES_PER_CLASS = 60
TEST_IMAGES_PER_CLASS = 10
OWNER_IMAGES_PER_CLASS = 5
"""Images of each seen class that the network was not trained on, and that say what seen classes may lose."""
CAPACITY = 64
SHEET_NAME = "unseen.png"
MARKER = "demo.json"
"""Written first: only a folder that has it is replaced by `--overwrite`."""

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo measured."""

    folder: Path
    """Folder of images, descriptors, models, bundles and the image sheet."""

    num_seen: int
    """Classes that the network was trained on."""

    num_unseen: int
    """Classes that were injected from their attributes."""

    without: AccuracyReport
    """The classifier without injection."""

    injected: AccuracyReport
    """The same classifier with the injected classes, in a fused head."""

    updated: AccuracyReport
    """The same, after a device with an updatable head took the class update."""

    apply_ms: float
    """Time in milliseconds in which the device took the class update, from the file to the first answer with it."""

    total_s: float
    """Time in seconds of the whole demo."""

    @property
    def sheet(self) -> Path:
        """The image sheet: an image of each unseen class, and what the classifier says of it."""
        return self.folder / SHEET_NAME

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        names = ("T", "U", "S", "H", "S_original")
        return {
            "folder": str(self.folder),
            "num_seen": self.num_seen,
            "num_unseen": self.num_unseen,
            "accuracy": {
                key: {name: getattr(report, name) for name in names}
                for key, report in (
                    ("without_injection", self.without),
                    ("injected", self.injected),
                    ("updated_on_device", self.updated),
                )
            },
            "chance": {"T": 1 / self.num_unseen, "U": 1 / (self.num_seen + self.num_unseen)},
            "apply_ms": self.apply_ms,
            "total_s": self.total_s,
        }


def run_demo(out: Path, *, seed: int, overwrite: bool, log: Log) -> DemoResult:
    """Train a small network on seen classes, inject the unseen ones, and check the result at every step.

    Args:
        out: Folder for everything.
        seed: Decides classes, images and training.
        overwrite: Whether the folder of an earlier demo may be replaced.
        log: Called with a line at each step.

    Raises:
        UsageError: If there is something else at `out`.
        GateFailedError: If an export disagrees with the network.
        StorageError: If a file cannot be written; then nothing is left at `out`.
    """
    start = time.perf_counter()
    world = make_world(seed=seed)
    with new_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        write_file(folder / MARKER, b"{}\n")
        _write_inputs(folder, world, seed=seed, log=log)
        log("Converting it to ONNX and finding its head")
        model = inspect(folder / "model.pt2", classes=folder / "classes.txt")
        update = _inject(folder, model, seed=seed, log=log)
        result = _deploy(folder, out, world, model, update, log=log)
        _draw_sheet(folder, world, result)
    return replace(result, total_s=time.perf_counter() - start)


def _write_inputs(folder: Path, world: World, *, seed: int, log: Log) -> None:
    """Render the images, train the network, and write what a user would bring."""
    log(f"Rendering {TRAINING_IMAGES_PER_CLASS} training images of each of {len(world.seen)} seen classes")
    images, labels = render_classes(world.seen, TRAINING_IMAGES_PER_CLASS, seed=seed)
    log("Training a small network on them")
    network = train_network(
        images,
        labels,
        num_classes=len(world.seen),
        seed=seed,
        on_epoch=lambda epoch, loss: log(f"  epoch {epoch}: loss {loss:.3f}"),
    )
    export_program(network, folder / "model.pt2")
    tests, truth = render_classes(world.classes, TEST_IMAGES_PER_CLASS, seed=seed + 1)
    names = (*world.seen_names, *world.unseen_names)
    save_images(folder, tests, truth, names, list_name="images.csv")
    owned, seen = render_classes(world.seen, OWNER_IMAGES_PER_CLASS, seed=seed + 2)
    save_images(folder / "seen", owned, seen, world.seen_names, list_name="images.csv")
    write_file(folder / "classes.txt", "\n".join((*world.seen_names, "")).encode())
    write_file(folder / "unseen.txt", "\n".join((*world.unseen_names, "")).encode())
    descriptors = world.descriptors()
    np.savez(folder / "descriptors.npz", names=np.array(descriptors.class_names), values=descriptors.values)
    write_file(folder / "preprocess.json", _json(PREPROCESSING.to_json()))


def _inject(folder: Path, model: OpenedModel, *, seed: int, log: Log) -> ClassUpdate:
    log("Injecting the unseen classes from their attributes")
    update = inject(
        model,
        descriptors=folder / "descriptors.npz",
        preprocess=folder / "preprocess.json",
        options=InjectionOptions(seed=seed, seen_images=folder / "seen" / "images.csv"),
    )
    save_update(update, folder / "new.icis")
    return update


def _deploy(folder: Path, out: Path, world: World, model: OpenedModel, update: ClassUpdate, *, log: Log) -> DemoResult:
    """Export with and without the update, let a device take it, and measure all three."""
    log("Exporting a fused and an updatable bundle through the parity gate")
    fused = ExportOptions(preprocess=folder / "preprocess.json", images=folder / "images.csv")
    export(model, out=folder / "fused", updates=[update], options=fused)
    updatable = ExportOptions(
        head="updatable",
        capacity=CAPACITY,
        preprocess=folder / "preprocess.json",
        seen_images=folder / "seen" / "images.csv",
    )
    export(model, out=folder / "updatable", options=updatable)
    device = Device.open(folder / "updatable")
    log("Measuring the updatable bundle as it is: the classifier without injection")
    without = _accuracy(device, folder)
    probe = np.zeros((1, *device.bundle.model_input.shape), dtype=np.float32)
    start = time.perf_counter()
    device.apply(folder / "new.icis", allow_unsigned=True)
    device.predict(probe)
    apply_ms = 1000 * (time.perf_counter() - start)
    log("Measuring it again after the class update, and the fused bundle")
    return DemoResult(
        folder=out,
        num_seen=len(world.seen),
        num_unseen=len(world.unseen),
        without=without,
        injected=_accuracy(Device.open(folder / "fused"), folder),
        updated=_accuracy(device, folder),
        apply_ms=apply_ms,
        total_s=0.0,
    )


def _accuracy(device: Device, folder: Path) -> AccuracyReport:
    return evaluate(device, images=folder / "images.csv", unseen=folder / "unseen.txt")


def _draw_sheet(folder: Path, world: World, result: DemoResult) -> None:
    """Draw one image of each unseen class with the answers before and after."""
    images, _ = render_classes(world.unseen, 1, seed=2**31 + len(world.classes))
    device = Device.open(folder / "fused")
    batch = PREPROCESSING.normalize(images.astype(np.float32) / np.float32(255))
    logits = device.logits(batch)
    before = logits.values[:, : len(world.seen)].argmax(axis=1)
    cards = [
        SheetCard(
            image=image,
            class_name=item.name,
            answer=prediction.class_names[0],
            probability=prediction.probabilities[0],
            answer_before=logits.class_names[index],
        )
        for image, item, prediction, index in zip(
            images, world.unseen, device.predict(batch, top=1), before, strict=True
        )
    ]
    report = result.injected
    save_image_sheet(
        folder / SHEET_NAME,
        cards,
        title=f"{len(cards)} classes that the network never saw an image of",
        subtitle=f"Injected from their attributes. On {report.num_images} test images: U {percent(report.U)}, "
        f"S {percent(report.S)}, H {percent(report.H)}; among the unseen classes alone, T {percent(report.T)}.",
    )


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()
