from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.bundle.manifest import FileEntry, load_bundle
from icis_deploy.errors import CorruptFileError, IncompatibleError
from icis_deploy.head.class_update import MAX_VERSION
from icis_deploy.head.slots import SlotTable
from icis_deploy.runtime.state.journal import (
    ACTIONS,
    MAX_HISTORY,
    MAX_STATES,
    HistoryEntry,
    Journal,
    StateEntry,
    check_disabled,
    check_table,
    continues,
    history_to_json,
    initial_journal,
    journal_of,
    parse_journal,
    serialize_journal,
    with_entry,
)
from icis_deploy.runtime.state.origins import origins_from
from testing.bundles import write_bundle

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(timezone.utc)).map(
    lambda time: time.replace(microsecond=0)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COUNTS = st.integers(0, 1 << 40)
SHA256S = st.binary(min_size=32, max_size=32).map(bytes.hex)
STATES = st.builds(
    StateEntry,
    version=COUNTS,
    slots=st.none() | st.builds(FileEntry, sha256=SHA256S, size_bytes=COUNTS),
    origins=st.dictionaries(st.integers(0, 1 << 21), st.none() | SHA256S, max_size=5).map(origins_from),
)
ENTRIES = st.builds(
    HistoryEntry,
    sequence=COUNTS,
    time=TIMES,
    action=st.sampled_from(ACTIONS),
    version=COUNTS,
    num_added=COUNTS,
    class_name=st.none() | TEXTS,
    payload_sha256=st.none() | SHA256S,
    signed_by=st.none() | SHA256S,
    allowed_revoked=st.booleans(),
)
JOURNALS = st.builds(
    Journal,
    base_fingerprint=SHA256S,
    states=st.lists(STATES, min_size=1, max_size=4).map(tuple),
    highest_version=st.integers(1 << 40, MAX_VERSION),
    last_seen=st.none() | TIMES,
    disabled=st.lists(TEXTS, max_size=3).map(tuple),
    trust_version=COUNTS,
    trusted_keys=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
    root_keys=st.lists(TEXTS, max_size=3).map(tuple),
    history=st.lists(ENTRIES, max_size=3).map(tuple),
)
JOURNAL = Journal(base_fingerprint="0" * 64, states=(StateEntry(version=1, slots=None),), highest_version=1)


@given(JOURNALS)
def test_parsing_gives_back_what_was_serialized(journal):
    data = serialize_journal(journal)

    assert parse_journal(data) == journal
    assert serialize_journal(parse_journal(data)) == data
    assert json.loads(data)["sha256"]  # the file is JSON for whoever looks at it


@given(JOURNALS, st.data())
def test_every_flipped_bit_is_noticed(journal, data):
    content = bytearray(serialize_journal(journal))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(CorruptFileError, match="The journal of the device is damaged"):
        parse_journal(bytes(content))


def journal_bytes(**changes):
    """A journal with other fields and the hash that belongs to them."""
    fields = json.loads(serialize_journal(JOURNAL))["journal"] | changes
    text = json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()
    return b'{"journal":%s,"sha256":"%s"}\n' % (text, hashlib.sha256(text).hexdigest().encode())


def with_origin(origin):
    return {"states": [{"version": 1, "slots": None, "origins": [origin]}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "its schema version is 2, this release reads 1"),
        ({"schema_version": True}, "expected a whole number, found True"),
        ({"schema_version": 1.0}, r"expected a whole number, found 1\.0"),
        ({"schema_version": "\x1b" * 10**6}, r"expected a whole number, found '(\\x1b){10,20}.{0,4}…"),
        ({"states": []}, "it names no state"),
        ({"states": 3}, "expected a list, found 3"),
        ({"states": [{"version": 1, "slots": None}] * (MAX_STATES + 1)}, "names 9 states; at most 8 are kept"),
        ({"states": [{"version": -1, "slots": None}, {"version": 1, "slots": None}]}, "a state has version -1"),
        ({"states": [{"version": 2, "slots": None}, {"version": 1, "slots": None}]}, "versions contradict each other"),
        ({"highest_version": MAX_VERSION + 1}, "out of range"),
        ({"trust_version": MAX_VERSION + 1}, "out of range"),
        ({"trust_version": -1}, "out of range"),
        ({"root_keys": ["a"], "root_threshold": 2}, "2 of its 1 root keys must sign"),
        ({"root_threshold": 0}, "0 of its 0 root keys must sign"),
        ({"states": [{"version": True, "slots": None}]}, "expected a whole number, found True"),
        ({"states": [{"version": 1, "slots": {"sha256": "../../x", "size_bytes": 1}}]}, "'../../x' is no SHA-256"),
        ({"last_seen": "2026-11-23"}, "has not the form"),
        ({"disabled": [1]}, "expected a list of texts, found a list"),
        ({"highest_version": ...}, "highest_version"),
        (with_origin({"signed_by": 3, "columns": [[0, 1]]}), "expected a text, found 3"),
        (with_origin({"signed_by": None, "columns": []}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[0, 0]]}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[3, 5], [4, 6]]}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[-1, 5]]}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[0, 1 << 40]]}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[0, (1 << 22) + 1]]}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[4, 6], [0, 2]]}), "no ranges in ascending order"),
        (with_origin({"signed_by": None, "columns": [[0, 1, 2]]}), "no ranges in ascending order"),
        ({"history": [{"sequence": 1}]}, r"a line of its history has the fields \['sequence'\]"),
    ],
)
def test_a_journal_that_means_nothing_is_refused(changes, message):
    with pytest.raises(CorruptFileError, match=message):
        parse_journal(journal_bytes(**changes))


def test_what_a_guard_saw_is_in_its_line_and_others_are_as_they_ever_were():
    time = datetime(2026, 11, 23, tzinfo=timezone.utc)
    usual = HistoryEntry(sequence=1, time=time, action="apply", version=1)
    seen = replace(usual, sequence=2, changed_answers=0.0)
    allowed = replace(usual, sequence=3, changed_answers=0.25, allowed_past_guard=True)
    data = serialize_journal(replace(JOURNAL, history=(usual, seen, allowed)))

    lines = json.loads(data)["journal"]["history"]
    assert not {"changed_answers", "allowed_past_guard"} & lines[0].keys()
    assert (lines[1]["changed_answers"], "allowed_past_guard" in lines[1]) == (0.0, False)
    assert (lines[2]["changed_answers"], lines[2]["allowed_past_guard"]) == (0.25, True)
    assert parse_journal(data).history == (usual, seen, allowed)
    with pytest.raises(CorruptFileError, match="changed_answers of a line of its history is 'many'"):
        parse_journal(journal_bytes(history=[lines[1] | {"changed_answers": "many"}]))


def test_photos_are_in_the_line_and_the_state_of_what_they_taught_and_nowhere_else():
    time = datetime(2026, 11, 23, tzinfo=timezone.utc)
    line = HistoryEntry(sequence=1, time=time, action="teach", version=0, class_name="okapi", photos_sha256=("a" * 64,))
    state = StateEntry(version=0, slots=None, taught=("okapi", "zebra"), by_photos=("okapi",), photo_offset=1.5)
    journal = Journal(base_fingerprint="f", states=(state,), highest_version=0, history=(line,))

    assert parse_journal(serialize_journal(journal)) == journal
    plain = history_to_json(replace(line, photos_sha256=()))
    assert "photos_sha256" not in plain
    former = json.loads(serialize_journal(JOURNAL))["journal"]["states"][0]  # as devices wrote it that teach nothing
    assert former.keys() == {"version", "slots"}
    for wrong in ("a" * 64, ["a" * 63], [3], [None]):
        with pytest.raises(CorruptFileError):
            parse_journal(journal_bytes(history=[plain | {"photos_sha256": wrong}]))
    good = {"version": 0, "slots": None, "taught": ["okapi"], "by_photos": ["okapi"], "photo_offset": 1.5}
    assert parse_journal(journal_bytes(states=[good])).current.photo_offset == 1.5
    for wrong in ({"by_photos": ["zebra"]}, {"by_photos": "okapi"}, {"photo_offset": "much"}):
        with pytest.raises(CorruptFileError):
            parse_journal(journal_bytes(states=[good | wrong]))


def test_a_line_of_the_history_with_a_wrong_type_is_refused():
    time = datetime(2026, 11, 23, tzinfo=timezone.utc)
    entry = HistoryEntry(sequence=1, time=time, action="apply", version=1)
    data = serialize_journal(replace(JOURNAL, history=(entry,)))
    fields = json.loads(data)["journal"]["history"][0] | {"num_added": "many"}

    with pytest.raises(CorruptFileError, match="num_added of a line of its history is 'many'"):
        parse_journal(journal_bytes(history=[fields]))


def test_the_current_state_is_the_last_one():
    states = (StateEntry(version=1, slots=None), StateEntry(version=2, slots=None))

    assert replace(JOURNAL, states=states).current.version == 2


def test_a_journal_continues_another_whatever_old_lines_it_keeps():
    time = datetime(2026, 11, 23, tzinfo=timezone.utc)
    unsigned = HistoryEntry(sequence=1, time=time, action="apply", version=1)
    state = StateEntry(version=1, slots=None, origins=origins_from({3: None}))
    journal = replace(JOURNAL, states=(state,), history=(unsigned,))
    former = journal
    for sequence in range(2, MAX_HISTORY + 10):
        former = journal if sequence == 5 else former
        journal = with_entry(journal, replace(unsigned, sequence=sequence, action="disable"))

    assert journal.history[0] == unsigned
    assert len(journal.history) == MAX_HISTORY + 1
    assert continues(journal, former)
    assert not continues(former, journal)
    assert continues(journal, JOURNAL)  # in which nothing had changed
    later = former.last_seen.replace(year=2030)
    for of_another_device in (
        replace(former, highest_version=9),
        replace(former, trust_version=1),
        replace(former, trusted_keys=("another",)),
        replace(former, root_keys=("root",)),
        replace(former, last_seen=later),
    ):
        assert not continues(journal, of_another_device)
    replaced = replace(journal, trust_version=1, trusted_keys=("another",))
    assert continues(replaced, replace(former, highest_version=9))  # root keys gave versions back meanwhile
    assert not continues(replaced, replace(former, trust_version=2))
    assert not continues(replaced, replace(former, root_keys=("root",)))
    gone = with_entry(replace(journal, states=(replace(state, origins=()),)), replace(unsigned, sequence=99))
    assert unsigned not in gone.history


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with three classes that was exported with version 2."""
    return load_bundle(write_bundle(tmp_path_factory.mktemp("journal") / "bundle", head_version=2))


def test_the_versions_up_to_that_of_the_exported_head_are_spent(bundle):
    journal = initial_journal(bundle)
    assert (journal.current.version, journal.highest_version) == (2, 2)


def test_the_journal_of_another_bundle_is_refused_whether_or_not_its_head_is_the_same(bundle):
    journal = initial_journal(bundle)
    assert journal_of(bundle, journal) == journal
    with pytest.raises(IncompatibleError, match="of another bundle of the same head"):
        journal_of(bundle, replace(journal, bundle_sha256="0" * 64))
    with pytest.raises(IncompatibleError, match="of another head"):
        journal_of(bundle, replace(journal, base_fingerprint="0" * 64))


@pytest.mark.parametrize(
    ("names", "taught", "message"),
    [
        (("cat", None), (), r"hold baked classes \('cat'\)"),
        (("okapi", None), ("okapi", "zebra"), r"lack taught classes \('zebra'\)"),
    ],
)
def test_slots_that_contradict_the_head_or_the_journal_are_refused(names, taught, message, bundle):
    table = SlotTable(weight=[[1.0] * 4, [0.0] * 4], bias=[0.5, -6e4], class_names=names)

    with pytest.raises(CorruptFileError, match=message):
        check_table(bundle, StateEntry(version=1, slots=None, taught=taught), table)
    check_table(bundle, StateEntry(version=1, slots=None), replace(table, class_names=("okapi", None)))


def test_a_journal_that_leaves_no_class_is_refused():
    with pytest.raises(CorruptFileError, match="disables every class"):
        check_disabled(replace(JOURNAL, disabled=("cat", "dog", "gone")), ("dog", "cat"))
    check_disabled(replace(JOURNAL, disabled=("cat",)), ("dog", "cat"))
    check_disabled(JOURNAL, ())
