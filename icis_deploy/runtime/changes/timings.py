"""Where the time of a change goes."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyTimings:
    """Where the time of applying an update went, in milliseconds; the parts add up to the whole.

    Where the self-test has to run the model, slots and journal are written meanwhile. Writing then counts only as far
    as it takes longer than the self-test, which is the time that the caller waits for it.

    Example:
        timings = icis_deploy.Device.open("bundle").apply("new.icis").timings
        print(timings.verify_ms, timings.sync_ms, timings.total_ms)
    """

    verify_ms: float
    """Reading the file, waiting for the lock, checking signature and rules, and working out the new slots."""

    journal_ms: float
    """Writing slots and journal, as far as the model did not run meanwhile, and renaming, without the syncs."""

    sync_ms: float
    """Waiting for the disk's syncs, as far as the model did not run meanwhile."""

    self_test_ms: float
    """Comparing the slots with their rows, without running the model."""

    inference_ms: float
    """Running the model for the self-test; 0 where the runtime's memory is compared instead."""

    swap_ms: float
    """Loading the slots into the runtime's memory and replacing the head state."""

    @property
    def total_ms(self) -> float:
        """All parts together, in milliseconds."""
        return self.work_ms + self.sync_ms + self.inference_ms

    @property
    def work_ms(self) -> float:
        """What this library itself adds, in milliseconds: all parts but those of the disk and the model."""
        return self.verify_ms + self.journal_ms + self.self_test_ms + self.swap_ms


class Stopwatch:
    """Adds up the time between laps by name: the parts of `ApplyTimings`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(("verify", "journal", "sync", "self_test", "inference", "swap"), 0.0)
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """Add the time since the last lap to `name`, and return it."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self._seconds[name] += elapsed
        return elapsed

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count some of the time of `source` as that of `target`."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def share(
        self,
        *,
        writing_seconds: float,
        sync_seconds: float,
        self_test_seconds: float = 0.0,
        inference_seconds: float = 0.0,
    ) -> None:
        """Share out the laps `journal` and `self_test` of a change that was written while it was tested.

        Args:
            writing_seconds: The lap `journal`: how long it took to write, from the start of both.
            sync_seconds: How long the disk took in it.
            self_test_seconds: How long the self-test took, from the same start; the lap `self_test` is what it took
                longer than the writing.
            inference_seconds: How long the model ran in it.
        """
        overlap = min(writing_seconds, self_test_seconds)
        self.move("journal", "self_test", overlap)
        self.move("journal", "sync", min(writing_seconds - overlap, sync_seconds))
        self.move("self_test", "inference", inference_seconds)

    def timings(self) -> ApplyTimings:
        """Return the parts."""
        return ApplyTimings(**{f"{name}_ms": 1e3 * seconds for name, seconds in self._seconds.items()})
