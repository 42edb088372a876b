"""Damage class update files in every way, and count what a device makes of them.

    python scripts/robustness/mutations.py --files 20000

A file is accepted wrongly if it is read although its payload is not the one that was signed, and crashes the reader if
that raises anything but an error of icis-deploy. The exit code is 1 if any file does either, or takes more than 100 MB
to read. A change to nothing that is signed (a blank in the JSON, a stranger's signature next to the good one) may be
accepted: it is counted as equivalent.
"""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.changes.rules import verify_bytes
from icis_deploy.updates.signing import keygen, load_public_key, trusted_keys_from_files
from icis_deploy.updates.trusted_keys import TrustedKeys
from scripts.robustness.loop import counted, main, say
from testing.bundles import make_update, signed_bytes, write_bundle

MAX_BYTES = 100_000_000
_STRANGE_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 10**400, "", "\0", "é", "A" * 5000, [], {}, [[]], {"": None}, [1, "a"], "../../etc",
)  # fmt: skip


@dataclass(kw_only=True)
class MutationReport:
    """What a device made of damaged files."""

    num_files: int = 0
    """How many were tried."""

    num_refused: int = 0
    """How many were refused with an error of icis-deploy."""

    num_equivalent: int = 0
    """How many were taken with exactly the payload that was signed."""

    num_accepted_wrongly: int = 0
    """How many were taken with another payload."""

    num_crashes: int = 0
    """How many raised anything else."""

    peak_bytes: int = 0
    """The most memory that reading one of them took, by Python's and numpy's allocations."""

    @property
    def is_clean(self) -> bool:
        """Whether none did harm."""
        return not self.num_accepted_wrongly and not self.num_crashes and self.peak_bytes <= MAX_BYTES

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        return (
            f"{self.num_files} files: {self.num_refused} refused, {self.num_equivalent} equivalent to a signed one, "
            f"{self.num_accepted_wrongly} accepted wrongly, {self.num_crashes} crashes, at most "
            f"{self.peak_bytes / 1e6:.1f} MB"
        )


class Target:
    """A device's reader, with good files of every kind to damage."""

    def __init__(self, folder: Path) -> None:
        keys = keygen(folder / "mutations-key")
        self.bundle = load_manifest(write_bundle(folder / "mutations-bundle"))
        self.keys = [load_public_key(keys.public_path)]
        contents = (
            make_update("okapi", "zebra"),
            trusted_keys_from_files([keys.public_path]),
            make_update("okapi", "zebra", arbiter=np.ones((2, 5))),
        )
        self.good = {signed_bytes(content, keys.private_path): content for content in contents}

    def read(self, data: bytes) -> ClassUpdate | TrustedKeys:
        """Return what a device believes these bytes to hold.

        Raises:
            ICISDeployError: If it refuses them.
        """
        return verify_bytes(data, bundle=self.bundle, trusted_keys=self.keys, allow_unsigned=False).content

    def try_file(self, data: bytes, report: MutationReport) -> None:
        """Read a damaged file and count what came of it."""
        report.num_files += 1
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            content = self.read(data)
        except ICISDeployError:
            report.num_refused += 1
        except Exception as error:
            report.num_crashes += 1
            say(f"crash: {type(error).__name__}: {error}: {data[:200]!r}")
        else:
            if any(_same(content, good) for good in self.good.values()):
                report.num_equivalent += 1
            else:
                report.num_accepted_wrongly += 1
                say(f"accepted wrongly: {data[:200]!r}")
        report.peak_bytes = max(report.peak_bytes, tracemalloc.get_traced_memory()[1] - before)


def _same(content: ClassUpdate | TrustedKeys, good: ClassUpdate | TrustedKeys) -> bool:
    if isinstance(content, ClassUpdate) and isinstance(good, ClassUpdate):
        return content == good
    return isinstance(content, TrustedKeys) and content == good


def run_mutations(folder: Path, num_files: int, *, seed: int) -> MutationReport:
    """Try `num_files` damaged files; keys and bundle are made in `folder`."""
    target, random, report = Target(folder), np.random.default_rng(seed), MutationReport()
    good = list(target.good)
    tracemalloc.start()
    try:
        for index in counted(num_files, "files"):
            mutation = MUTATIONS[index % len(MUTATIONS)]
            target.try_file(mutation(good[int(random.integers(len(good)))], random), report)
    finally:
        tracemalloc.stop()
    return report


def flip_bits(data: bytes, random: np.random.Generator) -> bytes:
    """Flip one to eight bits."""
    damaged = bytearray(data)
    for offset in random.integers(len(damaged), size=random.integers(1, 9)):
        damaged[offset] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def cut(data: bytes, random: np.random.Generator) -> bytes:
    """Keep a part from the start."""
    return data[: int(random.integers(len(data)))]


def splice(data: bytes, random: np.random.Generator) -> bytes:
    """Copy one stretch over another, or in between."""
    start, end, target = sorted(random.integers(len(data), size=3))
    return data[:target] + data[start:end] + data[target + int(random.integers(2)) * (end - start) :]


def random_bytes(data: bytes, random: np.random.Generator) -> bytes:
    """Make a file of random bytes, sometimes after a good beginning."""
    return data[: int(random.integers(64)) * int(random.integers(2))] + random.bytes(int(random.integers(2000)))


def change_json(data: bytes, random: np.random.Generator) -> bytes:
    """Put a strange value somewhere in the envelope."""
    document = json.loads(data)
    change_one(document, random)
    return json.dumps(document).encode()


def change_payload(data: bytes, random: np.random.Generator) -> bytes:
    """Damage the payload behind its base64, which only the signature protects."""
    document = json.loads(data)
    payload = base64.b64decode(document["payload"])
    document["payload"] = base64.b64encode((flip_bits, cut, splice)[random.integers(3)](payload, random)).decode()
    return json.dumps(document).encode()


def change_signature(data: bytes, random: np.random.Generator) -> bytes:
    """Damage the signature, repeat it, or add others."""
    document = json.loads(data)
    (signature,) = document["signatures"]
    others = [
        {**signature, "sig": base64.b64encode(random.bytes(int(random.integers(80)))).decode()},
        {**signature, "keyid": "0" * 64},
        {**signature, "keyid": int(random.integers(100))},
        {"sig": signature["sig"]},
        {**signature, "scheme": ["?"], "extra": {"deep": [1, 2, {}]}},
    ]
    chosen = [others[index] for index in random.integers(len(others), size=random.integers(0, 4))]
    document["signatures"] = chosen + [signature] * int(random.integers(2))
    return json.dumps(document).encode()


def nest(data: bytes, random: np.random.Generator) -> bytes:  # noqa: ARG001 - the signature of all mutations
    """Make JSON that is only deeply nested or very wide."""
    size = int(random.integers(1, 60_000))
    return [b"[" * size, b'{"payload":' * size, b"[" + b"[]," * size + b"[]]", b'{"payload":"' + b"A" * size][
        random.integers(4)
    ]


def change_one(value: Any, random: np.random.Generator) -> None:
    """Put a strange value somewhere into JSON, or take something out of it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = keys[random.integers(len(keys))]
    if isinstance(value[key], (dict, list)) and value[key] and random.integers(3):
        change_one(value[key], random)
    elif isinstance(value, dict) and not random.integers(4):
        del value[key]
    else:
        value[key] = _STRANGE_VALUES[random.integers(len(_STRANGE_VALUES))]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    flip_bits,
    cut,
    splice,
    random_bytes,
    change_json,
    change_payload,
    change_signature,
    nest,
)


if __name__ == "__main__":
    raise SystemExit(main(run_mutations, description=__doc__, unit="files", default=20_000))
