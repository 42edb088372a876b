"""`icis-deploy export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.export_options import (
    backbone_options,
    backbone_settings,
    engine_options,
    engine_settings,
    form_options,
    split_form,
)
from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import (
    EXISTING_FILE,
    EXISTING_PATH,
    INPUTS,
    NEW_PATH,
    PercentOrNone,
    classes_option,
    max_seen_loss_option,
    model_options,
    model_source,
)
from icis_deploy.cli.output import format_option, library_warnings, print_result
from icis_deploy.cli.parameter_types import Choice
from icis_deploy.cli.signing_options import optional_signing_key_from, signing_options
from icis_deploy.cli.verify import parity_text, signature_text
from icis_deploy.common.terminal_text import columns, percent

if TYPE_CHECKING:
    from exporters.targets.registry import BuiltTarget
    from icis_deploy.bundle.manifest import Bundle

TARGET_NAMES = (
    *(
        "onnx",
        "openvino",
        "litert",
        "mnn",
        "executorch",
        "ncnn",
        "qnn",
        "coreml",
        "ort-amd64",
        "ort-arm",
        "tensorrt",
        "tensorrt-rtx",
        "backbone",
        "triton",
        "web",
        "all",
    ),
)


@click.command(short_help="Write a checked bundle that knows the new classes.")
@click.argument("model")
@classes_option
@click.option(
    "--update",
    "updates",
    type=EXISTING_FILE,
    multiple=True,
    help="A class update to put in; may be given several times, applied in order.",
)
@click.option(
    "--head",
    type=Choice(["fused", "updatable"]),
    default="fused",
    show_default=True,
    help="fused: all rows in one layer, the fastest. updatable: rows can be changed on the device.",
)
@click.option(
    "--capacity",
    type=click.IntRange(min=1),
    help="Number of slots of an updatable head. Default: 256, or twice as many as are filled.",
)
@click.option(
    "--arbiter",
    type=Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="auto: new classes are favoured image by image where an update says so. off: by a constant alone.",
)
@click.option(
    "--preprocess",
    type=EXISTING_FILE,
    help="How images are prepared, JSON: resize, crop, mean, std and more. Default: what the model states.",
)
@click.option(
    "--images",
    type=INPUTS,
    help="Inputs for the gate, in any form of `evaluate`; path or URI. Default: seeded inputs.",
)
@max_seen_loss_option(
    "Points of seen accuracy, on --images, that the new classes may cost. Default: what the updates state."
)
@click.option(
    "--seen-images",
    type=INPUTS,
    metavar="LIST|FOLDER",
    help="Images of classes that the model knows, or .npz with features and labels: on them devices look for answers "
    "that an update changes. Default: those among --images, or features drawn from the head.",
)
@click.option(
    "--max-changed-answers",
    type=PercentOrNone(),
    default="5",
    show_default=True,
    metavar="PERCENT|none",
    help="How many of these answers one update may change on a device; none leaves the check out.",
)
@form_options
@click.option(
    "--trust",
    type=EXISTING_FILE,
    multiple=True,
    help="A public key whose updates the device takes; may be given several times.",
)
@click.option(
    "--generator", type=EXISTING_FILE, help="From export-generator: lets devices learn classes from descriptors."
)
@click.option(
    "--target",
    "targets",
    type=Choice(TARGET_NAMES),
    multiple=True,
    help="What the bundle holds besides model.onnx; may be given several times. all: what this machine can build.",
)
@click.option(
    "--onnxruntime-web",
    type=EXISTING_PATH,
    metavar="FOLDER",
    help="web: a node_modules folder with onnxruntime-web, which is copied next to the page.",
)
@engine_options
@signing_options("Sign the bundle with this private key.")
@backbone_options
@click.option("--out", type=NEW_PATH, required=True, help="The bundle's folder.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@model_options
@format_option
def export(
    model: str,
    classes: Path | None,
    updates: tuple[Path, ...],
    head: str,
    capacity: int | None,
    arbiter: str,
    preprocess: Path | None,
    images: Path | str | None,
    max_seen_loss: float | None,
    seen_images: Path | str | None,
    max_changed_answers: float | str,
    trust: tuple[Path, ...],
    generator: Path | None,
    targets: tuple[str, ...],
    onnxruntime_web: Path | None,
    out: Path,
    overwrite: bool,
    **grouped: Any,
) -> None:
    """Write MODEL with its new classes as a bundle, if it passes the parity gate.

    A bundle holds model.onnx and a manifest. If the gate fails there is none: what was built is in OUT.rejected with
    the report, and the exit code is 1.
    """
    from icis_deploy.api.export import ExportOptions
    from icis_deploy.api.export import export as export_bundle
    from icis_deploy.bundle.target_options import TargetOptions

    source = model_source(model, *(grouped.pop(name) for name in ("weights", "input_shape", "head_node")))
    key = optional_signing_key_from(grouped)
    form, built_with = split_form(grouped)
    backbone, engine = backbone_settings(built_with)
    options = ExportOptions(
        head=head,
        capacity=capacity,
        arbiter=arbiter,
        preprocess=preprocess,
        images=images,
        max_seen_loss=max_seen_loss,
        seen_images=seen_images,
        max_changed_answers=None if isinstance(max_changed_answers, str) else max_changed_answers,
        form=form,
        trust=trust,
        generator=generator,
        targets=targets,
        target_options=TargetOptions(
            engine=engine_settings(**engine), backbone=backbone, onnxruntime_web=onnxruntime_web
        ),
        key=key,
    )
    built: list[BuiltTarget] = []
    with library_warnings() as messages:
        bundle = export_bundle(
            source,
            classes=classes,
            out=out,
            updates=updates,
            options=options,
            on_target=built.append,
            overwrite=overwrite,
        )
    _print(out, bundle, built, [command_line_hint(one, all_commands(), command="export") for one in messages])


def _print(out: Path, bundle: Bundle, built: Sequence[BuiltTarget], warned: Sequence[str]) -> None:
    from icis_deploy.api.signing import signers_of

    targets = [_targets_text(built, bundle.precision)] if built else []
    warnings = ["\n".join(f"Warning: {message}" for message in warned)] if warned else []
    signers = signers_of(out)
    text = "\n\n".join([_text(out, bundle, signers), *targets, parity_text(bundle.parity), *warnings])
    result = _result(out, bundle, built) | {"signed_by": list(signers), "warnings": list(warned)}
    print_result(result, text=text, after_change=True)


def _result(out: Path, bundle: Bundle, built: Sequence[BuiltTarget]) -> dict[str, Any]:
    return {
        "bundle": str(out),
        "head": bundle.head_kind,
        "num_seen": bundle.num_seen,
        "num_added": _num_added(bundle),
        "capacity": bundle.capacity,
        "arbiter": bundle.arbiter,
        "max_changed_answers": bundle.max_changed_answers,
        "reference_source": bundle.reference_source,
        "precision": bundle.precision,
        "head_precision": bundle.head_precision,
        "files": {name: entry.size_bytes for name, entry in bundle.files.items()},
        "parity": list(bundle.parity),
        "targets": [
            {
                "name": target.name,
                "precision": bundle.precision,
                "files": list(target.files),
                "size_bytes": target.size_bytes,
                "build_seconds": target.build_seconds,
                "gate": _gate_verdict(target),
                "reason": _reason(target),
            }
            for target in built
        ],
    }


def _text(out: Path, bundle: Bundle, signers: Sequence[str]) -> str:
    return columns(
        [
            ("bundle", str(out)),
            ("head", f"{bundle.head_kind}, {bundle.num_seen} seen classes, {_num_added(bundle)} added"),
            *([("precision", bundle.precision)] if bundle.precision != "fp32" else []),
            *([("rows stored in", bundle.head_precision)] if bundle.head_precision != "fp32" else []),
            *([("slots", str(bundle.capacity)), ("guard", _guard_text(bundle))] if bundle.capacity else []),
            ("signature", signature_text(signers)),
            *((name, f"{entry.size_bytes / 1e6:.1f} MB") for name, entry in bundle.files.items()),
        ]
    )


def _guard_text(bundle: Bundle) -> str:
    if bundle.max_changed_answers is None:
        return "none: devices take updates whatever answers they change"
    limit = percent(bundle.max_changed_answers)
    return f"an update may change {limit} of the answers on known classes (reference: {bundle.reference_source})"


def _targets_text(built: Sequence[BuiltTarget], precision: str) -> str:
    titles = ("target", "precision", "size", "build", "gate")
    rows = [(target.name, *_figures(target, precision), _gate_verdict(target)) for target in built]
    reasons = [f"{target.name}: {_reason(target)}" for target in built if target.reason]
    return "\n".join([columns([titles, *rows], right=[2, 3]), *reasons])


def _figures(target: BuiltTarget, precision: str) -> tuple[str, str, str]:
    if not target.files:
        return "-", "-", "-"
    return precision, f"{target.size_bytes / 1e6:.1f} MB", f"{target.build_seconds:.1f} s"


def _gate_verdict(target: BuiltTarget) -> str:
    if not target.files:
        return "not built"
    if target.reports and target.reason:
        return "graph passed"
    return "passed" if target.reports else "not run"


def _reason(target: BuiltTarget) -> str | None:
    """Return why a target was not built or tested; it may be an error's message, whose hint names parameters."""
    return None if target.reason is None else command_line_hint(target.reason, all_commands(), command="export")


def _num_added(bundle: Bundle) -> int:
    return sum(len(update["added"]) for update in bundle.updates)
