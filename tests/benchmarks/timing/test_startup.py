import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.machine.system_files import Unavailable
from benchmarks.results.json_values import json_from_value
from benchmarks.timing import startup
from benchmarks.timing.startup import StartupReport, measure_startup, peak_memory_bytes
from icis_deploy.errors import LoadError, RuntimeFailureError, UsageError

FACTORIES = """
import os, sys, time

def sleeper(load_s, first_s):
    time.sleep(load_s)
    naps = iter([first_s])
    return lambda: time.sleep(next(naps, 0))

def holder(size_bytes):
    held = bytearray(os.urandom(1)) * size_bytes
    return lambda: held[0]

def hoarder(size_bytes):
    return lambda: len(bytearray(os.urandom(1)) * size_bytes)

def broken():
    raise RuntimeError("no kernel image for this device")

def talker():
    print("a runtime that greets on standard output")
    return lambda: print("and with every query")

def not_callable():
    return 42

def dies():
    os._exit(7)

def unspoilt():
    assert "numpy" not in sys.modules
    return lambda: None
"""
MIB = 2**20


@pytest.fixture(autouse=True)
def factories(tmp_path, monkeypatch):
    (tmp_path / "some_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


def test_load_and_first_query_are_told_apart():
    report = measure_startup("nap", "some_factories:sleeper", {"load_s": 0.2, "first_s": 0.1}, num_runs=2)

    assert len(report.starts) == 2
    for start in report.starts:  # a sleep may be longer than asked for, never shorter
        assert start.load_ms >= 200
        assert start.first_query_ms >= 100
        assert start.cold_start_ms >= start.load_ms + start.first_query_ms


def test_memory_is_that_of_the_model_and_not_of_who_starts_it():
    held_here = np.ones(200 * MIB // 8)
    report = measure_startup("holder", "some_factories:holder", {"size_bytes": 64 * MIB}, num_runs=1)
    start = report.starts[0]

    assert held_here.nbytes == 200 * MIB
    assert start.memory_before_bytes < 100 * MIB
    assert 64 * MIB <= start.memory_loaded_bytes - start.memory_before_bytes < 80 * MIB
    assert start.memory_peak_bytes - start.memory_loaded_bytes < 8 * MIB


def test_memory_that_a_query_needs_for_a_moment_counts():
    report = measure_startup("hoarder", "some_factories:hoarder", {"size_bytes": 64 * MIB}, num_runs=1)
    start = report.starts[0]

    assert start.memory_peak_bytes - start.memory_loaded_bytes >= 60 * MIB


def test_the_fresh_process_imports_nothing_heavy_before_the_model():
    assert measure_startup("x", "some_factories:unspoilt", {}, num_runs=1).starts


def test_a_model_may_write_to_standard_output():
    assert measure_startup("x", "some_factories:talker", {}, num_runs=1).starts


def test_files_are_weighed_and_read_from_the_disk(tmp_path):
    first, second = tmp_path / "model.onnx", tmp_path / "labels.txt"
    first.write_bytes(b"m" * 3000)
    second.write_bytes(b"l" * 500)
    report = measure_startup("x", "some_factories:unspoilt", {}, files=[first, second], num_runs=1)

    assert report.size_bytes == 3500
    assert report.page_cache == ("dropped" if sys.platform == "linux" else "warm")


def test_without_files_the_page_cache_is_warm():
    report = measure_startup("x", "some_factories:unspoilt", {}, num_runs=1)

    assert (report.size_bytes, report.page_cache) == (0, "warm")


def test_modules_of_the_same_names_in_the_current_folder_do_no_harm(tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "benchmarks").mkdir(parents=True)
    (tmp_path / "elsewhere" / "benchmarks" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert measure_startup("x", "some_factories:unspoilt", {}, num_runs=1).starts


def test_a_report_states_medians_and_can_be_written_down():
    report = measure_startup("nap", "some_factories:sleeper", {"load_s": 0.0, "first_s": 0.0}, num_runs=3)
    written = json.loads(json.dumps(json_from_value(report), allow_nan=False))

    medians = written["medians"]
    assert (written["label"], len(written["starts"])) == ("nap", 3)
    assert medians["cold_start_ms"] == sorted(start.cold_start_ms for start in report.starts)[1]
    assert (medians["device_memory_bytes"] is None) == ("device_memory_bytes" in written["missing"])


def test_a_value_that_no_run_has_has_no_median():
    report = measure_startup("x", "some_factories:unspoilt", {}, num_runs=1)
    start = report.starts[0]
    fields = {name: getattr(start, name) for name in type(start).__dataclass_fields__}
    without = type(start)(**{**fields, "memory_peak_bytes": None})

    assert (
        StartupReport(label="x", starts=(without,), size_bytes=0, page_cache="warm", missing={}).median(
            "memory_peak_bytes"
        )
        is None
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "no kernel image for this device"),
        ("not_callable", "some_factories:not_callable returned int; expected a callable that answers one query"),
        ("nothing_of_this_name", "has no attribute 'nothing_of_this_name'"),
        ("dies", r" with exit code 7; the process said:\n\(nothing\)"),
    ],
)
def test_the_last_words_of_a_process_that_fails_are_passed_on(function, message):
    with pytest.raises(
        RuntimeFailureError, match=f"(?s)Starting 'int8' with some_factories:{function} failed.*{message}"
    ):
        measure_startup("int8", f"some_factories:{function}", {}, num_runs=1)


def test_a_process_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(startup, "TIMEOUT_S", 0.5)
    with pytest.raises(RuntimeFailureError, match=r"Starting 'nap' did not end within 0\.5 s"):
        measure_startup("nap", "some_factories:sleeper", {"load_s": 60, "first_s": 0}, num_runs=1)


def test_refuses_a_factory_that_is_no_address():
    with pytest.raises(UsageError, match=r"Cannot start 'some_factories' 5 times; expected 'package\.module:function'"):
        measure_startup("x", "some_factories", {})


def test_refuses_to_start_nothing():
    with pytest.raises(UsageError, match=r"0 times; expected 'package\.module:function' and at least one run"):
        measure_startup("x", "some_factories:unspoilt", {}, num_runs=0)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"Cannot read .*missing\.onnx: No such file or directory"):
        measure_startup("x", "some_factories:unspoilt", {}, files=[tmp_path / "missing.onnx"], num_runs=1)


def test_a_system_without_the_figure_says_so(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tpython\n")

    assert peak_memory_bytes(tmp_path) == Unavailable("/proc/self/status has no VmHWM")


def test_importing_the_module_loads_no_numpy():
    code = "import sys, benchmarks.timing.startup; sys.exit('numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
