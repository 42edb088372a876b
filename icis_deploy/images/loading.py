"""Lists and folders of images, and image files, read with Pillow.

Labelled images come in two forms, besides files of arrays (`array_files.py`):

    images.csv    columns `file` and `class`
    a folder      one folder for each class, named as the class, with its images

Where labels are not needed (`list_images`), a list may have the column `file` alone, and a folder images alone. A file
may also be an `.npy` with one input as the model takes it, such as a spectrogram.

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
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32, UInt8
from icis_deploy.common.csv_rows import csv_rows
from icis_deploy.common.files import open_plain, read_capped
from icis_deploy.common.terminal_text import MAX_SHOWN, printable, reason_of, shown
from icis_deploy.errors import ImageError
from icis_deploy.images.array_files import is_array_file, load_array_file
from icis_deploy.images.input_files import InputFile, exists, file_beside, input_file, read_input
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.shards import is_saved_dataset, shards_of
from icis_deploy.images.sources import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, InputItem, InputSource, join

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_LIST_BYTES = 1 << 28
_NOT_READ = {
    "EPS": "its pixels are what a program draws, which Pillow would have Ghostscript run",
    "IPTC": "it may hold an image of any other one and size",
}
"""Formats that Pillow opens, and whose pixels are never asked for: an image comes from whoever sends it."""

MAX_LIST_CELLS = 1 << 25
"""Files and classes of 16 million images; ImageNet-21k has 14 million."""

TO_LABEL = "Move the images of each class into a folder of its name, or give a CSV with the columns file and class."
"""Hint for images without a class."""

_MAX_NAMED = 5

Prepared = TypeVar("Prepared", bound=NDArray[Any])


ARRAY_SUFFIXES = frozenset({".npz", ".npy", ".safetensors"})
"""Of files that are no list of images, but may be taken for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImages:
    """A list of image files, with or without the classes that they show: an `InputSource`."""

    paths: tuple[InputFile, ...]
    """`(num_images,)`, files of the images."""

    labels: tuple[str, ...] | None
    """`(num_images,)`, names of the classes that they show; `None` where nobody says."""

    where: str = "the images"
    """Whence they come, for messages."""

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[InputItem]:
        labels = (None,) * len(self.paths) if self.labels is None else self.labels
        for path, label in zip(self.paths, labels, strict=True):
            yield InputItem(str(path), label, path)

    def select(self, indices: Sequence[int]) -> ListedImages:
        """Return those with these indices, in the order of the indices."""
        return ListedImages(
            paths=tuple(self.paths[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            where=self.where,
        )


def open_inputs(given: str | Path) -> InputSource:
    """Open inputs of a model: a list of images, a folder, arrays, or a data set of one or several files.

    Args:
        given: A path or a URI of fsspec; several files as `shard-{000..009}.tar`.

    Raises:
        ImageError: As `load_array_file`, `list_images`, `load_tar` and `load_saved_dataset`; if a file is
            missing.
        MissingDependencyError: If pyarrow or fsspec is needed, and is not installed.
    """
    if is_saved_dataset(given):
        from icis_deploy.images.saved_datasets import load_saved_dataset

        return load_saved_dataset(Path(given))
    shards = shards_of(given)
    if shards is not None:
        return join([_open_file(shard) for shard in shards], where=str(given))
    return _open_file(input_file(given))


def _open_file(file: InputFile) -> InputSource:
    if file.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")) and not (
        isinstance(file, Path) and os.path.isdir(file)  # noqa: PTH112 - a name that is too long is none
    ):
        from icis_deploy.images.tar_files import load_tar

        return load_tar(file)
    return load_array_file(file) if is_array_file(file) else list_images(file)


def load_image_list(path: Path) -> ListedImages:
    """Read a list of labelled images.

    Args:
        path: A CSV with the columns `file` and `class`, whose files are relative to the folder that it is in; or a
            folder of class folders.

    Raises:
        ImageError: As `list_images`, and if it does not say which classes the images show.
    """
    listed = list_images(path)
    check_labelled(listed)
    return listed


def check_labelled(listed: ListedImages) -> None:
    """Check that a list or folder says which classes its images show.

    Raises:
        ImageError: If it does not.
    """
    if listed.labels is not None:
        return
    path = Path(listed.where)
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
        hint="Add a column class with the name of each image's class.",
    )


def list_images(path: InputFile) -> ListedImages:
    """Read a list of images, with their classes where it says them.

    Args:
        path: A CSV with the columns `file` and `class`, or with `file` alone, whose files are relative to the folder
            that it is in; or a folder, of class folders or of images.

    Raises:
        ImageError: If it cannot be read, lacks a column, is empty, names a file that is not there, or breaks a rule for
            folders.
    """
    is_folder = isinstance(path, Path) and os.path.isdir(path)  # noqa: PTH112 - a name that is too long is none
    return _list_folder(path) if isinstance(path, Path) and is_folder else _read_list(path)


def _read_list(path: InputFile) -> ListedImages:
    if path.suffix in ARRAY_SUFFIXES:
        raise ImageError(
            f"{path} holds arrays, and no image can be read from it.",
            found=path.suffix,
            expected="a CSV that lists image files, or a folder of them",
            where=str(path),
            hint="Give a list or a folder of images. Features can be given in `seen_images`: an .npz of features and "
            "labels.",
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ImageError(
            f"{path} is an image; expected a list or a folder of images.",
            found="an image",
            expected="a CSV that lists image files, or a folder of them",
            where=str(path),
            hint="Put it into a folder of its class, or name it in a CSV with the columns file and class.",
        )
    if isinstance(path, Path):
        data = read_capped(path, max_bytes=MAX_LIST_BYTES, what="image list", error_type=ImageError)
    else:
        data = read_input(path, max_bytes=MAX_LIST_BYTES)
    try:
        rows = csv_rows(data, max_cells=MAX_LIST_CELLS)
        _, header = next(rows, (0, []))
        return _listed(path, header, rows)
    except (ValueError, csv.Error) as error:
        raise ImageError(
            f"The image list {path} is not a CSV file in UTF-8: {reason_of(error)}.",
            found=reason_of(error),
            expected="a CSV file in UTF-8",
            where=str(path),
            hint="Close each quotation mark." if isinstance(error, csv.Error) else "Save it again as UTF-8.",
        ) from error


def _listed(path: InputFile, header: list[str], rows: Iterator[tuple[int, list[str]]]) -> ListedImages:
    is_labelled, first = "class" in header, next(rows, None)
    if first is None or header.count("file") != 1 or not (header.count("class") == 1 or header == ["file"]):
        columns = printable(", ".join(map(repr, header)), max_length=MAX_SHOWN)
        found = "no rows" if first is None else f"the columns {columns}"
        raise ImageError(
            f"The image list {path} has {found}; expected a header `file,class` and a line per image.",
            found=tuple(header),
            expected="a header with the columns file and class, and a line per image",
            where=str(path),
            hint="Write file,class as the first line, and commas between the cells of each.",
        )
    paths: list[InputFile] = []
    labels: list[str] = []
    for line, row in chain([first], rows):
        if any(row[len(header) :]):  # half of a name would be another class
            raise ImageError(
                f"The image list {path} has {len(row)} cells in line {line}; its header names {len(header)}.",
                found=len(row),
                expected=len(header),
                where=f"{path}, line {line}",
                hint='Put a name with a comma in it in quotation marks: "tench, Tinca tinca".',
            )
        values = dict(zip(header, row, strict=False))  # a row may have fewer cells than the header
        name, label = values.get("file"), values.get("class")
        if not name or (is_labelled and not label):
            raise ImageError(
                f"The image list {path} lacks a file{' or a class' if is_labelled else ''} in line {line}.",
                where=f"{path}, line {line}",
                hint="Fill that line, or leave it out.",
            )
        file = file_beside(path, name)
        # Whether each is there would be a request for each: those at a URI are found missing when they are read.
        if isinstance(file, Path) and not exists(file):
            raise ImageError(
                f"The image list {path} names {shown(name)} in line {line}, which is not at {file}.",
                found=name,
                where=f"{path}, line {line}",
                hint="Write paths relative to the list's own folder, or whole ones.",
            )
        paths.append(file)
        if label:
            labels.append(sys.intern(label))
    return ListedImages(paths=tuple(paths), labels=tuple(labels) if is_labelled else None, where=str(path))


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
        raise ImageError(
            f"Cannot read the folder {folder}: {reason}.", found=reason, where=folder, hint="Check its permissions."
        ) from error
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
        return ListedImages(paths=tuple(loose), labels=None, where=str(folder))
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
    return ListedImages(
        paths=tuple(path for path, _ in pairs), labels=tuple(name for _, name in pairs), where=str(folder)
    )


def _images_among(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def load_images(paths: Sequence[Path], preprocessing: Preprocessing) -> Float32:
    """Read and prepare images.

    Returns:
        `(num_images, *preprocessing.input_shape)` float32.

    Raises:
        ImageError: Naming the file that is missing or is no image.
    """
    batch = np.empty((len(paths), *preprocessing.input_shape), dtype=np.float32)
    for index, path in enumerate(paths):
        preprocessing.from_pixels(read_image(path, preprocessing.crop_image)[None], out=batch[index : index + 1])
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
        batch[index] = read_image(path, preprocessing.crop_pixels)
    return batch


def read_image(path: Path, prepare: Callable[[Image], Prepared]) -> Prepared:
    """Return what is prepared of an image file.

    Args:
        path: Of a plain file: JPEG, PNG or what else Pillow reads.
        prepare: Makes an array of the image.

    Raises:
        ImageError: As `load_images`.
    """
    with _wrapped(str(path)), open_plain(path) as raw, io.BufferedReader(raw) as file:
        _check_size(os.fstat(raw.fileno()).st_size)
        return _decoded(file, prepare)


def decode_image(data: bytes, prepare: Callable[[Image], Prepared], *, where: str) -> Prepared:
    """Return what is prepared of the bytes of an image file.

    Args:
        data: JPEG, PNG or what else Pillow reads.
        prepare: Makes an array of the image.
        where: What it is called, for messages.

    Raises:
        ImageError: As `load_images`.
    """
    with _wrapped(where):
        _check_size(len(data))
        return _decoded(io.BytesIO(data), prepare)


def _decoded(file: IO[bytes], prepare: Callable[[Image], Prepared]) -> Prepared:
    import PIL.Image

    with PIL.Image.open(file) as image:
        if image.format in _NOT_READ:
            raise ImageError(
                f"it is {image.format}, a format that is not read: {_NOT_READ[image.format]}.",
                found=image.format,
                expected="an image such as JPEG or PNG",
                hint="Save it as PNG.",
            )
        return prepare(image)


def prepare_picture(image: Image, prepare: Callable[[Image], Prepared], *, where: str) -> Prepared:
    """Return what is prepared of a picture in memory.

    Raises:
        ImageError: As `load_images`.
    """
    with _wrapped(where):
        return prepare(image)


def _check_size(size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise ImageError(
            f"it is {size} bytes; at most {MAX_IMAGE_BYTES} are read.",
            found=size,
            expected=f"at most {MAX_IMAGE_BYTES} bytes",
            hint="Save it compressed.",
        )


@contextmanager
def _wrapped(where: str) -> Iterator[None]:
    """Raise whatever goes wrong with an image as an `ImageError` that names it."""
    import PIL.Image

    try:
        yield
    except ImageError as error:
        raise ImageError(
            f"Cannot read the image {where}: {error.what.rstrip('.')}.",
            found=error.found,
            expected=error.expected,
            where=where,
            hint=error.hint,
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{where} is not an image that Pillow can read.",
            expected="an image that Pillow can read",
            where=where,
            hint="Check that the file is whole, and that it is an image.",
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        reason = getattr(error, "strerror", None) or reason_of(error) or type(error).__name__
        raise ImageError(
            f"Cannot read the image {where}: {reason}.",
            found=reason,
            where=where,
            hint="Fetch it again, or leave it out.",
        ) from error
