"""From whatever an input is to what a model takes, in batches.

One rule for all:

1. A file (also as bytes), a Pillow image, and an array of uint8 `(height, width)` or `(height, width, 1, 3 or 4)` where
   it is known how images are prepared, are images: they are prepared so. Arrays have red before green before blue.
2. Every other array is an input as the model takes it: of its shape, or flat with as many numbers. A model that takes
   float32 is given any real numbers as float32, all finite; others take their own type alone.
3. An array of uint8 that has the shape of a model that takes pixels is taken as it is.

What PyTorch holds is copied to an array first; of uint8 with the channels in front it is an image.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.ahead import map_ahead
from icis_deploy.common.arrays import Images
from icis_deploy.errors import ImageError, UsageError
from icis_deploy.images.array_files import array_of_bytes, map_array
from icis_deploy.images.input_files import RemoteFile, read_input
from icis_deploy.images.loading import decode_image, prepare_picture, read_image
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.sources import MAX_IMAGE_BYTES, InputItem, InputSource, InputValue

if TYPE_CHECKING:
    from PIL.Image import Image

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputForm:
    """What one input of a model is, and how an image becomes one."""

    shape: tuple[int | None, ...]
    """Without the batch; `None` where any size is taken."""

    dtype: str = "float32"
    """`float32`: prepared. `uint8`: pixels, resized and cropped, where it is known how images are prepared."""

    preprocessing: Preprocessing | None = None
    """How images are prepared; `None` where the model takes none, or nobody says it."""

    reduced_decode: bool = False
    """Whether JPEG files are decoded at a part of their size; see `Preprocessing.crop_image`. Pictures in memory are
    taken as they are."""

    @property
    def takes_pixels(self) -> bool:
        """Whether scale, mean, deviation, layout and colour order are the model's own work."""
        return self.dtype == "uint8" and self.preprocessing is not None

    @property
    def noun(self) -> str:
        """What an input is called in messages."""
        return "input" if self.preprocessing is None else "image"

    def fits(self, shape: Sequence[int]) -> bool:
        """Say whether one input can have this shape."""
        return len(shape) == len(self.shape) and all(
            size is None or size == found for size, found in zip(self.shape, shape, strict=True)
        )


def open_shape(input_shape: Sequence[int | str]) -> tuple[int | None, ...]:
    """Return the shape of one input of a graph's input, batch first; names, which stand for any size, are `None`."""
    return tuple(size if isinstance(size, int) else None for size in input_shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedBatch:
    """Some of the inputs of a source, as a model takes them."""

    inputs: Images
    """`(batch, *input_shape)`."""

    keys: tuple[str, ...]
    """`(batch,)`, what each is called."""

    labels: tuple[str, ...] | None
    """`(batch,)`, names of the classes that they show; `None` where nobody says."""


def prepared_batches(
    source: InputSource, form: InputForm, *, batch_size: int, workers: int = 1, first: int = 0
) -> Iterator[PreparedBatch]:
    """Yield the inputs of a source in batches, in order; the last one may be smaller.

    Args:
        source: The inputs.
        form: What the model takes.
        batch_size: Inputs of a batch.
        workers: Threads that prepare batches while others are used.
        first: Inputs that are passed over, unread where they are files.

    Raises:
        ImageError: Naming the input that cannot be read, or is none that the model takes.
        UsageError: If one is an image, and nothing says how images are prepared.
    """

    def prepared(part: Sequence[InputItem]) -> PreparedBatch:
        return PreparedBatch(
            inputs=prepare([item.value for item in part], form, keys=[item.key for item in part]),
            keys=tuple(item.key for item in part),
            labels=None if source.labels is None else tuple(item.label or "" for item in part),
        )

    return map_ahead(prepared, _parts(source, batch_size, first), workers=workers)


def _parts(source: InputSource, batch_size: int, first: int) -> Iterator[list[InputItem]]:
    items = islice(iter(source), first, None)
    while part := list(islice(items, batch_size)):
        yield part


class BatchMemory:
    """Memory of one batch, written again with the next one: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self._array: Images | None = None

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Images:
        """Return a batch whose values are whatever was there; what was taken before is no longer the caller's."""
        kept = self._array
        if kept is None or kept.shape[1:] != shape[1:] or kept.dtype != dtype or len(kept) < shape[0]:
            kept = self._array = np.empty(shape, dtype=dtype)
        return kept[: shape[0]]


def prepare(
    values: Sequence[InputValue], form: InputForm, *, keys: Sequence[str], memory: BatchMemory | None = None
) -> Images:
    """Return inputs as one batch, `(num_inputs, *input_shape)` in the dtype of the model's input.

    Args:
        values: At least one.
        form: What the model takes.
        keys: `(num_inputs,)`, what each is called in messages.
        memory: Where the batch is written, until the next one is; `None` for memory of its own.

    Raises:
        ImageError, UsageError: As `prepared_batches`.
    """
    first = _read(values[0], form, keys[0])
    shape = (len(values), *first.shape)
    batch = (BatchMemory() if memory is None else memory).take(shape, first.dtype)
    first.write(batch[:1])
    for index in range(1, len(values)):
        one = _read(values[index], form, keys[index])
        if one.shape != first.shape:
            raise ImageError(
                f"{keys[index]} has shape {one.shape}, and {keys[0]} has {first.shape}; one batch has one shape.",
                found=one.shape,
                expected=first.shape,
                where=keys[index],
                hint="Give inputs of different shapes one at a time.",
            )
        one.write(batch[index : index + 1])
    return batch


class _Read(NamedTuple):
    """One input, read."""

    array: NDArray[Any]
    """As the model takes it, or a resized and cropped image."""

    preprocessing: Preprocessing | None = None
    """What makes such an image an input; `None` where it is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input."""
        return self.array.shape if self.preprocessing is None else self.preprocessing.input_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the input."""
        return self.array.dtype if self.preprocessing is None else np.dtype(np.float32)

    def write(self, place: NDArray[Any]) -> None:
        """Write the input to a batch of one."""
        if self.preprocessing is None:
            place[0] = self.array
        else:
            self.preprocessing.from_pixels(self.array[None], out=place)


def _read(value: InputValue, form: InputForm, key: str) -> _Read:
    if isinstance(value, np.ndarray):
        return _from_array(value, form, key)
    if isinstance(value, Path) and value.suffix.lower() == ".npy":
        return _from_array(map_array(value), form, key)
    if isinstance(value, RemoteFile):
        data = read_input(value, max_bytes=MAX_IMAGE_BYTES)
        return _read(data if needs_preparing(value) else array_of_bytes(data, where=key), form, key)
    preprocessing = form.preprocessing
    if preprocessing is None:
        raise UsageError(
            f"{key} is an image, and nothing says how images are prepared.",
            found="no preprocessing",
            expected="how images are prepared",
            where=key,
            hint="Give `preprocess` where the bundle is exported, or arrays as the model takes them.",
        )
    crop = preprocessing.crop_pixels if form.takes_pixels else preprocessing.crop_image
    crop_file = partial(crop, reduced_decode=form.reduced_decode)
    if isinstance(value, Path):
        pixels = read_image(value, crop_file)
    elif isinstance(value, bytes):
        pixels = decode_image(value, crop_file, where=key)
    else:
        pixels = prepare_picture(value, crop, where=key)
    return _Read(pixels, None if form.takes_pixels else preprocessing)


def _from_array(array: NDArray[Any], form: InputForm, key: str) -> _Read:
    is_whole = form.takes_pixels and array.dtype == np.uint8 and form.fits(array.shape)
    if form.preprocessing is not None and not is_whole and is_picture(array):
        return _read(_picture(array), form, key)
    dtype = np.dtype(form.dtype)
    takes_it = array.dtype.kind in "fiub" if dtype.kind == "f" and array.dtype != np.uint8 else array.dtype == dtype
    # Numbers of a table may be small: only where the model takes images are these what a picture must not be taken for.
    takes_it |= dtype.kind == "f" and form.preprocessing is None and array.dtype == np.uint8
    if not form.fits(array.shape) and array.ndim == 1 and None not in form.shape:
        sizes = [size for size in form.shape if size is not None]
        array = array.reshape(sizes) if array.size == math.prod(sizes) else array
    if not takes_it or not form.fits(array.shape):
        raise _does_not_fit(array, form, key)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused by name
        found = np.asarray(array, dtype=dtype)
    if dtype.kind == "f" and not np.isfinite(found).all():
        where = tuple(int(index) for index in np.argwhere(~np.isfinite(found))[0])
        raise ImageError(
            f"{key} holds {array[where]} at {where}; expected finite numbers.",
            found=str(array[where]),
            expected="finite float32",
            where=key,
            hint="Fill missing values as they were filled when the model was trained.",
        )
    return _Read(found)


def _does_not_fit(array: NDArray[Any], form: InputForm, key: str) -> ImageError:
    shape = tuple("any" if size is None else size for size in form.shape)
    what = "" if form.preprocessing is None else ", or images as uint8 (height, width, channels)"
    # The words of a shape and a type are those of a batch, which is what most are taken from.
    return ImageError(
        f"{key} has shape {tuple(array.shape)} and dtype {array.dtype}; the bundle's model takes {shape} and "
        f"{form.dtype}{what}.",
        found=(tuple(array.shape), str(array.dtype)),
        expected=(shape, form.dtype),
        where=key,
        hint="Prepare it as the model takes it.",
    )


def is_picture(array: NDArray[Any]) -> bool:
    """Say whether an array can be an image as a decoder gives it."""
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    return array.dtype == np.uint8 and has_shape and array.size > 0


def _picture(array: NDArray[Any]) -> Image:
    import PIL.Image

    return PIL.Image.fromarray(
        np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    )


def as_array(value: object, form: InputForm | None = None) -> object:
    """Return what PyTorch holds as an array, everything else as it is.

    Args:
        value: Anything.
        form: What the model takes: where that is images, uint8 with its channels in front gets them last, as images
            have them.

    Raises:
        ImageError: If it is an array of which numpy masks a value: what stands there is no number of the input.
    """
    masked = sys.modules.get("numpy.ma")  # whoever has one has imported it
    if masked is not None and isinstance(value, masked.MaskedArray):
        num_masked = int(masked.count_masked(value))
        if num_masked:
            raise ImageError(
                f"An array masks {num_masked} of its {value.size} values, which are missing.",
                found=f"{num_masked} masked values",
                expected="finite numbers",
                hint="Fill missing values as they were filled when the model was trained.",
            )
        return value.data
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    takes_images = form is None or form.preprocessing is not None
    is_image = takes_images and array.dtype == np.uint8 and array.ndim >= 3 and array.shape[-3] in _CHANNELS
    return np.moveaxis(array, -3, -1) if is_image and array.shape[-1] not in _CHANNELS else array


def holds_images(source: InputSource) -> bool:
    """Say whether inputs are images, which have to be prepared, and not arrays; the first one says it for all."""
    return needs_preparing(next(iter(source)).value)


def needs_preparing(value: InputValue) -> bool:
    """Say whether an input is an image, and no array."""
    return not isinstance(value, np.ndarray) and not (
        isinstance(value, Path | RemoteFile) and value.suffix.lower() == ".npy"
    )
