"""Images and lists of labelled images, read with Pillow."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32, UInt8
from icis_deploy.common.files import open_plain, read_capped
from icis_deploy.errors import ImageError, UsageError
from icis_deploy.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_LIST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledImages:
    """A list of image files, each with the class that it shows."""

    paths: tuple[Path, ...]
    """`(num_images,)`, files of the images."""

    labels: tuple[str, ...]
    """`(num_images,)`, names of the classes that they show."""


def load_image_list(path: Path) -> LabeledImages:
    """Read a CSV with the columns `file` and `class`; files are relative to the folder that the CSV is in.

    Raises:
        ImageError: If it cannot be read, lacks a column, is empty, or names a file that is not there.
    """
    data = read_capped(path, max_bytes=MAX_LIST_BYTES, what="image list", error_type=ImageError)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImageError(
            f"The image list {path} is not a CSV file in UTF-8: {error}.",
            found=str(error),
            expected="a CSV file in UTF-8",
            where=path,
        ) from error
    columns = list(reader.fieldnames or ())
    if not rows or not {"file", "class"} <= set(columns):
        found = f"the columns {', '.join(map(repr, columns))}" if rows else "no rows"
        raise ImageError(
            f"The image list {path} has {found}; expected a header `file,class` and a line per image.",
            found=tuple(columns),
            expected="a header with the columns file and class, and a line per image",
            where=path,
        )
    paths: list[Path] = []
    labels: list[str] = []
    for line, row in rows:
        if not row["file"] or not row["class"]:
            raise ImageError(
                f"The image list {path} lacks a file or a class in line {line}.",
                where=f"{path}, line {line}",
            )
        file = path.parent / row["file"]
        if not os.path.isfile(file):  # noqa: PTH113 - pathlib raises for a name that is too long
            raise ImageError(
                f"The image list {path} names {row['file']!r} in line {line}, which is not at {file}.",
                found=row["file"],
                where=f"{path}, line {line}",
            )
        paths.append(file)
        labels.append(row["class"])
    return LabeledImages(paths=tuple(paths), labels=tuple(labels))


def load_prepared_list(path: str | Path | None, preprocessing: Preprocessing | None) -> LabeledImages | None:
    """Read an image list to run models on; `None` stays `None`.

    Raises:
        UsageError: If it is not known how its images are prepared.
        ImageError: As `load_image_list`.
    """
    if path is None:
        return None
    if preprocessing is None:
        raise UsageError(
            "Images can only be used where it is known how they are prepared.",
            hint="Export with `preprocess`, or leave `images` out.",
        )
    return load_image_list(Path(path))


def load_images(paths: Sequence[Path], preprocessing: Preprocessing) -> Float32:
    """Read and prepare images.

    Returns:
        `(num_images, *preprocessing.input_shape)` float32.

    Raises:
        ImageError: Naming the file that is missing or is no image.
    """
    batch = np.empty((len(paths), *preprocessing.input_shape), dtype=np.float32)
    for index, path in enumerate(paths):
        batch[index] = _read_image(path, preprocessing.prepare)
    return batch


def load_pixels(paths: Sequence[Path], preprocessing: Preprocessing) -> UInt8:
    """Read, resize and crop images, for a model that does the rest of the preparation itself.

    Returns:
        `(num_images, *preprocessing.pixel_shape)` uint8.

    Raises:
        ImageError: As `load_images`.
    """
    batch = np.empty((len(paths), *preprocessing.pixel_shape), dtype=np.uint8)
    for index, path in enumerate(paths):
        batch[index] = _read_image(path, preprocessing.crop_pixels)
    return batch


def _read_image(path: Path, prepare: Callable[[Image], NDArray[np.generic]]) -> NDArray[np.generic]:
    import PIL.Image

    try:
        with open_plain(path) as raw, io.BufferedReader(raw) as file, PIL.Image.open(file) as image:
            return prepare(image)
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image that Pillow can read.",
            expected="an image that Pillow can read",
            where=path,
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"Cannot read the image {path}: {reason}.",
            found=str(reason),
            where=path,
        ) from error


def iterate_batches(paths: Sequence[Path], preprocessing: Preprocessing, *, batch_size: int) -> Iterator[Float32]:
    """Yield prepared images in batches; the last one may be smaller.

    Raises:
        ImageError: As `load_images`.
    """
    for start in range(0, len(paths), batch_size):
        yield load_images(paths[start : start + batch_size], preprocessing)
