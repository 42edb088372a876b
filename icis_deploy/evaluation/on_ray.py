"""Outcomes measured on a Ray cluster: Ray Data streams inputs through actors that have a device each.

Inputs are rows of a table: what each is called, its class, and the path of its file or the input itself. Actors prepare
and run them in batches and return outcomes, some 80 bytes an input. What an actor was at work on when it died, another
one does again; an error of the input or the runtime is no death, and ends the evaluation as it does on one machine.
"""

# Why: docs/decisions/0106.

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from icis_deploy import errors
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import ICISDeployError, MissingDependencyError, RuntimeFailureError, UsageError
from icis_deploy.evaluation.measuring import Done, Engine, Worker, piece_size
from icis_deploy.images.input_files import RemoteFile, input_file
from icis_deploy.images.sources import InputItem
from icis_deploy.metrics.outcomes import FIELDS, OUTCOME, OutcomeHead, Skipped, columns_of, outcomes_from_columns

INPUTS_AT_ONCE = 1 << 16
"""Inputs that are rows of a table at the same time; actors start anew for the next ones."""

_ROWS_OF_A_BLOCK = 256
_SECONDS_TO_REACH = 10


def ray_actors(worker: Worker, *, address: str | None) -> Engine:
    """Return an engine of a Ray cluster's actors.

    Args:
        worker: What each actor does. Its device is pickled to where it was opened from, and opened by each actor: every
            node must reach that path, and those of the inputs.
        address: Of the cluster, as `ray.init` takes it: `auto` for one that runs, `None` for one of this process.

    Raises:
        MissingDependencyError: If Ray is not installed.
        RuntimeFailureError: If there is no cluster at the address.
    """
    ray = _ray()
    if not ray.is_initialized():
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise RuntimeFailureError(
                f"There is no Ray cluster at {address}: {error}",
                found=type(error).__name__,
                expected="a Ray cluster that runs",
                where=address,
                hint="Start one, or leave `address` out to use this machine.",
            ) from error
    return partial(_on_actors, worker)


def _reach(address: str | None) -> None:
    """Raise `OSError` if nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_REACH).close()


def _on_actors(worker: Worker, batches: Iterable[Sequence[InputItem]]) -> Iterator[Done]:
    ray = _ray()
    items = chain.from_iterable(batches)
    while window := list(islice(items, INPUTS_AT_ONCE)):
        blocks = [_block(window[start : start + _ROWS_OF_A_BLOCK]) for start in range(0, len(window), _ROWS_OF_A_BLOCK)]
        results = ray.data.from_arrow(blocks).map_batches(
            _Actor,
            fn_constructor_args=({name: getattr(worker, name) for name in _SETTINGS},),
            batch_size=piece_size(worker.batch_size),
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(ray.cluster_resources().get("CPU", 1)))),
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=3,
        )
        try:
            for table in results.iter_batches(batch_size=None, batch_format="numpy"):
                yield _done(table, worker.head)
        except ray.exceptions.RayError as error:
            raise _of_cluster(error) from error


class _Actor:
    """Measures batches on a worker; made once, with a device of its own."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._worker = Worker(**settings)

    def __call__(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return outcomes, what was left out, and what failed, as columns: Ray would wrap an error in its own."""
        try:
            items = [_item(*row) for row in zip(*(table[name] for name in _INPUT_COLUMNS), strict=True)]
            done = self._worker(items)
        except ICISDeployError as error:
            return _answer((), {}, failure=error)
        return _answer(done.skipped, {} if done.outcomes is None else columns_of(done.outcomes, done.keys))


_SETTINGS = ("device", "head", "batch_size", "on_error", "reduced_decode")
"""What an actor makes its worker of."""

_INPUT_COLUMNS = ("key", "label", "path", "data", "is_array")


def _block(items: Sequence[InputItem]) -> Any:
    import pyarrow as pa

    values = [_row(item) for item in items]
    types = (pa.string(), pa.string(), pa.string(), pa.binary(), pa.bool_())
    columns = zip(*values, strict=True)
    return pa.table(
        {name: pa.array(column, kind) for name, column, kind in zip(_INPUT_COLUMNS, columns, types, strict=True)}
    )


def _row(item: InputItem) -> tuple[str, str, str, bytes, bool]:
    value, label = item.value, item.label or ""
    if isinstance(value, Path | RemoteFile):
        return item.key, label, str(value), b"", False
    if isinstance(value, bytes):
        return item.key, label, "", value, False
    if isinstance(value, np.ndarray):
        data = io.BytesIO()
        np.save(data, value, allow_pickle=False)
        return item.key, label, "", data.getvalue(), True
    raise UsageError(
        f"{item.key} is a picture in memory, which is not sent to a cluster.",
        found=type(value).__name__,
        expected="files, bytes of files, or arrays",
        where=item.key,
        hint="Give its file, or its pixels as an array.",
    )


def _item(key: str, label: str, path: str, data: bytes, is_array: bool) -> InputItem:
    if path:
        return InputItem(str(key), str(label) or None, input_file(str(path)))
    value = np.load(io.BytesIO(data), allow_pickle=False) if is_array else bytes(data)
    return InputItem(str(key), str(label) or None, value)


def _answer(
    skipped: Sequence[Skipped], measured: Mapping[str, NDArray[Any]], *, failure: ICISDeployError | None = None
) -> dict[str, Any]:
    """Return one table of what was measured, with rows for what was left out, or one that says what failed."""
    count = len(measured["key"]) if measured else 0
    others = [(each.key, each.reason, "") for each in skipped]
    if failure is not None:
        others.append(("", "", _failure_text(failure)))
    columns: dict[str, Any] = {
        name: np.concatenate([measured.get(name, np.zeros(0, OUTCOME[name])), np.zeros(len(others), OUTCOME[name])])
        for name in FIELDS
    }
    columns["key"] = [*measured.get("key", ()), *(key for key, _, _ in others)]
    columns["head"] = [*measured.get("head", ()), *("" for _ in others)]
    columns["reason"] = [*("" for _ in range(count)), *(reason for _, reason, _ in others)]
    columns["failure"] = [*("" for _ in range(count)), *(text for _, _, text in others)]
    return {name: np.array(values, object) if isinstance(values, list) else values for name, values in columns.items()}


def _failure_text(error: ICISDeployError) -> str:
    where = None if error.where is None else str(error.where)
    return json.dumps({"type": type(error).__name__, "what": error.what, "where": where, "hint": error.hint})


def _failure(text: str) -> ICISDeployError:
    stated = json.loads(text)
    kind = getattr(errors, stated["type"], RuntimeFailureError)
    return cast(ICISDeployError, kind(stated["what"], where=stated["where"], hint=stated["hint"]))


def _done(table: Mapping[str, Any], head: OutcomeHead) -> Done:
    failed = next((str(text) for text in table["failure"] if text), None)
    if failed is not None:
        raise _failure(failed)
    reasons = np.asarray(table["reason"])
    is_there = reasons == ""
    keys = [str(key) for key in table["key"]]
    measured = {name: np.asarray(table[name])[is_there] for name in ("key", "head", *FIELDS)}
    skipped = tuple(Skipped(key=keys[index], reason=str(reasons[index])) for index in np.flatnonzero(~is_there))
    return Done(
        outcomes=outcomes_from_columns(measured, head) if is_there.any() else None,
        keys=tuple(str(key) for key in measured["key"]),
        skipped=skipped,
        num_inputs=len(keys),
    )


def _of_cluster(error: Exception) -> RuntimeFailureError:
    return RuntimeFailureError(
        f"The Ray cluster could not finish: {reason_of(error)}.",
        found=type(error).__name__,
        expected="outcomes",
        hint="Look at its log; with a checkpoint the evaluation goes on where it was.",
    )


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            "A cluster is used through Ray, which is not installed.",
            found="no ray",
            expected="ray with Ray Data",
            hint="Install it: pip install 'icis-deploy[ray]'.",
        ) from error
    return ray
