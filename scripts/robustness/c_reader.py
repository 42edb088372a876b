"""Compare what the reader in C makes of files with what a device in Python makes of them.

    python scripts/robustness/c_reader.py --files 100000

`exporters/c/icis_update.c` was written from the formats and the rules, without a line of the Python reader. Half of the
files are damaged after they were signed, half before, as in `two_readers.py`. Both readers apply each file to the same
slots, and must take the same ones and write the same rows. The exit code is 1 if the reader in C takes a file that the
device refuses, or writes something else. It may be stricter: what it alone refuses is counted. A C compiler and
libcrypto are needed.
"""

from __future__ import annotations

import ctypes
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from icis_deploy.bundle.manifest import Bundle, load_manifest, target_digest
from icis_deploy.errors import (
    CapacityError,
    ClassConflictError,
    CorruptFileError,
    ExpiredError,
    ICISDeployError,
    IncompatibleError,
    SignatureError,
    UpdateOrderError,
    VersionRollbackError,
    WrongBaseError,
)
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime.changes.rules import plan_update, verify_bytes
from icis_deploy.runtime.state.journal import Journal, initial_journal
from icis_deploy.updates.payload import serialize_payload
from icis_deploy.updates.trusted_keys import public_key_from_pem
from scripts.robustness.loop import counted, main, say
from scripts.robustness.mutations import MUTATIONS
from scripts.robustness.two_readers import damaged, pem_of, signed_file, updates_of_every_kind
from testing.bundles import write_bundle

SOURCES = Path(__file__).resolve().parents[2] / "exporters" / "c"
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-g")
STATUSES = (
    *("OK", "TOO_LARGE", "CORRUPT", "OTHER_CONTENT", "UNSIGNED", "WRONG_BASE", "WRONG_TARGET", "OLD_VERSION"),
    *("EXPIRED", "WRONG_ORDER", "NO_ARBITER", "CONFLICT", "NO_ROOM", "FAULT"),
)
_STATUS_OF: dict[type[ICISDeployError], tuple[str, ...]] = {
    CapacityError: ("NO_ROOM",),
    ClassConflictError: ("CONFLICT",),
    CorruptFileError: ("CORRUPT", "TOO_LARGE"),
    ExpiredError: ("EXPIRED",),
    IncompatibleError: ("NO_ARBITER", "CONFLICT"),
    SignatureError: ("UNSIGNED",),
    UpdateOrderError: ("WRONG_ORDER",),
    VersionRollbackError: ("OLD_VERSION",),
    WrongBaseError: ("WRONG_BASE", "WRONG_TARGET"),
}
MAX_NAME_BYTES = 1024


class _Name(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("bytes", ctypes.c_char * MAX_NAME_BYTES))


class _Slots(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("arbiter", ctypes.c_void_p),
        ("names", ctypes.POINTER(_Name)),
    )


class _Device(ctypes.Structure):
    _fields_ = (
        ("capacity", ctypes.c_size_t),
        ("feature_dim", ctypes.c_size_t),
        ("base_fingerprint", ctypes.c_char_p),
        ("target_digest", ctypes.c_char_p),
        ("baked_names", ctypes.POINTER(_Name)),
        ("num_baked", ctypes.c_size_t),
        ("keys", ctypes.c_char_p),
        ("num_keys", ctypes.c_size_t),
        ("highest_version", ctypes.c_int64),
        ("now", ctypes.c_int64),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int64),
        ("num_added", ctypes.c_size_t),
        ("num_replaced", ctypes.c_size_t),
        ("num_removed", ctypes.c_size_t),
        ("signed_by", ctypes.c_char * 65),
    )


def missing_tools() -> str | None:
    """Return what is missing to compile the reader here; `None` where nothing is."""
    if shutil.which("cc") is None:
        return "there is no C compiler (cc)"
    pkg_config = shutil.which("pkg-config")
    if pkg_config is None:
        return "there is no pkg-config"
    asked = subprocess.run([pkg_config, "--exists", "libcrypto"], check=False)  # noqa: S603 - as it was found
    if asked.returncode:
        return "there is no libcrypto with headers (pkg-config --exists libcrypto)"
    return None


def libcrypto_flags() -> list[str]:
    """Return what a compiler needs to find libcrypto."""
    command = [str(shutil.which("pkg-config")), "--cflags", "--libs", "libcrypto"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - as it was found
    return shlex.split(found.stdout)


def compile_reader(out: Path) -> Path:
    """Compile the reader as a shared library, and return its path."""
    library = out / f"icis_update.{'dylib' if sys.platform == 'darwin' else 'so'}"
    command = ["cc", *FLAGS, "-shared", "-fPIC", str(SOURCES / "icis_update.c"), "-o", str(library), *libcrypto_flags()]
    subprocess.run(command, check=True)  # noqa: S603 - the compiler, on files of the project
    return library


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reader made of a file."""

    status: str
    """One of `STATUSES`."""

    table: SlotTable | None = None
    """What the slots hold afterwards; `None` where the file was refused."""


class CReader:
    """The reader in C, for one bundle and some trusted keys."""

    def __init__(self, library: Path, bundle: Bundle, keys: list[bytes]) -> None:
        """Load a library that `compile_reader` made.

        Args:
            library: Its path.
            bundle: The device's; its slots are empty before each file unless a table is given.
            keys: Raw public keys, 32 bytes each.
        """
        self._c = ctypes.CDLL(str(library))
        self._c.icis_work_bytes.restype = ctypes.c_size_t
        self._c.icis_max_file_bytes.restype = ctypes.c_size_t
        self._bundle, self._keys = bundle, keys
        self._baked = _names(bundle.class_names)

    def apply(self, data: bytes, table: SlotTable, *, journal: Journal, now: datetime, with_arbiter: bool) -> Verdict:
        """Apply a file to slots, which stay as they are."""
        device = self._device(journal, now)
        before, keep_before = _slots(table, with_arbiter=with_arbiter)
        after, kept = _slots(empty_slots(table.capacity, table.feature_dim), with_arbiter=with_arbiter)
        size = self._c.icis_work_bytes(ctypes.byref(device))
        work, result = ctypes.create_string_buffer(size), _Result()
        status = STATUSES[
            self._c.icis_apply(
                ctypes.byref(device),
                data,
                ctypes.c_size_t(len(data)),
                work,
                ctypes.c_size_t(size),
                ctypes.byref(before),
                ctypes.byref(after),
                ctypes.byref(result),
            )
        ]
        del keep_before
        return Verdict(status=status, table=_table(kept) if status == "OK" else None)

    def max_file_bytes(self, journal: Journal, now: datetime) -> int:
        """Return the size of the largest file that it looks at."""
        return int(self._c.icis_max_file_bytes(ctypes.byref(self._device(journal, now))))

    def _device(self, journal: Journal, now: datetime) -> _Device:
        bundle = self._bundle
        return _Device(
            capacity=bundle.capacity,
            feature_dim=bundle.feature_dim,
            base_fingerprint=bundle.base_fingerprint.encode(),
            target_digest=target_digest(bundle).encode(),
            baked_names=self._baked,
            num_baked=len(self._baked),
            keys=b"".join(self._keys),
            num_keys=len(self._keys),
            highest_version=journal.highest_version,
            now=int(now.timestamp()),
        )


def _names(texts: tuple[str | None, ...]) -> ctypes.Array[_Name]:
    names = (_Name * len(texts))()
    for name, text in zip(names, texts, strict=True):
        encoded = (text or "").encode()
        name.length = len(encoded)
        ctypes.memmove(ctypes.addressof(name) + _Name.bytes.offset, encoded, len(encoded))
    return names


_Kept = tuple[np.ndarray, np.ndarray, "np.ndarray | None", "ctypes.Array[_Name]"]


def _slots(table: SlotTable, *, with_arbiter: bool) -> tuple[_Slots, _Kept]:
    """Return slots for the reader, and the arrays that they point to."""
    arrays = [np.array(array, dtype=np.float32, order="C") for array in (table.weight, table.bias, table.coefficients)]
    names = _names(table.class_names)
    weight, bias, arbiter = arrays[0], arrays[1], arrays[2] if with_arbiter else None
    pointer = None if arbiter is None else arbiter.ctypes.data
    return _Slots(weight.ctypes.data, bias.ctypes.data, pointer, names), (weight, bias, arbiter, names)


def _table(kept: _Kept) -> SlotTable:
    weight, bias, arbiter, names = kept
    texts = []
    for name in names:
        raw = ctypes.string_at(ctypes.addressof(name) + _Name.bytes.offset, name.length)
        texts.append(raw.decode() or None)
    return SlotTable(weight=weight, bias=bias, arbiter=arbiter, class_names=tuple(texts))


def python_verdict(
    data: bytes, table: SlotTable, *, bundle: Bundle, keys: list[str], journal: Journal, now: datetime
) -> tuple[tuple[str, ...], SlotTable | None]:
    """Return which statuses of the reader in C say the same as a device does, and what the slots hold afterwards.

    Args:
        data: The file.
        table: What the slots hold.
        bundle: The device's.
        keys: Trusted public keys, PEM.
        journal: What the device remembers.
        now: Its clock.
    """
    trusted = [public_key_from_pem(key) for key in keys]
    try:
        content = verify_bytes(data, bundle=bundle, trusted_keys=trusted, allow_unsigned=False).content
        if not isinstance(content, ClassUpdate):
            return ("OTHER_CONTENT",), None
        return ("OK",), plan_update(journal, content, table=table, bundle=bundle, clock=now)
    except ICISDeployError as error:
        return _STATUS_OF[type(error)], None


@dataclass(slots=True, kw_only=True)
class ReaderReport:
    """What both readers made of the same files."""

    num_files: int = 0
    num_both_took: int = 0
    num_both_refused: int = 0
    num_other_reason: int = 0
    """Files that both refused, for reasons that are not the same."""

    stricter: Counter[str] = field(default_factory=Counter)
    """Files that only the reader in C refused, by its status."""

    num_wrong: int = 0
    """Files that the reader in C took and the device refused, or of which they wrote different slots."""

    @property
    def is_clean(self) -> bool:
        """Whether the reader in C took nothing wrongly."""
        return not self.num_wrong and self.num_both_took > 0

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        return (
            f"{self.num_files} files: both took {self.num_both_took} and wrote the same, both refused "
            f"{self.num_both_refused} ({self.num_other_reason} for other reasons), C alone refused "
            f"{sum(self.stricter.values())}, {self.num_wrong} wrong"
        )


def run_c_reader(folder: Path, num_files: int, *, seed: int) -> ReaderReport:
    """Let both read `num_files` files; the library and the bundle are made in `folder`."""
    random, report = np.random.default_rng(seed), ReaderReport()
    private = Ed25519PrivateKey.generate()
    bundle = load_manifest(write_bundle(folder / "bundle", arbiter=True))
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    reader, key = CReader(compile_reader(folder), bundle, [raw]), pem_of(private)
    key_id = public_key_from_pem(key).keyid
    journal, now = initial_journal(bundle), datetime(2026, 1, 1, tzinfo=timezone.utc)
    table = empty_slots(bundle.capacity, bundle.feature_dim)
    payloads = [serialize_payload(update) for update in updates_of_every_kind(target_digest(bundle), table.digest())]
    for index in counted(num_files, "files"):
        payload = payloads[int(random.integers(len(payloads)))]
        if index % 2:
            data = signed_file(damaged(payload, random), private, key_id)
        else:
            data = MUTATIONS[index // 2 % len(MUTATIONS)](signed_file(payload, private, key_id), random)
        found = reader.apply(data, table, journal=journal, now=now, with_arbiter=True)
        expected, written = python_verdict(data, table, bundle=bundle, keys=[key], journal=journal, now=now)
        report.num_files += 1
        if written is None and found.table is None:
            report.num_both_refused += 1
            report.num_other_reason += found.status not in expected
        elif found.table is None:
            report.stricter[found.status] += 1
        elif written is None or found.table != written:
            report.num_wrong += 1
            say(f"C: {found.status}; Python: {expected}: {data[:300]!r}")
        else:
            report.num_both_took += 1
    return report


if __name__ == "__main__":
    raise SystemExit(main(run_c_reader, description=__doc__, unit="files", default=100_000))
