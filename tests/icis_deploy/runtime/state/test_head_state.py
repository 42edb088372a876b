from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.state.head_state import enabled_columns, make_head_state
from testing.bundles import FEATURE_DIM, make_update, write_bundle


@pytest.fixture
def bundle(tmp_path):
    return load_manifest(write_bundle(tmp_path / "bundle"))


def table_with(*updates):
    table = empty_slots(4, FEATURE_DIM)
    for update in updates:
        table = table.apply(update, seen_names=frozenset())
    return table


def columns_of(bundle, table, disabled=()):
    columns, names = enabled_columns(bundle, table, frozenset(disabled))
    return np.arange(7)[columns].tolist(), names, isinstance(columns, slice)


def test_slots_filled_without_a_gap_need_no_copy_of_the_logits(bundle):
    assert columns_of(bundle, None) == ([0, 1, 2], ("cat", "dog", "owl"), True)
    assert columns_of(bundle, table_with()) == ([0, 1, 2], ("cat", "dog", "owl"), True)
    assert columns_of(bundle, table_with(make_update("a", "b"))) == (
        [0, 1, 2, 3, 4],
        ("cat", "dog", "owl", "a", "b"),
        True,
    )


def test_an_empty_slot_between_filled_ones_is_no_class(bundle):
    table = table_with(make_update("a", "b", "c"), make_update(removed=("b",), rows=np.zeros((0, FEATURE_DIM + 1))))

    assert columns_of(bundle, table) == ([0, 1, 2, 3, 5], ("cat", "dog", "owl", "a", "c"), False)


def test_disabled_classes_are_left_out_whether_baked_or_in_a_slot(bundle):
    table = table_with(make_update("a", "b"))

    assert columns_of(bundle, table, ["dog", "a"]) == ([0, 2, 4], ("cat", "owl", "b"), False)
    assert columns_of(bundle, table, ["b"]) == ([0, 1, 2, 3], ("cat", "dog", "owl", "a"), True)
    assert columns_of(bundle, None, ["cat"]) == ([1, 2], ("dog", "owl"), False)
    assert columns_of(bundle, None, ["a class of another state"]) == ([0, 1, 2], ("cat", "dog", "owl"), True)


def chosen_of(bundle, table=None, disabled=()):
    state = make_head_state(bundle, None, table=table, version=1, disabled=disabled, buffers=object())
    return state.score_names, state.max_model_top


def test_a_models_choice_counts_unless_it_could_be_a_disabled_class(bundle):
    choosing, baked = replace(bundle, top=2), ("cat", "dog", "owl")
    gap = table_with(make_update("a", "b"), make_update(removed=("a",), rows=np.zeros((0, FEATURE_DIM + 1))))

    assert chosen_of(bundle) == (baked, 0)
    assert chosen_of(choosing) == (baked, 2)
    assert chosen_of(choosing, gap) == ((*baked, None, "b", None, None), 2)
    assert chosen_of(choosing, gap, ["a class of another state"]) == ((*baked, None, "b", None, None), 2)
    for name in (*baked, "b"):
        assert chosen_of(choosing, gap, [name])[1] == 0
    assert chosen_of(replace(bundle, top=3))[1] == chosen_of(replace(bundle, top=7), gap)[1] == sys.maxsize
