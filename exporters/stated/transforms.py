"""How torchvision's transforms and timm's configurations prepare images, as a preprocessing.

Both are read by their attributes and by the names of their classes: neither library is imported.

    torchvision   `weights.transforms()`, an `ImageClassification`: resize_size, crop_size, mean, std, interpolation
                  `Compose`: Grayscale, Resize, CenterCrop, ToTensor and its like, Normalize, each once and in order
    timm          `pretrained_cfg`: input_size, crop_pct, crop_mode, interpolation, mean, std

Sources: torchvision/transforms/_presets.py and transforms.py; timm/data/config.py and transforms_factory.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporters.stated.statement import GIVE_PREPROCESS
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import IncompatibleError
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.resampling import OFF, PILLOW, TORCH

_TO_FLOATS = frozenset({"ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToDtype"})
_TO_PIXELS = frozenset({"PILToTensor", "MaybePILToTensor", "ToImage"})
_ORDER = ("Grayscale", "Resize", "CenterCrop", "Normalize")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TIMM_CROP_PCT = 0.875
"""timm's defaults, where a configuration does not say."""


def is_transforms(given: object) -> bool:
    """Say whether something looks like torchvision's transforms."""
    is_preset = all(hasattr(given, name) for name in ("resize_size", "crop_size", "mean", "std"))
    return is_preset or isinstance(getattr(given, "transforms", None), Sequence)


def preprocessing_of_transforms(transforms: Any, *, where: str) -> Preprocessing:
    """Return what transforms of torchvision do to an image of Pillow.

    Args:
        transforms: `is_transforms` must hold.
        where: What they belong to, for messages.

    Raises:
        IncompatibleError: If they do what no preprocessing says, or in another order.
    """
    if isinstance(getattr(transforms, "transforms", None), Sequence):
        return _of_steps(transforms.transforms, where=where)
    return Preprocessing(
        resize=_size(transforms.resize_size, where=where),
        crop=_size(transforms.crop_size, where=where),
        mean=transforms.mean,
        std=transforms.std,
        interpolation=_filter(transforms, where=where),
    )


def preprocessing_of_timm(config: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return what timm's evaluation transforms do for a model of this configuration.

    Args:
        config: `pretrained_cfg` or `default_cfg` of a model, with `input_size`.
        where: Of which model, for messages.

    Raises:
        IncompatibleError: If they do what no preprocessing says: borders, or a crop that is no square.
    """
    channels, height, width = config["input_size"]
    part = config.get("crop_pct") or _TIMM_CROP_PCT
    scaled = math.floor(height / part), math.floor(width / part)
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise IncompatibleError(
            f"timm's configuration of {where} has crop_mode {shown(mode)} and images of {height} x {width} pixels; "
            f"expected squash, or center with a square.",
            found=(shown(mode), height, width),
            expected="squash, or center with a square",
            where=where,
            hint=GIVE_PREPROCESS,
        )
    name = config.get("interpolation") or "bilinear"
    return Preprocessing(
        resize=scaled if mode == "squash" else scaled[0],
        crop=(height, width),
        mean=_per_channel(config.get("mean") or _IMAGENET_MEAN, channels),
        std=_per_channel(config.get("std") or _IMAGENET_STD, channels),
        color=_color(channels, where=where),
        interpolation="bilinear" if name == "random" else name,
    )


def _per_channel(values: Any, num_channels: int) -> Any:
    """Return the first value of timm's defaults for colours where a model takes grey."""
    return values[0] if num_channels == 1 and isinstance(values, Sequence) else values


def _color(num_channels: int, *, where: str) -> str:
    colors = {1: "L", 3: "RGB", 4: "RGBA"}
    if num_channels not in colors:
        raise IncompatibleError(
            f"{where} takes images of {num_channels} channels; expected one of {tuple(colors)}.",
            found=num_channels,
            expected=tuple(colors),
            where=where,
            hint=GIVE_PREPROCESS,
        )
    return colors[num_channels]


def _of_steps(steps: Sequence[Any], *, where: str) -> Preprocessing:
    settings: dict[str, Any] = {"resize": None, "mean": 0.0, "std": 1.0, "rescale": 1.0}
    readers: Mapping[str, Callable[..., dict[str, Any]]] = {
        "Grayscale": _grayscale,
        "Resize": _resize,
        "CenterCrop": _center_crop,
        "Normalize": _normalize,
    }
    read: list[str] = []
    for step in steps:
        name = type(step).__name__
        if name in _TO_FLOATS or name in _TO_PIXELS:
            if name in _TO_FLOATS and getattr(step, "scale", True):
                settings["rescale"] = 1 / 255
            read.append(name)
            continue
        is_late = name in _ORDER and any(each in _ORDER[_ORDER.index(name) :] for each in read)
        if name not in readers or is_late:
            raise IncompatibleError(
                f"The transforms of {where} have {name}{' after ' + read[-1] if is_late else ''}; expected "
                f"{', '.join(_ORDER)} at most, each once and in that order, and ToTensor.",
                found=name,
                expected=_ORDER,
                where=where,
                hint=GIVE_PREPROCESS,
            )
        settings |= readers[name](step, read, where=where)
        read.append(name)
    if "crop" not in settings and not isinstance(settings["resize"], tuple):
        raise IncompatibleError(
            f"The transforms of {where} leave images of different shapes; expected Resize to a height and a width, or "
            f"CenterCrop.",
            found=tuple(read),
            expected="Resize to a height and a width, or CenterCrop",
            where=where,
            hint=GIVE_PREPROCESS,
        )
    return Preprocessing(**settings)


def _grayscale(step: Any, _read: Sequence[str], *, where: str) -> dict[str, Any]:
    del where
    return {"color": "L", "channels": getattr(step, "num_output_channels", 1)}


def _resize(step: Any, read: Sequence[str], *, where: str) -> dict[str, Any]:
    if getattr(step, "max_size", None) is not None:
        raise IncompatibleError(
            f"Resize of {where} has max_size {shown(step.max_size)}; expected none: images would differ in shape.",
            found=shown(step.max_size),
            expected=None,
            where=where,
            hint=GIVE_PREPROCESS,
        )
    antialias = PILLOW
    name = _filter(step, where=where, of_tensors=any(each in _TO_FLOATS | _TO_PIXELS for each in read))
    if any(each in _TO_FLOATS for each in read):
        antialias = TORCH if getattr(step, "antialias", None) else OFF
    elif any(each in _TO_PIXELS for each in read) and not getattr(step, "antialias", None):
        raise IncompatibleError(
            f"Resize of {where} resizes 8-bit tensors without antialiasing, which is rounded as nothing else is.",
            found="antialias=False",
            expected="images of Pillow, or tensors of floats",
            where=where,
            hint=GIVE_PREPROCESS,
        )
    return {"resize": _size(step.size, where=where), "interpolation": name, "antialias": antialias}


def _center_crop(step: Any, _read: Sequence[str], *, where: str) -> dict[str, Any]:
    return {"crop": _size(step.size, where=where)}


def _normalize(step: Any, _read: Sequence[str], *, where: str) -> dict[str, Any]:
    del where
    mean, std = ([float(each) for each in values] for values in (step.mean, step.std))
    return {
        "mean": mean[0] if len(mean) == 1 else mean,
        "std": std[0] if len(std) == 1 else std,
    }


def _filter(step: Any, *, where: str, of_tensors: bool = False) -> str:
    """Return the filter of a step; torchvision's are an enumeration whose values are names."""
    given = getattr(step, "interpolation", "bilinear")
    name = getattr(given, "value", given)
    names = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
    if isinstance(name, int) and 0 <= name < len(names):  # a number of Pillow, before torchvision 0.9
        name = names[name]
    if name == "nearest-exact" and not of_tensors:  # Pillow has one way
        name = "nearest"
    if name not in names:
        raise IncompatibleError(
            f"The transforms of {where} interpolate by {shown(name)}; expected one of {names}.",
            found=shown(name),
            expected=names,
            where=where,
            hint=GIVE_PREPROCESS,
        )
    return str(name)


def _size(size: Any, *, where: str) -> int | tuple[int, int]:
    """Return a size of torchvision: a number, a list of one, or height and width."""
    values = list(size) if isinstance(size, Sequence) else [size]
    if len(values) == 1 and isinstance(values[0], int):
        return values[0]
    if len(values) == 2 and all(isinstance(each, int) for each in values):
        return values[0], values[1]
    raise IncompatibleError(
        f"The transforms of {where} have the size {shown(size)}; expected whole numbers of pixels.",
        found=shown(size),
        expected="a number, or height and width",
        where=where,
        hint=GIVE_PREPROCESS,
    )
