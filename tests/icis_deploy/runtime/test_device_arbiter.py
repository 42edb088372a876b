"""A device whose model takes arbiters: what it answers, what it keeps and gives back, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from icis_deploy.bundle.manifest import ARBITER_NAME, MANIFEST_NAME, load_manifest, serialize_manifest
from icis_deploy.errors import BundleError, CorruptFileError, IncompatibleError, SelfTestError
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime import operations
from icis_deploy.runtime.device import Device, session_of, state_of
from testing.asking import asking
from testing.bundles import (
    FEATURE_DIM,
    TAILS,
    features_of,
    files_in,
    images,
    make_update,
    new_logits,
    seen_head,
    signed_bytes,
    trust,
    write_bundle,
)

BATCH = images(40, seed=4)


def arbitrated(*added, version=1, **fields):
    """An update with coefficients of its own."""
    num_rows = len(added) + len(fields.get("replaced", ()))
    arbiter = np.random.default_rng(version + 70).normal(size=(num_rows, 5))
    return make_update(*added, version=version, **{"arbiter": arbiter, **fields})


@pytest.fixture
def folder(tmp_path, keys):
    """A bundle with three seen classes and four empty slots, whose model takes arbiters."""
    path = write_bundle(tmp_path / "with-arbiter", arbiter=True)
    trust(path, keys.public_path)
    return path


@pytest.fixture
def device(folder):
    return Device.open(folder, num_threads=1)


def expected_logits(update, *, disabled=(), batch=BATCH):
    """The logits of seen classes that are enabled, and of the update's, whose rows may have an arbiter."""
    arbiter = np.zeros((len(update.rows), 5)) if update.arbiter is None else update.arbiter
    enabled = [index for index, name in enumerate(seen_head().class_names) if name not in disabled]
    seen = seen_head().logits(features_of(batch))[:, enabled]
    return np.hstack([seen, new_logits(batch, update.rows, arbiter, disabled=disabled)])


def close(found, expected, *, up_to_a_shift=False):
    if up_to_a_shift:
        found, expected = found - found[:, :1], expected - expected[:, :1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


# Answers.


@pytest.mark.parametrize("score_kind", TAILS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_new_classes_are_weighed_image_by_image(runtime, score_kind, tmp_path, keys):
    pytest.importorskip(runtime)
    folder = write_bundle(tmp_path / "bundle", score_kind=score_kind, arbiter=True)
    trust(folder, keys.public_path)
    device, update = Device.open(folder, runtime=runtime, num_threads=1), arbitrated("okapi", "zebra")
    seen_before = device.logits(BATCH).values

    device.apply(signed_bytes(update, keys.private_path))

    answer, expected = device.logits(BATCH), expected_logits(update)
    close(answer.values, expected, up_to_a_shift=score_kind != "logits")
    if score_kind == "logits":
        np.testing.assert_array_equal(answer.values[:, :3], seen_before)
    names = np.array(device.classes())
    assert [each.class_names[0] for each in device.predict(BATCH)] == names[expected.argmax(axis=1)].tolist()
    assert state_of(device).correction is None


def test_rows_with_an_arbiter_stand_next_to_rows_without(device, signed):
    plain, with_arbiter = make_update("okapi", version=1), arbitrated("zebra", version=2)
    device.apply(signed(plain))
    device.apply(signed(with_arbiter))

    both = replace(
        plain,
        rows=np.vstack([plain.rows, with_arbiter.rows]),
        arbiter=np.vstack([np.zeros((1, 5)), with_arbiter.arbiter]),
        added=("okapi", "zebra"),
    )
    close(device.logits(BATCH).values, expected_logits(both))


def test_a_replaced_class_gives_up_its_arbiter_with_its_row(device, signed):
    device.apply(signed(arbitrated("okapi", version=1)))
    plain = make_update(version=2, replaced=("okapi",))
    device.apply(signed(plain))

    close(device.logits(BATCH).values, expected_logits(replace(plain, added=("okapi",), replaced=())))
    assert state_of(device).table.arbiter is None


def test_a_slot_that_became_empty_has_no_arbiter(device, signed):
    device.apply(signed(arbitrated("okapi", "zebra", version=1)))
    device.apply(signed(make_update(version=2, removed=("okapi",), rows=np.zeros((0, 5)))))

    assert not state_of(device).table.coefficients[0].any()
    assert state_of(device).table.coefficients[1].any()
    assert (session_of(device).run(BATCH, state_of(device).buffers).logits[:, [3, 5, 6]] < -5e4).all()


# What is kept and given back.


def test_rollback_restart_and_refresh_give_the_coefficients_of_the_state(device, folder, signed):
    updates = [arbitrated("okapi", version=1), arbitrated(version=2, replaced=("okapi",))]
    updates.append(make_update(version=3, replaced=("okapi",)))
    other = Device.open(folder, num_threads=1)
    for update in updates:
        device.apply(signed(update))
        assert other.refresh()
        for opened in (device, other, Device.open(folder)):
            close(opened.logits(BATCH).values, expected_logits(replace(update, added=("okapi",), replaced=())))
    for update in (updates[1], updates[0]):
        device.rollback()
        other.refresh()
        for opened in (device, other, Device.open(folder)):
            close(opened.logits(BATCH).values, expected_logits(replace(update, added=("okapi",), replaced=())))
    device.rollback()
    assert device.classes() == seen_head().class_names
    np.testing.assert_array_equal(state_of(device).table.coefficients, np.zeros((4, 5)))


def test_a_bundle_that_was_exported_with_an_arbiter_starts_with_it(tmp_path):
    update = arbitrated("okapi", "zebra")
    table = empty_slots(4, FEATURE_DIM).apply(update, seen_names=frozenset())
    device = Device.open(write_bundle(tmp_path / "bundle", arbiter=True, table=table))

    close(device.logits(BATCH).values, expected_logits(update))
    baked = session_of(device).run(BATCH).logits
    np.testing.assert_array_equal(baked, session_of(device).run(BATCH, state_of(device).buffers).logits)


def test_a_bundle_in_which_the_classes_are_baked_takes_its_place(device, tmp_path, keys, signed):
    first, second = arbitrated("okapi", version=1), arbitrated("zebra", version=2)
    device.apply(signed(first))
    device.apply(signed(second))
    before = device.logits(BATCH)
    compacted = write_bundle(
        tmp_path / "compacted", arbiter=True, baked=without_empty_slots(state_of(device).table), head_version=2
    )
    trust(compacted, keys.public_path)

    device.replace(compacted)

    assert (device.classes(), device.version) == (before.class_names, 2)
    close(device.logits(BATCH).values, before.values)
    third = arbitrated("quagga", version=3)
    device.apply(signed(third))
    values = device.logits(BATCH).values
    close(values[:, :5], before.values)
    close(values[:, 5:], new_logits(BATCH, third.rows, third.arbiter))
    device.disable("dog")
    expected = np.hstack(
        [
            seen_head().logits(features_of(BATCH))[:, [0, 2]],
            *(new_logits(BATCH, each.rows, each.arbiter, disabled=("dog",)) for each in (first, second, third)),
        ]
    )
    close(device.logits(BATCH).values, expected)


def without_empty_slots(table):
    return SlotTable(
        weight=table.weight[table.filled],
        bias=table.bias[table.filled],
        arbiter=table.coefficients[table.filled],
        class_names=table.filled_names,
    )


# Disabled seen classes take no part in the statistics.


@pytest.mark.parametrize("score_kind", TAILS)
@pytest.mark.parametrize("name", seen_head().class_names)
def test_a_disabled_seen_class_takes_no_part_in_the_statistics(name, score_kind, tmp_path, keys):
    folder = write_bundle(tmp_path / "bundle", score_kind=score_kind, arbiter=True)
    trust(folder, keys.public_path)
    device, update = Device.open(folder, num_threads=1), arbitrated("okapi", "zebra")
    device.apply(signed_bytes(update, keys.private_path))
    before = device.logits(BATCH)

    device.disable(name)

    expected = expected_logits(update, disabled=(name,))
    assert np.abs(expected[:, 2:] - expected_logits(update)[:, 3:]).max() > 0.1
    for opened in (device, Device.open(folder)):
        answer = opened.logits(BATCH)
        assert name not in answer.class_names
        close(answer.values, expected, up_to_a_shift=score_kind != "logits")
        assert [each.class_names[0] for each in opened.predict(BATCH)] == [
            answer.class_names[index] for index in expected.argmax(axis=1)
        ]
    device.enable(name)
    np.testing.assert_array_equal(device.logits(BATCH).values, before.values)


def test_an_update_and_a_rollback_while_a_seen_class_is_disabled(device, signed):
    first, second = arbitrated("okapi", version=1), arbitrated(version=2, replaced=("okapi",))
    device.apply(signed(first))
    device.disable("cat")
    device.apply(signed(second))
    close(
        device.logits(BATCH).values, expected_logits(replace(second, added=("okapi",), replaced=()), disabled=("cat",))
    )
    device.rollback()
    close(device.logits(BATCH).values, expected_logits(first, disabled=("cat",)))


def test_of_one_seen_class_the_variance_of_all_stays_and_of_none_everything(device, signed):
    update = arbitrated("okapi", "zebra")
    device.apply(signed(update))
    everything = device.logits(BATCH).values
    device.disable("cat")
    device.disable("dog")

    values = device.logits(BATCH).values
    seen = seen_head().logits(features_of(BATCH))
    deviations = np.linalg.norm(seen_head().rows - seen_head().rows.mean(axis=0), axis=1)
    change = np.stack(
        [
            seen[:, 2] - seen.max(axis=1),
            seen[:, 2] - seen.mean(axis=1),
            np.zeros(len(seen)),
            np.zeros(len(seen)),
            deviations[2] - deviations[seen.argmax(axis=1)],
        ],
        axis=1,
    )
    np.testing.assert_array_equal(values[:, 0], everything[:, 2])
    close(values[:, 1:], everything[:, 3:] + change @ update.arbiter.T)
    device.disable("owl")
    np.testing.assert_array_equal(device.logits(BATCH).values, everything[:, 3:])


def test_a_disabled_new_class_changes_the_logit_of_no_other(device, signed):
    device.apply(signed(arbitrated("okapi", "zebra")))
    before = device.logits(BATCH).values
    device.disable("okapi")

    assert state_of(device).correction is None
    np.testing.assert_array_equal(device.logits(BATCH).values, before[:, [0, 1, 2, 4]])


def test_no_correction_is_made_where_no_class_has_an_arbiter(device, signed):
    device.apply(signed(make_update("okapi")))
    device.disable("cat")

    assert state_of(device).correction is None


def test_a_fused_head_with_baked_classes_leaves_disabled_ones_out_too(tmp_path):
    update = arbitrated("okapi", "zebra")
    baked = empty_slots(2, FEATURE_DIM).apply(update, seen_names=frozenset())
    device = Device.open(write_bundle(tmp_path / "fused", capacity=0, arbiter=True, baked=baked))
    close(device.logits(BATCH).values, expected_logits(update))

    device.disable("dog")

    close(device.logits(BATCH).values, expected_logits(update, disabled=("dog",)))


def test_constants_that_cannot_be_read_are_found_before_a_class_is_disabled(device, folder, signed):
    device.apply(signed(arbitrated("okapi")))
    opened, before = Device.open(folder), files_in(folder)
    (folder / ARBITER_NAME).write_bytes(b"damaged")

    with pytest.raises(CorruptFileError, match=r"arbiter\.safetensors is damaged"):
        opened.disable("cat")
    assert opened.classes() == (*seen_head().class_names, "okapi")
    assert files_in(folder) == {**before, ARBITER_NAME: b"damaged"}


def test_a_class_disabled_by_an_operator_without_a_runtime_counts_from_the_next_refresh_on(device, folder, signed):
    update = arbitrated("okapi", "zebra")
    device.apply(signed(update))
    operations.disable(folder, "owl")

    assert device.refresh()
    close(device.logits(BATCH).values, expected_logits(update, disabled=("owl",)))


# What is refused.


def refused(device, folder, data, error, message):
    before, state = files_in(folder), state_of(device)
    with pytest.raises(error, match=message) as refusal:
        device.apply(data)
    assert files_in(folder) == before
    assert state_of(device) is state
    return refusal.value


def test_a_model_that_takes_no_arbiter_refuses_rows_that_have_one(bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=1)
    message = r"^The rows of 'okapi' have an arbiter, and this bundle's model takes none\."
    error = refused(device, bundle_folder, signed(arbitrated("okapi")), IncompatibleError, message)

    assert error.found == "rows with an arbiter"
    assert error.expected == "rows with constant offsets"
    assert error.hint == "Export it again with `arbiter='auto'`, or inject with `arbiter='off'`."
    device.apply(signed(make_update("okapi", arbiter=np.zeros((1, 5)))))
    assert device.classes()[-1] == "okapi"


def test_coefficients_that_did_not_arrive_are_taken_back(device, folder, signed):
    class Deaf:
        """A session that loads rows and no coefficients."""

        def __init__(self, session):
            self.run, self.read_slots, self._session = session.run, session.read_slots, session

        def load_slots(self, weight, bias, arbiter=None):
            return self._session.load_slots(weight, bias)

    deaf = Device(folder=folder, bundle=device.bundle, session=Deaf(session_of(device)), state=state_of(device))
    message = r"2 of 4 slots do not hold their rows after they were written: 'okapi', 'zebra'\. .* taken back"
    refused(deaf, folder, signed(arbitrated("okapi", "zebra")), SelfTestError, message)


def test_a_bundle_without_its_constants_is_refused(folder):
    bundle = load_manifest(folder)
    values = {name: entry for name, entry in bundle.files.items() if name != ARBITER_NAME}

    with pytest.raises(BundleError, match=r"does not name \['arbiter\.safetensors'\]"):
        replace(bundle, files=values)


def test_an_old_manifest_says_nothing_of_an_arbiter_and_means_none(folder):
    plain = replace(load_manifest(folder), arbiter=False)
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(plain))
    device = Device.open(folder)

    assert not device.bundle.arbiter
    close(device.logits(BATCH).values, seen_head().logits(features_of(BATCH)))


# Threads.


def test_no_answer_has_the_coefficients_of_another_version(device, signed):
    versions = range(1, 11)
    updates = {version: arbitrated("okapi", version=version) for version in versions}
    batch = images(2)

    with asking(lambda: device.logits(batch), num_threads=3) as asked:
        for version, update in updates.items():
            given = update if version == 1 else replace(update, added=(), replaced=("okapi",))
            device.apply(signed(given))
            device.enable("cat") if version % 2 else device.disable("cat")
            asked.wait_for_answers()

    assert {answer.version for answer in asked.answers} >= set(versions)
    for answer in asked.answers:
        disabled = () if "cat" in answer.class_names else ("cat",)
        if answer.version:
            close(answer.values, expected_logits(updates[answer.version], disabled=disabled, batch=batch))
