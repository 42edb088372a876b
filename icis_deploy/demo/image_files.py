"""Write drawn images as PNG files, with the list that says what each one shows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from icis_deploy.common.files import write_failure


def save_images(
    folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str], *, list_name: str
) -> Path:
    """Write one PNG per image, named after its class, and the list of all.

    Args:
        folder: Made where it does not exist. Images go to its folder `images`; those of other lists stay.
        images: `(num_images, height, width, 3)` uint8, RGB.
        labels: `(num_images,)`, indices into `class_names`.
        class_names: `(num_classes,)`.
        list_name: File name of the list, such as `images.csv`; columns `file` (relative to `folder`) and `class`.

    Returns:
        The list's path.

    Raises:
        StorageError: If a file cannot be written; those written before it stay.
    """
    counts = dict.fromkeys(class_names, 0)
    path = folder / list_name
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class"])
            for image, label in zip(images, labels, strict=True):
                name = class_names[label]
                counts[name] += 1
                relative = f"images/{name.replace(' ', '-')}-{counts[name]:03d}.png"
                Image.fromarray(image).save(folder / relative)
                writer.writerow([relative, name])
    except OSError as error:
        raise write_failure(folder, error, what=f"the images to {folder}") from error
    return path
