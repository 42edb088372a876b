"""Is a result worse than an earlier one of the same machine?

Rules:

1. A latency is worse if its median is longer by more than what is allowed and the two 99 % intervals do not touch: what
   noise explains is no regression.
2. Accuracy, size of files and peak memory are worse if they are so by more than what is allowed, as a fraction of the
   earlier figure.
3. Seen classes lose too much to new ones if the whole 95 % interval of their loss is over the budget that was asked
   for, whatever they lost in the earlier result. Where none was asked for, it is the budget that a bundle's updates
   state, and only a loss that is greater than in the earlier result counts: nobody asked anew.
4. Only like is compared with like: the same machine (unless the user says otherwise), target, runtime, provider,
   threads and batch size. What the earlier result measured and this one did not is an error, not a pass. All of it is
   known before anything is measured, and checked then, not after minutes of measuring: `check_comparable`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.machine.environment import Environment
from benchmarks.results.result import Result
from benchmarks.results.values import Target
from benchmarks.timing.latency import LatencyReport
from icis_deploy.errors import IncompatibleError

if TYPE_CHECKING:
    from benchmarks.bench.opened import OpenTarget

ACCURACIES = ("T", "U", "S", "H")
Kind = Literal["latency", "accuracy", "seen-loss", "size", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """One figure that became worse."""

    kind: Kind
    """What it is a figure of."""

    target: str
    """Name of the target."""

    what: str
    """Which figure, in words."""

    before: float
    """In the earlier result: milliseconds, bytes, or a fraction of 1."""

    after: float
    """In the new result, in the same unit."""

    change: float
    """By how much it is worse, as a fraction of the earlier figure; of a seen loss as a fraction of 1."""

    @property
    def text(self) -> str:
        """One line for people."""
        if self.kind == "seen-loss":
            before, after = (f"{100 * value:.1f}" for value in (self.before, self.after))
            return f"{self.target}: {self.what} went from {before} to {after} points"
        before, after = (figure_text(value, self.kind) for value in (self.before, self.after))
        return f"{self.target}: {self.what} went from {before} to {after}, {100 * self.change:.1f} % worse"


def figure_text(value: float, kind: Kind) -> str:
    """Return a figure with its unit."""
    if kind == "latency":
        return f"{value:.3f} ms"
    return f"{100 * value:.1f} %" if kind == "accuracy" else f"{value / 1e6:.2f} MB"


def find_regressions(
    result: Result,
    baseline: Result,
    *,
    max_regression: float,
    any_machine: bool = False,
    max_seen_loss: float | None = None,
) -> tuple[Regression, ...]:
    """Return every figure that is worse than in an earlier result.

    Args:
        result: What was measured now.
        baseline: The earlier result.
        max_regression: How much worse is allowed, as a fraction: 0.05 for 5 %.
        any_machine: Whether results of different machines may be compared.
        max_seen_loss: What was asked for when `result` was measured, fraction of 1: more is too much, even if the
            earlier result lost as much. `None` if nothing was.

    Example:
        before, now = (icis_deploy.results.load_result(path) for path in ("before.json", "now.json"))
        for regression in icis_deploy.results.find_regressions(now, before, max_regression=0.05):
            print(regression.text)

    Raises:
        IncompatibleError: If the results are of different machines, or something was measured in another way or not at
            all.
    """
    check_comparable(
        baseline,
        result.environment,
        result.targets,
        [run.batch_size for run in result.runs],
        {target.name: target.accuracy.source for target in result.targets if target.accuracy is not None},
        any_machine=any_machine,
    )
    found: list[Regression] = []
    for before in baseline.targets:
        after = result.target(before.name)
        found += worse_latencies(before.name, result, baseline, max_regression)
        found += worse_accuracies(before, after, max_regression)
        found += worse_seen_losses(before, after, is_asked=max_seen_loss is not None)
        found += worse_sizes(before, after, max_regression)
    return tuple(found)


def check_comparable(
    baseline: Result,
    environment: Environment,
    targets: Sequence[Target | OpenTarget],
    batch_sizes: Collection[int],
    sources: Mapping[str, str],
    *,
    any_machine: bool = False,
) -> None:
    """Check that all that an earlier result measured is measured again, and in the same way.

    Args:
        baseline: The earlier result.
        environment: The machine now.
        targets: What is measured now.
        batch_sizes: Images in its queries.
        sources: What accuracy is measured on, by target; a target without accuracy is not in it.
        any_machine: Whether results of different machines may be compared.

    Raises:
        IncompatibleError: If not.
    """
    if baseline.command != "bench":
        raise IncompatibleError(
            f"The baseline is a result of {baseline.command}, which measures something else.",
            found=baseline.command,
            expected="bench",
            hint="Give one of bench.",
        )
    if environment.fingerprint != baseline.environment.fingerprint and not any_machine:
        raise IncompatibleError(
            f"The baseline is of another machine: {baseline.environment.name} ({baseline.environment.fingerprint}); "
            f"this is {environment.name} ({environment.fingerprint}).",
            found=baseline.environment.fingerprint,
            expected=environment.fingerprint,
            hint="Measure the baseline here, or give `any_machine=True` to compare them all the same.",
        )
    by_name = {target.name: target for target in targets}
    for before in baseline.targets:
        check_alike(before, by_name.get(before.name))
        if before.accuracy is not None:
            check_source(before.name, before.accuracy.source, sources.get(before.name))
    missing = {run.batch_size for run in baseline.runs} - set(batch_sizes)
    if missing:
        raise IncompatibleError(
            f"The baseline has batch size {min(missing)}, which is not measured.",
            found=tuple(batch_sizes),
            expected=tuple(sorted(missing)),
            hint=f"Give `batch_sizes={(*sorted({*missing, *batch_sizes}),)}`.",
        )


def check_alike(before: Target, after: Target | OpenTarget | None) -> None:
    """Check that a target is measured again, and runs in the same way.

    Raises:
        IncompatibleError: If not.
    """
    if after is None:
        raise IncompatibleError(
            f"The baseline has the target {before.name!r}, which is not measured.",
            expected=before.name,
            hint="Measure it too.",
        )
    for name in ("runtime", "provider", "num_threads", "precision"):
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            raise IncompatibleError(
                f"{before.name}: {name} is {now!r}; in the baseline it was {was!r}.",
                found=now,
                expected=was,
                where=before.name,
                hint="Measure in the same way, or make a new baseline.",
            )


def check_source(target: str, was: str, now: str | None) -> None:
    """Check that accuracy is measured, and on the same inputs.

    Raises:
        IncompatibleError: If not.
    """
    if now != was:
        found = "not measured" if now is None else f"measured on {now}"
        raise IncompatibleError(
            f"{target}: accuracy is {found}; in the baseline it was measured on {was}.",
            found=found,
            expected=was,
            where=target,
            hint="Give the same `images`.",
        )


def worse_latencies(target: str, result: Result, baseline: Result, max_regression: float) -> Iterator[Regression]:
    """Yield the latencies of a target that are worse."""
    now: dict[int, LatencyReport] = dict(result.latencies(target))
    for batch_size, was in baseline.latencies(target):
        before, after = was.median_ms, now[batch_size].median_ms
        change = after.value / before.value - 1
        if change > max_regression and after.low > before.high:
            what = f"median latency at batch {batch_size}"
            yield Regression(
                kind="latency", target=target, what=what, before=before.value, after=after.value, change=change
            )


def worse_accuracies(before: Target, after: Target, max_regression: float) -> Iterator[Regression]:
    """Yield the accuracies of a target that are worse."""
    if before.accuracy is None or after.accuracy is None:
        return
    for name in ACCURACIES:
        was, now = getattr(before.accuracy, name), getattr(after.accuracy, name)
        if was and now is not None and 1 - now / was > max_regression:
            yield Regression(
                kind="accuracy", target=before.name, what=name, before=was, after=now, change=1 - now / was
            )


def worse_seen_losses(before: Target, after: Target, *, is_asked: bool) -> Iterator[Regression]:
    """Yield the loss of seen accuracy to new classes if it is over its budget; unless asked for, also than before."""
    was, now = (None if target.accuracy is None else target.accuracy.seen_cost for target in (before, after))
    if now is None or now.max_seen_loss is None or now.verdict != "over":
        return
    lost_before = 0.0 if was is None else was.loss
    if is_asked or now.loss > lost_before:
        yield Regression(
            kind="seen-loss",
            target=before.name,
            what=f"seen accuracy lost to new classes, of which {100 * now.max_seen_loss:.4g} points are allowed,",
            before=lost_before,
            after=now.loss,
            change=now.loss - lost_before,
        )


def worse_sizes(before: Target, after: Target, max_regression: float) -> Iterator[Regression]:
    """Yield size and peak memory of a target where they are worse; memory only where both results have it."""
    was_bytes, now_bytes = (
        None if target.startup is None else target.startup.medians["memory_peak_bytes"] for target in (before, after)
    )
    figures: list[tuple[Kind, str, float | None, float | None]] = [
        ("size", "size of the files", before.size_bytes, after.size_bytes),
        ("memory", "peak memory", was_bytes, now_bytes),
    ]
    for kind, what, was, now in figures:
        if was and now is not None and now / was - 1 > max_regression:
            yield Regression(kind=kind, target=before.name, what=what, before=was, after=now, change=now / was - 1)
