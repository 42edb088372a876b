import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from icis_deploy.errors import ImageError, IncompatibleError, LoadError
from icis_deploy.images import preprocessing
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing, preprocessing_from_json

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def make_preprocessing(**changes):
    return Preprocessing(**({"resize": None, "crop": 2, "mean": MEAN, "std": STD} | changes))


def unchanged(crop, resize=None, **changes):
    """Settings that leave values in 0..1 as they are."""
    channels = 1 if changes.get("color") == "L" else 3
    return Preprocessing(resize=resize, crop=crop, mean=(0,) * channels, std=(1,) * channels, **changes)


@pytest.fixture
def rgb():
    """4 x 3 pixels, every value another."""
    return np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7


# --- pixels -------------------------------------------------------------------------------------------------------


def test_values_are_scaled_normalised_and_laid_out_as_channels_first(rgb):
    prepared = make_preprocessing(crop=2).prepare(Image.fromarray(rgb))

    # The centre of 4 x 3 starts at column 1 and at row 0 (half a pixel, rounded to even).
    assert prepared.dtype == np.float32
    assert prepared.shape == make_preprocessing().input_shape == (3, 2, 2)
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                pixel = int(rgb[row, column + 1, channel])
                expected = (pixel / 255 - MEAN[channel]) / STD[channel]
                assert prepared[channel, row, column] == pytest.approx(expected, abs=1e-6)


def test_nhwc_is_the_same_with_channels_last(rgb):
    first = make_preprocessing(layout="NCHW").prepare(Image.fromarray(rgb))
    last = make_preprocessing(layout="NHWC").prepare(Image.fromarray(rgb))

    assert last.shape == make_preprocessing(layout="NHWC").input_shape == (2, 2, 3)
    assert last.flags.c_contiguous
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(last, first.transpose(1, 2, 0))


def test_bgr_reverses_the_channels_and_mean_and_std_are_in_that_order(rgb):
    prepared = make_preprocessing(color="BGR").prepare(Image.fromarray(rgb))
    reversed_image = make_preprocessing().prepare(Image.fromarray(rgb[:, :, ::-1].copy()))

    np.testing.assert_array_equal(prepared, reversed_image)


def test_grey_is_the_luma_of_the_colours(rgb):
    prepared = unchanged(2, color="L").prepare(Image.fromarray(rgb))
    luma = rgb[:2, 1:3] @ [0.299, 0.587, 0.114] / 255

    assert prepared.shape == (1, 2, 2)
    np.testing.assert_allclose(prepared[0], luma, atol=1 / 255)


def test_a_batch_is_normalised_as_single_images_are(rgb):
    preprocessing = make_preprocessing(crop=3, layout="NHWC")
    pixels = rgb[None, :, :3].astype(np.float32) / 255

    expected = (rgb[:, :3] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(preprocessing.normalize(pixels)[0], expected, atol=1e-6)


# --- size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "resize", "resized"),
    [
        ((100, 50), 25, (50, 25)),
        ((50, 100), 25, (25, 50)),
        ((101, 50), 25, (50, 25)),
        ((99, 50), 25, (49, 25)),
        ((50, 50), 25, (25, 25)),
        ((33, 77), 32, (32, 74)),
        ((10, 7), 14, (20, 14)),
        ((1000, 1), 8, (8000, 8)),
    ],
)
def test_the_short_side_is_resized_and_the_long_one_rounded_down(size, resize, resized):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    crop = min(resized)
    prepared = unchanged(crop, resize).prepare(image)

    expected = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    top, left = round((resized[1] - crop) / 2), round((resized[0] - crop) / 2)
    expected = expected[top : top + crop, left : left + crop]
    np.testing.assert_allclose(prepared, expected.transpose(2, 0, 1) / 255, atol=1e-6)


def test_halving_averages_with_a_triangle_as_wide_as_two_new_pixels():
    # Bilinear with antialiasing, from its definition: weights 1, 3, 3, 1 around each new pixel, cut off at the border.
    line = np.array([0, 80, 160, 240, 40, 120, 200, 16], dtype=np.uint8)
    image = Image.fromarray(np.repeat(line[None, :, None], 8, axis=0).repeat(3, axis=2))
    prepared = unchanged(4, 4).prepare(image)

    expected = []
    for new in range(4):
        weights = {old: {0: 3, 1: 1}[int(abs(old + 0.5 - (2 * new + 1)))] for old in range(2 * new - 1, 2 * new + 3)}
        inside = {old: weight for old, weight in weights.items() if 0 <= old < 8}
        expected.append(sum(weight * int(line[old]) for old, weight in inside.items()) / sum(inside.values()))
    np.testing.assert_allclose(prepared[0, 0] * 255, expected, atol=0.51)


def centre_crop_by_definition(pixels, side):
    """A centre crop as torchvision defines it: pad to the crop, the odd pixel behind; then cut, half to even."""
    height, width = pixels.shape[:2]
    pad = [max(side - length, 0) for length in (height, width)]
    pixels = np.pad(pixels, [(each // 2, (each + 1) // 2) for each in pad] + [(0, 0)])
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_the_centre_is_cut_out_and_a_small_picture_gets_a_black_border(width, height, side):
    pixels = np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)
    prepared = unchanged(side, layout="NHWC").prepare(Image.fromarray(pixels))

    np.testing.assert_allclose(prepared * 255, centre_crop_by_definition(pixels, side), atol=1e-4)


# --- kinds of image ---------------------------------------------------------------------------------------------

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGBa"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
def test_pictures_of_any_mode_are_prepared(mode, color):
    image = Image.fromarray(GREY)
    for step in {"PA": ["P"], "HSV": ["RGB"], "RGBa": ["RGBA"], "YCbCr": ["RGB"]}.get(mode, []):
        image = image.convert(step)
    prepared = unchanged(8, color=color).prepare(image.convert(mode))

    tolerance = 1 if mode == "1" else 0.02  # black and white points, which only are like the grey from afar
    assert prepared.mean() == pytest.approx(GREY.mean() / 255, abs=0.05)
    np.testing.assert_allclose(prepared, np.broadcast_to(GREY / 255, prepared.shape), atol=tolerance)


def test_sixteen_bits_are_scaled_to_eight_and_not_clipped():
    prepared = unchanged(8, color="L").prepare(Image.fromarray(GREY.astype(np.uint16) * 257))

    np.testing.assert_allclose(prepared[0], GREY / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused(dtype):
    with pytest.raises(ImageError, match=r"its pixels are 32-bit \([IF]\) and have no known range; save it with 8"):
        unchanged(8).prepare(Image.fromarray(GREY.astype(dtype)))


def test_a_palette_with_transparency_gives_its_colours():
    image = Image.fromarray(GREY).convert("P")
    image.info["transparency"] = bytes(range(64))

    np.testing.assert_allclose(unchanged(8).prepare(image)[0], GREY / 255, atol=0.02)


def test_the_image_itself_is_not_changed(rgb):
    image = Image.fromarray(rgb)
    make_preprocessing(color="BGR", resize=2).prepare(image)

    np.testing.assert_array_equal(np.asarray(image), rgb)


# --- settings -----------------------------------------------------------------------------------------------------

SETTINGS = st.builds(
    lambda color, statistics, **others: Preprocessing(
        color=color,
        mean=[mean for mean, _ in statistics][: 1 if color == "L" else 3],
        std=[std for _, std in statistics][: 1 if color == "L" else 3],
        **others,
    ),
    color=st.sampled_from(["RGB", "BGR", "L"]),
    statistics=st.lists(st.tuples(st.floats(-10, 10), st.floats(1e-3, 10)), min_size=3, max_size=3),
    resize=st.none() | st.integers(1, 4096),
    crop=st.integers(1, 4096),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)


@given(SETTINGS)
def test_settings_survive_json(settings):
    assert preprocessing_from_json(json.loads(json.dumps(settings.to_json())), where="here") == settings


def test_settings_are_read_from_a_file_and_what_is_left_out_has_its_default(tmp_path):
    (tmp_path / "preprocess.json").write_text('{"crop": 224, "mean": [0, 0, 0], "std": [1, 1, 1]}')

    assert load_preprocessing(tmp_path / "preprocess.json") == unchanged(224)


WRONG = [
    ({"color": "HSV"}, r"Preprocessing has color 'HSV' and layout 'NCHW'; expected one of \('RGB', 'BGR', 'L', "),
    ({"layout": "CHW"}, r"Preprocessing has color 'RGB' and layout 'CHW'"),
    ({"color": "L"}, r"Preprocessing has 3 means and 3 deviations; L has 1 channels\."),
    ({"mean": [0.5]}, r"Preprocessing has 1 means and 3 deviations; RGB has 3 channels\."),
    ({"std": [1, 1]}, r"Preprocessing has 3 means and 2 deviations"),
    ({"std": [1, 0, 1]}, r"Preprocessing has mean \(.*\) and std \(1\.0, 0\.0, 1\.0\); expected finite numbers"),
    ({"std": [1, -1, 1]}, r"Preprocessing has mean .* expected finite numbers, and std above 0\."),
    ({"std": [1, 1e-50, 1]}, r"Preprocessing has mean .* expected finite numbers"),
    ({"std": [1, float("nan"), 1]}, r"Preprocessing has mean .* expected finite numbers"),
    ({"mean": [0, float("inf"), 0]}, r"Preprocessing has mean .* expected finite numbers"),
    ({"mean": [0, 1e39, 0]}, r"Preprocessing has mean .* expected finite numbers"),
    ({"crop": 0}, r"Preprocessing has resize None and crop 0; expected whole numbers of pixels, at least 1\."),
    ({"crop": 2.0}, r"Preprocessing has resize None and crop 2\.0; expected whole numbers"),
    ({"crop": True}, r"Preprocessing has resize None and crop True; expected whole numbers"),
    ({"crop": "2"}, r"Preprocessing has resize None and crop 2; expected whole numbers"),
    ({"resize": -1}, r"Preprocessing has resize -1 and crop 2; expected whole numbers"),
    ({"resize": 256.5}, r"Preprocessing has resize 256\.5 and crop 2; expected whole numbers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_settings_out_of_their_range_are_refused(change, message):
    with pytest.raises(IncompatibleError, match=f"^{message}"):
        make_preprocessing(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scale": 1},
            r"bundle: unknown keys \['scale'\], missing keys \[\]\. Preprocessing has \['antialias', 'channels', ",
        ),
        ({"crop": ...}, r"bundle: unknown keys \[\], missing keys \['crop'\]\."),
        ({"mean": ..., "std": ..., "sdt": [1]}, r"bundle: unknown keys \['sdt'\], missing keys \['mean', 'std'\]\."),
        ({"mean": True}, r"bundle: Preprocessing has mean True; expected a number, or one for each channel\."),
        ({"mean": ["a", "b", "c"]}, r"bundle: Preprocessing has mean \['a', 'b', 'c'\]; expected a number"),
        ({"std": None}, r"bundle: Preprocessing has std None; expected a number"),
        ({"std": [None, 1, 1]}, r"bundle: Preprocessing has std \[None, 1, 1\]; expected a number"),
        ({"color": None}, r"Preprocessing has color None and layout 'NCHW'"),
        ({"layout": ["NCHW"]}, r"Preprocessing has color 'RGB' and layout \['NCHW'\]"),
    ],
)
def test_json_with_keys_that_are_missing_unknown_or_wrong_is_refused(change, message):
    values = {"crop": 2, "mean": list(MEAN), "std": list(STD)} | change
    values = {key: value for key, value in values.items() if value is not ...}

    at = "" if message.startswith("bundle: ") else "bundle: "
    with pytest.raises(IncompatibleError, match=f"^{at}{message}"):
        preprocessing_from_json(values, where="bundle")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"The preprocessing file \S+ is not JSON: "),
        (b"\xff", r"The preprocessing file \S+ is not JSON: "),
        (b"[1]", r"The preprocessing file \S+ holds a list; expected an object\."),
        (b"null", r"The preprocessing file \S+ holds a NoneType; expected an object\."),
        (b"[" * 10_000, r"The preprocessing file \S+ is not JSON: "),
        (b" " * 70_000, r"The preprocessing file \S+ is larger than 65536 bytes"),
    ],
    ids=["empty", "not UTF-8", "list", "null", "nested", "too large"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, data, message):
    (tmp_path / "preprocess.json").write_bytes(data)

    with pytest.raises(LoadError, match=f"^{message}"):
        load_preprocessing(tmp_path / "preprocess.json")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    settings = unchanged(224).to_json()
    (tmp_path / "preprocess.json").write_text(json.dumps(settings), encoding="utf-8-sig")

    assert load_preprocessing(tmp_path / "preprocess.json") == unchanged(224)


IN_BYTES = {"crop": 224, "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}
IN_UNITS = {"crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IN_BYTES, r"mean .* is of pixels of another scale: with rescale 0\.003922 they are from 0 to 1\."),
        (IN_UNITS | {"rescale": 1}, r"std .* is of pixels of another scale: with rescale 1 they are from 0 to 255\."),
    ],
)
def test_mean_and_std_of_pixels_of_another_scale_are_refused(tmp_path, settings, message):
    (tmp_path / "preprocess.json").write_text(json.dumps(settings))

    with pytest.raises(IncompatibleError, match=message):
        load_preprocessing(tmp_path / "preprocess.json")
    assert preprocessing_from_json(settings, where="an old manifest").mean == tuple(settings["mean"])


@pytest.mark.parametrize(
    "settings",
    [
        IN_BYTES | {"rescale": 1},
        IN_UNITS,
        {"crop": 8, "mean": 0, "std": 1, "rescale": 1},
        {"crop": 8, "mean": 0, "std": 1 / 255},
        {"crop": 8, "mean": 1, "std": 1, "rescale": 1 / 127.5},
        {"crop": 8, "mean": 1, "std": 1},
        {"crop": 8, "mean": [0, 0, 1.1], "std": 1},
    ],
)
def test_other_scales_are_what_models_take(tmp_path, settings):
    (tmp_path / "preprocess.json").write_text(json.dumps(settings))

    assert load_preprocessing(tmp_path / "preprocess.json").rescale == settings.get("rescale", 1 / 255)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"^Cannot read the preprocessing file \S+missing\.json: No such file"):
        load_preprocessing(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("size", "resize", "message"),
    [
        ((10, 10), None, None),
        ((11, 10), None, r"^it has 11 x 10 pixels; at most 100 are taken\. Scale it down"),
        ((2, 6), 5, None),
        ((2, 9), 5, r"^resized for the model it would have 5 x 22 pixels; at most 100 are taken\."),
        ((9, 2), 5, r"^resized for the model it would have 22 x 5 pixels"),
    ],
)
def test_an_image_has_so_many_pixels_at_most_as_it_is_and_resized(monkeypatch, size, resize, message):
    monkeypatch.setattr(preprocessing, "MAX_PIXELS", 100)
    settings = Preprocessing(resize=resize, crop=4, mean=(0, 0, 0), std=(1, 1, 1))

    if message is None:
        assert settings.crop_pixels(Image.new("RGB", size)).shape == (4, 4, 3)
        return
    with pytest.raises(ImageError, match=message) as caught:
        settings.crop_pixels(Image.new("RGB", size))
    assert caught.value.expected == "at most 100 pixels"


# --- what the settings beyond the first six say -------------------------------------------------------------------

FIRST = {"resize": 256, "crop": 224, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5], "color": "RGB", "layout": "NCHW"}


def noise(width, height, mode="RGB"):
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8), mode=None)


def test_settings_of_the_first_format_are_written_as_they_were():
    """The digest of a bundle is made of them: a device would refuse updates that were made for it."""
    assert preprocessing_from_json(FIRST, where="here").to_json() == FIRST
    assert list(preprocessing_from_json(FIRST, where="here").to_json()) == list(FIRST)


def test_a_setting_has_one_form():
    square = unchanged((8, 8), (8, 8))

    assert (square.crop, square.resize) == (8, (8, 8))
    assert unchanged([8, 8], [8, 8]) == unchanged(None, (8, 8)) == unchanged(8, (8, 8)) == square
    assert make_preprocessing(mean=0.5, std=1) == make_preprocessing(mean=[0.5] * 3, std=[1.0] * 3)
    assert unchanged(8, color="L", channels=1) == unchanged(8, color="L")
    assert json.loads(json.dumps(square.to_json()))["resize"] == [8, 8]


ADDED = st.fixed_dictionaries(
    {},
    optional={
        "resize": st.tuples(st.integers(1, 99), st.integers(1, 99)),
        "crop": st.tuples(st.integers(1, 99), st.integers(1, 99)),
        "crop_rounding": st.sampled_from(["even", "down"]),
        "rescale": st.floats(1e-3, 1),
        "exif_orientation": st.booleans(),
    },
)


@given(
    ADDED,
    st.sampled_from([("pillow", "lanczos"), ("torch", "bicubic"), ("off", "nearest")]),
    st.sampled_from([{}, {"pad_to_square": True}, {"pad_to_square": True, "fill": 7}]),
)
def test_added_settings_survive_json(added, filters, padding):
    settings = make_preprocessing(antialias=filters[0], interpolation=filters[1], **added, **padding)

    assert preprocessing_from_json(json.loads(json.dumps(settings.to_json())), where="here") == settings


def test_a_pair_squashes_and_needs_no_crop():
    image = noise(40, 20)
    prepared = unchanged(None, (10, 30)).prepare(image)

    assert prepared.shape == (3, 10, 30)
    expected = np.asarray(image.resize((30, 10), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(prepared, expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_crop_that_is_no_square_is_height_and_width(layout):
    image = noise(9, 7)
    settings = unchanged((3, 5), layout=layout)

    assert settings.crop_size == (3, 5)
    assert settings.pixel_shape == (3, 5, 3)
    prepared = settings.prepare(image)
    assert prepared.shape == settings.input_shape == {"NCHW": (3, 3, 5), "NHWC": (3, 5, 3)}[layout]
    np.testing.assert_array_equal(settings.crop_pixels(image), np.asarray(image)[2:5, 2:7])


@pytest.mark.parametrize(("name", "value"), [(n, getattr(Image.Resampling, n.upper())) for n in preprocessing.FILTERS])
def test_the_filter_is_pillows(name, value):
    image = noise(31, 23)

    expected = np.asarray(image.resize((9, 12), value))
    np.testing.assert_array_equal(unchanged(None, (12, 9), interpolation=name).crop_pixels(image), expected)


@pytest.mark.parametrize(("antialias", "name"), [("torch", "bicubic"), ("off", "bilinear"), ("off", "nearest")])
def test_what_torch_resizes_is_cropped_and_filled_up_as_pixels_are(antialias, name):
    image = noise(31, 23)
    settings = unchanged((20, 8), 12, interpolation=name, antialias=antialias, layout="NHWC")

    resized = preprocessing.resize_as_torch(image, (16, 12), name, antialias=antialias)
    expected = np.zeros((20, 8, 3))
    expected[4:16] = resized[:, 4:12] / 255
    np.testing.assert_allclose(settings.prepare(image), expected, atol=1e-6)
    with pytest.raises(IncompatibleError, match=rf"antialias '{antialias}', whose pixels are not whole numbers"):
        settings.crop_pixels(image)


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_cut_between_two_pixels_begins_as_torchvision_or_as_transformers_rounds(length, side):
    line = Image.fromarray(np.arange(1, length + 1, dtype=np.uint8)[None])
    cut = {
        rounding: unchanged((1, side), color="L", crop_rounding=rounding).crop_pixels(line)[0, :, 0].tolist()
        for rounding in ("even", "down")
    }
    around = [0] * side + list(range(1, length + 1)) + [0] * side

    down = (length - side) // 2
    even = round((length - side) / 2) if length >= side else -((side - length) // 2)
    assert cut == {"down": around[side + down :][:side], "even": around[side + even :][:side]}


@pytest.mark.parametrize(("scale", "mean", "std"), [(1.0, (120, 110, 100), (1, 1, 1)), (1 / 127.5, (1, 1, 1), 1)])
def test_pixels_are_multiplied_by_the_rescale_factor(rgb, scale, mean, std):
    settings = unchanged((3, 4)) if scale == 1 / 255 else make_preprocessing(crop=(3, 4), mean=mean, std=std)
    settings = preprocessing_from_json({**settings.to_json(), "rescale": scale}, where="here")

    expected = (rgb * scale - np.array(mean)).transpose(2, 0, 1)
    np.testing.assert_allclose(settings.prepare(Image.fromarray(rgb)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        settings.normalize(rgb[None].astype(np.float32) / 255)[0], expected, rtol=1e-4, atol=1e-4
    )


def test_a_picture_is_padded_to_a_square_in_its_middle():
    image = noise(5, 2)
    pixels = unchanged(5, pad_to_square=True, fill=(9, 8, 7)).crop_pixels(image)

    expected = np.full((5, 5, 3), (9, 8, 7))
    expected[1:3] = np.asarray(image)
    np.testing.assert_array_equal(pixels, expected)
    high = unchanged(5, pad_to_square=True, fill=3, color="L").crop_pixels(noise(2, 5, "L"))
    assert high[:, [0, 3, 4]].min() == high[:, [0, 3, 4]].max() == 3


def test_a_narrow_picture_that_padding_would_blow_up_is_refused(monkeypatch):
    monkeypatch.setattr(preprocessing, "MAX_PIXELS", 100)

    with pytest.raises(ImageError, match=r"^padded to a square it would have 20 x 20 pixels; at most 100"):
        unchanged(4, 4, pad_to_square=True).prepare(noise(20, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_says_where_that_is_asked_for(orientation, tmp_path):
    image = noise(8, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }[orientation]
    expected = turned(np.asarray(image))

    asked = unchanged(expected.shape[:2], exif_orientation=True)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(asked.crop_pixels(opened), expected)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(unchanged((6, 8)).crop_pixels(opened), np.asarray(image))


@pytest.mark.parametrize(("color", "num_channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4)])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_model_of_any_number_of_channels_gets_them_from_pictures_of_any_mode(color, num_channels, mode):
    image = Image.fromarray(GREY).convert("RGB").convert(mode) if mode != "LA" else Image.fromarray(GREY).convert(mode)
    settings = Preprocessing(resize=None, crop=8, mean=0, std=1, color=color)

    assert settings.num_channels == num_channels
    expected = image.convert("RGB") if color == "CMYK" and mode != "CMYK" else image
    np.testing.assert_array_equal(
        settings.crop_pixels(image).reshape(8, 8, -1), np.asarray(expected.convert(color)).reshape(8, 8, -1)
    )


def test_grey_is_repeated_for_models_that_take_it_so():
    settings = Preprocessing(resize=None, crop=8, mean=0.5, std=0.5, color="L", channels=5)
    prepared = settings.prepare(Image.fromarray(GREY))

    assert prepared.shape == settings.input_shape == (5, 8, 8)
    assert (prepared == prepared[:1]).all()


@pytest.mark.parametrize(
    ("crop", "fraction", "resize"), [(224, 0.875, 256), (224, 0.9, 248), (384, 1.0, 384), ([224, 224], 0.95, 235)]
)
def test_a_crop_fraction_stands_for_the_short_side_that_it_is_a_part_of(crop, fraction, resize):
    values = {"crop": crop, "crop_fraction": fraction, "mean": 0, "std": 1}

    settings = preprocessing_from_json(values, where="here")

    assert (settings.resize, settings.crop) == (resize, 224 if crop != 384 else 384)
    assert "crop_fraction" not in settings.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_fraction": 0}, r"here: crop_fraction '?0'? with resize .*; expected a number above 0 and at most 1"),
        ({"crop_fraction": 1.5}, r"here: crop_fraction '?1\.5'? with resize"),
        ({"crop_fraction": True}, r"here: crop_fraction '?True'? with resize"),
        ({"crop_fraction": 0.9, "resize": 4}, r"here: crop_fraction '?0\.9'? with resize '?4'? and crop"),
        ({"crop_fraction": 0.9, "crop": [2, 3]}, r"here: crop_fraction '?0\.9'? with resize"),
        ({"crop": [2, 3, 4]}, r"Preprocessing has resize None and crop \(2, 3, 4\); expected whole numbers"),
        ({"crop": [2, 0]}, r"Preprocessing has resize None and crop \(2, 0\); expected whole numbers"),
        ({"resize": [2, 1.5]}, r"Preprocessing has resize \(2, 1\.5\) and crop 2; expected whole numbers"),
        ({"resize": "22"}, r"Preprocessing has resize 22 and crop 2; expected whole numbers"),
        ({"crop": None}, r"Preprocessing has resize None and crop None; expected whole numbers"),
        ({"interpolation": "cubic"}, r"Preprocessing has interpolation 'cubic'; expected one of \('nearest', "),
        ({"interpolation": 3}, r"Preprocessing has interpolation 3; expected one of"),
        ({"antialias": True}, r"Preprocessing has antialias True; expected one of \('pillow', 'torch', 'off'\)"),
        (
            {"antialias": "torch", "interpolation": "lanczos"},
            r"Preprocessing has interpolation 'lanczos'; expected one of \('bilinear', 'bicubic'\) with antialias '",
        ),
        ({"crop_rounding": "up"}, r"Preprocessing has crop_rounding 'up'; expected one of \('even', 'down'\)"),
        ({"pad_to_square": 1}, r"Preprocessing has pad_to_square 1; expected one of \(False, True\)"),
        ({"exif_orientation": "yes"}, r"Preprocessing has exif_orientation 'yes'; expected one of"),
        ({"rescale": 0}, r"Preprocessing has rescale 0; expected a finite number above 0"),
        ({"rescale": float("nan")}, r"Preprocessing has rescale nan; expected a finite number above 0"),
        ({"rescale": True}, r"Preprocessing has rescale True; expected a finite number above 0"),
        ({"rescale": "1/255"}, r"here: Preprocessing has rescale '1/255'; expected a finite number above 0\."),
        ({"fill": 3}, r"Preprocessing has fill \(3,\) and nothing to fill\."),
        (
            {"fill": 256, "pad_to_square": True},
            r"Preprocessing has fill \(256,\); expected whole numbers from 0 to 255",
        ),
        ({"fill": [1, 2], "pad_to_square": True}, r"Preprocessing has fill \(1, 2\); expected .*, one or 3"),
        ({"fill": [0.5], "pad_to_square": True}, r"Preprocessing has fill \(0\.5,\); expected whole numbers"),
        ({"channels": 4}, r"Preprocessing has color 'RGB' and channels 4; expected 3\. Only grey"),
        ({"channels": 0, "color": "L"}, r"Preprocessing has color 'L' and channels 0; expected 1\. Only grey"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(change, message):
    values = {"crop": 2, "mean": list(MEAN), "std": list(STD)} | change

    at = "" if message.startswith("here: ") else "here: "
    with pytest.raises(IncompatibleError, match=f"^{at}{message}"):
        preprocessing_from_json(values, where="here")
