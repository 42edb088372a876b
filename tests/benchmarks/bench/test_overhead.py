from __future__ import annotations

import pytest

from benchmarks.bench.overhead import BARE, LOGITS, PREDICT, measure_overhead, text_of
from icis_deploy.errors import UsageError
from testing.bundles import files_in, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("overhead") / "bundle")


def test_requests_and_starts_are_compared_with_a_bare_session_and_the_bundle_is_left_alone(bundle):
    before = files_in(bundle)
    report = measure_overhead(bundle, num_rounds=20, num_starts=1)

    assert set(report.median_ms) == {BARE, LOGITS, PREDICT}
    assert set(report.added_us) == {LOGITS, PREDICT}
    # On a tiny model the device's part is most of a request: choosing classes must show compared with the bare run.
    assert report.added_us[PREDICT].value > 0
    assert report.device_open_ms > 0
    assert report.bare_open_ms > 0
    assert report.head_mb == pytest.approx(4 * (3 + 4) * (4 + 1) / 1e6)
    assert all(name in text_of(report) for name in (BARE, LOGITS, PREDICT))
    assert files_in(bundle) == before


def test_nothing_to_measure_is_refused(bundle):
    with pytest.raises(UsageError, match="0 rounds and 1 starts"):
        measure_overhead(bundle, num_rounds=0, num_starts=1)
