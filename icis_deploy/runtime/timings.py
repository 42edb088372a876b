"""Where the time of a change goes."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyTimings:
    """Where the time of applying an update went, in milliseconds; the parts add up to the whole."""

    verify_ms: float
    """Reading the file, waiting for the lock, checking signature and rules, and working out the new slots."""

    journal_ms: float
    """Writing slots and journal and renaming, without the syncs."""

    sync_ms: float
    """Waiting for the disk."""

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
    """Adds up the time between laps by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def timings(self, *, sync_seconds: float, inference_seconds: float) -> ApplyTimings:
        """Return the laps `verify`, `journal`, `probe` and `swap`, less what syncs and inferences took of them."""
        laps = {name: self.seconds.get(name, 0.0) for name in ("verify", "journal", "probe", "swap")}
        return ApplyTimings(
            verify_ms=1e3 * laps["verify"],
            journal_ms=1e3 * (laps["journal"] - sync_seconds),
            sync_ms=1e3 * sync_seconds,
            probe_ms=1e3 * (laps["probe"] - inference_seconds),
            inference_ms=1e3 * inference_seconds,
            swap_ms=1e3 * laps["swap"],
        )
