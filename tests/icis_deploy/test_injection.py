"""Which classes are injected, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.calibration import match_mean_length
from icis_deploy.descriptors import Descriptors
from icis_deploy.errors import ClassConflictError, DescriptorError, UsageError
from icis_deploy.head import Head
from icis_deploy.injection import inject, unseen_classes


@pytest.fixture
def head() -> Head:
    rows = np.random.default_rng(0).normal(size=(30, 13))
    return Head(rows=rows, class_names=tuple(f"seen{index}" for index in range(30)))


@pytest.fixture
def descriptors(head: Head) -> Descriptors:
    values = np.random.default_rng(1).normal(size=(33, 6))
    return Descriptors(values=values, class_names=("new1", *head.class_names, "new2", "new3"))


def test_every_described_class_that_the_head_lacks_is_injected_in_file_order(head: Head, descriptors: Descriptors):
    injection = inject(head, descriptors, method="icis")
    assert injection.class_names == ("new1", "new2", "new3")
    assert injection.rows.shape == (3, 13)
    assert injection.provenance["method"] == "icis"


def test_injected_rows_have_the_seen_rows_mean_length_unless_they_are_wanted_raw(head: Head, descriptors: Descriptors):
    calibrated = inject(head, descriptors, method="icis", calibration="length")
    raw = inject(head, descriptors, method="icis", calibration="none")
    mean_length = np.linalg.norm(head.rows, axis=1).mean()
    assert np.linalg.norm(calibrated.rows, axis=1).mean() == pytest.approx(mean_length, rel=1e-5)
    assert np.linalg.norm(raw.rows, axis=1).mean() != pytest.approx(mean_length, rel=1e-2)
    ratio = calibrated.rows / raw.rows
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)


def test_the_injected_head_keeps_the_seen_rows(head: Head, descriptors: Descriptors):
    injection = inject(head, descriptors, method="icis")
    expanded = head.expand(injection.rows, injection.class_names)
    np.testing.assert_array_equal(expanded.rows[:30], head.rows)


def test_match_mean_length_changes_lengths_by_one_factor_only():
    rows = np.array([[3.0, 4.0], [6.0, 8.0]], dtype=np.float32)
    seen = np.array([[0.0, 3.0]], dtype=np.float32)
    np.testing.assert_allclose(match_mean_length(rows, seen), rows * 0.4, rtol=1e-6)


@pytest.mark.parametrize(
    ("unseen", "error", "message"),
    [
        (("new1", "seen3"), ClassConflictError, "seen3"),
        (("new1", "new1"), ClassConflictError, "twice"),
        (("nowhere",), DescriptorError, "No descriptor for 'nowhere'"),
        ((), DescriptorError, "no unseen class"),
    ],
)
def test_classes_that_cannot_be_injected_are_refused_by_name(unseen, error, message, head, descriptors):
    with pytest.raises(error, match=message):
        inject(head, descriptors, unseen=unseen, method="icis")


def test_a_seen_class_without_a_descriptor_is_refused_by_name(head: Head, descriptors: Descriptors):
    with pytest.raises(DescriptorError, match="No descriptor for 'seen29'"):
        inject(head, descriptors.select(descriptors.class_names[:30]), method="icis")


def test_nothing_is_unseen_when_the_head_knows_every_described_class(head: Head, descriptors: Descriptors):
    with pytest.raises(DescriptorError, match="all 30 described classes are already in the head"):
        unseen_classes(head, descriptors.select(head.class_names), None)


def test_an_unknown_method_is_refused(head: Head, descriptors: Descriptors):
    with pytest.raises(UsageError, match="magic"):
        inject(head, descriptors, method="magic")
