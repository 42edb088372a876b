"""Compare what a device reads of malformed files with what another reader, written from the formats alone, reads.

    python scripts/robustness/two_readers.py --files 100000

`read` below knows the Dead Simple Signing Envelope's specification (protocol 1.0, secure-systems-lab/dsse), that of
safetensors, and what `icis_deploy/updates/payload.py` says of a class update. It shares no code with icis-deploy. Half
of the files are damaged after they were signed. The other half are damaged before, and then signed with the trusted
key, as a publisher's broken tool would: nothing but the reading of payloads refuses those.

The exit code is 1 if a device takes a file that the other reader refuses, reads something else in it, or raises what is
no error of icis-deploy. A device may be stricter: the files that it refuses and the other one takes are counted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.runtime.changes.rules import verify_bytes
from icis_deploy.updates.payload import serialize_payload
from icis_deploy.updates.trusted_keys import TrustedKeys, public_key_from_pem
from scripts.robustness.loop import counted, main, say
from scripts.robustness.mutations import MUTATIONS, change_one, cut, flip_bits, splice
from testing.bundles import make_update, write_bundle

TYPE = "application/vnd.icis-deploy.class-update.v1+safetensors"
TYPES = {"F32": "<f4"}


class RefusedError(Exception):
    """The other reader does not take a file."""


def read(data: bytes, public_key: Ed25519PublicKey, key_id: str) -> dict[str, Any]:
    """Return what a signed class update holds: the fields of its metadata, and its tensors as arrays.

    Raises:
        RefusedError: If it is none, or the key did not sign it.
    """
    try:
        envelope = json.loads(data)
        payload = base64.b64decode(envelope["payload"], validate=True)
        kind = envelope["payloadType"]
        signatures = [each for each in envelope["signatures"] if each["keyid"] == key_id]
        text = kind.encode()
        signed = b"DSSEv1 %d %s %d %s" % (len(text), text, len(payload), payload)
    except Exception as error:
        raise RefusedError(f"no envelope: {error}") from error
    if kind != TYPE or not any(_fits(public_key, each, signed) for each in signatures):
        raise RefusedError("not signed")
    try:
        return read_payload(payload)
    except Exception as error:
        raise RefusedError(f"no update: {error}") from error


def _fits(public_key: Ed25519PublicKey, signature: dict[str, Any], signed: bytes) -> bool:
    try:
        public_key.verify(base64.b64decode(signature["sig"], validate=True), signed)
    except (InvalidSignature, ValueError, TypeError, KeyError):
        return False
    return True


def read_payload(payload: bytes) -> dict[str, Any]:
    """Return what a payload holds, as `read` does.

    Raises:
        Exception: Whatever a payload that is none causes.
    """
    (size,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + size].decode())
    body = payload[8 + size :]
    fields = json.loads(header["__metadata__"]["class_update"])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        array = np.frombuffer(body[start:end], TYPES[entry["dtype"]])
        if end > len(body) or start > end or start < 0:
            raise ValueError("a tensor lies outside")
        tensors[name] = array.reshape(entry["shape"])
        if not np.isfinite(array).all():
            raise ValueError("a number is not finite")
    names = [*fields["added"], *fields["replaced"]]
    if len(names) != len(tensors["rows"]) or len({*names, *fields["removed"]}) != len(names) + len(fields["removed"]):
        raise ValueError("its names do not go with its rows")
    return {**fields, **tensors}


def differences(found: dict[str, Any], taken: ClassUpdate | TrustedKeys) -> list[str]:
    """Return the names of what two readers read differently."""
    if not isinstance(taken, ClassUpdate):
        return ["the kind of content"]
    follows = None if taken.follows is None else {"version": taken.follows.version, "digest": taken.follows.digest}
    pairs = {
        "base_fingerprint": (found["base_fingerprint"], taken.base_fingerprint),
        "added": (found["added"], list(taken.added)),
        "replaced": (found["replaced"], list(taken.replaced)),
        "removed": (found["removed"], list(taken.removed)),
        "version": (found["version"], taken.version),
        "expires": (found["expires"], None if taken.expires is None else f"{taken.expires:%Y-%m-%dT%H:%M:%SZ}"),
        "probe_seed": (found["probe_seed"], taken.self_test_seed),
        "provenance": (found["provenance"], dict(taken.provenance)),
        "follows": (found.get("follows"), follows),
        "complete": (found.get("complete", False), taken.complete),
        "targets": (found.get("targets", []), list(taken.targets)),
    }
    differ = [name for name, (one, other) in pairs.items() if type(one) is not type(other) or one != other]
    for name, tensor in (("rows", taken.rows), ("arbiter", taken.arbiter)):
        one = found.get(name)
        if one is None or tensor is None:
            # An arbiter that is all zeros is none.
            differ += [] if tensor is None and (one is None or not one.any()) else [name]
        elif one.shape != tensor.shape or one.tobytes() != tensor.astype("<f4").tobytes():
            differ.append(name)
    return differ


@dataclass(slots=True, kw_only=True)
class ReadersReport:
    """What two readers made of the same files."""

    num_files: int = 0
    num_both_took: int = 0
    num_both_refused: int = 0
    num_stricter: int = 0
    """Files that only the device refused."""

    num_wrong: int = 0
    """Files that the device took and the other one refused, that they read differently, or that crashed one."""

    @property
    def is_clean(self) -> bool:
        """Whether the device took nothing wrongly."""
        return not self.num_wrong and self.num_both_took > 0

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        return (
            f"{self.num_files} files: both took {self.num_both_took} and read the same, both refused "
            f"{self.num_both_refused}, the device alone refused {self.num_stricter}, {self.num_wrong} wrong"
        )


def run_readers(folder: Path, num_files: int, *, seed: int) -> ReadersReport:
    """Let both read `num_files` files; the bundle is made in `folder`."""
    random, report = np.random.default_rng(seed), ReadersReport()
    private = Ed25519PrivateKey.generate()
    trusted = public_key_from_pem(pem_of(private))
    bundle = load_manifest(write_bundle(folder / "bundle"))
    payloads = [serialize_payload(update) for update in updates_of_every_kind("1" * 64, "0" * 64)]
    for index in counted(num_files, "files"):
        payload = payloads[int(random.integers(len(payloads)))]
        if index % 2:
            data = signed_file(damaged(payload, random), private, trusted.keyid)
        else:
            mutation = MUTATIONS[index // 2 % len(MUTATIONS)]
            data = mutation(signed_file(payload, private, trusted.keyid), random)
        try:
            found: dict[str, Any] | None = read(data, private.public_key(), trusted.keyid)
        except RefusedError:
            found = None
        report.num_files += 1
        try:
            taken = verify_bytes(data, bundle=bundle, trusted_keys=[trusted], allow_unsigned=False).content
        except ICISDeployError:
            report.num_both_refused += found is None
            report.num_stricter += found is not None
            continue
        except Exception as error:
            report.num_wrong += 1
            say(f"crash: {type(error).__name__}: {error}: {data[:200]!r}")
            continue
        differ = ["taken by the device alone"] if found is None else differences(found, taken)
        report.num_both_took += not differ
        if differ:
            report.num_wrong += 1
            say(f"{', '.join(differ)}: {data[:300]!r}")
    return report


def updates_of_every_kind(target: str, digest: str) -> list[ClassUpdate]:
    """Return an update of each schema, for a bundle with the digest `target` and slots with the digest `digest`."""
    followed = FollowedState(version=4, digest=digest)
    return [
        make_update("okapi", "quagga"),
        make_update("okapi", arbiter=np.ones((1, 5))),
        make_update("okapi", version=5, follows=followed, targets=(target,)),
        make_update("okapi", version=5, follows=followed, targets=("1" * 64,), removed=("gnu",)),
        make_update("okapi", version=6, complete=True),
    ]


def pem_of(private: Ed25519PrivateKey) -> str:
    """Return the public key of a private one, PEM."""
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signed_file(payload: bytes, private: Ed25519PrivateKey, key_id: str) -> bytes:
    """Return a file with a payload, signed."""
    signature = private.sign(b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(payload), payload))
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": TYPE,
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
        },
        separators=(",", ":"),
        sort_keys=True,
    ).encode()


def damaged(payload: bytes, random: np.random.Generator) -> bytes:
    """Damage a payload: its bytes, the JSON of its header or that of its metadata, whose hashes may be made right."""
    kind = int(random.integers(6))
    if kind < 3:
        return (flip_bits, cut, splice)[kind](payload, random)
    (size,) = struct.unpack_from("<Q", payload)
    header, body = json.loads(payload[8 : 8 + size]), payload[8 + size :]
    if kind == 3:
        change_one(header, random)
    else:
        fields = json.loads(header["__metadata__"]["class_update"])
        if kind == 4:
            change_one(fields, random)
        else:  # other numbers, stated rightly
            start, end = header["rows"]["data_offsets"]
            body = body[:start] + random.bytes(end - start) + body[end:]
            fields["rows_sha256"] = hashlib.sha256(body[start:end]).hexdigest()
        header["__metadata__"]["class_update"] = json.dumps(fields)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


if __name__ == "__main__":
    raise SystemExit(main(run_readers, description=__doc__, unit="files", default=100_000))
