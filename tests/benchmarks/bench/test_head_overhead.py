"""What added rows cost compared with their bytes: the verdict needs the whole interval, and only like is compared."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.bench import head_overhead as head_share
from benchmarks.bench.bench import open_targets
from benchmarks.bench.head_overhead import head_shares, is_like, shares_of
from benchmarks.machine import bandwidth
from benchmarks.machine.bandwidth import bandwidth_after
from benchmarks.results.text import head_shares_text
from benchmarks.results.values import BatchRun, HeadShare
from benchmarks.timing.latency import Plan, measure
from benchmarks.timing.percentiles import Interval

BANDWIDTH = 10e9


def share(low, high):
    measured = Interval(value=(low + high) / 2, low=low, high=high)
    return HeadShare(
        target="fused", added_bytes=1_000_000, bandwidth_bytes_per_s=BANDWIDTH, share_ms=0.1, measured_ms=measured
    )


@pytest.fixture
def targets(tiny_bundles):
    bundles, original = [tiny_bundles.fused, tiny_bundles.updatable], str(tiny_bundles.project.model)
    with open_targets(bundles, against=original, runtimes=("onnxruntime",), num_threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.09, "within"),
        (0.02, 0.1, "within"),
        (0.11, 0.5, "over"),
        (0.05, 0.2, "cannot tell"),
        (float("-inf"), float("inf"), "cannot tell"),  # too few rounds for an interval
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_of_the_share(low, high, verdict):
    assert share(low, high).verdict == verdict


def test_rows_that_the_original_does_not_have_are_counted_empty_slots_too(targets):
    original, fused, updatable = targets
    width = 4 * (fused.added_rows().shape[1])

    assert (original.added_bytes, fused.added_bytes) == (0, 6 * width)
    assert updatable.capacity == 16
    assert updatable.added_bytes == 16 * width  # ten of them are empty


def test_what_rows_cost_is_measured_in_turn_with_the_original(targets, virtual_machine):
    """A query of 4 ms; the rows of `fused` cost half of their share, 0.04 ms, those of `updatable` three times it."""
    machine = virtual_machine(jitter=0.003)
    original, *others = (replace(target, added_bytes=800_000 * bool(target.added_bytes)) for target in targets)
    costs = {original.name: 4.0, "fused": 4.04, "updatable": 4.24}
    calls = {name: machine.call(latency) for name, latency in costs.items()}
    run = BatchRun(
        batch_size=1, measurement=measure(calls, plan=Plan(num_queries=2000), instruments=machine.instruments)
    )
    fused, updatable = shares_of(others, run, BANDWIDTH)

    assert fused.share_ms == updatable.share_ms == pytest.approx(0.08)
    assert (fused.verdict, updatable.verdict) == ("within", "over")
    assert fused.measured_ms.value == pytest.approx(0.04, abs=0.01)
    assert fused.measured_ms.low < 0.04 < fused.measured_ms.high
    assert updatable.measured_ms.value == pytest.approx(0.24, abs=0.01)
    lines = head_shares_text([fused, updatable]).splitlines()
    assert lines[1].split()[:6] == ["fused", "0.80", "MB", "0.080", "ms", f"{fused.measured_ms.value:+.3f}"]
    assert [line.split()[-1] for line in lines[1:3]] == ["within", "over"]
    assert "10.0 GB/s" in lines[3]


def test_only_a_target_that_differs_in_its_rows_alone_is_compared(targets):
    original, fused, _ = targets

    assert is_like(fused, original)
    for change in ({"precision": "int8"}, {"runtime": "openvino"}, {"provider": "CUDA"}, {"added_bytes": 0}):
        assert not is_like(replace(fused, **change), original)
    assert not is_like(fused, replace(fused, name="another bundle"))


def test_without_the_original_or_batch_1_nothing_is_measured(targets, virtual_machine):
    machine = virtual_machine()
    calls = {target.name: machine.call(1.0) for target in targets}
    plan = Plan(num_queries=64, budget_s=1.0)
    run = BatchRun(batch_size=8, measurement=measure(calls, plan=plan, instruments=machine.instruments))

    assert head_shares(targets, [run]) == ()
    assert head_shares(targets[1:], [replace(run, batch_size=1)]) == ()
    assert [each.target for each in head_shares(targets, [replace(run, batch_size=1)])] == ["fused", "updatable"]


def test_the_share_is_read_right_after_an_answer_and_as_much_as_the_largest_head(targets, virtual_machine, monkeypatch):
    """The model has just filled the caches; long arrays, or arrays that are still there, would be read faster."""
    read, answered = [], []

    def watched(call, *, num_bytes, num_threads):
        call()
        read.append((num_bytes, num_threads, len(answered)))
        return BANDWIDTH

    monkeypatch.setattr(head_share, "bandwidth_after", watched)
    original, fused, updatable = targets
    watched_original = replace(original, answer=lambda images: answered.append(images.shape[0]))
    machine = virtual_machine()
    plan = Plan(num_queries=64, budget_s=1.0)
    calls = {target.name: machine.call(1.0) for target in targets}
    run = BatchRun(batch_size=1, measurement=measure(calls, plan=plan, instruments=machine.instruments))
    shares = head_shares([watched_original, fused, updatable], [run])

    width = 4 * fused.added_rows().shape[1]
    assert read == [(original.num_seen * width + updatable.added_bytes, 1, 1)]
    assert answered == [1]
    assert [each.share_ms for each in shares] == [1e3 * each.added_bytes / BANDWIDTH for each in shares]


def test_every_read_follows_other_work_and_all_threads_together_read_everything_once(monkeypatch):
    done = []
    reduce = np.maximum.reduce
    monkeypatch.setattr(
        bandwidth.np, "maximum", SimpleNamespace(reduce=lambda part: done.append(part.nbytes) or reduce(part))
    )
    found = bandwidth_after(lambda: done.append("answer"), num_bytes=4096, num_threads=2, num_reads=3)

    assert [each for each in done if each != 4] == ["answer", 2048, 2048] * 3
    assert done[:2] == ["answer", 4]  # the code is found before the clock starts
    assert 1e6 < found < 1e13
