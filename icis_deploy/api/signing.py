"""Keys and signatures of class updates: what a publisher does with files before devices get them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from icis_deploy.api.followed_state import binding_to
from icis_deploy.api.inputs import PathLike
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.common.files import path_from, read_plain, write_file
from icis_deploy.common.given import check_flag, whole_number
from icis_deploy.errors import CorruptFileError, SignatureError
from icis_deploy.runtime.state.bundle_trust import check_as_delivered, signed_files, verify_bundle_signature
from icis_deploy.updates import signing
from icis_deploy.updates.bundle_signature import MAX_BUNDLE_SIGNATURE_BYTES, SIGNATURE_NAME, claimed_signers
from icis_deploy.updates.signers import SigningKey, open_signer
from icis_deploy.updates.signing import Binding, KeyPair, SignedFile, key_paths


def keygen(out: PathLike, *, passphrase: str | None = None) -> KeyPair:
    """Make an Ed25519 key pair: the private key at `out`, which only its owner can read, the public one at `<out>.pub`.

    Args:
        out: Where the private key goes; a key is never overwritten.
        passphrase: What the private key is encrypted with; `None` leaves it as it is.

    Example:
        keys = icis_deploy.keygen("publisher.key")
        options = icis_deploy.ExportOptions(head="updatable", capacity=256, trust=[keys.public_path])

    Raises:
        UsageError: If one of the two files is there already, or the passphrase is empty or too long.
        StorageError: If they cannot be written; neither is left then.
    """
    return signing.keygen(path_from(out, name="out"), passphrase=passphrase)


def sign(
    update: PathLike,
    *,
    key: SigningKey,
    version: int | None = None,
    expires: datetime | None = None,
    out: PathLike | None = None,
    bundle: PathLike | None = None,
    complete: bool = False,
    force: bool = False,
) -> SignedFile:
    """Sign a class update, or a set of trusted keys.

    What already has its terms gets one more signature; setting one of them drops those that it has.

    A class update should say what it follows, or a carrier can leave one out. `complete=True` is the robust way: the
    update lists every class that devices shall have beside the baked ones, so it fits whatever they had, and one that
    never arrived is made good by the next. Otherwise `bundle` is a copy of the bundle in the state that devices are in:
    those in another state refuse the update, and say which version is missing.

    Args:
        update: The file, signed or not.
        key: The private key that `keygen` wrote, or a `KeyFile`, `SigningCommand` or `SignerURI`, which say more.
        version: A new version; `None` keeps the file's. Devices only take greater ones.
        expires: When devices stop taking it; `None` keeps the file's expiry.
        out: Where the signed file goes; `None` replaces `update`.
        bundle: The bundle that the update is for, in the state that it follows: only bundles with the same model file
            and preparation of images take it. Instead of the bundle, a file of what `classes --format json` prints of
            it; or the complete update after which this one comes, for every bundle of the head. `None`: every bundle of
            the head, and, unless `complete`, in any state.
        complete: Whether the update's added classes are all that devices shall have in slots, but for those that they
            were taught themselves.
        force: Whether to sign a version more than 2^32 above the greatest before it, which spends all below it.

    Example:
        icis_deploy.sign("new.icis", key="publisher.key", version=1, complete=True)

    Raises:
        LoadError, CorruptFileError: If the file cannot be read or is not one of ours.
        SignatureError: If the key cannot be read, or the signer fails; nothing is written then.
        UsageError: If `out` is another file that exists, or no device would take the file under these terms.
        StorageError: If the result cannot be written; what was there before is still there.
    """
    target = None if out is None else path_from(out, name="out")
    version = None if version is None else whole_number(version, name="version")
    check_flag(complete, name="complete")
    check_flag(force, name="force")
    binding = None
    if bundle is not None:
        binding = binding_to(path_from(bundle, name="bundle"), complete=complete)
    elif complete:
        binding = Binding(complete=True)
    return signing.sign(
        path_from(update, name="update"),
        partial(open_signer, key),
        out=target,
        version=version,
        expires=expires,
        binding=binding,
        force=force,
    )


def sign_bundle(bundle: PathLike, *, key: SigningKey) -> str:
    """Sign a bundle: its manifest, which holds the hashes of all its files, and the keys in its `trust/` folder.

    `Device.open(bundle, trust=[...])` then refuses a bundle that was changed or that somebody else made. A bundle that
    is signed already gets one more signature. What devices change later, in `state/`, is no part of it.

    Args:
        bundle: The bundle's folder.
        key: The private key that `keygen` wrote, or a `KeyFile`, `SigningCommand` or `SignerURI`, which say more.

    Returns:
        The id of the key.

    Example:
        icis_deploy.sign_bundle("bundle", key="publisher.key")
        device = icis_deploy.Device.open("bundle", trust=["publisher.key.pub"])

    Raises:
        BundleError, CorruptFileError: If it is not a complete bundle.
        SignatureError: If a key cannot be read, or the signer fails; nothing is written then.
        StorageError: If the signature cannot be written.
    """
    folder = path_from(bundle, name="bundle")
    load_bundle(folder)
    path = folder / SIGNATURE_NAME
    former = None
    if os.path.lexists(path):
        former = read_plain(
            path, max_bytes=MAX_BUNDLE_SIGNATURE_BYTES, what="bundle signature", error_type=SignatureError
        )
    data, signed_by = signing.sign_bundle_files(signed_files(folder), former, partial(open_signer, key))
    write_file(path, data)
    return signed_by


def signers_of(bundle: PathLike) -> tuple[str, ...]:
    """Return the ids of the keys that say they signed a bundle as it is; `()` if it has no signature.

    Whether they did, only `verify_bundle` knows, which has the keys.

    Raises:
        BundleError: If there is no manifest.
        SignatureError: If the signature or a trusted key cannot be read.
        CorruptFileError: If it is no signature of a bundle, or of other files than are there.
    """
    folder = path_from(bundle, name="bundle")
    path = folder / SIGNATURE_NAME
    if not os.path.lexists(path):
        return ()
    data = read_plain(path, max_bytes=MAX_BUNDLE_SIGNATURE_BYTES, what="bundle signature", error_type=SignatureError)
    try:
        return claimed_signers(data, signed_files(folder))
    except CorruptFileError as error:
        raise CorruptFileError.at(folder, error) from error


def verify_bundle(bundle: PathLike, *, trust: Sequence[PathLike], as_delivered: bool = False) -> str:
    """Check that a bundle is signed by one of these keys, and that every file of it is the one that was signed.

    Args:
        bundle: The bundle's folder.
        trust: Files of public keys that are not in the bundle; a signature by one of them is enough.
        as_delivered: Whether a carrier brought it, so that it must have no `state/` folder, as no signature covers the
            classes and keys in it and a device that opens the bundle believes them, and no link.

    Returns:
        The id of the key that signed it.

    Example:
        signed_by = icis_deploy.verify_bundle("bundle", trust=["publisher.key.pub"])

    Raises:
        SignatureError: If the bundle is not signed, or by none of the keys, or holds what no carrier may bring.
        BundleError: If it is incomplete.
        CorruptFileError: If a file in it was changed.
    """
    folder = path_from(bundle, name="bundle")
    signed_by = verify_bundle_signature(folder, key_paths(trust, name="trust"))
    if as_delivered:
        check_as_delivered(folder)
    load_bundle(folder)
    return signed_by


def rotate_keys(
    trust: Sequence[PathLike],
    *,
    key: SigningKey,
    version: int,
    out: PathLike,
    expires: datetime | None = None,
    root: Sequence[PathLike] = (),
    threshold: int = 1,
    highest_version: int | None = None,
) -> SignedFile:
    """Write a signed set of trusted keys: a device that applies it trusts these keys, and no others.

    Without root keys one stolen key is enough to replace all others. A set with `root` gives a device root keys: from
    then on `threshold` of them must sign every set, and they alone can. `sign` adds their signatures to the file. The
    first such set is signed by a key that the device trusts, and by the root keys that it brings.

    Args:
        trust: Files of all public keys that devices trust afterwards.
        key: A private key that the devices trust now; otherwise as in `sign`.
        version: Of the set: 1 for the first rotation, then greater than in every one before, and at most 2^32.
        out: The file to apply on devices.
        expires: When devices stop taking it; `None` is never.
        root: Files of the public keys that may sign the next sets, kept offline; none: devices keep those they have.
        threshold: How many of `root` must sign.
        highest_version: The last good version of a class update, after a stolen key spent greater ones: devices take
            back what came after it, and accept greater versions again. It takes root keys; `None` changes nothing.

    Example:
        icis_deploy.rotate_keys(["next.key.pub"], key="publisher.key", version=1, out="keys.icis")

    Raises:
        SignatureError: If a key cannot be read, or the signer fails; nothing is written then.
        IncompatibleError: If there is no key, or too many.
        UsageError: If `out` exists, or no device would take the file under these terms.
        StorageError: If it cannot be written.
    """
    return signing.rotate_keys(
        key_paths(trust, name="trust"),
        partial(open_signer, key),
        out=path_from(out, name="out"),
        version=whole_number(version, name="version"),
        expires=expires,
        root_key_paths=key_paths(root, name="root"),
        root_threshold=whole_number(threshold, name="threshold"),
        highest_version=None if highest_version is None else whole_number(highest_version, name="highest_version"),
    )


def verify_update(update: PathLike, *, trust: Sequence[PathLike]) -> SignedFile:
    """Check that a class update, or a set of trusted keys, is signed by one of these keys, and read it.

    Warns `ICISDeployWarning` of a set whose own root keys have not signed it, or too few of them: no device takes it.

    Args:
        update: The file.
        trust: Files of public keys; a signature by one of them is enough.

    Returns:
        What the file holds, and the id of the key that signed it.

    Example:
        signed = icis_deploy.verify_update("new.icis", trust=["publisher.key.pub"])
        print(signed.signed_by, signed.content.version)

    Raises:
        SignatureError: If none of the keys signed the file, or a key cannot be read.
        LoadError, CorruptFileError: If the file cannot be read or is not one of ours.
    """
    return signing.verify_update(path_from(update, name="update"), key_paths(trust, name="trust"))
