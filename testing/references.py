"""References for the small bundles of `testing.bundles`: images of known classes that a device is guarded with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from icis_deploy.bundle.few_shot import FewShot, serialize_few_shot
from icis_deploy.bundle.manifest import (
    FEW_SHOT_NAME,
    MANIFEST_NAME,
    REFERENCE_NAME,
    file_entry,
    load_manifest,
    serialize_manifest,
)
from icis_deploy.bundle.reference import Reference, serialize_reference, sketched
from icis_deploy.few_shot.refining import FewShotContext
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.head import Head
from testing.bundles import features_of, images, seen_head


def make_reference(num_images: int = 200, *, head: Head | None = None) -> Reference:
    """Return what a head of the small models makes of random images."""
    head = seen_head() if head is None else head
    features = features_of(images(num_images, seed=5)).astype(np.float16).astype(np.float32)
    logits = features @ head.weight.T + head.bias
    return Reference(
        features=features,
        statistics=seen_statistics(features, logits, deviation_lengths(head.rows)),
        answers=logits.argmax(axis=1).astype(np.int32),
        sketches=sketched(head.weight),
    )


def add_reference(folder: Path, reference: Reference | None = None, *, max_changed_answers: float = 0.05) -> Path:
    """Give a bundle a reference, as if it had been exported with it, and return its folder."""
    path = folder / REFERENCE_NAME
    path.write_bytes(serialize_reference(make_reference() if reference is None else reference))
    bundle = load_manifest(folder)
    described = replace(
        bundle, files={**bundle.files, path.name: file_entry(path)}, max_changed_answers=max_changed_answers
    )
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(described))
    return folder


def make_few_shot(*, head: Head | None = None, has_generator: bool = True, **changed: float) -> FewShot:
    """Return what a bundle of a small model carries for photos; `changed` are numbers of it or of its context."""
    head = seen_head() if head is None else head
    mean_row = head.rows.mean(axis=0)
    length = float(np.linalg.norm((head.rows - mean_row)[:, :-1], axis=1).mean())
    numbers = {"length": length, "level": 0.0, "prior_photos": 1.0, "max_seen_loss": 0.02, "seen_accuracy": 0.9}
    numbers |= changed
    return FewShot(
        context=FewShotContext(
            mean_row=mean_row,
            feature_mean=make_reference(head=head).features.mean(axis=0),
            length=numbers["length"],
            level=numbers["level"],
            prior_photos=numbers["prior_photos"],
        ),
        max_seen_loss=numbers["max_seen_loss"],
        seen_accuracy=numbers["seen_accuracy"],
        has_generator=has_generator,
    )


def add_few_shot(folder: Path, few_shot: FewShot | None = None) -> Path:
    """Give a bundle with a reference what photos need, as if it had been exported with it, and return its folder."""
    path = folder / FEW_SHOT_NAME
    path.write_bytes(serialize_few_shot(make_few_shot() if few_shot is None else few_shot))
    bundle = load_manifest(folder)
    described = replace(bundle, files={**bundle.files, path.name: file_entry(path)})
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(described))
    return folder
