"""Who signs: a private key in a file, a command, or one of securesystemslib's signers (a token, a KMS).

Rules:

1. A command or a URI is named with the public key that devices trust, and what it made is checked with that before
   anything is written. So one that answers with something else, or with another key, is noticed where it can be mended.
2. A private key that is not in a file never is one: a command gets the bytes to sign, a token or a KMS what its own
   protocol says.
3. A command has no shell, and a time limit.
"""

# Why: docs/decisions/0093.

from __future__ import annotations

import base64
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_number, items
from icis_deploy.common.terminal_text import printable, reason_of, shown
from icis_deploy.errors import MissingDependencyError, SignatureError, UsageError
from icis_deploy.updates.signing import Secret, load_private_key, load_public_key

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer, SSlibKey

PathLike = str | os.PathLike[str]
_MAX_REASON = 200
_MAX_TIMEOUT_S = 1e6
"""Eleven days; much more than that no call of the system takes."""

_PACKAGES = {
    "awskms": "'icis-deploy[kms]'",
    "azurekms": "'icis-deploy[kms]'",
    "gcpkms": "'icis-deploy[kms]'",
    "hsm": "'icis-deploy[hsm]'",
    "hv": "'icis-deploy[kms]'",
    "tkey": "'securesystemslib[tkey]'",
}
"""What pip installs for the signers of securesystemslib, by the scheme of their URIs."""
_FORMS = {
    "awskms": "awskms:KEY-ID",
    "azurekms": "azurekms://VAULT.vault.azure.net/keys/NAME/VERSION",
    "gcpkms": "gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V",
    "hsm": "hsm:KEY-ID?label=TOKEN",
    "hv": "hv:NAME/VERSION",
}
"""How URIs are written that no message of securesystemslib's signers says the form of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """A private key in a file that needs a passphrase.

    Example:
        icis_deploy.sign("new.icis", key=icis_deploy.KeyFile(path="publisher.key", passphrase="correct horse"))
    """

    path: PathLike
    """The file that `keygen` wrote."""

    passphrase: Secret = field(repr=False)
    """The passphrase, or a function that is asked for it, with what it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningCommand:
    """A command that signs: it reads the bytes to sign from its standard input, and writes the signature to its output.

    Example:
        key = icis_deploy.SigningCommand(command=["sign-with-token", "--slot", "2"], public_key="publisher.key.pub")
        icis_deploy.sign("new.icis", key=key)

    Raises:
        UsageError: On construction, if there is no command, it is one text, or there is no time for it.
    """

    command: Sequence[str]
    """The program and its arguments. It gets the bytes of DSSE's pre-authentication encoding, and gives the signature
    as it is or in base64: 64 bytes for Ed25519, DER for ECDSA. What it prints to standard error is shown."""

    public_key: PathLike
    """File of the public key that devices trust."""

    timeout_s: float = 120.0
    """How long it may take, in seconds: a token may wait for somebody to touch it."""

    def __post_init__(self) -> None:
        parts = items(self.command, "a program and its arguments", name="command")
        if not all(isinstance(part, str | os.PathLike) for part in parts):
            raise UsageError(
                f"`command` is {shown(self.command)}; expected a list of texts: a program and its arguments.",
                found=shown(self.command),
                expected="a program and its arguments",
                hint="Give a list: the program, then each argument by itself.",
            )
        object.__setattr__(self, "command", tuple(os.fspath(part) for part in parts))
        check_number(self.timeout_s, name="timeout_s")
        if not self.command or not all(self.command):
            raise UsageError(
                "The signing command is empty.",
                found=self.command,
                expected="a program and its arguments",
                hint="Name the program that signs.",
            )
        if not 0 < self.timeout_s <= _MAX_TIMEOUT_S:
            raise UsageError(
                f"A signing command cannot be given {self.timeout_s} seconds.",
                found=self.timeout_s,
                expected=f"a positive number of seconds, at most {_MAX_TIMEOUT_S:g}",
                hint="Give another `timeout_s`.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerURI:
    """A key that one of securesystemslib's signers reaches: a PKCS #11 token, a KMS, a vault.

    Example:
        key = icis_deploy.SignerURI(uri="hsm:2?label=release", public_key="token.pub")
        icis_deploy.sign("new.icis", key=key)
    """

    uri: str
    """As securesystemslib's signers take it: `hsm:` (PKCS #11), `awskms:`, `azurekms:`, `gcpkms:`, `hv:` (Vault)…"""

    public_key: PathLike
    """File of the public key that devices trust."""

    secret: Secret | None = field(default=None, repr=False)
    """The PIN or passphrase, or a function that is asked for it, with what it is for; `None` where none is needed."""


SigningKey = PathLike | KeyFile | SigningCommand | SignerURI


def open_signer(key: SigningKey) -> Signer:
    """Return what signs, ready to.

    Raises:
        SignatureError: If a key file cannot be read, or the signer cannot be reached.
        MissingDependencyError: If a library that the signer needs is not installed.
        UsageError: If there is no signer for such a URI.
    """
    if isinstance(key, KeyFile):
        return load_private_key(path_from(key.path, name="path"), passphrase=key.passphrase)
    if isinstance(key, SigningCommand):
        return _command_signer(key)
    if isinstance(key, SignerURI):
        return _uri_signer(key)
    return load_private_key(path_from(key, name="key"))


def _command_signer(key: SigningCommand) -> Signer:
    name = printable(key.command[0], max_length=_MAX_REASON)

    def sign(payload: bytes) -> Iterator[bytes]:
        output = _output_of(key, payload, name)
        yield output
        with suppress(ValueError):
            yield base64.b64decode(b"".join(output.split()), validate=True)

    public_key = load_public_key(path_from(key.public_key, name="public_key"))
    return _checked(public_key, sign, where=f"The signing command {name}")


def _output_of(key: SigningCommand, payload: bytes, name: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - the command is the publisher's own, and no shell reads it
            list(key.command), input=payload, stdout=subprocess.PIPE, timeout=key.timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SignatureError(
            f"The signing command {name} has not answered in {key.timeout_s:g} seconds, and was ended. Nothing was "
            f"signed.",
            found=f"no signature in {key.timeout_s:g} seconds",
            expected="a signature on its standard output",
            where=name,
            hint="Run it by itself to see what it waits for.",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise SignatureError(
            f"The signing command {name} could not be run: {reason}. Nothing was signed.",
            found=reason,
            expected="a program that signs",
            where=name,
            hint="Check its name and its permissions.",
        ) from error
    if done.returncode != 0:
        raise SignatureError(
            f"The signing command {name} ended with exit code {done.returncode}. Nothing was signed.",
            found=done.returncode,
            expected=0,
            where=name,
            hint="Run it by itself to see why.",
        )
    return done.stdout


def _uri_signer(key: SignerURI) -> Signer:
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME
    from securesystemslib.signer import Signer as Base

    if not isinstance(key.uri, str):
        raise UsageError(
            f"`uri` is {shown(key.uri)}, of type {type(key.uri).__name__}; expected a text.",
            found=type(key.uri).__name__,
            expected="a URI",
            hint="Give a text, such as hsm:2?label=release.",
        )
    scheme = key.uri.partition(":")[0]
    where = _called(key)
    if scheme not in SIGNER_FOR_URI_SCHEME:
        raise UsageError(
            f"{where} is of no kind that securesystemslib knows.",
            found=printable(scheme, max_length=_MAX_REASON),
            expected=tuple(sorted(SIGNER_FOR_URI_SCHEME)),
            hint=f"Choose among {', '.join(f'{each}:' for each in sorted(SIGNER_FOR_URI_SCHEME))}.",
        )
    public_key = load_public_key(path_from(key.public_key, name="public_key"))

    def secret(purpose: str) -> str:
        if key.secret is None:
            raise ValueError(f"it asks for its {purpose}, and none was given")
        return key.secret(purpose) if callable(key.secret) else key.secret

    try:
        with _without_logs():
            signer = Base.from_priv_key_uri(key.uri, public_key, secret)
    except Exception as error:  # each signer lets whatever its own library raises through
        raise _failure(key, public_key, error) from error

    def sign(payload: bytes) -> Iterator[bytes]:
        try:
            with _without_logs():
                signature = signer.sign(payload).signature
            yield bytes.fromhex(signature)
        except Exception as error:  # as above
            raise _failure(key, public_key, error) from error

    return _checked(public_key, sign, where=where)


def _called(key: SignerURI) -> str:
    return f"The signer {printable(key.uri, max_length=_MAX_REASON)}"


def _failure(key: SignerURI, public_key: SSlibKey, error: Exception) -> Exception:
    """Return what to raise of what a signer of securesystemslib raised."""
    from securesystemslib.exceptions import UnsupportedLibraryError

    scheme, where = key.uri.partition(":")[0], _called(key)
    if isinstance(error, UnsupportedLibraryError | ImportError):
        package = _PACKAGES.get(scheme, "securesystemslib")
        return MissingDependencyError(
            f"{where} needs a library that is not installed: {reason_of(error)}.",
            found=reason_of(error),
            expected=package,
            hint=f"Install it: pip install {package}.",
        )
    reason = reason_of(error).rstrip(".") or type(error).__name__
    if isinstance(error, KeyError) and error.args == (public_key.scheme,):
        reason = f"it has no keys of the scheme {public_key.scheme}, which the public key is of"
    form = f"that the URI has the form {_FORMS[scheme]}, " if scheme in _FORMS else ""
    return SignatureError(
        f"{where} failed: {reason}. Nothing was signed.",
        found=reason,
        expected="a signature",
        where=key.uri,
        hint=f"Check {form}that it can be reached, and give its PIN or passphrase as `passphrase`.",
    )


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep securesystemslib from printing what it raises as well, by a handler of its own."""
    logger = logging.getLogger("securesystemslib")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checked(public_key: SSlibKey, make: Callable[[bytes], Iterator[bytes]], *, where: str) -> Signer:
    """Return a signer whose signatures were verified.

    Args:
        public_key: What they must fit.
        make: Returns what the signature may be, of the bytes to sign.
        where: What to call it in messages.
    """
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
    from securesystemslib.signer import Signature
    from securesystemslib.signer import Signer as Base

    class CheckedSigner(Base):
        @classmethod
        def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> Signer:
            raise NotImplementedError  # it is never looked up

        @property
        def public_key(self) -> SSlibKey:
            return public_key

        def sign(self, payload: bytes) -> Signature:
            size = 0
            for each in make(payload):
                size = size or len(each)
                signature = Signature(public_key.keyid, each.hex())
                with suppress(UnverifiedSignatureError, VerificationError):
                    public_key.verify_signature(signature, payload)
                    return signature
            raise SignatureError(
                f"{where} gave {size} bytes that are no signature by the key {public_key.keyid[:16]}…. Nothing was "
                f"signed.",
                found=size,
                expected=f"a signature by {public_key.keyid}",
                hint="Give the public key that belongs to it; a command prints the signature alone.",
            )

    return CheckedSigner()
