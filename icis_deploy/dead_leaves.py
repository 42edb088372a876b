"""Dead leaves: a picture of ellipses and boxes that hide each other.

Leaves are drawn from back to front, but only what is seen of them is painted: first which leaf every pixel shows, then
its colour. A pixel is covered some four times over, and by the boxes around leaves fifteen times.

Source: Lee, Mumford & Huang, "Occlusion Models for Natural Images", IJCV 2001 (discs of power-law radius that hide each
other).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Integers = NDArray[np.intp]

SMALLEST_LEAF = 0.03
LARGEST_LEAF = 0.4
"""Radii of leaves, as parts of the picture's shorter side."""

NUM_LEAVES = 400
"""Leaves of a picture; enough that next to nothing of the ground is left to see."""

PART_OF_BOXES = 0.3
BOX_HALF = 0.8
"""Half a box's length in radii; half its width is `aspect` times that."""

SLOPE, GRAIN, TINT = 0.25, 0.06, 0.05
"""Standard deviations: of the brightness that a leaf gains over one radius, of a pixel's, and of a leaf's colour."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Leaves:
    """All leaves of a picture from back to front, `(NUM_LEAVES,)` each; lengths in pixels."""

    radius: Float64
    centre_y: Float64
    centre_x: Float64
    cos: Float64
    sin: Float64
    aspect: Float64
    is_box: NDArray[np.bool_]
    slope: Float64
    tint: Float64
    """`(3, NUM_LEAVES)`."""

    top: Integers
    bottom: Integers
    left: Integers
    right: Integers
    """The rectangle that a leaf lies in, the last row and column excluded."""

    grain: Float64
    """Noise of all rectangles, one after the other."""

    first_grain: Integers
    """Where a leaf's part of `grain` begins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spans:
    """The leaves' rows of pixels, `(num_spans,)` each, a later one before the earlier ones as its leaf is."""

    leaf: Integers
    row: Integers
    first: Integers
    """The column that it begins in."""

    count: Integers
    """How many pixels it has; 0 for rows of the rectangle that the leaf does not reach."""

    y_sin: Float64
    """Height over the leaf's centre in radii, times the sine of its angle."""

    grain: Integers
    """Where in `_Leaves.grain` the noise of column 0 would be."""


def dead_leaves(height: int, width: int, random: np.random.Generator) -> Float32:
    """Return ellipses and boxes that hide each other, each with a colour and a shading of its own.

    Radii are drawn from a density proportional to r^-3, which makes the picture look alike at every scale.

    Returns:
        `(3, height, width)` float32 in 0..1.
    """
    ground = random.random((3, 1)).astype(np.float32)
    leaves = _draw_leaves(height, width, random)
    spans = _spans(leaves, width)
    shown = _foremost(spans, height, width)
    covered = np.flatnonzero(shown >= 0)
    image = np.empty((3, height * width), dtype=np.float32)
    image[:] = ground
    image[:, covered] = _colours(leaves, spans, shown[covered], covered % width)
    return np.clip(image, 0.0, 1.0, out=image).reshape(3, height, width)


def _draw_leaves(height: int, width: int, random: np.random.Generator) -> _Leaves:
    side = min(height, width)
    palette = random.random((1 + int(random.integers(3, 12)), 3))
    uniform = np.sort(random.random(NUM_LEAVES))
    radius = random.permutation(side * (LARGEST_LEAF**-2 + uniform * (SMALLEST_LEAF**-2 - LARGEST_LEAF**-2)) ** -0.5)
    drawn = _draw_one_by_one(1.5 * radius, height, width, len(palette), random)
    centre_y, centre_x, turn, shape, kind = np.array(drawn.uniforms).T
    top, bottom, left, right = np.array(drawn.bounds, dtype=np.intp).T
    first, end = np.array(drawn.normal_bounds, dtype=np.intp).T
    normal, angle = drawn.normal, turn * np.pi
    return _Leaves(
        radius=radius,
        centre_y=centre_y * height,
        centre_x=centre_x * width,
        cos=np.cos(angle),
        sin=np.sin(angle),
        aspect=0.4 + 0.6 * shape,
        is_box=kind < PART_OF_BOXES,
        slope=SLOPE * normal[first],
        tint=(palette[drawn.colour] + TINT * normal[end[:, None] + np.array([-3, -2, -1])]).T,
        top=top,
        bottom=bottom,
        left=left,
        right=right,
        grain=normal,
        first_grain=first + 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Drawn:
    """What is random in each leaf, in lists of `NUM_LEAVES`."""

    colour: list[int]
    uniforms: list[list[float]]
    """Centre y and x, angle, aspect, kind; in 0..1."""

    bounds: list[tuple[int, int, int, int]]
    """First row of the rectangle and the one after its last; columns likewise."""

    normal: Float64
    """Of all leaves one after the other: slope, grain of the rectangle, tint (3)."""

    normal_bounds: list[tuple[int, int]]
    """Where in `normal` a leaf's part begins, and ends."""


def _draw_one_by_one(reach: Float64, height: int, width: int, num_colours: int, random: np.random.Generator) -> _Drawn:
    """Draw one leaf after the other: how much is drawn for one depends on where it lies."""
    most = np.minimum(2 * reach + 2, height) * np.minimum(2 * reach + 2, width) + 4
    drawn = _Drawn(colour=[], uniforms=[], bounds=[], normal=np.empty(int(most.sum())), normal_bounds=[])
    start = 0
    for far in reach.tolist():
        drawn.colour.append(int(random.integers(num_colours)))
        uniforms = random.random(5).tolist()
        centre_y, centre_x = uniforms[0] * height, uniforms[1] * width
        top, bottom = max(0, int(centre_y - far)), min(height, int(centre_y + far) + 1)
        left, right = max(0, int(centre_x - far)), min(width, int(centre_x + far) + 1)
        end = start + (bottom - top) * (right - left) + 4
        random.standard_normal(out=drawn.normal[start:end])
        drawn.uniforms.append(uniforms)
        drawn.bounds.append((top, bottom, left, right))
        drawn.normal_bounds.append((start, end))
        start = end
    return drawn


def _spans(leaves: _Leaves, width: int) -> _Spans:
    """Cut all leaves into rows of pixels."""
    num_rows = leaves.bottom - leaves.top
    leaf = np.repeat(np.arange(NUM_LEAVES), num_rows)
    row = np.arange(len(leaf)) + np.repeat(leaves.top - (np.cumsum(num_rows) - num_rows), num_rows)
    radius, centre_x = leaves.radius[leaf], leaves.centre_x[leaf]
    y = (row - leaves.centre_y[leaf]) / radius
    left, right = _crossings(leaves, leaf, y)
    first = np.maximum(np.floor(centre_x + radius * left).astype(np.intp) + 1, 0)
    last = np.minimum(np.ceil(centre_x + radius * right).astype(np.intp) - 1, width - 1)
    widths = (leaves.right - leaves.left)[leaf]
    return _Spans(
        leaf=leaf,
        row=row,
        first=first,
        count=np.maximum(last - first + 1, 0),
        y_sin=y * leaves.sin[leaf],
        grain=leaves.first_grain[leaf] + (row - leaves.top[leaf]) * widths - leaves.left[leaf],
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


def _colours(leaves: _Leaves, spans: _Spans, shown: Integers, column: Integers) -> Float32:
    """Return colours, `(3, num_pixels)`, not cut off.

    Args:
        leaves: All leaves.
        spans: Of all leaves.
        shown: `(num_pixels,)`, the span that a pixel shows.
        column: `(num_pixels,)`, where in its row it is.
    """
    leaf = spans.leaf[shown]
    along = column - leaves.centre_x[leaf]
    along /= leaves.radius[leaf]
    along *= leaves.cos[leaf]
    along += spans.y_sin[shown]
    along *= leaves.slope[leaf]
    grain = leaves.grain[spans.grain[shown] + column]
    grain *= GRAIN
    along += grain
    colours = np.empty((3, len(shown)), dtype=np.float32)
    for channel, tint in zip(colours, leaves.tint, strict=True):
        np.add(tint[leaf], along, out=channel, casting="same_kind")
    return colours
