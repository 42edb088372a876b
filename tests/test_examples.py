"""The examples of the documents run, and do what they say."""

from __future__ import annotations

import builtins
import io
import runpy
import tempfile
from pathlib import Path

import pytest

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


def test_every_example_is_numbered_and_tested():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    tested = Path(__file__).read_text("utf-8")

    assert [name[:3] for name in names] == [f"{number:02d}_" for number in range(1, len(names) + 1)]
    assert all(name in tested for name in names)
