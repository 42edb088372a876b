"""Make keys, sign class updates and sets of trusted keys, and check signatures, as files.

Rules:

1. A private key is a file that only its owner can read (mode 600) and that is never overwritten. Where others can read
   one, whoever uses it is warned.
2. Version and expiry are the publisher's decision: they are set when signing, and setting them drops older signatures.
   Terms that no device takes are refused before a key is read: a version out of range, an expiry in the past. So is a
   version far beyond those before it: it would spend all of them.
3. Signing what already has its terms adds a signature, so two keys can sign one file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.common.files import check_free, path_from, read_plain, write_failure, write_file
from icis_deploy.common.given import check_time, whole_number
from icis_deploy.common.json_fields import json_from_time
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import (
    CorruptFileError,
    ICISDeployWarning,
    IntegrityError,
    SignatureError,
    StorageError,
    UsageError,
)
from icis_deploy.head.class_update import MAX_VERSION, ClassUpdate, FollowedState
from icis_deploy.updates.bundle_signature import bundle_envelope, parse_bundle_envelope
from icis_deploy.updates.envelope import (
    envelope_of,
    load_envelope,
    parse_content,
    serialize_envelope,
    verify_signature,
)
from icis_deploy.updates.trusted_keys import MAX_KEY_BYTES, TrustedKeys, pem_from_public_key, public_key_from_pem

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

PUBLIC_SUFFIX = ".pub"
Secret = str | Callable[[str], str]
"""A passphrase, or a function that is asked for it, with what it is for."""

MAX_PASSPHRASE_BYTES = 1 << 10
_PUBLIC = b"-----BEGIN PUBLIC KEY-----"
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
MAX_VERSION_STEP = 1 << 32
"""A publisher who counts seconds, or milliseconds for fifty days, stays below it. What is beyond leaves no way back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """The files of a key pair.

    Example:
        keys = icis_deploy.keygen("publisher.key")
        icis_deploy.sign("new.icis", key=keys.private_path, version=1)
    """

    private_path: Path
    """The private key: PKCS #8 PEM, mode 600, encrypted where there is a passphrase."""

    public_path: Path
    """The public key: PEM, for the `trust/` folder of bundles."""

    key_id: str
    """SHA-256 of the public key, lower-case hexadecimal, by which signatures and histories name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a publisher binds a class update to when signing it."""

    follows: FollowedState | None = None
    """The state that devices must be in; `None` for a complete update, or for any state."""

    complete: bool = False
    """Whether the update brings every class that shall be in slots."""

    targets: tuple[str, ...] = ()
    """Digests of the bundles that may take it; empty: all of its head."""

    highest_version: int = 0
    """The greatest version before it, as far as that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFile:
    """A file whose signature was made or checked.

    Example:
        signed = icis_deploy.verify_update("new.icis", trust=["publisher.key.pub"])
        print(signed.content.added, signed.signed_by)
    """

    path: Path
    content: ClassUpdate | TrustedKeys

    signed_by: str
    """Id of the key that signed it."""


def keygen(path: Path, *, passphrase: str | None = None) -> KeyPair:
    """Make an Ed25519 key pair: the private key at `path`, the public one at `path.pub`.

    Args:
        path: Where the private key goes.
        passphrase: What it is encrypted with; `None` leaves it as it is.

    Raises:
        UsageError: If one of the two files is there already, or the passphrase is empty or too long.
        StorageError: If they cannot be written; neither is left then.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from securesystemslib.signer import SSlibKey

    if not path.name:
        raise UsageError(
            f"{str(path)!r} is no name of a file.",
            found=str(path),
            expected="a name of a file",
            hint="Name a file for the private key.",
        )
    public_path = path.with_name(path.name + PUBLIC_SUFFIX)
    for target in (path, public_path):
        _check_absent(target, "a key is never overwritten")
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(_passphrase_bytes(passphrase))
    private_key = Ed25519PrivateKey.generate()
    public_key = SSlibKey.from_crypto(private_key.public_key())
    _write_private(path, private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    try:
        write_file(public_path, pem_from_public_key(public_key).encode())
    except StorageError:
        path.unlink()
        raise
    return KeyPair(private_path=path, public_path=public_path, key_id=public_key.keyid)


def _passphrase_bytes(passphrase: object) -> bytes:
    if not isinstance(passphrase, str):  # not shown: whatever it is, somebody keeps it secret
        kind = type(passphrase).__name__
        raise UsageError(
            f"`passphrase` is of type {kind}; expected a text.",
            found=kind,
            expected="a text",
            hint="Give `passphrase` as a text.",
        )
    data = passphrase.encode("utf-8", "surrogateescape")
    if not 1 <= len(data) <= MAX_PASSPHRASE_BYTES:
        raise UsageError(
            f"The passphrase has {len(data)} bytes; expected 1 to {MAX_PASSPHRASE_BYTES}.",
            found=len(data),
            expected=f"1 to {MAX_PASSPHRASE_BYTES} bytes",
            hint="Give another `passphrase`.",
        )
    return data


def _check_absent(path: Path, why: str) -> None:
    if os.path.lexists(path):  # see `files.check_free`, whose --overwrite no command for keys and signatures has
        raise UsageError(
            f"{path} already exists, and {why}.",
            where=path,
            hint="Choose another path.",
        )
    check_free(path, overwrite=True)  # that it has a folder


def _write_private(path: Path, data: bytes) -> None:
    # Opened with its mode, so that there is no moment in which others can read it; O_EXCL, so that nothing is replaced.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise write_failure(path, error, what=f"the private key {path}") from error


def key_paths(given: object, *, name: str) -> list[Path]:
    """Return files of public keys as paths.

    Args:
        given: What the caller gave.
        name: What it gave them as.

    Raises:
        UsageError: If it is one path, of whose characters a loop would make a file each.
    """
    if isinstance(given, str | os.PathLike):
        raise UsageError(
            f"`{name}` is one path, {str(given)!r}; expected a list of them.",
            found=str(given),
            expected="a list of paths",
            hint="Put it into a list.",
        )
    if not isinstance(given, Iterable):
        return [path_from(given, name=name)]  # which refuses it
    return [path_from(each, name=name) for each in given]


def load_public_key(path: Path) -> SSlibKey:
    """Read a public key: Ed25519, or ECDSA of P-256 or P-384.

    Raises:
        SignatureError: If the file cannot be read or is no such key.
    """
    data = read_plain(path, max_bytes=MAX_KEY_BYTES, what="public key", error_type=SignatureError)
    if (num_keys := data.count(_PUBLIC)) > 1:  # a reader of PEM takes the first; the others would count for nothing
        raise SignatureError(
            f"{path} holds {num_keys} public keys; expected one.",
            found=num_keys,
            expected="one public key",
            where=path,
            hint="Put each key into a file of its own, and give all of the files.",
        )
    try:
        return public_key_from_pem(data.decode("ascii"))
    except UnicodeDecodeError as error:
        raise SignatureError(
            f"{path} is no public key: {shown(data[error.start : error.start + 1])} is no character of PEM, which is "
            f"text.",
            found=str(error),
            expected="a public key in PEM form",
            where=path,
            hint="`keygen()` makes one.",
        ) from error
    except SignatureError as error:
        raise SignatureError.at(path, error) from error


def load_private_key(path: Path, *, passphrase: Secret | None = None) -> CryptoSigner:
    """Read an Ed25519 private key.

    Warns `ICISDeployWarning` where others than its owner can read the file.

    Args:
        path: The file.
        passphrase: Of an encrypted key; a function is asked for it only where the key is.

    Raises:
        SignatureError: If the file cannot be read or is no such key, or the passphrase is missing or is another one.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = read_plain(path, max_bytes=MAX_KEY_BYTES, what="private key", error_type=SignatureError)
    is_encrypted = _ENCRYPTED in data
    if is_encrypted and passphrase is None:
        raise SignatureError(
            f"The private key {path} is encrypted, and no passphrase was given.",
            found="an encrypted key",
            expected="its passphrase",
            where=path,
            hint="Give its `passphrase`.",
        )
    password = None
    if is_encrypted and passphrase is not None:
        password = _passphrase_bytes(passphrase(f"passphrase of {path}") if callable(passphrase) else passphrase)
    try:
        key = load_pem_private_key(data, password=password)
    except Exception as error:  # see `public_key_from_pem`
        if is_encrypted:
            raise SignatureError(
                f"The private key {path} cannot be decrypted: the passphrase is another one, or the file is damaged.",
                found="another passphrase, or damage",
                expected="its passphrase",
                where=path,
                hint="Give its own `passphrase`.",
            ) from error
        raise SignatureError(
            f"{path} is not a private key in PEM form.",
            expected="a private key in PEM form",
            where=path,
            hint="`keygen()` makes one.",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            f"{path} is an {type(key).__name__}; expected an Ed25519 private key.",
            found=type(key).__name__,
            expected="Ed25519PrivateKey",
            where=path,
            hint="`keygen()` makes one.",
        )
    _warn_if_others_read(path)  # not before: of a public key it would be wrong advice
    return CryptoSigner(key)


def _warn_if_others_read(path: Path) -> None:
    if os.name != "posix":
        return  # a mode says nothing there
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & 0o077:
        warnings.warn(
            f"The private key {path} can be read or written by others than its owner (mode {mode & 0o777:o}): whoever "
            f"can read it can sign. Make it the owner's alone (chmod 600), and make a new key if others had access.",
            ICISDeployWarning,
            stacklevel=3,
        )


def _signer_of(key: Path | Callable[[], Signer]) -> Signer:
    return key() if callable(key) else load_private_key(key)


def sign(
    path: Path,
    key: Path | Callable[[], Signer],
    *,
    out: Path | None = None,
    version: int | None = None,
    expires: datetime | None = None,
    binding: Binding | None = None,
    force: bool = False,
) -> SignedFile:
    """Sign a class update or a set of trusted keys.

    Args:
        path: The file, signed or not.
        key: The private key, or what opens a signer.
        out: Where the signed file goes; `None` replaces `path`.
        version: A new version; `None` keeps the file's.
        expires: A new expiry; `None` keeps the file's.
        binding: What a class update follows, and for which bundles it is; `None` keeps what the file says.
        force: Whether a version far beyond those before it is signed.

    Raises:
        LoadError, CorruptFileError: If the file cannot be read or is not one of ours.
        SignatureError: If the key cannot be read.
        UsageError: If `out` is another file that exists, or no device would take the file under these terms.
        StorageError: If the result cannot be written; what was there before is still there.
    """
    target = path if out is None else out
    if target != path:
        _check_absent(target, "signing replaces no other file")
    _check_terms(version, expires)
    envelope = load_envelope(path)
    try:
        content = parse_content(envelope)
    except CorruptFileError as error:
        raise CorruptFileError.at(path, error) from error
    if binding is not None:
        content = _bound(content, binding, path=path)
        envelope = envelope_of(content)
    if version is not None or expires is not None:
        content = content.with_terms(
            version=content.version if version is None else version,
            expires=content.expires if expires is None else expires,
        )
        envelope = envelope_of(content)
    _check_terms(content.version, content.expires)
    if not force:
        _check_step(content.version, held=0 if binding is None else binding.highest_version)
    signature = envelope.sign(_signer_of(key))
    write_file(target, serialize_envelope(envelope))
    return SignedFile(path=target, content=content, signed_by=signature.keyid)


def sign_bundle_files(
    files: Mapping[str, bytes], signature: bytes | None, key: Path | Callable[[], Signer]
) -> tuple[bytes, str]:
    """Return the signature of a bundle's files, and the id of the key that made it.

    Args:
        files: As `bundle_envelope` takes them.
        signature: The one that the bundle has, to which one more is added where it is over the same files; or `None`.
        key: The private key, or what opens a signer.

    Raises:
        SignatureError: If the key cannot be read.
        CorruptFileError: If the signature that the bundle has is none.
    """
    envelope = bundle_envelope(files)
    if signature is not None and (former := parse_bundle_envelope(signature)).payload == envelope.payload:
        envelope = former
    signed = envelope.sign(_signer_of(key))
    return serialize_envelope(envelope), signed.keyid


def _bound(content: ClassUpdate | TrustedKeys, binding: Binding, *, path: Path) -> ClassUpdate:
    if isinstance(content, TrustedKeys):
        raise UsageError(
            f"{path} holds trusted keys, which follow no state and are for every bundle.",
            found="trusted keys",
            expected="a class update",
            where=path,
            hint="Sign them without `bundle` and `complete`.",
        )
    return content.bound(follows=binding.follows, complete=binding.complete, targets=binding.targets)


def _check_step(version: int, *, held: int) -> None:
    """Raise `UsageError` if a version is so far beyond those before it that it must be a mistake."""
    if version > held + MAX_VERSION_STEP:
        raise UsageError(
            f"Version {version} is more than 2^32 above {held}, the greatest before it: every version below it would "
            f"be spent on the devices that take it.",
            found=version,
            expected=f"at most {held + MAX_VERSION_STEP}",
            hint="Give a smaller `version`; if it is meant, `sign()` sets it with `force=True`.",
        )


def _check_terms(version: int | None, expires: datetime | None) -> None:
    """Raise `UsageError` if no device would take a file under these terms; `None` is not looked at."""
    if version is not None and not 1 <= whole_number(version, name="version") <= MAX_VERSION:
        raise UsageError(
            "The version lies outside of 1 to 2^63 - 1.",
            found=version,
            expected=f"1 to {MAX_VERSION}",
            hint="Give another `version`.",
        )
    if expires is None:
        return
    check_time(expires, name="expires")
    if expires.tzinfo is None:  # the value that holds it refuses a time without a zone
        return
    if expires <= (now := datetime.now(timezone.utc)):
        raise UsageError(
            f"The file would expire at {json_from_time(expires)}; by this machine's clock it is "
            f"{json_from_time(now)}, so no device would take it.",
            found=json_from_time(expires),
            expected=f"later than {json_from_time(now)}",
            hint="Give a later `expires`.",
        )


def verify_update(path: Path, key_paths: Sequence[Path]) -> SignedFile:
    """Check that a file is signed by one of these keys, and read it.

    Warns `ICISDeployWarning` of a set of trusted keys whose own root keys have not signed it, or too few of them.

    Raises:
        LoadError: If the file cannot be read.
        SignatureError: If a key cannot be read, or none of them signed the file.
        CorruptFileError: If the file is not one of ours.
    """
    keys = [load_public_key(key_path) for key_path in key_paths]
    envelope = load_envelope(path)
    try:
        signed_by = verify_signature(envelope, keys)
        content = parse_content(envelope)
    except IntegrityError as error:
        raise type(error).at(path, error) from error
    if isinstance(content, TrustedKeys) and content.root_keys:
        roots = [public_key_from_pem(text) for text in content.root_keys]
        try:
            verify_signature(envelope, roots, threshold=content.root_threshold)
        except SignatureError as error:
            warnings.warn(
                f"No device takes {path} yet: the root keys that it brings must sign it too. {error}",
                ICISDeployWarning,
                stacklevel=3,
            )
    return SignedFile(path=path, content=content, signed_by=signed_by)


def trusted_keys_from_files(public_key_paths: Sequence[Path]) -> TrustedKeys:
    """Return a set of trusted keys, unsigned yet: `save_update` writes it, `sign` signs it with a key trusted now.

    Raises:
        SignatureError: If a file cannot be read or is no Ed25519 public key.
        IncompatibleError: If there is no key, or too many.
    """
    return TrustedKeys(public_keys=_pems(public_key_paths))


def _pems(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(pem_from_public_key(load_public_key(path)) for path in paths)


def rotate_keys(
    public_key_paths: Sequence[Path],
    key: Path | Callable[[], Signer],
    *,
    out: Path,
    version: int,
    expires: datetime | None = None,
    root_key_paths: Sequence[Path] = (),
    root_threshold: int = 1,
    highest_version: int | None = None,
) -> SignedFile:
    """Write a signed set of trusted keys: a device that applies it trusts these keys and no others.

    Args:
        public_key_paths: All keys that devices trust afterwards; a key that is not among them is revoked.
        key: A private key that the devices trust now, or what opens a signer of one.
        out: The file.
        version: Of the set; greater than that of every set the devices applied before.
        expires: When devices stop taking the file; `None` is never.
        root_key_paths: Public keys that alone may sign the next set; none: devices keep those they have.
        root_threshold: How many of them must sign.
        highest_version: The greatest version of a class update that counts as held; `None` changes nothing.

    Raises:
        SignatureError: If a key cannot be read.
        IncompatibleError: If there is no key, or too many.
        UsageError: If `out` exists, or no device would take the file under these terms.
        StorageError: If it cannot be written.
    """
    _check_absent(out, "signing replaces no other file")
    _check_terms(version, expires)
    _check_step(version, held=0)  # nothing gives versions of sets back
    keys = TrustedKeys(
        public_keys=_pems(public_key_paths),
        version=version,
        expires=expires,
        root_keys=_pems(root_key_paths),
        root_threshold=root_threshold,
        highest_version=highest_version,
    )
    envelope = envelope_of(keys)
    signature = envelope.sign(_signer_of(key))
    write_file(out, serialize_envelope(envelope))
    return SignedFile(path=out, content=keys, signed_by=signature.keyid)
