"""Numbers are written one way in all messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from icis_deploy.common.terminal_text import percent, points_text

PACKAGES = ("icis_deploy", "exporters", "benchmarks")
ROOT = Path(__file__).parents[3]


def test_a_percentage_has_a_space_before_its_sign_and_an_unknown_one_is_a_dash():
    assert [percent(0.02), percent(1.0), percent(None)] == ["2.0 %", "100.0 %", "-"]


@pytest.mark.parametrize(("fraction", "text"), [(0.01, "1 point"), (0.02, "2 points"), (0.005, "0.5 points")])
def test_points_are_counted(fraction, text):
    assert points_text(fraction) == text


def test_no_message_writes_a_percentage_another_way():
    pattern = re.compile(r"\.\d%\}")
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line) and "print(" not in line  # examples in docstrings are the reader's own
    ]
    assert len(paths) > 100
    assert not found
