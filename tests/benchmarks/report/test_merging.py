"""Results of several runs and devices, put together without confusing them."""

from dataclasses import replace

import pytest

from benchmarks.report.merging import NUM_COLORS, merge
from icis_deploy.errors import UsageError

LATER = "2027-01-01T09:00:00Z"


def test_two_commands_on_one_machine_are_one_device(measured):
    update = replace(measured, command="bench-update", targets=(), runs=())
    devices, entries = merge([measured, update])

    assert [device.label for device in devices] == [measured.environment.name]
    assert [entry.label for entry in entries] == ["original", "fused", "updatable"]


def test_two_devices_keep_their_own_entries(measured, other_device):
    devices, entries = merge([measured, other_device])

    assert len({device.label for device in devices}) == 2
    assert [entry.device.label for entry in entries] == [devices[0].label] * 3 + [devices[1].label] * 3


def test_devices_of_one_name_are_told_apart_by_their_fingerprints(measured):
    memory = {**measured.environment.sections["memory"], "total_bytes": 2**40}
    bigger = replace(measured.environment, sections={**measured.environment.sections, "memory": memory})
    devices, _ = merge([measured, replace(measured, environment=bigger)])

    assert bigger.name == measured.environment.name
    name = bigger.name.partition(", ")[0]  # all that follows is of both
    expected = [f"{name} ({each.fingerprint[:4]})" for each in (measured.environment, bigger)]
    assert [device.label for device in devices] == expected


def test_a_target_that_was_measured_twice_carries_the_time_of_its_run(measured):
    _, entries = merge([replace(measured, created=LATER), measured])

    later = [entry.label for entry in entries if entry.result.created == LATER]
    assert later == [f"{name}, 2027-01-01 09:00" for name in ("original", "fused", "updatable")]
    assert len({entry.label for entry in entries}) == 6


def test_the_table_has_a_row_for_each_batch_with_the_comparison_of_its_run(measured):
    _, (original, fused, _) = merge([measured])

    assert [row.batch_size for row in fused.rows] == [1, 8]
    assert [row.comparison for row in original.rows] == [None, None]
    assert all(row.comparison.label == "fused" and row.comparison.against == "original" for row in fused.rows)


def test_colors_belong_to_head_and_runtime_and_not_to_precision(measured):
    fused = measured.target("fused")
    targets = [
        *measured.targets,
        replace(fused, name="fused int8", precision="int8"),
        replace(fused, name="fused openvino", runtime="openvino"),
        replace(fused, name="ConSE", head_kind="other"),
        replace(fused, name="cosine", head_kind="other"),
    ]
    _, entries = merge([replace(measured, targets=tuple(targets))])

    assert [entry.color for entry in entries] == [0, 1, 2, 1, 3, 4, 5]
    assert [entry.marker for entry in entries[:4]] == ["o", "o", "o", "^"]


def test_there_is_a_color_for_any_number_of_targets(measured):
    targets = [replace(measured.targets[0], name=f"way {index}", head_kind="other") for index in range(20)]
    _, entries = merge([replace(measured, targets=tuple(targets))])

    assert {entry.color for entry in entries} == set(range(3, NUM_COLORS))


def test_no_result_is_nothing_to_report():
    with pytest.raises(UsageError, match=r"nothing to report\. Give at least one result"):
        merge([])


def test_a_result_that_is_given_twice_is_refused(measured):
    with pytest.raises(UsageError, match=f"The bench result of {measured.created} is given 2 times"):
        merge([measured, measured])
