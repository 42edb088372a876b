"""`icis-deploy compact`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, NEW_PATH
from icis_deploy.cli.output import format_option, noted_warnings, print_result
from icis_deploy.cli.signing_options import optional_signing_key_from, signing_options
from icis_deploy.cli.verify import signature_text
from icis_deploy.common.terminal_text import columns


@click.command(short_help="Bake a bundle's slots into its model, for free ones.")
@click.argument("bundle", type=BUNDLE)
@click.option("--out", type=NEW_PATH, required=True, help="The new bundle's folder.")
@click.option("--capacity", type=click.IntRange(min=1), help="Number of slots. Default: as many as BUNDLE has.")
@click.option(
    "--images",
    type=EXISTING_FILE,
    help="Inputs for the parity gate: a list, or a file of arrays. Default: seeded inputs.",
)
@signing_options("Sign the new bundle with this private key; the old one's signature does not fit it.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out.")
@format_option
def compact(
    bundle: Path,
    out: Path,
    capacity: int | None,
    images: Path | None,
    overwrite: bool,
    **signing: Any,
) -> None:
    """Write a bundle whose model has baked the classes in the slots of BUNDLE, with free slots after them.

    Its model stays what it is, in whatever precision and form. It keeps version, trusted keys, disabled classes and
    history, and takes updates for the same head as before; baked classes can be disabled, but not replaced or removed.
    It gives the logits that BUNDLE gives or is not written (exit code 1). A workbench's command; a running device takes
    the new bundle over with Device.replace, without a pause.
    """
    from icis_deploy.api.compact import compact as compact_bundle
    from icis_deploy.api.signing import signers_of
    from icis_deploy.runtime.operations import classes

    key = optional_signing_key_from(signing)
    with noted_warnings():
        made = compact_bundle(bundle, out=out, capacity=capacity, images=images, key=key, overwrite=overwrite)
    signers = signers_of(out)
    num_baked, num_free = len(made.class_names) - made.num_seen, classes(out).num_free_slots
    result = {
        "bundle": str(out),
        "version": made.head_version,
        "num_seen": made.num_seen,
        "num_baked": num_baked,
        "num_free_slots": num_free,
        "signed_by": list(signers),
    }
    text = [
        ("bundle", str(out)),
        ("version", str(made.head_version)),
        ("head", f"updatable, {made.num_seen} seen classes, {num_baked} baked after them"),
        ("slots", f"{made.capacity}, {num_free} free"),
        ("signature", signature_text(signers)),
    ]
    print_result(result, text=columns(text), after_change=True)
