"""From an image to a model's input: resize, crop, scale, normalise, lay out.

The settings travel in the bundle, so that a device prepares images as the model's owner did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icis_deploy.common.arrays import Float32, UInt8
from icis_deploy.common.files import read_capped
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import printable, reason_of
from icis_deploy.errors import ImageError, IncompatibleError, LoadError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_JSON_BYTES = 1 << 16
MAX_PIXELS = 1 << 26
"""Of an image as it is read, and of what it is resized to before it is cropped: 67 million, four bytes each in memory.
An image of one colour compresses to nearly nothing, and a narrow one is stretched until its short side is long enough:
20,000 pixels in a row are 1.3 billion with a short side of 256."""

_LAYOUTS = ("NCHW", "NHWC")
_COLORS = ("RGB", "BGR", "L")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input.

    Example:
        >>> icis_deploy.Preprocessing(resize=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).input_shape
        (3, 224, 224)

    Raises:
        IncompatibleError: On construction, if a setting is out of its range.
    """

    resize: int | None
    """Length in pixels that the short side is resized to, bilinear with antialiasing; `None` leaves the size."""

    crop: int
    """Side in pixels of the square cut from the centre."""

    mean: tuple[float, ...]
    """`(num_channels,)`, subtracted from values in 0..1."""

    std: tuple[float, ...]
    """`(num_channels,)`, divided by afterwards; greater than 0."""

    color: str = "RGB"
    """Order of the channels: `RGB`, `BGR` or `L` (grey)."""

    layout: str = "NCHW"
    """Order of the input's dimensions: `NCHW` or `NHWC`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if self.color not in _COLORS or self.layout not in _LAYOUTS:
            raise IncompatibleError(
                f"Preprocessing has color {printable(repr(self.color), max_length=20)} and layout "
                f"{printable(repr(self.layout), max_length=20)}; expected one of {_COLORS} and one of {_LAYOUTS}.",
                found=(self.color, self.layout),
                expected=(_COLORS, _LAYOUTS),
            )
        if not len(self.mean) == len(self.std) == self.num_channels:
            raise IncompatibleError(
                f"Preprocessing has {len(self.mean)} means and {len(self.std)} deviations; {self.color} has "
                f"{self.num_channels} channels.",
                found=(len(self.mean), len(self.std)),
                expected=self.num_channels,
            )
        with np.errstate(over="ignore", under="ignore"):  # they are used in float32
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if not np.isfinite(mean).all() or not (np.isfinite(std) & (std > 0)).all():
            raise IncompatibleError(
                f"Preprocessing has mean {self.mean} and std {self.std}; expected finite numbers, and std above 0.",
                found=(self.mean, self.std),
                expected="finite numbers, and std above 0",
            )
        if not _is_length(self.crop) or not (self.resize is None or _is_length(self.resize)):
            raise IncompatibleError(
                f"Preprocessing has resize {printable(str(self.resize), max_length=20)} and crop "
                f"{printable(str(self.crop), max_length=20)}; expected whole numbers of pixels, at least 1.",
                found=(self.resize, self.crop),
                expected="whole numbers of pixels, at least 1",
            )

    @property
    def num_channels(self) -> int:
        """Number of colour channels."""
        return 1 if self.color == "L" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared image, without the batch."""
        return self._shape_of(self.crop, self.crop)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of one image that is resized and cropped and nothing else."""
        return (self.crop, self.crop, self.num_channels)

    def prepare(self, image: Image) -> Float32:
        """Return one image as the model's input, `input_shape` float32.

        Raises:
            ImageError: As `crop_pixels`.
        """
        return np.asarray(self.from_pixels(self.crop_pixels(image)[None])[0])

    def crop_pixels(self, image: Image) -> UInt8:
        """Return one image resized and cropped, `pixel_shape` uint8, red before green before blue.

        An EXIF orientation is not applied, and transparency is dropped, as training pipelines do.

        Raises:
            ImageError: If the image's values have no known range (32-bit integers, floats), or it has more than
                `MAX_PIXELS` pixels, as it is or resized.
        """
        scaled = image.size if self.resize is None else _scaled_size(image.size, self.resize)
        _check_pixels(image.size, scaled)
        image = _to_color(image, "L" if self.color == "L" else "RGB")
        if self.resize is not None:
            image = _resized(image, scaled)
        return np.asarray(_crop_centre(image, self.crop), dtype=np.uint8).reshape(self.pixel_shape)

    def from_pixels(self, pixels: UInt8) -> Float32:
        """Return cropped images as the model's input.

        Args:
            pixels: `(batch, *pixel_shape)` uint8, as `crop_pixels` gives them.

        Returns:
            `(batch, *input_shape)` float32, contiguous.
        """
        ordered = pixels[..., ::-1] if self.color == "BGR" else pixels
        return self.normalize(ordered.astype(np.float32) / np.float32(255))

    def normalize(self, pixels: Float32) -> Float32:
        """Return normalised images in the model's layout.

        Args:
            pixels: `(batch, height, width, num_channels)` float32 in 0..1, channels in the order of `color`.

        Returns:
            `(batch, *input_shape)` float32, contiguous.
        """
        values = np.empty((len(pixels), *self._shape_of(*pixels.shape[1:3])), dtype=np.float32)
        channels = np.moveaxis(values, self.layout.index("C"), 0)
        # One channel after the other: numpy is slow along an axis of three.
        for index, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            np.subtract(pixels[..., index], np.float32(mean), out=channels[index])
            channels[index] /= np.float32(std)
        return values

    def _shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        channels = self.num_channels
        return (channels, height, width) if self.layout == "NCHW" else (height, width, channels)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def preprocessing_from_json(values: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return the settings that a JSON object states.

    Args:
        values: Keys as in `Preprocessing`; `crop`, `mean` and `std` are required.
        where: The file that it is in, for messages.

    Raises:
        IncompatibleError: Naming the key that is missing, unknown, or of the wrong type.
    """
    known = set(Preprocessing.__dataclass_fields__)
    unknown, missing = sorted(set(values) - known), sorted({"crop", "mean", "std"} - set(values))
    if unknown or missing:
        raise IncompatibleError(
            f"{where}: unknown keys {unknown}, missing keys {missing}. Preprocessing has {sorted(known)}.",
            found=tuple(unknown),
            expected=tuple(sorted(known)),
            where=where,
        )
    try:
        return Preprocessing(**{"resize": None, **values})
    except (TypeError, ValueError, OverflowError) as error:
        raise IncompatibleError(
            f"{where}: a preprocessing setting has the wrong type: {reason_of(error)}.",
            found=reason_of(error),
            where=where,
        ) from error


def load_preprocessing(path: str | Path) -> Preprocessing:
    """Read settings from a JSON file.

    Example:
        preprocessing = icis_deploy.load_preprocessing("preprocess.json")
        print(preprocessing.input_shape)

    Raises:
        LoadError: If it cannot be read or is not a JSON object.
        IncompatibleError: If a setting is wrong.
    """
    data = read_capped(Path(path), max_bytes=MAX_JSON_BYTES, what="preprocessing file", error_type=LoadError)
    try:
        values = load_strict(data)
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"The preprocessing file {path} is not JSON: {error}.",
            found=str(error),
            expected="JSON",
            where=path,
        ) from error
    if not isinstance(values, dict):
        raise LoadError(
            f"The preprocessing file {path} holds a {type(values).__name__}; expected an object.",
            found=type(values).__name__,
            expected="an object",
            where=path,
        )
    return preprocessing_from_json(values, where=str(path))


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
    return image.convert(mode)


def _check_pixels(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    """Refuse an image of too many pixels; Pillow knows its size before it decodes one."""
    for (width, height), what in ((size, "it has"), (scaled, "resized for the model it would have")):
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{what} {width} x {height} pixels; at most {MAX_PIXELS} are taken.",
                found=(width, height),
                expected=f"at most {MAX_PIXELS} pixels",
                hint="Scale it down, or cut out what it is to be asked about.",
            )


def _scaled_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return width and height of an image whose short side is resized."""
    width, height = size
    if not width or not height:  # there is nothing to resize, which Pillow says
        return size
    # Rounded down, as torchvision's Resize does: one pixel of the long side moves the centre crop.
    return (short_side, short_side * height // width) if width <= height else (short_side * width // height, short_side)


def _resized(image: Image, size: tuple[int, int]) -> Image:
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.BILINEAR)


def _crop_centre(image: Image, side: int) -> Image:
    width, height = image.size
    left, top = _crop_start(width, side), _crop_start(height, side)
    # Outside the image crop() fills with black, as a centre crop of a small image does elsewhere.
    return image.crop((left, top, left + side, top + side))


def _crop_start(length: int, side: int) -> int:
    # Rounded as torchvision's CenterCrop does: to even where it cuts, down where it pads.
    return round((length - side) / 2) if length >= side else -((side - length) // 2)
