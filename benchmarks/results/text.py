"""A result as tables for people at a terminal; `report` makes the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.results.result import Result, images_per_s
from benchmarks.results.values import BatchRun, HeadShare, Phases, ScaleSeries, Scenario, Target
from benchmarks.timing.comparison import MIN_ROUNDS, Comparison
from benchmarks.timing.latency import LatencyReport, Measurement
from icis_deploy.common.terminal_text import columns, percent

NO_LABELLED_IMAGES = "no labelled images were given (--images)"
"""Why a result of `bench` has no accuracy: on inputs from a seed there are no right answers."""


def text_of(result: Result) -> str:
    """Return everything that a person wants to see first: the machine, speed, size, accuracy, what disturbed."""
    blocks = [f"{result.environment.name} ({result.environment.fingerprint})"]
    blocks += [run_text(run) for run in result.runs]
    if result.head_shares:
        blocks.append(head_shares_text(result.head_shares))
    if result.phases:
        blocks.append(phases_text(result.phases))
    if result.targets:
        blocks.append(targets_text(result.targets))
    if any(target.accuracy or target.parity for target in result.targets):
        blocks.append(correctness_text(result.targets))
    if any(target.add_classes for target in result.targets):
        blocks.append(adding_text(result.targets))
    if result.scale:
        blocks += [scale_text(series) for series in result.scale]
    if result.scenarios:
        blocks.append(scenarios_text(result.scenarios))
    left_out = result.settings.get("left_out")
    if isinstance(left_out, Mapping):
        blocks += [f"{name} was left out: {why}" for name, why in left_out.items()]
    blocks += list(missing_texts(result.targets))
    return "\n\n".join(blocks)


def missing_texts(targets: Sequence[Target]) -> Iterator[str]:
    """Yield what is missing of targets, those that miss the same for the same reason together."""
    names: dict[tuple[str, str], list[str]] = {}
    for target in targets:
        for missing in target.missing.items():
            names.setdefault(missing, []).append(target.name)
    for (name, why), of in names.items():
        yield f"{', '.join(of)}: no {name}: {why}"


def run_text(run: BatchRun) -> str:
    """Return the latencies of one batch size, and how they compare."""
    measurement = run.measurement
    # The first comparison of a target is the one that all have; further ones have a line of their own.
    compared = {comparison.label: comparison for comparison in reversed(measurement.comparisons)}
    further = [each for each in measurement.comparisons if each is not compared[each.label]]
    rows = [[f"batch {run.batch_size}", "median", "99 % interval", "p90", "p99", "images/s", "ratio", "verdict"]]
    for latency in measurement.latencies:
        rows.append(latency_row(latency, run.batch_size, compared.get(latency.label)))
    means = (meaning_of(each, measurement) for each in compared.values())
    pairs = (f"{each.label} / {each.against}: {ratio_text(each)} {each.verdict}" for each in further)
    lines = [
        columns(rows, right=[1, 2, 3, 4, 5, 6]),
        *(f"  {note}" for note in (*means, *pairs, *notes_of(measurement))),
    ]
    return "\n".join(lines)


def latency_row(latency: LatencyReport, batch_size: int, comparison: Comparison | None) -> list[str]:
    """Return one target's cells."""
    median = latency.median_ms
    shown = {each.percent: each.text for each in latency.percentiles}
    return [
        latency.label,
        f"{median.value:.3f} ms",
        f"{median.low:.3f} - {median.high:.3f}",
        shown[90.0],
        shown[99.0],
        f"{images_per_s(latency, batch_size):.1f}",
        "" if comparison is None else ratio_text(comparison),
        "" if comparison is None else comparison.verdict,
    ]


def meaning_of(comparison: Comparison, measurement: Measurement) -> str:
    """Return what a verdict means for whoever must choose, in a sentence."""
    label, against, margin = comparison.label, comparison.against, percent(comparison.margin)
    if comparison.verdict == "equal":
        return f"{label} is as fast as {against}, to within {margin}: choose by size and accuracy, not by speed"
    if comparison.verdict == "inconclusive":
        if comparison.num_rounds < MIN_ROUNDS:
            more = f"there were {comparison.num_rounds} rounds of the {MIN_ROUNDS} that a verdict needs"
        else:
            more = f"the interval still holds both less and more than {margin} of difference"
        return f"{label} against {against} is not decided: {more}; measure for longer, on a quiet machine"
    medians = {each.label: each.median_ms.value for each in measurement.latencies}
    difference_ms = abs(comparison.ratio.value - 1) * medians[against]
    word, cost = ("slower", "costs") if comparison.verdict == "slower" else ("faster", "saves")
    return f"{label} is {word} than {against} by more than {margin}: it {cost} about {difference_ms:.3f} ms a query"


def ratio_text(comparison: Comparison) -> str:
    """Return a ratio with its interval, or how many rounds one needs."""
    ratio = comparison.ratio
    if comparison.num_rounds < MIN_ROUNDS:
        return f"{ratio.value:.3f} (needs {MIN_ROUNDS} rounds)"
    return f"{ratio.value:.3f} ({ratio.low:.3f} - {ratio.high:.3f})"


def notes_of(measurement: Measurement) -> Iterator[str]:
    """Yield what a reader must know before believing the figures."""
    yield (
        f"{measurement.num_rounds} round{'s' * (measurement.num_rounds != 1)} in {measurement.duration_s:.0f} s, "
        f"{'as precise as asked' if measurement.stopped_by == 'precise' else 'until the time was used up'}"
    )
    yield from measurement.steadiness.throttling
    yield from measurement.steadiness.interference
    for latency in measurement.latencies:
        if not latency.warm_up.stable:
            yield f"{latency.label} had not become stable when its warm-up ended"
        if latency.drift is not None and latency.drift.verdict != "steady":
            yield f"{latency.label} was {latency.drift.verdict}: {100 * latency.drift.change.value:+.0f} % over the run"


def head_shares_text(shares: Sequence[HeadShare]) -> str:
    """Return what the added rows cost, compared with reading their bytes."""
    rows = [["added rows, batch 1", "bytes", "their share", "measured", "99 % interval", "of share", "verdict"]]
    for each in shares:
        measured = each.measured_ms
        rows.append(
            [
                each.target,
                f"{each.added_bytes / 1e6:.2f} MB",
                f"{each.share_ms:.3f} ms",
                f"{measured.value:+.3f} ms",
                f"{measured.low:+.3f} to {measured.high:+.3f}",
                f"{measured.value / each.share_ms:.1f} x",
                each.verdict,
            ]
        )
    speed = f"{shares[0].bandwidth_bytes_per_s / 1e9:.1f} GB/s"
    notes = (
        f"  compared with the original; their share: bytes over {speed}, at which a head is read right after an answer",
        "  measured with all that a bundle does more than the original, such as choosing classes (export --top)",
    )
    return "\n".join((columns(rows, right=range(1, 6)), *notes))


def phases_text(phases: Sequence[Phases]) -> str:
    """Return where the time goes on a device with memory of its own."""
    rows = [["on the device", "batch", "input there", "compute", "logits back"]]
    for each in phases:
        parts = (each.host_to_device_ms, each.compute_ms, each.device_to_host_ms)
        rows.append([each.target, str(each.batch_size), *(f"{part.value:.3f} ms" for part in parts)])
    return columns(rows, right=range(1, 5))


def targets_text(targets: Sequence[Target]) -> str:
    """Return what targets are, and what it costs to start them."""
    rows = [["target", "head", "precision", "classes", "size", "load", "first answer", "cold start", "peak memory"]]
    for target in targets:
        medians = {} if target.startup is None else target.startup.medians
        memory = medians.get("memory_peak_bytes")
        rows.append(
            [
                target.name,
                target.head_kind,
                target.precision,
                str(target.num_classes),
                f"{target.size_bytes / 1e6:.1f} MB",
                *(milliseconds(medians.get(name)) for name in ("load_ms", "first_query_ms", "cold_start_ms")),
                "-" if memory is None else f"{memory / 1e6:.0f} MB",
            ]
        )
    return columns(rows, right=range(3, 9))


def correctness_text(targets: Sequence[Target]) -> str:
    """Return how accurate targets are, and how close their logits are to the first's."""
    measures = [name for name in "TUSH" if any(getattr(each.accuracy, name, None) is not None for each in targets)]
    has_parity = any(target.parity for target in targets)
    rows = [["target", *measures, *["same answer", "max error"] * has_parity]]
    for target in targets:
        parity = target.parity[0] if target.parity else None
        compared = ["-", "-"] if parity is None else [percent(parity.agreement), f"{parity.max_scaled_error:.1e}"]
        shown = (percent(getattr(target.accuracy, name, None)) for name in measures)
        rows.append([target.name, *shown, *compared * has_parity])
    sources = {target.accuracy.source for target in targets if target.accuracy}
    sources |= {parity.source for target in targets for parity in target.parity}
    notes = [f"  on {', '.join(sorted(sources))}"]
    if has_parity:
        notes[0] += (
            "; same answer, max error: compared with the first, over its classes; errors in standard deviations of its "
            "logits"
        )
    if not any(target.accuracy for target in targets):
        notes.append(f"  accuracy was not measured: {NO_LABELLED_IMAGES}")
    return "\n".join([columns(rows, right=range(1, len(rows[0]))), *notes])


def scenarios_text(scenarios: Sequence[Scenario]) -> str:
    """Return how targets did under load."""
    rows = [["scenario", "target", "valid", "queries", "images/s", "median", "p90", "p99"]]
    for each in scenarios:
        shown = {} if each.latency is None else {p.percent: p.text for p in each.latency.percentiles}
        median = "-" if each.latency is None else f"{each.latency.median_ms:.3f} ms"
        rows.append(
            [
                each.name,
                each.target,
                "yes" if each.valid else "NO",
                str(each.num_queries),
                f"{each.samples_per_s:.1f}",
                median,
                shown.get(90.0, "-"),
                shown.get(99.0, "-"),
            ]
        )
    notes = [f"  {each.name}, {each.target}: {reason}" for each in scenarios for reason in each.reasons]
    return "\n".join([columns(rows, right=range(3, 8)), *notes])


def adding_text(targets: Sequence[Target]) -> str:
    """Return how long it takes to add classes, the fastest way first."""
    known = [(target.name, target.add_classes) for target in targets if target.add_classes is not None]
    known.sort(key=lambda pair: pair[1].timing.median_ms)
    rows = [["add classes", "classes", "median", "times", "what it takes"]]
    rows += [
        [name, str(each.num_classes), f"{each.timing.median_ms:.1f} ms", str(each.timing.num_queries), each.how]
        for name, each in known
    ]
    return columns(rows, right=[1, 2, 3])


def scale_text(series: ScaleSeries) -> str:
    """Return latency and memory of a head against its classes, with the roofline."""
    rows = [[f"{series.head_kind} head", "bytes", "median", "99 % interval", "roofline", "of roofline", "peak memory"]]
    for point in series.points:
        median = point.latency_ms
        rows.append(
            [
                f"{point.num_classes} classes",
                f"{point.head_bytes / 1e6:.1f} MB",
                f"{median.value:.3f} ms",
                f"{median.low:.3f} - {median.high:.3f}",
                f"{point.roofline_ms:.3f} ms",
                f"{median.value / point.roofline_ms:.2f} x",
                "-" if point.memory_bytes is None else f"{point.memory_bytes / 1e6:.0f} MB",
            ]
        )
    note = (
        f"  {series.feature_dim} features, batch {series.batch_size}, {series.num_threads} threads; "
        f"{series.bandwidth_bytes_per_s / 1e9:.1f} GB/s from memory"
    )
    return f"{columns(rows, right=range(1, 7))}\n{note}"


def milliseconds(value: float | None) -> str:
    """Return a time with its unit, or a dash where it is unknown."""
    return "-" if value is None else f"{value:.1f} ms"
