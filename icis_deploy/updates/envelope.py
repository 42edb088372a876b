"""Signed files: a class update, or a set of trusted keys, inside a DSSE envelope.

The envelope is the one of the Dead Simple Signing Envelope specification (secure-systems-lab/dsse, protocol 1.0), read
and written by securesystemslib. What nobody signed yet has an empty list of signatures.

Rules:

1. The signature covers the payload and its type, byte for byte; nothing else in the file is believed.
2. `verify_signature` comes before any reader of payloads; the workbench, which makes updates, reads unverified ones.
3. The key id in a signature only chooses among trusted keys; a signature by another key counts for nothing.
4. The file is read strictly as JSON; see `common.json_fields`.
"""

# Why: docs/decisions/0003.

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.common.files import path_from, read_plain, write_file
from icis_deploy.common.json_fields import has_more_values, list_from_json, load_strict
from icis_deploy.common.terminal_text import printable, shown
from icis_deploy.errors import CorruptFileError, LoadError, SignatureError, UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.updates.payload import MAX_PAYLOAD_BYTES, PAYLOAD_TYPE, parse_payload, serialize_payload
from icis_deploy.updates.trusted_keys import TRUSTED_KEYS_TYPE, TrustedKeys, parse_trusted_keys, serialize_trusted_keys

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

MAX_SIGNATURE_BYTES = 1 << 16
MAX_ENVELOPE_BYTES = MAX_PAYLOAD_BYTES // 3 * 4 + MAX_SIGNATURE_BYTES
"""Base64 makes four bytes of three."""

# Why: docs/decisions/0023.
MAX_JSON_VALUES = 4096
"""An envelope has a handful. A file that is nothing but brackets would take twenty times its size in memory."""

_PAYLOAD_START = b'{"payload":"'
_NUM_SHOWN = 16
_MAX_REASON = 120
_MAX_SHOWN_KEYS = 4
_HINT = "Give the .icis file that `inject()` and `sign()` made; if it is that one, fetch it again."


def serialize_envelope(envelope: Envelope) -> bytes:
    """Return the JSON bytes of an envelope."""
    return json.dumps(envelope.to_dict(), separators=(",", ":"), sort_keys=True).encode()


def parse_envelope(data: bytes) -> Envelope:
    """Return the envelope that these bytes hold; its payload is neither verified nor parsed.

    Raises:
        CorruptFileError: If they are not a DSSE envelope with a payload of a type that icis-deploy knows.
    """
    from securesystemslib.dsse import Envelope

    if len(data) > MAX_ENVELOPE_BYTES:
        raise CorruptFileError(
            f"The class update is {len(data)} bytes; at most {MAX_ENVELOPE_BYTES} are read.",
            found=len(data),
            expected=MAX_ENVELOPE_BYTES,
            hint="Check that it is a class update: none is so large.",
        )
    fields, payload = _without_payload(data)
    if has_more_values(fields, MAX_JSON_VALUES):
        raise CorruptFileError(
            f"The file is not a class update: it is no DSSE envelope (more than {MAX_JSON_VALUES} JSON values).",
            found=f"more than {MAX_JSON_VALUES} JSON values",
            expected="a DSSE envelope",
            hint=_HINT,
        )
    try:
        document = load_strict(fields)
        signatures = list_from_json(document["signatures"])
        envelope = Envelope.from_dict(document | {"payload": "", "signatures": signatures})
        envelope.payload = _decoded(document["payload"]) if payload is None else payload
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # securesystemslib lets whatever a malformed value causes through
        # It quotes the file, which is untrusted.
        reason = printable(f"{type(error).__name__}: {error}", max_length=_MAX_REASON)
        raise CorruptFileError(
            f"The file is not a class update: it is no DSSE envelope ({reason}).",
            found=reason,
            expected="a DSSE envelope",
            hint=_HINT,
        ) from error
    if envelope.payload_type not in (PAYLOAD_TYPE, TRUSTED_KEYS_TYPE):
        found = printable(repr(envelope.payload_type), max_length=_MAX_REASON)
        raise CorruptFileError(
            f"The envelope holds {found}; expected {PAYLOAD_TYPE!r} or {TRUSTED_KEYS_TYPE!r}.",
            found=found,
            expected=(PAYLOAD_TYPE, TRUSTED_KEYS_TYPE),
            hint="Give the .icis file that `inject()` and `sign()` made.",
        )
    return envelope


def _without_payload(data: bytes) -> tuple[bytes, bytes | None]:
    """Return an envelope with an empty payload, and the payload; or the envelope as it is, and `None`.

    The payload is nearly all of a file. Reading it as JSON and as UTF-8 only to find its end takes longer than decoding
    it. `serialize_envelope` writes it first, and base64 has no escapes.
    """
    start = len(_PAYLOAD_START)
    end = data.find(b'"', start) if data.startswith(_PAYLOAD_START) else -1
    if end < 0:
        return data, None
    try:
        return data[:start] + data[end:], _decoded(memoryview(data)[start:end])
    except ValueError:  # it has escapes of JSON, or is no base64: then it is read as any other JSON, which says so
        return data, None


def _decoded(text: str | memoryview) -> bytes:
    # Half of the time that a device needs to verify an update is base64 in the standard library; pybase64 takes a
    # fortieth of that. It has no wheel for some devices, and the standard library gives them the same bytes.
    try:
        import pybase64
    except ImportError:
        return base64.b64decode(text, validate=True)
    return pybase64.b64decode(text, validate=True)


def verify_signature(envelope: Envelope, keys: Sequence[SSlibKey], *, threshold: int = 1) -> str:
    """Return the id of a trusted key that signed the payload.

    Args:
        envelope: As parsed.
        keys: The trusted public keys.
        threshold: How many different ones of them must have signed.

    Raises:
        SignatureError: If there is no signature, none by a trusted key, or none that fits the payload.
    """
    if not envelope.signatures:
        raise SignatureError(
            "The file is not signed.",
            found="no signature",
            expected="a signature by a trusted key",
            hint="Sign it with `sign()`; a device takes it unsigned with `Device.apply(allow_unsigned=True)`.",
        )
    trusted = {key.keyid for key in keys}
    if not trusted & set(envelope.signatures):
        raise SignatureError(
            f"The file is signed by {_shown(list(envelope.signatures))}; trusted are {_shown(sorted(trusted))}.",
            found=_shown(list(envelope.signatures)),
            expected=tuple(sorted(trusted)),
            hint=(
                "Sign it with a trusted key, or trust the signer's: by its .pub file in the bundle's trust/ folder, "
                "or, where keys were rotated, by `rotate_keys()`."
                if trusted
                else "No key is trusted here yet: put the signer's .pub file into the bundle's trust/ folder, or "
                "export it again with `trust`."
            ),
        )
    if len(trusted & set(envelope.signatures)) < threshold:
        raise SignatureError(
            f"The file is signed by {len(trusted & set(envelope.signatures))} of the trusted keys; {threshold} must "
            f"sign it.",
            found=tuple(sorted(trusted & set(envelope.signatures))),
            expected=threshold,
            hint="Sign it with further keys: `sign()` adds a signature.",
        )
    try:
        accepted = envelope.verify(list(keys), threshold=threshold)
    except MemoryError:
        raise
    except Exception as error:  # a malformed signature raises whatever its bytes cause; none of it may pass
        raise SignatureError(
            f"The signature by {_shown(sorted(trusted & set(envelope.signatures)))} does not fit the file: it was "
            f"changed after signing, or damaged.",
            found=tuple(sorted(trusted & set(envelope.signatures))),
            expected="a signature that fits the file",
            hint="Fetch it again.",
        ) from error
    return next(iter(accepted))


def _shown(keyids: Sequence[object]) -> str:
    # Key ids of an untrusted file are any JSON value of any length: shown short, and quoted against control characters.
    if not keyids:
        return "none"
    shown = ", ".join(repr(str(keyid)[:_NUM_SHOWN]) for keyid in keyids[:_MAX_SHOWN_KEYS])
    more = len(keyids) - _MAX_SHOWN_KEYS
    return f"{shown} and {more} more" if more > 0 else shown


def envelope_of(content: ClassUpdate | TrustedKeys) -> Envelope:
    """Return an envelope without signatures."""
    from securesystemslib.dsse import Envelope

    if isinstance(content, TrustedKeys):
        return Envelope(serialize_trusted_keys(content), TRUSTED_KEYS_TYPE, {})
    return Envelope(serialize_payload(content), PAYLOAD_TYPE, {})


def parse_content(envelope: Envelope, *, is_verified: bool = False) -> ClassUpdate | TrustedKeys:
    """Return what an envelope holds. On a device, `verify_signature` comes first.

    Args:
        envelope: As parsed.
        is_verified: Whether `verify_signature` accepted it, so that damage needs no second check.

    Raises:
        CorruptFileError: If the payload is not what its type says.
    """
    if envelope.payload_type == TRUSTED_KEYS_TYPE:
        return parse_trusted_keys(envelope.payload)
    return parse_payload(envelope.payload, is_verified=is_verified)


def save_update(update: ClassUpdate | TrustedKeys, path: str | Path) -> None:
    """Write an unsigned file.

    Example:
        update = icis_deploy.inject("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
        icis_deploy.save_update(update, "new.icis")

    Raises:
        StorageError: If it cannot be written; what was at `path` before is still there.
    """
    if not isinstance(update, ClassUpdate | TrustedKeys):
        raise UsageError(
            f"The update is of type {shown(type(update).__name__)}; expected a ClassUpdate.",
            found=type(update).__name__,
            expected="a ClassUpdate",
            hint="Give what `inject()` returns.",
        )
    write_file(path_from(path, name="path"), serialize_envelope(envelope_of(update)))


def load_envelope(path: Path) -> Envelope:
    """Read an envelope; nothing of it is verified.

    Raises:
        LoadError: If the file cannot be read.
        CorruptFileError: If it is not an envelope of icis-deploy.
    """
    data = read_plain(path, max_bytes=MAX_ENVELOPE_BYTES, what="class update", error_type=LoadError)
    try:
        return parse_envelope(data)
    except CorruptFileError as error:
        raise CorruptFileError.at(path, error) from error


def load_update(path: str | Path) -> ClassUpdate:
    """Read a class update file *without* checking who signed it: for the workbench, which makes them.

    Example:
        update = icis_deploy.load_update("new.icis")
        print(update.version, update.added)

    Raises:
        LoadError: If the file cannot be read.
        CorruptFileError: If it is not a class update.
    """
    envelope = load_envelope(path_from(path, name="path"))
    try:
        content = parse_content(envelope)
    except CorruptFileError as error:
        raise CorruptFileError.at(path, error) from error
    if isinstance(content, TrustedKeys):
        raise CorruptFileError(
            f"{path} holds trusted keys; expected a class update.",
            found="trusted keys",
            expected="a class update",
            where=path,
            hint="`Device.apply()` takes such a file; here a class update is needed.",
        )
    return content
