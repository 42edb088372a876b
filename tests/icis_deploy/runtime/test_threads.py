"""Threads predict while updates are applied: every answer belongs to exactly one version."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from icis_deploy.runtime.device import Device
from testing.asking import asking
from testing.bundles import features_of, images, make_update, seen_head

NUM_THREADS = 3
NUM_UPDATES = 12


def test_no_answer_is_torn_dropped_or_mislabelled_while_classes_change(bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=1)
    # Each version has one more class or one fewer, under names and rows of its own: a mixture would show.
    updates = {
        version: make_update(
            *(f"v{version} class {index}" for index in range(1 + version % 4)),
            version=version,
            removed=tuple(f"v{version - 1} class {index}" for index in range(1 + (version - 1) % 4) if version > 1),
        )
        for version in range(1, NUM_UPDATES + 1)
    }
    batch = images(2)
    expected = {0: (("cat", "dog", "owl"), seen_head().logits(features_of(batch)))}
    for version, update in updates.items():
        head = seen_head().expand(update.rows, update.class_names)
        expected[version] = (head.class_names, head.logits(features_of(batch)))

    with asking(lambda: device.logits(batch), num_threads=NUM_THREADS) as asked:
        asked.wait_for_answers()
        for update in updates.values():
            device.apply(signed(update))
            asked.wait_for_answers()

    assert {answer.version for answer in asked.answers} == expected.keys()
    for answer in asked.answers:
        class_names, logits = expected[answer.version]
        assert set(answer.class_names) == set(class_names)
        order = [answer.class_names.index(name) for name in class_names]
        np.testing.assert_allclose(answer.values[:, order], logits, rtol=1e-4, atol=1e-4)


def test_threads_that_apply_at_once_come_one_after_the_other(bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=1)
    others = [Device.open(bundle_folder, num_threads=1) for _ in range(3)]
    start, failures = threading.Barrier(4), []

    def apply(opened, version):
        start.wait()
        try:
            opened.apply(signed(make_update(f"class {version}", version=version)))
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=apply, args=(opened, version)) for version, opened in enumerate([device, *others], 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Whoever comes after a greater version is refused; nobody's classes are lost or mixed.
    taken = [entry.version for entry in Device.open(bundle_folder).history()]
    assert taken == sorted(taken)
    assert len(taken) + len(failures) == 4
    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl", *(f"class {version}" for version in taken))


@pytest.mark.parametrize("num_changes", [20])
def test_one_device_changed_by_many_threads_ends_in_the_state_on_the_disk(num_changes, bundle_folder, signed):
    device = Device.open(bundle_folder, num_threads=1)
    device.apply(signed(make_update("okapi", version=1)))

    def switch():
        for _ in range(num_changes):
            device.disable("dog")
            device.enable("dog")
            device.refresh()

    threads = [threading.Thread(target=switch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert device.classes() == Device.open(bundle_folder).classes()
