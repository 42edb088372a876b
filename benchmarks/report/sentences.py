"""What the charts say, in words that are computed from the same values; the most important sentence comes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from benchmarks.report.accuracy_intervals import Choice, Measure, accuracy_difference
from benchmarks.report.merging import Device, Entry, Row, SharedTarget
from benchmarks.report.numbers import (
    as_long,
    duration,
    durations,
    enumeration,
    percent,
    points,
    significant,
    size,
    times,
)
from benchmarks.results.values import (
    CLASS_UPDATE,
    PART_NAMES,
    Accuracy,
    ScalePoint,
    ScaleSeries,
    SeenCost,
    Timing,
    UpdateLatency,
)
from benchmarks.timing.comparison import MIN_ROUNDS, Comparison
from benchmarks.timing.percentiles import Interval


def say_distributions(rows: Sequence[Row]) -> list[str]:
    """Say which of the rows of one run and batch size is fastest, how they compare, and how long their tails are."""
    fastest = min(rows, key=lambda row: row.latency.median_ms.value)
    median = fastest.latency.median_ms
    said = [
        f"The fastest is {fastest.entry.label}: half of its queries of {images(fastest.batch_size)} are answered "
        f"within {duration(median.value)} (99 % interval {durations(median)})."
    ]
    compared = [row.comparison for row in rows if row.comparison is not None]
    if compared:
        verdicts = enumeration([say_verdict(each) for each in compared])
        said.append(f"Measured in turn with {compared[0].against}, {verdicts}.")
    tails = [
        (each.value_ms / row.latency.median_ms.value, row)
        for row in rows
        for each in row.latency.percentiles
        if each.percent == 99.0 and each.value_ms is not None
    ]
    if tails:
        ratio, row = max(tails, key=lambda tail: tail[0])
        said.append(f"The longest tail is that of {row.entry.label}: its p99 is {times(ratio)} its median.")
    else:
        needed = [each.num_needed for each in rows[0].latency.percentiles if each.percent == 99.0]
        said += [f"None has the {number:,} queries from which a p99 exists." for number in needed]
    return said


def say_disturbed(devices: Sequence[Device]) -> list[str]:
    """Say which machines were not quiet, and what may still be believed; nothing if all were."""
    signs = []
    for device in devices:
        if device.disturbances:
            where = f"{device.label}, " if len(devices) > 1 else ""
            more = f" and {len(device.disturbances) - 1} more" if len(device.disturbances) > 1 else ""
            signs.append(f"{where}{device.disturbances[0]}{more}")
    if not signs:
        return []
    return [
        f"Not a quiet machine: {'; '.join(signs)}.",
        "Times may be longer than they would be. What was measured in turn was slowed alike, so ratios and verdicts "
        "hold better. Repeat the run on a quiet machine before you rely on a time.",
    ]


def say_devices(shared: Sequence[SharedTarget]) -> list[str]:
    """Say which device is the fastest with each target that several have, and how much longer the slowest takes."""
    said = []
    for each in shared:
        ordered = sorted(each.rows, key=lambda row: row.latency.median_ms.value)
        (fastest, best), (slowest, worst) = (
            (row.entry.device.label, row.latency.median_ms) for row in (ordered[0], ordered[-1])
        )
        if best.high >= worst.low:
            said.append(f"With {each.name} no device is faster than the others: their 99 % intervals overlap.")
            continue
        said.append(
            f"With {each.name} {fastest} is the fastest, {duration(best.value)}; "
            f"{slowest} takes {times(worst.value / best.value)} as long."
        )
    said.append("Bars are medians, lines their 99 % intervals; devices are measured one after the other, not in turn.")
    return said


def say_cut_off(rows: Sequence[Row], limit_ms: float) -> list[str]:
    """Say how many queries were slower than a chart shows, if any were."""
    num_slower = sum(
        count
        for row in rows
        for low, count in zip(row.latency.histogram.edges_ms, row.latency.histogram.counts, strict=False)
        if low >= limit_ms
    )
    if not num_slower:
        return []
    slowest, num_queries = max(row.latency.max_ms for row in rows), sum(row.latency.num_queries for row in rows)
    were = "query was" if num_slower == 1 else "queries were"
    return [f"{num_slower:,} of {num_queries:,} {were} slower than is drawn, up to {duration(slowest)}."]


def say_verdict(comparison: Comparison) -> str:
    """Say how a target compares with the one that its run compares everything with."""
    ratio, label = comparison.ratio, comparison.label
    few = comparison.num_rounds < MIN_ROUNDS
    sure = f"{ratio.value:.3f}, needs {MIN_ROUNDS} rounds" if few else f"{ratio.low:.3f} to {ratio.high:.3f}"
    if comparison.verdict == "faster":
        return f"{label} is {times(1 / ratio.value)} as fast"
    if comparison.verdict == "slower":
        return f"{label} takes {times(ratio.value)} as long"
    if comparison.verdict == "equal":
        return f"{label} is as fast (ratio {sure})"
    return f"{label} is undecided (ratio {sure})"


def say_front(front: Sequence[Choice], measure: Measure) -> list[str]:
    """Say what stepping along the Pareto front gains and costs."""
    if len(front) == 1:
        (best,) = front
        figures = f"{measure} {percent(best.accuracy.value)} %, {duration(best.latency_ms.value)}"
        return [f"{best.entry.label} is the fastest, and none is more accurate: {figures}."]
    said = [
        f"On the Pareto front are {enumeration([each.entry.label for each in front])}: each is faster or more accurate"
    ]
    said[0] += " than any other."
    for faster, more_accurate in pairwise(front):
        ratio = more_accurate.latency_ms.value / faster.latency_ms.value
        overlap = faster.latency_ms.high >= more_accurate.latency_ms.low
        unsure = ", which their 99 % intervals do not show," if overlap else ""
        said.append(
            f"{faster.entry.label} is {times(ratio)} as fast as {more_accurate.entry.label}{unsure} and loses "
            f"{_say_loss(more_accurate, faster, measure)}."
        )
    return said


def _say_loss(more_accurate: Choice, faster: Choice, measure: Measure) -> str:
    loss = more_accurate.accuracy.value - faster.accuracy.value
    if loss < 0.0005:
        return f"less than 0.05 points of {measure}"
    lost = f"{points(loss)} of {measure}"
    difference = accuracy_difference(more_accurate.entry.target.accuracy, faster.entry.target.accuracy, measure)
    if difference is None:
        return lost
    if difference.low <= 0 <= difference.high:
        return f"{lost}, which these images cannot tell from nothing ({_between(difference)})"
    return f"{lost} ({_between(difference)})"


def _between(difference: Interval) -> str:
    return f"99 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}".replace("-", "−")


def say_accuracies(entries: Sequence[Entry]) -> list[str]:
    """Say what injection gains on unseen classes and costs on seen ones."""
    measured = [(entry.label, each) for entry in entries if (each := entry.target.accuracy) is not None]
    best_h = max((each.H for _, each in measured if each.H is not None), default=0.0)
    said: list[str] = []
    if best_h > 0:
        accuracy = next(each for _, each in measured if best_h == each.H)
        said += _say_best([name for name, each in measured if each == accuracy], accuracy)
    elif all(each.U is None for _, each in measured):
        said.append("No image is of an unseen class: S alone was measured.")
    elif all(each.S is None for _, each in measured):
        said.append("No image is of a seen class: U alone was measured.")
    else:
        kind = "a seen" if any(each.U for _, each in measured) else "an unseen"
        said.append(f"No image of {kind} class is recognised by {enumeration([name for name, _ in measured])}.")
    sources = sorted({each.source for _, each in measured})
    said.append(f"Measured on {enumeration(sources)}. Bars are macro averages; lines are 99 % intervals over classes.")
    return said


def _say_best(names: Sequence[str], accuracy: Accuracy) -> Iterator[str]:
    has = f"{enumeration(names)} {'has' if len(names) == 1 else 'have'}"
    yield (
        f"{has} the highest H, {percent(accuracy.H)} %: {percent(accuracy.U)} % of the images of unseen classes and "
        f"{percent(accuracy.S)} % of those of seen classes are recognised, choosing among all."
    )
    if accuracy.S is not None and accuracy.S_original is not None:
        change = accuracy.S - accuracy.S_original
        differs = f"{points(change)} {'less' if change < 0 else 'more'} than"
        same = "as much as"
        yield f"On seen classes that is {differs if abs(change) >= 0.0005 else same} with the original classes alone."
    yield (
        f"{accuracy.num_unseen_taken_for_seen:,} of {accuracy.num_unseen_images:,} images of unseen classes are taken "
        f"for seen ones, {accuracy.num_seen_taken_for_unseen:,} of {accuracy.num_seen_images:,} the other way."
    )


def say_trade_off(entries: Sequence[Entry]) -> list[str]:
    """Say what new classes cost the old ones, and what could be had for how much."""
    said: list[str] = []
    by_cost: dict[SeenCost, list[str]] = {}
    for entry in entries:
        cost = None if entry.target.accuracy is None else entry.target.accuracy.seen_cost
        if cost is not None:
            by_cost.setdefault(cost, []).append(entry.label)
    for cost, names in by_cost.items():
        interval = f"95 % interval {100 * cost.low:.1f} to {100 * cost.high:.1f}"
        allowed = "" if cost.max_seen_loss is None else f", of {points(cost.max_seen_loss)} allowed"
        verdict = {"over": ": too much", "within": "", "cannot tell": "", "no budget": ""}[cost.verdict]
        said.append(
            f"In {enumeration(names)} the new classes cost {points(max(cost.loss, 0.0))} of S ({interval}){allowed}"
            f"{verdict}."
        )
    best = max(
        (each for entry in entries if (each := entry.target.accuracy) is not None and each.budgets),
        key=lambda each: each.AUSUC or 0.0,
        default=None,
    )
    if best is not None:
        costs = enumeration([f"{100 * gain.max_seen_loss:.4g}" for gain in best.budgets])
        gains = enumeration([f"{percent(gain.U)} %" for gain in best.budgets])
        many = len(best.budgets) > 1
        said.append(
            f"For {costs} points of S at most there {'are' if many else 'is'} {gains} of U: the open circles, with the "
            f"best number added to all new logits, as these images show it."
        )
    said.append("Filled markers are the targets as they are; the dashed line is S with the original classes alone.")
    return said


def say_throughput(entries: Sequence[Entry]) -> list[str]:
    """Say what larger batches are worth."""
    rows = [row for entry in entries for row in entry.rows]
    best = max(rows, key=lambda row: row.images_per_s)
    own = [row for row in rows if row.entry is best.entry]
    gain = best.images_per_s / own[0].images_per_s
    rate = f"{significant(best.images_per_s)} images per second"
    said = f"The most is {rate}: {best.entry.label}, {images(best.batch_size)} in a query"
    if best is own[0]:
        return [f"{said}; with more it is slower."]
    return [f"{said}, {times(gain)} what it does with {images(own[0].batch_size)}."]


def say_scale(series: Sequence[ScaleSeries]) -> list[str]:
    """Say how latency grows with the number of classes, and how near it is to what the memory allows."""
    said: list[str] = []
    for each in series:
        first, last = each.points[0], each.points[-1]
        growth = last.latency_ms.value / first.latency_ms.value
        said.append(
            f"The {each.head_kind} head of {each.feature_dim:,} features, batch {each.batch_size}, takes "
            f"{duration(first.latency_ms.value)} with {first.num_classes:,} classes and "
            f"{duration(last.latency_ms.value)} with {last.num_classes:,}: "
            f"{times(last.num_classes / first.num_classes)} the classes, {times(growth)} the time. Reading its "
            f"{size(last.head_bytes)} at {each.bandwidth_bytes_per_s / 1e9:.1f} GB/s takes "
            f"{duration(last.roofline_ms)}: the head {_say_roofline(last)}."
        )
    return said


def _say_roofline(point: ScalePoint) -> str:
    ratio = point.latency_ms.value / point.roofline_ms
    return f"takes {as_long(ratio)}" if ratio >= 1 else f"is {as_long(ratio)}, as it comes from the cache"


def say_update(update: UpdateLatency) -> list[str]:
    """Say how long a class update takes, where its time goes, and how much longer the other ways take."""
    said, own = [], update.ways.get(CLASS_UPDATE)
    if own is not None:
        p99 = f"needs {own.p99.num_needed:,}" if own.p99.value_ms is None else duration(own.p99.value_ms)
        said.append(
            f"From the file of {update.num_new_classes} classes ({size(update.update_bytes)}) to the first answer with "
            f"them, a class update takes {duration(own.median_ms)} (median of {own.num_queries:,}; p99 {p99})."
        )
        others = [
            f"{way} {duration(timing.median_ms)} ({as_long(timing.median_ms / own.median_ms)})"
            for way, timing in update.ways.items()
            if way != CLASS_UPDATE
        ]
        if others:
            said.append(f"In comparison: {enumeration(others)}.")
    parts = {
        PART_NAMES.get(name, name).removesuffix("_ms").replace("_", " "): timing
        for name, timing in update.parts.items()
        if name != "work_ms"
    }
    if parts:
        longest = sorted(parts.items(), key=lambda part: -part[1].median_ms)[:3]
        said.append(
            f"Most of it is {enumeration([f'{name} ({duration(timing.median_ms)})' for name, timing in longest])}."
        )
    return said


def say_added_classes(
    times_by_target: Mapping[str, tuple[Timing, int]], how: Mapping[str, str], num_classes: int
) -> list[str]:
    """Say which target learns classes fastest, and what has to be done for it."""
    ordered = sorted(times_by_target, key=lambda name: times_by_target[name][0].median_ms)
    fastest, slowest = ordered[0], ordered[-1]
    said = [
        f"{num_classes} more classes are there soonest with {fastest}: "
        f"{duration(times_by_target[fastest][0].median_ms)} ({how[fastest]})."
    ]
    if slowest != fastest:
        ratio = times_by_target[slowest][0].median_ms / times_by_target[fastest][0].median_ms
        said.append(f"{slowest} takes {times(ratio)} as long ({how[slowest]}).")
    return said


def images(number: int) -> str:
    """Return a number of images."""
    return "1 image" if number == 1 else f"{number:,} images"
