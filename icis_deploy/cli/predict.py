"""`icis-deploy predict`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, runtime_option
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.common.terminal_text import columns, percent


@click.command(short_help="Classify images with a bundle.")
@click.argument("bundle", type=BUNDLE)
@click.argument("images", type=EXISTING_FILE, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes per image.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images per run.")
@runtime_option
@format_option
def predict(bundle: Path, images: tuple[Path, ...], top: int, batch_size: int, runtime: str) -> None:
    """Classify each IMAGE with BUNDLE.

    An IMAGE is an image file, or a file of arrays as the model takes them: .npy, .npz, .safetensors or .parquet.
    """
    from icis_deploy.head.class_names import quoted
    from icis_deploy.images.python_values import single_values
    from icis_deploy.runtime.device import Device, prepare_named
    from icis_deploy.runtime.open_bundle import input_form

    device = Device.open(bundle, runtime=runtime)
    form = input_form(device.bundle)
    named = (one for image in images for one in single_values(image, form))
    keys: list[str] = []
    predictions = []
    while part := list(islice(named, batch_size)):
        keys += [key for key, _ in part]
        predictions += device.predict(prepare_named(device, part), top=top)
    disabled = device.disabled_classes()
    result = {
        "bundle": str(bundle),
        "disabled": list(disabled),
        "predictions": [
            {
                "image": key,
                **prediction.to_dict(),
            }
            for key, prediction in zip(keys, predictions, strict=True)
        ],
    }
    rows = [
        (key if rank == 0 else "", percent(probability), name)
        for key, prediction in zip(keys, predictions, strict=True)
        for rank, (name, probability) in enumerate(zip(prediction.class_names, prediction.probabilities, strict=True))
    ]
    print_result(result, text=columns(rows, right=[1]))
    if disabled:
        note(f"Disabled, and in no answer: {quoted(disabled)}.")
