"""References for the small bundles of `testing.bundles`: images of known classes that a device is guarded with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import MANIFEST_NAME, REFERENCE_NAME, file_entry, load_manifest, serialize_manifest
from icis_deploy.bundle.reference import Reference, serialize_reference, sketched
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
