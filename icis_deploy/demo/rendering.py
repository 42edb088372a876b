"""Draw an image of a class: its attributes as they are, everything else by chance.

What a class fixes: shape, colour, texture, size, outline. What chance decides, for every image: position, rotation, hue
and size, the texture's scale, angle and phase, light, shadow, background, clutter, sensor noise. Numpy and Pillow only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from icis_deploy.common.arrays import Float32, UInt8
from icis_deploy.demo.shapes import SHAPES, rotation
from icis_deploy.demo.world import DemoClass

IMAGE_SIZE = 64
"""Width and height of an image in pixels."""

SUPERSAMPLING = 4
"""Shapes are drawn this many times larger and averaged down, which smooths their edges."""

HUES_DEG = {"red": 0.0, "orange": 27.0, "yellow": 54.0, "green": 120.0, "blue": 215.0, "purple": 285.0}
HUE_JITTER_DEG = 7.0

RADII_PX = {"small": (12.0, 15.0), "large": (20.5, 25.0)}
"""Range of the radius of a disc with the shape's area, in pixels."""


def render(item: DemoClass, seed: int | Sequence[int]) -> UInt8:
    """Draw one image of a class.

    Args:
        item: What to draw.
        seed: Decides all that the class does not; the same class and seed give the same bytes.

    Returns:
        `(IMAGE_SIZE, IMAGE_SIZE, 3)` uint8, RGB.
    """
    rng = np.random.default_rng(seed)
    radius = rng.uniform(*RADII_PX[item.size])
    slack = max(IMAGE_SIZE / 2 - radius * 1.25, 2.0)
    centre = IMAGE_SIZE / 2 + rng.uniform(-slack, slack, 2)
    turn = np.radians(rng.uniform(-30, 30))
    corners = centre + radius * SHAPES[item.shape] @ rotation(turn).T
    mask = coverage(corners)

    image = background(rng)
    image *= 1 - rng.uniform(0.15, 0.5) * shadow(mask, rng)[..., None]
    image = blend(image, surface(item, centre, turn, rng), mask)
    if item.outline == "outlined":
        ring = np.concatenate([corners, corners[:2]])  # the second corner again, so that the first gets its joint
        image = blend(image, grey(rng.uniform(0.02, 0.16)), stroke_coverage(ring, rng.uniform(2.2, 3.2)))
    return photograph(image, rng)


def render_classes(
    classes: Sequence[DemoClass], images_per_class: int, *, seed: int
) -> tuple[UInt8, NDArray[np.int64]]:
    """Draw the same number of images of every class.

    Args:
        classes: `(num_classes,)`.
        images_per_class: Images of each.
        seed: Give training and test images different ones.

    Returns:
        Images `(num_classes * images_per_class, IMAGE_SIZE, IMAGE_SIZE, 3)` uint8, class by class, and labels
        `(num_classes * images_per_class,)` int64, indices into `classes`.
    """
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), images_per_class)
    images = np.empty((len(labels), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index] = render(classes[int(label)], (seed, index))
    return images, labels


def coverage(corners: NDArray[np.float64]) -> Float32:
    """Return how much of each pixel a polygon covers, `(IMAGE_SIZE, IMAGE_SIZE)` float32 in 0..1.

    Args:
        corners: `(num_corners, 2)`, x and y in pixels.
    """
    canvas, points = supersampled(corners)
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return averaged_down(canvas)


def stroke_coverage(corners: NDArray[np.float64], width: float) -> Float32:
    """Return how much of each pixel an open line covers, `(IMAGE_SIZE, IMAGE_SIZE)` float32 in 0..1.

    Args:
        corners: `(num_corners, 2)`, x and y in pixels; they are rounded where the line turns.
        width: In pixels.
    """
    canvas, points = supersampled(corners)
    ImageDraw.Draw(canvas).line(points, fill=255, width=round(width * SUPERSAMPLING), joint="curve")
    return averaged_down(canvas)


def supersampled(corners: NDArray[np.float64]) -> tuple[Image.Image, list[tuple[float, float]]]:
    """Return an empty canvas and the corners on it, both `SUPERSAMPLING` times larger than the image."""
    canvas = Image.new("L", (IMAGE_SIZE * SUPERSAMPLING, IMAGE_SIZE * SUPERSAMPLING))
    return canvas, [(float(x), float(y)) for x, y in corners * SUPERSAMPLING]


def averaged_down(canvas: Image.Image) -> Float32:
    """Return a supersampled canvas in the image's size, 0..1."""
    averaged: Float32 = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)
    return averaged


def grey(tone: float) -> Float32:
    """Return a colour `(3,)` without a hue."""
    return np.full(3, tone, np.float32)


def blend(image: Float32, paint: Float32, mask: Float32) -> Float32:
    """Lay `paint` over `image` where `mask` is 1."""
    return image + mask[..., None] * (paint - image)


def surface(item: DemoClass, centre: NDArray[np.float64], turn: float, rng: np.random.Generator) -> Float32:
    """Return the coloured, textured, shaded surface of a thing, over the whole image.

    Args:
        item: Gives colour and texture.
        centre: `(2,)`, x and y in pixels; the texture is fixed to the thing.
        turn: The thing's turn in radians.
        rng: Decides the rest.

    Returns:
        `(IMAGE_SIZE, IMAGE_SIZE, 3)` float32.
    """
    hue = (HUES_DEG[item.colour] + rng.uniform(-HUE_JITTER_DEG, HUE_JITTER_DEG)) / 360 % 1
    saturation = rng.uniform(0.72, 0.95)
    value = rng.uniform(0.75, 0.98)
    main = np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
    if rng.random() < 0.5:
        second = main * np.float32(rng.uniform(0.3, 0.45))
    else:
        second = main + np.float32(rng.uniform(0.65, 0.8)) * (1 - main)
    x, y = local_pixels(centre, rng.uniform(-np.pi, np.pi))
    pattern = TEXTURES[item.texture](x, y, rng)
    flat = main + pattern[..., None] * (second - main)
    light = 1 + rng.uniform(0, 0.012) * (x * np.float32(np.cos(turn)) + y)
    return np.asarray(flat * light[..., None], np.float32)


def local_pixels(centre: NDArray[np.float64], turn: float) -> tuple[Float32, Float32]:
    """Return each pixel's position in a frame at `centre`, turned by `turn` radians.

    Returns:
        x and y, each `(IMAGE_SIZE, IMAGE_SIZE)` float32, in pixels.
    """
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32) + np.float32(0.5)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return cos * x + sin * y, cos * y - sin * x


def background(rng: np.random.Generator) -> Float32:
    """Return a soft, pale or dim ground of two muted colours, with a few strokes of clutter.

    Returns:
        `(IMAGE_SIZE, IMAGE_SIZE, 3)` float32 in 0..1.
    """
    value = rng.uniform(0.4, 0.92)
    first, second = (muted_color(np.clip(value + rng.uniform(-0.12, 0.12), 0, 1), rng) for _ in range(2))
    clouds = Image.fromarray(rng.random((5, 5), dtype=np.float32)).resize(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
    )
    mix = np.clip(np.asarray(clouds), 0, 1)[..., None]
    ground: Float32 = first + mix * (second - first)
    for _ in range(rng.integers(0, 4)):
        stroke = rng.uniform(0, IMAGE_SIZE, 2) + rng.normal(0, 14, (3, 2))
        tone = grey(value + rng.uniform(-0.25, 0.25))
        ground = blend(ground, tone, np.float32(0.8) * stroke_coverage(stroke, rng.uniform(1, 2.5)))
    return ground


def muted_color(value: float, rng: np.random.Generator) -> Float32:
    """Return a colour `(3,)` of any hue, so pale that it is none of the attribute's."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.28), value), np.float32)


def shadow(mask: Float32, rng: np.random.Generator) -> Float32:
    """Return the soft shadow that a thing throws, `(IMAGE_SIZE, IMAGE_SIZE)` float32 in 0..1."""
    shifted = np.roll(mask, tuple(rng.integers(1, 4, 2)), axis=(0, 1))
    blurred = Image.fromarray(np.uint8(shifted * 255)).filter(ImageFilter.BoxBlur(2))
    soft: Float32 = np.asarray(blurred, dtype=np.float32) / np.float32(255)
    return soft


def photograph(image: Float32, rng: np.random.Generator) -> UInt8:
    """Light the scene from one side, tint it, add sensor noise, and round to bytes.

    Args:
        image: `(IMAGE_SIZE, IMAGE_SIZE, 3)` float32.
        rng: Decides light, tint and noise.

    Returns:
        `(IMAGE_SIZE, IMAGE_SIZE, 3)` uint8.
    """
    ramp = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    along_x, along_y = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
    light = np.float32(rng.uniform(0.82, 1.1)) + along_x * ramp + along_y * ramp[:, None]
    tint = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    noise = np.float32(rng.uniform(0.01, 0.03)) * rng.standard_normal(image.shape, dtype=np.float32)
    exposed = np.clip(image * light[..., None] * tint + noise, 0, 1)
    pixels: UInt8 = (exposed * 255 + 0.5).astype(np.uint8)
    return pixels


def striped(x: Float32, y: Float32, rng: np.random.Generator) -> Float32:  # noqa: ARG001
    """Return parallel bands, 0..1."""
    return soft_step(np.sin(2 * np.pi * (x / rng.uniform(6.5, 8.5) + rng.random())))


def dotted(x: Float32, y: Float32, rng: np.random.Generator) -> Float32:
    """Return discs on a square grid, 0..1."""
    period = rng.uniform(6.8, 8.5)
    phase = rng.random(2)
    from_dot_x = (x / period + phase[0]) % 1 - 0.5
    from_dot_y = (y / period + phase[1]) % 1 - 0.5
    return soft_step(3 * (rng.uniform(0.25, 0.31) - np.hypot(from_dot_x, from_dot_y)))


def checked(x: Float32, y: Float32, rng: np.random.Generator) -> Float32:
    """Return a chessboard, 0..1."""
    period = rng.uniform(11.5, 14.5)
    phase = rng.random(2)
    waves = np.sin(2 * np.pi * (x / period + phase[0])) * np.sin(2 * np.pi * (y / period + phase[1]))
    return soft_step(1.5 * waves)


def plain(x: Float32, y: Float32, rng: np.random.Generator) -> Float32:  # noqa: ARG001
    """Return no pattern, 0."""
    return np.zeros_like(x)


def soft_step(values: NDArray[np.floating]) -> Float32:
    """Return 0 well below zero, 1 well above, and a ramp about one pixel wide between."""
    ramp: Float32 = np.clip(values * 1.6 + 0.5, 0, 1).astype(np.float32)
    return ramp


TEXTURES: dict[str, Callable[[Float32, Float32, np.random.Generator], Float32]] = {
    "plain": plain,
    "striped": striped,
    "dotted": dotted,
    "checked": checked,
}
"""Each texture as a function of a pixel's position on the thing: 0 shows the main colour, 1 the second one."""
