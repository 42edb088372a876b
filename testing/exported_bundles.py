"""Bundles of a tiny project, exported as a user exports them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import icis_deploy
from icis_deploy.api.models import head_of, inspect
from icis_deploy.head.class_update import ClassUpdate
from testing.tiny_project import FEATURE_DIM, TinyProject


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyBundles:
    """A project, a class update for its unseen classes, and a bundle of each head that contains the update."""

    project: TinyProject
    update: ClassUpdate
    fused: Path
    updatable: Path


def export_bundles(project: TinyProject, folder: Path) -> TinyBundles:
    """Give the unseen classes random rows and export both heads to `folder`."""
    head = head_of(inspect(project.model, classes=project.classes))
    rows = np.random.default_rng(0).normal(size=(len(project.unseen_names), FEATURE_DIM + 1)).astype(np.float32)
    update = ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=project.unseen_names)
    for head_kind, capacity in (("fused", None), ("updatable", 16)):
        icis_deploy.export(
            project.model,
            classes=project.classes,
            updates=[update],
            options=icis_deploy.ExportOptions(head=head_kind, capacity=capacity, preprocess=project.preprocess),
            out=folder / head_kind,
        )
    return TinyBundles(project=project, update=update, fused=folder / "fused", updatable=folder / "updatable")
