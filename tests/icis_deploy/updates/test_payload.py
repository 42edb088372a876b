import hashlib
import json
import struct
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from icis_deploy.errors import CorruptFileError
from icis_deploy.head.class_update import MAX_ROW_VALUE, ClassUpdate, FollowedState
from icis_deploy.updates import payload as update_format
from icis_deploy.updates.payload import parse_payload, serialize_payload

BASE = "0123456789abcdef" * 4
FINITE = st.floats(width=32, min_value=-float(MAX_ROW_VALUE), max_value=float(MAX_ROW_VALUE))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def updates(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    first, second = sorted(draw(st.tuples(st.integers(0, len(names)), st.integers(0, len(names)))))
    width = draw(st.integers(2, 5))
    return ClassUpdate(
        base_fingerprint=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        rows=draw(hnp.arrays(np.float32, (second, width), elements=FINITE)),
        arbiter=draw(st.none() | hnp.arrays(np.float32, (second, 5), elements=FINITE)),
        added=names[:first],
        replaced=names[first:second],
        removed=names[second:],
        version=draw(st.integers(1, 1 << 62)),
        expires=draw(st.none() | st.datetimes(timezones=st.just(timezone.utc))),
        self_test_seed=draw(st.integers(0, 1 << 62)),
        provenance=draw(st.dictionaries(NAMES, JSON, max_size=3)),
    )


@pytest.fixture
def update():
    return ClassUpdate(
        base_fingerprint=BASE,
        rows=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        added=["okapi"],
        replaced=["Bärin"],
        removed=["mule"],
        version=3,
        expires=datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        provenance={"method": "icis"},
    )


@pytest.fixture
def arbitrated(update):
    """The same update with an arbiter, which makes it one of schema 2."""
    return replace(update, arbiter=[[0.5, -1.0, 0.0, 2.0, 1e-3], [1.0, 2.0, 3.0, 4.0, 5.0]])


def fields_of(payload):
    (size,) = struct.unpack_from("<Q", payload)
    return json.loads(json.loads(payload[8 : 8 + size])["__metadata__"]["class_update"])


def payload_with(update, tensors=None, **changes):
    """The payload of `update` with some metadata fields changed, or left out where the change is `...`."""
    fields = fields_of(serialize_payload(update)) | changes
    text = json.dumps({name: value for name, value in fields.items() if value is not ...})
    return save(tensors_of(update) if tensors is None else tensors, metadata={"class_update": text})


def tensors_of(update, **changes):
    arbiter = {} if update.arbiter is None else {"arbiter": np.array(update.arbiter)}
    return {"rows": np.array(update.rows), **arbiter, **changes}


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


@given(updates())
def test_parsing_gives_back_what_was_serialized(update):
    payload = serialize_payload(update)

    assert parse_payload(payload) == update
    assert serialize_payload(parse_payload(payload)) == payload


def test_equal_updates_have_equal_bytes_in_whatever_order_their_provenance_was_written():
    def payload(provenance, rows):
        return serialize_payload(ClassUpdate(base_fingerprint=BASE, rows=rows, added=["a"], provenance=provenance))

    first = payload({"seed": 1, "method": "icis", "deep": {"x": 1, "y": 2}}, [[1, 2]])
    second = payload({"deep": {"y": 2, "x": 1}, "method": "icis", "seed": 1}, np.array([[1, 2]], order="F"))

    assert first == second


def test_rows_that_were_read_cannot_be_written_to(update):
    with pytest.raises(ValueError, match="read-only"):
        parse_payload(serialize_payload(update)).rows[0] = 0


def refusal_or_none(payload):
    try:
        parse_payload(payload)
    except CorruptFileError as error:
        return str(error)
    return None


@given(st.data())
def test_damaged_bytes_are_refused_or_give_a_valid_update_but_never_crash(data):
    payload = bytearray(
        serialize_payload(ClassUpdate(base_fingerprint=BASE, rows=[[1, 2], [3, 4]], added=["a"], replaced=["b"]))
    )
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    refusal = refusal_or_none(bytes(payload))
    assert refusal is None or "class update" in refusal


def test_every_truncation_is_refused(update):
    payload = serialize_payload(update)
    for length in range(len(payload)):
        with pytest.raises(CorruptFileError):
            parse_payload(payload[:length])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(CorruptFileError):
        parse_payload(data)


def test_bytes_behind_the_end_are_refused(update):
    with pytest.raises(CorruptFileError, match=r"^The class update is not a valid safetensors file"):
        parse_payload(serialize_payload(update) + b"x")


def test_a_payload_over_the_cap_is_refused_before_it_is_parsed(update, monkeypatch):
    monkeypatch.setattr(update_format, "MAX_PAYLOAD_BYTES", 100)

    with pytest.raises(CorruptFileError, match=r"^The class update is \d+ bytes; at most 100 are read\."):
        parse_payload(serialize_payload(update))


def test_a_header_over_the_cap_is_refused_before_it_is_parsed(update, monkeypatch):
    monkeypatch.setattr(update_format, "MAX_HEADER_BYTES", 100)

    with pytest.raises(CorruptFileError, match=r"^The class update's header claims \d+ bytes; the file is truncated"):
        parse_payload(serialize_payload(update))


def test_a_short_file_says_how_short():
    with pytest.raises(CorruptFileError, match=r"^The class update is only 3 bytes; it is truncated\."):
        parse_payload(b"abc")


def test_another_safetensors_file_is_refused():
    with pytest.raises(
        CorruptFileError, match=r"^The file has no class update in its header \('__metadata__'\); it is"
    ):
        parse_payload(save({"rows": np.zeros((1, 2), np.float32)}))


@pytest.mark.parametrize("version", [True, 1.0, "1", None])
def test_a_schema_that_is_no_whole_number_is_refused(version, update):
    with pytest.raises(CorruptFileError, match=rf"\(expected a whole number, found {version!r}\); it is"):
        parse_payload(payload_with(update, schema_version=version))


def test_a_payload_in_which_a_key_stands_twice_is_refused(update):
    payload = serialize_payload(update)
    header = payload[8 : 8 + int.from_bytes(payload[:8], "little")]
    doubled = header.replace(b'{\\"', b'{\\"version\\":9,\\"', 1)
    assert doubled != header

    with pytest.raises(CorruptFileError, match="a key occurs twice in an object"):
        parse_payload(len(doubled).to_bytes(8, "little") + doubled + payload[8 + len(header) :])


@pytest.mark.parametrize("field", sorted(update_format._FIELDS))
def test_a_refusal_quotes_a_file_shortly_and_without_what_rewrites_a_terminal(field, update):
    with pytest.raises(CorruptFileError) as refused:
        parse_payload(payload_with(update, **{field: "\x1b[2J\u202e\n" * 100_000}))

    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 500


def test_a_newer_schema_is_refused_with_what_to_do(update):
    message = r"^The class update has schema version 4; this release reads 1 to 3\. Update icis-deploy\."
    with pytest.raises(CorruptFileError, match=message):
        parse_payload(payload_with(update, schema_version=4))


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({}, r"\{\}"),
        ({"rows": np.zeros((2, 3))}, r"\{'rows': 'float64'\}"),
        ({"rows": np.zeros((2, 3), np.int32)}, r"\{'rows': 'int32'\}"),
        ({"rows": np.zeros((2, 3), np.float32), "x": np.zeros(1)}, r"\{.*'x': 'float64'.*\}"),
        ({"weight": np.zeros((2, 3), np.float32)}, r"\{'weight': 'float32'\}"),
    ],
)
def test_other_tensors_are_refused(update, tensors, found):
    with pytest.raises(CorruptFileError, match=rf"^The class update holds the tensors {found}; expected .* alone\."):
        parse_payload(payload_with(update, tensors))


@pytest.mark.parametrize("name", sorted(update_format._FIELDS - {"schema_version"}))
def test_a_missing_field_is_named(update, name):
    with pytest.raises(CorruptFileError, match=rf"^The class update's fields differ from schema 1 in \['{name}'\]\."):
        parse_payload(payload_with(update, **{name: ...}))


def test_an_unknown_field_is_named(update):
    with pytest.raises(CorruptFileError, match=r"^The class update's fields differ from schema 1 in \['more'\]\."):
        parse_payload(payload_with(update, more=1))


@pytest.mark.parametrize(
    "change",
    [
        {"added": "okapi"},
        {"added": ["okapi", 1]},
        {"added": None},
        {"replaced": {}},
        {"removed": ["okapi"]},
        {"removed": ["\ud800"]},
        {"base_fingerprint": 5},
        {"base_fingerprint": "zz"},
        {"base_fingerprint": list("0123456789abcdef" * 4)},
        {"version": 0},
        {"version": 1.5},
        {"version": "3"},
        {"version": True},
        {"probe_seed": -1},
        {"probe_seed": None},
        {"expires": "tomorrow"},
        {"expires": 1893456000},
        {"expires": "2030-01-02T03:04:05"},
        {"expires": "2030-13-02T03:04:05Z"},
        {"expires": "2030-01-02T03:04:05+02:00"},
        {"provenance": []},
        {"provenance": None},
        {"provenance": {"loss": float("nan")}},
        {"rows": 1},
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_or_out_of_range_is_refused(update, change):
    not_json = r"^The file has no class update in its header \(NaN is no number of JSON\)"
    broken = rf"^The class update(?: breaks its own rules: |'s fields differ)|{not_json}"
    with pytest.raises(CorruptFileError, match=broken):
        parse_payload(payload_with(update, **change))


def test_metadata_nested_without_end_is_refused(update):
    text = json.dumps(fields_of(serialize_payload(update)))[:-1] + ', "more": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(CorruptFileError, match=r"^The (?:file has no class update|class update's fields differ)"):
        parse_payload(save({"rows": np.array(update.rows)}, metadata={"class_update": text}))


def test_rows_with_a_nan_are_refused(update):
    rows = np.array(update.rows)
    rows[1, 2] = np.nan
    with pytest.raises(CorruptFileError, match=r"^The class update breaks its own rules: .* hold nan at \(1, 2\)"):
        parse_payload(payload_with(update, {"rows": rows}, rows_sha256=hashlib.sha256(rows.tobytes()).hexdigest()))


def test_rows_that_changed_since_they_were_written_are_refused(update):
    rows = np.array(update.rows)
    rows[0, 0] += 1
    with pytest.raises(CorruptFileError, match=r"another SHA-256 than it states; the file is damaged"):
        parse_payload(payload_with(update, {"rows": rows}))


def header_of(payload):
    (size,) = struct.unpack_from("<Q", payload)
    return json.loads(payload[8 : 8 + size])


def aligned(header):
    """A header behind which tensors begin at a multiple of 8 bytes, as safetensors writes it, to be read in place."""
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def payload_under(header_text, payload):
    """The tensors of `payload` under another header."""
    (size,) = struct.unpack_from("<Q", payload)
    return struct.pack("<Q", len(header_text)) + header_text + payload[8 + size :]


@pytest.mark.parametrize("num_spaces", [0, 1, 2, 8])
def test_rows_of_another_writer_are_read_wherever_they_start(num_spaces, update):
    header = json.dumps(header_of(serialize_payload(update)), indent=1).encode()
    payload = payload_under(header + b" " * num_spaces, serialize_payload(update))

    assert parse_payload(payload) == update
    assert parse_payload(payload, is_verified=True) == update
    assert parse_payload(payload, is_verified=True).rows.flags.aligned


def test_a_hole_before_the_rows_is_refused(update):
    original = serialize_payload(update)
    header = header_of(original)
    header["rows"]["data_offsets"] = [each + 4 for each in header["rows"]["data_offsets"]]
    (size,) = struct.unpack_from("<Q", original)
    payload = payload_under(aligned(header), original[: 8 + size] + bytes(4) + original[8 + size :])

    with pytest.raises(CorruptFileError):
        parse_payload(payload, is_verified=True)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0.0, 24.0]},
        {"data_offsets": [False, 24]},
        {"data_offsets": [4, 24]},
        {"data_offsets": [0, 20]},
        {"data_offsets": [0, 28]},
        {"data_offsets": [0]},
        {"shape": [True, 6]},
        {"shape": [-2, -3]},
        {"shape": [2.0, 3]},
        {"shape": [2, 2]},
        {"shape": [6]},
        {"shape": "23"},
        {"dtype": "I32"},
        {"dtype": ["F32"]},
    ],
)
def test_a_header_that_does_not_describe_its_rows_is_refused(change, update):
    header = header_of(serialize_payload(update))
    header["rows"] |= change
    payload = payload_under(aligned(header), serialize_payload(update))

    with pytest.raises(CorruptFileError):
        parse_payload(payload, is_verified=True)


@pytest.mark.parametrize("metadata", [5, ["{}"], {"class_update": "{}"}, None])
def test_metadata_that_is_no_text_is_refused(metadata, update):
    header = header_of(serialize_payload(update)) | {"__metadata__": {"class_update": metadata}}

    with pytest.raises(CorruptFileError, match="no class update in its header"):
        parse_payload(payload_under(json.dumps(header).encode(), serialize_payload(update)))


# Schema 2: rows with an arbiter.


def test_only_an_update_with_an_arbiter_is_of_schema_2(update, arbitrated):
    assert fields_of(serialize_payload(update))["schema_version"] == 1
    fields = fields_of(serialize_payload(arbitrated))
    assert fields["schema_version"] == 2
    assert fields.keys() == update_format._FIELDS | {"arbiter_sha256"}
    assert fields["arbiter_sha256"] == sha256(arbitrated.arbiter)


def test_rows_and_arbiter_are_read_in_place_and_cannot_be_written_to(arbitrated):
    payload = serialize_payload(arbitrated)
    parsed = parse_payload(payload)

    for array in (parsed.rows, parsed.arbiter):
        assert np.shares_memory(array, np.frombuffer(payload, np.uint8))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("num_spaces", [0, 1, 2, 8])
def test_an_arbiter_of_another_writer_is_read_wherever_it_starts(num_spaces, arbitrated):
    header = json.dumps(header_of(serialize_payload(arbitrated)), indent=1).encode()
    payload = payload_under(header + b" " * num_spaces, serialize_payload(arbitrated))

    assert parse_payload(payload) == arbitrated
    assert parse_payload(payload, is_verified=True) == arbitrated


def test_an_update_that_only_removes_may_have_an_arbiter_without_rows(update):
    removing = replace(update, rows=np.zeros((0, 3)), arbiter=np.zeros((0, 5)), added=(), replaced=())

    assert parse_payload(serialize_payload(removing)) == removing


@pytest.mark.parametrize(
    ("schema_version", "tensors", "found"),
    [
        (1, {"arbiter": np.zeros((2, 5), np.float32)}, "'arbiter': 'float32'"),
        (2, {"arbiter": np.zeros((2, 5))}, "'arbiter': 'float64'"),
        (2, {"arbiter": ...}, r"\{'rows': 'float32'\}"),
        (2, {"rows": ...}, r"\{'arbiter': 'float32'\}"),
        (2, {"more": np.zeros(1, np.float32)}, "'more': 'float32'"),
    ],
)
def test_each_schema_has_its_own_tensors_and_no_others(schema_version, tensors, found, arbitrated):
    given = {name: tensor for name, tensor in tensors_of(arbitrated, **tensors).items() if tensor is not ...}
    fields = {"schema_version": schema_version} | ({"arbiter_sha256": ...} if schema_version == 1 else {})

    with pytest.raises(CorruptFileError, match=rf"^The class update holds the tensors .*{found}.*; expected .* alone"):
        parse_payload(payload_with(arbitrated, given, **fields))


def test_a_schema_that_lacks_the_hash_of_the_arbiter_or_has_one_too_many_is_refused(update, arbitrated):
    with pytest.raises(CorruptFileError, match=r"differ from schema 2 in \['arbiter_sha256'\]"):
        parse_payload(payload_with(arbitrated, arbiter_sha256=...))
    with pytest.raises(CorruptFileError, match=r"differ from schema 1 in \['arbiter_sha256'\]"):
        parse_payload(payload_with(update, arbiter_sha256="0" * 64))


def test_an_arbiter_that_changed_since_it_was_written_is_refused_unless_a_signature_vouches_for_it(arbitrated):
    changed = np.array(arbitrated.arbiter)
    changed[1, 4] += 1
    payload = payload_with(arbitrated, tensors_of(arbitrated, arbiter=changed))

    with pytest.raises(CorruptFileError, match=r"^The class update's arbiter has another SHA-256 than it states"):
        parse_payload(payload)
    np.testing.assert_array_equal(parse_payload(payload, is_verified=True).arbiter, changed)


@pytest.mark.parametrize(
    ("arbiter", "message"),
    [
        (np.zeros((2, 4), np.float32), r"has shape \(2, 4\); expected \(2, 5\)"),
        (np.zeros((1, 5), np.float32), r"has shape \(1, 5\); expected \(2, 5\)"),
        (np.zeros(10, np.float32), r"have shape \(10,\); expected 2 dimensions|has shape \(10,\)"),
        (np.full((2, 5), np.nan, np.float32), "hold nan"),
        (np.full((2, 5), 1.1e30, np.float32), r"logits overflow float32"),
    ],
)
def test_an_arbiter_that_does_not_fit_its_rows_is_refused(arbiter, message, arbitrated):
    tensors = tensors_of(arbitrated, arbiter=arbiter)

    with pytest.raises(CorruptFileError, match=rf"^The class update breaks its own rules: .*({message})"):
        parse_payload(payload_with(arbitrated, tensors, arbiter_sha256=sha256(arbiter)))


@given(st.data())
def test_damaged_bytes_of_schema_2_are_refused_or_give_a_valid_update_but_never_crash(data):
    update = ClassUpdate(base_fingerprint=BASE, rows=[[1, 2]], arbiter=[[1, 2, 3, 4, 5]], added=["a"])
    payload = bytearray(serialize_payload(update))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    refusal = refusal_or_none(bytes(payload))
    assert refusal is None or "class update" in refusal


def test_every_truncation_of_schema_2_is_refused(arbitrated):
    payload = serialize_payload(arbitrated)
    for length in range(len(payload)):
        with pytest.raises(CorruptFileError):
            parse_payload(payload[:length])


@pytest.mark.parametrize("name", ["rows", "arbiter"])
@pytest.mark.parametrize(
    "change", [{"data_offsets": [0, 20]}, {"data_offsets": [40, 60]}, {"shape": [3, 5]}, {"dtype": "I32"}]
)
def test_a_header_that_does_not_describe_its_tensors_is_refused(name, change, arbitrated):
    header = header_of(serialize_payload(arbitrated))
    header[name] |= change
    payload = payload_under(json.dumps(header).encode(), serialize_payload(arbitrated))

    with pytest.raises(CorruptFileError):
        parse_payload(payload, is_verified=True)


BOUND = [
    {"complete": True},
    {"follows": FollowedState(version=2, digest="ab" * 32)},
    {"targets": ("cd" * 32, "ab" * 32)},
    {"follows": FollowedState(version=0, digest="ab" * 32), "targets": ("cd" * 32,)},
]


@pytest.mark.parametrize("binding", BOUND)
@pytest.mark.parametrize("has_arbiter", [False, True])
def test_what_an_update_follows_is_of_schema_3_and_comes_back(binding, has_arbiter, update, arbitrated):
    base = arbitrated if has_arbiter else update
    base = replace(base, added=base.class_names, replaced=(), removed=()) if binding.get("complete") else base
    bound = replace(base, **binding)

    payload = serialize_payload(bound)

    assert b'\\"schema_version\\":3' in payload
    assert parse_payload(payload) == bound
    assert parse_payload(payload, is_verified=True) == bound


@pytest.mark.parametrize(
    "change",
    [
        {"follows": {"version": 2}},
        {"follows": {"version": 2, "digest": "xy"}},
        {"follows": {"version": -1, "digest": "ab" * 32}},
        {"follows": {"version": True, "digest": "ab" * 32}},
        {"follows": []},
        {"complete": 1},
        {"complete": None},
        {"targets": "ab"},
        {"targets": ["ab"]},
        {"targets": [7]},
        {"targets": [["ab" * 32]]},
        {"targets": [f"{number:064x}" for number in range(65)]},
    ],
)
def test_a_binding_of_the_wrong_type_or_out_of_range_is_refused(change, update):
    fields = {"schema_version": 3, "arbiter_sha256": None, "follows": None, "complete": False, "targets": []}

    with pytest.raises(CorruptFileError):
        parse_payload(payload_with(update, **fields | change))


def test_schema_2_without_the_hash_of_its_arbiter_is_refused(update):
    with pytest.raises(CorruptFileError, match="no SHA-256 of its arbiter"):
        parse_payload(payload_with(update, schema_version=2, arbiter_sha256=None))
