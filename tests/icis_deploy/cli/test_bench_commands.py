"""The commands that benchmark, as a user runs them."""

import json
from dataclasses import replace

import pytest

from benchmarks import bench
from benchmarks.results import load_result
from icis_deploy.cli.main import run
from tests.benchmarks.bundles import export_bundles


@pytest.fixture(scope="module")
def bundles(tiny_project, tmp_path_factory):
    return export_bundles(tiny_project, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Measure for a moment: what is tested here is the command, not the figures."""
    monkeypatch.setitem(bench.PRESETS, "quick", replace(bench.PRESETS["quick"], budget_s=0.05, scenario_s=0.1))


def test_bench_prints_tables_and_writes_the_result(bundles, tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = [str(bundles.fused), "--against", str(bundles.project.model), "--preset", "quick", "--threads", "1"]
    code = run(["bench", *arguments, "--images", str(bundles.project.images), "--out", str(out)])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, "")
    assert "batch 1" in printed.out
    assert "same answer" in printed.out
    result = load_result(out)
    assert result.settings["preset"] == "quick"
    assert [target.name for target in result.targets] == ["original", "fused"]


def test_bench_prints_the_same_as_json(bundles, tmp_path, capsys):
    out = tmp_path / "result.json"
    code = run(
        ["bench", str(bundles.fused), "--preset", "quick", "--batch", "2,1", "--format", "json", "--out", str(out)]
    )
    printed = json.loads(capsys.readouterr().out)

    assert (code, printed["status"], printed["command"]) == (0, "ok", "bench")
    assert [each["batch_size"] for each in printed["result"]["runs"]] == [1, 2]
    written = json.loads(out.read_text())
    written.pop("schema_version")
    assert printed["result"] == written


@pytest.mark.parametrize("batch", ["", "0", "1,x", "-1", "1;8"])
def test_wrong_batch_sizes_are_refused(batch, bundles, capsys):
    assert run(["bench", str(bundles.fused), "--batch", batch]) == 2
    assert "such as 1,8,32" in capsys.readouterr().err


def test_a_place_that_is_taken_is_refused_before_anything_is_measured(bundles, tmp_path, capsys):
    out = tmp_path / "result.json"
    out.write_text("mine")

    assert run(["bench", str(bundles.fused), "--out", str(out)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(["bench", str(bundles.fused), "--out", str(tmp_path / "no" / "result.json")]) == 2
    assert "There is no folder" in capsys.readouterr().err
