import colorsys

import numpy as np
import pytest

from icis_deploy.demo.rendering import HUES_DEG, IMAGE_SIZE, TEXTURES, coverage, render, render_classes, stroke_coverage
from icis_deploy.demo.shapes import SHAPES
from icis_deploy.demo.world import ATTRIBUTES, DemoClass

NUM_DRAWS = 12


def images_of(**values: str) -> np.ndarray:
    plain = {"size": "large", "outline": "bare", "texture": "plain", "colour": "red", "shape": "circle"}
    return np.stack([render(DemoClass(**{**plain, **values}), seed) for seed in range(NUM_DRAWS)])


def is_vivid(images: np.ndarray) -> np.ndarray:
    pixels = images.astype(int)
    return (pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.5 * pixels.max(axis=-1)


def roughness(image: np.ndarray) -> float:
    """Mean step between neighbours in the middle of a large thing."""
    half = IMAGE_SIZE // 2
    middle = image[half - 8 : half + 8, half - 8 : half + 8].mean(axis=-1)
    return float(np.abs(np.diff(middle, axis=0)).mean() + np.abs(np.diff(middle, axis=1)).mean())


def test_an_image_is_rgb_bytes_of_the_stated_size() -> None:
    image = render(DemoClass(size="small", outline="bare", texture="plain", colour="red", shape="star"), 0)
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert image.dtype == np.uint8


def test_the_same_class_and_seed_give_the_same_bytes_and_another_seed_another_image() -> None:
    assert np.array_equal(images_of(), images_of())
    assert len({image.tobytes() for image in images_of()}) == NUM_DRAWS


@pytest.mark.parametrize("colour", ATTRIBUTES["colour"])
def test_colour_shows_as_the_hue_of_the_vivid_pixels(colour: str) -> None:
    for image in images_of(colour=colour):
        red, green, blue = np.median(image[is_vivid(image)], axis=0) / 255
        hue_deg = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
        nearest = min(HUES_DEG, key=lambda name: abs((hue_deg - HUES_DEG[name] + 180) % 360 - 180))
        assert nearest == colour


def test_the_smallest_large_thing_covers_more_than_the_largest_small_one() -> None:
    covered = {size: is_vivid(images_of(size=size)).mean(axis=(1, 2)) for size in ATTRIBUTES["size"]}
    assert covered["large"].min() > covered["small"].max()


def test_an_outline_adds_dark_pixels() -> None:
    bare, outlined = ((images_of(outline=value).max(axis=-1) < 60).sum(axis=(1, 2)) for value in ATTRIBUTES["outline"])
    assert np.all(outlined > bare + 150)  # image by image: a background may be dark too


@pytest.mark.parametrize("texture", [name for name in ATTRIBUTES["texture"] if name != "plain"])
def test_a_texture_is_rougher_than_a_plain_surface(texture: str) -> None:
    plain = np.array([roughness(image) for image in images_of()])
    assert np.all([roughness(image) for image in images_of(texture=texture)] > 1.5 * plain)


@pytest.mark.parametrize("texture", ["striped", "dotted", "checked"])
def test_a_texture_shows_both_colours_in_a_fair_share(texture: str) -> None:
    y, x = np.mgrid[:64, :64].astype(np.float32)
    pattern = TEXTURES[texture](x, y, np.random.default_rng(0))
    assert pattern.min() == 0
    assert pattern.max() == 1
    assert 0.15 < pattern.mean() < 0.6


def test_classes_are_drawn_in_order_with_their_labels() -> None:
    classes = [
        DemoClass(size="large", outline="bare", texture="plain", colour=colour, shape="square") for colour in HUES_DEG
    ]
    images, labels = render_classes(classes, 3, seed=5)
    assert labels.tolist() == [label for label in range(len(classes)) for _ in range(3)]
    assert np.array_equal(images[4], render(classes[1], (5, 4)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_filled_shape_covers_its_area(shape: str) -> None:
    radius = 14.0
    covered = coverage(IMAGE_SIZE / 2 + radius * SHAPES[shape]).sum()
    assert covered == pytest.approx(np.pi * radius**2, rel=0.06)


def test_a_stroke_covers_its_length_times_its_width() -> None:
    assert stroke_coverage(np.array([[10.0, 32.0], [50.0, 32.0]]), 3.0).sum() == pytest.approx(120, rel=0.05)
