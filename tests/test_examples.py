"""The examples of the documents run, and do what they say."""

from __future__ import annotations

import builtins
import io
import runpy
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
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    tested = Path(__file__).read_text("utf-8")

    assert [name[:3] for name in names] == [f"{number:02d}_" for number in range(1, len(names) + 1)]
    assert all(name in tested for name in names)
