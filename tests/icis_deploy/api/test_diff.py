from __future__ import annotations

import numpy as np
import pytest

from icis_deploy.api.diff import compare_rows, diff
from icis_deploy.errors import CapacityError, IncompatibleError, LoadError, WrongBaseError
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import save_update
from testing.bundles import make_update, seen_head, write_bundle


def rows(*weights):
    return np.array([[*weight, 0.5] for weight in weights], np.float32)


def test_classes_come_go_move_and_stay():
    report = compare_rows(
        ["gone", "same", "turned", "longer"],
        rows([1, 0], [0, 1], [1, 0], [1, 1]),
        ["new", "longer", "turned", "same"],
        rows([3, 4], [3, 3], [0, 2], [0, 1]),
    )

    assert (report.added, report.removed, report.num_unchanged) == (("new",), ("gone",), 1)
    assert [moved.name for moved in report.moved] == ["turned", "longer"]
    assert report.moved[0].cosine == pytest.approx(0.0)
    assert report.moved[0].length_ratio == pytest.approx(2.0)
    assert (report.moved[1].cosine, report.moved[1].length_ratio) == (pytest.approx(1.0), pytest.approx(3.0))


def test_the_closest_pairs_come_first_and_each_once():
    report = compare_rows([], rows([0, 0])[:0], ["a", "b", "c"], rows([1, 0], [1, 0.1], [0, 1]))

    assert [(one.name, one.nearest) for one in report.nearest] == [("a", "b"), ("c", "b")]
    assert report.nearest[0].cosine == pytest.approx(1 / np.hypot(1, 0.1))


def test_many_classes_are_compared_in_parts():
    weights = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    names = [str(index) for index in range(700)]
    report = compare_rows([], np.zeros((0, 4), np.float32), names, weights)

    unit = weights[:, :3] / np.linalg.norm(weights[:, :3], axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(700)
    nearest = {name: names[cosines[index].argmax()] for index, name in enumerate(names)}
    found = {one.name: one.nearest for one in report.nearest}
    assert found.items() <= nearest.items()
    assert {nearest[name]: name for name in nearest.keys() - found.keys()}.items() <= found.items()
    assert len({frozenset(pair) for pair in found.items()}) == len(found)


def test_rows_without_length_are_no_failure():
    report = compare_rows(["a"], rows([0, 0]), ["a", "b"], rows([1, 0], [0, 0]))

    assert (report.moved[0].cosine, report.moved[0].length_ratio) == (0.0, float("inf"))
    assert report.nearest[0].cosine == 0.0


def test_one_class_alone_has_no_nearest():
    assert compare_rows([], rows([0, 0])[:0], ["a"], rows([1, 0])).nearest == ()


@pytest.fixture
def old(tmp_path):
    save_update(make_update("okapi", "zebra"), tmp_path / "old.icis")
    return tmp_path / "old.icis"


@pytest.fixture
def bundle(tmp_path, old):
    folder = write_bundle(tmp_path / "bundle")
    Device.open(folder).apply(old, allow_unsigned=True)
    return folder


def test_two_updates(old, tmp_path):
    save_update(make_update("zebra", "quagga", seed=4), tmp_path / "new.icis")

    report = diff(old, tmp_path / "new.icis")
    assert (report.added, report.removed, [moved.name for moved in report.moved]) == (
        ("quagga",),
        ("okapi",),
        ["zebra"],
    )


def test_what_an_update_would_do_to_a_bundle(bundle, tmp_path):
    save_update(make_update("quagga", version=2, replaced=("zebra",), removed=("okapi",)), tmp_path / "new.icis")

    report = diff(bundle, tmp_path / "new.icis")
    assert (report.added, report.removed, [moved.name for moved in report.moved]) == (
        ("quagga",),
        ("okapi",),
        ["zebra"],
    )
    assert [(one.name, one.nearest) for one in report.nearest] == [("quagga", "zebra")]
    assert Device.open(bundle).version == 1


def test_two_bundles_and_an_update_with_a_bundle(bundle, old, tmp_path):
    other = write_bundle(tmp_path / "other")

    assert diff(other, bundle).added == ("okapi", "zebra")
    assert diff(bundle, other).removed == ("okapi", "zebra")
    assert diff(old, bundle).num_unchanged == 2


def test_what_cannot_be_compared_is_refused(bundle, old, tmp_path):
    save_update(make_update("a", base_fingerprint=seen_head(seed=3).fingerprint), tmp_path / "foreign.icis")
    save_update(make_update("a", "b", "c"), tmp_path / "large.icis")
    fused = write_bundle(tmp_path / "fused", capacity=0)

    with pytest.raises(WrongBaseError, match=r"OLD was made for the head \w{16}…, NEW for \w{16}…"):
        diff(old, tmp_path / "foreign.icis")
    with pytest.raises(WrongBaseError, match="OLD was made for the head"):
        diff(bundle, tmp_path / "foreign.icis")
    with pytest.raises(CapacityError, match="adds 3 classes; 4 slots, 2 used"):
        diff(bundle, tmp_path / "large.icis")
    with pytest.raises(IncompatibleError, match="has a fused head: it has no slots to compare"):
        diff(fused, old)
    with pytest.raises(LoadError, match=r"Cannot read the class update .*missing"):
        diff(old, tmp_path / "missing")
