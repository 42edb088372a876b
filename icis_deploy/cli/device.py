"""`icis-deploy apply`, `rollback`, `history`, `classes`, `enable` and `disable`: what an operator does to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE
from icis_deploy.cli.output import format_option, print_result
from icis_deploy.common.terminal_text import MAX_SHOWN, columns, percent, printable

if TYPE_CHECKING:
    from icis_deploy.runtime.state.journal import HistoryEntry


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


@click.command(short_help="Teach a bundle a class from its descriptor.")
@click.argument("bundle", type=BUNDLE)
@click.argument("name")
@click.option(
    "--descriptor", "descriptors", type=EXISTING_FILE, required=True, help="Descriptors, NAME's among them: .npz, .csv."
)
@_allow_changed_answers
@format_option
def teach(bundle: Path, name: str, descriptors: Path, allow_changed_answers: bool) -> None:
    """Teach BUNDLE the class NAME from its descriptor, on the device itself.

    The bundle's generator makes the row (`icis-deploy export --generator`). A class that is unlike all seen ones, or
    takes too many of their answers, is refused with exit code 1, one that could not be told from another with 3; the
    bundle stays as it was.
    """
    from icis_deploy.descriptors.files import load_descriptors
    from icis_deploy.runtime.operations import teach as teach_class

    described = load_descriptors(descriptors).select((name,))
    descriptor = {block.name: described.block(block.name)[0] for block in described.blocks}
    entry = teach_class(bundle, name, descriptor, allow_changed_answers=allow_changed_answers)
    print_result(
        {"bundle": str(bundle), "class": name, "entry": _entry(entry)}, text=_history_text([entry]), after_change=True
    )


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
