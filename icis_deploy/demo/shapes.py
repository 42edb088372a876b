"""The shapes of the demo as polygons, all of one area."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icis_deploy.common.arrays import Float64


def rotation(angle: float) -> Float64:
    """Return the `(2, 2)` matrix that turns a column vector by `angle` radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def unit_area(corners: Sequence[Sequence[float]] | Float64) -> Float64:
    """Move a polygon's centre of area to the origin and scale it to the area of a disc of radius 1.

    Shapes of one size then have one area, so that size and shape stay apart.

    Args:
        corners: `(num_corners, 2)`.
    """
    points = np.asarray(corners, dtype=np.float64)
    following = np.roll(points, -1, axis=0)
    twice_areas = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]  # of the triangles to the origin
    centroid = ((points + following) * twice_areas[:, None]).sum(0) / (3 * twice_areas.sum())
    scaled: Float64 = (points - centroid) / np.sqrt(abs(twice_areas.sum()) / 2 / np.pi)
    return scaled


def regular(num_corners: int, *, inner: float | None = None) -> Float64:
    """Return a regular polygon that stands on a side or, with an inner radius, a star, of unit area."""
    radii = np.ones(num_corners) if inner is None else np.tile([1.0, inner], num_corners)
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii) - np.pi / 2
    return unit_area(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def heart(num_corners: int = 48) -> Float64:
    """Return a heart of unit area (the sextic curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t)."""
    t = np.arange(num_corners) * 2 * np.pi / num_corners
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return unit_area(np.stack([x, -y], axis=1))


def cross(arm: float = 0.36) -> Float64:
    """Return a plus sign of unit area whose arms are `2 * arm` wide and 1 long."""
    one_arm = np.array([(arm, -arm), (1, -arm), (1, arm)])
    return unit_area(np.concatenate([one_arm @ rotation(turns * np.pi / 2).T for turns in range(4)]))


SHAPES: dict[str, Float64] = {
    "circle": regular(48),
    "square": unit_area([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": regular(3),
    "star": regular(5, inner=0.45),
    "heart": heart(),
    "cross": cross(),
}
"""Each shape as a polygon `(num_corners, 2)` of unit area around its centre; y points down."""
