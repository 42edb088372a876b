"""Real processes: killed in the middle of changes, and changing one bundle at the same time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.runtime.device import Device
from scripts.robustness.crowd import is_right, run_crowd
from scripts.robustness.kill_loop import run_kill_loop
from scripts.robustness.kill_loop_replace import check_all, run_replace_kill_loop
from scripts.robustness.soak import run_soak
from testing.bundles import images, make_update, write_signed
from testing.interruptions import Interruptions

REPOSITORY = Path(__file__).resolve().parents[3]


def test_processes_killed_while_they_apply_and_roll_back_leave_whole_states(tmp_path):
    """A few of the hundreds of kills that `scripts/robustness/kill_loop.py` makes."""
    report = run_kill_loop(tmp_path, num_kills=24, seed=0)

    assert (report.num_kills, report.num_lost) == (24, 0)
    assert report.num_changes_committed >= report.num_kills  # else most were killed before they wrote anything


def test_processes_killed_while_they_go_over_to_another_bundle_leave_whole_bundles(tmp_path):
    report = run_replace_kill_loop(tmp_path, num_kills=4, seed=0)

    assert (report.num_kills, report.num_lost) == (4, 0)
    assert report.num_changes_committed > report.num_kills  # each applies an update before it goes over to anything


def test_a_crowd_of_processes_and_threads_gets_no_wrong_answer(tmp_path):
    report = run_crowd(tmp_path, 2, seed=0)

    assert report.num_wrong == 0
    assert report.num_answers > 50
    assert report.num_changes > 0


def test_an_answer_of_two_states_mixed_would_be_noticed(bundle_folder, signed):
    device, batch = Device.open(bundle_folder), images(2)
    device.apply(signed(make_update("class 1", version=1)))
    one = device.logits(batch)
    device.apply(signed(make_update("class 2", version=2, removed=("class 1",))))
    other = device.logits(batch)

    assert is_right(one, batch)
    assert is_right(other, batch)
    assert not is_right(one._replace(values=other.values), batch)
    assert not is_right(one._replace(version=2), batch)
    assert not is_right(one._replace(class_names=other.class_names), batch)
    assert not is_right(one._replace(class_names=one.class_names[:3], values=one.values[:, :3]), batch)


def test_many_updates_leave_a_process_with_what_it_had(tmp_path):
    report = run_soak(tmp_path, 100, seed=0)

    assert report.num_wrong == 0
    assert report.is_clean, report.summary


def test_what_a_process_keeps_would_be_noticed(tmp_path):
    report = run_soak(tmp_path, 15, seed=0)
    more = replace(report.early, num_descriptors=report.early.num_descriptors + 1)

    assert not replace(report, late=more).is_clean
    assert not replace(
        report, late=replace(report.early, resident_bytes=report.early.resident_bytes + (3 << 20))
    ).is_clean


def test_a_bundle_that_forgot_what_the_device_remembered_would_be_noticed(bundle_folder, signed):
    device = Device.open(bundle_folder)
    device.apply(signed(make_update("class 1", version=1)))
    device.disable("dog")

    with pytest.raises(AssertionError, match="forgot what stands outside"):
        check_all([bundle_folder])


# Between opening a file and entering its `with`, an interruption leaves it to Python's collector, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_at_any_moment_leaves_disk_and_memory_with_one_whole_state(bundle_folder, signed):
    device, random, num_interrupted = Device.open(bundle_folder, num_threads=1), np.random.default_rng(0), 0
    with Interruptions() as interruptions:
        for version in range(1, 61):
            data = signed(make_update(f"class {version}", version=version, removed=device.classes()[3:]))
            try:
                interruptions.after(random.uniform(1e-5, 6e-3))
                try:
                    device.apply(data)
                finally:
                    interruptions.end()
            except KeyboardInterrupt:
                num_interrupted += 1
            device.refresh()  # an interruption may come between the commit and the head that requests get
            opened = Device.open(bundle_folder, num_threads=1)
            assert (opened.version, opened.classes()) == (device.version, device.classes())
            assert opened.classes()[3:] == ((f"class {opened.version}",) if opened.version else ())
    assert num_interrupted > 5


def test_two_processes_that_apply_the_same_update_take_it_once(bundle_folder, keys, tmp_path):
    path = write_signed(tmp_path / "new.icis", make_update("okapi"), keys.private_path)
    code = f"""
from icis_deploy.runtime.device import Device
device = Device.open({str(bundle_folder)!r})
print("ready", flush=True)
input()
print("taken" if device.apply({str(path)!r}).changed else "there already")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = sorted(process.communicate(timeout=60)[0].strip() for process in processes)

    assert outcomes == ["taken", "there already"]
    assert Device.open(bundle_folder).classes() == ("cat", "dog", "owl", "okapi")
