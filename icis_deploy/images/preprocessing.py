"""From an image to a model's input: orient, pad, resize, crop, scale, normalise, lay out.

The settings travel in the bundle, so that a device prepares images as the model's owner did.

    file -> [turned as EXIF says] -> colour -> [padded to a square] -> resized -> cropped -> * rescale - mean, / std

Rules:

1. Settings that are left out mean what they meant before there were any: Pillow's bilinear resize of the short side.
   `to_json` leaves them out again, so that the manifest and the digest of a bundle stay what they were.
2. A setting has one form: `crop` is a number where the cut is a square, and a pair where it is not.
3. Nothing but Pillow and numpy, whatever the model was trained with: a device has no more.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32, UInt8
from icis_deploy.common.files import path_from, read_capped
from icis_deploy.common.given import is_real
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import printable, reason_of, shown
from icis_deploy.errors import ImageError, IncompatibleError, LoadError
from icis_deploy.images.resampling import (
    ANTIALIASING,
    FILTERS,
    OFF,
    PILLOW,
    TORCH_FILTERS,
    resize_as_torch,
    resize_image,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_JSON_BYTES = 1 << 16
MAX_PIXELS = 1 << 26
"""Of an image as it is read, padded to a square, and of what it is resized to before it is cropped: 67 million, four
bytes each in memory. An image of one colour compresses to nearly nothing, and a narrow one is stretched until its short
side is long enough: 20,000 pixels in a row are 1.3 billion with a short side of 256."""

MAX_CHANNELS = 1 << 10
_LARGEST_PIXEL = 255
_WIDEST_RANGE = 300.0
"""From black to white, as a model takes it: 255 where that is 8 bits as they are, 5 with the usual mean and std."""

EIGHT_BITS = 1 / 255
"""What brings pixels to 0..1."""

_LARGEST_READ = 2
"""How many times the pixels of the cut an image may have to be copied whole, which is faster than cutting it first."""

_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})
"""Of EXIF: where orientation is, and which values swap width and height."""

_JPEG_FORMATS = frozenset({"JPEG", "MPO"})

_LAYOUTS = ("NCHW", "NHWC")
_NUM_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1, "LA": 2, "RGBA": 4, "CMYK": 4}
_COLORS = tuple(_NUM_CHANNELS)
_CROP_ROUNDINGS = ("even", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input.

    Example:
        >>> icis_deploy.Preprocessing(resize=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).input_shape
        (3, 224, 224)
        >>> icis_deploy.Preprocessing(resize=(192, 256), mean=0.5, std=0.5, interpolation="bicubic").input_shape
        (3, 192, 256)

    Raises:
        IncompatibleError: On construction, if a setting is out of its range.
    """

    resize: int | tuple[int, int] | None
    """Length in pixels that the short side is resized to, the long one in proportion, rounded down; or `(height,
    width)`, to which the image is squashed; `None` leaves the size."""

    crop: int | tuple[int, int] | None = None
    """Side in pixels of the square cut from the centre, or `(height, width)` of a cut that is none. May be left out
    where `resize` is `(height, width)`: nothing is cut off. What an image lacks is black."""

    mean: tuple[float, ...]
    """`(num_channels,)`, subtracted from pixels times `rescale`; a single number stands for all channels."""

    std: tuple[float, ...]
    """`(num_channels,)`, divided by afterwards; greater than 0; a single number stands for all channels."""

    color: str = "RGB"
    """Order of the channels: `RGB`, `BGR`, `L` (grey), `LA`, `RGBA` or `CMYK`."""

    layout: str = "NCHW"
    """Order of the input's dimensions: `NCHW` or `NHWC`."""

    channels: int | None = None
    """How often grey is repeated, for models that take it so; `None` for once, and for colours."""

    interpolation: str = "bilinear"
    """How it is resized: `nearest`, `bilinear`, `bicubic`, `lanczos`, `box` or `hamming`."""

    antialias: str = PILLOW
    """`pillow`: as Pillow resizes 8-bit pixels, and torchvision images of Pillow: antialiased and rounded. `torch`: as
    torch resizes a tensor of floats with `antialias=True`, not rounded; `bilinear` or `bicubic`. `off`: as torch does
    with `antialias=False`; these and `nearest`."""

    crop_rounding: str = "even"
    """Where a cut begins that lies between two pixels: `even`, as torchvision rounds; `down`, as transformers does."""

    rescale: float = EIGHT_BITS
    """What pixels, 0..255, are multiplied by; greater than 0. 1 for a mean and deviation in pixels."""

    pad_to_square: bool = False
    """Whether an image is padded to a square first, itself in the middle."""

    fill: tuple[int, ...] = (0,)
    """`(num_channels,)` or `(1,)`, colour of that padding, 0..255, red before green before blue; a single number stands
    for all."""

    exif_orientation: bool = False
    """Whether an image is turned as its EXIF data says first. Training pipelines do not; cameras rely on it."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_size()
        self._check_statistics()
        if self.fill != (0,) and not self.pad_to_square:
            raise IncompatibleError(
                f"Preprocessing has fill {self.fill} and nothing to fill.",
                found=self.fill,
                expected="fill with pad_to_square",
                hint="Set pad_to_square to true, or leave fill out.",
            )

    def _check_choices(self) -> None:
        if self.color not in _COLORS or self.layout not in _LAYOUTS:
            raise IncompatibleError(
                f"Preprocessing has color {printable(repr(self.color), max_length=20)} and layout "
                f"{printable(repr(self.layout), max_length=20)}; expected one of {_COLORS} and one of {_LAYOUTS}.",
                found=(self.color, self.layout),
                expected=(_COLORS, _LAYOUTS),
            )
        for name, allowed in (
            ("antialias", ANTIALIASING),
            ("interpolation", FILTERS if self.antialias == PILLOW else TORCH_FILTERS.get(str(self.antialias), ())),
            ("crop_rounding", _CROP_ROUNDINGS),
            ("pad_to_square", (False, True)),
            ("exif_orientation", (False, True)),
        ):
            value: object = getattr(self, name)
            if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
                with_antialias = f" with antialias {self.antialias!r}" if name == "interpolation" else ""
                raise IncompatibleError(
                    f"Preprocessing has {name} {printable(repr(value), max_length=20)}; expected one of "
                    f"{tuple(allowed)}{with_antialias}.",
                    found=shown(value),
                    expected=tuple(allowed),
                    where=name,
                )
        if self.channels == _NUM_CHANNELS[self.color]:
            object.__setattr__(self, "channels", None)
        elif self.channels is not None and not (
            self.color == "L" and _is_length(self.channels) and self.channels <= MAX_CHANNELS
        ):
            raise IncompatibleError(
                f"Preprocessing has color {self.color!r} and channels {printable(str(self.channels), max_length=20)}; "
                f"expected {_NUM_CHANNELS[self.color]}. Only grey (L) can be repeated, {MAX_CHANNELS} times at most.",
                found=(self.color, shown(self.channels)),
                expected=_NUM_CHANNELS[self.color],
                where="channels",
            )

    def _check_size(self) -> None:
        resize, crop = _as_size(self.resize), _as_size(self.crop)
        if crop is None and isinstance(resize, tuple):
            crop = resize
        fits = _is_size(crop) and (resize is None or _is_size(resize))
        if not fits:
            raise IncompatibleError(
                f"Preprocessing has resize {printable(str(resize), max_length=20)} and crop "
                f"{printable(str(crop), max_length=20)}; expected whole numbers of pixels, at least 1. Give one number "
                f"for the short side and a square, or height and width.",
                found=(resize, crop),
                expected="whole numbers of pixels, at least 1",
            )
        object.__setattr__(self, "resize", resize)
        object.__setattr__(self, "crop", crop[0] if isinstance(crop, tuple) and crop[0] == crop[1] else crop)

    def _check_statistics(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _for_channels(getattr(self, name), self.num_channels, name=name))
        if not len(self.mean) == len(self.std) == self.num_channels:
            raise IncompatibleError(
                f"Preprocessing has {len(self.mean)} means and {len(self.std)} deviations; {self.color} has "
                f"{self.num_channels} channels.",
                found=(len(self.mean), len(self.std)),
                expected=self.num_channels,
                hint="Give one number, or one for each channel.",
            )
        if not is_real(self.rescale) or not 0 < self.rescale <= float(np.finfo(np.float32).max):
            raise IncompatibleError(
                f"Preprocessing has rescale {shown(self.rescale)}; expected a finite number above 0.",
                found=shown(self.rescale),
                expected="a finite number above 0",
                where="rescale",
            )
        with np.errstate(over="ignore", under="ignore"):  # they are used in float32
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
            rescale = np.float32(self.rescale)
        if not np.isfinite(mean).all() or not (np.isfinite(std) & (std > 0)).all():
            raise IncompatibleError(
                f"Preprocessing has mean {self.mean} and std {self.std}; expected finite numbers, and std above 0.",
                found=(self.mean, self.std),
                expected="finite numbers, and std above 0",
                hint="Take mean and std from the model's training; images are divided by std.",
            )
        if isinstance(self.rescale, bool) or not np.isfinite(rescale) or rescale <= 0:
            raise IncompatibleError(
                f"Preprocessing has rescale {self.rescale}; expected a finite number above 0.",
                found=self.rescale,
                expected="a finite number above 0",
                where="rescale",
            )
        object.__setattr__(self, "rescale", float(self.rescale))
        given: Any = self.fill
        fill = (given,) if not isinstance(given, Sequence) or isinstance(given, str | bytes) else tuple(given)
        num_colours = _NUM_CHANNELS[self.color]
        if len(fill) not in (1, num_colours) or not all(
            _is_length(value, at_least=0) and value <= 255 for value in fill
        ):
            raise IncompatibleError(
                f"Preprocessing has fill {printable(str(fill), max_length=40)}; expected whole numbers from 0 to 255, "
                f"one or {num_colours}.",
                found=fill,
                expected="whole numbers from 0 to 255",
                where="fill",
            )
        object.__setattr__(self, "fill", fill)

    @property
    def num_channels(self) -> int:
        """Number of colour channels."""
        return self.channels or _NUM_CHANNELS[self.color]

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width in pixels of a prepared image."""
        assert self.crop is not None, "set on construction"
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared image, without the batch."""
        return self._shape_of(*self.crop_size)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of one image that is resized and cropped and nothing else."""
        return (*self.crop_size, self.num_channels)

    @property
    def obstacle_to_pixels(self) -> str | None:
        """The setting for which no model can take 8-bit pixels and do the rest itself; `None` where one can."""
        return None if self.antialias == PILLOW else f"antialias {self.antialias!r}, whose pixels are not whole numbers"

    def prepare(self, image: Image) -> Float32:
        """Return one image as the model's input, `input_shape` float32.

        Raises:
            ImageError: As `crop_pixels`.
        """
        return np.asarray(self.from_pixels(self.crop_image(image)[None])[0])

    @property
    def obstacle_to_reduced_decode(self) -> str | None:
        """The setting for which a JPEG file cannot be decoded at a part of its size; `None` where it can."""
        if self.resize is None:
            return "no resize: every pixel counts"
        is_nearest = self.interpolation == "nearest" or self.antialias == OFF
        return "a resize that takes single pixels, which a reduced decode has no more" if is_nearest else None

    def crop_pixels(self, image: Image, *, reduced_decode: bool = False) -> UInt8:
        """Return one image resized and cropped, `pixel_shape` uint8, red before green before blue.

        Transparency is dropped unless the model takes it, as training pipelines do.

        Args:
            image: As Pillow opened it, not decoded yet where `reduced_decode` is to do anything.
            reduced_decode: As in `crop_image`.

        Raises:
            ImageError: If the image's values have no known range (32-bit integers, floats), or it has more than
                `MAX_PIXELS` pixels, as it is, padded or resized.
            IncompatibleError: If resized pixels are no whole numbers (`obstacle_to_pixels`).
        """
        if (obstacle := self.obstacle_to_pixels) is not None:
            raise IncompatibleError(
                f"The preprocessing has {obstacle}: there are no 8-bit pixels to give.",
                found=self.antialias,
                expected=PILLOW,
                where="antialias",
                hint="Leave `model_input='uint8'` out.",
            )
        return self.crop_image(image, reduced_decode=reduced_decode).astype(np.uint8, copy=False)

    def crop_image(self, image: Image, *, reduced_decode: bool = False) -> UInt8 | Float32:
        """Return one image resized and cropped, as `from_pixels` takes it.

        Args:
            image: As Pillow opened it.
            reduced_decode: Whether a JPEG file is decoded at an eighth, a quarter or half of its size where no side
                then is shorter than what it is resized to. That takes less time, and gives other pixels.

        Returns:
            `pixel_shape`, uint8; float32 in 0..255 where torch's way of resizing does not round.

        Raises:
            ImageError: As `crop_pixels`.
        """
        # Sizes are those of the whole image, whatever is decoded of it: they decide what is cut off.
        padded, scaled = self._sizes(_upright_size(image) if self.exif_orientation else image.size)
        _check_pixels(image.size, padded, scaled)
        if reduced_decode and self.obstacle_to_reduced_decode is None:
            _reduce(image, padded, scaled)
        if self.exif_orientation:
            from PIL.ImageOps import exif_transpose

            image = exif_transpose(image)
        padded = (max(image.size),) * 2 if self.pad_to_square else image.size
        image = _to_color(image, "RGB" if self.color == "BGR" else self.color)
        if image.size != padded:
            image = _padded(image, padded, self.fill)
        height, width = self.crop_size
        left, top = (
            _crop_start(length, side, rounding=self.crop_rounding)
            for length, side in zip(scaled, (width, height), strict=True)
        )
        pixels: UInt8 | Float32
        if self.antialias == PILLOW:
            pixels = _crop_picture(
                resize_image(image, scaled, self.interpolation), left=left, top=top, height=height, width=width
            )
        else:
            resized_pixels = resize_as_torch(image, scaled, self.interpolation, antialias=self.antialias)
            pixels = _crop_array(resized_pixels, left=left, top=top, height=height, width=width)
        pixels = pixels.reshape(height, width, -1)
        return pixels if self.channels is None else pixels.repeat(self.channels, axis=2)

    def _sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return width and height of an image when it is padded, and when that is resized."""
        padded = (max(size),) * 2 if self.pad_to_square else size
        return padded, _scaled_size(padded, self.resize)

    def from_pixels(self, pixels: UInt8 | Float32, *, out: Float32 | None = None) -> Float32:
        """Return cropped images as the model's input.

        Args:
            pixels: `(batch, *pixel_shape)` uint8, as `crop_pixels` gives them, or float32 in 0..255.
            out: `(batch, *input_shape)`, where they are written; `None` for memory of their own.

        Returns:
            `(batch, *input_shape)` float32: `out`, or contiguous.
        """
        ordered = pixels[..., ::-1] if self.color == "BGR" else pixels

        def scale(channel: UInt8 | Float32, place: Float32) -> None:
            if self.rescale == EIGHT_BITS:  # the same to the last bit for all 256 values, and faster
                np.divide(channel, np.float32(255), out=place, dtype=np.float32)
            else:
                np.multiply(channel, self.rescale, out=place, dtype=np.float64, casting="same_kind")

        return self._standardized(ordered, scale, out)

    def normalize(self, pixels: Float32) -> Float32:
        """Return normalised images in the model's layout.

        Args:
            pixels: `(batch, height, width, num_channels)` float32 in 0..1, channels in the order of `color`.

        Returns:
            `(batch, *input_shape)` float32, contiguous.
        """
        factor = np.float32(self.rescale / EIGHT_BITS)

        def scale(channel: UInt8 | Float32, place: Float32) -> None:
            np.multiply(channel, factor, out=place)

        return self._standardized(pixels, scale, None)

    def _standardized(
        self,
        pixels: UInt8 | Float32,
        scale: Callable[[UInt8 | Float32, Float32], None],
        out: Float32 | None,
    ) -> Float32:
        values = np.empty((len(pixels), *self._shape_of(*pixels.shape[1:3])), dtype=np.float32) if out is None else out
        channels = np.moveaxis(values, self.layout.index("C"), 0)
        # One channel after the other: numpy is slow along an axis of three. And in place: memory that is fresh from the
        # system costs more than what is computed in it.
        for index, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            scale(pixels[..., index], channels[index])
            channels[index] -= np.float32(mean)
            channels[index] /= np.float32(std)
        return values

    def _shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        channels = self.num_channels
        return (channels, height, width) if self.layout == "NCHW" else (height, width, channels)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, without those that have their default and are newer than the format."""
        return {
            each.name: list(value) if isinstance(value, tuple) else value
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default or each.name in _FIRST_SETTINGS
        }


_FIRST_SETTINGS = frozenset({"resize", "crop", "mean", "std", "color", "layout"})
"""What every file states (rule 1)."""


def _made_at(where: str, settings: Mapping[str, Any]) -> Preprocessing:
    try:
        return Preprocessing(**settings)
    except IncompatibleError as error:
        raise IncompatibleError.at(where, error) from error


def preprocessing_from_json(values: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return the settings that a JSON object states.

    Args:
        values: Keys as in `Preprocessing`; `crop`, `mean` and `std` are required, `crop` not where `resize` is a pair.
            `crop_fraction` may stand for `resize`: the part of the short side that the cut takes, 0..1.
        where: The file that it is in, for messages.

    Raises:
        IncompatibleError: Naming the key that is missing, unknown, or of the wrong type.
    """
    known = {*Preprocessing.__dataclass_fields__, "crop_fraction"}
    required = {"mean", "std"} if isinstance(values.get("resize"), list | tuple) else {"crop", "mean", "std"}
    unknown, missing = sorted(map(str, set(values) - known)), sorted(required - set(values))
    if unknown or missing:
        raise IncompatibleError(
            f"{where}: unknown keys {unknown}, missing keys {missing}. Preprocessing has {sorted(known)}.",
            found=tuple(unknown),
            expected=tuple(sorted(known)),
            where=where,
            hint="Correct the keys; mean and std are always there, and crop unless resize is a pair.",
        )
    settings = {"resize": None, **values}
    try:
        if (fraction := settings.pop("crop_fraction", None)) is not None:
            settings["resize"] = _resize_of(settings["crop"], fraction, resize=settings["resize"], where=where)
        return _made_at(where, settings)
    except (TypeError, ValueError, OverflowError) as error:
        raise IncompatibleError(
            f"{where}: a preprocessing setting has the wrong type: {reason_of(error)}.",
            found=reason_of(error),
            where=where,
            hint="Numbers are written without quotation marks.",
        ) from error


def _resize_of(crop: object, fraction: object, *, resize: object, where: str) -> int:
    """Return the short side of which a square cut takes a part, rounded down as timm and transformers do."""
    side = crop[0] if isinstance(crop, list | tuple) and len(crop) == 2 and crop[0] == crop[1] else crop
    is_fraction = isinstance(fraction, int | float) and not isinstance(fraction, bool) and 0 < fraction <= 1
    if resize is not None or not _is_length(side) or not is_fraction:
        raise IncompatibleError(
            f"{where}: crop_fraction {shown(fraction)} with resize {shown(resize)} and crop {shown(crop)}; expected a "
            f"number above 0 and at most 1 with a square crop, and no resize.",
            found=(shown(fraction), shown(resize), shown(crop)),
            expected="a number above 0 and at most 1 with a square crop, and no resize",
            where=where,
        )
    assert isinstance(side, int)
    assert isinstance(fraction, int | float)
    return math.floor(side / fraction)


def load_preprocessing(path: str | Path) -> Preprocessing:
    """Read settings from a JSON file.

    Example:
        preprocessing = icis_deploy.load_preprocessing("preprocess.json")
        print(preprocessing.input_shape)

    Raises:
        LoadError: If it cannot be read or is not a JSON object.
        IncompatibleError: If a setting is wrong.
    """
    return preprocessing_from_settings(read_settings(path), where=str(path))


def preprocessing_from_settings(values: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return what settings say that somebody wrote, which may be wrong where those of a manifest are not.

    Raises:
        IncompatibleError: As `preprocessing_from_json`; and if mean and std are of pixels of another scale.
    """
    preprocessing = preprocessing_from_json(values, where=where)
    _require_scale(preprocessing, where=where)
    return preprocessing


def _require_scale(preprocessing: Preprocessing, *, where: str) -> None:
    """Raise `IncompatibleError` if mean and std are of pixels of another scale than `rescale` makes.

    A mean of 123.7 is of pixels from 0 to 255: of those from 0 to 1 it leaves nothing but its own negative. No check of
    a bundle shows that, which compares two models on images that are both prepared so.
    """
    white = _LARGEST_PIXEL * preprocessing.rescale
    is_above = min(preprocessing.mean) > white
    if is_above or white / max(preprocessing.std) > _WIDEST_RANGE:
        what, needed = ("mean", 1) if is_above else ("std", "1/255, which is 0.00392156862745098")
        raise IncompatibleError(
            f"{where}: {what} {getattr(preprocessing, what)} is of pixels of another scale: with rescale "
            f"{preprocessing.rescale:.4g} they are from 0 to {white:.4g}.",
            found=getattr(preprocessing, what),
            expected=f"mean and std of pixels from 0 to {white:.4g}",
            where=where,
            hint=f'Set "rescale" to {needed}, or give mean and std of pixels from 0 to {white:.4g}.',
        )


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the object of a JSON file that somebody wrote, with a byte order mark or without.

    Raises:
        LoadError: If it cannot be read or is not a JSON object.
    """
    data = read_capped(
        path_from(path, name="path"), max_bytes=MAX_JSON_BYTES, what="preprocessing file", error_type=LoadError
    )
    try:
        values = load_strict(data.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"The preprocessing file {path} is not JSON: {error}.",
            found=str(error),
            expected="JSON",
            where=path,
            hint=(
                'Give a file such as {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std":'
                " [0.229, 0.224, 0.225]}."
            ),
        ) from error
    if not isinstance(values, dict):
        raise LoadError(
            f"The preprocessing file {path} holds a {type(values).__name__}; expected an object.",
            found=type(values).__name__,
            expected="an object",
            where=path,
            hint=(
                'Give a file such as {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std":'
                " [0.229, 0.224, 0.225]}."
            ),
        )
    return values


def _is_length(value: object, *, at_least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_size(value: object) -> bool:
    """Say whether it is a length in pixels, or a pair of them."""
    return all(map(_is_length, value)) if isinstance(value, tuple) and len(value) == 2 else _is_length(value)


def _as_size(value: object) -> Any:
    """Return a size with a pair as a tuple; anything else, right or wrong, as it is."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value


def _for_channels(value: Any, num_channels: int, *, name: str) -> tuple[float, ...]:
    numbers = (value,) * num_channels if is_real(value) else value
    if isinstance(numbers, Iterable) and all(map(is_real, numbers := tuple(numbers))):
        with suppress(OverflowError):
            return tuple(map(float, numbers))
    raise IncompatibleError(
        f"Preprocessing has {name} {shown(value)}; expected a number, or one for each channel.",
        found=shown(value),
        expected="a number, or one for each channel",
        where=name,
        hint="Take it from the model's training.",
    )


def _upright_size(image: Image) -> tuple[int, int]:
    """Return width and height of an image that is turned as its EXIF data says."""
    _check_pixels(image.size)  # of some formats that data is behind the pixels
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)


def _reduce(image: Image, padded: tuple[int, int], scaled: tuple[int, int]) -> None:
    """Have Pillow decode a JPEG file at the smallest size that is no smaller than what it is resized to.

    Args:
        image: Opened and not decoded; anything but a JPEG file is left as it is.
        padded: Width and height of the whole image, upright and padded.
        scaled: What that is resized to.
    """
    # By how much both sides of the padded image may shrink is how much those of the file may, turned or not.
    room = min(before // max(after, 1) for before, after in zip(padded, scaled, strict=True))
    part = next((each for each in (8, 4, 2) if each <= min(room, *image.size)), 1)
    if image.format in _JPEG_FORMATS and part > 1:
        image.draft(image.mode, (image.width // part, image.height // part))


def _to_color(image: Image, mode: str) -> Image:
    import PIL.Image

    if image.mode in ("I", "F"):
        raise ImageError(
            f"its pixels are 32-bit ({image.mode}) and have no known range; save it with 8 or 16 bits",
            found=image.mode,
            expected="8 or 16 bits",
        )
    if image.mode.startswith("I;16"):  # convert() would clip at 255, and nearly everything would be white
        image = PIL.Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    if mode == "CMYK" and image.mode not in ("CMYK", "RGB"):  # Pillow converts no other to it
        image = image.convert("RGB")
    image.load()  # some formats know their mode no sooner
    return image if image.mode == mode else image.convert(mode)


def _check_pixels(size: tuple[int, int], padded: tuple[int, int] = (0, 0), scaled: tuple[int, int] = (0, 0)) -> None:
    """Refuse an image of too many pixels; Pillow knows its size before it decodes one."""
    for (width, height), what in (
        (size, "it has"),
        (padded, "padded to a square it would have"),
        (scaled, "resized for the model it would have"),
    ):
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{what} {width} x {height} pixels; at most {MAX_PIXELS} are taken.",
                found=(width, height),
                expected=f"at most {MAX_PIXELS} pixels",
                hint="Scale it down, or cut out what it is to be asked about.",
            )


def _padded(image: Image, size: tuple[int, int], fill: tuple[int, ...]) -> Image:
    from PIL.Image import new

    square = new(image.mode, size, fill * len(image.getbands()) if len(fill) == 1 else fill)
    # The odd pixel goes behind, as a centre crop of a small image has it.
    square.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return square


def _scaled_size(size: tuple[int, int], resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return width and height of an image that is resized."""
    width, height = size
    if resize is None or not width or not height:  # without a pixel there is nothing to resize, which Pillow says
        return size
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    # Rounded down, as torchvision's Resize does: one pixel of the long side moves the centre crop.
    return (resize, resize * height // width) if width <= height else (resize * width // height, resize)


def _crop_picture(image: Image, *, left: int, top: int, height: int, width: int) -> UInt8:
    """Return a cut of an image, `(height, width)` or with its channels behind, 0 outside the image."""
    is_inside = left >= 0 and top >= 0 and left + width <= image.width and top + height <= image.height
    if is_inside and image.width * image.height <= _LARGEST_READ * width * height:
        # One copy less than a cut by Pillow, a fifth of what preparing takes beside decoding.
        return np.asarray(image, dtype=np.uint8)[top : top + height, left : left + width]
    # Outside the image crop() fills with black, as a centre crop of a small image does elsewhere.
    return np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)


def _crop_array(pixels: NDArray[np.float32], *, left: int, top: int, height: int, width: int) -> NDArray[np.float32]:
    """Return a cut of `(height, width, num_channels)`, 0 outside the image."""
    cut = np.zeros((height, width, pixels.shape[2]), dtype=np.float32)
    inside = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    below, right = max(-top, 0), max(-left, 0)
    cut[below : below + inside.shape[0], right : right + inside.shape[1]] = inside
    return cut


def _crop_start(length: int, side: int, *, rounding: str) -> int:
    """Return where a centre crop begins, in pixels; negative where it begins outside of the image.

    Sources: torchvision.transforms.functional.center_crop, which rounds to even where it cuts and down where it pads;
    transformers.image_transforms.center_crop.
    """
    if rounding == "down":
        return (length - side) // 2
    return round((length - side) / 2) if length >= side else -((side - length) // 2)
