"""Write the golden files of what photos need: see `make_golden.py`, which wrote `v1`.

    python tests/golden/make_golden_photos.py

They hold a bundle's `few_shot.safetensors` of schema 1, and the journal of a device that was taught two classes by
photos.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from icis_deploy.bundle.few_shot import FewShot
from icis_deploy.runtime.device import Device
from testing.bundles import images, write_bundle
from testing.references import add_few_shot, add_reference, make_few_shot

FOLDER = Path(__file__).resolve().parent / "photos"


def few_shot() -> FewShot:
    """What is in `few_shot.safetensors`."""
    return make_few_shot(level=-0.25, prior_photos=2.0, max_seen_loss=0.05)


def main() -> None:
    """Write the files."""
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as name:
        bundle = add_few_shot(add_reference(write_bundle(Path(name) / "bundle")), few_shot())
        device = Device.open(bundle)
        device.teach("okapi", images=images(2, seed=1))
        device.teach("Bärtierchen 水熊", images=images(1, seed=2))
        for source in ("few_shot.safetensors", "state/journal.json"):
            shutil.copy(bundle / source, FOLDER)


if __name__ == "__main__":
    main()
