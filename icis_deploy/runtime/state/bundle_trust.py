"""Whether a bundle is signed: its files read and compared, before anything of it is believed."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from icis_deploy.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from icis_deploy.common.files import read_plain
from icis_deploy.common.terminal_text import printable
from icis_deploy.errors import BundleError, IntegrityError, SignatureError
from icis_deploy.runtime.state.store import STATE_FOLDER, TRUST_FOLDER


def signed_files(folder: Path) -> dict[str, bytes]:
    """Return the manifest and everything in `trust/`, by the path inside the bundle: what a signature is over.

    Raises:
        BundleError: If there is no manifest.
        SignatureError: If something in `trust/` cannot be read, or there is too much of it.
    """
    from icis_deploy.updates.trusted_keys import MAX_KEY_BYTES, MAX_TRUSTED_KEYS

    files = {
        MANIFEST_NAME: read_plain(
            folder / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES, what="manifest", error_type=BundleError
        )
    }
    trust = folder / TRUST_FOLDER
    try:
        names = sorted(os.listdir(trust)) if trust.is_dir() else []  # noqa: PTH208
    except OSError as error:
        raise SignatureError(
            f"Cannot read the trusted keys in {trust}: {error.strerror or error}.",
            found=error.strerror or str(error),
            where=trust,
            hint="Give the folder to the user that opens the bundle, or fetch the bundle again.",
        ) from error
    if len(names) > MAX_TRUSTED_KEYS:
        raise SignatureError(
            f"{trust} holds {len(names)} files; at most {MAX_TRUSTED_KEYS} are read.",
            found=len(names),
            expected=MAX_TRUSTED_KEYS,
            where=trust,
            hint="Remove what is no key of a publisher.",
        )
    for name in names:
        data = read_plain(trust / name, max_bytes=MAX_KEY_BYTES, what="trusted key", error_type=SignatureError)
        files[f"{TRUST_FOLDER}/{name}"] = data
    return files


def has_state(folder: Path) -> bool:
    """Say whether a bundle holds what a device writes, which no signature covers."""
    return _name_of_state(folder) is not None


def _name_of_state(folder: Path) -> str | None:
    """Return the name in a folder that is `state/` here, or on another system that it is copied to; `None` if none is.

    Others take upper and lower case for the same, leave out what is not visible, or points and blanks at the end.
    """
    if os.path.lexists(folder / STATE_FOLDER):
        return STATE_FOLDER
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
        if visible.casefold().rstrip(" .") == STATE_FOLDER:
            return name
    return None


def check_as_delivered(folder: Path) -> None:
    """Raise `SignatureError` if a bundle holds what no carrier may bring: the state of a device, or a link.

    Where a link leads is no part of the bundle, and can be exchanged after everything was compared.
    """
    if (state := _name_of_state(folder)) is not None:
        raise SignatureError(
            f"The bundle {folder} holds {printable(state)}/, the classes and keys of a device, which no signature "
            f"covers: a device that opens it believes whoever wrote that.",
            found=state,
            expected=f"a bundle without {STATE_FOLDER}/",
            where=folder / state,
            hint=f"Remove its {printable(state)}/ where a carrier brought it; a device makes its own.",
        )
    for parent, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            if os.path.islink(path := Path(parent, name)):  # noqa: PTH114 - which raises where it cannot look
                raise SignatureError(
                    f"{path} is a link: what it leads to is no part of the bundle, and can be exchanged later.",
                    found="a link",
                    expected="a plain file",
                    where=path,
                    hint="Fetch the bundle again, with files instead of links.",
                )


def verify_bundle_signature(folder: Path, trust: Sequence[Path]) -> str:
    """Return the id of the key that signed a bundle.

    Args:
        folder: The bundle.
        trust: Files of public keys that are not in the bundle.

    Raises:
        BundleError: If there is no manifest.
        SignatureError: If it is not signed, or by none of the keys, or a key cannot be read.
        CorruptFileError: If the manifest or a trusted key is not what was signed.
    """
    from icis_deploy.updates.bundle_signature import (
        MAX_BUNDLE_SIGNATURE_BYTES,
        SIGNATURE_NAME,
        unsigned_bundle_error,
        verify_bundle_files,
    )
    from icis_deploy.updates.signing import load_public_key

    keys = [load_public_key(path) for path in trust]
    path = folder / SIGNATURE_NAME
    if not os.path.lexists(path):
        raise unsigned_bundle_error(str(folder))
    signature = read_plain(
        path, max_bytes=MAX_BUNDLE_SIGNATURE_BYTES, what="bundle signature", error_type=SignatureError
    )
    try:
        return verify_bundle_files(signature, signed_files(folder), keys)
    except IntegrityError as error:
        raise type(error).at(folder, error) from error
