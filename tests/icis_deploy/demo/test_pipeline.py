"""The demo as it is run: nothing in it is refused, and it keeps the budget that it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from icis_deploy.demo.pipeline import run_demo

pytestmark = pytest.mark.slow


def test_the_device_takes_the_update_and_seen_classes_lose_little(tmp_path: Path):
    result = run_demo(tmp_path / "demo", seed=0, overwrite=False, log=lambda _: None)

    assert result.without.S is not None
    assert result.injected.S is not None
    assert result.injected.U is not None
    assert result.injected.U > 0.9
    assert result.without.S - result.injected.S < 0.03
    assert (result.updated.U, result.updated.S) == (result.injected.U, result.injected.S)
    assert result.sheet.is_file()
