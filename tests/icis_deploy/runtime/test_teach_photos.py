"""A device is taught a class by photos: with and without a descriptor, one after the other, and back again."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.bundle.manifest import MANIFEST_NAME, load_manifest, serialize_manifest
from icis_deploy.bundle.reference import Reference
from icis_deploy.errors import (
    CapacityError,
    ClassConflictError,
    CorruptFileError,
    GuardError,
    ICISDeployWarning,
    ImageError,
    IncompatibleError,
    RuntimeFailureError,
    SelfTestError,
    UsageError,
)
from icis_deploy.few_shot.refining import PhotoFeatures, refine_rows
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.state.journal import parse_journal, serialize_journal
from icis_deploy.updates.signing import KeyPair
from testing.bundles import (
    FEATURE_DIM,
    features_of,
    files_in,
    images,
    make_update,
    seen_head,
    signed_bytes,
    trust,
    write_bundle,
)
from testing.references import add_few_shot, add_reference, make_few_shot, make_reference
from tests.icis_deploy.runtime.test_teach import DESCRIPTORS, HEAD, NUM_SEEN, add_generator, described

BUDGET, ACCURACY = 0.1, 0.9
"""What the classes may lose, and how accurate the model is on them: `make_few_shot`'s."""
PHOTOS = {"okapi": images(2, seed=11), "quagga": images(1, seed=12), "zebu": images(3, seed=13)}


@pytest.fixture
def teachable(tmp_path: Path, keys: KeyPair) -> Path:
    """A bundle of twelve seen classes and four slots, with a generator and a reference, for photos."""
    folder = write_bundle(tmp_path / "teachable", capacity=4, head=HEAD, arbiter=True)
    trust(folder, keys.public_path)
    add_generator(folder)
    add_reference(folder, make_reference(head=HEAD), max_changed_answers=0.3)
    return add_few_shot(folder, make_few_shot(head=HEAD, max_seen_loss=BUDGET))


def teach_all(device: Device, names: Sequence[str]) -> None:
    for name in names:
        device.teach(name, images=PHOTOS[name])


def table_rows(device: Device, names: Sequence[str]) -> np.ndarray:
    table = state_of(device).table
    return np.stack([table.rows()[table.filled_names.index(name)] for name in names])


def lost_share(reference: Reference, rows: np.ndarray) -> float:
    """Share of the reference's answers that rows take from the seen classes, each of which counts the same."""
    new = (reference.features @ rows[:, :-1].T + rows[:, -1]).max(axis=1)
    is_lost = new > reference.statistics[:, 0] + 1e-4
    return float(np.mean([is_lost[reference.answers == one].mean() for one in np.unique(reference.answers)]))


def test_a_class_of_photos_alone_answers_to_them(teachable: Path) -> None:
    device = Device.open(teachable)
    entry = device.teach("okapi", images=PHOTOS["okapi"])

    assert (entry.action, entry.class_name, entry.version, entry.num_added) == ("teach", "okapi", 0, 1)
    assert device.classes() == (*HEAD.class_names, "okapi")
    (row,) = table_rows(device, ["okapi"])
    context = make_few_shot(head=HEAD).context
    shown = PhotoFeatures(features=features_of(PHOTOS["okapi"]).astype(np.float32), classes=np.zeros(2, dtype=np.int64))
    expected = refine_rows(np.zeros((1, FEATURE_DIM + 1), np.float32), shown, context, has_prior=np.array([False]))[0]
    np.testing.assert_allclose(row[:-1], expected[:-1], rtol=1e-4, atol=1e-5)
    assert Device.open(teachable).classes() == device.classes()


def test_together_taught_classes_lose_no_more_than_the_budget(teachable: Path) -> None:
    device, reference = Device.open(teachable), make_reference(head=HEAD)
    for number in range(1, 4):
        teach_all(device, list(PHOTOS)[number - 1 : number])
        lost = lost_share(reference, table_rows(device, list(PHOTOS)[:number]))
        assert 0.0 < lost * ACCURACY <= BUDGET


def test_the_order_of_teaching_makes_no_difference(teachable: Path, tmp_path: Path) -> None:
    import shutil

    found = []
    for number, order in enumerate(permutations(PHOTOS)):
        copy = tmp_path / str(number)
        shutil.copytree(teachable, copy)
        device = Device.open(copy)
        teach_all(device, order)
        found.append(table_rows(device, list(PHOTOS)))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-5)


def test_a_descriptor_and_photos_go_together(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"), images=PHOTOS["okapi"])
    (both,) = table_rows(device, ["okapi"])
    device.rollback()
    device.teach("okapi", described("okapi"))
    (prior,) = table_rows(device, ["okapi"])
    context = make_few_shot(head=HEAD).context
    shown = PhotoFeatures(features=features_of(PHOTOS["okapi"]).astype(np.float32), classes=np.zeros(2, dtype=np.int64))
    expected = refine_rows(prior[None], shown, context)[0]
    np.testing.assert_allclose(both[:-1], expected[:-1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(both[:-1], prior[:-1], rtol=1e-2)


def test_the_checks_of_a_descriptor_hold_with_photos(teachable: Path) -> None:
    device, before = Device.open(teachable), files_in(teachable)
    with pytest.raises(ClassConflictError, match="described like 'seen 4'"):
        device.teach("new", DESCRIPTORS.values[4], images=PHOTOS["okapi"])
    with pytest.raises(ClassConflictError, match="the head already knows it"):
        device.teach(HEAD.class_names[0], images=PHOTOS["okapi"])
    assert files_in(teachable) == before


def test_a_class_that_looks_like_another_one_is_refused_by_its_name(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", images=PHOTOS["okapi"])
    before = files_in(teachable)
    with pytest.raises(ClassConflictError, match=r"'forest giraffe' was not taught: it looks like 'okapi'") as caught:
        device.teach("forest giraffe", images=PHOTOS["okapi"])
    assert "photos that show what sets it apart" in str(caught.value)
    assert files_in(teachable) == before


def test_teaching_is_rolled_back_with_the_offset_of_the_others(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", images=PHOTOS["okapi"])
    first = table_rows(device, ["okapi"])
    teach_all(device, ["quagga", "zebu"])
    assert not np.array_equal(table_rows(device, ["okapi"]), first)
    device.rollback()
    device.rollback()
    np.testing.assert_array_equal(table_rows(device, ["okapi"]), first)
    # What comes next starts from that state.
    teach_all(device, ["quagga"])
    again = Device.open(teachable)
    np.testing.assert_array_equal(table_rows(again, ["okapi", "quagga"]), table_rows(device, ["okapi", "quagga"]))
    again.rollback()
    np.testing.assert_array_equal(table_rows(again, ["okapi"]), first)


def test_a_class_is_taught_anew_by_other_photos_in_its_slot(teachable: Path) -> None:
    device = Device.open(teachable)
    teach_all(device, ["okapi", "quagga"])
    before = state_of(device).table
    entry = device.teach("okapi", images=PHOTOS["zebu"])
    assert (entry.num_added, entry.num_replaced) == (0, 1)
    assert state_of(device).table.class_names == before.class_names
    other = Device.open(teachable)
    other.rollback(), other.rollback(), other.rollback()
    other.teach("okapi", images=PHOTOS["zebu"])
    teach_all(other, ["quagga"])
    np.testing.assert_allclose(
        table_rows(device, ["okapi", "quagga"]), table_rows(other, ["okapi", "quagga"]), rtol=1e-5, atol=1e-5
    )


def test_a_class_that_is_taught_anew_by_its_descriptor_leaves_the_offset(teachable: Path) -> None:
    device = Device.open(teachable)
    teach_all(device, ["okapi", "quagga"])
    device.teach("okapi", described("okapi"))
    (described_row,) = table_rows(device, ["okapi"])
    teach_all(device, ["zebu"])
    np.testing.assert_array_equal(table_rows(device, ["okapi"])[0], described_row)


def test_a_signed_update_takes_a_class_over_and_leaves_the_others(teachable: Path, keys: KeyPair) -> None:
    device = Device.open(teachable)
    teach_all(device, ["okapi", "quagga"])
    quagga = table_rows(device, ["quagga"])
    update = make_update("okapi", version=1, base_fingerprint=HEAD.fingerprint)
    device.apply(signed_bytes(update, keys.private_path), allow_changed_answers=True)
    np.testing.assert_array_equal(table_rows(device, ["okapi"])[0], update.rows[0])
    np.testing.assert_array_equal(table_rows(device, ["quagga"]), quagga)
    teach_all(device, ["zebu"])
    np.testing.assert_array_equal(table_rows(device, ["okapi"])[0], update.rows[0])
    journal = parse_journal((teachable / "state" / "journal.json").read_bytes())
    assert journal.current.by_photos == ("quagga", "zebu")


def test_the_history_and_the_journal_say_which_photos_and_hold_no_picture(teachable: Path) -> None:
    device = Device.open(teachable)
    entry = device.teach("okapi", images=PHOTOS["okapi"])
    hashes = tuple(hashlib.sha256(photo.tobytes()).hexdigest() for photo in PHOTOS["okapi"])
    assert entry.photos_sha256 == hashes
    assert Device.open(teachable).history() == (entry,)
    data = (teachable / "state" / "journal.json").read_bytes()
    assert serialize_journal(parse_journal(data)) == data
    assert len(data) < 2000


def test_a_journal_without_photos_is_as_it_ever_was(teachable: Path) -> None:
    Device.open(teachable).teach("okapi", described("okapi"))
    assert b"photo" not in (teachable / "state" / "journal.json").read_bytes()


def test_the_same_photo_twice_counts_once_and_is_named(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", images=PHOTOS["okapi"][:1])
    once = table_rows(device, ["okapi"])
    with pytest.warns(ICISDeployWarning, match=r"The photo array\[1\] is the same as array\[0\], and counts once"):
        entry = device.teach("okapi", images=np.repeat(PHOTOS["okapi"][:1], 2, axis=0))
    assert len(entry.photos_sha256) == 1
    np.testing.assert_allclose(table_rows(device, ["okapi"]), once, rtol=1e-5)


def test_photos_of_a_class_that_the_model_is_sure_of_are_taught_with_a_warning(teachable: Path) -> None:
    device = Device.open(teachable)
    sure = images(400, seed=3)
    answers = device.predict(sure, top=1)
    name = answers[0].class_names[0]
    shown = [
        index for index, each in enumerate(answers) if each.class_names[0] == name and each.probabilities[0] >= 0.9
    ]
    message = f"sure that 3 of 3 photos of 'okapi' show '{name}', which it knows"
    with pytest.warns(ICISDeployWarning, match=message) as warned:
        device.teach("okapi", images=sure[shown[:3]])
    assert "okapi" in device.classes()
    assert warned[0].filename == __file__  # where the class is taught, not where the library finds out


def test_photos_of_something_new_warn_of_nothing(teachable: Path) -> None:
    device = Device.open(teachable)
    unsure = images(400, seed=3)
    answers = device.predict(unsure, top=1)
    shown = [index for index, each in enumerate(answers) if each.probabilities[0] < 0.6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device.teach("okapi", images=unsure[shown[:3]])


def test_a_reference_that_is_not_of_images_is_named(teachable: Path) -> None:
    bundle = replace(load_manifest(teachable), reference_source="pseudo-features")
    (teachable / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    with pytest.warns(ICISDeployWarning, match="features that stand in for images of known classes"):
        Device.open(teachable).teach("okapi", images=PHOTOS["okapi"])


def test_nothing_and_too_much_are_refused(teachable: Path) -> None:
    device, before = Device.open(teachable), files_in(teachable)
    for given, words in (
        ({}, "Nothing says what 'okapi' is"),
        ({"images": PHOTOS["okapi"][:0]}, "1 to 100 photos; found none"),
        ({"images": []}, "1 to 100 photos; found none"),
        ({"images": images(101)}, "1 to 100 photos; found more"),
    ):
        with pytest.raises(UsageError, match=words):
            device.teach("okapi", **given)
    assert files_in(teachable) == before


def test_files_need_a_bundle_that_states_how_they_are_prepared(teachable: Path) -> None:
    with pytest.raises(UsageError, match=r"okapi\.jpg is an image, and nothing says how images are prepared"):
        Device.open(teachable).teach("okapi", images=["okapi.jpg"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_photo_of_which_the_model_makes_no_numbers_is_named(value: float, teachable: Path) -> None:
    device, before = Device.open(teachable), files_in(teachable)
    shown = PHOTOS["zebu"].copy()
    shown[1] = value
    with pytest.raises(ImageError, match=r"array\[1\] holds (nan|inf)"):
        device.teach("okapi", images=shown)
    assert files_in(teachable) == before


def test_a_photo_that_overflows_the_model_is_named(teachable: Path) -> None:
    """Finite as it is, its features are not."""
    device, before = Device.open(teachable), files_in(teachable)
    shown = np.concatenate([PHOTOS["zebu"], np.full((1, 6), 3e38, np.float32), np.full((1, 6), -3e38, np.float32)])
    with np.errstate(over="ignore"):
        assert not np.isfinite(device._opened.session.run(shown, with_features=True).features[3:]).all()

    with pytest.raises(ImageError, match=r"^The model's features of the photo array\[\d\] are no finite numbers"):
        device.teach("okapi", images=shown)
    with pytest.raises(RuntimeFailureError, match="features of an image are no finite numbers"):
        device.embed(shown)
    assert files_in(teachable) == before


def test_photos_that_are_the_mean_of_all_have_no_direction(teachable: Path) -> None:
    zero = features_of(np.zeros((1, 6), np.float32))[0].astype(np.float32)
    few_shot = make_few_shot(head=HEAD)
    context = replace(few_shot.context, feature_mean=zero)
    add_few_shot(teachable, replace(few_shot, context=context))
    before = files_in(teachable)
    with pytest.raises(IncompatibleError, match=r"okapi.*was not taught.*have no direction"):
        Device.open(teachable).teach("okapi", images=np.zeros((1, 6), np.float32))
    assert files_in(teachable) == before


def test_teaching_stops_at_the_last_slot(teachable: Path) -> None:
    device = Device.open(teachable)
    for number in range(4):
        device.teach(f"class {number}", images=images(1, seed=20 + number))
    before = files_in(teachable)
    with pytest.raises(CapacityError, match="4 slots, 4 used"):
        device.teach("fifth", images=images(1, seed=30))
    assert files_in(teachable) == before


def test_the_guard_is_asked_and_its_limit_bounds_the_budget(teachable: Path) -> None:
    reference = make_reference(head=HEAD)
    add_reference(teachable, reference, max_changed_answers=0.02)
    device = Device.open(teachable)
    entry = device.teach("okapi", images=PHOTOS["okapi"])  # the budget alone would take 10 %
    assert entry.changed_answers is not None
    assert entry.changed_answers <= 0.02
    with pytest.raises(GuardError, match="copy"):
        device._opened.updater.teach("cat again", lambda _table: HEAD.rows[0])


def test_a_disabled_class_loses_nothing(teachable: Path) -> None:
    device = Device.open(teachable)
    answers = make_reference(head=HEAD).answers
    most = HEAD.class_names[int(np.bincount(answers).argmax())]
    device.teach("okapi", images=PHOTOS["okapi"])
    before = table_rows(device, ["okapi"])[0, -1]
    device.disable(most)
    device.teach("okapi", images=PHOTOS["okapi"])
    assert table_rows(device, ["okapi"])[0, -1] != before
    for name in HEAD.class_names[:-1]:
        device.disable(name)
    if (answers == NUM_SEEN - 1).any():
        device.teach("okapi", images=PHOTOS["okapi"])
    device.disable(HEAD.class_names[-1])
    with pytest.raises(IncompatibleError, match="All classes that the bundle's reference shows are disabled"):
        device.teach("okapi", images=PHOTOS["okapi"])


def test_one_wrong_bit_in_a_slot_takes_all_of_it_back(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", images=PHOTOS["okapi"])
    session, before = session_of(device), files_in(teachable)

    class Damaged:
        """A session whose memory loses the sign of a bias."""

        run, read_slots, top = session.run, session.read_slots, session.top

        def load_slots(self, weight: np.ndarray, bias: np.ndarray, arbiter: np.ndarray | None = None) -> object:
            wrong = bias.copy()
            wrong[0] = -wrong[0]
            bias.flags.writeable = True
            bias[...] = wrong
            return session.load_slots(weight, bias, arbiter)

    other = Device(folder=teachable, bundle=device.bundle, session=Damaged(), state=state_of(device))
    with pytest.raises(SelfTestError, match="slots do not hold their rows"):
        other.teach("quagga", images=PHOTOS["quagga"])
    assert files_in(teachable) == before


def test_a_bundle_without_what_photos_need_says_how_to_export_one(tmp_path: Path) -> None:
    old = add_reference(write_bundle(tmp_path / "old"))
    fused = write_bundle(tmp_path / "fused", capacity=0)
    for folder in (old, fused):
        with pytest.raises(IncompatibleError, match=r"has no few_shot\.safetensors"):
            Device.open(folder).teach("okapi", images=images(1))
    assert not (old / "state").exists()


def test_a_generator_of_an_earlier_release_says_so_and_photos_alone_do(teachable: Path) -> None:
    add_few_shot(teachable, make_few_shot(head=HEAD, has_generator=False))
    device = Device.open(teachable)
    with pytest.raises(IncompatibleError, match="written by an earlier release"):
        device.teach("okapi", described("okapi"), images=PHOTOS["okapi"])
    assert device.teach("okapi", images=PHOTOS["okapi"]).num_added == 1


def test_embed_gives_what_the_head_multiplies(teachable: Path, tmp_path: Path) -> None:
    device = Device.open(teachable)
    given = images(5)
    found = device.embed(given)
    assert (found.shape, found.dtype) == ((5, FEATURE_DIM), np.float32)
    np.testing.assert_allclose(found, features_of(given), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found @ HEAD.weight.T + HEAD.bias, device.logits(given).values, rtol=1e-4, atol=1e-4)
    given[2] = np.nan
    with pytest.raises(ImageError, match=r"array\[2\] holds nan"):
        device.embed(given)
    fused = Device.open(write_bundle(tmp_path / "fused", capacity=0, head=seen_head()))
    with pytest.raises(IncompatibleError, match="gives no features: its head is fused") as caught:
        fused.embed(images(1))
    assert "`head='updatable'`" in str(caught.value.hint)


def test_another_process_goes_on_where_one_stopped(teachable: Path, signed: Callable[[ClassUpdate], bytes]) -> None:
    first, second = Device.open(teachable), Device.open(teachable)
    teach_all(first, ["okapi"])
    teach_all(second, ["quagga"])
    teach_all(first, ["zebu"])
    alone = make_reference(head=HEAD)
    assert lost_share(alone, table_rows(first, list(PHOTOS))) * ACCURACY <= BUDGET
    assert parse_journal((teachable / "state" / "journal.json").read_bytes()).current.by_photos == tuple(PHOTOS)


def test_a_forged_journal_that_names_a_class_no_slot_has_is_refused(teachable: Path) -> None:
    device = Device.open(teachable)
    teach_all(device, ["okapi"])
    path = teachable / "state" / "journal.json"
    journal = parse_journal(path.read_bytes())
    current = replace(journal.current, taught=("okapi", "unicorn"), by_photos=("okapi", "unicorn"))
    path.write_bytes(serialize_journal(replace(journal, states=(*journal.states[:-1], current))))
    with pytest.raises(CorruptFileError, match="lack taught classes \\('unicorn'\\)"):
        Device.open(teachable)
    with pytest.raises(CorruptFileError, match="lack taught classes"):
        device.teach("quagga", images=PHOTOS["quagga"])


def test_a_class_that_an_operator_allowed_does_not_stop_the_next_one(teachable: Path) -> None:
    device = Device.open(teachable)
    context = make_few_shot(head=HEAD).context
    # A photo whose direction is that of a seen row: a copy of that class.
    features = features_of(images(4000, seed=17))
    directions = features - context.feature_mean
    rows = (HEAD.rows - context.mean_row)[:, :-1]
    cosines = (directions @ rows.T) / np.linalg.norm(directions, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    copy = images(4000, seed=17)[[int(cosines.max(axis=1).argmax())]]
    assert cosines.max() > 0.995
    with pytest.raises(GuardError, match="is a copy of that of"):
        device.teach("twin", images=copy)
    assert device.teach("twin", images=copy, allow_changed_answers=True).allowed_past_guard
    assert not device.teach("okapi", images=PHOTOS["okapi"]).allowed_past_guard
