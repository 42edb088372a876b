"""The guard counts the same answers in JavaScript as in Python, and refuses the same changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.models import head_of, inspect
from icis_deploy.errors import GuardError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from testing.bundles import signed_bytes
from tests.exporters.web.javascript import JavaScriptError


@pytest.fixture(scope="module")
def exported(tiny_project, keys, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("guarded") / "bundle"
    options = icis_deploy.ExportOptions(
        head="updatable",
        capacity=8,
        preprocess=tiny_project.preprocess,
        trust=(keys.public_path,),
        targets=("web",),
    )
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=out, options=options)
    return out


@pytest.fixture
def guarded(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture(scope="module")
def head(tiny_project):
    return head_of(inspect(tiny_project.model, classes=tiny_project.classes))


def test_the_same_share_of_answers_changes(node, guarded, head, keys):
    python, javascript = Device.open(guarded), node.open(guarded)
    random, refusals = np.random.default_rng(6), 0
    for version, scale in enumerate((0.3, 1.0, 1.5, 2.0, 4.0), 1):
        rows = head.rows.mean(axis=0) + scale * random.normal(size=(2, head.rows.shape[1]))
        added = {"added": ("one", "two")} if version == 1 else {"replaced": ("one",), "added": (f"new {version}",)}
        update = ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, version=version, **added)
        data = signed_bytes(update, keys.private_path)
        try:
            python.apply(data)
        except GuardError as error:
            refusals, said = refusals + 1, str(error)
            with pytest.raises(JavaScriptError) as caught:
                javascript.apply(data)
            assert caught.value.name == "GuardError"
            assert str(caught.value).partition(" (")[0] == said.partition(" (")[0]  # halves are rounded otherwise
            python.apply(data, allow_changed_answers=True)
            applied = javascript.apply(data, allowChangedAnswers=True)
            assert applied["entry"]["allowed_past_guard"]
        else:
            applied = javascript.apply(data)
        assert applied["entry"]["changed_answers"] == pytest.approx(python.history()[-1].changed_answers)
    assert 0 < refusals < 5


def test_a_copy_of_a_known_class_is_refused(node, guarded, head, keys):
    row = head.rows[7:8] * 1.0
    update = ClassUpdate(base_fingerprint=head.fingerprint, rows=row, added=("a copy",))
    data = signed_bytes(update, keys.private_path)

    for apply in (Device.open(guarded).apply, node.open(guarded).apply):
        with pytest.raises((GuardError, JavaScriptError), match=r"copy.*class07|images of known classes"):
            apply(data)
