"""What share of faults in the memory of slots each form of the self-test finds, on a real bundle.

    python scripts/experiments/self_test_faults.py bundle

Rows like the head's own (as long, of the same spread) are written to all slots by an update; then one fault is put in
the memory that the model reads, at a random slot and column, and both forms are asked:

    memory   compared with what the update wrote (`verify_loaded`), which every change does
    model    run once on a seeded input and its logits compared (`verify_computed`), which opening another runtime does

A fault that leaves every number as it was (zeros exchanged) is none, and drawn again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import SelfTestError
from icis_deploy.head.arbiter import STATISTICS
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime.changes.self_test import Written, verify_computed, verify_loaded
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.protocol import Session

Fault = Callable[[dict[str, Float32], np.random.Generator], None]
"""Changes copies of `weight`, `bias` and `arbiter` in place, `(capacity, ...)` each."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--faults", type=int, default=2000, help="of each kind, for the comparison of memory")
    parser.add_argument("--runs", type=int, default=100, help="of each kind, for the model")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    device = Device.open(given.bundle, num_threads=given.threads)
    bundle, session, random = device.bundle, session_of(device), np.random.default_rng(0)
    before = empty_slots(bundle.capacity, bundle.feature_dim)
    update = _update(bundle, random)
    table = before.apply(update, seen_names=frozenset(bundle.class_names))
    written = Written(before, update.class_names, update.rows, update.arbiter)
    constants = ArbiterConstants(given.bundle, bundle)
    print(f"{bundle.capacity} slots, {bundle.feature_dim} features, {given.faults} faults of each kind in memory")
    print("| fault | found in memory | found by the model |")
    print("|---|---|---|")
    for name, fault in _faults(has_arbiter=update.arbiter is not None).items():
        in_memory = by_model = 0
        for index in range(given.faults):
            held = _damaged(table, fault, random)
            in_memory += _found(lambda held=held: _compare(session, table, held, written))
            if index < given.runs:
                by_model += _found(lambda held=held: _run(session, bundle, table, held, constants))
        print(f"| {name} | {in_memory / given.faults:.2%} | {by_model / given.runs:.0%} of {given.runs} |", flush=True)


def _update(bundle: Bundle, random: np.random.Generator) -> ClassUpdate:
    rows = random.normal(scale=bundle.feature_dim**-0.5, size=(bundle.capacity, bundle.feature_dim + 1))
    arbiter = random.normal(size=(bundle.capacity, len(STATISTICS))) if bundle.arbiter else None
    return ClassUpdate(
        base_fingerprint=bundle.base_fingerprint,
        rows=rows.astype(np.float32),
        arbiter=None if arbiter is None else arbiter.astype(np.float32),
        added=tuple(f"class {index}" for index in range(bundle.capacity)),
        version=1,
    )


def _faults(*, has_arbiter: bool) -> dict[str, Fault]:
    faults: dict[str, Fault] = {
        "a weight zeroed": lambda held, random: _put(held["weight"], random, lambda value: 0 * value),
        "a weight's sign flipped": lambda held, random: _put(held["weight"], random, np.negative),
        "two weights of a row exchanged": _exchange_weights,
        "two rows exchanged": _exchange_rows,
        "a row that was not written": _lose_row,
        "a bit of a weight: mantissa": lambda held, random: _flip(held["weight"], random, 0, 23),
        "a bit of a weight: exponent": lambda held, random: _flip(held["weight"], random, 23, 31),
        "a bit of a bias": lambda held, random: _flip(held["bias"], random, 0, 32),
    }
    if has_arbiter:
        faults["a bit of a coefficient"] = lambda held, random: _flip(held["arbiter"], random, 0, 32)
    return faults


def _put(array: Float32, random: np.random.Generator, change: Callable[[Float32], Float32]) -> None:
    index = tuple(random.integers(size) for size in array.shape)
    array[index] = change(array[index])


def _flip(array: Float32, random: np.random.Generator, low: int, high: int) -> None:
    index = tuple(random.integers(size) for size in array.shape)
    array.view(np.uint32)[index] ^= np.uint32(1 << int(random.integers(low, high)))


def _exchange_weights(held: dict[str, Float32], random: np.random.Generator) -> None:
    row = held["weight"][random.integers(len(held["weight"]))]
    columns = random.choice(row.size, size=2, replace=False)
    row[columns] = row[columns[::-1]]


def _exchange_rows(held: dict[str, Float32], random: np.random.Generator) -> None:
    slots = random.choice(len(held["bias"]), size=2, replace=False)
    for array in held.values():
        array[slots] = array[slots[::-1]]


def _lose_row(held: dict[str, Float32], random: np.random.Generator) -> None:
    held["weight"][random.integers(len(held["weight"]))] = 0


def _damaged(table: SlotTable, fault: Fault, random: np.random.Generator) -> dict[str, Float32]:
    good = {"weight": table.weight, "bias": table.bias, "arbiter": table.coefficients}
    while True:
        held = {name: array.copy() for name, array in good.items()}
        fault(held, random)
        if any(held[name].tobytes() != good[name].tobytes() for name in held):
            return held


def _found(check: Callable[[], object]) -> bool:
    try:
        with np.errstate(all="ignore"):
            check()
    except SelfTestError:
        return True
    return False


def _compare(session: Session, table: SlotTable, held: dict[str, Float32], written: Written) -> None:
    verify_loaded(session, table, session.load_slots(**held), written=written)


def _run(
    session: Session, bundle: Bundle, table: SlotTable, held: dict[str, Float32], constants: ArbiterConstants
) -> None:
    verify_computed(session, bundle, table, session.load_slots(**held), seed=0, constants=constants)


if __name__ == "__main__":
    main()
