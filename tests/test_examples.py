"""The examples of the documents run, and do what they say."""

from __future__ import annotations

import builtins
import io
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

from scripts.maintenance.make_notebook import notebook_of

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


@pytest.mark.slow
def test_values_in_python_touch_no_file_but_those_of_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written: list[str] = []
    opened = io.open

    def watched(file, mode="r", *arguments, **keywords):
        if set(mode) & set("wxa+") and not isinstance(file, int):
            written.append(str(file))
        return opened(file, mode, *arguments, **keywords)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(io, "open", watched)
    found = runpy.run_path(str(EXAMPLES / "01_values_in_python.py"))
    printed = capsys.readouterr().out

    report, new = found["report"], found["new_names"]
    assert report.T > 0.8
    assert report.U > 0.3
    assert report.S > 0.8
    assert f"5 new classes: {', '.join(new)}" in printed
    assert "45 classes, 5 of 256 slots filled" in printed
    assert found["logits"].shape == (1, 45)
    assert found["model"][-1].out_features == 40
    assert all(str(tmp_path) in name or name == "/dev/null" for name in written), written
    # A cache of torch itself goes into the folder for temporary files.
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []


@pytest.mark.slow
def test_signed_updates_are_taken_given_back_and_not_taken_again(capsys):
    found = runpy.run_path(str(EXAMPLES / "02_signed_updates.py"))

    assert found["before"] == found["given_back"] == 0
    assert found["after"] > 0.5
    assert found["refused"].exit_code == 6
    assert found["actions"] == ["apply", "rollback"]
    assert "refused, exit code 6" in capsys.readouterr().out


@pytest.fixture
def run_example(monkeypatch, capsys):
    """A function that runs an example as Python runs a script, and returns its names and what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "small_world", raising=False)  # its pictures begin anew, whatever ran before

    def run(name):
        found = runpy.run_path(str(EXAMPLES / name))
        return found, capsys.readouterr().out

    yield run
    sys.modules.pop("small_world", None)


SAID = pytest.mark.filterwarnings("ignore::icis_deploy.errors.ICISDeployWarning")


@SAID
def test_a_greater_budget_gives_more_to_new_classes_and_costs_the_known_ones_more(run_example):
    found, printed = run_example("03_budgets.py")
    small, large = found["reports"][1], found["reports"][20]

    assert small.U + 0.05 < large.U
    assert small.S > large.S + 0.05
    assert small.S_original - small.S < 0.06
    assert len(printed.splitlines()) == 4


@SAID
def test_descriptions_of_every_source_teach_classes(run_example):
    found, printed = run_example("04_descriptions_and_tags.py")

    assert set(found["reports"]) == {"words", "numbers", "both"}
    assert all(report.U > 0.3 for report in found["reports"].values())
    assert "tags (18 numbers), attributes (6 numbers)" in printed


@SAID
def test_photos_add_to_descriptions_and_do_without_them(run_example):
    found, _ = run_example("05_photos_of_new_classes.py")
    reports = found["reports"]

    assert reports[5, True].U > reports[0, True].U + 0.05
    assert reports[5, False].U > 0.6


@SAID
def test_a_device_learns_from_pictures_and_gives_the_class_back(run_example):
    found, printed = run_example("06_a_device_that_teaches.py")

    assert found["before"] == found["given_back"] == 0
    assert found["taught"] > 0.6
    assert "history: teach kind 80, rollback" in printed


@SAID
def test_outcomes_in_tables_say_who_takes_answers(run_example):
    pytest.importorskip("pandas", reason="the extra dev is not installed")
    found, printed = run_example("07_outcomes_in_tables.py")

    assert len(found["outcomes"]) == 85 * 8
    assert 0 < len(found["stolen"]) <= len(found["wrong"]) < 200
    assert f"{len(found['wrong'])} of 680 answers are wrong" in printed


@SAID
@pytest.mark.slow
def test_a_server_answers_with_the_class_that_was_put_into_its_inbox(run_example):
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    found, _ = run_example("08_serve_and_ask.py")

    assert found["before"]["model_version"] == "0"
    assert found["after"]["model_version"] == "1"
    assert found["after"]["predictions"][0]["classes"][0]["name"] == "kind 80"
    assert found["exit_code"] == 0


def test_the_notebook_has_the_cells_of_its_script():
    nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")
    made = notebook_of((EXAMPLES / "01_values_in_python.py").read_text("utf-8"))

    assert nbformat.writes(made) + "\n" == (EXAMPLES / "values_in_python.ipynb").read_text("utf-8")
    assert sum(cell.cell_type == "code" for cell in made.cells) >= 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own parts
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra dev is not installed")
    notebook = nbformat.read(EXAMPLES / "values_in_python.ipynb", as_version=4)

    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "45 classes, 5 of 256 slots filled" in printed


def test_every_example_is_numbered_and_tested():
    names = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "small_world.py")
    tested = Path(__file__).read_text("utf-8")

    assert [name[:3] for name in names] == [f"{number:02d}_" for number in range(1, len(names) + 1)]
    assert all(name in tested for name in names)
    assert len(names) == 8
    assert all(name in (EXAMPLES / "README.md").read_text("utf-8") for name in names)
