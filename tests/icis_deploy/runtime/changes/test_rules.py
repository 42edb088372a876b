"""The rules on bytes and values; what a whole device does with them is in test_device.py."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import CorruptFileError, ICISDeployError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.changes.rules import max_update_bytes, trusted_time
from icis_deploy.runtime.state.journal import initial_journal
from icis_deploy.updates.envelope import envelope_of, load_envelope, serialize_envelope
from icis_deploy.updates.payload import serialize_payload
from scripts.robustness.mutations import MUTATIONS, MutationReport, Target, run_mutations
from scripts.robustness.two_readers import differences, read_payload, run_readers
from testing.bundles import make_update, signed_bytes, write_bundle

NOW = datetime(2026, 11, 23, tzinfo=timezone.utc)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=10)


def json_bytes(value):
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return Target(tmp_path_factory.mktemp("rules"))


def test_damaged_files_are_refused_without_a_crash_or_a_waste_of_memory(tmp_path):
    report = run_mutations(tmp_path, num_files=1500, seed=3)

    assert report.is_clean
    assert report.num_files == 1500
    assert report.num_refused > 1300


def test_a_reader_that_shares_no_code_reads_the_same_in_malformed_files(tmp_path):
    report = run_readers(tmp_path, 600, seed=4)

    assert report.num_wrong == 0
    assert report.num_both_took > 20
    assert report.num_both_refused > 100


def test_what_two_readers_read_differently_would_be_noticed():
    update = make_update("okapi", version=5, removed=("gnu",), arbiter=np.ones((1, 5)))
    found = read_payload(serialize_payload(update))

    assert differences(found, update) == []
    assert differences(found, make_update("okapi", version=6, removed=("gnu",), arbiter=np.ones((1, 5)), seed=5)) == [
        "version"
    ]
    assert differences(found, make_update("okapi", version=5, removed=("gnu",), arbiter=np.zeros((1, 5)))) == [
        "arbiter"
    ]
    assert differences(found | {"rows": found["rows"] * 2}, update) == ["rows"]
    assert differences(found | {"version": True}, update) == ["version"]


def test_every_kind_of_damage_is_refused_at_least_once(target):
    random = np.random.default_rng(0)
    good = next(iter(target.good))
    for mutation in MUTATIONS:
        report = MutationReport()
        tracemalloc.start()
        for _ in range(20):
            target.try_file(mutation(good, random), report)
        tracemalloc.stop()
        assert report.num_refused > 5, mutation.__name__


class Gullible:
    """A reader that takes everything: what the count of damaged files is there to notice."""

    def __init__(self, target):
        self.good = target.good

    def read(self, data):
        return make_update("forged")

    try_file = Target.try_file


def test_a_reader_that_believes_everything_would_be_noticed(target):
    report = MutationReport()
    Gullible(target).try_file(b"anything", report)

    assert report.num_accepted_wrongly == 1
    assert not report.is_clean


@settings(max_examples=200)
@given(data=st.data())
def test_no_changed_byte_of_a_signed_file_changes_what_it_says(target, data):
    good, content = data.draw(st.sampled_from(list(target.good.items())))
    damaged = bytearray(good)
    for index, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        damaged[index] = value
    try:
        found = target.read(bytes(damaged))
    except ICISDeployError:
        return
    assert found == content


@settings(max_examples=200)
@given(
    st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(json_bytes)
)
def test_random_bytes_are_refused(target, data):
    with pytest.raises(CorruptFileError):
        target.read(data)


def test_signature_fields_that_nobody_knows_change_nothing(target, tmp_path):
    good, content = next(iter(target.good.items()))
    document = json.loads(good)
    document["signatures"][0] |= {"scheme": 7, "cert": {"deep": [1, {}]}}
    document["signatures"].insert(0, {"keyid": ["no text"], "sig": "AAAA"})

    with pytest.raises(CorruptFileError, match="it is no DSSE envelope"):
        target.read(json.dumps(document).encode())
    del document["signatures"][0]
    document["annotations"] = {"for": "people"}
    assert target.read(json.dumps(document).encode()) == content


@pytest.mark.parametrize("filler", [b"[],", b'{"a":{}},', b"0,"])
def test_a_file_that_is_nothing_but_json_takes_little_memory(filler, target):
    huge = b"[" + filler * (2_000_000 // len(filler)) + b"0]"
    bundle = replace(target.bundle, capacity=4096, feature_dim=2048)
    assert len(huge) < max_update_bytes(bundle)
    target = _with_bundle(target, bundle)
    tracemalloc.start()

    with pytest.raises(CorruptFileError, match="more than 4096 JSON values"):
        target.read(huge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def _with_bundle(target, bundle):
    other = object.__new__(Target)
    other.bundle, other.keys, other.good = bundle, target.keys, target.good
    return other


def test_the_greatest_update_that_fits_a_device_is_below_the_cap(target):
    bundle = replace(target.bundle, capacity=50, feature_dim=64)
    update = ClassUpdate(
        base_fingerprint=bundle.base_fingerprint,
        rows=np.ones((50, 65)),
        added=[f"{index}" + "x" * 1000 for index in range(50)],
        removed=[f"{index}" + "y" * 1000 for index in range(50)],
        provenance={"notes": "z" * 1_000_000},
    )

    size = len(serialize_envelope(envelope_of(update)))
    assert 0.8 * max_update_bytes(bundle) < size < max_update_bytes(bundle)
    assert max_update_bytes(bundle) < 2 * len(serialize_payload(update))


def test_the_time_never_goes_back(tmp_path, target):
    journal = initial_journal(target.bundle)
    assert trusted_time(journal, NOW) == NOW

    journal = replace(journal, last_seen=NOW)
    assert trusted_time(journal, NOW - timedelta(days=1)) == NOW
    assert trusted_time(journal, NOW + timedelta(seconds=1, microseconds=5)) == NOW + timedelta(seconds=1)


def test_a_good_file_reads_the_same_from_the_disk(tmp_path, keys):
    path = tmp_path / "new.icis"
    path.write_bytes(signed_bytes(make_update("okapi"), keys.private_path))

    assert set(load_envelope(path).signatures) == {keys.key_id}


def test_a_bundle_of_its_own_for_each_capacity_has_its_own_cap(tmp_path):
    small, large = (load_manifest(write_bundle(tmp_path / str(size), capacity=size)) for size in (1, 1000))
    assert max_update_bytes(large) > max_update_bytes(small) + 999 * 4 * 5
