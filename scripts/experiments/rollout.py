"""A rollout to a fleet of thousands of devices, simulated with the rules that devices have.

    python -m scripts.experiments.rollout [--devices 10000] [--seeds 5] [--scenario NAME] [--out FILE]

Each device verifies, orders, refuses, expires and rolls back by `icis_deploy/runtime/changes/rules.py`, on signed
bytes; what is simulated is the world around it: when it is on, what gets lost, doubled and overtaken on the way, and
what the guard and the health check say of an update. A server releases six class updates and two sets of keys in waves,
sees reports alone, and stops an update of which too many report a failure. Nothing runs a model.

Printed are, over the seeds, the median and the range of: hours until 99 % of the devices have the first and the last
update, devices that ever answered with the bad one, hours until none did any more, devices that never arrived.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from securesystemslib.signer import CryptoSigner

from icis_deploy.bundle.manifest import Bundle, load_manifest
from icis_deploy.errors import GuardError, ICISDeployError, VersionRollbackError
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.head.slots import SlotTable
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.trusted_keys import TrustedKeys, pem_from_public_key
from scripts.experiments.simulated_device import CachedVerification, SimulatedDevice
from testing.bundles import FEATURE_DIM, write_bundle

START = datetime(2030, 1, 1, tzinfo=timezone.utc)
WITHOUT_CLOCK = datetime(1970, 1, 1, tzinfo=timezone.utc)
CAPACITY = 8
WAVES = (0.01, 0.1, 1.0)
DAY = 24.0
LIFE_HOURS = 50 * DAY
"""Until an update expires."""
RENEWED_AFTER_HOURS = 30 * DAY
"""When the last one is signed again, complete, where some device does not have it yet; sooner if one that it follows
has expired."""
LIMIT_HOURS = 120 * DAY
"""What has not arrived by then counts as stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What the world and the operator do; times in hours, shares in 0..1."""

    name: str
    waves: tuple[float, ...] = WAVES
    guard: float = 0.0
    """Share of devices whose guard refuses the bad update."""
    health: float = 0.9
    """Share of devices whose health check finds it."""
    health_hours: float = 2.0
    abort_share: float = 0.02
    """Failures among reports, from 5 on, at which an update is stopped."""
    soak_hours: float = 12.0
    complete_recall: bool = True
    """Whether the update that takes the bad one back says `complete`, or follows the bad one."""
    overlap: bool = True
    """Whether the first set of new keys still trusts the old one, which a second set takes out at the end."""
    poll_hours: float = 1.0
    loss: float = 0.05
    """Share of deliveries, and of reports, that get lost."""
    doubled: float = 0.02
    """Share of deliveries that come a second time, up to ten days later."""
    delay_hours: float = 0.25
    """Mean time that a delivery takes; they overtake each other."""
    rare: float = 0.05
    """Share of devices that are on for an hour in two days; others are off for 4 of 24."""
    without_clock: float = 0.01
    """Share of devices that believe it is 1970."""


SCENARIOS = (
    Scenario(name="guard finds it", guard=0.9),
    Scenario(name="health check finds it"),
    Scenario(name="health check, no waves", waves=(1.0,)),
    Scenario(name="guard, no waves", waves=(1.0,), guard=0.9),
    Scenario(name="health check finds it late", health=0.3, health_hours=12.0),
    Scenario(name="half of all lost", guard=0.9, loss=0.5, doubled=0.2),
    Scenario(name="keys replaced at once", guard=0.9, overlap=False),
)


class Publisher:
    """Signs updates, each for the state that the one before leaves."""

    def __init__(self, bundle: Bundle, verify: Callable[..., Any]) -> None:
        self._signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()]
        self.bundle = bundle
        self.public_keys = [signer.public_key for signer in self._signers]
        self.reference = SimulatedDevice(bundle, self.public_keys[:1], verify=verify)
        self._key, self._trust_version = 0, 0

    def update(self, *added: str, replaced: tuple[str, ...] = (), complete: bool = False, hours: float = 0.0) -> bytes:
        """Return the next class update, which expires after `LIFE_HOURS`."""
        version = self.reference.journal.highest_version + 1
        known = rows_by_name(self.reference.table)  # a class keeps its row unless it is replaced
        draw = np.random.default_rng(version).normal
        rows = [known[name] if name in known else draw(size=FEATURE_DIM + 1) for name in added]
        rows += [draw(size=FEATURE_DIM + 1) for _ in replaced]
        follows = FollowedState(version=self.reference.version, digest=self.reference.table.digest())
        content = ClassUpdate(
            base_fingerprint=self.bundle.base_fingerprint,
            rows=np.array(rows, dtype=np.float32),
            added=added,
            replaced=replaced,
            version=version,
            expires=clock_at(hours + LIFE_HOURS),
            follows=None if complete else follows,
            complete=complete,
        )
        return self._signed(content, hours)

    def keys(self, *trusted: int, hours: float) -> bytes:
        """Return a set of keys by their numbers; from now on the last of them signs."""
        self._trust_version += 1
        pems = tuple(pem_from_public_key(self.public_keys[number]) for number in trusted)
        data = self._signed(TrustedKeys(public_keys=pems, version=self._trust_version), hours)
        self._key = trusted[-1]
        return data

    def _signed(self, content: ClassUpdate | TrustedKeys, hours: float) -> bytes:
        envelope = envelope_of(content)
        envelope.sign(self._signers[self._key])
        data = serialize_envelope(envelope)
        self.reference.take(data, clock_at(hours))
        return data


@dataclass(slots=True, kw_only=True)
class Release:
    """A file that the server gives out, to the first `reach` devices."""

    name: str
    data: bytes
    version: int
    """Of the class update, or of the set of keys."""
    is_keys: bool = False
    is_bad: bool = False
    is_complete: bool = False
    renews: str | None = None
    """The release whose state it brings again: who has that one needs it not."""
    begun: float = 0.0
    wave_begun: float = 0.0
    wave: int = 0
    reach: int = 0
    is_over: bool = False
    """Whether it is given out no more."""
    reports: Counter[str] = field(default_factory=Counter)
    arrived: int = 0
    hours_to_99: float | None = None


@dataclass(slots=True)
class Member:
    """A device of the fleet, and what the server and the world know of it."""

    device: SimulatedDevice
    is_rare: bool
    has_clock: bool
    phase: float
    """When in each interval it polls, in hours."""
    periods: Iterator[tuple[float, float]]
    period: tuple[float, float]
    index: int
    is_polling: bool = False
    busy: set[str] = field(default_factory=set)
    """Files whose health check has not answered yet."""
    results: dict[str, str] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)
    counted: set[str] = field(default_factory=set)
    has_served_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one run gave."""

    hours_to_99: dict[str, float | None]
    """Of each release, from its first wave on; `None` if 99 % never had it."""
    served_bad: int
    bad_hours: float
    """From the first device that served the bad update to the last."""
    stuck: int
    deliveries: int
    outcomes: dict[str, int]
    """Deliveries by what the device made of them: `taken`, `in effect`, or the name of the error."""
    was_stopped: bool
    hours: float | None
    """Until every device had everything; `None` if that never was."""


def rows_by_name(table: SlotTable) -> dict[str, NDArray[np.float32]]:
    """Return the rows of new classes, wherever they are in the slots."""
    rows = np.column_stack([table.weight, table.bias])
    return {name: row for name, row in zip(table.class_names, rows, strict=True) if name in table.filled_names}


def clock_at(hours: float) -> datetime:
    """Return the true time."""
    return START + timedelta(hours=hours)


class Simulation:
    """One rollout; `run` gives its figures."""

    def __init__(
        self, scenario: Scenario, bundle: Bundle, *, num_devices: int, seed: int, limit_hours: float = LIMIT_HOURS
    ) -> None:
        self.scenario, self.limit_hours = scenario, limit_hours
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        verify = CachedVerification()
        self.publisher = Publisher(bundle, verify)
        trusted = self.publisher.public_keys[:1]
        self.members = [
            self._member(index, SimulatedDevice(bundle, trusted, verify=verify)) for index in range(num_devices)
        ]
        self.releases: list[Release] = []
        self.outcomes: Counter[str] = Counter()
        self.bad_since: float | None = None
        self.bad_until = 0.0
        self.num_serving_bad = 0
        self.was_stopped = self.is_published = False
        self.now = 0.0
        self.hours: float | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._plan = iter(self._steps())

    def run(self) -> Figures:
        """Run until every device has everything and nothing is on its way, or the limit."""
        self._next_release()
        self._at(0.0, self._tick)
        while self._events and self._events[0][0] <= self.limit_hours:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return Figures(
            hours_to_99={each.name: each.hours_to_99 for each in self.releases},
            served_bad=sum(member.has_served_bad for member in self.members),
            bad_hours=0.0 if self.bad_since is None else self.bad_until - self.bad_since,
            stuck=sum(not self.has_arrived(member) for member in self.members),
            deliveries=sum(self.outcomes.values()),
            outcomes=dict(sorted(self.outcomes.items())),
            was_stopped=self.was_stopped,
            hours=self.hours,
        )

    def has_arrived(self, member: Member) -> bool:
        """Say whether a device has the classes and the keys that were published last."""
        device, reference = member.device, self.publisher.reference
        same_keys = device.journal.trust_version == reference.journal.trust_version
        is_new = device.version >= self._last(is_keys=False).version
        held, wanted = rows_by_name(device.table), rows_by_name(reference.table)
        same_rows = held.keys() == wanted.keys() and all(np.array_equal(held[name], wanted[name]) for name in wanted)
        return same_keys and is_new and same_rows

    def _last(self, *, is_keys: bool) -> Release:
        """Return the last release that brought something new."""
        return [each for each in self.releases if each.is_keys == is_keys and each.renews is None][-1]

    # --- the operator and the server ---

    def _steps(self) -> Iterator[Release]:
        make = self.publisher
        yield Release(name="1 adds", data=make.update("okapi", hours=self.now), version=1)
        yield Release(name="2 replaces", data=make.update("bongo", replaced=("okapi",), hours=self.now), version=2)
        keys = (0, 1) if self.scenario.overlap else (1,)
        yield Release(name="new keys", data=make.keys(*keys, hours=self.now), version=1, is_keys=True)
        # Who has the new keys alone can take nothing that the old one signed: what it may lack comes complete.
        yield self._update("3 new key", "quagga", complete=not self.scenario.overlap)
        yield Release(name="4 bad", data=make.update("bad", hours=self.now), version=4, is_bad=True)
        if self.was_stopped:
            names, complete = ("okapi", "bongo", "quagga"), self.scenario.complete_recall
            data = make.update(*names, complete=True, hours=self.now) if complete else self._recall_that_follows()
            yield Release(name="5 recall", data=data, version=5, is_complete=complete)
        yield self._update("6 last", "tarpan", complete=self.scenario.overlap and self.scenario.complete_recall)
        if self.scenario.overlap:
            yield Release(name="old key out", data=make.keys(1, hours=self.now), version=2, is_keys=True)

    def _update(self, name: str, added: str, *, complete: bool) -> Release:
        names = (*self.publisher.reference.table.filled_names, added) if complete else (added,)
        data = self.publisher.update(*names, complete=complete, hours=self.now)
        return Release(name=name, data=data, version=self.publisher.reference.version, is_complete=complete)

    def _recall_that_follows(self) -> bytes:
        return self.publisher.update(replaced=("bad",), hours=self.now)

    def _renew(self) -> None:
        """Sign what is in effect again: a device that was away for as long as an update lives could not take it."""
        names = self.publisher.reference.table.filled_names
        data = self.publisher.update(*names, complete=True, hours=self.now)
        version = self.publisher.reference.version
        renews = self._last(is_keys=False).name
        release = Release(name=f"{version} again", data=data, version=version, is_complete=True, renews=renews)
        self._begin(release, to_all=True)

    def _next_release(self) -> None:
        release = next(self._plan, None)
        if release is None:
            self.is_published = True
        else:
            self._begin(release, to_all=release.name == "5 recall")

    def _begin(self, release: Release, *, to_all: bool) -> None:
        release.begun = self.now
        self.releases.append(release)
        if release.is_complete:
            for former in self.releases[:-1]:
                former.is_over = former.is_over or not former.is_keys
        # What takes a bad update back goes to everybody at once.
        self._widen(release, len(self.scenario.waves) - 1 if to_all else 0)

    def _widen(self, release: Release, wave: int) -> None:
        before, release.wave, release.wave_begun = release.reach, wave, self.now
        release.reach = max(1, round(self.scenario.waves[wave] * len(self.members)))
        for member in self.members[before : release.reach]:
            self._wake(member)

    def _tick(self) -> None:
        """Look at the reports once an hour, as an operator's script does."""
        if self.is_published:
            if all(self._last(is_keys=is_keys).arrived == len(self.members) for is_keys in (False, True)):
                self.hours = self.now  # what is still on its way, doubled and late, arrives, and must change nothing
                return
            given = [each for each in self.releases if not each.is_keys and not each.is_over]
            has_expired = any(self.now >= each.begun + LIFE_HOURS for each in given)
            if has_expired or self.now - given[-1].begun >= RENEWED_AFTER_HOURS:
                self._renew()
            self._at(self.now + 1.0, self._tick)
            return
        release = self.releases[-1]
        failed, heard = release.reports["failed"], release.reports.total()
        is_last_wave = release.wave == len(self.scenario.waves) - 1
        has_soaked = self.now - release.wave_begun >= self.scenario.soak_hours
        is_heard = heard >= 0.9 * release.reach or self.now - release.wave_begun >= 7 * DAY
        if release.is_bad and failed >= max(5, self.scenario.abort_share * heard):
            release.is_over = self.was_stopped = True
            self._next_release()
        elif has_soaked and is_heard:
            if is_last_wave:
                self._next_release()
            else:
                self._widen(release, release.wave + 1)
        self._at(self.now + 1.0, self._tick)

    # --- the world ---

    def _member(self, index: int, device: SimulatedDevice) -> Member:
        draw, scenario = self.random, self.scenario
        is_rare = draw.random() < scenario.rare
        periods = self._periods(*((1.0, 47.0) if is_rare else (20.0, 4.0)))
        return Member(
            index=index,
            device=device,
            is_rare=is_rare,
            has_clock=draw.random() >= scenario.without_clock,
            phase=draw.uniform(0, scenario.poll_hours),
            periods=periods,
            period=next(periods),
        )

    def _periods(self, mean_on: float, mean_off: float) -> Iterator[tuple[float, float]]:
        """Yield when a device is on, from a moment in the middle of its life."""
        start = -self.random.uniform(0, mean_on + mean_off)
        while True:
            end = start + self.random.expovariate(1 / mean_on)
            yield start, end
            start = end + self.random.expovariate(1 / mean_off)

    def _is_on(self, member: Member) -> bool:
        while member.period[1] < self.now:
            member.period = next(member.periods)
        return member.period[0] <= self.now

    def _wake(self, member: Member) -> None:
        if member.is_polling:
            return
        member.is_polling = True
        every = self.scenario.poll_hours
        polls = int((self.now - member.phase) // every) + 1
        self._at(member.phase + polls * every, partial(self._poll, member))

    def _poll(self, member: Member) -> None:
        if not self._is_on(member):
            self._at(member.period[0] + self.random.uniform(0, 0.1), partial(self._poll, member))
            return
        for name in list(member.results):
            self._report(member, name)
        wanted = [each for each in self.releases if member.index < each.reach and not each.is_over]
        wanted = [each for each in wanted if member.reported.isdisjoint({each.name, each.renews})]
        if not wanted:
            member.is_polling = False
            return
        for release in wanted:
            if release.name not in member.busy:
                self._send(member, release)
        self._at(self.now + self.scenario.poll_hours, partial(self._poll, member))

    def _send(self, member: Member, release: Release) -> None:
        draw, scenario = self.random, self.scenario
        arrives = partial(self._arrive, member, release)
        if draw.random() >= scenario.loss:
            self._at(self.now + draw.expovariate(1 / scenario.delay_hours), arrives)
        if draw.random() < scenario.doubled:
            self._at(self.now + draw.uniform(0, 10 * DAY), arrives)

    def _arrive(self, member: Member, release: Release) -> None:
        if not self._is_on(member):
            return
        was_bad = self._serves_bad(member)
        refused = release.is_bad and self.random.random() < self.scenario.guard
        try:
            changed = member.device.take(release.data, self._clock_of(member), is_refused_by_guard=refused)
        except ICISDeployError as error:
            self.outcomes[type(error).__name__] += 1
            if isinstance(error, GuardError):
                self._settle(member, release.name, "failed")
            elif isinstance(error, VersionRollbackError) and release.name not in member.busy:
                self._settle(member, release.name, member.results.get(release.name, "spent"))
            return
        self.outcomes["taken" if changed else "in effect"] += 1
        self._count(member, was_bad)
        if release.is_keys or (not changed and release.name not in member.busy):
            self._settle(member, release.name, member.results.get(release.name, "in effect"))
        elif changed:
            member.busy.add(release.name)
            self._at(self.now + self.scenario.health_hours, partial(self._check_health, member, release))

    def _check_health(self, member: Member, release: Release) -> None:
        member.busy.discard(release.name)
        result, was_bad = "in effect", self._serves_bad(member)
        is_ill = release.is_bad and self.random.random() < self.scenario.health
        if is_ill and member.device.version == release.version:
            member.device.roll_back(self._clock_of(member))
            result = "failed"
            self._count(member, was_bad)
        self._settle(member, release.name, result)

    def _settle(self, member: Member, name: str, result: str) -> None:
        member.results[name] = result
        self._report(member, name)
        self._wake(member)

    def _report(self, member: Member, name: str) -> None:
        """Tell the server, who may not hear it; a device tells it again with every poll until it is heard."""
        if name in member.reported or not self._is_on(member) or self.random.random() < self.scenario.loss:
            return
        member.reported.add(name)
        next(each for each in self.releases if each.name == name).reports[member.results[name]] += 1

    def _clock_of(self, member: Member) -> datetime:
        return clock_at(self.now) if member.has_clock else WITHOUT_CLOCK

    def _serves_bad(self, member: Member) -> bool:
        return "bad" in member.device.table.class_names and member.device.version == 4

    def _count(self, member: Member, was_bad: bool) -> None:
        """Keep the figures after a device changed."""
        is_bad = self._serves_bad(member)
        self.num_serving_bad += is_bad - was_bad
        if is_bad:
            member.has_served_bad = True
            self.bad_since = self.now if self.bad_since is None else self.bad_since
        if was_bad and not is_bad:
            self.bad_until = self.now
        for release in self.releases:
            held = member.device.journal.trust_version if release.is_keys else member.device.version
            if held >= release.version and release.name not in member.counted:
                member.counted.add(release.name)
                release.arrived += 1
                if release.arrived >= 0.99 * len(self.members) and release.hours_to_99 is None:
                    release.hours_to_99 = self.now - release.begun

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when, self._num_events, event))


def simulate(scenario: Scenario, *, num_devices: int, seed: int, limit_hours: float = LIMIT_HOURS) -> Figures:
    """Return the figures of one rollout, which its seed decides but for the keys."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_manifest(write_bundle(Path(folder) / "bundle", capacity=CAPACITY))
    return Simulation(scenario, bundle, num_devices=num_devices, seed=seed, limit_hours=limit_hours).run()


def main() -> None:
    """Print a table of the scenarios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scenario", action="append", choices=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--out", type=Path, help="the figures of every run, as JSON")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    print("| scenario | 99 % have 1, h | 99 % have the last, h | ever served the bad one | until none did, h | stuck |")
    print("|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        if given.scenario and scenario.name not in given.scenario:
            continue
        found = [simulate(scenario, num_devices=given.devices, seed=seed) for seed in range(given.seeds)]
        runs += [{"scenario": asdict(scenario), "seed": seed} | asdict(each) for seed, each in enumerate(found)]
        print(_line(scenario, found), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps({"devices": given.devices, "runs": runs}, indent=1), "utf-8")


def _line(scenario: Scenario, found: Sequence[Figures]) -> str:
    cells = [
        _spread([each.hours_to_99.get("1 adds") for each in found]),
        _spread([each.hours_to_99.get("6 last") for each in found]),
        _spread([each.served_bad for each in found]),
        _spread([each.bad_hours for each in found]),
        _spread([each.stuck for each in found]),
    ]
    return f"| {scenario.name} | " + " | ".join(cells) + " |"


def _spread(values: Sequence[float | None]) -> str:
    """Return median and range; `never` where some run never came to it."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "never"
    if min(known) == max(known):
        return f"{known[0]:.0f}"
    return f"{statistics.median(known):.0f} ({min(known):.0f} to {max(known):.0f})"


if __name__ == "__main__":
    main()
