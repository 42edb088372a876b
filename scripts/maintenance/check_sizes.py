"""Print the modules that have more than 600 lines.

It is a list to think about, no verdict: a module is as long as its subject.

Usage: python scripts/maintenance/check_sizes.py [FOLDER]...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

LONG = 600
FOLDERS = ("icis_deploy", "exporters", "benchmarks")


def long_modules(folders: Sequence[Path]) -> list[str]:
    """Return a line of text for each long module in these folders."""
    sizes = {
        module: len(module.read_text("utf-8").splitlines())
        for folder in folders
        for module in sorted(folder.rglob("*.py"))
    }
    return [f"{module}: {num_lines} lines" for module, num_lines in sizes.items() if num_lines > LONG]


if __name__ == "__main__":
    for line in long_modules([Path(name) for name in sys.argv[1:] or FOLDERS]):
        print(line)
