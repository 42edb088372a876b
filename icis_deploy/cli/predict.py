"""`icis-deploy predict`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, runtime_option
from icis_deploy.cli.output import format_option, print_result
from icis_deploy.common.terminal_text import columns, percent


@click.command(short_help="Classify images with a bundle.")
@click.argument("bundle", type=BUNDLE)
@click.argument("images", type=EXISTING_FILE, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes per image.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images per run.")
@runtime_option
@format_option
def predict(bundle: Path, images: tuple[Path, ...], top: int, batch_size: int, runtime: str) -> None:
    """Classify each IMAGE with BUNDLE."""
    from icis_deploy.runtime.device import Device

    device = Device.open(bundle, runtime=runtime)
    predictions = [
        prediction
        for start in range(0, len(images), batch_size)
        for prediction in device.predict(images[start : start + batch_size], top=top)
    ]
    result = {
        "bundle": str(bundle),
        "predictions": [
            {
                "image": str(path),
                "version": prediction.version,
                "classes": [
                    {"name": name, "probability": probability}
                    for name, probability in zip(prediction.class_names, prediction.probabilities, strict=True)
                ],
            }
            for path, prediction in zip(images, predictions, strict=True)
        ],
    }
    rows = [
        (str(path) if rank == 0 else "", percent(probability), name)
        for path, prediction in zip(images, predictions, strict=True)
        for rank, (name, probability) in enumerate(zip(prediction.class_names, prediction.probabilities, strict=True))
    ]
    print_result(result, text=columns(rows, right=[1]))
