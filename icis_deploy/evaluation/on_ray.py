"""Outcomes measured on a Ray cluster: Ray Data streams inputs through actors that have a device each.

Inputs are rows of a table: what each is called, its class, and the path of its file or the input itself. Actors prepare
and run them in batches and return outcomes, some 80 bytes an input. What an actor was at work on when it died, another
one does again; an error of the input or the runtime is no death, and ends the evaluation as it does on one machine.
"""

# Why: docs/decisions/0086.

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.errors import ICISDeployError, MissingDependencyError, RuntimeFailureError
from icis_deploy.evaluation.measuring import Done, Engine, OnError, Worker
from icis_deploy.images.sources import InputItem
from icis_deploy.metrics.outcomes import FIELDS, OUTCOME, OutcomeHead, Skipped, columns_of, outcomes_from_columns
from icis_deploy.runtime.device import Device

INPUTS_AT_ONCE = 1 << 16
"""Inputs that are rows of a table at the same time; actors start anew for the next ones."""

_ROWS_OF_A_BLOCK = 256


def ray_actors(device: Device, head: OutcomeHead, *, on_error: OnError, batch_size: int, address: str | None) -> Engine:
    """Return an engine of a Ray cluster's actors.

    Args:
        device: Is pickled to where it was opened from, and opened by each actor: every node must reach that path, and
            those of the inputs.
        head: From `outcome_head` of the same device.
        on_error: What is done with an input that cannot be read.
        batch_size: Inputs that an actor runs the model on at once.
        address: Of the cluster, as `ray.init` takes it: `auto` for one that runs, `None` for one of this process.

    Raises:
        MissingDependencyError: If Ray is not installed.
        RuntimeFailureError: If there is no cluster at the address.
    """
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RuntimeFailureError(
                f"There is no Ray cluster at {address}: {error}",
                found=type(error).__name__,
                expected="a Ray cluster that runs",
                where=address,
                hint="Start one with `ray start --head`, or leave the address out to use this machine.",
            ) from error
    return partial(_on_actors, device, head, on_error, batch_size)


def _on_actors(
    device: Device, head: OutcomeHead, on_error: OnError, batch_size: int, batches: Iterable[Sequence[InputItem]]
) -> Iterator[Done]:
    ray = _ray()
    items = chain.from_iterable(batches)
    while window := list(islice(items, INPUTS_AT_ONCE)):
        blocks = [_block(window[start : start + _ROWS_OF_A_BLOCK]) for start in range(0, len(window), _ROWS_OF_A_BLOCK)]
        results = ray.data.from_arrow(blocks).map_batches(
            _Actor,
            fn_constructor_args=(device, head, on_error),
            batch_size=batch_size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(ray.cluster_resources().get("CPU", 1)))),
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=3,
        )
        try:
            for table in results.iter_batches(batch_size=None, batch_format="numpy"):
                yield _done(table, head)
        except ray.exceptions.RayError as error:
            raise _own_error(error) from error


class _Actor:
    """Measures batches on a worker; made once, with a device of its own."""

    def __init__(self, device: Device, head: OutcomeHead, on_error: OnError) -> None:
        self._worker = Worker(device=device, head=head, on_error=on_error)

    def __call__(self, table: Mapping[str, Any]) -> dict[str, Any]:
        items = [
            InputItem(str(key), str(label), Path(str(path)) if path else pickle.loads(value))  # noqa: S301 - our own
            for key, label, path, value in zip(table["key"], table["label"], table["path"], table["value"], strict=True)
        ]
        done = self._worker(items)
        columns = {name: np.zeros(0, OUTCOME[name]) for name in FIELDS}
        columns |= {name: np.array([], dtype=object) for name in ("key", "head")}
        if done.outcomes is not None:
            columns = columns_of(done.outcomes, done.keys)
        left_out = len(done.skipped)
        filled = {name: np.concatenate([values, np.zeros(left_out, values.dtype)]) for name, values in columns.items()}
        for name in ("key", "head"):
            filled[name][len(done.keys) :] = ""
        reasons = np.array([""] * len(done.keys) + [each.reason for each in done.skipped], dtype=object)
        filled["key"][len(done.keys) :] = [each.key for each in done.skipped]
        return {**filled, "reason": reasons}


def _block(items: Sequence[InputItem]) -> Any:
    import pyarrow as pa

    is_path = [isinstance(item.value, Path) for item in items]
    return pa.table(
        {
            "key": pa.array([item.key for item in items], pa.string()),
            "label": pa.array([item.label or "" for item in items], pa.string()),
            "path": pa.array(
                [str(item.value) if is_file else "" for item, is_file in zip(items, is_path, strict=True)], pa.string()
            ),
            "value": pa.array(
                [b"" if is_file else pickle.dumps(item.value) for item, is_file in zip(items, is_path, strict=True)],
                pa.binary(),
            ),
        }
    )


def _done(table: Mapping[str, Any], head: OutcomeHead) -> Done:
    reasons = np.asarray(table["reason"])
    is_there = reasons == ""
    keys = [str(key) for key in table["key"]]
    measured = {name: np.asarray(table[name])[is_there] for name in ("key", "head", *FIELDS)}
    skipped = tuple(Skipped(key=keys[index], reason=str(reasons[index])) for index in np.flatnonzero(~is_there))
    return Done(
        outcomes=outcomes_from_columns(measured, head) if is_there.any() else None,
        keys=tuple(measured["key"]),
        skipped=skipped,
        num_inputs=len(keys),
    )


def _own_error(error: Exception) -> ICISDeployError:
    """Return the error of ours that an actor raised, or one that says what became of the cluster."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ICISDeployError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return RuntimeFailureError(
        f"The Ray cluster could not finish: {error}",
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
