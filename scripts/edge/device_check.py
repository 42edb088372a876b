"""A device's whole life in each runtime, with its answers written to files, so that two machines can be compared.

    python scripts/edge/device_check.py prepare FOLDER [--bundle BUNDLE]  a bundle, and signed updates for it
    python scripts/edge/device_check.py runtimes FOLDER                   what the bundle can be opened in
    python scripts/edge/device_check.py run FOLDER --machine arm64 --runtime litert   open, predict, apply, roll back
    python scripts/edge/device_check.py compare FOLDER                    a table: arm64 next to x86, runtime by runtime

`run` needs no more than a device has: no torch, no onnx. It leaves `FOLDER/MACHINE.RUNTIME.json`; where there is none,
`compare` gives the end of `FOLDER/MACHINE.RUNTIME.log`, into which its output was led.
"""

from __future__ import annotations

import argparse
import base64
import json
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.bundle.manifest import BACKBONE_NAME, load_manifest
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import CPU_RUNTIMES, Runtime

MACHINES = ("x86", "arm64")
BUNDLE = "bundle"
NUM_INPUTS = 2
STEPS = (("okapi", "bongo"), ("gnu",))
"""Classes that each update adds."""

NUM_ADDED = sum(len(names) for names in STEPS)
TOLERANCE = 1e-4
"""Of a logit, as a fraction of the greatest one: what the gate allows a float32 export."""


def prepare(folder: Path, bundle: Path | None) -> None:
    """Write a bundle that trusts a key of its own, and two updates signed with that."""
    from icis_deploy.updates.envelope import envelope_of, serialize_envelope
    from icis_deploy.updates.signing import keygen, load_private_key

    keys = keygen(folder / "KEY")
    if bundle is None:
        from testing.bundles import write_bundle

        write_bundle(folder / BUNDLE)
    else:
        shutil.copytree(bundle, folder / BUNDLE, ignore=shutil.ignore_patterns("state"))
    (folder / BUNDLE / "trust").mkdir(exist_ok=True)
    shutil.copy(keys.public_path, folder / BUNDLE / "trust")
    described = load_manifest(folder / BUNDLE)
    if described.capacity < NUM_ADDED:
        sys.exit(
            f"Error: {bundle} has {described.capacity} slots; expected a bundle of --head updatable with {NUM_ADDED}."
        )
    random, scale = np.random.default_rng(0), described.feature_dim**-0.5
    # A bundle that was exported with a class update accepts only greater versions.
    for step, names in enumerate(STEPS, start=1):
        update = ClassUpdate(
            base_fingerprint=described.base_fingerprint,
            rows=random.normal(scale=scale, size=(len(names), described.feature_dim + 1)).astype(np.float32),
            added=names,
            version=described.head_version + step,
        )
        envelope = envelope_of(update)
        envelope.sign(load_private_key(keys.private_path))
        (folder / f"update{step}.icis").write_bytes(serialize_envelope(envelope))
    damaged = json.loads((folder / f"update{len(STEPS)}.icis").read_bytes())
    payload = bytearray(base64.b64decode(damaged["payload"]))
    payload[-1] ^= 1  # of a row, so that only its signature tells
    damaged["payload"] = base64.b64encode(payload).decode()
    (folder / "damaged.icis").write_text(json.dumps(damaged))


def runtimes(folder: Path) -> tuple[str, ...]:
    """Return the runtimes on the CPU that the prepared bundle holds files for, the default first."""
    files = load_manifest(folder / BUNDLE).files
    held = [name for name in CPU_RUNTIMES if any(file.startswith(f"{name}/") for file in files)]
    return ("onnxruntime", *held, *(["split"] if BACKBONE_NAME in files else []))


def run(folder: Path, runtime: str, state: Path) -> dict[str, object]:
    """Live through open, apply, a damaged update, apply, rollback and open again; return the answers of each step.

    Args:
        folder: What `prepare` wrote.
        runtime: Where the device runs.
        state: A folder for what it keeps, which must not exist.
    """
    chosen = Runtime(name=runtime, num_threads=1)
    shutil.copytree(folder / BUNDLE, state)
    device = Device.open(state, runtime=chosen)
    steps, refused_by = {"exported": _answers(device)}, "nothing"
    for step in range(1, len(STEPS) + 1):
        try:
            device.apply(folder / "damaged.icis", allow_changed_answers=True)
        except ICISDeployError as error:
            refused_by = type(error).__name__
        device.apply(folder / f"update{step}.icis", allow_changed_answers=True)  # its rows are random
        steps[f"update {step}"] = _answers(device)
    device.rollback()
    steps["rolled back"] = _answers(device)
    steps["opened again"] = _answers(Device.open(state, runtime=chosen))
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "refused_by": refused_by,
        "history": [[entry.action, entry.version, entry.signed_by] for entry in device.history()],
        "steps": steps,
    }


def _answers(device: Device) -> dict[str, object]:
    described = device.bundle.model_input
    images = np.random.default_rng(1).uniform(-1.0, 1.0, size=(NUM_INPUTS, *described.shape)).astype(described.dtype)
    return {
        "version": device.version,
        "classes": list(device.classes()),
        "logits": [device.logits(image[None]).values[0].tolist() for image in images],
        "predictions": [list(device.predict(image[None])[0].class_names) for image in images],
    }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two lives are apart."""

    num_logits: int
    greatest: float
    """Of any logit, as a fraction of the greatest one."""

    failures: tuple[str, ...]
    """What must be equal and is not, or is too far apart."""


def difference(found: dict[str, Any], expected: dict[str, Any]) -> Difference:
    """Compare a life with another one: classes, the first prediction, versions, history, refusal, logits."""
    worst, num_logits, failures = 0.0, 0, []
    for name, step in expected["steps"].items():
        other = found["steps"][name]
        failures += [f"{name}: other {key}" for key in ("version", "classes") if step[key] != other[key]]
        firsts = [[names[0] for names in each["predictions"]] for each in (step, other)]
        failures += [f"{name}: predicts {firsts[1]}, not {firsts[0]}"] if firsts[0] != firsts[1] else []
        logits, theirs = np.array(step["logits"]), np.array(other["logits"])
        num_logits += logits.size
        worst = max(worst, float(np.abs(logits - theirs).max() / np.abs(logits).max()))
    failures += ["another history"] if found["history"] != expected["history"] else []
    failures += [f"logits {worst:.1e} apart, more than {TOLERANCE:.0e}"] if not worst <= TOLERANCE else []
    for life in (found, expected):
        if life["refused_by"] != "SignatureError":
            failures.append(f"the damaged update was refused by {life['refused_by']}, not by SignatureError")
        if life["steps"]["rolled back"] != life["steps"]["update 1"]:
            failures.append("rolled back, it does not answer to the bit as before")
    return Difference(num_logits=num_logits, greatest=worst, failures=tuple(dict.fromkeys(failures)))


def compare(folder: Path) -> int:
    """Print a line for each runtime, and what failed; return 1 if anything did."""
    reference = _life(folder, MACHINES[0], "onnxruntime")
    print("| runtime | arm64 next to x86-64 | next to ONNX Runtime | logits | damaged update | verdict |")
    print("|---|---|---|---|---|---|")
    failures, machines = [], {}
    for runtime in runtimes(folder):
        lives = [_life(folder, machine, runtime) for machine in MACHINES]
        missing = [f"{machine}: {life}" for machine, life in zip(MACHINES, lives, strict=True) if isinstance(life, str)]
        if missing or isinstance(reference, str):
            failures += [f"{runtime}, {reason}" for reason in missing]
            print(f"| `{runtime}` | - | - | - | - | **not run** |")
            continue
        own, theirs = difference(lives[1], lives[0]), difference(lives[1], reference)
        machines |= {life["machine"]: f"Python {life['python']}, numpy {life['numpy']}" for life in lives}
        found = dict.fromkeys((*own.failures, *theirs.failures))
        failures += [f"{runtime}: {failure}" for failure in found]
        print(
            f"| `{runtime}` | {own.greatest:.1e} | {theirs.greatest:.1e} | {own.num_logits} | {lives[1]['refused_by']} "
            f"| {'**failed**' if found else 'passed'} |"
        )
    print(*(f"{machine}: {versions}" for machine, versions in machines.items()), sep="\n")
    print("\n".join(f"FAIL  {each}" for each in failures) or "PASS  same classes, first predictions, versions, history")
    return 1 if failures else 0


def _life(folder: Path, machine: str, runtime: str) -> dict[str, Any] | str:
    """Return what a run left, or why it left nothing."""
    path = folder / f"{machine}.{runtime}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    log = path.with_suffix(".log")
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    return "; ".join([line for line in lines if line][-2:]) or "it said nothing"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "runtimes", "run", "compare"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name == "prepare":
            command.add_argument("--bundle", type=Path)
        elif name == "run":
            command.add_argument("--machine", choices=MACHINES, required=True)
            command.add_argument("--runtime", choices=CPU_RUNTIMES, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.command == "prepare":
        prepare(folder, arguments.bundle)
    elif arguments.command == "runtimes":
        print(*runtimes(folder))
    elif arguments.command == "run":
        name = f"{arguments.machine}.{arguments.runtime}"
        try:
            life = run(folder, arguments.runtime, folder / name)
        except ICISDeployError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        (folder / f"{name}.json").write_text(json.dumps(life))
    else:
        return compare(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
