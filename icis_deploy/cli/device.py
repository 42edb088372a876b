"""`icis-deploy apply`, `rollback`, `history`, `classes`, `enable` and `disable`: what an operator does to a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, NEW_PATH
from icis_deploy.cli.output import format_option, library_warnings, note, print_result
from icis_deploy.common.terminal_text import MAX_SHOWN, columns, percent, printable
from icis_deploy.errors import SignatureError

if TYPE_CHECKING:
    from icis_deploy.runtime.operations import ListedClass
    from icis_deploy.runtime.state.journal import HistoryEntry
    from icis_deploy.runtime.state.origins import Origin


def _complete_class(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the classes of the bundle that was typed before, for a shell that completes their names."""
    from icis_deploy.errors import ICISDeployError
    from icis_deploy.runtime.operations import classes as list_classes

    try:
        listing = list_classes(Path(context.params["bundle"]))
    except (ICISDeployError, KeyError, TypeError):  # there is nothing to say to a shell that waits for a word
        return []
    return [each.name for each in listing.classes if each.name.startswith(incomplete)]


_allow_changed_answers = click.option(
    "--allow-changed-answers",
    is_flag=True,
    help="Take it even if it changes more answers on known classes than the bundle allows; the history says so.",
)


@click.command(short_help="Apply a class update to a bundle.")
@click.argument("update", type=EXISTING_FILE)
@click.option("--to", "bundle", type=BUNDLE, required=True, help="The bundle.")
@click.option("--allow-unsigned", is_flag=True, help="Take an update that nobody signed; the history says so.")
@_allow_changed_answers
@format_option
def apply(update: Path, bundle: Path, allow_unsigned: bool, allow_changed_answers: bool) -> None:
    """Apply UPDATE to a bundle, wholly or not at all.

    It is verified, written, self-tested and committed; else the bundle stays as it was. Refused with exit code 6
    (signature, rollback, expiry), 3 (another head, too few slots) or 1 (it changes more answers on images of known
    classes than the bundle allows). An update that is in effect already changes nothing, with exit code 0. Running
    devices take it over with Device.refresh.
    """
    from icis_deploy.runtime.operations import apply as apply_update

    applied = apply_update(update, bundle, allow_unsigned=allow_unsigned, allow_changed_answers=allow_changed_answers)
    result = {"bundle": str(bundle), "update": str(update), "changed": applied.changed, "entry": _entry(applied.entry)}
    text = _history_text([applied.entry])
    if not applied.changed:
        text = f"Nothing was changed: it is in effect already.\n{text}"
    print_result(result, text=text, after_change=True)


@click.command(short_help="Teach a bundle a class from its descriptor, or from photos.")
@click.argument("bundle", type=BUNDLE)
@click.argument("name")
@click.argument("more_images", metavar="", nargs=-1, type=NEW_PATH)
@click.option("--descriptor", "descriptors", type=EXISTING_FILE, help="Descriptors, NAME's among them: .npz, .csv.")
@click.option(
    "--images",
    multiple=True,
    metavar="IMAGE...",
    type=NEW_PATH,
    help="Photos of the class, 1 to 100: image files, as many as follow.",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out photos that cannot be read, with a warning.")
@_allow_changed_answers
@format_option
def teach(
    bundle: Path,
    name: str,
    descriptors: Path | None,
    images: tuple[Path, ...],
    more_images: tuple[Path, ...],
    skip_unreadable: bool,
    allow_changed_answers: bool,
) -> None:
    """Teach BUNDLE the class NAME from its descriptor, from photos, or from both, on the device itself.

    The bundle's generator makes a row of the descriptor (`icis-deploy export --generator`). Photos move it, or make one
    alone; the history keeps their hashes, and nothing keeps the photos. A class that is unlike all seen ones, or takes
    too many of their answers, is refused with exit code 1, one that could not be told from another with 3; the bundle
    stays as it was.
    """
    from icis_deploy.runtime.operations import teach as teach_class

    if more_images and not images:  # an option takes one value: the others come as arguments
        raise click.UsageError(f"{more_images[0]} follows no option. Give photos after --images.")
    blocks = None
    if descriptors is not None:
        from icis_deploy.descriptors.files import load_descriptors

        described = load_descriptors(descriptors).select((name,))
        blocks = {block.name: described.block(block.name)[0] for block in described.blocks}
    with library_warnings() as warnings:
        entry = teach_class(
            bundle,
            name,
            blocks,
            images=(*images, *more_images) or None,
            skip_unreadable=skip_unreadable,
            allow_changed_answers=allow_changed_answers,
        )
    told = [command_line_hint(warning, all_commands(), command="teach") for warning in warnings]
    text = "\n".join([_history_text([entry]), *(f"Warning: {warning}" for warning in told)])
    result = {"bundle": str(bundle), "class": name, "entry": _entry(entry), "warnings": told}
    print_result(result, text=text, after_change=True)


@click.command(short_help="Take a bundle back to the state before.")
@click.argument("bundle", type=BUNDLE)
@click.option(
    "--allow-revoked",
    is_flag=True,
    help="Go back even if that brings back classes by a key that is not trusted any more; the history says so.",
)
@format_option
def rollback(bundle: Path, allow_revoked: bool) -> None:
    """Take BUNDLE back to the state before its last update.

    Refused with exit code 6 if that would bring back classes that a key signed which is not trusted any more.
    """
    from icis_deploy.runtime.operations import rollback as roll_back

    entry = roll_back(bundle, allow_revoked=allow_revoked)
    print_result({"bundle": str(bundle), "entry": _entry(entry)}, text=_history_text([entry]), after_change=True)


@click.command(short_help="List what was changed in a bundle.")
@click.argument("bundle", type=BUNDLE)
@format_option
def history(bundle: Path) -> None:
    """List the changes of BUNDLE, the oldest first, and who signed each.

    The last 32 are kept. What is in effect and was signed by nobody, or by a key that is not trusted any more, is said
    as long as it is.
    """
    from icis_deploy.bundle.manifest import load_manifest
    from icis_deploy.runtime.operations import doubtful_origins
    from icis_deploy.runtime.operations import history as load_history

    entries = load_history(bundle)
    doubtful: tuple[Origin, ...] = ()
    try:
        doubtful = doubtful_origins(bundle)
    except SignatureError as error:  # the history itself needs no key, and is asked for where something is wrong
        note(f"Warning: {printable(error.what)}")
    described = load_manifest(bundle)
    text = _history_text(entries) if entries else "Nothing was changed since the export."
    if described.capacity and described.max_changed_answers is None:
        text += "\nThis bundle has no reference images: no update is refused for the answers that it changes."
    text += "".join(f"\n{_doubtful_text(origin)}" for origin in doubtful)
    result = {
        "bundle": str(bundle),
        "max_changed_answers": described.max_changed_answers,
        "history": [_entry(entry) for entry in entries],
        "doubtful": [{"signed_by": each.signed_by, "num_classes": len(each.columns)} for each in doubtful],
    }
    print_result(result, text=text)


@click.command(short_help="List the classes that a bundle knows.")
@click.argument("bundle", type=BUNDLE)
@format_option
def classes(bundle: Path) -> None:
    """List the classes of BUNDLE in the order of its logits, with their slots and who signed them."""
    from icis_deploy.runtime.operations import classes as list_classes

    listing = list_classes(bundle)
    result = {
        "bundle": str(bundle),
        "version": listing.version,
        "capacity": listing.capacity,
        "num_free_slots": listing.num_free_slots,
        "highest_version": listing.highest_version,
        "digest": listing.digest,
        "target": listing.target,
        "classes": [asdict(each) for each in listing.classes],
    }
    rows = [
        (
            each.name,
            "baked" if each.slot is None else f"slot {each.slot}",
            _origin_text(each),
            "" if each.is_enabled else "disabled",
        )
        for each in listing.classes
    ]
    head = (
        f"version {listing.version}, {len(listing.classes)} classes, {listing.num_free_slots} of {listing.capacity} "
        f"slots free"
    )
    print_result(result, text=f"{head}\n{columns(rows)}")


@click.command(short_help="Let answers choose a class again.")
@click.argument("bundle", type=BUNDLE)
@click.argument("name", shell_complete=_complete_class)
@format_option
def enable(bundle: Path, name: str) -> None:
    """Let the answers of BUNDLE choose the class NAME again."""
    from icis_deploy.runtime.operations import enable as enable_class

    _print_switch(bundle, name, enabled=True, changed=enable_class(bundle, name))


@click.command(short_help="Leave a class out of answers.")
@click.argument("bundle", type=BUNDLE)
@click.argument("name", shell_complete=_complete_class)
@format_option
def disable(bundle: Path, name: str) -> None:
    """Leave the class NAME out of the answers of BUNDLE; it keeps its row."""
    from icis_deploy.runtime.operations import disable as disable_class

    _print_switch(bundle, name, enabled=False, changed=disable_class(bundle, name))


def _print_switch(bundle: Path, name: str, *, enabled: bool, changed: bool) -> None:
    state = "enabled" if enabled else "disabled"
    text = f"{name} is {state} now." if changed else f"{name} was {state} already."
    print_result(
        {"bundle": str(bundle), "class": name, "is_enabled": enabled, "changed": changed}, text=text, after_change=True
    )


def _origin_text(listed: ListedClass) -> str:
    if listed.signed_by is None:
        return {"exported": "", "unsigned": "UNSIGNED", "unknown": "signer not noted"}.get(listed.origin, listed.origin)
    return f"signed by {listed.signed_by[:16]}…{', NOT TRUSTED any more' if listed.is_revoked else ''}"


def _doubtful_text(origin: Origin) -> str:
    count = len(origin.columns)
    classes = f"{count} {'class' if count == 1 else 'classes'} in effect"
    if origin.signed_by is None:
        return f"UNSIGNED: {classes}; `icis-deploy classes` lists them."
    return f"Signed by {origin.signed_by[:16]}…, NOT TRUSTED any more: {classes}; `icis-deploy classes` lists them."


def _entry(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "time": entry.time.isoformat(),
        "action": entry.action,
        "version": entry.version,
        "num_added": entry.num_added,
        "num_replaced": entry.num_replaced,
        "num_removed": entry.num_removed,
        "class": entry.class_name,
        "payload_sha256": entry.payload_sha256,
        "signed_by": entry.signed_by,
        "changed_answers": entry.changed_answers,
        "allowed_past_guard": entry.allowed_past_guard,
        "allowed_revoked": entry.allowed_revoked,
        "photos_sha256": list(entry.photos_sha256),
    }


def _history_text(entries: list[HistoryEntry] | tuple[HistoryEntry, ...]) -> str:
    return columns([_history_row(entry) for entry in entries], right=[0])


def _history_row(entry: HistoryEntry) -> tuple[str, ...]:
    if entry.class_name is not None:
        what = printable(entry.class_name, max_length=MAX_SHOWN)
    elif entry.action == "trust":
        what = "trusted keys replaced"
    elif entry.action == "replace":
        what = "bundle replaced"
    elif entry.action == "rollback":
        what = "the last change undone"
        what += ", ALLOWED: classes by a key that is not trusted any more" if entry.allowed_revoked else ""
    else:
        what = f"+{entry.num_added} ~{entry.num_replaced} -{entry.num_removed} classes"
    if entry.photos_sha256:
        num_photos = len(entry.photos_sha256)
        what += f" ({num_photos} photo{'s' if num_photos > 1 else ''})"
    signed = "UNSIGNED" if entry.signed_by is None else f"signed by {entry.signed_by[:16]}…"
    signer = "by an operator" if entry.payload_sha256 is None else signed
    if entry.changed_answers is not None:
        past = "ALLOWED past the guard: " if entry.allowed_past_guard else ""
        signer += f", {past}{percent(entry.changed_answers)} of answers on known classes changed"
    return (
        str(entry.sequence),
        f"{entry.time:%Y-%m-%d %H:%M:%S}",
        printable(entry.action, max_length=MAX_SHOWN),
        f"version {entry.version}",
        what,
        signer,
    )
