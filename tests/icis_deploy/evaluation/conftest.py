"""The bundle that evaluations are tested on."""

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.models import head_of, inspect
from testing.tiny_project import FEATURE_DIM


@pytest.fixture(scope="module")
def bundle(tiny_project, tmp_path_factory):
    head = head_of(inspect(tiny_project.model, classes=tiny_project.classes))
    rows = np.random.default_rng(0).normal(size=(len(tiny_project.unseen_names), FEATURE_DIM + 1)).astype(np.float32)
    update = icis_deploy.ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=tiny_project.unseen_names)
    out = tmp_path_factory.mktemp("bundles") / "updatable"
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess, head="updatable", capacity=8)
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, updates=[update], options=options, out=out)
    return out
