"""A class update as the target of a TUF repository, fetched with python-tuf's client.

TUF says what a single signed file cannot: which version is today's (timestamp and snapshot, against freezing) and who
may publish what. Metadata that is changed, expired, older than what the device has seen, or of two repositories' states
mixed, is refused by the client; here each refusal gets the error and the exit code of this project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from icis_deploy.common.files import read_plain, write_failure, write_file
from icis_deploy.common.terminal_text import reason_of
from icis_deploy.errors import (
    CorruptFileError,
    ExpiredError,
    LoadError,
    MissingDependencyError,
    SignatureError,
    TransferError,
    VersionRollbackError,
)

MAX_ROOT_BYTES = 512_000
"""python-tuf's own limit of a root."""
MAX_TARGET_BYTES = 1 << 28


def fetch_target(
    *, metadata_url: str, targets_url: str, target: str, root: Path, state: Path, out: Path
) -> Path | None:
    """Fetch today's file of a target, unless it was brought before; return where it is.

    Args:
        metadata_url: Where the repository's metadata is.
        targets_url: Where its targets are.
        target: The target's path in the repository.
        root: The root metadata that was built into the device. Newer ones are found from it, and kept in `state`.
        state: A folder of the client's own. Whoever loses it can be shown an old repository again.
        out: Where to put the file, in a folder that exists, such as an inbox. It appears whole.

    Returns:
        `out`, or `None` where the same bytes were put there by an earlier call.

    Raises:
        MissingDependencyError: If tuf is not installed.
        LoadError: If the root cannot be read, or the repository has no such target.
        ExpiredError: If metadata has expired: somebody freezes the repository, or nobody renews it.
        VersionRollbackError: If metadata is older than what this device has seen.
        SignatureError: If metadata is not signed by who may.
        CorruptFileError: If metadata or the target has other bytes than were signed, or `root` is none.
        TransferError: If the repository cannot be reached, or lacks a file.
        StorageError: If the disk refuses.
    """
    try:
        from tuf.api.metadata import Metadata, Root
        from tuf.api.serialization import DeserializationError
        from tuf.ngclient import Updater, UpdaterConfig
    except ImportError as error:
        raise MissingDependencyError(
            "Reading a TUF repository needs tuf.", found="no module tuf", hint="Install it: pip install tuf."
        ) from error
    trusted = read_plain(root, max_bytes=MAX_ROOT_BYTES, what="root metadata", error_type=LoadError)
    try:
        Metadata[Root].from_bytes(trusted)
    except DeserializationError as error:
        raise CorruptFileError(
            f"{root} is no root metadata of TUF: {reason_of(error)}.",
            found=reason_of(error),
            expected="the root metadata of the repository",
            where=root,
            hint="Give the root.json that was built into the device.",
        ) from error
    with _as_errors(metadata_url, state):
        state.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            metadata_dir=str(state / "metadata"),
            metadata_base_url=metadata_url,
            target_dir=str(state),
            target_base_url=targets_url,
            config=UpdaterConfig(app_user_agent="icis-deploy"),
            bootstrap=trusted,
        )
        updater.refresh()
        info = updater.get_targetinfo(target)
        if info is None:
            raise LoadError(
                f"{metadata_url} lists no target {target!r}.",
                found="no such target",
                expected=target,
                where=metadata_url,
                hint="Check its path, and which role it is delegated to.",
            )
        if info.length > MAX_TARGET_BYTES:
            raise CorruptFileError(
                f"{target} has {info.length} bytes, which no class update has. Not read.",
                found=info.length,
                expected=f"at most {MAX_TARGET_BYTES} bytes",
                where=targets_url,
                hint="Check the name of the target: it is something else than a class update.",
            )
        fetched = Path(updater.download_target(info, filepath=str(state / f"target-{quote(target, safe='')[-80:]}")))
        data = read_plain(fetched, max_bytes=MAX_TARGET_BYTES, what="target", error_type=LoadError)
        info.verify_length_and_hashes(data)  # what lies on the disk may have changed since it was fetched
    delivered, sha256 = fetched.with_name(f"{fetched.name}.delivered"), hashlib.sha256(data).hexdigest()
    if delivered.is_file():
        last = read_plain(delivered, max_bytes=MAX_ROOT_BYTES, what="note of the carrier", error_type=LoadError)
        if last == sha256.encode():
            return None
    write_file(out, data)
    write_file(delivered, sha256.encode())
    return out


@contextmanager
def _as_errors(where: str, state: Path) -> Iterator[None]:
    """Turn what python-tuf raises into errors of ours."""
    from tuf.api import exceptions as tuf_errors

    kept = "Nothing was kept."
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredError(
            f"The TUF repository {where} has expired: {reason_of(error)}. {kept}",
            found=reason_of(error),
            expected="metadata of today",
            where=where,
            hint="Renew its timestamp and snapshot. If they are renewed, somebody shows this device an old repository.",
        ) from error
    except (tuf_errors.BadVersionNumberError, tuf_errors.EqualVersionNumberError) as error:
        raise VersionRollbackError(
            f"The TUF repository {where} went back, or is mixed of two states: {reason_of(error)}. {kept}",
            found=reason_of(error),
            expected="no older version than this device has seen",
            where=where,
            hint="Publish newer metadata.",
        ) from error
    except tuf_errors.UnsignedMetadataError as error:
        raise SignatureError(
            f"Metadata of the TUF repository {where} is not signed by who may sign it: {reason_of(error)}. {kept}",
            found=reason_of(error),
            expected="signatures of the role's keys",
            where=where,
            hint="Sign it with the keys that its root names.",
        ) from error
    except (tuf_errors.DownloadLengthMismatchError, tuf_errors.RepositoryError) as error:
        raise CorruptFileError(
            f"The TUF repository {where} holds other bytes than were signed: {reason_of(error)}. {kept}",
            found=reason_of(error),
            expected="the bytes that its metadata describes",
            where=where,
            hint="Publish it again; if it stays so, somebody changes it.",
        ) from error
    except tuf_errors.DownloadError as error:
        # What a connection fails of stands in the cause alone; urllib3 wraps it once more.
        cause = error.__cause__ or error
        reason = reason_of(getattr(cause, "reason", None) or cause) or type(error).__name__
        raise TransferError(
            f"The TUF repository {where} cannot be read: {reason}. {kept}",
            found=reason,
            where=where,
            hint="Check the address and the network; then try again.",
        ) from error
    except OSError as error:
        raise write_failure(state, error, after=kept) from error
