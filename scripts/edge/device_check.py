"""A device's whole life, with its answers written to a file, so that two machines can be compared.

    python scripts/edge/device_check.py prepare FOLDER [--bundle BUNDLE] one bundle a machine, and signed updates
    python scripts/edge/device_check.py run FOLDER/x86 --out x86.json      open, predict, apply, roll back, open again
    python scripts/edge/device_check.py compare x86.json arm64.json   logits within 1e-5, same predictions and history

`run` needs no more than a device has: no torch, no onnx.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np

from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device

MACHINES = ("x86", "arm64")
NUM_INPUTS = 2
STEPS = (("okapi", "bongo"), ("gnu",))
"""Classes that each update adds."""

NUM_ADDED = sum(len(names) for names in STEPS)
TOLERANCE = 1e-5
"""Of a logit, as a fraction of the greatest one."""


def prepare(folder: Path, bundle: Path | None) -> None:
    """Write a bundle for each machine, and two updates signed by a key that both trust."""
    from icis_deploy.bundle.manifest import load_manifest
    from icis_deploy.updates.envelope import envelope_of, serialize_envelope
    from icis_deploy.updates.signing import keygen, load_private_key

    keys = keygen(folder / "KEY")
    for machine in MACHINES:
        if bundle is None:
            from testing.bundles import write_bundle

            write_bundle(folder / machine)
        else:
            shutil.copytree(bundle, folder / machine, ignore=shutil.ignore_patterns("state"))
        (folder / machine / "trust").mkdir(exist_ok=True)
        shutil.copy(keys.public_path, folder / machine / "trust")
    described = load_manifest(folder / MACHINES[0])
    if described.capacity < NUM_ADDED:
        sys.exit(
            f"Error: {bundle} has {described.capacity} slots; expected a bundle of --head updatable with {NUM_ADDED}."
        )
    random, scale = np.random.default_rng(0), described.feature_dim**-0.5
    # A bundle that was exported with a class update accepts only greater versions.
    for step, names in enumerate(STEPS, start=1):
        version = described.head_version + step
        update = ClassUpdate(
            base_fingerprint=described.base_fingerprint,
            rows=random.normal(scale=scale, size=(len(names), described.feature_dim + 1)).astype(np.float32),
            added=names,
            version=version,
        )
        envelope = envelope_of(update)
        envelope.sign(load_private_key(keys.private_path))
        for machine in MACHINES:
            (folder / machine / f"update{step}.icis").write_bytes(serialize_envelope(envelope))


def run(folder: Path) -> dict[str, object]:
    """Live through open, apply twice, rollback and open again, and return the answers of each step."""
    device = Device.open(folder, num_threads=1)
    steps = {"exported": _answers(device)}
    for step in range(1, len(STEPS) + 1):
        device.apply(folder / f"update{step}.icis", allow_changed_answers=True)  # its rows are random
        steps[f"update {step}"] = _answers(device)
    device.rollback()
    steps["rolled back"] = _answers(device)
    steps["opened again"] = _answers(Device.open(folder, num_threads=1))
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "history": [[entry.action, entry.version, entry.signed_by] for entry in device.history()],
        "steps": steps,
    }


def _answers(device: Device) -> dict[str, object]:
    shape = device.bundle.model_input.shape
    images = np.random.default_rng(1).uniform(-1.0, 1.0, size=(NUM_INPUTS, *shape)).astype(np.float32)
    return {
        "version": device.version,
        "classes": list(device.classes()),
        "logits": [device.logits(image[None]).values[0].tolist() for image in images],
        "predictions": [list(device.predict(image[None])[0].class_names) for image in images],
    }


def compare(one: dict[str, object], other: dict[str, object]) -> int:
    """Print how far two machines are apart; return 1 if it is too far."""
    worst, num_logits, failures = 0.0, 0, []
    for name, step in one["steps"].items():
        theirs = other["steps"][name]
        failures += [
            f"{name}: other {key}" for key in ("version", "classes", "predictions") if step[key] != theirs[key]
        ]
        ours, found = np.array(step["logits"]), np.array(theirs["logits"])
        num_logits += ours.size
        worst = max(worst, float(np.abs(ours - found).max() / np.abs(ours).max()))
    failures += ["another history"] if one["history"] != other["history"] else []
    failures += [f"logits {worst:.1e} apart, more than {TOLERANCE:.0e}"] if not worst <= TOLERANCE else []
    for result in (one, other):
        print(f"{result['machine']}: Python {result['python']}, numpy {result['numpy']}")
    print(f"{len(one['steps'])} steps ({', '.join(one['steps'])}), {num_logits} logits: at most {worst:.1e} apart")
    print("\n".join(f"FAIL  {failure}" for failure in failures) or "PASS  same classes, predictions, versions, history")
    return 1 if failures else 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare")
    prepared.add_argument("folder", type=Path)
    prepared.add_argument("--bundle", type=Path)
    ran = commands.add_parser("run")
    ran.add_argument("folder", type=Path)
    ran.add_argument("--out", type=Path, required=True)
    compared = commands.add_parser("compare")
    compared.add_argument("one", type=Path)
    compared.add_argument("other", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.folder, arguments.bundle)
    elif arguments.command == "run":
        arguments.out.write_text(json.dumps(run(arguments.folder)))
    else:
        return compare(*(json.loads(path.read_text()) for path in (arguments.one, arguments.other)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
