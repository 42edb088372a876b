"""A machine in virtual time: only its own work moves its clock, so nothing here depends on the real one."""

import math

import numpy as np
import pytest

from benchmarks.machine.monitor import MachineState
from benchmarks.timing.rounds import Instruments
from testing.exported_bundles import export_bundles


class VirtualMachine:
    """Runs calls of known latency, as unevenly as a shared machine does if it is asked to.

    Args:
        seed: Of all chance.
        jitter: Standard deviation of the logarithm of a latency, for each query alone.
        wander: Standard deviation of the steps, one a query, in which the whole machine becomes faster and slower; half
            of the way is taken back in 70 of them.
        interruption_share: Share of queries during which something else gets the processor, for up to 6 ms.
        slowdown: Function from seconds to the factor by which everything takes longer; by default 1.
    """

    def __init__(self, *, seed=0, jitter=0.0, wander=0.0, interruption_share=0.0, slowdown=None):
        self.now_ns = 0
        self.jitter, self.wander, self.interruption_share, self.slowdown = jitter, wander, interruption_share, slowdown
        self.log_speed = 0.0
        self.random = np.random.default_rng(seed)
        self.chances = iter(())
        self.state = MachineState()

    def chance(self):
        """Return two normal and two uniform numbers."""
        drawn = next(self.chances, None)
        if drawn is None:
            columns = [*self.random.normal(size=(2, 4096)).tolist(), *self.random.random((2, 4096)).tolist()]
            self.chances = zip(*columns, strict=True)
            drawn = next(self.chances)
        return drawn

    def spend(self, latency_ns):
        """Let a piece of work take its time."""
        jitter, step, uniform, length = self.chance()
        self.log_speed = 0.99 * self.log_speed + self.wander * step
        latency_ns *= math.exp(self.jitter * jitter + self.log_speed)
        if self.slowdown is not None:
            latency_ns *= self.slowdown(self.now_ns / 1e9)
        if uniform < self.interruption_share:
            latency_ns += 6e6 * length
        self.now_ns += int(latency_ns)

    def call(self, latency_ms, *, slow_share=0.0, slow_factor=10):
        """Return a callable of this latency, of whose calls a share takes so many times longer."""

        def work():
            is_slow = slow_share > 0 and self.chance()[2] < slow_share
            self.spend(latency_ms * 1e6 * (slow_factor if is_slow else 1))

        return work

    @property
    def instruments(self):
        return Instruments(clock=lambda: self.now_ns, probe=lambda: self.spend(100_000), read_state=lambda: self.state)


@pytest.fixture
def virtual_machine():
    """The class, so that a test can make machines of several kinds."""
    return VirtualMachine


@pytest.fixture(scope="session")
def tiny_bundles(tiny_project, tmp_path_factory):
    """The tiny project's bundles, fused and updatable, with the unseen classes in them; not to be written to."""
    return export_bundles(tiny_project, tmp_path_factory.mktemp("bundles"))
