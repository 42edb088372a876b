"""`icis-deploy apply`, `rollback`, `history`, `classes`, `enable` and `disable`: what an operator does to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import BUNDLE, EXISTING_FILE
from icis_deploy.cli.output import format_option, library_warnings, print_result
from icis_deploy.common.terminal_text import MAX_SHOWN, columns, percent, printable

if TYPE_CHECKING:
    from icis_deploy.runtime.state.journal import HistoryEntry


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
@click.argument("more_images", metavar="", nargs=-1, type=click.Path(path_type=Path))
@click.option("--descriptor", "descriptors", type=EXISTING_FILE, help="Descriptors, NAME's among them: .npz, .csv.")
@click.option(
    "--images",
    multiple=True,
    metavar="IMAGE...",
    type=click.Path(path_type=Path),
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
@format_option
def rollback(bundle: Path) -> None:
    """Take BUNDLE back to the state before its last update."""
    from icis_deploy.runtime.operations import rollback as roll_back

    entry = roll_back(bundle)
    print_result({"bundle": str(bundle), "entry": _entry(entry)}, text=_history_text([entry]), after_change=True)


@click.command(short_help="List what was changed in a bundle.")
@click.argument("bundle", type=BUNDLE)
@format_option
def history(bundle: Path) -> None:
    """List the changes of BUNDLE, the oldest first, and who signed each."""
    from icis_deploy.bundle.manifest import load_manifest
    from icis_deploy.runtime.operations import history as load_history

    entries = load_history(bundle)
    described = load_manifest(bundle)
    text = _history_text(entries) if entries else "Nothing was changed since the export."
    if described.capacity and described.max_changed_answers is None:
        text += "\nThis bundle has no reference images: no update is refused for the answers that it changes."
    result = {
        "bundle": str(bundle),
        "max_changed_answers": described.max_changed_answers,
        "history": [_entry(entry) for entry in entries],
    }
    print_result(result, text=text)


@click.command(short_help="List the classes that a bundle knows.")
@click.argument("bundle", type=BUNDLE)
@format_option
def classes(bundle: Path) -> None:
    """List the classes of BUNDLE in the order of its logits, with their slots."""
    from icis_deploy.runtime.operations import classes as list_classes

    listing = list_classes(bundle)
    result = {
        "bundle": str(bundle),
        "version": listing.version,
        "capacity": listing.capacity,
        "num_free_slots": listing.num_free_slots,
        "classes": [{"name": each.name, "slot": each.slot, "is_enabled": each.is_enabled} for each in listing.classes],
    }
    rows = [
        (each.name, "baked" if each.slot is None else f"slot {each.slot}", "" if each.is_enabled else "disabled")
        for each in listing.classes
    ]
    head = (
        f"version {listing.version}, {len(listing.classes)} classes, {listing.num_free_slots} of {listing.capacity} "
        f"slots free"
    )
    print_result(result, text=f"{head}\n{columns(rows)}")


@click.command(short_help="Let answers choose a class again.")
@click.argument("bundle", type=BUNDLE)
@click.argument("name")
@format_option
def enable(bundle: Path, name: str) -> None:
    """Let the answers of BUNDLE choose the class NAME again."""
    from icis_deploy.runtime.operations import enable as enable_class

    _print_switch(bundle, name, enabled=True, changed=enable_class(bundle, name))


@click.command(short_help="Leave a class out of answers.")
@click.argument("bundle", type=BUNDLE)
@click.argument("name")
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
