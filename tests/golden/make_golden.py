"""Write the golden files: one of each file format, as this release writes it.

    python tests/golden/make_golden.py

They were written once, for version 1 of the formats, and every later release must read them. So the script refuses to
replace any: a new version of a format gets a new folder next to `v1`.
"""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from testing.bundles import (
    Clock,
    images,
    make_update,
    seen_head,
    trust,
    write_bundle,
    write_signed,
)

FOLDER = Path(__file__).resolve().parent / "v1"
TIME = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)


def golden_update() -> ClassUpdate:
    """The class update that is in `class-update.dsse`: every field has a value of its own."""
    return make_update(
        "okapi",
        "Bärtierchen 水熊",
        version=3,
        expires=datetime(2100, 1, 1, tzinfo=timezone.utc),
        self_test_seed=5,
        provenance={"method": "golden", "numbers": [1, 2.5, None], "nested": {"ok": True}},
        base_fingerprint=seen_head().fingerprint,
    )


def main() -> None:
    """Write the files."""
    FOLDER.mkdir()
    keys, next_keys = keygen(FOLDER / "release-key"), keygen(FOLDER / "next-key")
    write_signed(FOLDER / "class-update.dsse", golden_update(), keys.private_path)
    write_signed(FOLDER / "trusted-keys.dsse", trusted_keys_from_files([next_keys.public_path]), keys.private_path)
    folder = write_bundle(FOLDER / "bundle")
    trust(folder, keys.public_path)
    opened = Device.open(folder)
    device = Device(
        folder=folder, bundle=opened.bundle, session=session_of(opened), state=state_of(opened), clock=Clock(TIME)
    )
    device.apply(FOLDER / "class-update.dsse")
    device.apply(FOLDER / "trusted-keys.dsse")
    device.disable("dog")
    expected = {
        "rows": golden_update().rows.tolist(),
        "images": images(2).tolist(),
        "logits": device.logits(images(2)).values.tolist(),
        "key_ids": [keys.key_id, next_keys.key_id],
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    # Nobody shall sign with these: only the public halves are kept.
    keys.private_path.unlink()
    next_keys.private_path.unlink()


if __name__ == "__main__":
    try:
        main()
    except FileExistsError:
        raise SystemExit(f"{FOLDER} is there already, and golden files are never replaced.") from None
    except BaseException:
        shutil.rmtree(FOLDER)
        raise
