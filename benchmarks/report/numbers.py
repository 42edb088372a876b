"""Numbers for readers: three significant digits, and a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.timing.percentiles import Interval, Percentile

UNKNOWN = "–"
"""Stands where something was not measured."""


def milliseconds(value: float) -> str:
    """Return milliseconds without their unit."""
    return significant(value)


def significant(value: float) -> str:
    """Return a number with three significant digits, and no power of ten."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def duration(value_ms: float) -> str:
    """Return a time with the unit in which it is easiest to read."""
    if value_ms < 1:
        return f"{significant(1000 * value_ms)} µs"
    return f"{significant(value_ms)} ms" if value_ms < 1000 else f"{significant(value_ms / 1000)} s"


def size(num_bytes: float) -> str:
    """Return a size in megabytes, or in kilobytes below one."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} kB"


def percent(fraction: float | None) -> str:
    """Return a fraction of 1 in percent, without the sign."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f}"


def points(fraction: float) -> str:
    """Return a difference of two fractions in percentage points."""
    value = f"{100 * abs(fraction):.1f}"
    return f"{value} point" if value == "1.0" else f"{value} points"


def percentile(value: Percentile) -> str:
    """Return a percentile in milliseconds, or how many queries it would take."""
    return f"needs {value.num_needed:,}" if value.value_ms is None else milliseconds(value.value_ms)


def durations(value: Interval) -> str:
    """Return the two ends of an interval of times."""
    return f"{duration(value.low)} to {duration(value.high)}"


def times(ratio: float) -> str:
    """Return a ratio above 1 as "1.6 times"."""
    return f"{ratio:.2f} times" if ratio < 1.2 else f"{ratio:.1f} times" if ratio < 20 else f"{ratio:,.0f} times"


def as_long(ratio: float) -> str:
    """Return a ratio of times as "1.6 times as long", or, below 1, as "2.0 times as fast"."""
    return f"{times(ratio)} as long" if ratio >= 1 else f"{times(1 / ratio)} as fast"


def enumeration(parts: Sequence[str]) -> str:
    """Return parts as "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
