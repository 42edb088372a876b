"""`icis-deploy report` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from icis_deploy.cli.main import run

RESULT = str(Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "bench.json")


def test_a_result_becomes_a_page_and_a_markdown_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    code = run(["report", RESULT, "--out", str(page), "--markdown", str(text), "--format", "json"])
    result = json.loads(capsys.readouterr().out)

    assert (code, result["status"], result["num_results"], result["num_rows"]) == (0, "ok", 1, 6)
    assert result["files"] == {str(path): path.stat().st_size for path in (page, text)}
    assert page.read_text().startswith("<!doctype html>")
    assert text.read_text().startswith("### Benchmark on ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 99}', "It has schema version 99; this release reads 1"),
        ('{"schema_version":', "It is not a benchmark result: no JSON object"),
        ("", "It is not a benchmark result"),
    ],
)
def test_what_is_no_result_is_refused_and_nothing_is_written(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.json").write_text(content)
    code = run(["report", RESULT, str(tmp_path / "wrong.json"), "--out", str(tmp_path / "report.html")])

    assert code == 3
    assert f"Cannot use {tmp_path / 'wrong.json'}. {message}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.json"]


def test_a_page_that_is_there_is_only_replaced_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, text = tmp_path / "report.html", tmp_path / "report.md"
    page.write_text("mine")
    arguments = ["report", RESULT, "--out", str(page), "--markdown", str(text)]

    assert run(arguments) == 2
    assert "report.html already exists" in capsys.readouterr().err
    assert (page.read_text(), text.exists()) == ("mine", False)
    assert run([*arguments, "--overwrite"]) == 0
    assert page.read_text() != "mine"


def test_two_texts_in_one_place_are_a_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    same = [str(tmp_path / "report"), str(tmp_path / "sub" / ".." / "report")]

    assert run(["report", RESULT, "--out", same[0], "--markdown", same[1]]) == 2
    assert "give each a path of its own" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_nothing_to_write_is_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", RESULT]) == 2
    assert "give --out report.html, --markdown report.md, or both" in capsys.readouterr().err
