r"""Break one rule of a device at a time, and see whether a test notices.

    python scripts/robustness/mutants.py [--only WORD] [--list] [--results FILE]

Each mutant of `mutants.txt` replaces a piece of one function in a copy of the project, and runs the tests of its file
there until the first fails. A mutant that no test notices *survives*: a test is missing, unless the table gives a
reason why nothing could be noticed. A piece that its function no longer has exactly once makes the mutant *stale*: what
it was about has moved, and the table must follow. The exit code is 1 if one survives without a reason or is stale.

The table is plain text: a line `# file: PATH` and its `# tests: PATH ...`, then mutants as

    function | piece | what takes its place [| reason why none can notice]

A method is named by its own name, and `-` means the whole module. In pieces `\n` is the end of a line and `\|` a bar;
spaces at the ends do not count. The tests must pass without a mutant, or nothing is tried.

With `--results` each verdict is a line of JSON in that file as soon as it is known, with a hash of the file that was
mutated and of its tests; a later run takes over the verdicts whose hash is still the same. So a run can be stopped, and
made in parts.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_suffix(".txt")
COPIED = ("icis_deploy", "exporters", "benchmarks", "scripts", "testing", "tests")
TIMEOUT_SECONDS, SLOWDOWN = 3600, 20
"""Tests that take so many times as long as without a mutant do not pass; without one they may take an hour, so that
nothing is taken for noticed only because the machine has other work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One rule broken."""

    file: str
    tests: tuple[str, ...]
    function: str
    piece: str
    replacement: str
    reason: str
    """Why no test can notice; empty where one must."""

    def __str__(self) -> str:
        return f"{self.file}:{self.function}: {self.piece} -> {self.replacement or '(nothing)'}"

    def source(self, text: str) -> str | None:
        """Return a file's text with the mutant in it; `None` if it is stale."""
        spans = (
            [(1, len(text.splitlines()))]
            if self.function == "-"
            else [
                (node.lineno, node.end_lineno or node.lineno)
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == self.function
            ]
        )
        if len(spans) != 1:
            return None
        lines = text.splitlines(keepends=True)
        low, high = spans[0][0] - 1, spans[0][1]
        body = "".join(lines[low:high])
        if body.count(self.piece) != 1:
            return None
        mutated = "".join([*lines[:low], body.replace(self.piece, self.replacement), *lines[high:]])
        try:
            ast.parse(mutated)
        except SyntaxError:
            return None
        return mutated


def mutants(table: str) -> Iterator[Mutant]:
    """Yield the mutants of a table, in its order.

    Raises:
        ValueError: If a line has another form.
    """
    file, tests = "", ()
    for number, line in enumerate(table.splitlines(), start=1):
        if line.startswith("# file:"):
            file, tests = line.partition(":")[2].strip(), ()
        elif line.startswith("# tests:"):
            tests = tuple(line.partition(":")[2].split())
        elif line.strip() and not line.startswith("#"):
            parts = [part.strip().replace("\\n", "\n").replace("\\|", "|") for part in line.split(" | ")]
            if len(parts) not in {3, 4} or not tests:
                raise ValueError(f"line {number} of the table is no mutant of a file with tests: {line!r}")
            yield Mutant(
                file=file,
                tests=tests,
                function=parts[0],
                piece=parts[1],
                replacement="" if parts[2] == "(nothing)" else parts[2],
                reason=parts[3] if len(parts) == 4 else "",
            )


def main() -> int:
    """Try all mutants, say what became of each, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="try those whose line contains this")
    parser.add_argument("--list", action="store_true", help="say which are stale, and run nothing")
    parser.add_argument("--results", type=Path, help="write verdicts to this file, and take over those that hold")
    given = parser.parse_args()
    known = {} if given.results is None or given.list else known_verdicts(given.results)
    chosen = [mutant for mutant in mutants(TABLE.read_text()) if given.only in str(mutant)]
    counts = dict.fromkeys(("current",) if given.list else ("killed", "survived", "explained"), 0) | {"stale": 0}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        if not given.list:
            _copy_project(copy)
            for tests in dict.fromkeys(mutant.tests for mutant in chosen if state_of(mutant) not in known):
                if not _pass(copy, tests):
                    raise RuntimeError(f"These tests do not pass as they are: {' '.join(tests)}")
        for mutant in chosen:
            state = state_of(mutant)
            outcome = known.get(state) or _outcome(copy, mutant, is_run=not given.list)
            if given.results is not None and not given.list and state not in known:
                with given.results.open("a") as results:
                    results.write(json.dumps({"mutant": str(mutant), "state": state, "outcome": outcome}) + "\n")
            counts[outcome] += 1
            if outcome not in {"current", "killed"}:
                print(f"{outcome}: {mutant}" + (f" ({mutant.reason})" if mutant.reason else ""), flush=True)
    print(f"{len(chosen)} mutants: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if counts.get("survived") or counts["stale"] else 0


def state_of(mutant: Mutant) -> str:
    """Return a hash of all that a verdict depends on: the mutant, the file that it is in, and its tests."""
    digest = hashlib.sha256(f"{mutant}|{mutant.reason}".encode())
    folders = [ROOT / path for path in mutant.tests]
    for path in [ROOT / mutant.file, *(file for each in folders for file in (sorted(each.rglob("*.py")) or [each]))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def known_verdicts(results: Path) -> dict[str, str]:
    """Return the verdicts in a file of results by their state; a line that was cut off as it was written is none."""
    verdicts = {}
    for line in results.read_text().splitlines() if results.is_file() else ():
        try:
            verdict = json.loads(line)
        except ValueError:
            continue
        verdicts[verdict["state"]] = verdict["outcome"]
    return verdicts


def _copy_project(copy: Path) -> None:
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)


def _outcome(copy: Path, mutant: Mutant, *, is_run: bool) -> str:
    original = (ROOT / mutant.file).read_text()
    mutated = mutant.source(original)
    if mutated is None:
        return "stale"
    if not is_run:
        return "current"
    target = copy / mutant.file
    target.write_text(mutated)
    try:
        is_noticed = not _pass(copy, mutant.tests)
    finally:
        target.write_text(original)
    return "killed" if is_noticed else "explained" if mutant.reason else "survived"


_seconds_of: dict[tuple[str, ...], float] = {}
"""How long tests took when they first passed, which is without a mutant."""


def _pass(copy: Path, tests: tuple[str, ...]) -> bool:
    """Return whether tests pass in the copy; those that take too long do not."""
    start, limit = time.monotonic(), min(TIMEOUT_SECONDS, SLOWDOWN * _seconds_of.get(tests, TIMEOUT_SECONDS))
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - pytest, on files of the project
            command, cwd=copy, capture_output=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in {0, 1, 2}:  # 2: the mutant breaks the collection
        raise RuntimeError(f"pytest could not run {' '.join(tests)}:\n{done.stdout.decode()[-2000:]}")
    if done.returncode == 0:
        _seconds_of.setdefault(tests, time.monotonic() - start)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
