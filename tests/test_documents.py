"""The documents say what is there: decisions are complete, links and paths lead somewhere, and each check can fail."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DECISIONS = REPOSITORY / "docs" / "decisions"
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "scripts").glob("*.md")]
)
HEADINGS = ("Context", "Decision", "Consequence", "Evidence")
STATUS = re.compile(r"accepted(; .+)?|superseded by \[\d{4}\]\(\d{4}-[\w-]+\.md\)")
MAX_LINES = {"ARCHITECTURE.md": 150, "CHANGELOG.md": 150, "README.md": 151}
"""Files that are read from their beginning to their end have fewer lines than this."""

MADE_LATER = frozenset({"icis_deploy/_workbench"})
"""Paths that only a wheel has."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
QUOTED_SECTION = re.compile(r'`(docs/[\w/-]+\.md)`,\s"([^"]+)"')
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CITATION = re.compile(r"docs/decisions/(\d{4})\b(?!-)")


def faults_of_decision(name: str, text: str) -> list[str]:
    """Return what is wrong with the file of one decision."""
    number, faults = name[:4], []
    if not re.match(rf"# {number}: \S", text):
        faults.append(f"{name}: the title does not begin with its number")
    if not re.search(r"^- Date: \d{4}-\d{2}-\d{2}$", text, re.MULTILINE):
        faults.append(f"{name}: no date")
    status = re.search(r"^- Status: (.+)$", text, re.MULTILINE)
    if status is None or not STATUS.fullmatch(status[1]):
        faults.append(f"{name}: the status is neither accepted nor superseded by another decision")
    sections = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if tuple(title for title, _ in sections) != HEADINGS:
        faults.append(f"{name}: expected the headings {', '.join(HEADINGS)}")
    faults += [f"{name}: {title} says nothing" for title, body in sections if not body.strip()]
    evidence = dict(sections).get("Evidence", "")
    has_source = re.search(r"`[\w-]+/|`\w+\.md`|[Cc]ommit\s[0-9a-f]{7}", evidence)
    if "No figure" not in evidence and not (has_source and re.search(r"\d", evidence)):
        faults.append(f"{name}: the evidence neither states a figure with its source nor that there is none")
    return faults


def faults_of_numbers(names: Iterable[str]) -> list[str]:
    """Return the numbers of decisions that stand twice or are missing."""
    numbers = sorted(int(name[:4]) for name in names)
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    missing = sorted(set(range(1, max(numbers) + 1)) - set(numbers))
    return [f"{number:04} occurs twice" for number in twice] + [f"{number:04} is missing" for number in missing]


def faults_of_index(index: str, names: Iterable[str]) -> list[str]:
    """Return the files that an index does not link, or not once."""
    linked = LINK.findall(index)
    return [f"{name} is linked {linked.count(name)} times" for name in names if linked.count(name) != 1]


def broken_links(path: Path, text: str) -> list[str]:
    """Return the relative links of a document that lead nowhere: to no file, or to no heading of a document."""
    faults = []
    for link in (link for link in LINK.findall(text) if "://" not in link):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            faults.append(f"{path.name}: {link}")
    return faults


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def top_folders() -> set[str]:
    """Return the names of the folders whose paths documents name from the repository's root."""
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    return packages | {"docs", "scripts", "tests"}


def missing_paths(name: str, text: str) -> list[str]:
    """Return the paths and modules in backticks that are not there."""
    faults, folders = [], top_folders()
    commands = [line for block in FENCED.findall(text) for line in block.splitlines()]
    for quoted in [*QUOTED.findall(FENCED.sub("", text)), *commands]:
        for word in re.findall(r"[\w./*{}-]+", quoted):
            path = word.removeprefix("./").rstrip("./")
            if path.split("/")[0] not in folders or "/" not in path or path in MADE_LATER or re.search(r"[*{]", path):
                continue
            if not (REPOSITORY / path).exists() and not (
                CITATION.fullmatch(path) and any(REPOSITORY.glob(f"{path}-*"))
            ):
                faults.append(f"{name}: {path}")
        module = re.fullmatch(r"((?:icis_deploy|exporters|benchmarks)(?:\.\w+)+)(\(.*\))?", quoted)
        if module and not names_a_module(module[1]):
            faults.append(f"{name}: {module[1]}")
        if re.fullmatch(r"\w+\.py", quoted) and not any(REPOSITORY.glob(f"[a-z]*/**/{quoted}")):
            faults.append(f"{name}: {quoted}")
    return faults


def names_a_module(dotted: str) -> bool:
    """Return whether a dotted name is a module, a package, or a name that a module or package defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = REPOSITORY.joinpath(*parts[:length])
        source = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
        if source is not None:
            rest = parts[length:]
            return not rest or re.search(rf"\b{re.escape(rest[0])}\b", source.read_text("utf-8")) is not None
    return False


def missing_sections(name: str, text: str) -> list[str]:
    """Return the sections that are quoted after a document, as in `docs/device.md`, "Systems", and that it lacks."""
    return [
        f'{name}: {path}, "{title}"'
        for path, title in QUOTED_SECTION.findall(text)
        if not re.search(rf"^#+ {re.escape(title)}$", (REPOSITORY / path).read_text("utf-8"), re.MULTILINE)
    ]


def wrong_citations(name: str, text: str, numbers: set[str]) -> list[str]:
    """Return the decisions that a source file cites and that do not exist."""
    return [f"{name}: docs/decisions/{number}" for number in CITATION.findall(text) if number not in numbers]


FILES = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name[:4])
def test_a_decision_has_a_date_a_status_and_all_headings(path):
    assert faults_of_decision(path.name, path.read_text("utf-8")) == []


def test_decisions_are_numbered_without_gaps():
    assert len(FILES) >= 57
    assert faults_of_numbers(path.name for path in FILES) == []


def test_the_index_names_every_decision_once():
    assert faults_of_index((DECISIONS / "README.md").read_text("utf-8"), [path.name for path in FILES]) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_and_paths_in_documents_lead_somewhere(path):
    text = path.read_text("utf-8")

    assert broken_links(path, text) == []
    assert missing_paths(path.name, text) == []
    assert missing_sections(path.name, text) == []


@pytest.mark.parametrize(("name", "limit"), MAX_LINES.items())
def test_a_document_that_is_read_as_a_whole_stays_short(name, limit):
    assert len((REPOSITORY / name).read_text("utf-8").splitlines()) < limit


def test_decisions_that_code_cites_exist():
    numbers = {path.name[:4] for path in FILES}
    sources = [path for folder in top_folders() - {"docs"} for path in (REPOSITORY / folder).rglob("*.py")]
    commands = [path for path in (REPOSITORY / "scripts").rglob("*") if path.is_file() and not path.suffix]
    texts = {path: path.read_text("utf-8") for path in sorted({*sources, *commands}) if path != Path(__file__)}

    assert sum("docs/decisions/" in text for text in texts.values()) > 40
    assert [fault for path, text in texts.items() for fault in wrong_citations(path.name, text, numbers)] == []


# --- the checks can fail ------------------------------------------------------------------------------------------

COMPLETE = """# 0007: Near-ties

- Date: 2026-11-23
- Status: accepted
- Room: `icis_deploy/metrics`

## Context
Why.

## Decision
What.

## Consequence
So.

## Evidence
No figure: follows from why.
"""


def test_a_complete_decision_has_no_faults():
    assert faults_of_decision("0007-near-ties.md", COMPLETE) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# 0007", "# 0008", "the title does not begin with its number"),
        ("- Date: 2026-11-23\n", "", "no date"),
        ("accepted", "proposed", "the status is neither"),
        ("accepted", "superseded by 0009", "the status is neither"),
        ("## Consequence\nSo.\n", "", "expected the headings"),
        ("What.", "", "Decision says nothing"),
        ("No figure: follows", "Follows", "the evidence neither"),
    ],
)
def test_a_fault_of_a_decision_is_found(old, new, fault):
    faults = faults_of_decision("0007-near-ties.md", COMPLETE.replace(old, new, 1))

    assert len(faults) == 1
    assert fault in faults[0]


def test_a_gap_and_a_number_that_stands_twice_are_found():
    assert faults_of_numbers(["0001-a.md", "0003-b.md", "0003-c.md"]) == ["0003 occurs twice", "0002 is missing"]


def test_a_decision_that_the_index_lacks_is_found():
    assert faults_of_index("- [0001](0001-a.md) A", ["0001-a.md", "0002-b.md"]) == ["0002-b.md is linked 0 times"]


def test_a_broken_link_is_found():
    text = (
        "[a](docs/nothing.md#part) [b](README.md#install) [c](https://example.org/x) [d](#here) [e](docs/device.md#no)"
    )

    assert broken_links(REPOSITORY / "README.md", text) == [
        "README.md: docs/nothing.md#part",
        "README.md: #here",
        "README.md: docs/device.md#no",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "`icis_deploy/pipeline.py`",
        "`python scripts/other_heads.py --seed 1`",
        "`pytest tests/icis_deploy/nothing -k x`",
        "`exporters.parity_gate.check_bundle`",
        "`icis_deploy.runtime.nothing`",
        "`parity_gate.py`",
        "```\npython scripts/other_heads.py --seed 1\n```",
    ],
)
def test_a_path_that_is_not_there_is_found(text):
    assert len(missing_paths("x.md", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`icis_deploy/runtime`",
        "`./scripts/test`",
        "`icis_deploy.errors`",
        "`icis_deploy.__all__`",
        "`docs/results/x-{a,b}.json`",
        "`model.onnx`",
    ],
)
def test_paths_that_are_there_and_other_words_are_no_faults(text):
    assert missing_paths("x.md", text) == []


def test_a_quoted_section_that_is_not_there_is_found():
    text = '`docs/device.md`, "Systems": a. `docs/device.md`, "Nothing": b.'

    assert missing_sections("x.md", text) == ['x.md: docs/device.md, "Nothing"']


def test_a_citation_of_no_decision_is_found():
    assert wrong_citations("x.py", "docs/decisions/0001, docs/decisions/9999", {"0001"}) == [
        "x.py: docs/decisions/9999"
    ]
