"""What an update follows, and which bundles may take it: the carrier delivers, it does not choose."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import icis_deploy
from icis_deploy.bundle.manifest import load_manifest, target_digest
from icis_deploy.cli.main import run
from icis_deploy.errors import ClassConflictError, UpdateOrderError, UsageError, WrongBaseError
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.updates.envelope import load_update, save_update
from testing.bundles import files_in, make_update


@pytest.fixture
def publish(tmp_path, keys):
    """Sign for a bundle in its present state, as a publisher does with a copy of a device."""

    def signed_for(bundle, *added, **fields):
        terms = {"complete": True} if fields.get("complete") else {}
        path = tmp_path / f"v{fields['version']}-{len(list(tmp_path.iterdir()))}.icis"
        save_update(make_update(*added, **fields), path)
        icis_deploy.sign(path, key=keys.private_path, bundle=bundle, **terms)
        return path

    return signed_for


@pytest.fixture
def staged(tmp_path, bundle_folder):
    """The publisher's own copy of the bundle."""
    return shutil.copytree(bundle_folder, tmp_path / "staged")


def test_an_update_that_skips_a_recall_is_refused_and_says_what_to_deliver(bundle_folder, staged, publish):
    copy, device = Device.open(staged), Device.open(bundle_folder)
    first = publish(staged, "okapi", "trojan", version=1)
    copy.apply(first)
    device.apply(first)
    recall = publish(staged, removed=("trojan",), version=2)
    copy.apply(recall)
    third = publish(staged, "zebra", version=3)
    before = files_in(bundle_folder)

    with pytest.raises(UpdateOrderError, match=r"follows version 2 .* is at version 1 .*Deliver version 2 first"):
        device.apply(third)

    assert files_in(bundle_folder) == before
    device.apply(recall)
    device.apply(third)
    assert device.classes() == ("cat", "dog", "owl", "okapi", "zebra")


def test_an_update_for_other_classes_of_the_same_version_is_refused(bundle_folder, staged, publish):
    copy, device = Device.open(staged), Device.open(bundle_folder)
    device.apply(publish(bundle_folder, "okapi", version=1))
    copy.apply(publish(staged, "zebra", version=1))

    with pytest.raises(UpdateOrderError, match=r"follows version 1 .* is at version 1 .* whose classes differ"):
        device.apply(publish(staged, "gnu", version=2))
    assert device.classes() == ("cat", "dog", "owl", "okapi")


def test_a_complete_update_jumps_and_its_result_does_not_depend_on_history(bundle_folder, staged, publish):
    one, other = Device.open(bundle_folder), Device.open(staged)
    one.apply(publish(bundle_folder, "okapi", "trojan", version=1))
    whole = publish(bundle_folder, "zebra", "okapi", version=5, complete=True)

    one.apply(whole)
    other.apply(whole)

    assert one.classes() == other.classes() == ("cat", "dog", "owl", "zebra", "okapi")
    assert state_of(one).table == state_of(other).table
    assert not one.apply(whole).changed  # it is in effect
    assert state_of(one).version == 5


def test_a_complete_update_may_take_every_class_back(bundle_folder, publish):
    device = Device.open(bundle_folder)
    device.apply(publish(bundle_folder, "okapi", version=1))

    device.apply(publish(bundle_folder, version=2, complete=True))

    assert device.classes() == ("cat", "dog", "owl")


def test_disabling_changes_nothing_that_an_update_follows(bundle_folder, staged, publish):
    device = Device.open(bundle_folder)
    device.disable("dog")

    device.apply(publish(staged, "okapi", version=1))

    assert device.classes() == ("cat", "owl", "okapi")


def test_teaching_changes_nothing_that_an_update_follows_and_no_complete_one_takes_it_away(
    bundle_folder, staged, publish
):
    device = Device.open(bundle_folder)
    row = make_update("quagga").rows[0]
    device._opened.updater.teach("quagga", lambda _table: row)

    device.apply(publish(staged, "okapi", version=1))
    device.apply(publish(staged, "zebra", version=2, complete=True))

    assert set(device.classes()) == {"cat", "dog", "owl", "quagga", "zebra"}


def test_after_a_rollback_the_hint_asks_for_a_complete_update_because_the_version_is_spent(
    bundle_folder, staged, publish
):
    copy, device = Device.open(staged), Device.open(bundle_folder)
    first = publish(staged, "okapi", version=1)
    for each in (copy, device):
        each.apply(first)
    device.rollback()
    second = publish(staged, "zebra", version=2)

    with pytest.raises(UpdateOrderError, match=r"at version 0 .*`complete=True`, which any state takes"):
        device.apply(second)


@pytest.mark.parametrize("change", ["preprocessing", "model"])
def test_an_update_for_another_bundle_of_the_same_head_is_refused(change, bundle_folder, tmp_path, publish):
    other = shutil.copytree(bundle_folder, tmp_path / "other")
    path = other / "manifest.json"
    values = json.loads(path.read_bytes())
    if change == "preprocessing":
        values["preprocessing"] = {
            "resize": None,
            "crop": 2,
            "mean": [9, 9, 9],
            "std": [1, 1, 1],
            "color": "BGR",
            "layout": "NHWC",
        }
    else:
        import hashlib

        import onnx

        model = onnx.load(other / "model.onnx")
        model.doc_string = "another backbone"
        onnx.save(model, other / "model.onnx")
        data = (other / "model.onnx").read_bytes()
        values["files"]["model.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    path.write_text(json.dumps(values))
    update = publish(bundle_folder, "okapi", version=1, complete=True)

    with pytest.raises(WrongBaseError, match="was signed for other bundles"):
        Device.open(other).apply(update)

    Device.open(bundle_folder).apply(update)


def test_the_digest_is_of_the_classes_and_not_of_their_slots():
    from icis_deploy.head.slots import empty_slots

    rows = make_update("okapi", "zebra")
    swapped = make_update("zebra", "okapi")
    swapped = icis_deploy.ClassUpdate(
        base_fingerprint=rows.base_fingerprint, rows=rows.rows[::-1], added=("zebra", "okapi")
    )
    tables = [
        empty_slots(capacity, rows.feature_dim).apply(update, seen_names=frozenset())
        for capacity, update in ((4, rows), (9, swapped))
    ]

    assert tables[0].digest() == tables[1].digest()
    assert tables[0].digest(leaving_out=("zebra",)) == tables[1].without(("zebra",)).digest() != tables[0].digest()
    changed = rows.rows.copy()
    changed.view(np.uint32)[1, 2] ^= 1
    other = icis_deploy.ClassUpdate(base_fingerprint=rows.base_fingerprint, rows=changed, added=rows.added)
    assert empty_slots(4, rows.feature_dim).apply(other, seen_names=frozenset()).digest() != tables[0].digest()


def test_a_binding_survives_the_file_and_is_signed(bundle_folder, publish):
    update = load_update(publish(bundle_folder, "okapi", version=1))

    assert update.follows is not None
    assert (update.follows.version, update.complete, len(update.targets)) == (0, False, 1)


def test_a_complete_update_that_replaces_or_follows_contradicts_itself():
    with pytest.raises(ClassConflictError, match="is complete, so it follows nothing"):
        make_update("okapi", replaced=("zebra",), complete=True)


def test_a_set_of_keys_far_beyond_all_before_it_needs_force(tmp_path, keys, capsys):
    """No root keys give versions of sets back: after the greatest, no key could ever be revoked."""
    out = tmp_path / "keys.icis"
    options = ["--trust", str(keys.public_path), "--key", str(keys.private_path), "--out", str(out)]

    with pytest.raises(UsageError, match=r"more than 2\^32 above 0"):
        icis_deploy.rotate_keys([keys.public_path], key=keys.private_path, version=(1 << 32) + 1, out=out)
    assert run(["rotate-keys", *options, "--version", str((1 << 63) - 1)]) == 2
    assert "--force" in capsys.readouterr().err
    assert not out.exists()

    assert run(["rotate-keys", *options, "--version", str(1 << 32)]) == 0
    assert run(["sign", str(out), "--key", str(keys.private_path), "--version", str((1 << 63) - 1)]) == 2
    assert run(["sign", str(out), "--key", str(keys.private_path), "--version", str((1 << 63) - 1), "--force"]) == 0
    assert icis_deploy.verify_update(out, trust=[keys.public_path]).content.version == (1 << 63) - 1


def test_an_update_may_name_several_bundles_and_any_of_them_takes_it(bundle_folder, signed):
    own = target_digest(load_manifest(bundle_folder))
    for version, targets in ((1, ("00" * 32, own)), (2, (own, "ff" * 32))):  # whichever comes first
        update = make_update(f"class {version}", version=version, targets=targets)
        assert Device.open(bundle_folder).apply(signed(update)).changed


def test_a_device_whose_own_classes_are_disabled_takes_one_that_is_left_to_choose(bundle_folder, signed):
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("okapi")))
    for name in device.bundle.class_names:
        device.disable(name)

    device.apply(signed(make_update("zebra", removed=("okapi",), version=2)))
    assert device.classes() == ("zebra",)


def test_a_version_far_beyond_all_before_it_needs_force(tmp_path, keys):
    path = tmp_path / "far.icis"
    save_update(make_update("okapi"), path)
    before = path.read_bytes()

    with pytest.raises(UsageError, match=r"more than 2\^32 above 0"):
        icis_deploy.sign(path, key=keys.private_path, version=(1 << 32) + 1)

    assert path.read_bytes() == before
    assert icis_deploy.sign(path, key=keys.private_path, version=1 << 32).content.version == 1 << 32
    forced = icis_deploy.sign(path, key=keys.private_path, version=(1 << 63) - 1, force=True)
    assert forced.content.version == (1 << 63) - 1
