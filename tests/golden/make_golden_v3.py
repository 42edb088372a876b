"""Write the golden files of rows that have an arbiter: see `make_golden.py`, which wrote `v1`.

    python tests/golden/make_golden_v3.py

They hold a signed class update of schema 2, a bundle whose model takes arbiters, with a manifest of schema 3, its
constants and a state with a slot table of schema 2, and a generator's metadata of schema 2.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from icis_deploy.bundle.generator_metadata import serialize_metadata
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen
from testing.bundles import Clock, images, make_update, trust, write_bundle, write_signed
from tests.golden.make_golden_v2 import METADATA as PLAIN_METADATA

FOLDER = Path(__file__).resolve().parent / "v3"
TIME = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
METADATA = replace(PLAIN_METADATA, arbiter=(0.5, -0.25, 2.0, 0.0, -1.5))
ARBITER = np.array([[0.5, -1.25, 1e-3, 2.0, -0.75], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)


def golden_update() -> ClassUpdate:
    """The class update that is in `class-update.dsse`."""
    return make_update(
        "okapi",
        "Bärtierchen 水熊",
        version=3,
        expires=datetime(2100, 1, 1, tzinfo=timezone.utc),
        self_test_seed=5,
        provenance={"method": "golden", "max_seen_loss": 0.02},
        arbiter=ARBITER,
    )


def main() -> None:
    """Write the files."""
    FOLDER.mkdir()
    keys = keygen(FOLDER / "release-key")
    write_signed(FOLDER / "class-update.dsse", golden_update(), keys.private_path)
    (FOLDER / "generator-metadata.json").write_text(serialize_metadata(METADATA) + "\n")
    folder = write_bundle(FOLDER / "bundle", arbiter=True)
    trust(folder, keys.public_path)
    opened = Device.open(folder)
    device = Device(folder=folder, bundle=opened.bundle, session=opened.session, state=opened.state, clock=Clock(TIME))
    device.apply(FOLDER / "class-update.dsse")
    expected = {
        "rows": golden_update().rows.tolist(),
        "images": images(2).tolist(),
        "logits": device.logits(images(2)).values.tolist(),
    }
    device.disable("dog")
    expected["logits_without_dog"] = device.logits(images(2)).values.tolist()
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    keys.private_path.unlink()  # nobody shall sign with it


if __name__ == "__main__":
    try:
        main()
    except FileExistsError:
        raise SystemExit(f"{FOLDER} is there already, and golden files are never replaced.") from None
    except BaseException:
        shutil.rmtree(FOLDER)
        raise
