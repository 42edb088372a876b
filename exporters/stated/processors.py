"""How transformers' image processors prepare images, as a preprocessing.

Some forty classes of processors read the same keys in different ways. So what was read is also tried: the processor
prepares a few pictures, and the preprocessing must prepare them alike, or it is refused.

Sources: transformers, image_processing_backends.py, and the processors of ConvNeXT (`crop_pct`), EfficientNet
(`rescale_offset`, `include_top`), LeViT and MobileViT (`do_flip_channel_order`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporters.stated.statement import GIVE_PREPROCESS
from icis_deploy.common.arrays import Float32, UInt8
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import IncompatibleError, MissingDependencyError, ModelLoadError
from icis_deploy.images.neutral import neutral_images
from icis_deploy.images.preprocessing import EIGHT_BITS, Preprocessing

PROCESSOR_FILE = "preprocessor_config.json"
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their numbers, `PIL.Image.Resampling`, which `resample` states."""

MAX_LEVELS = 2.0
"""By how many levels of 8-bit pixels a value may differ. Nothing does where the processor resizes with Pillow; where it
resizes with torchvision, which rounds elsewhere, one. A cut that is off by one pixel differs by fifty."""

_TRIED_SIZES = ((151, 230), (301, 173), (64, 51))
"""Heights and widths in pixels of the pictures: wide, high and small, with odd sides."""

_WARPED_FROM = 384
"""Short side from which ConvNeXT's processor squashes instead of cropping."""


def load_processor(folder: str, *, name: str | None = None, **options: Any) -> Any:
    """Load the image processor of a model's folder.

    Args:
        folder: A folder, or the name of a model on the hub.
        name: What to call it in messages; `None` calls it as the folder.
        options: Further arguments of `from_pretrained`.

    Raises:
        ModelLoadError: If there is none, or one that transformers cannot load without running code from the folder.
        MissingDependencyError: If transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"{PROCESSOR_FILE} is read by transformers, which is not installed.",
            where=name or folder,
            hint="Install it: pip install 'icis-deploy[hub]'.",
        ) from error
    # Pillow's own resizing, which the device has; both names mean that.
    pillow = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    try:
        load: Any = transformers.AutoImageProcessor.from_pretrained
        return load(folder, trust_remote_code=False, **pillow, **options)
    except Exception as error:  # transformers' and huggingface_hub's own types, which share no base
        raise ModelLoadError(
            f"transformers cannot load the image processor of {name or folder}: {reason_of(error)}.",
            found=reason_of(error),
            where=name or folder,
            hint=GIVE_PREPROCESS,
        ) from error


def preprocessing_of_processor(processor: Any, *, num_channels: int = 3, where: str) -> Preprocessing:
    """Return what an image processor does, tried on a few pictures.

    Args:
        processor: Of transformers: has `to_dict()`, and prepares images when it is called.
        num_channels: Of the images that its model takes.
        where: What it belongs to, for messages.

    Raises:
        IncompatibleError: If it does what no preprocessing says, or prepares the pictures differently.
    """
    preprocessing = preprocessing_from_values(processor.to_dict(), num_channels=num_channels, where=where)
    for pixels in _pictures(num_channels):
        _compare(processor, preprocessing, pixels, where=where)
    return preprocessing


def preprocessing_from_values(values: Mapping[str, Any], *, num_channels: int, where: str) -> Preprocessing:
    """Return what the settings of an image processor say, untried.

    Args:
        values: As in `preprocessor_config.json`, with the defaults of the processor's class filled in.
        num_channels: Of the images that its model takes.
        where: What it belongs to, for messages.

    Raises:
        IncompatibleError: If they say what no preprocessing says, such as a size in proportion that is not cropped.
    """
    colors = {1: "L", 3: "RGB", 4: "RGBA"}
    if num_channels not in colors:
        raise _refused("num_channels", num_channels, f"expected one of {tuple(colors)}", where=where)
    mean, std = _statistics(values, where=where)
    resize, crop = _sizes(values, where=where)
    resample = values.get("resample", 2)
    if not isinstance(resample, int) or not 0 <= resample < len(INTERPOLATIONS):
        raise _refused("resample", resample, f"expected 0 to {len(INTERPOLATIONS) - 1}", where=where)
    color = colors[num_channels]
    if values.get("do_flip_channel_order") and num_channels == 3:
        color = "BGR"
    rescale = values.get("rescale_factor", EIGHT_BITS) if values.get("do_rescale", True) else 1.0
    return Preprocessing(
        resize=resize,
        crop=crop,
        mean=mean,
        std=std,
        color=color,
        interpolation=INTERPOLATIONS[resample],
        rescale=rescale,
        crop_rounding="down",
    )


def _statistics(values: Mapping[str, Any], *, where: str) -> tuple[Any, Any]:
    """Return mean and deviation, one number each, or one a channel."""
    mean: Any = 0.0
    std: Any = 1.0
    # MobileViT's processor, which turns the channels round, does not normalise and has no setting for it.
    if values.get("do_normalize", "do_flip_channel_order" not in values):
        mean, std = _numbers(values, "image_mean", where=where), _numbers(values, "image_std", where=where)
    if values.get("rescale_offset"):  # pixel * rescale - 1 comes before the mean
        mean = np.add(mean, 1.0).tolist()
    if values.get("include_top"):  # EfficientNet's processor divides once more
        std = np.multiply(std, _numbers(values, "image_std", where=where)).tolist()
        mean = np.broadcast_to(mean, np.shape(std)).tolist()
    return mean, std


def _numbers(values: Mapping[str, Any], name: str, *, where: str) -> Any:
    given = values.get(name)
    if isinstance(given, list | tuple):
        return given[0] if len(given) == 1 else list(given)
    if not isinstance(given, int | float):
        raise _refused(name, given, "expected numbers where do_normalize is true", where=where)
    return given


def _sizes(values: Mapping[str, Any], *, where: str) -> tuple[Any, Any]:
    """Return what is resized to, and what is cut out."""
    resize: Any = None
    crop: Any = None
    if values.get("do_resize", True):
        resize = _resize(values.get("size"), where=where)
    if "crop_pct" in values and isinstance(resize, int):
        squashes = resize >= _WARPED_FROM
        crop = None if squashes else resize
        resize = (resize, resize) if squashes else int(resize / values["crop_pct"])
    elif str(values.get("image_processor_type")).startswith("Levit") and isinstance(resize, int):
        resize = int(256 / 224 * resize)
    if values.get("do_center_crop"):
        size = values.get("crop_size")
        crop = (size, size) if isinstance(size, int) else _pair(size)
        if crop is None:
            raise _refused("crop_size", size, "expected a height and a width", where=where)
    if crop is None and not isinstance(resize, tuple):
        raise _refused(
            "size", values.get("size"), "expected a height and a width, or a crop: images differ in shape", where=where
        )
    return resize, crop


def _resize(size: object, *, where: str) -> int | tuple[int, int]:
    pair = _pair(size)
    if pair is not None:
        return pair
    if isinstance(size, Mapping):
        given = {name: value for name, value in size.items() if value is not None}
        if set(given) == {"shortest_edge"} and isinstance(given["shortest_edge"], int):
            return int(given["shortest_edge"])
    raise _refused("size", size, "expected height and width, or shortest_edge alone", where=where)


def _pair(size: object) -> tuple[int, int] | None:
    if not isinstance(size, Mapping):
        return None
    height, width = size.get("height"), size.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _refused(setting: str, found: object, expected: str, *, where: str) -> IncompatibleError:
    return IncompatibleError(
        f"The image processor of {where} has {setting} {shown(found)}; {expected}.",
        found=shown(found),
        expected=expected,
        where=where,
        hint=GIVE_PREPROCESS,
    )


def _pictures(num_channels: int) -> list[UInt8]:
    """Return pictures of `_TRIED_SIZES`, `(height, width, num_channels)` uint8 each; grey ones without channels."""
    pictures = []
    for index, (height, width) in enumerate(_TRIED_SIZES):
        image = neutral_images(1, height, width, seed=0, first=2 * index)[0]
        channels = image[np.arange(num_channels) % len(image)].transpose(1, 2, 0)
        pixels = np.rint(255 * channels).astype(np.uint8)
        pictures.append(pixels[..., 0] if num_channels == 1 else pixels)
    return pictures


def _compare(processor: Any, preprocessing: Preprocessing, pixels: UInt8, *, where: str) -> None:
    from PIL import Image

    image = Image.fromarray(pixels)
    try:
        expected: Float32 = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0])
    except Exception as error:  # the processor's own
        raise IncompatibleError(
            f"The image processor of {where} fails on a picture of {image.width} x {image.height} pixels: "
            f"{reason_of(error)}.",
            found=reason_of(error),
            where=where,
            hint=GIVE_PREPROCESS,
        ) from error
    found = preprocessing.prepare(image)
    name = type(processor).__name__
    if expected.shape != found.shape:
        raise IncompatibleError(
            f"{name} of {where} gives images of shape {expected.shape}; its settings, as they were read, give "
            f"{found.shape}.",
            found=found.shape,
            expected=expected.shape,
            where=where,
            hint=GIVE_PREPROCESS,
        )
    std = np.asarray(preprocessing.std).reshape(-1, 1, 1)
    levels = float((np.abs(found.astype(np.float64) - expected) * std).max() / preprocessing.rescale)
    if not levels <= MAX_LEVELS:
        raise IncompatibleError(
            f"{name} of {where} prepares images in a way of its own: a picture of {image.width} x {image.height} "
            f"pixels differs by {levels:.1f} levels of 255 from what its settings say, as they were read.",
            found=levels,
            expected=f"at most {MAX_LEVELS}",
            where=where,
            hint=GIVE_PREPROCESS,
        )
