from __future__ import annotations

import json
import time
from threading import Event

import pytest

from benchmarks.updates.changing_head import has_expected_label
from benchmarks.updates.class_swap import measure_class_swap
from benchmarks.updates.reports import text_of
from icis_deploy.errors import RuntimeFailureError, UsageError
from icis_deploy.head.slots import empty_slots
from icis_deploy.runtime.answers import Prediction
from icis_deploy.runtime.device import Device
from testing.bundles import FEATURE_DIM, files_in, make_update, seen_head, write_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def swap(bundle, *, seconds=0.1):
    return measure_class_swap(
        bundle, seconds=seconds, num_threads=2, updates_per_second=40, num_new_classes=3, num_rounds=2
    )


def test_every_answer_belongs_to_one_version_and_the_bundle_stays_as_it_was(bundle):
    before = files_in(bundle.parent)

    report = swap(bundle, seconds=0.3)

    assert report.is_clean
    assert report.num_updates == 12
    assert report.num_versions_seen > 3
    assert report.num_answers > 12
    assert files_in(bundle.parent) == before
    assert json.loads(json.dumps(report.to_json()))["num_torn"] == 0
    assert "0 torn, 0 wrong labels, 0 dropped" in text_of(report)
    assert report.p99_ratio is None
    assert "ratio unknown" in text_of(report)


def test_what_updates_add_to_the_tail_is_a_ratio_with_an_interval(bundle, monkeypatch):
    apply, predict, changing = Device.apply, Device.predict, Event()
    slow_s = 0.05  # far above what other work on the machine makes of an answer

    def apply_slowly(device, update, **options):
        changing.set()
        time.sleep(slow_s)
        changing.clear()
        return apply(device, update, **options)

    def wait_for_updates(device, images, *, top):
        time.sleep(slow_s if changing.is_set() else 0.1 * slow_s)
        return predict(device, images, top=top)

    monkeypatch.setattr(Device, "apply", apply_slowly)
    monkeypatch.setattr(Device, "predict", wait_for_updates)
    for seconds in (1.6, 6.4, 25.6):  # as long as a busy machine takes for so many answers that they have a p99
        report = measure_class_swap(
            bundle, seconds=seconds, num_threads=8, updates_per_second=10, num_new_classes=3, num_rounds=8
        )
        if report.p99_ratio is not None and report.p99_ratio_of_same is not None:
            break

    assert report.p99_ratio.low > 1
    assert report.p99_ratio_of_same.low <= report.p99_ratio_of_same.value < report.p99_ratio.value
    assert report.apply_median_ms > 1e3 * slow_s
    assert 0 <= report.others_share < 1
    assert report.to_json()["p99_ratio"]["value"] == report.p99_ratio.value
    assert f"x {report.p99_ratio.value:.2f} (" in text_of(report)


def test_answers_before_the_first_update_are_those_of_the_slots_that_were_exported(tmp_path):
    seen = frozenset(seen_head().class_names)
    table = empty_slots(4, FEATURE_DIM).apply(make_update("okapi", "zebra"), seen_names=seen)

    assert swap(write_bundle(tmp_path / "bundle", table=table)).is_clean


def test_rows_of_one_version_under_the_names_of_another_are_noticed(bundle, monkeypatch):
    predict = Device.predict

    def torn(device, images, *, top):
        (prediction,) = predict(device, images, top=top)
        names = tuple(name.replace(f"version {prediction.version} ", "version 1 ") for name in prediction.class_names)
        return [prediction._replace(class_names=names)]

    monkeypatch.setattr(Device, "predict", torn)
    report = swap(bundle)

    assert not report.is_clean
    assert report.num_torn > 0
    assert report.num_wrong_labels > 0


def test_rows_of_another_version_under_the_right_names_are_noticed(bundle, monkeypatch):
    predict = Device.predict

    def torn(device, images, *, top):
        (prediction,) = predict(device, images, top=top)
        return [prediction._replace(probabilities=tuple(0.98 * each for each in prediction.probabilities))]

    monkeypatch.setattr(Device, "predict", torn)

    assert swap(bundle).num_torn > 0


def test_a_request_without_an_answer_is_counted_as_dropped(bundle, monkeypatch):
    predict, calls = Device.predict, iter(range(1 << 30))

    def fail_sometimes(device, images, *, top):
        if next(calls) % 9 == 8:
            raise RuntimeFailureError("the runtime is gone")
        return predict(device, images, top=top)

    monkeypatch.setattr(Device, "predict", fail_sometimes)
    report = swap(bundle)

    assert not report.is_clean
    assert report.num_dropped > 0
    assert "dropped: RuntimeFailureError: the runtime is gone" in text_of(report)


def test_a_device_that_answers_nothing_is_an_error_that_says_why(bundle, monkeypatch):
    def fail(*_, **__):
        raise RuntimeFailureError("the runtime is gone")

    monkeypatch.setattr(Device, "predict", fail)

    with pytest.raises(RuntimeFailureError, match=r"^No request was answered .*: RuntimeFailureError: the runtime is"):
        swap(bundle)


@pytest.mark.parametrize("changed", [{"num_new_classes": 5}, {"seconds": 0}, {"num_threads": 0}])
def test_what_is_no_run_is_refused(bundle, changed):
    with pytest.raises(UsageError, match=r"^ClassSwap needs "):
        measure_class_swap(bundle, **{"num_new_classes": 2} | changed)


def test_classes_that_are_as_probable_may_stand_in_either_order():
    right = Prediction(("okapi", "zebra", "cat"), (0.4001, 0.3999, 0.2), 1)

    assert has_expected_label(Prediction(("zebra", "okapi", "cat"), (0.4, 0.4, 0.2), 1), right)
    assert not has_expected_label(Prediction(("cat", "okapi", "zebra"), (0.4, 0.4, 0.2), 1), right)
    assert not has_expected_label(Prediction(("quagga", "okapi", "zebra"), (0.4, 0.4, 0.2), 1), right)
