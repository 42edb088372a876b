"""A JPEG file decoded at a part of its size: never smaller than what it is resized to, and the same picture."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from icis_deploy.images.inputs import InputForm, prepare
from icis_deploy.images.preprocessing import Preprocessing


def settings_of(resize, crop, **changes):
    return Preprocessing(resize=resize, crop=crop, mean=(0,) * 3, std=(1,) * 3, **changes)


def slope(width, height):
    """A picture that is another one wherever it is turned."""
    rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None]
    pixels = np.stack(np.broadcast_arrays(rows, columns, rows * columns / 255), axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(image, **saved):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **saved)
    return file.getvalue()


def decoded_size(data, preprocessing):
    """Return width and height at which Pillow decodes a file."""
    with Image.open(io.BytesIO(data)) as image:
        preprocessing.crop_image(image, reduced_decode=True)
        return image.size


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    pad=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_it_is_the_smallest_size_that_is_no_smaller_than_what_it_is_resized_to(width, height, resize, pad):
    data, preprocessing = jpeg(slope(width, height)), settings_of(resize, (4, 5), pad_to_square=pad)
    reduced = decoded_size(data, preprocessing)
    before = (max(width, height),) * 2 if pad else (width, height)
    if isinstance(resize, tuple):
        scaled = (resize[1], resize[0])
    else:
        scaled = tuple(max(1, resize * side // min(before)) for side in before)

    room = [side // wanted for side, wanted in zip(before, scaled, strict=True)]
    part = next((each for each in (8, 4, 2) if each <= min(*room, width, height)), 1)
    assert reduced == (-(-width // part), -(-height // part))
    if part > 1:
        shown = (max(reduced),) * 2 if pad else reduced
        assert all(side >= wanted for side, wanted in zip(shown, scaled, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_the_same_picture(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(slope(160, 96), exif=exif)
    preprocessing = settings_of(20, (20, 30), exif_orientation=True)
    with Image.open(io.BytesIO(data)) as whole, Image.open(io.BytesIO(data)) as part:
        expected = preprocessing.crop_pixels(whole).astype(int)
        found = preprocessing.crop_pixels(part, reduced_decode=True).astype(int)
        assert (whole.size, part.size) == ((160, 96), (40, 24))

    assert np.abs(found - expected).mean() < 3
    assert (found != expected).any()


@pytest.mark.parametrize("changes", [{"antialias": "torch"}, {"pad_to_square": True}, {"interpolation": "lanczos"}])
def test_the_other_settings_are_kept(changes):
    data, preprocessing = jpeg(slope(400, 241)), settings_of(96, 96, **changes)
    with Image.open(io.BytesIO(data)) as whole, Image.open(io.BytesIO(data)) as part:
        expected = preprocessing.crop_image(whole).astype(float)
        assert np.abs(preprocessing.crop_image(part, reduced_decode=True) - expected).mean() < 6


def test_where_there_is_no_room_and_in_other_formats_nothing_changes(tmp_path):
    form = InputForm(shape=(3, 24, 24), preprocessing=settings_of(24, 24))
    reduced = InputForm(shape=(3, 24, 24), preprocessing=settings_of(24, 24), reduced_decode=True)
    slope(100, 80).save(tmp_path / "large.png")
    (tmp_path / "small.jpg").write_bytes(jpeg(slope(47, 40)))
    (tmp_path / "large.jpg").write_bytes(jpeg(slope(100, 80)))
    picture = slope(100, 80)

    for value in (tmp_path / "large.png", tmp_path / "small.jpg", jpeg(slope(47, 40)), picture, np.asarray(picture)):
        np.testing.assert_array_equal(prepare([value], reduced, keys=["x"]), prepare([value], form, keys=["x"]))
    for value in (tmp_path / "large.jpg", jpeg(slope(100, 80))):
        assert (prepare([value], reduced, keys=["x"]) != prepare([value], form, keys=["x"])).any()


def test_a_picture_that_the_caller_has_open_stays_as_it_is():
    form = InputForm(shape=(3, 24, 24), preprocessing=settings_of(24, 24), reduced_decode=True)
    with Image.open(io.BytesIO(jpeg(slope(200, 160)))) as picture:
        prepare([picture], form, keys=["x"])
        assert picture.size == (200, 160)


@pytest.mark.parametrize(
    ("preprocessing", "obstacle"),
    [
        (settings_of(None, 24), "no resize"),
        (settings_of(32, 24, interpolation="nearest"), "single pixels"),
        (settings_of(32, 24, antialias="off"), "single pixels"),
    ],
)
def test_settings_that_leave_no_room_are_named_and_nothing_is_reduced(preprocessing, obstacle):
    assert obstacle in preprocessing.obstacle_to_reduced_decode
    assert decoded_size(jpeg(slope(400, 300)), preprocessing) == (400, 300)
