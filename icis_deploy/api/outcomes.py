"""Outcomes of single images: what a cluster's workers compute, each with a device of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from icis_deploy.api.inputs import ClassNames, check_max_seen_loss, class_names_from
from icis_deploy.common.files import path_from
from icis_deploy.common.given import items, refused
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import UsageError
from icis_deploy.evaluation.measuring import outcome_head
from icis_deploy.evaluation.measuring import outcomes_of as outcomes_of_batch
from icis_deploy.images.sources import InputValue
from icis_deploy.metrics.accuracy import AccuracyReport, accuracy_of
from icis_deploy.metrics.outcomes import columns_of, merge, outcomes_from_columns
from icis_deploy.runtime.device import Device

_VALUES = ("file", "image", "inputs")


def outcomes_of(
    device: Device, batch: Mapping[str, Any], *, unseen: ClassNames | None = None
) -> dict[str, NDArray[Any]]:
    """Return what becomes of each image of a batch, for `accuracy_of_outcomes`.

    It is a function of the batch alone: on a CPU the same image has the same outcome in any batch, by any process.

    Args:
        device: Runs the model.
        batch: Columns of a table, such as a DataFrame of pandas: `key`, which no two images of an evaluation share;
            `class`, the name of the class that it shows; and `file` (its path), `image` (its bytes, or a picture) or
            `inputs` (an array). Without `key` the file is the key.
        unseen: As in `evaluate`.

    Returns:
        `(num_images,)` by name of the column: `key`, `head` and numbers; 80 bytes an image, which pandas takes as they
        are.

    Example:
        device = icis_deploy.Device.open("bundle")
        columns = icis_deploy.outcomes_of(device, {"file": ["okapi.jpg"], "class": ["okapi"]})
        report = icis_deploy.accuracy_of_outcomes(device, [columns])

    Raises:
        UsageError: If a column is missing.
        ImageError: If an image cannot be read, or shows a class that the head does not know.
        RuntimeFailureError: If the runtime fails.
    """
    check_device(device)
    _check_table(batch, name="batch")
    kind = next((name for name in _VALUES if name in batch), None)
    if kind is None or "class" not in batch or not ("key" in batch or kind == "file"):
        raise UsageError(
            f"A batch has the columns {shown(list(batch))}.",
            found=tuple(str(name) for name in batch),
            expected="class, and file or (key and one of image, inputs)",
            hint="Name the columns so.",
        )
    values: list[InputValue] = [path_from(value, name="file") if kind == "file" else value for value in batch[kind]]
    keys = [str(key) for key in batch["key" if "key" in batch else "file"]]
    head = outcome_head(device, class_names_from(unseen, name="unseen"))
    found = outcomes_of_batch(device, values, labels=[str(name) for name in batch["class"]], keys=keys, head=head)
    return columns_of(found, keys)


def accuracy_of_outcomes(
    device: Device,
    tables: Iterable[Mapping[str, Any]],
    *,
    unseen: ClassNames | None = None,
    max_seen_loss: float | None = None,
) -> AccuracyReport:
    """Return the accuracy that outcomes amount to, in whatever order and pieces they come.

    Args:
        device: With the same bundle in the same state as those that computed them.
        tables: At least one, each as `outcomes_of` returns it, or a DataFrame of it.
        unseen: As there.
        max_seen_loss: As in `evaluate`; the report's `seen_loss` says whether it was kept.

    Example:
        device = icis_deploy.Device.open("bundle")
        columns = icis_deploy.outcomes_of(device, {"file": ["okapi.jpg"], "class": ["okapi"]})
        print(icis_deploy.accuracy_of_outcomes(device, [columns]).U)

    Raises:
        IncompatibleError: If they are of another head, or an image is there twice.
        UsageError: If there are none.
    """
    check_device(device)
    check_max_seen_loss(max_seen_loss)
    if isinstance(tables, Mapping) or hasattr(tables, "columns"):  # whose keys a loop would take for tables
        raise refused(tables, "a list of tables", name="tables")
    head = outcome_head(device, class_names_from(unseen, name="unseen"))
    given = items(tables, "tables", name="tables")
    for each in given:
        _check_table(each, name="tables")
    parts = [outcomes_from_columns(table, head) for table in given]
    if not sum(map(len, parts)):
        raise UsageError(
            "There are no outcomes.",
            found=0,
            expected="at least 1 outcome",
            hint="Give the outcomes of one image at least.",
        )
    return accuracy_of(merge(parts), max_seen_loss=max_seen_loss)


def check_device(device: object) -> None:
    """Raise `UsageError` if something else is given than an open device, such as a bundle's folder."""
    if not isinstance(device, Device):
        raise refused(device, "a device, as `Device.open` returns it", name="device")


def _check_table(table: object, *, name: str) -> None:
    if not isinstance(table, Mapping) and not hasattr(table, "columns"):
        raise refused(table, "columns by name, or a table", name=name)
