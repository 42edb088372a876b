"""Trusted keys: the public keys whose class updates a device takes, and the signed file that replaces them.

Rules:

1. Keys are Ed25519, as PEM (SubjectPublicKeyInfo), which `icis-deploy keygen` writes; or ECDSA of P-256 or P-384, which
   tokens and key management services have.
2. A file of trusted keys replaces the whole set, so a key that is not in it is revoked.
3. `version` only ever grows on a device, in a sequence of its own; an old set cannot come back.
4. Where a device has root keys, `root_threshold` of them must sign a set, and no other key can; the keys that sign
   class updates cannot. Without root keys, any trusted key may replace the set, as was before there were roles.

The file is a DSSE envelope like a class update's, with canonical JSON as payload. A set with root keys or
with ECDSA keys, or one that gives versions back, is of schema 2, any other of schema 1, byte for byte as before; both
are frozen.
"""

# Why: docs/decisions/0084.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING

from icis_deploy.common.given import whole_number
from icis_deploy.common.json_fields import (
    integer_from_json,
    json_from_time,
    load_strict,
    names_from_json,
    time_from_json,
)
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import CorruptFileError, ICISDeployError, IncompatibleError, SignatureError
from icis_deploy.head.class_update import MAX_VERSION

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

PLAIN_SCHEMA, ROLES_SCHEMA = 1, 2
ED25519 = "ed25519"
SCHEMES = (ED25519, "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384")
"""Of signatures that devices take, as securesystemslib names them."""

_FIELD = 2**255 - 19
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _FIELD, _FIELD + 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})
"""The y of points whose order divides eight; no library of ours refuses them."""

TRUSTED_KEYS_TYPE = "application/vnd.icis-deploy.trusted-keys.v1+json"
MAX_TRUSTED_KEYS = 16
MAX_KEY_BYTES = 1 << 12
MAX_TRUSTED_KEYS_BYTES = MAX_TRUSTED_KEYS * MAX_KEY_BYTES
_FIELDS = frozenset({"schema_version", "public_keys", "version", "expires"})
_FIELDS_OF_SCHEMA = {
    PLAIN_SCHEMA: _FIELDS,
    ROLES_SCHEMA: _FIELDS | {"root_keys", "root_threshold", "highest_version"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKeys:
    """A set of public keys that replaces the one a device trusts.

    Example:
        signed = icis_deploy.verify_update("keys.icis", trust=["publisher.key.pub"])
        if isinstance(signed.content, icis_deploy.TrustedKeys):
            print(len(signed.content.public_keys))

    Raises:
        IncompatibleError: On construction, if there is no key or too many, or a field is out of its range.
        UsageError: On construction, if a number is no whole one.
        SignatureError: On construction, if a text is not a public key of these kinds.
    """

    public_keys: tuple[str, ...]
    """At least one public key as PEM (Ed25519, or ECDSA of P-256 or P-384), in canonical form, each once."""

    version: int = 1
    """1 to `MAX_VERSION`; a device only moves to a greater one."""

    expires: datetime | None = None
    """When devices stop taking this set, in UTC with a resolution of a second; `None` is never."""

    root_keys: tuple[str, ...] = ()
    """Public keys, as `public_keys`, that alone may sign the next set; empty: the device keeps those it has."""

    root_threshold: int = 1
    """How many of `root_keys` must sign."""

    highest_version: int | None = None
    """The greatest version of a class update that counts as held: devices take back what came after it, and accept
    greater versions again. `None` changes neither. Only root keys can do that."""

    def __post_init__(self) -> None:
        canonical = dict.fromkeys(canonical_pem(key) for key in self.public_keys)
        object.__setattr__(self, "public_keys", tuple(canonical))
        if not 1 <= len(self.public_keys) <= MAX_TRUSTED_KEYS:
            raise IncompatibleError(
                f"A set of {len(self.public_keys)} trusted keys was given; expected 1 to {MAX_TRUSTED_KEYS}.",
                found=len(self.public_keys),
                expected=f"1 to {MAX_TRUSTED_KEYS}",
                hint="Give 1 to 16 keys.",
            )
        object.__setattr__(self, "version", whole_number(self.version, name="version"))
        self._check_roles()
        if self.version < 1:
            raise IncompatibleError(
                f"The trusted keys have version {self.version}; expected at least 1.",
                found=self.version,
                expected="at least 1",
            )
        if self.version > MAX_VERSION:
            raise IncompatibleError(
                "The trusted keys' version does not fit into 63 bits.",
                found=self.version,
                expected=MAX_VERSION,
                hint="Sign them with a smaller `version`.",
            )
        if self.expires is not None:
            if self.expires.tzinfo is None:
                raise IncompatibleError(
                    "The expiry of the trusted keys has no time zone; expected a time in UTC.",
                    found="a time without a zone",
                    expected="a time in UTC",
                )
            object.__setattr__(self, "expires", self.expires.astimezone(timezone.utc).replace(microsecond=0))

    def _check_roles(self) -> None:
        roots = tuple(dict.fromkeys(canonical_pem(key) for key in self.root_keys))
        object.__setattr__(self, "root_keys", roots)
        object.__setattr__(self, "root_threshold", whole_number(self.root_threshold, name="root_threshold"))
        if self.highest_version is not None:
            object.__setattr__(self, "highest_version", whole_number(self.highest_version, name="highest_version"))
        if len(roots) > MAX_TRUSTED_KEYS or not 1 <= self.root_threshold <= max(1, len(roots)):
            raise IncompatibleError(
                f"{self.root_threshold} of {len(roots)} root keys are to sign; expected at least one, and no more than "
                f"there are (at most {MAX_TRUSTED_KEYS}).",
                found=(self.root_threshold, len(roots)),
                expected=f"1 to {len(roots)} of at most {MAX_TRUSTED_KEYS}",
                hint="Give another `threshold`, or more keys as `root`.",
            )
        if both := set(roots) & set(self.public_keys):
            raise IncompatibleError(
                f"{len(both)} keys are both root keys and keys that sign updates: whoever steals one has both roles.",
                found=len(both),
                expected="different keys",
                hint="Make root keys of their own with `keygen()`, and keep them offline.",
            )
        if self.highest_version is not None and not 0 <= self.highest_version <= MAX_VERSION:
            raise IncompatibleError(
                "The highest version of the trusted keys is out of range.",
                found=self.highest_version,
                expected=f"0 to {MAX_VERSION}",
                hint="Give another `highest_version`.",
            )

    def with_terms(self, *, version: int, expires: datetime | None) -> TrustedKeys:
        """Return the same set under another version and expiry; what a publisher decides when signing."""
        return replace(self, version=version, expires=expires)


@lru_cache(maxsize=MAX_TRUSTED_KEYS)
def public_key_from_pem(text: str) -> SSlibKey:
    """Return a public key (rule 1); a device asks for the same few with every update.

    Raises:
        SignatureError: If the text is not one.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(text.encode())
    except MemoryError:  # says nothing of the key
        raise
    except Exception as error:  # cryptography raises several unrelated types; this is the one call of its key reader
        is_private = "PRIVATE KEY-----" in text
        raise SignatureError(
            "The text is a private key; expected a public one."
            if is_private
            else f"The text is not a public key in PEM form: {str(error).rstrip('.?')}.",
            found="a private key" if is_private else str(error),
            expected="a public key in PEM form",
            hint="Give the file next to it that ends in .pub; a private key stays with whoever signs."
            if is_private
            else "`keygen()` makes one.",
        ) from error
    try:
        public_key = SSlibKey.from_crypto(key)
    except ValueError:  # a kind that securesystemslib does not know either
        public_key = None
    if public_key is None or public_key.scheme not in SCHEMES:
        found = type(key).__name__ if public_key is None else f"{type(key).__name__} ({public_key.scheme})"
        raise SignatureError(
            f"The key is an {found}; expected an Ed25519 public key, or an ECDSA one of P-256 or P-384.",
            found=found,
            expected=SCHEMES,
            hint="`keygen()` makes one.",
        )
    if public_key.scheme == ED25519 and _is_of_small_order(bytes.fromhex(public_key.keyval["public"])):
        raise SignatureError(
            "The key is a point of small order: without any private key, signatures can be made that fit it.",
            found="a point of small order",
            expected="a public key that belongs to a private one",
            hint="Trust nobody who gave it; `keygen()` makes a key.",
        )
    return public_key


def _is_of_small_order(raw: bytes) -> bool:
    """Say whether an Ed25519 public key is a point whose order divides eight, in any of its encodings."""
    return int.from_bytes(raw, "little") & ~(1 << 255) in _SMALL_ORDER_Y


def canonical_pem(text: str) -> str:
    """Return a public key in its canonical PEM form.

    Raises:
        SignatureError: If the text is not a public key (rule 1).
    """
    return pem_from_public_key(public_key_from_pem(text))


def pem_from_public_key(key: SSlibKey) -> str:
    """Return a public key as PEM (SubjectPublicKeyInfo)."""
    if key.scheme != ED25519:
        return str(key.keyval["public"])  # securesystemslib keeps the others in that form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_ids(public_keys: Sequence[str]) -> tuple[str, ...]:
    """Return the key ids of PEM texts: SHA-256 of the key, lower-case hexadecimal, as signatures name it."""
    return tuple(public_key_from_pem(text).keyid for text in public_keys)


def serialize_trusted_keys(keys: TrustedKeys) -> bytes:
    """Return the canonical JSON of a set of trusted keys; equal sets give equal bytes."""
    fields: dict[str, object] = {
        "schema_version": PLAIN_SCHEMA,
        "public_keys": keys.public_keys,
        "version": keys.version,
        "expires": None if keys.expires is None else json_from_time(keys.expires),
    }
    has_others = any(public_key_from_pem(text).scheme != ED25519 for text in keys.public_keys)
    if keys.root_keys or keys.highest_version is not None or has_others:
        fields |= {
            "schema_version": ROLES_SCHEMA,
            "root_keys": keys.root_keys,
            "root_threshold": keys.root_threshold,
            "highest_version": keys.highest_version,
        }
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def parse_trusted_keys(payload: bytes) -> TrustedKeys:
    """Return the set of trusted keys that these bytes hold.

    Raises:
        CorruptFileError: If the bytes are too many, of another schema, or break a rule.
    """
    if len(payload) > MAX_TRUSTED_KEYS_BYTES:
        raise CorruptFileError(
            f"The trusted keys are {len(payload)} bytes; at most {MAX_TRUSTED_KEYS_BYTES} are read.",
            found=len(payload),
            expected=MAX_TRUSTED_KEYS_BYTES,
        )
    try:
        fields = load_strict(payload)
        schema_version = integer_from_json(fields["schema_version"])
        if schema_version not in _FIELDS_OF_SCHEMA:
            raise ValueError(
                f"its schema version is {schema_version}, this release reads {PLAIN_SCHEMA} and {ROLES_SCHEMA}"
            )
        if difference := set(fields) ^ _FIELDS_OF_SCHEMA[schema_version]:
            raise ValueError(f"its fields differ from the schema in {sorted(difference)}")
        highest = fields.get("highest_version")
        return TrustedKeys(
            public_keys=names_from_json(fields["public_keys"]),
            version=integer_from_json(fields["version"]),
            expires=None if fields["expires"] is None else time_from_json(fields["expires"]),
            root_keys=names_from_json(fields.get("root_keys", [])),
            root_threshold=integer_from_json(fields.get("root_threshold", 1)),
            highest_version=None if highest is None else integer_from_json(highest),
        )
    except (ICISDeployError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(
            f"The file of trusted keys is damaged: {reason_of(error)}.",
            found=reason_of(error),
            expected="a file of trusted keys",
            hint="Fetch it again, or make it again with `rotate_keys()`.",
        ) from error
