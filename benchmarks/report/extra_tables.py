"""Smaller tables of a report: scenarios under load, parity with other targets, where the time goes on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.report.merging import Device, Entry
from benchmarks.report.numbers import UNKNOWN, milliseconds, percentile, significant


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleTable:
    """A table of texts."""

    title: str
    """What it shows."""

    words: str
    """How to read it, in a sentence."""

    titles: tuple[str, ...]
    """`(num_columns,)`."""

    num_texts: int
    """So many columns from the left are texts; the others are numbers and stand at the right."""

    rows: tuple[tuple[str, ...], ...]
    """`(num_rows, num_columns)`."""


def extra_tables(devices: Sequence[Device], entries: Sequence[Entry]) -> list[SimpleTable]:
    """Return the tables for which there is anything to show."""
    tables = (
        SimpleTable(
            title="Under load",
            words="Scenarios of MLPerf LoadGen, and class updates between requests. An invalid run says nothing: it "
            "broke a rule.",
            titles=("Scenario", "Target", "Device", "Valid", "Queries", "Images/s", "p50 ms", "p90 ms", "p99 ms"),
            num_texts=4,
            rows=tuple(_scenario_rows(devices)),
        ),
        SimpleTable(
            title="Parity",
            words="How near logits are to another target's on the same inputs, in standard deviations of the latter.",
            titles=("Target", "Against", "Inputs", "Classes", "Same top-1 %", "Greatest error", "p99.9 error"),
            num_texts=2,
            rows=tuple(_parity_rows(entries)),
        ),
        SimpleTable(
            title="Where the time goes",
            words="Medians, on devices with memory of their own.",
            titles=("Target", "Device", "Batch", "To the device ms", "Compute ms", "Back ms"),
            num_texts=2,
            rows=tuple(_phase_rows(devices)),
        ),
    )
    return [table for table in tables if table.rows]


def _scenario_rows(devices: Sequence[Device]) -> Iterator[tuple[str, ...]]:
    for device in devices:
        for each in (scenario for result in device.results for scenario in result.scenarios):
            latency = each.latency
            median = UNKNOWN if latency is None else milliseconds(latency.median_ms)
            found = {} if latency is None else {p.percent: percentile(p) for p in latency.percentiles}
            tails = (found.get(percent, UNKNOWN) for percent in (90.0, 99.0))
            valid = "yes" if each.valid else f"no: {'; '.join(each.reasons)}"
            figures = (f"{each.num_queries:,}", significant(each.samples_per_s), median, *tails)
            yield (each.name, each.target, device.label, valid, *figures)


def _parity_rows(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        for each in entry.target.parity:
            counts = (f"{each.num_images:,}", f"{each.num_classes:,}", f"{100 * each.agreement:.2f}")
            yield (
                entry.label,
                each.against,
                *counts,
                *(f"{error:.1e}" if error else "0" for error in (each.max_scaled_error, each.p999_scaled_error)),
            )


def _phase_rows(devices: Sequence[Device]) -> Iterator[tuple[str, ...]]:
    for device in devices:
        for each in (phases for result in device.results for phases in result.phases):
            times = (each.host_to_device_ms, each.compute_ms, each.device_to_host_ms)
            yield (each.target, device.label, str(each.batch_size), *(milliseconds(time.value) for time in times))
