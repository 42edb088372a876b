"""The signature of a bundle: a statement of the files that everything else in it hangs on, in a DSSE envelope.

The payload is an in-toto Statement (in-toto attestation framework, v1) whose subjects are the manifest, which holds the
hashes of all other files, and every key in `trust/`, which no manifest names. Tools that know in-toto can read it.

Rules:

1. It is verified with keys from outside of the bundle: a bundle cannot vouch for itself.
2. The files that are there must be the subjects, all of them and no others: a key that was added to `trust/` is refused
   like a manifest that was changed.
3. What a device changes itself (`state/`) is no part of it.
"""

# Why: docs/decisions/0083.

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from icis_deploy.common.json_fields import list_from_json, load_strict, object_from_json, text_from_json
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import CorruptFileError, SignatureError
from icis_deploy.updates.envelope import verify_signature

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

SIGNATURE_NAME = "bundle.dsse"
STATEMENT_TYPE = "application/vnd.in-toto+json"
MAX_BUNDLE_SIGNATURE_BYTES = 1 << 16
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://icis-deploy/bundle/v1"


def bundle_envelope(files: Mapping[str, bytes]) -> Envelope:
    """Return an envelope without signatures for these files of a bundle.

    Args:
        files: The bytes of the manifest and of each trusted key, by the path inside the bundle.
    """
    from securesystemslib.dsse import Envelope

    statement = {
        "_type": _STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
            for name, data in sorted(files.items())
        ],
        "predicateType": _PREDICATE,
        "predicate": {},
    }
    return Envelope(json.dumps(statement, sort_keys=True, separators=(",", ":")).encode(), STATEMENT_TYPE, {})


def verify_bundle_files(signature: bytes, files: Mapping[str, bytes], keys: Sequence[SSlibKey]) -> str:
    """Return the id of the trusted key that signed these files of a bundle.

    Args:
        signature: The bytes of `bundle.dsse`.
        files: As `bundle_envelope` takes them, as they are now.
        keys: The keys that are trusted, from outside of the bundle.

    Raises:
        CorruptFileError: If the signature is no such statement, or a file is not what was signed.
        SignatureError: If none of the keys signed it.
    """
    envelope = parse_bundle_envelope(signature)
    signed_by = verify_signature(envelope, keys)
    _check_subjects(envelope.payload, files)
    return signed_by


def claimed_signers(signature: bytes, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the ids of the keys that a signature says it is by; none of them was asked.

    Args:
        signature: The bytes of `bundle.dsse`.
        files: As `bundle_envelope` takes them, as they are now.

    Raises:
        CorruptFileError: If the signature is no such statement, or a file is not what was signed.
    """
    envelope = parse_bundle_envelope(signature)
    _check_subjects(envelope.payload, files)
    return tuple(sorted(envelope.signatures))


def _check_subjects(payload: bytes, files: Mapping[str, bytes]) -> None:
    signed = _subjects(payload)
    found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    differing = sorted(name for name in signed.keys() | found.keys() if signed.get(name) != found.get(name))
    if differing:
        name = differing[0]
        what = "was added" if name not in signed else "is missing" if name not in found else "was changed"
        raise CorruptFileError(
            f"{shown(name)} {what} after the bundle was signed.",
            found=found.get(name),
            expected=signed.get(name),
            where=name,
            hint="Fetch the bundle again, or sign it again with `sign_bundle()` if you changed it yourself.",
        )


def parse_bundle_envelope(data: bytes) -> Envelope:
    """Return the envelope of a bundle's signature; nothing of it is verified.

    Args:
        data: At most `MAX_BUNDLE_SIGNATURE_BYTES`, which whoever reads the file sees to.

    Raises:
        CorruptFileError: If the bytes are no DSSE envelope of a statement.
    """
    from securesystemslib.dsse import Envelope

    try:
        fields = object_from_json(load_strict(data))
        envelope = Envelope.from_dict(fields | {"signatures": list_from_json(fields["signatures"])})
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # securesystemslib lets whatever a malformed value causes through
        raise CorruptFileError(
            f"The bundle's signature is no DSSE envelope: {reason_of(error)}.",
            found=reason_of(error),
            expected="a DSSE envelope",
            hint="Fetch the bundle again.",
        ) from error
    if envelope.payload_type != STATEMENT_TYPE:
        raise CorruptFileError(
            f"The bundle's signature is over {shown(envelope.payload_type)}; expected {STATEMENT_TYPE!r}.",
            found=shown(envelope.payload_type),
            expected=STATEMENT_TYPE,
            hint="Fetch the bundle again.",
        )
    return envelope


def _subjects(payload: bytes) -> dict[str, str]:
    try:
        statement = object_from_json(load_strict(payload))
        if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE):
            raise ValueError("it is a statement about something else")
        entries = [object_from_json(entry) for entry in list_from_json(statement["subject"])]
        named = [
            (text_from_json(entry["name"]), text_from_json(object_from_json(entry["digest"])["sha256"]))
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(
            f"The bundle's signature holds no statement of its files: {reason_of(error)}.",
            found=reason_of(error),
            expected="an in-toto statement",
            hint="Copy the bundle again, or sign it again with `sign_bundle()`.",
        ) from error
    if len(dict(named)) != len(named):
        raise CorruptFileError(
            "The bundle's signature names a file twice.",
            expected="each file once",
            hint="Sign the bundle again with `sign_bundle()`.",
        )
    return dict(named)


def unsigned_bundle_error(folder: str) -> SignatureError:
    """Return what is said of a bundle that should be signed and is not."""
    return SignatureError(
        f"The bundle {folder} is not signed.",
        found="no signature",
        expected=f"{SIGNATURE_NAME}, signed by a trusted key",
        where=folder,
        hint="Sign it with `sign_bundle()`, or open it without `trust`, which believes whoever wrote its folder.",
    )
