"""Where the time of a change goes."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyTimings:
    """Where the time of applying an update went, in milliseconds; the parts add up to the whole.

    Slots and journal are written while the model runs. What that takes is no part of the whole, unless it takes longer
    than the probe: then it is the time for which the probe had to be waited beyond its end.

    Example:
        timings = icis_deploy.Device.open("bundle").apply("new.icis").timings
        print(timings.verify_ms, timings.sync_ms, timings.total_ms)
    """

    verify_ms: float
    """Reading the file, waiting for the lock, checking signature and rules, and working out the new slots."""

    journal_ms: float
    """Writing slots and journal, as far as the model did not run meanwhile, and renaming, without the syncs."""

    sync_ms: float
    """Waiting for the disk, as far as the model did not run meanwhile."""

    probe_ms: float
    """Comparing the slots with their rows, without running the model."""

    inference_ms: float
    """Running the model for the probe."""

    swap_ms: float
    """Loading the slots into the runtime's memory and replacing the head state."""

    @property
    def total_ms(self) -> float:
        """The whole."""
        return self.work_ms + self.sync_ms + self.inference_ms

    @property
    def work_ms(self) -> float:
        """The whole without the disk's and the model's share: what this library adds."""
        return self.verify_ms + self.journal_ms + self.probe_ms + self.swap_ms


class Stopwatch:
    """Adds up the time between laps by name: the parts of `ApplyTimings`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(("verify", "journal", "sync", "probe", "inference", "swap"), 0.0)
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
        probe_seconds: float = 0.0,
        inference_seconds: float = 0.0,
    ) -> None:
        """Share out the laps `journal` and `probe` of a change that was written and probed side by side.

        Args:
            writing_seconds: The lap `journal`: how long it took to write, from the start of both.
            sync_seconds: How long the disk took in it.
            probe_seconds: How long the probe took, from the same start; the lap `probe` is what it took longer.
            inference_seconds: How long the model ran in it.
        """
        beside = min(writing_seconds, probe_seconds)
        self.move("journal", "probe", beside)
        self.move("journal", "sync", min(writing_seconds - beside, sync_seconds))
        self.move("probe", "inference", inference_seconds)

    def timings(self) -> ApplyTimings:
        """Return the parts."""
        return ApplyTimings(**{f"{name}_ms": 1e3 * seconds for name, seconds in self._seconds.items()})
