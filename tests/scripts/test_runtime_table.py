"""The table of runtimes in docs/exporters.md: it is what the script makes of the registry and the results."""

import json
from typing import Any

import pytest

from exporters.targets.registry import TARGETS
from icis_deploy.runtime.sessions.choice import RUNTIME_NAMES
from scripts.experiments import runtime_table
from scripts.experiments.runtime_table import DOCUMENT, END, INSTALLED, MEASURED, START, table, with_table

LIFE = {"has_same_classes": True, "refused_by": "SignatureError", "is_restored": True, "num_torn": 0}


def found(**changed: Any) -> dict[str, Any]:
    return {"gate": "passed", "gate_error": 1.24e-5, "time_ratio": 1.151, "swap_ms": 0.54, "life": LIFE} | changed


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_document_holds_the_table_of_the_present_registry_and_results():
    made = runtime_table.present_table()
    document = DOCUMENT.read_text("utf-8")
    assert with_table(document, made) == document, "run python scripts/experiments/runtime_table.py --write"
    rows = [cells(line)[0].strip("`") for line in made.splitlines()[2:]]
    assert set(rows) == {*RUNTIME_NAMES, *(name for name, target in TARGETS.items() if target.runtime is None)}
    assert len(rows) == len(set(rows))


def test_a_new_runtime_is_a_row_that_says_what_is_not_known_of_it():
    (row,) = table(("abacus",), {}, {}).splitlines()[2:]
    assert cells(row)[0] == "`abacus`"
    assert cells(row)[2:5] == ["not measured"] * 3
    assert cells(row)[-1] == "not said yet"


def test_what_was_measured_stands_in_the_row():
    measured = {"updatable, fp32": {"mnn": found()}, "fused, fp32": {"mnn": {"gate": "rejected"}}}
    installed = {"mnn": {"installs": True, "size_mb": 123, "arm64_wheel_mb": 17.2}}
    (row,) = table(("mnn",), measured, installed).splitlines()[2:]
    assert cells(row)[1:9] == [
        "yes, 123 MB",
        "rejected",
        "passed, updated",
        "refused",
        "1.2e-05",
        "1.15",
        "0.5 ms",
        "17 MB",
    ]


@pytest.mark.parametrize(
    "wrong", [{"has_same_classes": False}, {"refused_by": None}, {"is_restored": False}, {"num_torn": 1}]
)
def test_a_life_that_is_not_sound_is_never_called_updated(wrong):
    measured = {"updatable, fp32": {"mnn": found(life=LIFE | wrong)}}
    assert "**update not sound**" in table(("mnn",), measured, {})


def test_a_document_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="has no <!-- made by"):
        with_table("text", "| a |")
    with pytest.raises(ValueError, match=f"has no {END}"):
        with_table(f"text {START}", "| a |")


def test_results_name_runtimes_that_exist():
    measured = json.loads(MEASURED.read_text("utf-8"))
    assert {name for kind in measured.values() for name in kind} <= set(RUNTIME_NAMES)
    assert json.loads(INSTALLED.read_text("utf-8"))
