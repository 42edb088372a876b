"""Numbers are written one way in all messages."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from icis_deploy.common.terminal_text import percent, points_text, printable

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


def test_what_is_not_visible_is_escaped():
    assert printable("a\x1b[2J\n\u202eb\U000e0001\ud800 \u00e9") == r"a\x1b[2J\n\u202eb\U000e0001\ud800 \u00e9".replace(
        r"\u00e9", "\u00e9"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_an_error_is_shown_where_no_file_can_be_opened():
    code = """
        import resource
        from icis_deploy.common.terminal_text import printable
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        print(printable("Too many open files\\n"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)

    assert done.stdout == "Too many open files\\n\n"
