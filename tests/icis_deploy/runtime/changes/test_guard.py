"""The guard on real devices: what takes too many answers is refused, whoever signed it, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icis_deploy.api.diff import diff
from icis_deploy.bundle.manifest import INJECTED_NAME, MANIFEST_NAME, file_entry, load_manifest, serialize_manifest
from icis_deploy.bundle.slot_files import serialize_slots
from icis_deploy.errors import CorruptFileError, GuardError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.slots import EMPTY_SLOT_BIAS, SlotTable, empty_slots
from icis_deploy.runtime.changes.guard import (
    ChangedAnswers,
    Guard,
    _blocks,
    _moved_rows,
    _product,
    _winners,
    load_guard,
)
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.updates.envelope import save_update
from testing.bundles import FEATURE_DIM, SEEN_NAMES, files_in, make_update, seen_head, write_bundle
from testing.references import add_reference, make_reference

REFERENCE = make_reference()
MOST_FREQUENT = int(np.bincount(REFERENCE.answers).argmax())


def row(weight: Any = 0.0, bias: float = 0.0) -> np.ndarray:
    return np.append(np.broadcast_to(np.asarray(weight, np.float32), FEATURE_DIM), np.float32(bias))


def update_of(**rows_by_name: np.ndarray) -> ClassUpdate:
    return make_update(*rows_by_name, rows=np.stack(list(rows_by_name.values())))


def honest(*names: str, version: int = 1, **fields: Any) -> ClassUpdate:
    """An update that wins none of the reference images."""
    rows = [row(0.01 * index, bias=-50.0) for index in range(len(names) + len(fields.get("replaced", ())))]
    return make_update(*names, version=version, rows=np.array(rows).reshape(-1, FEATURE_DIM + 1), **fields)


HOSTILE = {
    "a great bias": row(bias=50.0),
    "the greatest bias": row(bias=1e30),
    "all weights alike": row(100.0),
    "a row copied from the most frequent class": seen_head().rows[MOST_FREQUENT],
    "a copy that is a little stronger": seen_head().rows[MOST_FREQUENT] * np.float32(1.01),
    "a copy with a lower bias": seen_head().rows[MOST_FREQUENT] - row(bias=1.0),
    "logits that are no numbers": row([1e30, -1e30, 1e30, -1e30]),
}


ONE_WINNER = update_of(hijack=row(1e6, bias=-50.0))
"""Answers every image that has any feature at all."""


@pytest.fixture
def guarded(bundle_folder: Path) -> Path:
    return add_reference(bundle_folder, REFERENCE)


@pytest.fixture
def guard(guarded: Path) -> Guard:
    return load_guard(guarded, load_manifest(guarded))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_signed_update_that_takes_answers_is_refused_and_every_byte_stays(
    name: str, guarded: Path, signed: Callable[[ClassUpdate], bytes]
):
    device = Device.open(guarded)
    device.apply(signed(honest("quagga")))
    before, state = files_in(guarded), state_of(device)

    with pytest.raises(GuardError) as caught:
        device.apply(signed(replace(update_of(hijack=HOSTILE[name]), version=2)))

    assert caught.value.exit_code == 1
    assert "'hijack'" in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    assert files_in(guarded) == before
    assert state_of(device) is state
    # The version is not spent.
    entry = device.apply(signed(honest("okapi", version=2))).entry
    assert (entry.changed_answers, entry.allowed_past_guard) == (0.0, False)


def test_the_message_says_how_many_answers_go_where_and_what_to_do(
    guarded: Path, signed: Callable[[ClassUpdate], bytes]
):
    with pytest.raises(GuardError) as caught:
        Device.open(guarded).apply(signed(update_of(hijack=row(bias=60.0), okapi=row(bias=-60.0))))

    assert str(caught.value).startswith(
        "The change takes 200 of 200 answers on known classes (100.0 %) from the classes that give them now; "
        "this bundle lets one change take 5.0 %. They would go to 'hijack' (200). Nothing was changed."
    )
    assert "`allow_changed_answers=True`" in str(caught.value)
    assert (caught.value.found, caught.value.expected) == (1.0, "at most 0.05")


def test_where_the_reference_is_no_images_the_message_asks_for_some():
    changed = ChangedAnswers(num_reference=15, num_changed=3, limit=0.05, takers=(("okapi", 3),))

    with pytest.raises(GuardError) as caught:
        changed.require_few()
    assert "`seen_images`" not in str(caught.value)
    with pytest.raises(GuardError, match=r"features that stand in for images, .* again with `seen_images`"):
        replace(changed, is_reference_drawn=True).require_few()


@pytest.mark.parametrize(("source", "is_drawn"), [("pseudo-features", True), ("seen images", False), (None, False)])
def test_what_changes_says_whether_its_reference_was_drawn(source: str | None, is_drawn: bool, guarded: Path):
    guard = load_guard(guarded, replace(load_manifest(guarded), reference_source=source))
    empty = empty_slots(4, FEATURE_DIM)

    assert guard.changed_answers(empty, empty, written=()).is_reference_drawn is is_drawn


def test_a_class_that_is_disabled_hides_no_answers_from_the_guard(
    guarded: Path, signed: Callable[[ClassUpdate], bytes]
):
    device = Device.open(guarded)
    device.apply(signed(update_of(strongest=row(bias=90.0))), allow_changed_answers=True)
    device.disable("strongest")

    with pytest.raises(GuardError, match=r"'hijack' \(200\)"):
        device.apply(signed(replace(update_of(hijack=row(bias=50.0)), version=2)))


def test_an_operator_may_allow_it_and_the_history_says_so(guarded: Path, signed: Callable[[ClassUpdate], bytes]):
    data = signed(update_of(hijack=row(bias=50.0)))
    device = Device.open(guarded)

    entry = device.apply(data, allow_changed_answers=True).entry

    assert (entry.changed_answers, entry.allowed_past_guard) == (1.0, True)
    assert Device.open(guarded).history() == (entry,)
    assert not device.apply(data, allow_changed_answers=True).changed  # it is in effect


def test_a_copy_that_an_operator_allows_is_in_the_history_though_it_takes_no_answer(
    guarded: Path, signed: Callable[[ClassUpdate], bytes]
):
    copied = update_of(okapi=seen_head().rows[MOST_FREQUENT] - row(bias=100.0))

    entry = Device.open(guarded).apply(signed(copied), allow_changed_answers=True).entry

    assert (entry.changed_answers, entry.allowed_past_guard) == (0.0, True)


def test_the_history_says_how_many_answers_every_change_changed(guarded: Path, signed: Callable[[ClassUpdate], bytes]):
    device = Device.open(guarded)
    within = device.apply(signed(honest("okapi")), allow_changed_answers=True).entry
    assert (within.changed_answers, within.allowed_past_guard) == (0.0, False)
    assert Device.open(guarded).history() == (within,)


def test_a_bundle_without_a_reference_takes_what_it_took_before(
    bundle_folder: Path, signed: Callable[[ClassUpdate], bytes]
):
    assert Device.open(bundle_folder).apply(signed(update_of(hijack=row(bias=50.0)))).entry.changed_answers is None


def test_the_limit_is_the_bundles(bundle_folder: Path, signed: Callable[[ClassUpdate], bytes]):
    add_reference(bundle_folder, REFERENCE, max_changed_answers=1.0)
    assert Device.open(bundle_folder).apply(signed(update_of(hijack=row(bias=50.0)))).entry.version == 1


def test_a_limit_of_zero_lets_no_answer_change(bundle_folder: Path):
    guard = load_guard(add_reference(bundle_folder, REFERENCE, max_changed_answers=0.0), load_manifest(bundle_folder))

    assert not changed_by(guard, empty_slots(4, FEATURE_DIM), honest("okapi")).is_refused
    one_of_all = replace(REFERENCE, features=REFERENCE.features * (np.arange(200) == 7)[:, None])
    changed = changed_by(Guard(load_manifest(bundle_folder), one_of_all), empty_slots(4, FEATURE_DIM), ONE_WINNER)
    assert (changed.num_changed, changed.limit, changed.is_refused) == (1, 0.0, True)


def test_a_taught_class_obeys_the_same_rule(guarded: Path):
    updater = Device.open(guarded)._opened.updater
    before = files_in(guarded)

    with pytest.raises(GuardError, match="'hijack' \\(200\\)"):
        updater.teach("hijack", lambda _table: row(bias=50.0))

    assert files_in(guarded) == before
    assert updater.teach("okapi", lambda _table: row(bias=-50.0)).changed_answers == 0.0
    with pytest.raises(GuardError):
        updater.teach("okapi", lambda _table: row(bias=50.0))  # taught anew
    entry = updater.teach("okapi", lambda _table: row(bias=50.0), allow_changed_answers=True)
    assert (entry.changed_answers, entry.allowed_past_guard) == (1.0, True)


def test_a_damaged_reference_refuses_updates_by_name(guarded: Path, signed: Callable[[ClassUpdate], bytes]):
    device = Device.open(guarded)
    (guarded / "reference.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"reference\.safetensors"):
        device.apply(signed(honest("okapi")))


def test_diff_shows_what_apply_would_refuse_and_refuses_nothing(guarded: Path, tmp_path: Path):
    path = tmp_path / "new.icis"
    save_update(update_of(hijack=row(bias=50.0), okapi=row(bias=-50.0)), path)

    changed = diff(guarded, path).changed_answers

    assert changed == ChangedAnswers(num_reference=200, num_changed=200, limit=0.05, takers=(("hijack", 200),))
    assert changed.is_refused
    save_update(honest("okapi"), path)
    assert diff(guarded, path).changed_answers == ChangedAnswers(
        num_reference=200, num_changed=0, limit=0.05, takers=()
    )
    assert diff(path, path).changed_answers is None
    assert diff(write_bundle(tmp_path / "old"), path).changed_answers is None


# The rules, on values.


def table_of(**rows_by_name: np.ndarray) -> SlotTable:
    return empty_slots(6, FEATURE_DIM).apply(update_of(**rows_by_name), seen_names=frozenset(SEEN_NAMES))


def changed_by(guard: Guard, before: SlotTable, update: ClassUpdate, **options: Any) -> ChangedAnswers:
    after = before.apply(update, seen_names=frozenset(SEEN_NAMES))
    return guard.changed_answers(before, after, written=update.class_names, **options)


def expected_winners(table: SlotTable) -> list[str]:
    """Names of the winners by the head's own rule, in float64."""
    head = seen_head().expand(table.rows(), table.filled_names)
    names = [head.class_names[index] for index in head.logits(REFERENCE.features).argmax(axis=1)]
    return ["seen" if name in SEEN_NAMES else name for name in names]


@pytest.mark.parametrize("seed", range(5))
def test_answers_are_those_of_the_head(seed: int, guard: Guard):
    random = np.random.default_rng(seed)
    before = table_of(a=random.normal(size=FEATURE_DIM + 1), b=random.normal(size=FEATURE_DIM + 1))
    update = make_update("c", "d", seed=seed + 100)

    changed = changed_by(guard, before, update)

    after = before.apply(update, seen_names=frozenset(SEEN_NAMES))
    pairs = zip(expected_winners(before), expected_winners(after), strict=True)
    moved = [new for old, new in pairs if old != new]
    assert changed.num_changed == len(moved) > 0
    assert dict(changed.takers) == {name: moved.count(name) for name in set(moved)}
    assert [count for _, count in changed.takers] == sorted((count for _, count in changed.takers), reverse=True)


def test_coefficients_of_an_arbiter_count(guard: Guard):
    by_statistics = np.zeros((1, 5), np.float32)
    by_statistics[0, 0] = 1.0  # the greatest seen logit, and a little more
    update = replace(update_of(okapi=row(bias=0.01)), arbiter=by_statistics)

    assert changed_by(guard, empty_slots(4, FEATURE_DIM), update).share == 1.0
    assert changed_by(guard, empty_slots(4, FEATURE_DIM), replace(update, rows=row(bias=-0.01)[None])).share == 0.0


def test_a_class_that_the_change_replaces_or_removes_may_lose_its_answers(guard: Guard):
    before = table_of(bad=row(bias=50.0), other=row(bias=-50.0))

    assert changed_by(guard, before, make_update(removed=("bad",), rows=np.zeros((0, 5)))).num_changed == 0
    assert changed_by(guard, before, honest(replaced=("bad",))).num_changed == 0
    assert changed_by(guard, before, make_update("more", rows=row(bias=60.0)[None])).takers == (("more", 200),)


def test_replacing_a_class_by_one_that_takes_answers_counts(guard: Guard):
    update = make_update(replaced=("okapi",), rows=row(bias=50.0)[None])
    assert changed_by(guard, table_of(okapi=row(bias=-50.0)), update).takers == (("okapi", 200),)


def test_an_added_class_in_the_slot_of_a_removed_one_is_another_class(guard: Guard):
    update = make_update("hijack", removed=("okapi",), rows=row(bias=50.0)[None])
    assert changed_by(guard, table_of(okapi=row(bias=-50.0)), update).takers == (("hijack", 200),)


def test_disabled_classes_take_no_part(guard: Guard):
    update, empty = update_of(hijack=row(bias=50.0)), empty_slots(4, FEATURE_DIM)

    other = update_of(other=row(bias=-50.0))
    assert changed_by(guard, table_of(hijack=row(bias=50.0)), other, disabled=("hijack",)).num_changed == 0
    disabled = changed_by(guard, empty, update, disabled=("cat",))
    assert disabled.num_reference == disabled.num_changed == np.count_nonzero(REFERENCE.answers != 0)
    assert changed_by(guard, empty, update, disabled=SEEN_NAMES).share == 0.0
    strongest = table_of(strongest=row(bias=90.0))
    assert changed_by(guard, strongest, update).num_changed == 0
    assert changed_by(guard, strongest, update, disabled=("strongest",)).share == 1.0


def test_a_row_that_comes_while_its_class_is_disabled_is_asked_about_as_if_it_were_enabled(
    guarded: Path, signed: Callable[[ClassUpdate], bytes]
):
    """To enable a class asks nobody."""
    device = Device.open(guarded)
    device.apply(signed(update_of(okapi=row(bias=-50.0))))
    device.disable("okapi")
    hijack = make_update(replaced=("okapi",), rows=row(bias=50.0)[None], version=2)

    with pytest.raises(GuardError, match=r"'okapi' \(200\)"):
        device.apply(signed(hijack))
    copied = make_update(replaced=("okapi",), rows=(seen_head().rows[MOST_FREQUENT] - row(bias=1.0))[None], version=2)
    with pytest.raises(GuardError, match="is a copy of"):
        device.apply(signed(copied))


def test_a_disabled_class_that_is_replaced_hides_no_other_one(guard: Guard):
    before = table_of(strongest=row(bias=90.0))
    rows = np.stack([row(bias=50.0), row(bias=-50.0)])
    update = make_update("hijack", replaced=("strongest",), rows=rows)
    assert changed_by(guard, before, update).num_changed == 0
    assert changed_by(guard, before, update, disabled=("strongest",)).takers == (("hijack", 200),)


def test_a_copy_of_a_disabled_class_is_no_copy(guard: Guard):
    update = update_of(okapi=seen_head().rows[MOST_FREQUENT] - row(bias=1.0))

    name = SEEN_NAMES[MOST_FREQUENT]
    assert changed_by(guard, empty_slots(4, FEATURE_DIM), update).copies == (("okapi", name),)
    assert changed_by(guard, empty_slots(4, FEATURE_DIM), update, disabled=(name,)).copies == ()


@pytest.mark.parametrize(("cosine", "is_copy"), [(0.9, False), (0.97, False), (0.99, False), (0.996, True)])
def test_a_row_is_a_copy_from_a_cosine_on_that_no_predicted_row_has(cosine: float, is_copy: bool, guard: Guard):
    weight = seen_head().rows[:, :-1]
    mean = weight.mean(axis=0)
    seen = (weight - mean)[MOST_FREQUENT]
    seen = seen / np.linalg.norm(seen)
    # At a right angle to what all seen rows have in common, so that it is nearest to this one.
    other = np.linalg.svd(weight - mean)[2][-1]
    near = mean + 2 * (cosine * seen + np.sqrt(1 - cosine**2) * other)

    changed = changed_by(guard, empty_slots(4, FEATURE_DIM), update_of(okapi=row(near, bias=-100.0)))

    assert changed.copies == ((("okapi", SEEN_NAMES[MOST_FREQUENT]),) if is_copy else ())


def test_an_answer_that_is_no_number_is_taken(guard: Guard):
    # Features so great that products of rows within their limit overflow, and sum up to no number.
    great = Guard(guard._bundle, replace(REFERENCE, features=np.full_like(REFERENCE.features, 1e10)))
    update = update_of(hijack=row([1e30, -1e30, 1e30, -1e30]))

    assert changed_by(great, empty_slots(4, FEATURE_DIM), update).takers == (("hijack", 200),)


def test_a_class_that_was_removed_hides_none_that_comes_after_it(guard: Guard):
    before = table_of(low=row(bias=-50.0), strong=row(bias=50.0))
    removal = make_update(removed=("low", "strong"), rows=np.zeros((0, FEATURE_DIM + 1)))
    assert changed_by(guard, before, removal).num_changed == 0
    emptied = guard._held[-1][0]  # the very table, whose logits the guard still has

    # In the slot of `low`; that of `strong` stays empty.
    assert changed_by(guard, emptied, update_of(hijack=row(bias=40.0))).takers == (("hijack", 200),)


def test_states_that_were_compared_before_give_the_same_as_new_ones(guard: Guard, guarded: Path):
    updates = [make_update(f"class {version}", seed=version, version=version) for version in range(1, 5)]
    table = empty_slots(6, FEATURE_DIM)
    for update in updates:
        changed_by(guard, table, honest("refused"))
        found = changed_by(guard, table, update)
        assert found == changed_by(load_guard(guarded, load_manifest(guarded)), table, update)
        table = table.apply(update, seen_names=frozenset(SEEN_NAMES))


@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 5, 17), (70, 2048, 33), (0, 4, 16), (2, 300_000, 2)], ids=str)
def test_a_product_in_blocks_is_the_product(shape: tuple[int, int, int]):
    """Blocks and rows at once depend on the depth; none may be left out, and none of the padding may stay."""
    num_rows, depth, width = shape
    random = np.random.default_rng(0)
    left = random.normal(size=(num_rows, depth)).astype(np.float32)
    right = random.normal(size=(depth, width)).astype(np.float32)

    blocks = _blocks(right)
    found = _product(left, blocks, width=width)

    assert blocks[0].size < 1 << 19, "BLAS would wake its threads"
    assert found.shape == (num_rows, width)
    np.testing.assert_allclose(found, left.astype(np.float64) @ right, rtol=1e-4, atol=1e-3 * depth**0.5)


def test_classes_that_were_baked_in_stand_for_themselves(guarded: Path):
    bundle = load_manifest(guarded)
    baked = SlotTable(weight=[[0.0] * FEATURE_DIM], bias=[80.0], class_names=("baked",))
    path = guarded / INJECTED_NAME
    path.write_bytes(serialize_slots(baked))
    bundle = replace(
        bundle, class_names=(*SEEN_NAMES, "baked"), files={**bundle.files, INJECTED_NAME: file_entry(path)}
    )
    (guarded / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    guard = load_guard(guarded, load_manifest(guarded))
    update, empty = update_of(hijack=row(bias=50.0)), empty_slots(4, FEATURE_DIM)

    assert changed_by(guard, empty, update).num_changed == 0
    assert changed_by(guard, empty, update, disabled=("baked",)).share == 1.0


def test_slots_of_any_order_are_compared(guard: Guard):
    weight, bias = np.zeros((4, FEATURE_DIM)), np.full(4, EMPTY_SLOT_BIAS)
    bias[2] = -50.0
    before = SlotTable(weight=weight, bias=bias, class_names=(None, None, "okapi", None))
    assert changed_by(guard, before, update_of(hijack=row(bias=50.0))).takers == (("hijack", 200),)


def slots_of(*names: str | None) -> SlotTable:
    biases = [EMPTY_SLOT_BIAS if name is None else 0.0 for name in names]
    return SlotTable(weight=np.zeros((len(names), FEATURE_DIM)), bias=biases, class_names=names)


def test_logits_that_are_kept_go_with_their_slots_and_not_with_their_order():
    logits = np.array([[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]], dtype=np.float32)

    moved = _moved_rows(slots_of("a", "b", None, "c"), slots_of(None, "b", "new", "c"), logits)

    np.testing.assert_array_equal(moved[[0, 2]], logits[1:])
    assert moved.shape == (3, 2)


def test_a_logit_that_is_no_number_answers_as_it_might_in_a_runtime():
    logits = np.array([[-1.0, np.nan, 1.0]], dtype=np.float32)

    winners = _winners(logits, slots_of(None, "a"), np.zeros(3, dtype=np.float32), frozenset())
    assert (winners == 1).tolist() == [False, True, True]
