"""A tiny project with a bundle of each kind, as a user would make them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import icis_deploy
import icis_deploy.api.models
from icis_deploy.head.class_update import ClassUpdate
from tests.tiny_models import FEATURE_DIM, TinyProject


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyBundles:
    project: TinyProject
    update: ClassUpdate
    fused: Path
    updatable: Path


def export_bundles(project: TinyProject, folder: Path) -> TinyBundles:
    """Give the unseen classes random rows and export both heads."""
    opened = icis_deploy.api.models.inspect(project.model, classes=project.classes)
    rows = np.random.default_rng(0).normal(size=(len(project.unseen_names), FEATURE_DIM + 1)).astype(np.float32)
    update = ClassUpdate(
        base_fingerprint=opened.head.fingerprint, rows=rows, added=project.unseen_names, self_test_seed=0
    )
    for head, capacity in (("fused", None), ("updatable", 16)):
        icis_deploy.export(
            project.model,
            classes=project.classes,
            updates=[update],
            head=head,
            capacity=capacity,
            preprocess=project.preprocess,
            out=folder / head,
        )
    return TinyBundles(project=project, update=update, fused=folder / "fused", updatable=folder / "updatable")
