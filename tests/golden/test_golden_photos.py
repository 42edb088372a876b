"""Every release reads what bundles carry for photos, and journals of devices that were taught by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icis_deploy.bundle.few_shot import parse_few_shot, serialize_few_shot
from icis_deploy.runtime.state.journal import parse_journal, serialize_journal
from testing.bundles import FEATURE_DIM
from tests.golden.make_golden_photos import few_shot

PHOTOS = Path(__file__).resolve().parent / "photos"


def test_what_photos_need_of_schema_1():
    data = (PHOTOS / "few_shot.safetensors").read_bytes()

    found, expected = parse_few_shot(data, feature_dim=FEATURE_DIM), few_shot()

    np.testing.assert_allclose(found.context.mean_row, expected.context.mean_row, rtol=1e-6)
    np.testing.assert_allclose(found.context.feature_mean, expected.context.feature_mean, rtol=1e-5)
    assert (found.context.level, found.context.prior_photos) == (-0.25, 2.0)
    assert (found.max_seen_loss, found.seen_accuracy, found.has_generator) == (0.05, 0.9, True)
    assert serialize_few_shot(found) == data


def test_the_journal_of_a_device_that_was_taught_by_photos():
    data = (PHOTOS / "journal.json").read_bytes()

    journal = parse_journal(data)

    assert journal.current.by_photos == journal.current.taught == ("okapi", "Bärtierchen 水熊")
    assert np.isfinite(journal.current.photo_offset)
    assert [len(entry.photos_sha256) for entry in journal.history] == [2, 1]
    assert serialize_journal(journal) == data
