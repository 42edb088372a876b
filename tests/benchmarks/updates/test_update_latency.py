from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.results.values import CLASS_UPDATE
from benchmarks.updates.update_latency import (
    ADAPTER,
    NEW_SESSION,
    PARTS,
    REEXPORT,
    _check,
    measure_update,
    text_of,
)
from icis_deploy.errors import RuntimeFailureError, UsageError
from icis_deploy.head.slots import empty_slots
from testing.bundles import FEATURE_DIM, files_in, make_update, write_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("arbiter", [False, True])
def test_all_ways_give_the_answers_of_the_updated_head(arbiter, tmp_path):
    """Ways that answer otherwise are refused; rows that the slots hold at first have other values than the updates'."""
    fields = {"arbiter": np.full((1, 5), 0.7)} if arbiter else {}
    table = empty_slots(4, FEATURE_DIM).apply(make_update("okapi", **fields), seen_names=frozenset())
    bundle = write_bundle(tmp_path / "bundle", arbiter=arbiter, table=table)
    original = write_bundle(tmp_path / "original", capacity=0) / "model.onnx"

    report = measure_update(bundle, original=original, num_new_classes=2, num_updates=12)

    assert set(report.ways) == {CLASS_UPDATE, ADAPTER, NEW_SESSION, REEXPORT}


@pytest.fixture
def report(bundle, tmp_path):
    original = write_bundle(tmp_path / "original", capacity=0) / "model.onnx"
    return measure_update(bundle, original=original, num_new_classes=2, num_updates=12)


def test_every_way_is_measured_in_one_run(report):
    counts = {way: each.num_queries for way, each in report.ways.items()}

    assert counts == {CLASS_UPDATE: 12, ADAPTER: 2, NEW_SESSION: 2, REEXPORT: 2}
    assert all(each.median_ms > 0 for each in report.ways.values())


def test_the_parts_of_a_class_update_are_those_of_the_whole(report):
    assert set(report.parts) == {*PARTS, "work_ms"}
    assert all(each.num_queries == 12 for each in report.parts.values())
    # Medians do not add up exactly, but no part is larger than the whole.
    assert max(each.median_ms for each in report.parts.values()) < report.ways[CLASS_UPDATE].median_ms


def test_the_report_says_what_was_measured(report):
    assert (report.num_new_classes, report.capacity, report.feature_dim) == (2, 4, 4)
    assert report.update_bytes > 500
    values = json.loads(json.dumps(report.to_json()))
    assert values["times_faster"][NEW_SESSION] == pytest.approx(report.times_faster(NEW_SESSION))
    assert values["ways"][CLASS_UPDATE]["p99"]["value_ms"] is None
    text = text_of(report)
    assert "2 new classes of 4 slots" in text
    assert all(way in text for way in report.ways)
    assert "needs 662" in text


def test_the_bundle_that_is_measured_stays_as_it_was(bundle):
    before = files_in(bundle.parent)

    report = measure_update(bundle, num_new_classes=4, num_updates=2)

    assert REEXPORT not in report.ways
    assert files_in(bundle.parent) == before


@pytest.mark.parametrize(("num_new_classes", "num_updates"), [(0, 5), (5, 5), (2, 0)])
def test_what_does_not_fit_the_slots_is_refused(num_new_classes, num_updates, bundle):
    with pytest.raises(UsageError, match=rf"{num_updates} updates of {num_new_classes} classes cannot .* on 4 slots"):
        measure_update(bundle, num_new_classes=num_new_classes, num_updates=num_updates)


@pytest.mark.parametrize("found", [np.zeros((1, 3)), np.ones((1, 2)), np.full((1, 2), np.nan)])
def test_a_way_that_answers_otherwise_is_not_measured(found):
    with pytest.raises(RuntimeFailureError, match="The way 'LoRA adapter' gave other logits than the class update"):
        _check(ADAPTER, found, np.zeros((1, 2)))
