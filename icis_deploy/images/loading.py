"""Images and labelled images, read with Pillow.

Labelled images come in three forms:

    images.csv    columns `file` and `class`
    a folder      one folder for each class, named as the class, with its images
    images.npz    `images` as the model takes them, and `labels`, the names of their classes

Where labels are not needed (`list_images`), a list may have the column `file` alone, and a folder images alone.

Rules for folders: images are the files with a suffix of `IMAGE_SUFFIXES`; folders whose name starts with a dot are left
out; class folders hold images, no further folders; there is no image next to class folders, and no class folder without
one.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.archives import read_npz
from icis_deploy.common.arrays import Float32, Images, UInt8
from icis_deploy.common.csv_rows import csv_rows
from icis_deploy.common.files import open_plain, read_capped
from icis_deploy.common.terminal_text import MAX_SHOWN, printable, reason_of, shown
from icis_deploy.errors import ImageError, UsageError
from icis_deploy.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_LIST_BYTES = 1 << 28
MAX_LIST_CELLS = 1 << 25
"""Files and classes of 16 million images; ImageNet-21k has 14 million."""

MAX_ARRAY_BYTES = 1 << 34
MAX_IMAGE_BYTES = 1 << 29
"""Of one image file: as many pixels as are taken, not compressed, of four channels and 16 bits. Some of Pillow's
readers take the whole file into memory."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What is an image among the files of a folder; a list may name others."""

TO_LABEL = "Move the images of each class into a folder of its name, or give a CSV with the columns file and class."
"""Hint for images without a class."""

_MAX_NAMED = 5


ARRAY_SUFFIXES = frozenset({".npz", ".npy", ".safetensors"})
"""Of files that are no list of images, but may be taken for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledImages:
    """A list of image files, each with the class that it shows."""

    paths: tuple[Path, ...]
    """`(num_images,)`, files of the images."""

    labels: tuple[str, ...]
    """`(num_images,)`, names of the classes that they show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImages:
    """A list of image files, with or without the classes that they show."""

    paths: tuple[Path, ...]
    """`(num_images,)`, files of the images."""

    labels: tuple[str, ...] | None
    """`(num_images,)`, names of the classes that they show; `None` where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledArrays:
    """Images as a model takes them, each with the class that it shows."""

    images: Images
    """`(num_images, *input_shape)` in the dtype of the model's input."""

    labels: tuple[str, ...]
    """`(num_images,)`, names of the classes that they show."""


def load_image_list(path: Path) -> LabeledImages:
    """Read a list of labelled images.

    Args:
        path: A CSV with the columns `file` and `class`, whose files are relative to the folder that it is in; or a
            folder of class folders.

    Raises:
        ImageError: As `list_images`, and if it does not say which classes the images show.
    """
    listed = list_images(path)
    if listed.labels is not None:
        return LabeledImages(paths=listed.paths, labels=listed.labels)
    if path.is_dir():
        raise ImageError(
            f"The folder {path} holds {len(listed.paths)} images without a class; expected one folder for each class, "
            f"named as the class.",
            found=len(listed.paths),
            expected="one folder for each class, named as the class",
            where=path,
            hint=TO_LABEL,
        )
    raise ImageError(
        f"The image list {path} has the column 'file' alone; expected a header `file,class` and a line per image.",
        found=("file",),
        expected="a header with the columns file and class, and a line per image",
        where=path,
    )


def list_images(path: Path) -> ListedImages:
    """Read a list of images, with their classes where it says them.

    Args:
        path: A CSV with the columns `file` and `class`, or with `file` alone, whose files are relative to the folder
            that it is in; or a folder, of class folders or of images.

    Raises:
        ImageError: If it cannot be read, lacks a column, is empty, names a file that is not there, or breaks a rule for
            folders.
    """
    return _list_folder(path) if path.is_dir() else _read_list(path)


def _read_list(path: Path) -> ListedImages:
    if path.suffix in ARRAY_SUFFIXES:
        raise ImageError(
            f"{path} holds arrays, and no image can be read from it.",
            found=path.suffix,
            expected="a CSV that lists image files, or a folder of them",
            where=path,
            hint="Give a list or a folder of images. Features can be given in `seen_images`: an .npz of features and "
            "labels.",
        )
    data = read_capped(path, max_bytes=MAX_LIST_BYTES, what="image list", error_type=ImageError)
    try:
        rows = csv_rows(data, max_cells=MAX_LIST_CELLS)
        _, header = next(rows, (0, []))
        return _listed(path, header, rows)
    except (ValueError, csv.Error) as error:
        raise ImageError(
            f"The image list {path} is not a CSV file in UTF-8: {reason_of(error)}.",
            found=reason_of(error),
            expected="a CSV file in UTF-8",
            where=path,
        ) from error


def _listed(path: Path, header: list[str], rows: Iterator[tuple[int, list[str]]]) -> ListedImages:
    is_labelled, first = "class" in header, next(rows, None)
    if first is None or "file" not in header or not (is_labelled or header == ["file"]):
        columns = printable(", ".join(map(repr, header)), max_length=MAX_SHOWN)
        found = "no rows" if first is None else f"the columns {columns}"
        raise ImageError(
            f"The image list {path} has {found}; expected a header `file,class` and a line per image.",
            found=tuple(header),
            expected="a header with the columns file and class, and a line per image",
            where=path,
        )
    paths: list[Path] = []
    labels: list[str] = []
    for line, row in chain([first], rows):
        values = dict(zip(header, row, strict=False))  # a row may have fewer cells than the header, or more
        name, label = values.get("file"), values.get("class")
        if not name or (is_labelled and not label):
            raise ImageError(
                f"The image list {path} lacks a file{' or a class' if is_labelled else ''} in line {line}.",
                where=f"{path}, line {line}",
            )
        file = path.parent / name
        if not os.path.isfile(file):  # noqa: PTH113 - pathlib raises for a name that is too long
            raise ImageError(
                f"The image list {path} names {shown(name)} in line {line}, which is not at {file}.",
                found=name,
                where=f"{path}, line {line}",
            )
        paths.append(file)
        if label:
            labels.append(sys.intern(label))
    return ListedImages(paths=tuple(paths), labels=tuple(labels) if is_labelled else None)


def _list_folder(folder: Path) -> ListedImages:
    try:
        inside = sorted(folder.iterdir())
        loose = _images_among(inside)
        of_class = {
            each.name: _images_among(sorted(each.iterdir()))
            for each in inside
            if each.is_dir() and not each.name.startswith(".")
        }
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"Cannot read the folder {folder}: {reason}.", found=reason, where=folder) from error
    pairs = [(path, name) for name, paths in of_class.items() for path in paths]
    if loose and pairs:
        raise ImageError(
            f"The folder {folder} holds {len(pairs)} images in class folders and {len(loose)} next to them; expected a "
            f"folder of images for each class, or images alone.",
            found=tuple(path.name for path in loose),
            expected="class folders, or images",
            where=folder,
            hint=TO_LABEL,
        )
    if loose:
        return ListedImages(paths=tuple(loose), labels=None)
    if not pairs:
        raise ImageError(
            f"There is no image in the folder {folder}, nor in the folders that it holds; expected one folder for each "
            f"class, named as the class.",
            found=tuple(path.name for path in inside[:_MAX_NAMED]),
            expected=tuple(sorted(IMAGE_SUFFIXES)),
            where=folder,
            hint=TO_LABEL,
        )
    if empty := [name for name, paths in of_class.items() if not paths]:
        raise ImageError(
            f"There are class folders without an image in {folder}: {len(empty)}, such as {shown(empty[0])}.",
            found=tuple(empty),
            expected=tuple(sorted(IMAGE_SUFFIXES)),
            where=folder,
            hint="Put images of these classes there, or remove the folders.",
        )
    return ListedImages(paths=tuple(path for path, _ in pairs), labels=tuple(name for _, name in pairs))


def _images_among(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def load_labeled_arrays(path: Path) -> LabeledArrays:
    """Read prepared images with their labels from a `.npz` file.

    Raises:
        ImageError: If it cannot be read, or the two do not fit.
    """
    data = read_capped(path, max_bytes=MAX_ARRAY_BYTES, what="file of images", error_type=ImageError)
    try:
        arrays, names = read_npz(io.BytesIO(data), ("images", "labels"), max_bytes=MAX_ARRAY_BYTES)
    except ValueError as error:
        raise ImageError(
            f"Cannot read the images in {path}: {reason_of(error)}.",
            found=reason_of(error),
            expected="an .npz file with images and labels",
            where=path,
        ) from error
    if len(arrays) < 2:
        raise ImageError(
            f"{path} holds {shown(list(names))}; expected `images`, as the model takes them, and `labels`, the names "
            f"of their classes.",
            found=names,
            expected=("images", "labels"),
            where=path,
            hint="`bench()` measures the accuracy of features." if "features" in names else None,
        )
    images, labels = arrays["images"], arrays["labels"]
    return labeled_arrays(images, labels.tolist() if labels.dtype.kind == "U" else labels, where=str(path))


def labeled_arrays(images: Images, labels: Sequence[object] | NDArray[Any], *, where: str) -> LabeledArrays:
    """Return prepared images with their labels.

    Args:
        images: `(num_images, *input_shape)`.
        labels: `(num_images,)` names of classes.
        where: Whence they come, for messages.

    Raises:
        ImageError: If they are of different numbers, there are none, or a label is no name.
    """
    array = np.asarray(images)
    if array.ndim < 2 or not len(array) or len(array) != len(labels):
        raise ImageError(
            f"{where}: the images have shape {array.shape}, and there are {len(labels)} labels; expected "
            f"(num_images, *input_shape) and a label for each image.",
            found=(array.shape, len(labels)),
            expected="(num_images, *input_shape), and a label for each image",
            where=where,
        )
    wrong = [each for each in labels if not isinstance(each, str)]
    if wrong:
        raise ImageError(
            f"{where}: the label {shown(wrong[0])} is no name of a class.",
            found=shown(wrong[0]),
            expected="names of classes, as text",
            where=where,
        )
    return LabeledArrays(images=array, labels=tuple(str(each) for each in labels))


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
        with open_plain(path) as raw, io.BufferedReader(raw) as file:
            if (size := os.fstat(raw.fileno()).st_size) > MAX_IMAGE_BYTES:
                raise ImageError(
                    f"it is {size} bytes; at most {MAX_IMAGE_BYTES} are read.",
                    found=size,
                    expected=f"at most {MAX_IMAGE_BYTES} bytes",
                    hint="Save it compressed.",
                )
            with PIL.Image.open(file) as image:
                return prepare(image)
    except ImageError as error:
        raise ImageError(
            f"Cannot read the image {path}: {error.what.rstrip('.')}.",
            found=error.found,
            expected=error.expected,
            where=path,
            hint=error.hint,
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image that Pillow can read.",
            expected="an image that Pillow can read",
            where=path,
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        reason = getattr(error, "strerror", None) or reason_of(error) or type(error).__name__
        raise ImageError(
            f"Cannot read the image {path}: {reason}.",
            found=reason,
            where=path,
        ) from error


def iterate_batches(paths: Sequence[Path], preprocessing: Preprocessing, *, batch_size: int) -> Iterator[Float32]:
    """Yield prepared images in batches; the last one may be smaller.

    Raises:
        ImageError: As `load_images`.
    """
    for start in range(0, len(paths), batch_size):
        yield load_images(paths[start : start + batch_size], preprocessing)
