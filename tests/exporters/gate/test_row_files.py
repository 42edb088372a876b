"""What models give is kept in files, and compared in blocks: the verdict does not depend on them, memory on none."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from exporters.gate import row_files
from exporters.gate.row_files import RowFile, block_size
from icis_deploy.api.models import head_of, inspect
from icis_deploy.errors import StorageError
from icis_deploy.metrics.parity import GATE_PROFILES, compare_blocks, compare_logits
from testing.tiny_project import FEATURE_DIM


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20], ids=["file", "memory"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_come_back_as_they_were_given(monkeypatch, kept_bytes, dtype):
    monkeypatch.setattr(row_files, "KEPT_BYTES", kept_bytes or 1)
    rows = np.random.default_rng(0).normal(size=(23, 5)).astype(dtype)
    kept = RowFile(iter([rows[:7], rows[7:8], rows[8:]]))

    assert (len(kept), kept.width) == (23, 5)
    for size in (1, 4, 23, 100):
        np.testing.assert_array_equal(np.concatenate(list(kept.blocks(size))), rows)
    np.testing.assert_array_equal(kept.rows(np.array([22, 0, 9])), rows[[22, 0, 9]])
    assert kept.take(0, 1).dtype == dtype


def test_a_full_disk_is_said_with_what_to_do(monkeypatch):
    full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - what takes it closes it
    monkeypatch.setattr(row_files, "KEPT_BYTES", 1)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: full)

    with pytest.raises(
        StorageError, match=r"^Cannot keep what a model gives for 0 images in .*No space left"
    ) as raised:
        RowFile(iter([np.zeros((4, 4), np.float32)]))
    assert raised.value.hint == "Free some, name another folder in TMPDIR, or compare on fewer images."


def test_a_block_of_a_large_head_is_not_small_and_one_of_a_small_head_has_a_limit():
    assert block_size(1_000_000) == 64
    assert block_size(1024) == 1024


def test_any_partition_gives_the_same_report():
    random = np.random.default_rng(0)
    reference = random.normal(size=(300, 40))
    exported = reference + 1e-4 * random.normal(size=reference.shape)
    whole = compare_logits(reference, exported, profile=GATE_PROFILES["fp32"], compared_with="x")
    for size in (1, 7, 299):
        blocks = [(reference[start : start + size], exported[start : start + size]) for start in range(0, 300, size)]
        shape = {"num_images": 300, "num_classes": 40}
        assert compare_blocks(blocks, **shape, profile=GATE_PROFILES["fp32"], compared_with="x") == whole
        assert compare_blocks(blocks[::-1], **shape, profile=GATE_PROFILES["fp32"], compared_with="x") == whole


def test_the_memory_of_a_comparison_does_not_grow_with_images(monkeypatch):
    monkeypatch.setattr(row_files, "KEPT_BYTES", 1 << 16)
    random = np.random.default_rng(0)

    def peak(num_batches: int) -> int:
        tracemalloc.start()
        rows = [RowFile(random.normal(size=(50, 400)) for _ in range(num_batches)) for _ in range(2)]
        compare_blocks(
            zip(*(each.blocks(64) for each in rows), strict=True),
            num_images=50 * num_batches,
            num_classes=400,
            profile=GATE_PROFILES["fp32"],
            compared_with="x",
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(20), peak(200)
    # 9,000 more images of 400 float64 on two sides are 58 MB; a row of parity for each is some 0.4 MB.
    assert many - few < 3e6


@pytest.fixture(scope="module")
def with_arbiter(tiny_project, tmp_path_factory):
    """A bundle of slots whose new rows follow arbiters: its gate takes a deviation over all images first."""
    head = head_of(inspect(tiny_project.model, classes=tiny_project.classes))
    random = np.random.default_rng(1)
    update = icis_deploy.ClassUpdate(
        base_fingerprint=head.fingerprint,
        rows=random.normal(size=(2, FEATURE_DIM + 1)).astype(np.float32),
        added=("okapi", "quagga"),
        arbiter=random.normal(size=(2, 5)).astype(np.float32),
    )
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess, head="updatable", capacity=4)
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, updates=[update], out=out, options=options)
    return out


@pytest.mark.parametrize("rows", [1, 7, 63])
def test_the_gate_gives_the_same_verdict_whatever_its_blocks(tiny_project, with_arbiter, monkeypatch, rows):
    whole = icis_deploy.verify(with_arbiter, against=tiny_project.model)
    monkeypatch.setattr(row_files, "LEAST_ROWS_OF_A_BLOCK", rows)
    monkeypatch.setattr(row_files, "VALUES_OF_A_BLOCK", 1)
    assert block_size(1000) == rows
    monkeypatch.setattr(row_files, "KEPT_BYTES", 1)
    parts = icis_deploy.verify(with_arbiter, against=tiny_project.model)

    assert len(parts) == len(whole) >= 2
    for found, expected in zip(parts, whole, strict=True):
        assert (found.failures, found.num_near_ties, found.num_disagreements) == (
            expected.failures, expected.num_near_ties, expected.num_disagreements
        )  # fmt: skip
        # Products of a block in float64 may round their last bit as the block is long; nothing else may differ.
        assert found.max_scaled_error == pytest.approx(expected.max_scaled_error, rel=1e-6)
        assert found.p999_scaled_error == pytest.approx(expected.p999_scaled_error, rel=1e-6)
        assert found.logit_std == pytest.approx(expected.logit_std, rel=1e-12)
