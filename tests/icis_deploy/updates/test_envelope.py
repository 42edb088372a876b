"""Unsigned class update files: what the workbench writes and reads before anybody signs."""

import base64
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.errors import CorruptFileError, LoadError, StorageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.updates import envelope
from icis_deploy.updates.envelope import load_update, parse_envelope, save_update, serialize_envelope
from icis_deploy.updates.payload import PAYLOAD_TYPE, serialize_payload

UPDATE = ClassUpdate(
    base_fingerprint="0123456789abcdef" * 4,
    rows=[[1.0, 2.0], [3.0, 4.0]],
    added=["okapi", "Bärin"],
    provenance={"method": "icis"},
)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "new.icis"
    save_update(UPDATE, path)
    return path


def test_loading_gives_back_what_was_saved(saved):
    assert load_update(saved) == UPDATE


def test_equal_updates_have_equal_files(saved, tmp_path):
    save_update(load_update(saved), tmp_path / "again.icis")

    assert (tmp_path / "again.icis").read_bytes() == saved.read_bytes()


def test_the_file_is_a_dsse_envelope_without_signatures(saved):
    content = json.loads(saved.read_bytes())

    assert content["payloadType"] == PAYLOAD_TYPE
    assert content["signatures"] == []
    assert base64.b64decode(content["payload"], validate=True) == serialize_payload(UPDATE)


def test_parsing_gives_back_the_envelope_that_was_serialized(saved):
    data = saved.read_bytes()

    assert serialize_envelope(parse_envelope(data)) == data


@pytest.mark.parametrize("library", ["pybase64", "standard library"])
def test_a_payload_that_is_not_plain_base64_is_refused_whichever_library_decodes_it(saved, library, monkeypatch):
    if library == "standard library":
        monkeypatch.setitem(sys.modules, "pybase64", None)
    document = json.loads(saved.read_bytes())
    payload = document["payload"]

    assert parse_envelope(json.dumps(document).encode()).payload == serialize_payload(UPDATE)
    for damaged in (
        payload + "=",
        "=" + payload,
        payload[:-1],
        payload[:5] + "*" + payload[5:],
        "\n" + payload,
        "é",
        7,
    ):
        with pytest.raises(CorruptFileError, match="no DSSE envelope"):
            parse_envelope(json.dumps(document | {"payload": damaged}).encode())


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    for length in range(0, len(data), 7):
        saved.write_bytes(data[:length])
        with pytest.raises(CorruptFileError, match=rf"^{saved}: The file is not a class update: it is no DSSE"):
            load_update(saved)


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_damaged_json_around_the_payload_is_refused(saved, position):
    data = bytearray(saved.read_bytes())
    start = data.index(b'"payloadType"') - 1
    data[(start + position) % len(data)] ^= 0x80
    saved.write_bytes(data)

    with pytest.raises(CorruptFileError, match=rf"^{saved}: "):
        load_update(saved)


def refusal_or_none(path):
    try:
        load_update(path)
    except CorruptFileError as error:
        return str(error)
    return None


@given(st.data())
def test_damage_anywhere_is_refused_or_gives_a_valid_update_but_never_crashes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.icis"
    damaged = bytearray(serialize_envelope(envelope.envelope_of(UPDATE)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)

    assert refusal_or_none(path) is None or refusal_or_none(path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b'{"payload": "AAAA"}',
        b'{"payload": 1, "payloadType": 2, "signatures": 3}',
        b'{"payload": "A", "payloadType": "x", "signatures": []}',
        b'{"payload": "AAAA", "payloadType": "x", "signatures": [{"keyid": 1}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=lambda content: content[:40].decode(errors="replace"),
)
def test_what_is_no_envelope_is_refused(saved, content):
    saved.write_bytes(content)

    with pytest.raises(CorruptFileError, match=rf"^{saved}: The file is not a class update: it is no DSSE envelope \("):
        load_update(saved)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_envelope_in_another_encoding_than_utf_8_is_refused(saved, encoding):
    saved.write_bytes(saved.read_text("utf-8").encode(encoding))

    with pytest.raises(CorruptFileError, match=r"no DSSE envelope \((UnicodeDecodeError: 'utf-8'|JSONDecodeError: )"):
        load_update(saved)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("other", ['""', "null", "0", "[]", "{}", '"AAAA"'])
@pytest.mark.parametrize("key", ["payload", "p\\u0061yload", "payloadType", "signatures"])
def test_an_envelope_in_which_a_key_stands_twice_is_refused(saved, key, other, first):
    text = saved.read_text()
    saved.write_text(f'{{"{key}":{other},{text[1:]}' if first else f'{text[:-1]},"{key}":{other}}}')

    with pytest.raises(CorruptFileError, match=r"no DSSE envelope \(ValueError: a key occurs twice in an object\)"):
        load_update(saved)


def test_a_signature_in_which_a_key_stands_twice_is_refused(saved):
    signature = '{"keyid":"a","sig":"AAAA","keyid":"b"}'
    saved.write_text(saved.read_text().replace('"signatures":[]', f'"signatures":[{signature}]'))

    with pytest.raises(CorruptFileError, match="a key occurs twice"):
        load_update(saved)


@pytest.mark.parametrize("payload", [None, 0, [], {}, False])
def test_a_payload_that_is_no_text_is_refused(saved, payload):
    saved.write_text(json.dumps(json.loads(saved.read_bytes()) | {"payload": payload}))

    with pytest.raises(CorruptFileError, match=r"no DSSE envelope \(TypeError: "):
        load_update(saved)


def test_an_envelope_of_something_else_is_refused(saved):
    content = json.loads(saved.read_bytes()) | {"payloadType": "application/vnd.in-toto+json"}
    saved.write_text(json.dumps(content))

    with pytest.raises(CorruptFileError, match=r"The envelope holds 'application/vnd\.in-toto\+json'; "):
        load_update(saved)


def test_an_envelope_around_a_damaged_payload_is_refused(saved):
    payload = base64.b64encode(serialize_payload(UPDATE)[:-1]).decode()
    saved.write_text(json.dumps(json.loads(saved.read_bytes()) | {"payload": payload}))

    with pytest.raises(CorruptFileError, match=rf"^{saved}: The class update is not a valid safetensors file"):
        load_update(saved)


def test_a_file_over_the_cap_is_not_read(saved, monkeypatch):
    monkeypatch.setattr(envelope, "MAX_ENVELOPE_BYTES", 100)

    with pytest.raises(LoadError, match=r"^The class update \S+ is larger than 100 bytes, which no class update is"):
        load_update(saved)
    with pytest.raises(CorruptFileError, match=r"^The class update is \d+ bytes; at most 100 are read\."):
        parse_envelope(saved.read_bytes())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"^Cannot read the class update \S+missing\.icis: No such file or directory"):
        load_update(tmp_path / "missing.icis")


def test_saving_where_nothing_can_be_written_says_so(tmp_path):
    with pytest.raises(StorageError, match=r"^Could not write \S+new\.icis: No such file or directory\. Nothing was"):
        save_update(UPDATE, tmp_path / "missing" / "new.icis")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signatures", [{}, "", None, 0, False], ids=["object", "text", "null", "number", "false"])
def test_signatures_that_are_no_list_are_no_signatures_that_are_none(signatures, saved):
    """An operator who takes what nobody signed would take them."""
    document = json.loads(saved.read_bytes()) | {"signatures": signatures}

    with pytest.raises(CorruptFileError, match="it is no DSSE envelope"):
        parse_envelope(json.dumps(document).encode())
