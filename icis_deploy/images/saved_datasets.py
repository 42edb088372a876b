"""A folder that `save_to_disk` of Hugging Face's `datasets` wrote, as inputs of a model; read by pyarrow alone.

    state.json           the names of the files of rows, in order
    dataset_info.json    the features, with the names of numbered classes
    *.arrow              streams of Arrow, with the columns of `parquet_files.py`

Files are mapped into memory: what is not looked at is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icis_deploy.common.files import read_capped
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import ImageError, MissingDependencyError
from icis_deploy.images.input_files import unchanged, version_of
from icis_deploy.images.parquet_files import (
    LABEL_COLUMNS,
    MAX_ROWS,
    ParquetRows,
    input_columns,
    label_names,
    read_labels,
    unreadable,
)
from icis_deploy.images.shards import SAVED_NAMES
from icis_deploy.images.sources import InputSource, join

MAX_STATE_BYTES = 1 << 26
_EXPECTED = "a whole .arrow file, as `save_to_disk` writes it"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrowRows(ParquetRows):
    """Inputs that are read from a stream of Arrow whenever they are needed."""

    def batches(self, size: int) -> Iterator[Any]:
        """Yield batches of at most so many rows, with the columns of inputs alone; for errors of pyarrow."""
        for batch in _stream(self.path):
            chosen = batch.select(list(self.columns))
            for start in range(0, len(chosen), size):
                yield chosen.slice(start, size)


def load_saved_dataset(folder: Path) -> InputSource:
    """Open a saved data set, and read the classes that its rows show.

    Raises:
        ImageError: If it holds several splits, a file is missing, damaged or cut short, or no column is an input.
        MissingDependencyError: If pyarrow is not installed.
    """
    one, several = SAVED_NAMES
    if not (folder / one).is_file():
        splits = _json(folder / several).get("splits")
        names = [each for each in splits if isinstance(each, str)] if isinstance(splits, list) else []
        raise ImageError(
            f"{folder} holds several splits: {shown(names)}.",
            found=tuple(names),
            expected="the folder of one split",
            where=folder,
            hint=f"Name the folder of one, such as {folder / names[0]}." if names else None,
        )
    stated = _json(folder / one).get("_data_files")
    found = [each.get("filename") for each in stated if isinstance(each, dict)] if isinstance(stated, list) else []
    files = [name for name in found if isinstance(name, str) and Path(name).name == name]
    if not files or len(files) != len(found):
        wrong = next((name for name in found if name not in files), None)
        what = "no files" if not found else shown(wrong)
        raise ImageError(
            f"{folder / one} names {what}; expected the files of rows, in this folder.",
            found=wrong,
            expected="names of .arrow files",
            where=folder / one,
            hint="Save the data set again.",
        )
    info = folder / "dataset_info.json"
    features = _json(info).get("features") if info.is_file() else None
    return join([_rows(folder / name, features) for name in files], where=str(folder))


def _rows(path: Path, features: object) -> ArrowRows:
    try:
        version = version_of(path)
        with unchanged(path, version):
            schema = _open_stream(path).schema
            label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
            columns, num_rows = input_columns(schema, label, path), 0
            labels: list[str] = []
            names = None if label is None else _names_in(features, label) or label_names(schema, label)
            for batch in _stream(path):
                num_rows += len(batch)
                if num_rows > MAX_ROWS:
                    raise ValueError(f"it has more than {MAX_ROWS} rows")
                if label is not None:
                    labels += read_labels([batch.select([label])], label, names, path)
    except (ValueError, OSError) as error:
        raise unreadable(path, error, _EXPECTED) from error
    found = None if label is None else tuple(labels)
    return ArrowRows(path=path, version=version, columns=columns, num_rows=num_rows, labels=found)


def _stream(path: Any) -> Iterator[Any]:
    """Yield the batches of a stream.

    Raises:
        OSError, ValueError: If it is damaged, or its end is not there: pyarrow takes a stream without an end.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_END)))
        if file.read() != _END:
            raise ValueError("it is cut short: the mark of its end is not there")
    yield from _open_stream(path)


_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What ends a stream: the format's IPC streaming section."""


def _open_stream(path: Any) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path} needs pyarrow, which cannot be imported ({error}).",
            found=str(error),
            expected="pyarrow",
            where=path,
            hint="Install it: pip install 'icis-deploy[data]'.",
        ) from error
    return pa.ipc.open_stream(pa.memory_map(str(path)))


def _names_in(features: object, label: str) -> Sequence[str] | None:
    """Return the names of numbered classes that the features state; `None` where they do not."""
    stated = features.get(label) if isinstance(features, dict) else None
    names = stated.get("names") if isinstance(stated, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _json(path: Path) -> dict[str, Any]:
    data = read_capped(path, max_bytes=MAX_STATE_BYTES, what="description of a data set", error_type=ImageError)
    try:
        found = load_strict(data)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise ImageError(
            f"Cannot read {path}: {reason_of(error)}.",
            found=reason_of(error),
            expected="what `save_to_disk` writes",
            where=path,
            hint="Save the data set again.",
        ) from error
    return found
