"""Dead leaves: an image of ellipses and boxes that hide each other.

Leaves are drawn from back to front, but only their visible parts are painted: first which leaf every pixel shows, then
its colour. A pixel is covered some four times over.

Source: Lee, Mumford & Huang, "Occlusion Models for Natural Images", IJCV 2001 (discs of power-law radius that hide each
other).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Bool, Float32, Float64

Integers = NDArray[np.intp]

SMALLEST_LEAF = 0.03
LARGEST_LEAF = 0.4
"""Radii of leaves, as parts of the image's shorter side."""

NUM_LEAVES = 400
"""Leaves of an image; enough that hardly any of the ground remains visible."""

PART_OF_BOXES = 0.3
BOX_HALF = 0.8
"""Half a box's length in radii; half its width is `aspect` times that."""

SLOPE, GRAIN, TINT = 0.25, 0.06, 0.05
"""Standard deviations: of the brightness that a leaf gains over one radius, of a pixel's, and of a leaf's colour."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Leaves:
    """All leaves of an image from back to front, `(NUM_LEAVES,)` each; lengths in pixels."""

    radius: Float64
    centre_y: Float64
    centre_x: Float64
    cos: Float64
    sin: Float64
    aspect: Float64
    is_box: Bool
    slope: Float64
    tint: Float64
    """`(3, NUM_LEAVES)`: colour of each leaf at its centre, about 0..1."""

    @property
    def height(self) -> Float64:
        """`(NUM_LEAVES,)`: how far a leaf reaches up and down from its centre, in pixels."""
        ellipse = np.hypot(self.sin, self.aspect * self.cos)
        box = BOX_HALF * (np.abs(self.sin) + self.aspect * np.abs(self.cos))
        return self.radius * np.where(self.is_box, box, ellipse)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spans:
    """The leaves' rows of pixels, `(num_spans,)` each, a later one before the earlier ones as its leaf is."""

    leaf: Integers
    row: Integers
    first: Integers
    """Column of its first pixel."""

    count: Integers
    """How many pixels it has; 0 where a leaf passes between two pixels, or outside the image."""

    y_sin: Float64
    """Height over the leaf's centre in radii, times the sine of the leaf's angle."""


def dead_leaves(height: int, width: int, random: np.random.Generator) -> Float32:
    """Return ellipses and boxes that hide each other, each with a colour and a shading of its own.

    Radii are drawn from a density proportional to r^-3, which makes the image look alike at every scale.

    Returns:
        `(3, height, width)` float32 in 0..1.
    """
    ground = random.random((3, 1)).astype(np.float32)
    leaves = _draw_leaves(height, width, random)
    # Only the foremost leaf of a pixel shows, so one number for each pixel is the grain of all leaves.
    grain = random.standard_normal(height * width, dtype=np.float32)
    spans = _spans(leaves, height, width)
    shown = _foremost(spans, height, width)
    covered = np.flatnonzero(shown >= 0)
    image = np.empty((3, height * width), dtype=np.float32)
    image[:] = ground
    image[:, covered] = _colours(leaves, spans, shown[covered], covered % width, GRAIN * grain[covered])
    return np.clip(image, 0.0, 1.0, out=image).reshape(3, height, width)


def _draw_leaves(height: int, width: int, random: np.random.Generator) -> _Leaves:
    palette = random.random((1 + int(random.integers(3, 12)), 3))
    colour = random.integers(len(palette), size=NUM_LEAVES)
    uniform, centre_y, centre_x, turn, shape, kind = random.random((6, NUM_LEAVES))
    angle = turn * np.pi
    return _Leaves(
        radius=min(height, width) * (LARGEST_LEAF**-2 + uniform * (SMALLEST_LEAF**-2 - LARGEST_LEAF**-2)) ** -0.5,
        centre_y=centre_y * height,
        centre_x=centre_x * width,
        cos=np.cos(angle),
        sin=np.sin(angle),
        aspect=0.4 + 0.6 * shape,
        is_box=kind < PART_OF_BOXES,
        slope=SLOPE * random.standard_normal(NUM_LEAVES),
        tint=palette[colour].T + TINT * random.standard_normal((3, NUM_LEAVES)),
    )


def _spans(leaves: _Leaves, height: int, width: int) -> _Spans:
    """Cut all leaves into rows of pixels."""
    reach = leaves.height
    top = np.clip(np.ceil(leaves.centre_y - reach), 0, height).astype(np.intp)
    bottom = np.clip(np.floor(leaves.centre_y + reach) + 1, top, height).astype(np.intp)
    num_rows = bottom - top
    leaf = np.repeat(np.arange(NUM_LEAVES), num_rows)
    row = np.arange(len(leaf)) + np.repeat(top - (np.cumsum(num_rows) - num_rows), num_rows)
    radius, centre_x = leaves.radius[leaf], leaves.centre_x[leaf]
    y = (row - leaves.centre_y[leaf]) / radius
    left, right = _crossings(leaves, leaf, y)
    first = np.maximum(np.floor(centre_x + radius * left).astype(np.intp) + 1, 0)
    last = np.minimum(np.ceil(centre_x + radius * right).astype(np.intp) - 1, width - 1)
    return _Spans(
        leaf=leaf,
        row=row,
        first=first,
        count=np.maximum(last - first + 1, 0),
        y_sin=y * leaves.sin[leaf],
    )


def _crossings(leaves: _Leaves, leaf: Integers, y: Float64) -> tuple[Float64, Float64]:
    """Return where lines at heights `y` enter and leave their leaf, in radii from its centre.

    With `u = x cos + y sin` and `v = (y cos - x sin) / aspect`, an ellipse is `u^2 + v^2 < 1`, and a box is where both
    are under `BOX_HALF`. A line that misses leaves no later than it enters.
    """
    cos, sin, aspect = leaves.cos[leaf], leaves.sin[leaf], leaves.aspect[leaf]
    square = cos**2 + (sin / aspect) ** 2
    middle = y * cos * sin * (aspect**-2 - 1) / square
    half = np.sqrt(np.maximum(square - (y / aspect) ** 2, 0.0)) / square
    enter, leave = middle - half, middle + half
    box = np.flatnonzero(leaves.is_box[leaf])
    y, cos, sin, aspect = y[box], cos[box], np.maximum(sin[box], np.finfo(np.float32).tiny), aspect[box]
    ends, end_half = -y * sin / cos, BOX_HALF / np.abs(cos)
    sides, side_half = y * cos / sin, BOX_HALF * aspect / sin
    enter[box] = np.maximum(ends - end_half, sides - side_half)
    leave[box] = np.minimum(ends + end_half, sides + side_half)
    return enter, leave


def _foremost(spans: _Spans, height: int, width: int) -> Integers:
    """Return the index of the foremost span at every pixel, `(height * width,)`; -1 where the ground shows."""
    count = spans.count
    start = spans.row * width + spans.first - (np.cumsum(count) - count)
    pixel = np.repeat(start, count)
    pixel += np.arange(len(pixel))
    shown = np.full(height * width, -1, dtype=np.intp)
    np.maximum.at(shown, pixel, np.repeat(np.arange(len(count)), count))
    return shown


def _colours(leaves: _Leaves, spans: _Spans, shown: Integers, column: Integers, grain: Float32) -> Float32:
    """Return colours, `(3, num_pixels)`, not cut off.

    Args:
        leaves: All leaves.
        spans: Of all leaves.
        shown: `(num_pixels,)`, the span that a pixel shows.
        column: `(num_pixels,)`, where in its row it is.
        grain: `(num_pixels,)`, the brightness that a pixel has of its own.
    """
    leaf = spans.leaf[shown]
    along = column - leaves.centre_x[leaf]
    along /= leaves.radius[leaf]
    along *= leaves.cos[leaf]
    along += spans.y_sin[shown]
    along *= leaves.slope[leaf]
    along += grain
    colours = np.empty((3, len(shown)), dtype=np.float32)
    for channel, tint in zip(colours, leaves.tint, strict=True):
        np.add(tint[leaf], along, out=channel, casting="same_kind")
    return colours
