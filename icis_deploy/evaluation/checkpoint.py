"""Outcomes on disk while others are measured: a folder of Parquet files, each written whole or not at all.

    evaluation.json         what is evaluated: classes, state of the head, source and settings that change outcomes
    outcomes-<n>.parquet    a row for each input: its key, and the fields of `OUTCOME`

A run that was killed goes on after the last file. A folder of another evaluation, or a file of one, is refused:
outcomes of different heads must not be mixed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.files import read_capped, write_file
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import IncompatibleError, LoadError, MissingDependencyError, StorageError
from icis_deploy.images.sources import InputItem
from icis_deploy.metrics.outcomes import FIELDS, OUTCOME, OutcomeHead, Outcomes, digests_of

IDENTITY_NAME = "evaluation.json"
SCHEMA_VERSION = 1
ROWS_OF_A_FILE = 4096
"""Inputs after which a file is written: what a kill loses is measured in seconds, and a million inputs make some
hundred files."""

MAX_IDENTITY_BYTES = 1 << 26
_NAME = re.compile(r"outcomes-(\d{8})\.parquet")
_IDENTITY_KEY = b"icis-deploy evaluation"


class ParquetCheckpoint:
    """Outcomes of one evaluation in a folder."""

    def __init__(self, folder: Path, head: OutcomeHead, settings: Mapping[str, Any]) -> None:
        """Open a folder, or make it.

        Args:
            folder: Empty, missing, or with outcomes of the same evaluation.
            head: The classes that inputs are measured on.
            settings: What else outcomes depend on, as JSON values: source, runtime.

        Raises:
            MissingDependencyError: If pyarrow is not there.
            IncompatibleError: If it holds another evaluation.
            LoadError: If one of its files is damaged.
            StorageError: If the disk refuses.
        """
        _pyarrow()
        self._folder, self._head = folder, head
        self._identity = _identity_of(head, settings)
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self._waiting: list[tuple[Outcomes, tuple[str, ...]]] = []
        self._num_waiting = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"Cannot make the folder {folder} for outcomes: {error.strerror}.",
                found=error.strerror,
                where=folder,
                hint="Name a folder that can be written.",
            ) from error
        self._check_identity()
        self._rows = _each_once([self._read(path) for path in self._files()])
        digests = np.concatenate([np.zeros((0, 2), "<u8"), *(rows["key"] for rows in self._rows)])
        self._done = digests[np.argsort(digests[:, 0])]
        self._next = 1 + max((int(_number(path)) for path in self._files()), default=-1)

    @property
    def num_done(self) -> int:
        """Inputs whose outcomes were there when it was opened."""
        return len(self._done)

    def is_done(self, items: Sequence[InputItem]) -> list[bool]:
        """Say which inputs have outcomes."""
        if not len(self._done):
            return [False] * len(items)
        wanted = digests_of([item.key for item in items])
        place = np.minimum(np.searchsorted(self._done[:, 0], wanted[:, 0]), len(self._done) - 1)
        is_there: list[bool] = (self._done[place] == wanted).all(axis=1).tolist()
        return is_there

    def add(self, outcomes: Outcomes, keys: Sequence[str]) -> None:
        """Keep outcomes; they are on disk after `ROWS_OF_A_FILE` of them, and after `outcomes`.

        Raises:
            StorageError: If the disk refuses; what was written before is kept.
        """
        self._waiting.append((outcomes, tuple(keys)))
        self._num_waiting += len(outcomes)
        if self._num_waiting >= ROWS_OF_A_FILE:
            self._write()

    def outcomes(self) -> Iterator[Outcomes]:
        """Yield all outcomes, those that were there before too.

        Raises:
            StorageError: As `add`.
        """
        if self._waiting:
            self._write()
        for rows in self._rows:
            yield Outcomes(head=self._head, rows=rows)

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = np.concatenate([outcomes.rows for outcomes, _ in self._waiting])
        keys = [key for _, of_part in self._waiting for key in of_part]
        columns = {name: pa.array(np.ascontiguousarray(rows[name])) for name in FIELDS}
        text = pa.array([key.encode("utf-8", "surrogateescape") for key in keys], type=pa.binary())
        table = pa.table({"key": text, **columns}).replace_schema_metadata({_IDENTITY_KEY: self._digest})
        data = io.BytesIO()
        pq.write_table(table, data, compression="zstd")
        write_file(self._folder / f"outcomes-{self._next:08}.parquet", data.getvalue())
        self._rows.append(rows)
        self._next, self._waiting, self._num_waiting = self._next + 1, [], 0

    def _read(self, path: Path) -> NDArray[np.void]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            metadata = table.schema.metadata or {}
            keys = [key.decode("utf-8", "surrogateescape") for key in table.column("key").to_pylist()]
            columns = {name: table.column(name).to_numpy() for name in FIELDS}
            for name, values in columns.items():
                if values.dtype != OUTCOME[name]:  # missing values make others of whole numbers
                    raise TypeError(f"its column {name!r} is of {values.dtype}")
        except (OSError, KeyError, AttributeError, TypeError, pa.ArrowException) as error:
            raise LoadError(
                f"{path} is no whole file of outcomes: {error}.",
                found=type(error).__name__,
                expected="a Parquet file that this program wrote",
                where=path,
                hint="Remove it; its inputs are then measured again.",
            ) from error
        if metadata.get(_IDENTITY_KEY) != self._digest.encode():
            raise IncompatibleError(
                f"{path} holds outcomes of another evaluation than the rest of its folder.",
                found=metadata.get(_IDENTITY_KEY, b"nothing").decode("ascii", "replace")[:12],
                expected=self._digest[:12],
                where=path,
                hint="Keep a folder for each evaluation; remove this file.",
            )
        rows = np.zeros(len(keys), dtype=OUTCOME)
        rows["key"] = digests_of(keys)
        for name, values in columns.items():
            rows[name] = values
        return rows

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _check_identity(self) -> None:
        path = self._folder / IDENTITY_NAME
        if path.exists():
            data = read_capped(path, max_bytes=MAX_IDENTITY_BYTES, what="evaluation", error_type=LoadError)
            try:
                stated = load_strict(data)
            except (ValueError, RecursionError) as error:
                raise LoadError(
                    f"Cannot read {path}: {reason_of(error)}.",
                    found=reason_of(error),
                    expected="JSON that this program wrote",
                    where=path,
                    hint="Name an empty folder.",
                ) from error
            if stated != self._identity:
                different = _first_difference(stated, self._identity)
                raise IncompatibleError(
                    f"The folder {self._folder} holds outcomes of another evaluation: {different} is another.",
                    found=different,
                    expected="outcomes of this evaluation",
                    where=self._folder,
                    hint="Name an empty folder, or evaluate as was begun there.",
                )
            return
        if files := self._files():
            raise IncompatibleError(
                f"The folder {self._folder} holds {len(files)} files of outcomes, and no {IDENTITY_NAME} that says "
                f"what was evaluated.",
                found=len(files),
                expected=IDENTITY_NAME,
                where=self._folder,
                hint="Name an empty folder.",
            )
        write_file(path, json.dumps(self._identity, indent=1).encode())


def _each_once(parts: Sequence[NDArray[np.void]]) -> list[NDArray[np.void]]:
    """Leave out inputs that stand in an earlier file: two runs at once, or who copies a file, leave them twice."""
    found: set[bytes] = set()
    kept = []
    for rows in parts:
        keys = [key.tobytes() for key in rows["key"]]
        is_new = np.array([key not in found for key in keys], dtype=bool)
        found.update(keys)
        kept.append(rows[is_new])
    return kept


def _number(path: Path) -> str:
    found = _NAME.fullmatch(path.name)
    assert found is not None  # `_files` lists no others
    return found[1]


def _identity_of(head: OutcomeHead, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "head version": head.version,
        "head digest": head.digest,
        "classes": list(head.class_names),
        "unseen classes": [name for name, seen in zip(head.class_names, head.is_seen, strict=True) if not seen],
        "original classes": [name for name, is_in in zip(head.class_names, head.is_original, strict=True) if is_in],
        **settings,
    }


def _first_difference(stated: object, wanted: Mapping[str, Any]) -> str:
    found = stated if isinstance(stated, Mapping) else {}
    names = (*wanted, *(name for name in found if name not in wanted))
    return next((str(name) for name in names if found.get(name) != wanted.get(name)), "what it was measured with")


def _pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "Outcomes are kept in Parquet files, which need pyarrow; it is not installed.",
            found="no pyarrow",
            expected="pyarrow",
            hint="Install it: pip install 'icis-deploy[data]'.",
        ) from error
