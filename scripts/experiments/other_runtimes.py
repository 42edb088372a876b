"""How do other runtimes on the CPU compare with ONNX Runtime on the same bundle?

    python scripts/experiments/other_runtimes.py bundle --images photos --model FOLDER --key KEY --out runtimes.json

For each runtime that the bundle opens in here, one row: the greatest difference of a logit from ONNX Runtime's, on how
many inputs the greatest logit is the same, time per image over ONNX Runtime's, and how much longer the first image
takes after other slots are loaded. All runtimes are open at the same time and asked in turns, one thread each. Times
are of the process's processor, which other processes of the machine disturb less than a clock.

With `--model`, the folder that the bundle was exported from, and `--key`, which it trusts, every runtime also runs the
parity gate and lives a device's life: a signed update, rollback, a damaged file, three threads while classes change
(`scripts/edge/device_life.py`). `--out` keeps all of it as JSON, next to what another bundle or an earlier run gave.

What a runtime cannot do here is stated with the reason. Export the bundle with the targets first; one that was exported
with `--head fused` gives the rows of fused heads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import icis_deploy
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.files import write_file
from icis_deploy.errors import GateFailedError, ICISDeployError
from icis_deploy.images.loading import load_images
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.choice import CPU_RUNTIMES, Runtime
from icis_deploy.runtime.sessions.protocol import Session, SlotBuffers
from scripts.edge.device_life import live, two_updates

NUM_ROUNDS, NUM_WARM = 40, 3
SCALE = 0.02
"""Standard deviation of weights of the slots that are swapped."""


@dataclass(frozen=True)
class Candidate:
    """A runtime with the bundle open in it."""

    name: str
    session: Session
    slots: tuple[SlotBuffers, ...]
    """Two sets of slots, or none for a fused head."""

    times_s: list[float] = field(default_factory=list)
    swaps_s: list[float] = field(default_factory=list)


def open_candidate(folder: Path, name: str, tables: list[tuple[Float32, Float32]]) -> Candidate:
    """Open a bundle in a runtime, with the self-test that it passes."""
    session = session_of(Device.open(folder, runtime=Runtime(name=name, num_threads=1)))
    return Candidate(name, session, tuple(session.load_slots(*table) for table in tables))


def spent(candidate: Candidate, image: Images, slots: SlotBuffers | None) -> float:
    """Return the processor's time for one image, in seconds."""
    start = time.process_time()
    candidate.session.run(image, slots)
    return time.process_time() - start


def measure(candidates: list[Candidate], images: Images, tables: list[tuple[Float32, Float32]]) -> None:
    """Ask every runtime in turns, and swap slots between turns."""
    for turn in range(NUM_WARM + NUM_ROUNDS):
        image = images[turn % len(images)][None]
        order = candidates[turn % len(candidates) :] + candidates[: turn % len(candidates)]
        for candidate in order:
            slots = candidate.slots[0] if candidate.slots else None
            spent(candidate, image, slots)
            usual = spent(candidate, image, slots)
            swap = 0.0
            if slots is not None:
                start = time.process_time()
                other = candidate.session.load_slots(*tables[1])
                swap = time.process_time() - start + spent(candidate, image, other) - usual
            if turn >= NUM_WARM:
                candidate.times_s.append(usual)
                candidate.swaps_s.append(swap)


def figures(candidates: list[Candidate], images: Images) -> dict[str, dict[str, Any]]:
    """Return what was measured of each runtime, by its name; the first one is what they are compared with."""
    found = {}
    expected = answers(candidates[0], images)
    for candidate in candidates:
        logits = answers(candidate, images)
        pairs = zip(candidate.times_s, candidates[0].times_s, strict=True)
        found[candidate.name] = {
            "greatest_difference": float(np.abs(logits - expected).max()),
            "same_class": int((logits.argmax(axis=1) == expected.argmax(axis=1)).sum()),
            "num_images": len(images),
            "time_ratio": statistics.median(own / first for own, first in pairs),
            "swap_ms": 1e3 * statistics.median(candidate.swaps_s) if candidate.slots else None,
        }
    return found


def row(name: str, found: dict[str, Any]) -> str:
    """Return a line of the table."""
    swap = "-" if found["swap_ms"] is None else f"{found['swap_ms']:.2f} ms"
    same = f"{found['same_class']} of {found['num_images']}"
    return f"| `{name}` | {found['greatest_difference']:.1e} | {same} | {found['time_ratio']:.2f} | {swap} |"


def gate_and_life(name: str, bundle: Path, model: Path, key: Path | None, work: Path) -> dict[str, Any]:
    """Return the gate's verdict in a runtime and, of an updatable bundle, what a device's life in it was like."""
    found: dict[str, Any] = {}
    runtime = Runtime(name=name, num_threads=1)
    try:
        # What int8 costs shows on photos alone: its ranges were taken from such.
        images = None if load_bundle(bundle).precision == "fp32" else model / "images.csv"
        reports = icis_deploy.verify(bundle, against=model / "model.onnx", runtime=runtime, images=images)
        found["gate"], found["gate_error"] = "passed", max(report.max_scaled_error for report in reports)
    except GateFailedError as error:
        found["gate"], found["gate_error"] = "rejected", max(report.max_scaled_error for report in error.reports)
    if key is not None and load_bundle(bundle).capacity:
        updates = two_updates(
            model / "model.onnx",
            classes=model / "classes.txt",
            descriptors=model / "descriptors.npz",
            preprocess=model / "preprocess.json",
            unseen=(model / "unseen.txt").read_text("utf-8").split()[: load_bundle(bundle).capacity // 2],
            key=key,
            folder=work,
        )
        found["life"] = asdict(live(bundle, runtime, updates=updates, key=key, work=work))
    return found


def answers(candidate: Candidate, images: Images) -> Float32:
    """Return the logits of all images."""
    slots = candidate.slots[0] if candidate.slots else None
    return np.concatenate([candidate.session.run(image[None], slots).logits for image in images])


def inputs(folder: Path, images: Path | None, number: int) -> Images:
    """Return prepared photos of a folder, or seeded noise."""
    bundle = load_bundle(folder)
    if images is None or bundle.preprocessing is None:
        noise = np.random.default_rng(0).normal(size=(number, *bundle.model_input.shape))
        return noise.astype(bundle.model_input.dtype)
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    chosen = paths[:: max(1, len(paths) // number)][:number]
    return load_images(chosen, bundle.preprocessing)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, help="a folder of photos; without it, noise")
    parser.add_argument("--num-images", type=int, default=20)
    parser.add_argument("--model", type=Path, help="folder of the original and its files: the gate runs as well")
    parser.add_argument("--key", type=Path, help="private key whose public key the bundle trusts: updates are applied")
    parser.add_argument("--out", type=Path, help="JSON file: these runtimes are replaced in it, others kept")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    random = np.random.default_rng(1)
    tables = [
        (
            random.normal(scale=SCALE, size=(bundle.capacity, bundle.feature_dim)).astype(np.float32),
            random.normal(scale=SCALE, size=bundle.capacity).astype(np.float32),
        )
        for _ in range(2 if bundle.capacity else 0)
    ]
    images = inputs(arguments.bundle, arguments.images, arguments.num_images)
    candidates, missing = [], []
    for name in CPU_RUNTIMES:
        try:
            candidates.append(open_candidate(arguments.bundle, name, tables))
        except ICISDeployError as error:
            missing.append(f"{name}: {error}")
    measure(candidates, images, tables)
    found = figures(candidates, images)
    if arguments.model is not None:
        with tempfile.TemporaryDirectory() as work:
            for name in found:
                found[name] |= gate_and_life(name, arguments.bundle, arguments.model, arguments.key, Path(work))
    print(f"| {bundle.head_kind} | greatest difference | same class | time / ONNX Runtime | swap |")
    print("|---|---|---|---|---|")
    print(*(row(name, values) for name, values in found.items()), sep="\n")
    for name, values in found.items():
        print(name, {key: value for key, value in values.items() if key in {"gate", "gate_error", "life"}})
    print(*missing, sep="\n")
    if arguments.out is not None:
        kept = json.loads(arguments.out.read_text("utf-8")) if arguments.out.is_file() else {}
        kept.setdefault(f"{bundle.head_kind}, {bundle.precision}", {}).update(found)
        write_file(arguments.out, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
