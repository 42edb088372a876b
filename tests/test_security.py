"""SECURITY.md names the tests that show each defence; they must exist."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
TEXT = (TESTS.parent / "SECURITY.md").read_text()
NAMED = re.findall(r"`(test_\w+\.py|scripts/[\w/]+\.py)(?:::(test_\w+)…?)?`", TEXT)


def missing(named):
    """The files and tests that are named and are not there."""
    absent = []
    for file, test in named:
        paths = [TESTS.parent / file] if "/" in file else list(TESTS.rglob(file))
        if not any(path.is_file() and (f"def {test}" if test else "") in path.read_text() for path in paths):
            absent.append(f"{file}::{test}")
    return absent


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 25
    assert missing(NAMED) == []


def test_one_that_does_not_would_be_noticed():
    assert missing([("test_device.py", "test_that_nobody_wrote"), ("test_nothing.py", "")]) == [
        "test_device.py::test_that_nobody_wrote",
        "test_nothing.py::",
    ]


def test_every_threat_has_a_defence_and_a_test():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| attacker")]

    assert len(rows) > 15
    for row in rows:
        _, attacker, defence, shown_by, _ = row.split("|")
        assert attacker.strip()
        assert defence.strip(), row
        assert re.search(r"\S \*Residual:\* \S", defence), row
        assert "test_" in shown_by or "lint rule" in shown_by, row
