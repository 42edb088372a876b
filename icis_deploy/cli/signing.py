"""`icis-deploy keygen`, `sign`, `rotate-keys`, `verify-update` and `diff`: what a publisher does with class updates."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, EXISTING_PATH, NEW_PATH
from icis_deploy.cli.output import format_option, note, noted_warnings, print_result
from icis_deploy.cli.signing_options import (
    ask_new_passphrase,
    passphrase_from,
    passphrase_options,
    signing_key_from,
    signing_options,
)
from icis_deploy.common.terminal_text import columns, percent, printable
from icis_deploy.errors import UsageError

if TYPE_CHECKING:
    from icis_deploy.api.diff import UpdateDiff
    from icis_deploy.head.class_update import ClassUpdate
    from icis_deploy.runtime.changes.guard import ChangedAnswers
    from icis_deploy.updates.signing import SignedFile
    from icis_deploy.updates.trusted_keys import TrustedKeys

UTC_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
MAX_LISTED = 20


@click.command(short_help="Make a key pair for signing class updates.")
@click.option("--out", type=NEW_PATH, required=True, help="The private key; the public one is written to OUT.pub.")
@passphrase_options
@click.option("--ask-passphrase", is_flag=True, help="Ask for a passphrase at the terminal.")
@format_option
def keygen(out: Path, passphrase_file: Path | None, passphrase_env: str | None, ask_passphrase: bool) -> None:
    """Write an Ed25519 key pair: OUT (mode 600) and OUT.pub.

    With a passphrase OUT is encrypted, and commands that sign with it ask for the passphrase.

    Devices trust the public keys in their bundle's trust/ folder: give OUT.pub to `export --trust`. Keep OUT where the
    updates are signed, and nowhere else.
    """
    from icis_deploy.api.signing import keygen as make_keys

    passphrase = passphrase_from(passphrase_file, passphrase_env)
    if ask_passphrase:
        if passphrase is not None:
            raise UsageError(
                "--ask-passphrase would do nothing: the passphrase is given.",
                found="a passphrase",
                expected="no passphrase",
            )
        passphrase = ask_new_passphrase()
    keys = make_keys(out, passphrase=passphrase)
    is_encrypted = passphrase is not None
    result = {
        "private_key": str(keys.private_path),
        "public_key": str(keys.public_path),
        "key_id": keys.key_id,
        "is_encrypted": is_encrypted,
    }
    text = [
        ("private key", f"{keys.private_path}{', encrypted' if is_encrypted else ''}"),
        ("public key", str(keys.public_path)),
        ("key id", keys.key_id),
    ]
    print_result(result, text=columns(text), after_change=True)


@click.command(short_help="Sign a class update.")
@click.argument("update", type=EXISTING_FILE)
@signing_options("The private key that keygen wrote.")
@click.option("--version", type=click.IntRange(min=1), help="Version of the update; devices only move up.")
@click.option("--expires", type=UTC_TIME, help="When devices stop taking it, in UTC.")
@click.option("--out", type=NEW_PATH, help="Where the signed file goes. Default: UPDATE itself.")
@click.option(
    "--bundle",
    "--follows",
    "bundle",
    type=EXISTING_PATH,
    metavar="BUNDLE|FILE",
    help="The bundle that it is for, in the state that it follows; or a file that says it: what `classes --format "
    "json` printed, or the complete update before.",
)
@click.option("--complete", is_flag=True, help="Its added classes are all that devices shall have in slots.")
@click.option("--force", is_flag=True, help="Sign a version more than 2^32 above the greatest before it.")
@format_option
def sign(
    update: Path,
    version: int | None,
    expires: datetime | None,
    out: Path | None,
    bundle: Path | None,
    complete: bool,
    force: bool,
    **signing: Any,
) -> None:
    """Sign UPDATE, set its version and expiry, and say what it follows.

    With --complete devices take it whatever they had. With --bundle alone only devices in the state of that bundle take
    it. With neither it is applied to whatever a device has, and one before it that was left out is never noticed.
    """
    from icis_deploy.api.signing import sign as sign_file

    in_utc = None if expires is None else expires.replace(tzinfo=timezone.utc)
    key = signing_key_from(signing)
    with noted_warnings():
        signed = sign_file(
            update, key=key, out=out, version=version, expires=in_utc, bundle=bundle, complete=complete, force=force
        )
    _print_signed(signed, after_change=True, is_version_kept=version is None, is_expiry_kept=expires is None)


@click.command("sign-bundle", short_help="Sign a bundle.")
@click.argument("bundle", type=BUNDLE)
@signing_options("The private key that keygen wrote.")
@format_option
def sign_bundle(bundle: Path, **signing: Any) -> None:
    """Sign BUNDLE: its manifest, which holds the hashes of all files, and the keys in its trust/ folder.

    The signature is written to BUNDLE/bundle.dsse. Devices that open the bundle with keys to trust then refuse it where
    anything was changed.
    """
    from icis_deploy.api.signing import sign_bundle as sign_folder

    key = signing_key_from(signing)
    with noted_warnings():
        signed_by = sign_folder(bundle, key=key)
    _print_bundle(bundle, signed_by, after_change=True)


@click.command("verify-bundle", short_help="Check who signed a bundle.")
@click.argument("bundle", type=BUNDLE)
@click.option(
    "--trust", type=EXISTING_FILE, multiple=True, required=True, help="A public key; may be given more than once."
)
@click.option(
    "--as-delivered",
    is_flag=True,
    help="A carrier brought it: refuse a state/ in it, which no signature covers, and links.",
)
@format_option
def verify_bundle(bundle: Path, trust: tuple[Path, ...], as_delivered: bool) -> None:
    """Check that BUNDLE is signed by one of the keys, and that no file of it was changed.

    The exit code is 6 if it is not. What a device wrote, state/, is no part of what was signed: a bundle that comes
    with one brings the classes and keys of whoever wrote it.
    """
    from icis_deploy.api.signing import verify_bundle as verify_folder
    from icis_deploy.runtime.state.bundle_trust import has_state

    signed_by = verify_folder(bundle, trust=trust, as_delivered=as_delivered)
    _print_bundle(bundle, signed_by)
    if has_state(bundle):
        note(
            f"Warning: {printable(str(bundle))} holds state/, which no signature covers. Where a carrier brought it, "
            f"remove state/, or let --as-delivered refuse it."
        )


def _print_bundle(bundle: Path, signed_by: str, *, after_change: bool = False) -> None:
    result = {"bundle": str(bundle), "signed_by": signed_by}
    print_result(result, text=columns([("bundle", str(bundle)), ("signed by", signed_by)]), after_change=after_change)


@click.command("rotate-keys", short_help="Replace the keys that devices trust.")
@click.option(
    "--trust", type=EXISTING_FILE, multiple=True, required=True, help="A key to trust afterwards; repeat for several."
)
@signing_options("A private key that devices trust now.")
@click.option(
    "--version", type=click.IntRange(min=1), required=True, help="Of the set: 1 for the first rotation, then greater."
)
@click.option("--expires", type=UTC_TIME, help="When devices stop taking it, in UTC.")
@click.option("--out", type=NEW_PATH, required=True, help="The file to `apply` on devices.")
@click.option(
    "--root", type=EXISTING_FILE, multiple=True, help="A key that may sign the next sets, kept offline; repeat."
)
@click.option(
    "--threshold", type=click.IntRange(min=1), default=1, show_default=True, help="How many root keys must sign."
)
@click.option(
    "--highest-version",
    type=click.IntRange(min=0),
    help="The last good version of an update: devices take back what came after it. It takes root keys.",
)
@format_option
def rotate_keys(
    trust: tuple[Path, ...],
    version: int,
    expires: datetime | None,
    out: Path,
    root: tuple[Path, ...],
    threshold: int,
    highest_version: int | None,
    **signing: Any,
) -> None:
    """Write a file that makes devices trust the given public keys, and no others.

    It is signed by a key that they trust now and applied like a class update: `apply OUT --to BUNDLE`. No rollback
    brings the old keys back. With --root, --threshold of the root keys must sign this file (`sign` adds a signature)
    and every later one; without root keys, any one trusted key may replace the others.
    """
    from icis_deploy.api.signing import rotate_keys as write_rotation

    in_utc = None if expires is None else expires.replace(tzinfo=timezone.utc)
    key = signing_key_from(signing)
    with noted_warnings():
        signed = write_rotation(
            trust,
            key=key,
            out=out,
            version=version,
            expires=in_utc,
            root=root,
            threshold=threshold,
            highest_version=highest_version,
        )
    _print_signed(signed, after_change=True)


@click.command("verify-update", short_help="Check who signed a class update.")
@click.argument("update", type=EXISTING_FILE)
@click.option(
    "--trust", type=EXISTING_FILE, multiple=True, required=True, help="A public key; may be given more than once."
)
@format_option
def verify_update(update: Path, trust: tuple[Path, ...]) -> None:
    """Check that UPDATE is signed by one of the keys, as a device does before it reads it.

    The exit code is 6 if it is not. A set of trusted keys that brings root keys needs their signatures as well; where
    some are missing yet, a warning says so.
    """
    from icis_deploy.api.signing import verify_update as verify_file

    with noted_warnings():
        signed = verify_file(update, trust=trust)
    _print_signed(signed, after_change=False)


def _print_signed(
    signed: SignedFile, *, after_change: bool, is_version_kept: bool = False, is_expiry_kept: bool = False
) -> None:
    """Print what a signed file says, and which of its terms are those that it had before it was signed."""
    content = signed.content
    expires = None if content.expires is None else content.expires.isoformat()
    result = {
        "update": str(signed.path),
        "kind": type(content).__name__,
        "version": content.version,
        "expires": expires,
        "signed_by": signed.signed_by,
        **_binding(content),
    }
    if after_change:
        result["kept"] = [name for name, kept in (("version", is_version_kept), ("expires", is_expiry_kept)) if kept]
    text = [
        ("update", f"{signed.path} ({type(content).__name__})"),
        ("version", f"{content.version}{', as the file had it' if is_version_kept else ''}"),
        ("expires", _expiry_text(expires, is_kept=is_expiry_kept)),
        *_binding_text(content),
        ("signed by", signed.signed_by),
    ]
    print_result(result, text=columns(text), after_change=after_change)


def _expiry_text(expires: str | None, *, is_kept: bool) -> str:
    if not is_kept:
        return expires or "never"
    return f"{expires or 'never'}, as the file had it; --expires sets another"


def _binding(content: ClassUpdate | TrustedKeys) -> dict[str, Any]:
    from icis_deploy.head.class_update import ClassUpdate

    if not isinstance(content, ClassUpdate):
        return {}
    follows = content.follows
    return {
        "follows": None if follows is None else {"version": follows.version, "digest": follows.digest},
        "complete": content.complete,
        "targets": list(content.targets),
    }


def _binding_text(content: ClassUpdate | TrustedKeys) -> list[tuple[str, str]]:
    from icis_deploy.head.class_update import ClassUpdate

    if not isinstance(content, ClassUpdate):
        return []
    if content.complete:
        follows = "nothing: it is complete"
    elif content.follows is None:
        follows = "whatever a device has; an update that was left out is not noticed"
    else:
        follows = f"version {content.follows.version} ({content.follows.digest[:16]}…)"
    targets = ", ".join(f"{target[:16]}…" for target in content.targets)
    return [("follows", follows), ("for bundles", targets or "all of this head")]


@click.command(short_help="Show what a class update changes.")
@click.argument("old", type=EXISTING_PATH)
@click.argument("new", type=EXISTING_PATH)
@format_option
def diff(old: Path, new: Path) -> None:
    """Show which classes change between OLD and NEW, and which come close to another one.

    Both are class updates or bundles; a bundle and an update show what the update would do to the bundle, and whether
    `apply` would refuse it for the answers that it changes.
    """
    from icis_deploy.api.diff import diff as compare

    found = compare(old, new)
    result = {
        "added": list(found.added),
        "removed": list(found.removed),
        "moved": [
            {"name": each.name, "cosine": each.cosine, "length_ratio": each.length_ratio} for each in found.moved
        ],
        "num_unchanged": found.num_unchanged,
        "nearest": [{"name": each.name, "nearest": each.nearest, "cosine": each.cosine} for each in found.nearest],
        "changed_answers": None if found.changed_answers is None else _changed_answers(found.changed_answers),
    }
    print_result(result, text=_diff_text(found))


def _changed_answers(changed: ChangedAnswers) -> dict[str, Any]:
    return {
        "num_reference": changed.num_reference,
        "num_changed": changed.num_changed,
        "share": changed.share,
        "limit": changed.limit,
        "is_refused": changed.is_refused,
        "takers": [{"name": name, "count": count} for name, count in changed.takers],
        "copies": [{"name": name, "seen": seen} for name, seen in changed.copies],
    }


def _changed_answers_text(changed: ChangedAnswers) -> str:
    lines = [
        f"{changed.num_changed} of {changed.num_reference} answers on known classes change "
        f"({percent(changed.share)}; the bundle lets {percent(changed.limit)} change)"
    ]
    if changed.takers:
        takers = [(f"  {name}", str(count)) for name, count in changed.takers[:MAX_LISTED]]
        lines += ["they go to:", columns(takers, right=[1])]
    lines += [f"{printable(name)} is a copy of {printable(seen)}" for name, seen in changed.copies[:MAX_LISTED]]
    if changed.is_refused:
        lines.append("`icis-deploy apply` REFUSES this update without --allow-changed-answers.")
    return "\n".join(lines)


def _diff_text(found: UpdateDiff) -> str:
    lines = [
        f"{len(found.added)} added, {len(found.removed)} removed, {len(found.moved)} moved, "
        f"{found.num_unchanged} unchanged",
        *(f"+ {printable(name)}" for name in found.added[:MAX_LISTED]),
        *(f"- {printable(name)}" for name in found.removed[:MAX_LISTED]),
        *(
            f"~ {printable(each.name)}  cosine {each.cosine:.3f}, length x {each.length_ratio:.2f}"
            for each in found.moved[:MAX_LISTED]
        ),
    ]
    hidden = sum(max(0, len(group) - MAX_LISTED) for group in (found.added, found.removed, found.moved))
    if hidden:
        lines.append(f"... and {hidden} more (--format json lists all)")
    if found.nearest:
        lines.append("closest pairs:")
        pairs = [(f"  {each.name}", each.nearest, f"{each.cosine:.3f}") for each in found.nearest[:MAX_LISTED]]
        lines.append(columns(pairs, right=[2]))
    if found.changed_answers is not None:
        lines.append(_changed_answers_text(found.changed_answers))
    return "\n".join(lines)
