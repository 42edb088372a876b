import gc

import pytest

from benchmarks.timing.rounds import (
    Blocks,
    blocks_that_reach,
    calls_over,
    first_blocks,
    garbage_collector_at_rest,
    run_round,
    time_queries,
    warm_up,
)
from icis_deploy.errors import IncompatibleError, RuntimeFailureError, UsageError

MS = 1_000_000


def test_times_what_the_clock_says(virtual_machine):
    machine = virtual_machine()
    latencies_ns = time_queries("a", machine.call(2.5), 4, machine.instruments.clock)

    assert latencies_ns.tolist() == [2_500_000] * 4


def test_a_call_that_fails_is_named():
    def fails():
        raise ValueError("no such input")

    with pytest.raises(
        RuntimeFailureError, match="'int8' failed while it was measured: ValueError: no such input"
    ) as e:
        time_queries("int8", fails, 3, lambda: 0)
    assert isinstance(e.value.__cause__, ValueError)


def test_an_error_that_already_explains_itself_is_not_wrapped():
    def fails():
        raise IncompatibleError("The images have another size.")

    with pytest.raises(IncompatibleError, match=r"^The images have another size\.$"):
        time_queries("int8", fails, 3, lambda: 0)


def test_each_label_is_visited_there_and_back_and_pays_for_the_switch_outside_the_figures(virtual_machine):
    machine = virtual_machine()
    visits = []

    def visit(label, latency_ms):
        def call():
            is_first = not visits or visits[-1] != label
            visits.append(label)
            machine.spend((latency_ms + (50 if is_first else 0)) * MS)

        return call

    calls = {"a": visit("a", 1), "b": visit("b", 2), "c": visit("c", 3)}
    blocks = Blocks(num_queries={"a": 2, "b": 1, "c": 2}, lead=True)
    done = run_round(calls, ["b", "a", "c"], blocks, machine.instruments)

    # One query more than a block has, each time: the one after the switch.
    assert "".join(visits) == "bb" + "aaa" + "ccc" + "ccc" + "aaa" + "bb"
    assert {label: [block.tolist() for block in found] for label, found in done.latencies_ns.items()} == {
        "a": [[1 * MS] * 2] * 2,
        "b": [[2 * MS]] * 2,
        "c": [[3 * MS] * 2] * 2,
    }
    assert done.probe_ns == 100_000


def test_blocks_last_about_ten_ms_and_all_labels_lead_in_or_none():
    assert first_blocks({"a": 2 * MS, "b": 7 * MS}) == Blocks(num_queries={"a": 5, "b": 1}, lead=True)
    assert first_blocks({"a": 7 * MS, "b": 70 * MS}) == Blocks(num_queries={"a": 1, "b": 1}, lead=False)
    assert first_blocks({"a": 2 * MS}) == Blocks(num_queries={"a": 5}, lead=False)


def test_blocks_grow_no_further_than_the_missing_queries_ask_for():
    blocks = Blocks(num_queries={"a": 5, "b": 1}, lead=True)
    latencies_ns = {"a": 2 * MS, "b": 7 * MS}

    def reach(missing, seconds):
        return blocks_that_reach(blocks, latencies_ns, {"a": missing, "b": missing}, 1e9 * seconds).num_queries

    # A round of the smallest blocks takes 52 ms and gives two queries of b, which needs 331 rounds: 17 s.
    assert reach(662, 60) == {"a": 5, "b": 1}
    assert reach(662, 15) == {"a": 5, "b": 2}
    assert reach(662, 11) == {"a": 5, "b": 3}
    assert reach(662, 5) == {"a": 5, "b": 1}  # out of reach: as many rounds as there can be
    assert reach(0, 1) == {"a": 5, "b": 1}


def test_what_is_measured_alone_has_no_switch_to_pay_for(virtual_machine):
    machine = virtual_machine()
    seen = []
    run_round({"a": lambda: seen.append(1)}, ["a"], first_blocks({"a": 3.3 * MS}), machine.instruments)

    assert len(seen) == 6


def test_a_drift_cancels_between_there_and_back(virtual_machine):
    machine = virtual_machine(slowdown=lambda seconds: 1.0 + seconds)  # twice as slow after a second
    calls = {"a": machine.call(5.0), "b": machine.call(5.0)}
    done = run_round(calls, ["a", "b"], Blocks(num_queries={"a": 9, "b": 9}, lead=True), machine.instruments)

    assert done.typical_ns("b") / done.typical_ns("a") == pytest.approx(1.0, abs=0.005)


def test_warms_up_until_the_latency_stays_the_same(virtual_machine):
    # 40 ms at first, and 10 ms from the first second on
    machine = virtual_machine(slowdown=lambda seconds: 4 - 3 * min(seconds, 1.0))
    warm = warm_up("a", machine.call(10.0), 60_000 * MS, machine.instruments.clock)

    assert warm.stable
    assert warm.first_query_ms == pytest.approx(40.0)
    assert warm.last_median_ms == pytest.approx(10.0)
    assert warm.duration_s > 1.0


def test_a_warm_up_that_never_settles_ends_with_its_budget_and_says_so(virtual_machine):
    machine = virtual_machine(slowdown=lambda seconds: 4.0**seconds)
    warm = warm_up("a", machine.call(10.0), 2_000 * MS, machine.instruments.clock)

    assert not warm.stable
    assert 2.0 <= warm.duration_s < 3.0  # a window that has begun is finished


def test_a_warm_up_makes_at_least_one_window_even_without_a_budget(virtual_machine):
    machine = virtual_machine()
    warm = warm_up("a", machine.call(10.0), 0, machine.instruments.clock)

    assert (warm.num_queries, warm.duration_s, warm.first_query_ms, warm.stable) == (1 + 10, 0.11, 10.0, False)


def test_inputs_come_one_after_the_other_and_again():
    seen = []
    call = calls_over(seen.append, ["x", "y", "z"])
    for _ in range(5):
        call()

    assert seen == ["x", "y", "z", "x", "y"]


def test_refuses_to_measure_without_inputs():
    with pytest.raises(UsageError, match=r"no input to measure with\. Give at least one"):
        calls_over(print, [])


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was_even_after_a_failure(was_enabled):
    def fail_while_it_rests():
        with garbage_collector_at_rest():
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
            raise KeyError

    before = gc.isenabled()
    gc.unfreeze()  # what other tests left
    try:
        (gc.enable if was_enabled else gc.disable)()
        with pytest.raises(KeyError):
            fail_while_it_rests()
        assert gc.isenabled() == was_enabled
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if before else gc.disable)()


def test_what_somebody_else_froze_stays_frozen():
    gc.freeze()
    with garbage_collector_at_rest():
        pass
    assert gc.get_freeze_count() > 0
