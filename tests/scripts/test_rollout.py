"""The simulated rollout: its devices do what real ones do, and its figures keep what a rollout promises."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.device import Device
from icis_deploy.updates.trusted_keys import pem_from_public_key
from scripts.experiments.rollout import CAPACITY, DAY, SCENARIOS, START, Publisher, Scenario, Simulation, simulate
from scripts.experiments.simulated_device import CachedVerification, SimulatedDevice
from testing.bundles import Clock, write_bundle

HARD = Scenario(name="hard", guard=0.3, loss=0.3, doubled=0.3, delay_hours=2.0, rare=0.2, without_clock=0.2)


@cache
def a_bundle():
    with tempfile.TemporaryDirectory() as folder:
        return load_manifest(write_bundle(Path(folder) / "bundle", capacity=CAPACITY))


def device_at(folder, clock):
    opened = Device.open(folder, num_threads=1)._opened
    return Device(
        folder=folder, bundle=opened.bundle, session=opened.session, state=opened.updater.held.state, clock=clock
    )


def outcome_of(act):
    """Return whether a device changed, "rolled back", or what it says against it."""
    try:
        outcome = act()
    except ICISDeployError as error:
        return str(error)
    return outcome if isinstance(outcome, bool) else "rolled back"


def signed_files(publisher):
    """Return one file of each kind, in the order in which they were signed."""
    first = publisher.update("okapi")
    second = publisher.update("bongo", replaced=("okapi",))
    both = publisher.keys(0, 1, hours=0.0)
    third = publisher.update("quagga")
    complete = publisher.update("okapi", "tarpan", complete=True, hours=24.0 * 100)
    one = publisher.keys(1, hours=0.0)
    return (first, second, both, third, complete, one, third[:-30] + b"!" + third[-29:], b"no update")


@settings(max_examples=12)
@given(steps=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0, 1, 60, 400, -9999])), min_size=4, max_size=9))
def test_a_simulated_device_does_what_a_real_one_does(steps):
    """Number 8 is a rollback; the second of a pair is the clock, in days."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_bundle(Path(place) / "bundle", capacity=CAPACITY)
        bundle = load_manifest(folder)
        publisher = Publisher(bundle, CachedVerification())
        (folder / "trust").mkdir()
        (folder / "trust" / "first.pub").write_text(pem_from_public_key(publisher.public_keys[0]))
        files, clock = signed_files(publisher), Clock(START)
        real = device_at(folder, clock)
        simulated = SimulatedDevice(bundle, publisher.public_keys[:1])

        for number, days in steps:
            clock.now = START + timedelta(days=days)
            if number == 8:
                one = outcome_of(partial(real.rollback, allow_revoked=True))
                other = outcome_of(partial(simulated.roll_back, clock()))
            else:
                one = outcome_of(lambda data=files[number]: real.apply(data).changed)
                other = outcome_of(partial(simulated.take, files[number], clock()))
            assert one == other
            assert real.version == simulated.version
            assert [line.payload_sha256 for line in real.history()] == [
                line.payload_sha256 for line in simulated.journal.history
            ]
        named = real.classes()[len(bundle.class_names) :]
        assert sorted(named) == sorted(simulated.table.filled_names)


@settings(max_examples=8, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    loss=st.floats(0, 0.6),
    doubled=st.floats(0, 0.5),
    delay_hours=st.floats(0.01, 3),
    guard=st.floats(0, 1),
    health=st.floats(0, 1),
    overlap=st.booleans(),
)
def test_every_device_arrives_whatever_the_world_does(seed, **world):
    scenario = replace(HARD, **world)
    simulation = Simulation(scenario, a_bundle(), num_devices=30, seed=seed, limit_hours=365 * DAY)

    figures = simulation.run()

    assert figures.stuck == 0
    assert figures.hours is not None
    assert all(simulation.has_arrived(member) for member in simulation.members)
    assert simulation.num_serving_bad in {0, len(simulation.members)}  # an update that nobody found bad is no news
    for member in simulation.members:
        lines = member.device.journal.history
        applied = [line.version for line in lines if line.action == "apply"]
        assert applied == sorted(set(applied))  # no version twice and none after a greater one, also after a rollback
        assert [line.sequence for line in lines] == list(range(1, len(lines) + 1))
        assert [line.time for line in lines] == sorted(line.time for line in lines)
    served = sum("bad" in str(member.device.journal.history) or member.has_served_bad for member in simulation.members)
    assert figures.served_bad <= served <= len(simulation.members)
    assert sum(figures.outcomes.values()) == figures.deliveries
    news = [each for each in simulation.releases if each.version >= 5 and not each.renews]
    assert all(each.arrived == len(simulation.members) for each in news)


def test_the_same_seed_gives_the_same_figures():
    assert simulate(HARD, num_devices=20, seed=3) == simulate(HARD, num_devices=20, seed=3)


def test_waves_keep_a_bad_update_from_most_devices():
    in_waves = simulate(SCENARIOS[1], num_devices=300, seed=0)
    at_once = simulate(replace(SCENARIOS[1], waves=(1.0,)), num_devices=300, seed=0)

    assert in_waves.was_stopped
    assert at_once.was_stopped
    assert in_waves.served_bad < 0.2 * 300 < 0.5 * 300 < at_once.served_bad


def test_the_guard_keeps_devices_from_ever_serving_a_bad_update():
    assert simulate(replace(HARD, guard=1.0), num_devices=60, seed=0).served_bad == 0


def test_a_recall_that_only_follows_the_bad_update_strands_devices_and_the_figures_say_so():
    """So that the count of stuck devices is known to count."""
    figures = simulate(
        replace(SCENARIOS[0], waves=(1.0,), complete_recall=False), num_devices=40, seed=0, limit_hours=24.0 * 25
    )

    assert figures.was_stopped
    assert figures.stuck > 0
    assert figures.hours is None
    assert figures.outcomes["UpdateOrderError"] > 0


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_of_the_document_ends_with_no_device_stuck(scenario):
    assert simulate(scenario, num_devices=40, seed=1).stuck == 0
