"""How do other runtimes on the CPU compare with ONNX Runtime on the same bundle?

    python scripts/experiments/other_runtimes.py bundle --images photos --num-images 20

For each runtime that the bundle opens in here, one row: the greatest difference of a logit from ONNX Runtime's, on how
many inputs the greatest logit is the same, time per image over ONNX Runtime's, and how much longer the first image
takes after other slots are loaded. All runtimes are open at the same time and asked in turns, one thread each. Times
are of the process's processor, which other processes of the machine disturb less than a clock.

What a runtime cannot do here is stated with the reason. Export the bundle with the targets first; one that was exported
with `--head fused` gives the rows of fused heads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import ICISDeployError
from icis_deploy.images.loading import load_images
from icis_deploy.runtime.device import Device, session_of
from icis_deploy.runtime.sessions.choice import CPU_RUNTIMES, Runtime
from icis_deploy.runtime.sessions.protocol import Session, SlotBuffers

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


def rows(candidates: list[Candidate], images: Images) -> list[str]:
    """Return a line of the table for each runtime; the first one is what they are compared with."""
    lines = []
    expected = answers(candidates[0], images)
    for candidate in candidates:
        found = answers(candidate, images)
        same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        pairs = zip(candidate.times_s, candidates[0].times_s, strict=True)
        ratio = statistics.median(own / first for own, first in pairs)
        swap = f"{1e3 * statistics.median(candidate.swaps_s):.2f} ms" if candidate.slots else "-"
        lines.append(
            f"| `{candidate.name}` | {np.abs(found - expected).max():.1e} | {same} of {len(images)} | {ratio:.2f} "
            f"| {swap} |"
        )
    return lines


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
    print(f"| {bundle.head_kind} | greatest difference | same class | time / ONNX Runtime | swap |")
    print("|---|---|---|---|---|")
    print(*rows(candidates, images), sep="\n")
    print(*missing, sep="\n")


if __name__ == "__main__":
    main()
