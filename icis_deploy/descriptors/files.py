"""Read descriptors from `.npz`, `.csv` and xlsa17's `att_splits.mat`; write them as `.npz`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.archives import read_npz
from icis_deploy.common.csv_rows import csv_rows
from icis_deploy.common.files import path_from, read_capped, write_file
from icis_deploy.common.terminal_text import shown
from icis_deploy.descriptors.descriptors import UNNAMED_BLOCK, DescriptorBlock, Descriptors
from icis_deploy.descriptors.mat_limits import check_mat
from icis_deploy.errors import DescriptorError, LoadError, MissingDependencyError, UsageError

MAX_FILE_BYTES = 1 << 30
"""Of a file, and of what it unpacks to: descriptors of 100,000 classes in 2,000 columns of float32 have 0.8 GB."""

MAX_CELLS = 1 << 25
"""Of a CSV file: 33 million, as of 21,000 classes in 1,500 columns."""

NPZ_ARRAYS = ("names", "values", "blocks", "widths")


def load_descriptors(path: str | Path) -> Descriptors:
    """Read descriptors; the ending of the file name gives the format.

    `.npz`: arrays `names` `(num_classes,)` and `values` `(num_classes, descriptor_dim)`, without pickled objects;
        where the columns are divided, also `blocks` (names) and `widths` (whole numbers), both `(num_blocks,)`.
    `.csv`: a header line, then a line per class: its name, then the numbers.
    `.mat`: `allclasses_names` and `att` `(descriptor_dim, num_classes)`, as in the proposed splits of Xian et al.
    (xlsa17, "Zero-shot learning: a comprehensive evaluation of the good, the bad and the ugly", TPAMI 2018).

    Example:
        descriptors = icis_deploy.load_descriptors("descriptors.npz")
        print(descriptors.num_classes, descriptors.descriptor_dim)

    Raises:
        DescriptorError: If the file is missing, larger than `MAX_FILE_BYTES` or cannot be read as that, or a descriptor
            is NaN, infinite, zero or given twice, or the blocks do not fit the values.
        MissingDependencyError: If a `.mat` file is given and scipy is not installed.
    """
    readers: dict[str, Callable[[bytes], Descriptors]] = {".npz": _read_npz, ".csv": _read_csv, ".mat": _read_mat}
    path = path_from(path, name="path")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DescriptorError(
            f"The descriptor file {path} ends in {path.suffix or 'nothing'!r}; expected one of {', '.join(readers)}.",
            found=path.suffix,
            expected=tuple(readers),
            where=path,
            hint=(
                "`describe()` writes such a file; a table of your own is a .csv with the class name in "
                "the first column."
            ),
        )
    data = read_capped(path, max_bytes=MAX_FILE_BYTES, what="descriptor file", error_type=DescriptorError)
    try:
        return reader(data)
    except DescriptorError as error:
        raise DescriptorError.at(path, error) from error


def check_descriptor_name(path: Path) -> None:
    """Raise `UsageError` unless descriptors can be written under this name."""
    if path.suffix.lower() != ".npz":
        raise UsageError(
            f"Descriptors are written as .npz; {path} ends in {path.suffix or 'nothing'!r}.",
            found=path.suffix,
            expected=".npz",
            where=path,
            hint="Give a name that ends in .npz.",
        )


def save_descriptors(descriptors: Descriptors, path: str | Path) -> None:
    """Write descriptors as an `.npz` file that `load_descriptors` reads; equal descriptors give equal bytes.

    Example:
        descriptors = icis_deploy.Descriptors(values=[[1, 0], [0, 1]], class_names=("okapi", "zebra"))
        icis_deploy.save_descriptors(descriptors, "descriptors.npz")

    Raises:
        UsageError: If the file name does not end in `.npz`.
        StorageError: If it cannot be written; what was there before still is.
    """
    path = path_from(path, name="path")
    if not isinstance(descriptors, Descriptors):
        raise UsageError(
            f"The descriptors are of type {shown(type(descriptors).__name__)}; expected Descriptors.",
            found=type(descriptors).__name__,
            expected="Descriptors",
            hint="Give what `describe()` returns, or Descriptors of your own values and class names.",
        )
    check_descriptor_name(path)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"names": np.array(descriptors.class_names), "values": descriptors.values}
    block_names = [block.name for block in descriptors.blocks]
    if block_names != [UNNAMED_BLOCK]:  # else the file is what it was before there were blocks
        arrays["blocks"] = np.array(block_names)
        arrays["widths"] = np.array([block.width for block in descriptors.blocks], dtype=np.int64)
    np.savez(buffer, **arrays)
    write_file(path, buffer.getvalue())


def _read_npz(data: bytes) -> Descriptors:
    if not data.startswith(b"PK"):  # anything else numpy would take for an .npy file, or for a pickle
        raise DescriptorError(
            "not an .npz archive.",
            expected="an .npz archive",
            hint="Write it with numpy.savez, with the arrays names and values, or give a .csv.",
        )
    try:
        arrays, names = read_npz(io.BytesIO(data), NPZ_ARRAYS, max_bytes=MAX_FILE_BYTES)
    except ValueError as error:
        raise DescriptorError(
            f"not a readable .npz archive without pickled objects: {error}.",
            found=str(error),
            expected="an .npz archive without pickled objects",
            hint="Write it again with numpy.savez, names as strings and not as objects.",
        ) from error
    if not {"names", "values"} <= set(arrays):
        raise DescriptorError(
            f"the archive holds {shown(sorted(names))}; expected the arrays 'names' and 'values'.",
            found=names,
            expected=("names", "values"),
            hint="Write names (num_classes,) and values (num_classes, descriptor_dim) with numpy.savez.",
        )
    return _described(arrays["names"], arrays["values"], _blocks(arrays))


def _blocks(arrays: dict[str, NDArray[Any]]) -> tuple[DescriptorBlock, ...]:
    if "blocks" not in arrays and "widths" not in arrays:
        return ()
    if "blocks" not in arrays or "widths" not in arrays:
        found = "blocks" if "blocks" in arrays else "widths"
        raise DescriptorError(
            f"the archive holds {found!r} alone; expected 'blocks' and 'widths', or neither.",
            found=found,
            expected=("blocks", "widths"),
        )
    names, widths = arrays["blocks"], arrays["widths"]
    if names.ndim != 1 or names.dtype.kind != "U" or widths.shape != names.shape or widths.dtype.kind not in "iu":
        raise DescriptorError(
            f"the blocks have shape {names.shape} and type {names.dtype}, their widths {widths.shape} and "
            f"{widths.dtype}; expected a list of strings and as many whole numbers.",
            found=(names.shape, str(names.dtype), widths.shape, str(widths.dtype)),
            expected="a list of strings and as many whole numbers",
        )
    return tuple(DescriptorBlock(str(name), int(width)) for name, width in zip(names, widths, strict=True))


def _read_csv(data: bytes) -> Descriptors:
    try:
        rows = csv_rows(data, max_cells=MAX_CELLS)
        _, header = next(rows, (0, []))
        if header and header[0].casefold().startswith("sep="):
            raise DescriptorError(
                f"the first line, {shown(header[0])}, says to Excel what stands between the cells; expected a header.",
                found=shown(header[0]),
                expected="a header and a line per class",
                where="line 1",
                hint="Remove that line; put commas between the cells and a decimal point into numbers.",
            )
        if len(header) == 1:
            raise DescriptorError(
                f"the header is one cell, {shown(header[0])}; expected a cell for the name and one for each number.",
                found=shown(header[0]),
                expected="two cells or more",
                hint="Put commas between the cells, not semicolons or tabs.",
            )
        if _is_of_class(header):
            raise DescriptorError(
                f"the first line, {shown(header[0])} and {len(header) - 1} numbers, is of a class; expected a header, "
                f"as the first line is left out.",
                found=shown(header[0]),
                expected="a header and a line per class",
                where="line 1",
                hint="Put a header before it, such as name,x1,x2.",
            )
        names, values = _table_of(rows, header)
    except (ValueError, csv.Error) as error:
        raise DescriptorError(
            f"not a CSV file in UTF-8: {error}.",
            found=str(error),
            expected="a CSV file in UTF-8",
            hint="Save it again as UTF-8, with commas between the cells.",
        ) from error
    if not names:
        raise DescriptorError(
            f"{min(len(header), 1)} lines; expected a header and a line per class.",
            found=min(len(header), 1),
            expected="a header and a line per class",
            hint="Write a header, such as name,x1,x2, and a line for each class.",
        )
    return _described(np.array(names), np.array(values))


def _is_of_class(line: Sequence[str]) -> bool:
    """Return whether a first line is of a class, and no header: numbers that cannot be names of columns."""
    first, *cells = [cell.strip() for cell in line] or [""]
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return False
    # pandas numbers the columns, 0, 1 and so on, and leaves the index without a name.
    if first.casefold() in {"", "name", "class", "class_name", "label"}:
        return False
    return len(set(numbers)) < len(numbers) or not all(number.is_integer() for number in numbers)


def _table_of(rows: Iterator[tuple[int, list[str]]], header: Sequence[str]) -> tuple[list[str], list[NDArray[Any]]]:
    """Return the name and the numbers of each row; as arrays, which take a fraction of what Python's numbers do."""
    names, values = [], []
    for number, row in rows:
        if len(row) != len(header):
            raise DescriptorError(
                f"line {number} ({shown(row[0])}) has {len(row) - 1} numbers; the header names {len(header) - 1}.",
                found=len(row) - 1,
                expected=len(header) - 1,
                where=f"line {number}",
                hint=(
                    "Give each class as many numbers as the header has columns for; a name with a comma "
                    "stands in quotation marks."
                ),
            )
        names.append(row[0].strip())
        values.append(np.array(_numbers(number, row), dtype=np.float64))
    return names, values


def _numbers(number: int, line: list[str]) -> list[float]:
    values = []
    for cell in line[1:]:
        try:
            if "_" in cell:  # Python takes 1_5 for 15
                raise ValueError(cell)
            values.append(float(cell))
        except ValueError as error:
            raise DescriptorError(
                f"line {number} ({shown(line[0])}) has a cell that is not a number: {shown(cell)}. Expected the class "
                f"name, then numbers.",
                found=cell,
                expected="the class name, then numbers",
                where=f"line {number}",
                hint="Write numbers with a decimal point, and leave no cell empty.",
            ) from error
    return values


def _read_mat(data: bytes) -> Descriptors:
    try:
        content = read_mat(io.BytesIO(data), ["att", "allclasses_names"])
    except LoadError as error:
        raise DescriptorError(
            f"not a readable MATLAB file: {error}.",
            found=str(error),
            expected="a MATLAB file",
            hint="Give att_splits.mat of xlsa17, or a .csv.",
        ) from error
    if not {"att", "allclasses_names"} <= set(content):
        found = sorted(name for name in content if not name.startswith("__"))
        raise DescriptorError(
            f"the file holds {found}; expected 'att' and 'allclasses_names'.",
            found=found,
            expected=("att", "allclasses_names"),
            hint="Give att_splits.mat of xlsa17, or a .csv.",
        )
    # A cell array of strings arrives as an (n, 1) object array of (1,) string arrays.
    cells = [np.asarray(cell).reshape(-1) for cell in np.asarray(content["allclasses_names"]).reshape(-1)]
    names = np.array([str(cell[0]).strip() if cell.size else "" for cell in cells])
    return _described(names, np.asarray(content["att"]).T)


def _described(names: Any, values: Any, blocks: tuple[DescriptorBlock, ...] = ()) -> Descriptors:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DescriptorError(
            f"the names have shape {names.shape} and type {names.dtype}; expected a list of strings, one per class.",
            found=(names.shape, str(names.dtype)),
            expected="a list of strings, one per class",
            hint="Write the names as a list of strings, one for each row of values.",
        )
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise DescriptorError(
            f"the values have type {values.dtype}; expected real numbers.",
            found=str(values.dtype),
            expected="real numbers",
            hint="Write numbers; words become numbers by `describe()`.",
        )
    try:
        texts = names.astype(str) if names.dtype.kind == "U" else np.char.decode(names, "utf-8")
    except UnicodeDecodeError as error:
        raise DescriptorError(
            f"a name is not text in UTF-8: {error}.",
            found=str(error),
            expected="text in UTF-8",
            hint="Save the names as UTF-8.",
        ) from error
    return Descriptors(values=values, class_names=tuple(str(name) for name in texts), blocks=blocks)


def read_mat(file: BinaryIO, names: Sequence[str]) -> dict[str, Any]:
    """Return those arrays that a file holds, and what scipy adds to them (names that begin with two underscores).

    Args:
        file: Open at its beginning.
        names: Of the arrays; others are not read.

    Raises:
        LoadError: If it cannot be read as a `.mat` file; the message is the reason alone, without a full stop.
        MissingDependencyError: If scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingDependencyError(
            "Reading a .mat file needs scipy.",
            hint="Install it: pip install 'icis-deploy[train]'.",
        ) from error
    try:
        check_mat(file, names)
        file.seek(0)
        content: dict[str, Any] = loadmat(file, variable_names=names)
    except Exception as error:  # scipy lets through what zlib, struct and its own reader raise: a dozen types
        raise LoadError(str(error)) from error
    return content
