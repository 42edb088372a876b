"""Results of several runs and machines put together: what the page's tables and charts are made of.

Rules:

1. Results of machines with one fingerprint are of one device. Of several, names leave out what all of them end with;
   two devices of the same name get their fingerprints after it, a target that a device has measured twice the time of
   its run: no two things have the same name.
2. A target keeps its colour and its marker in every chart: the colour says which head in which runtime, the marker in
   which precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.machine.environment import Environment
from benchmarks.results.result import Result, images_per_s
from benchmarks.results.values import Target
from benchmarks.timing.comparison import Comparison
from benchmarks.timing.latency import LatencyReport
from icis_deploy.errors import UsageError

NUM_COLORS = 8
FIXED_COLORS = {("original", "onnxruntime"): 0, ("fused", "onnxruntime"): 1, ("updatable", "onnxruntime"): 2}
"""What nearly every page shows always looks the same, whatever else is on the page."""

PRECISION_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "s", "int8": "^"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine, and what ran on it."""

    label: str
    """What the page calls it; no other device is called so."""

    results: tuple[Result, ...]
    """At least one, in the order of time."""

    @property
    def environment(self) -> Environment:
        """The machine as the latest run found it."""
        return self.results[-1].environment

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What disturbed its runs, in words."""
        return tuple(
            f"{result.command}, batch {run.batch_size}: {sign}"
            for result in self.results
            for run in result.runs
            for sign in (*run.measurement.steadiness.throttling, *run.measurement.steadiness.interference)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A target on a device."""

    device: Device
    """The machine that it ran on."""

    result: Result
    """The run that it is of."""

    target: Target
    """The model in a runtime, with size, accuracy and start."""

    label: str
    """What the page calls it; no other entry of the device is called so."""

    color: int
    """Index of its colour in the palette of the page."""

    @property
    def marker(self) -> str:
        """Its marker, by matplotlib's names."""
        return PRECISION_MARKERS.get(self.target.precision, "D")

    @property
    def rows(self) -> Iterator[Row]:
        """Its rows of the table, by ascending batch size."""
        for batch_size, latency in self.result.latencies(self.target.name):
            comparison = self.result.comparison(self.target.name, batch_size)
            yield Row(entry=self, batch_size=batch_size, latency=latency, comparison=comparison)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A target on a device with one batch size."""

    entry: Entry
    """The target and the run that measured it."""

    batch_size: int
    """Images in a query."""

    latency: LatencyReport
    """Latency of a query: one batch of `batch_size` images."""

    comparison: Comparison | None
    """With the target that its run compares everything with; None for that one itself."""

    @property
    def images_per_s(self) -> float:
        """Throughput of one query after the other."""
        return images_per_s(self.latency, self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTarget:
    """A target that several devices have measured with one batch size."""

    name: str
    """Name of the target, the same on all of them."""

    batch_size: int
    """Images in a query."""

    rows: tuple[Row, ...]
    """The latest of each device, in the order of the devices; at least two."""


def shared_targets(entries: Sequence[Entry]) -> list[SharedTarget]:
    """Return what at least two devices have measured: the same name, precision and batch size, in the order of entries.

    A device that has measured one several times stands with its latest run.
    """
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for entry in entries:
        for row in entry.rows:
            key = (entry.target.name, entry.target.precision, row.batch_size)
            found.setdefault(key, {})[entry.device.label] = row  # results of a device are in the order of time
    return [
        SharedTarget(name=name, batch_size=batch_size, rows=tuple(rows.values()))
        for (name, _, batch_size), rows in found.items()
        if len(rows) > 1
    ]


def merge(results: Sequence[Result]) -> tuple[tuple[Device, ...], tuple[Entry, ...]]:
    """Return the devices and everything that was measured on them, in the order of the results.

    Raises:
        UsageError: If there are no results, or one is given twice.
    """
    if not results:
        raise UsageError(
            "There is nothing to report.",
            found=0,
            expected="at least 1",
            hint="Give at least one result.",
        )
    runs = Counter((result.environment.fingerprint, result.command, result.created) for result in results)
    (_, command, created), most = runs.most_common(1)[0]
    if most > 1:
        raise UsageError(
            f"The {command} result of {created} is given {most} times.",
            found=most,
            expected=1,
            hint="Give every result once.",
        )
    by_fingerprint: dict[str, list[Result]] = {}
    for result in results:
        by_fingerprint.setdefault(result.environment.fingerprint, []).append(result)
    labels = short_labels({fingerprint: group[-1].environment.name for fingerprint, group in by_fingerprint.items()})
    devices = tuple(
        Device(label=labels[fingerprint], results=tuple(sorted(group, key=lambda result: result.created)))
        for fingerprint, group in by_fingerprint.items()
    )
    colors: dict[tuple[str, str], int] = dict(FIXED_COLORS)
    return devices, tuple(entry for device in devices for entry in _entries_of(device, colors))


def short_labels(names: Mapping[str, str]) -> dict[str, str]:
    """Return what the page calls machines: their names without what all of them end with, no two the same.

    Args:
        names: Names such as "Cortex-A76, 4 cores, docker", by fingerprint.
    """
    parts = {fingerprint: name.split(", ") for fingerprint, name in names.items()}
    while (
        len(parts) > 1 and len({tuple(each[-1:]) for each in parts.values()}) == 1 and min(map(len, parts.values())) > 1
    ):
        parts = {fingerprint: each[:-1] for fingerprint, each in parts.items()}
    short = {fingerprint: ", ".join(each) for fingerprint, each in parts.items()}
    num_so_called = Counter(short.values())
    return {
        fingerprint: name if num_so_called[name] == 1 else f"{name} ({fingerprint[:4]})"
        for fingerprint, name in short.items()
    }


def _entries_of(device: Device, colors: dict[tuple[str, str], int]) -> Iterator[Entry]:
    times = Counter(target.name for result in device.results for target in result.targets)
    for result in device.results:
        for target in result.targets:
            run = f", {result.created[:16].replace('T', ' ')}" if times[target.name] > 1 else ""
            yield Entry(
                device=device,
                result=result,
                target=target,
                label=target.name + run,
                color=_color_of(target, colors),
            )


def _color_of(target: Target, colors: dict[tuple[str, str], int]) -> int:
    what = target.name if target.head_kind == "other" else target.head_kind
    if (what, target.runtime) not in colors:
        num_fixed = len(FIXED_COLORS)
        colors[what, target.runtime] = num_fixed + (len(colors) - num_fixed) % (NUM_COLORS - num_fixed)
    return colors[what, target.runtime]
