"""Draw a comparison of methods: what was predicted without an image, and what was measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from icis_deploy.api.compare import ComparedMethod
from icis_deploy.common.files import write_file
from icis_deploy.errors import MissingDependencyError

PANELS = {
    "T": "unseen images,\namong unseen classes",
    "U": "unseen images,\namong all classes",
    "S": "seen images,\namong all classes",
    "H": "harmonic mean\nof U and S",
}
INK, FAINT, MEASURED = "#1e2026", "#8a8d96", "#116f5c"


def save_comparison_plot(path: Path, compared: Sequence[ComparedMethod]) -> None:
    """Draw one panel for each of T, U, S and H, methods below each other, and write it as a PNG.

    Args:
        path: The file; its folder exists.
        compared: At least one method, drawn in this order from the top.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        StorageError: If the file cannot be written; what was there before is still there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The plot is drawn with matplotlib, which is not installed.",
            hint="Install it: pip install 'icis-deploy[bench]'.",
        ) from error

    figure = Figure(figsize=(11, 1.6 + 0.42 * len(compared)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    heights = list(range(len(compared)))
    labels = [one.name if one.name == one.method else f"{one.name} ({one.method})" for one in compared]
    for index, (name, meaning) in enumerate(PANELS.items()):
        axes = figure.add_subplot(1, len(PANELS), index + 1)
        ranges = [getattr(one.estimate, name) for one in compared]
        for height, predicted in zip(heights, ranges, strict=True):
            axes.plot([100 * predicted.low, 100 * predicted.high], [height, height], color=FAINT, lw=3, alpha=0.45)
        predictions = [100 * one.value for one in ranges]
        axes.plot(predictions, heights, "|", color=FAINT, ms=13, mew=2.5, label="predicted, with 90 % interval")
        measured = [None if one.measured is None else getattr(one.measured, name) for one in compared]
        known = [(100 * value, height) for value, height in zip(measured, heights, strict=True) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), "o", color=MEASURED, ms=7, label="measured on images")
        axes.set_xlim(0, 100)
        axes.set_ylim(len(compared) - 0.4, -0.6)
        axes.set_yticks(heights, labels if index == 0 else [""] * len(heights), color=INK)
        axes.set_title(f"{name}, %\n{meaning}", fontsize=10, color=INK)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, words = axes.get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())
