"""`icis-deploy verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import (
    BUNDLE,
    EXISTING_FILE,
    INPUTS,
    max_seen_loss_option,
    model_options,
    model_source,
    runtime_option,
)
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.common.terminal_text import points_text, printable
from icis_deploy.errors import GateFailedError


@click.command(short_help="Compare a bundle with the model it was made from.")
@click.argument("bundle", type=BUNDLE)
@click.option("--against", "model", metavar="MODEL", required=True, help="The model that the bundle was made from.")
@click.option(
    "--images",
    type=INPUTS,
    help="Inputs to compare on, in any form of `evaluate`; path or URI. Default: seeded ones.",
)
@max_seen_loss_option(
    "Exit with 1 if new classes cost the seen ones more points of accuracy. Default: what the updates state."
)
@click.option(
    "--trust",
    type=EXISTING_FILE,
    multiple=True,
    help="A public key that must have signed the bundle; may be given several times. Default: it may be unsigned.",
)
@runtime_option
@model_options
@format_option
def verify(
    bundle: Path,
    model: str,
    images: Path | str | None,
    max_seen_loss: float | None,
    trust: tuple[Path, ...],
    runtime: str,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
) -> None:
    """Compare BUNDLE with the model that it was made from.

    Compares the state that a device with BUNDLE answers from now: with every update since the export, without disabled
    classes. Runs both on the same inputs and compares logits and predictions. The exit code is 1 if they disagree, or
    if new classes cost the seen ones more accuracy than is allowed, with 95 % confidence.
    It is 6 if a file was changed since the bundle was written or signed, or, with --trust, if none of these keys signed
    it.
    """
    from icis_deploy.api.signing import signers_of
    from icis_deploy.api.signing import verify_bundle as verify_signature
    from icis_deploy.api.verify import verify as verify_bundle
    from icis_deploy.runtime.operations import classes as list_classes

    signers = (verify_signature(bundle, trust=trust),) if trust else signers_of(bundle)
    source = model_source(model, weights, input_shape, head_node)
    disagrees, cure = True, ""
    try:
        found = verify_bundle(bundle, against=source, images=images, runtime=runtime, max_seen_loss=max_seen_loss)
    except GateFailedError as error:
        found, cure = error.reports, command_line_hint(error.hint or "", all_commands(), command="verify")
        disagrees = any(report.parity_failures for report in found)
    reports = [report.to_json() for report in found]
    passed = all(report["passed"] for report in reports)
    listing = list_classes(bundle)
    disabled = [each.name for each in listing.classes if not each.is_enabled]
    state = {
        "version": listing.version,
        "num_classes": len(listing.classes),
        "num_in_slots": sum(each.slot is not None for each in listing.classes),
        "disabled": disabled,
    }
    result = {
        "bundle": str(bundle),
        "against": model,
        "runtime": runtime,
        "passed": passed,
        "state": state,
        "signed_by": list(signers),
        "is_signature_verified": bool(trust),
        "parity": reports,
    }
    signature = f"signature: {signature_text(signers, is_verified=bool(trust))}"
    text = f"{_state_text(state)}\n{parity_text(reports)}\n{signature}"
    print_result(result, text=text, status="ok" if passed else "failed")
    if not signers:
        note(f"Warning: {bundle} is not signed: whoever can write to it on its way can exchange it.")
    if not passed:
        # The report is already on stdout, so the exit code says the rest.
        what = f"disagrees with {model}" if disagrees else "costs seen classes more than is allowed"
        note(f"Error: {bundle} {what}. {cure}".rstrip())
        raise click.exceptions.Exit(GateFailedError.exit_code)


def _state_text(state: Mapping[str, Any]) -> str:
    """Say which state was compared: the one that a device with this bundle answers from now."""
    in_slots = f", {state['num_in_slots']} of them in slots" if state["num_in_slots"] else ""
    disabled = f"; disabled, in no answer and not compared: {', '.join(state['disabled'])}" if state["disabled"] else ""
    return f"State {state['version']}, as a device serves it: {state['num_classes']} classes{in_slots}{disabled}."


def signature_text(signers: Sequence[str], *, is_verified: bool = False) -> str:
    """Return who signed a bundle, for people.

    Args:
        signers: Ids of their keys; none for an unsigned bundle.
        is_verified: Whether their public keys were given, and the signature fits.
    """
    if not signers:
        return "none; `icis-deploy sign-bundle` signs it"
    ids = ", ".join(f"{printable(each, max_length=16)}…" for each in signers)
    return f"by {ids}" if is_verified else f"says it is by {ids} (`icis-deploy verify-bundle` verifies that)"


def parity_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return parity reports for people: a verdict and the measurements for each comparison."""
    return "\n".join(_report_text(report) for report in reports)


def _report_text(report: Mapping[str, Any]) -> str:
    profile = report["profile"]
    lines = [
        f"{'PASS' if report['passed'] else 'FAIL'}  against the {report['compared_with']}",
        f"      {report['num_images']} inputs x {report['num_classes']} classes; max scaled error "
        f"{_error_text(report['max_scaled_error'])} (limit {profile['max_scaled_error']:.0e}), p99.9 "
        f"{_error_text(report['p999_scaled_error'])} (limit {profile['p999_scaled_error']:.0e})",
        f"      top-1 agreement {100 * report['agreement']:.2f} % (99 % sure of at least "
        f"{100 * report['agreement_lower_bound']:.2f} %), {report['num_disagreements']} disagreements, "
        f"{report['num_near_ties']} near-ties",
    ]
    if report.get("accuracy"):
        lines.append(f"      {_accuracy_text(report['accuracy'])}")
    loss = report.get("seen_loss")
    if loss and loss["verdict"] != "over":  # otherwise a failure says it
        lines.append(f"      {_seen_loss_text(loss)}")
    lines.extend(f"      not kept: {failure}" for failure in report["failures"])
    return "\n".join(lines)


def _seen_loss_text(loss: Mapping[str, Any]) -> str:
    from icis_deploy.metrics.seen_loss import points_lost

    interval = f"95 % interval {100 * loss['interval']['low']:.1f} to {100 * loss['interval']['high']:.1f}"
    said = {None: "no budget is stated", "within": "within", "cannot tell": "not shown to be over"}
    budget = "" if loss["max_seen_loss"] is None else f" the budget of {points_text(loss['max_seen_loss'])}"
    return (
        f"new classes cost {points_lost(loss['before'], loss['after'])} points of seen accuracy, "
        f"{100 * loss['before']:.1f} -> {100 * loss['after']:.1f} % on {loss['num_images']} images ({interval}): "
        f"{said[loss['verdict']]}{budget}"
    )


def _error_text(error: float | None) -> str:
    """Return a scaled error; JSON has none where the exported model gave a NaN or an infinity."""
    return "infinite" if error is None else f"{error:.2g}"


def _accuracy_text(accuracy: Mapping[str, Any]) -> str:
    if accuracy["seen_before"] is None:
        return (
            f"the same class on {100 * accuracy['seen_after']:.2f} % of {accuracy['num_images']} images without labels"
        )
    pairs = [("seen classes", accuracy["seen_before"], accuracy["seen_after"])]
    pairs += [("H", accuracy["H_before"], accuracy["H_after"])] if accuracy["H_before"] is not None else []
    shown = ", ".join(f"{name} {100 * before:.1f} -> {100 * after:.1f} %" for name, before, after in pairs)
    return f"accuracy on {accuracy['num_images']} labelled images: {shown}"
