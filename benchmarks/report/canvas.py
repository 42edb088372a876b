"""Draw with matplotlib, publish as SVG that belongs to the page: its fonts, its colours, light or dark.

matplotlib writes colours as numbers. Each colour that the page decides on is drawn as a number that nothing else uses,
and replaced by the page's variable in the text of the SVG; letters stay letters, to be read, found and copied.
"""

# Why: docs/decisions/0029.

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.report.merging import NUM_COLORS
from icis_deploy.errors import MissingDependencyError

WIDTH_IN = 5.2
"""Inches; at matplotlib's 72 points an inch, the width of a phone's screen, so that letters stay readable on one."""

FONT_PT = 11.5
SMALL_PT = 10.8

INK, MUTED, GRID, SURFACE = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{index:02x}" for index in range(NUM_COLORS))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface"} | {
    color: f"--series-{index}" for index, color in enumerate(SERIES)
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "icis-deploy",  # equal results give equal pages
    "font.size": SMALL_PT,
    "text.parse_math": False,  # a class called "$1" is a name, no formula
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": SMALL_PT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


class Canvas:
    """One chart with one pair of axes."""

    def __init__(self, *, height_in: float) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
        self.figure: Any = Figure(figsize=(WIDTH_IN, height_in), layout=layout)
        FigureCanvasSVG(self.figure)
        self.axes: Any = self.figure.add_subplot()

    def svg(self, name: str) -> str:
        """Return the chart as an `<svg>` element whose ids begin with `name`."""
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
        return _themed(file.getvalue(), name)


@contextmanager
def drawing() -> Iterator[type[Canvas]]:
    """Give the canvas, in this project's style.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            "A report needs matplotlib.",
            hint="Install it: pip install 'icis-deploy[bench]'.",
        ) from error
    with matplotlib.rc_context(STYLE):
        yield Canvas


def milliseconds_axis(axes: Any, values: Sequence[float]) -> None:
    """Make the horizontal axis one of times: logarithmic where they differ by more than a factor of 3, else linear."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if high > 3 * low:
        axes.set_xscale("log")
        decades = high / low > 300
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5), numticks=12))
        axes.set_xlim(low / 1.15, high * 1.15)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(low - 0.08 * (high - low or low), high + 0.08 * (high - low or low))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(plain_number)
    axes.grid(axis="x")


def plain_number(value: float, _position: int = 0) -> str:
    """Return a tick's label: 0.5, 20, 1,000; never a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _themed(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( width| height)="[0-9.]+pt"', "", svg, count=2)
    svg = re.sub(r"'?DejaVu Sans'?[^;\"]*(?=[;\"])", "var(--font)", svg)
    # Several charts share a page, and an id may be there once.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for number, variable in _VARIABLES.items():
        svg = svg.replace(number, f"var({variable})")
    return svg
