"""Write the golden files of descriptors of several blocks: see `make_golden.py`, which wrote `v1`.

    python tests/golden/make_golden_blocks.py

They hold descriptors of three blocks, one of which says nothing of a class, and the metadata of schema 3 of generators
that take them, with and without an arbiter.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from icis_deploy.bundle.generator_metadata import GeneratorBlock, Limits, serialize_metadata
from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.descriptors.files import save_descriptors
from tests.golden.make_golden_v2 import METADATA as PLAIN_METADATA
from tests.golden.make_golden_v3 import METADATA as ARBITER_METADATA

FOLDER = Path(__file__).resolve().parent / "blocks"
DESCRIPTORS = Descriptors(
    values=np.array([[1, 0, 0.25, -2.5, 3], [0, 1, 0.5, 1e-3, -4], [1, 1, 0, 0, 5]], dtype=np.float32),
    class_names=("okapi", "Bärtierchen 水熊", "cat"),
    blocks=(DescriptorBlock("tags", 2), DescriptorBlock("vectors", 2), DescriptorBlock("size", 1)),
)
BLOCKS = (
    GeneratorBlock(name="tags", width=2, is_used=True, length=Limits(low=0.8, high=1.75)),
    GeneratorBlock(name="vectors", width=2, is_used=True, length=Limits(low=0.25, high=3.125)),
    GeneratorBlock(name="size", width=1, is_used=False, length=Limits(low=2.4, high=6.25)),
)
METADATA = replace(PLAIN_METADATA, descriptor_dim=5, blocks=BLOCKS)
METADATA_WITH_ARBITER = replace(ARBITER_METADATA, descriptor_dim=5, blocks=BLOCKS)


def main() -> None:
    """Write the files."""
    FOLDER.mkdir()
    save_descriptors(DESCRIPTORS, FOLDER / "descriptors.npz")
    (FOLDER / "generator-metadata.json").write_text(serialize_metadata(METADATA) + "\n")
    (FOLDER / "generator-metadata-arbiter.json").write_text(serialize_metadata(METADATA_WITH_ARBITER) + "\n")


if __name__ == "__main__":
    try:
        main()
    except FileExistsError:
        raise SystemExit(f"{FOLDER} is there already, and golden files are never replaced.") from None
    except BaseException:
        shutil.rmtree(FOLDER)
        raise
