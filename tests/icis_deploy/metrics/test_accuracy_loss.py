"""How much accuracy a conversion leaves: by labels where there are some, by agreement where there are none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from icis_deploy.metrics.accuracy_loss import AccuracyKept, compare_accuracy
from icis_deploy.metrics.outcomes import OutcomeHead, Outcomes, measure_outcomes

NAMES = ("ant", "bee", "cat", "dog")
"""Two seen classes, two injected ones."""


def scores_for(answers: list[str]) -> np.ndarray:
    """Return logits `(num_images, 4)` with which each image gets its answer."""
    return np.eye(4)[[NAMES.index(answer) for answer in answers]]


HEAD = OutcomeHead(
    class_names=NAMES,
    is_seen=np.array([True, True, False, False]),
    is_original=np.array([True, True, False, False]),
    has_original=True,
)


def outcomes_for(answers: list[str], labels: list[str]) -> Outcomes | None:
    """Return outcomes of the images with a known label; `None` where there are none."""
    known = [index for index, label in enumerate(labels) if label in NAMES]
    if not known:
        return None
    scores = scores_for(answers)[known]
    columns = np.array([NAMES.index(labels[index]) for index in known])
    original = np.where(HEAD.is_seen, scores, -np.inf)
    return measure_outcomes(scores, columns, HEAD, keys=[str(index) for index in known], original_scores=original)


def compare(before: list[str], after: list[str], labels: list[str], **changes: float) -> AccuracyKept:
    settings = {"agreement": 1.0, "min_seen_kept": 0.99, "max_h_loss": 0.01} | changes
    return compare_accuracy(
        outcomes_for(before, labels), outcomes_for(after, labels), num_images=len(labels), **settings
    )


def test_nothing_lost_is_no_failure() -> None:
    labels = ["ant", "bee", "cat", "dog"]
    kept = compare(labels, labels, labels)
    assert (kept.seen_before, kept.seen_after, kept.H_before, kept.H_after) == (1.0, 1.0, 1.0, 1.0)
    assert kept.num_images == 4
    assert kept.failures == ()
    assert json.loads(json.dumps(kept.to_json())) == kept.to_json()


def test_a_seen_class_that_is_lost_is_a_failure_that_says_how_much_is_left() -> None:
    kept = compare(["ant", "bee"], ["ant", "ant"], ["ant", "bee"])
    assert kept.failures == ("50.00 % of the accuracy on seen classes is kept, less than 99 %",)


def test_seen_classes_are_told_apart_among_themselves_and_h_among_all() -> None:
    labels = ["ant", "bee", "cat", "dog"]
    kept = compare(labels, ["ant", "bee", "ant", "dog"], labels)
    assert kept.seen_after == 1.0
    assert kept.H_after == pytest.approx(2 / 3)
    assert kept.failures == ("H falls from 100.0 to 66.7 %, by more than 1 point",)


def test_images_of_unknown_classes_do_not_count() -> None:
    kept = compare(["ant", "ant"], ["ant", "bee"], ["ant", "emu"])
    assert (kept.num_images, kept.seen_after, kept.failures) == (1, 1.0, ())


def test_where_no_label_is_known_agreement_stands_for_accuracy() -> None:
    kept = compare(["ant", "bee"], ["ant", "ant"], ["emu", "yak"], agreement=0.5)
    assert (kept.seen_before, kept.seen_after, kept.num_images) == (None, 0.5, 2)
    assert len(kept.failures) == 1
