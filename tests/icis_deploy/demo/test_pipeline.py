"""The demo with a fifth of its classes and a quarter of their images: nothing is refused, and the budget is kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from icis_deploy.demo import pipeline
from icis_deploy.demo.world import make_world

pytestmark = pytest.mark.slow


def test_the_device_takes_the_update_and_seen_classes_lose_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "make_world", partial(make_world, num_seen=24, num_unseen=4))
    monkeypatch.setattr(pipeline, "TRAINING_IMAGES_PER_CLASS", 16)

    result = pipeline.run_demo(tmp_path / "demo", seed=0, overwrite=False, log=lambda _: None)

    assert result.without.S is not None
    assert result.injected.S is not None
    assert result.injected.U is not None
    assert result.injected.U > 0.4  # chance is 0.04; with all images of all classes it is above 0.9
    assert result.without.S - result.injected.S < 0.03
    assert (result.updated.U, result.updated.S) == (result.injected.U, result.injected.S)
    assert result.sheet.is_file()
