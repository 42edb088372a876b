"""Where the time of an update goes, where a change is written while it is tested."""

from __future__ import annotations

import pytest

from icis_deploy.runtime.changes import timings as module
from icis_deploy.runtime.changes.timings import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_what_is_written_while_the_model_runs_is_not_waited_for(clock):
    watch = Stopwatch()
    clock.now = 4.0
    watch.lap("journal")
    clock.now = 10.0
    watch.lap("self_test")
    watch.share(writing_seconds=4.0, sync_seconds=3.0, self_test_seconds=9.5, inference_seconds=8.0)

    timings = watch.timings()
    assert (timings.inference_ms, timings.self_test_ms, timings.sync_ms, timings.journal_ms) == (8e3, 2e3, 0, 0)
    assert timings.work_ms == 2e3


def test_a_disk_that_takes_longer_than_the_self_test_is_waited_for(clock):
    watch = Stopwatch()
    clock.now = 9.5
    watch.lap("journal")
    clock.now = 10.0
    watch.lap("self_test")
    watch.share(writing_seconds=9.5, sync_seconds=5.0, self_test_seconds=4.0, inference_seconds=3.0)

    timings = watch.timings()
    assert (timings.inference_ms, timings.self_test_ms) == (3e3, 1.5e3)
    assert (timings.sync_ms, timings.journal_ms) == (5e3, 500)
    assert timings.total_ms == 10e3


def test_without_a_self_test_all_of_the_disk_is_waited_for(clock):
    watch = Stopwatch()
    clock.now = 3.0
    watch.lap("journal")
    watch.share(writing_seconds=3.0, sync_seconds=2.0)

    timings = watch.timings()
    assert (timings.sync_ms, timings.journal_ms, timings.total_ms) == (2e3, 1e3, 3e3)
