"""The commands that benchmark, as a user runs them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.bench import bench, scale
from benchmarks.results.result import load_result, save_result
from icis_deploy.api.bench import BenchOptions
from icis_deploy.cli.main import run
from icis_deploy.errors import UsageError
from testing.exported_bundles import export_bundles

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def bundles(tiny_project, tmp_path_factory):
    return export_bundles(tiny_project, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Measure for a moment: what is tested here is the command, not the figures."""
    monkeypatch.setattr(scale, "memory_bandwidth", lambda _: 1e10)
    monkeypatch.setattr(scale, "HeadSettings", partial(scale.HeadSettings, budget_s=0.1))
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


def test_a_batch_that_no_memory_holds_is_refused_before_anything_is_measured(bundles, capsys):
    assert run(["bench", str(bundles.fused), "--batch", "1,99999999999999999999"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "this machine has" in line
    assert line.endswith("Give a smaller one in --batch.")


def test_a_number_of_threads_that_would_only_be_started_is_refused(bundles, capsys):
    assert run(["bench", str(bundles.fused), "--threads", "999999"]) == 2
    assert "is not in the range 1<=x<=1024" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "option", "what_to_do"),
    [
        (["bench", "--logs", "logs"], "--logs", "Give --scenario single-stream or another"),
        (["bench", "--logs", "logs", "--scenario", "class-swap"], "--logs", "Give --scenario single-stream or another"),
        (["bench", "--any-machine"], "--any-machine", "Give --baseline"),
        (["bench", "--any-machine", "--max-regression", "5%"], "--max-regression and --any-machine", "Give --baseline"),
        (["bench", "--overwrite"], "--overwrite", "Give --out"),
        (["bench-update", "--overwrite"], "--overwrite", "Give --out"),
        (["bench-update", "--seconds", "3"], "--seconds", "it is for --class-swap"),
        (["bench-update", "--class-swap", "--updates", "9"], "--updates", "Leave them out"),
        (["bench-update", "--class-swap", "--against", __file__], "--against", "Leave them out"),
    ],
    ids=lambda value: " ".join(value).replace(__file__, "MODEL") if isinstance(value, list) else "",
)
def test_options_that_would_do_nothing_are_refused(
    arguments, option, what_to_do, bundles, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    command, *options = arguments

    assert run([command, str(bundles.updatable), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"Error: {option} would do nothing: ")
    assert what_to_do in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_of_logs_is_refused_before_anything_is_measured(bundles, tmp_path, capsys):
    (tmp_path / "logs").write_text("mine")
    assert run(["bench", str(bundles.fused), "--scenario", "offline", "--logs", str(tmp_path / "logs")]) == 2
    assert "is a file; --logs names the folder" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_a_time_that_is_no_number_of_seconds_is_refused(seconds, bundles, capsys):
    assert run(["bench", str(bundles.fused), "--seconds", seconds]) == 2
    assert f"Invalid value for '--seconds': {seconds} is not in the range x>0." in capsys.readouterr().err
    with pytest.raises(UsageError, match=f"^{seconds} seconds were asked for; expected a positive number"):
        BenchOptions(max_seconds=float(seconds))


def test_a_runtime_that_is_given_twice_is_measured_once(bundles, tmp_path):
    out = tmp_path / "result.json"
    runtimes = ["--runtime", "onnxruntime"] * 2
    assert run(["bench", str(bundles.fused), *runtimes, "--preset", "quick", "--out", str(out)]) == 0
    assert [target.name for target in load_result(out).targets] == ["fused"]


def test_a_place_that_is_taken_is_refused_before_anything_is_measured(bundles, tmp_path, capsys):
    out = tmp_path / "result.json"
    out.write_text("mine")

    assert run(["bench", str(bundles.fused), "--out", str(out)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(["bench", str(bundles.fused), "--out", str(tmp_path / "no" / "result.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_baseline_is_kept_or_missed_with_its_exit_code(bundles, tmp_path, capsys):
    arguments = ["bench", str(bundles.fused), "--preset", "quick", "--threads", "1"]
    baseline = tmp_path / "baseline.json"
    assert run([*arguments, "--out", str(baseline)]) == 0
    result = load_result(baseline)
    small = tuple(replace(target, size_bytes=target.size_bytes // 2) for target in result.targets)
    save_result(replace(result, targets=small), tmp_path / "small.json")
    capsys.readouterr()

    assert run([*arguments, "--baseline", str(baseline), "--max-regression", "900%"]) == 0
    assert "Nothing is more than 900.0 % worse." in capsys.readouterr().out
    code = run([*arguments, "--baseline", str(tmp_path / "small.json"), "--max-regression", "0.9", "--format", "json"])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (code, found["status"]) == (1, "failed")
    assert "size" in [each["kind"] for each in found["regressions"]]
    assert "more than 90.0 % worse. If the machine was not quiet, measure again" in printed.err


@pytest.mark.parametrize("allowed", ["much", "-5%", "inf", "5"])
def test_an_allowance_that_is_no_fraction_is_refused(allowed, bundles, tmp_path, capsys):
    assert run(["bench", str(bundles.fused), "--max-regression", allowed]) == 2
    assert "such as 5% or 0.05" in capsys.readouterr().err


def test_a_baseline_that_cannot_be_compared_is_refused_before_anything_is_measured(
    bundles, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("benchmarks.bench.bench.run_bench", lambda *_, **__: pytest.fail("minutes would be spent"))
    kept = load_result(RESULTS / "bench.json")
    sections = {**kept.environment.sections, "cpu": {**kept.environment.sections["cpu"], "model": "another"}}
    baseline = tmp_path / "elsewhere.json"
    save_result(replace(kept, environment=replace(kept.environment, sections=sections)), baseline)
    for options, message in (
        ([], "is of another machine"),
        (["--any-machine"], "has the target 'original', which is not measured"),
        (["--any-machine", "--against", str(bundles.project.model)], "original: num_threads is None"),
    ):
        assert run(["bench", str(bundles.fused), "--baseline", str(baseline), *options]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_baseline_that_is_none_is_refused_before_anything_is_measured(bundles, capsys):
    assert run(["bench", str(bundles.fused), "--baseline", str(bundles.project.classes)]) == 3
    assert "It is not a benchmark result" in capsys.readouterr().err


def test_scenarios_are_run_and_their_logs_kept(bundles, tmp_path, capsys):
    options = ["--preset", "quick", "--threads", "1", "--scenario", "offline", "--logs", str(tmp_path / "logs")]
    code = run(["bench", str(bundles.fused), *options])

    assert code == 0
    assert "offline" in capsys.readouterr().out
    assert (tmp_path / "logs" / "offline-fused" / "mlperf_log_summary.txt").is_file()


def test_classes_can_change_while_an_updatable_bundle_answers(bundles, tmp_path, monkeypatch):
    monkeypatch.setitem(bench.PRESETS, "quick", replace(bench.PRESETS["quick"], scenario_s=0.3))
    out = tmp_path / "result.json"
    options = ["--preset", "quick", "--threads", "1", "--scenario", "class-swap", "--out", str(out)]
    code = run(["bench", str(bundles.fused), str(bundles.updatable), *options])

    (scenario,) = load_result(out).scenarios
    assert code == 0
    assert (scenario.name, scenario.target, scenario.valid) == ("class-swap", "updatable", True)
    assert scenario.num_queries > 0
    assert [each.percent for each in scenario.latency.percentiles] == [90.0, 99.0]


def test_classes_cannot_change_where_there_are_no_slots(bundles, capsys):
    assert run(["bench", str(bundles.fused), "--scenario", "class-swap"]) == 2
    assert "class-swap is for bundles with slots, and none was given" in capsys.readouterr().err


def test_bench_update_writes_a_result_with_its_machine(bundles, tmp_path, capsys):
    out = tmp_path / "update.json"
    code = run(["bench-update", str(bundles.updatable), "--classes", "2", "--updates", "3", "--out", str(out)])

    update = load_result(out).update
    assert code == 0
    assert (update.num_new_classes, update.capacity, update.feature_dim) == (2, 16, 24)
    assert update.ways["class update"].num_queries == 3
    assert update.ways["class update"].p99.value_ms is None
    assert load_result(out).environment.fingerprint


def test_bench_scale_prints_the_roofline(tmp_path, capsys):
    out = tmp_path / "scale.json"
    code = run(["bench-scale", "--classes", "60,20", "--features", "16", "--capacity", "4", "--out", str(out)])

    assert code == 0
    assert "of roofline" in capsys.readouterr().out
    assert [point.num_classes for point in load_result(out).scale[0].points] == [20, 60]
    assert run(["bench-scale", "--classes", "many"]) == 2
