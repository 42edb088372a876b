"""The result of a benchmark and its parts; reading, writing and comparing results.

    result = icis_deploy.bench(["fused", "updatable"], against="model.onnx")
    icis_deploy.results.save_result(result, "today.json")

    baseline = icis_deploy.results.load_result("yesterday.json")
    for regression in icis_deploy.results.find_regressions(result, baseline, max_regression=0.05):
        print(regression.text)

`Result` is the whole: what ran where (`Environment`), what was measured (`Target`), and what was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icis_deploy._lazy import lazy_names

if TYPE_CHECKING:
    from benchmarks.bench.regression import Regression, find_regressions
    from benchmarks.machine.environment import Environment
    from benchmarks.machine.monitor import MachineState
    from benchmarks.results.result import Result, load_result, save_result
    from benchmarks.results.values import (
        Accuracy,
        AddClasses,
        BatchRun,
        BudgetGain,
        ClassAccuracy,
        Confusion,
        CurveStep,
        HeadShare,
        LatencySummary,
        Parity,
        Phases,
        ScalePoint,
        ScaleSeries,
        Scenario,
        SeenCost,
        Target,
        Timing,
        UpdateLatency,
    )
    from benchmarks.timing.comparison import Comparison
    from benchmarks.timing.drift import Steadiness, Trend
    from benchmarks.timing.latency import LatencyReport, Measurement
    from benchmarks.timing.percentiles import Histogram, Interval, Percentile
    from benchmarks.timing.rounds import WarmUp
    from benchmarks.timing.startup import Start, StartupReport

_HOMES = {
    "Accuracy": "benchmarks.results.values",
    "AddClasses": "benchmarks.results.values",
    "BatchRun": "benchmarks.results.values",
    "BudgetGain": "benchmarks.results.values",
    "ClassAccuracy": "benchmarks.results.values",
    "Comparison": "benchmarks.timing.comparison",
    "Confusion": "benchmarks.results.values",
    "CurveStep": "benchmarks.results.values",
    "Environment": "benchmarks.machine.environment",
    "HeadShare": "benchmarks.results.values",
    "Histogram": "benchmarks.timing.percentiles",
    "Interval": "benchmarks.timing.percentiles",
    "LatencyReport": "benchmarks.timing.latency",
    "LatencySummary": "benchmarks.results.values",
    "MachineState": "benchmarks.machine.monitor",
    "Measurement": "benchmarks.timing.latency",
    "Parity": "benchmarks.results.values",
    "Percentile": "benchmarks.timing.percentiles",
    "Phases": "benchmarks.results.values",
    "Regression": "benchmarks.bench.regression",
    "Result": "benchmarks.results.result",
    "ScalePoint": "benchmarks.results.values",
    "ScaleSeries": "benchmarks.results.values",
    "Scenario": "benchmarks.results.values",
    "SeenCost": "benchmarks.results.values",
    "Start": "benchmarks.timing.startup",
    "StartupReport": "benchmarks.timing.startup",
    "Steadiness": "benchmarks.timing.drift",
    "Target": "benchmarks.results.values",
    "Timing": "benchmarks.results.values",
    "Trend": "benchmarks.timing.drift",
    "UpdateLatency": "benchmarks.results.values",
    "WarmUp": "benchmarks.timing.rounds",
    "find_regressions": "benchmarks.bench.regression",
    "load_result": "benchmarks.results.result",
    "save_result": "benchmarks.results.result",
}

__all__ = [
    "Accuracy",
    "AddClasses",
    "BatchRun",
    "BudgetGain",
    "ClassAccuracy",
    "Comparison",
    "Confusion",
    "CurveStep",
    "Environment",
    "HeadShare",
    "Histogram",
    "Interval",
    "LatencyReport",
    "LatencySummary",
    "MachineState",
    "Measurement",
    "Parity",
    "Percentile",
    "Phases",
    "Regression",
    "Result",
    "ScalePoint",
    "ScaleSeries",
    "Scenario",
    "SeenCost",
    "Start",
    "StartupReport",
    "Steadiness",
    "Target",
    "Timing",
    "Trend",
    "UpdateLatency",
    "WarmUp",
    "find_regressions",
    "load_result",
    "save_result",
]

if not TYPE_CHECKING:  # or type checkers would take every name for one of the module's
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
