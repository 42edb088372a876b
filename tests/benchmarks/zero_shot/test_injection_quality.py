"""What measuring an injection says, against counting the expanded head's answers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.zero_shot.injection_quality import COLUMNS, measure_injection
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import inject
from icis_deploy.injection.options import InjectionOptions


def test_rates_are_those_of_the_expanded_head_and_best_is_no_less():
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 8)).astype(np.float32)
    rows = (values @ random.normal(size=(8, 17)) + 0.5 * random.normal(size=(50, 17))).astype(np.float32)
    names = tuple(f"class{index}" for index in range(50))
    head = Head(rows=rows[:40], class_names=names[:40])
    labels = np.repeat(np.arange(50), 20)
    features = (0.3 * rows[labels, :-1] + random.normal(size=(1000, 16))).astype(np.float32)
    options = InjectionOptions(method="ridge")
    neutral = random.normal(size=(64, 16)).astype(np.float32)
    injection = inject(head, Descriptors(values=values, class_names=names), options=options, neutral_features=neutral)

    measured = measure_injection(head, injection, features, labels)

    is_correct = head.expand(injection.rows, injection.class_names).logits(features).argmax(axis=1) == labels
    U, S = is_correct[labels >= 40].mean(), is_correct[labels < 40].mean()
    assert measured.rates[1:3] == pytest.approx((U, S))
    assert measured.rates[3] == pytest.approx(2 * U * S / (U + S))
    assert measured.best_h >= 0.98 * measured.rates[3]
    assert measured.num_warnings == len(injection.estimate.warnings)
    assert measured.line("a head").startswith("a head ")
    assert COLUMNS.startswith("case")
