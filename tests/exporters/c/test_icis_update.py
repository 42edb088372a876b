"""The reader of class updates in C: the verdicts and slots of a device in Python, on good and malformed files."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from icis_deploy.bundle.manifest import Bundle, load_manifest, target_digest
from icis_deploy.head.class_update import ClassUpdate, FollowedState
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime.changes.rules import max_update_bytes
from icis_deploy.runtime.state.journal import initial_journal
from icis_deploy.updates.payload import serialize_payload
from icis_deploy.updates.trusted_keys import TrustedKeys, public_key_from_pem, serialize_trusted_keys
from scripts.robustness.c_reader import (
    FLAGS,
    SOURCES,
    CReader,
    Verdict,
    compile_reader,
    libcrypto_flags,
    missing_tools,
    python_verdict,
    run_c_reader,
)
from scripts.robustness.two_readers import pem_of, signed_file
from testing.bundles import FEATURE_DIM, make_update, write_bundle

pytestmark = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Readers:
    """Both readers, with one bundle and one trusted key."""

    def __init__(self, folder: Path) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.pem = pem_of(self.private)
        self.key_id = public_key_from_pem(self.pem).keyid
        self.bundle: Bundle = load_manifest(write_bundle(folder / "bundle", arbiter=True))
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.library = compile_reader(folder)
        self.reader = CReader(self.library, self.bundle, [raw])
        self.empty = empty_slots(self.bundle.capacity, FEATURE_DIM)

    def signed(self, update: ClassUpdate) -> bytes:
        return signed_file(serialize_payload(update), self.private, self.key_id)

    def both(
        self,
        data: bytes,
        *,
        table: SlotTable | None = None,
        highest: int = 0,
        now: datetime = NOW,
        arbiter: bool = True,
    ) -> Verdict:
        """Return what the reader in C makes of a file, if a device makes the same of it."""
        table = self.empty if table is None else table
        journal = replace(initial_journal(self.bundle), highest_version=highest)
        found = self.reader.apply(data, table, journal=journal, now=now, with_arbiter=arbiter)
        expected, written = python_verdict(
            data, table, bundle=replace(self.bundle, arbiter=arbiter), keys=[self.pem], journal=journal, now=now
        )
        assert found.status in expected
        assert found.table == written
        return found


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    return Readers(tmp_path_factory.mktemp("c"))


def filled(readers: Readers, *names: str) -> SlotTable:
    table = readers.both(readers.signed(make_update(*names, arbiter=np.ones((len(names), 5))))).table
    assert table is not None
    return table


def test_an_update_is_taken_with_its_rows_and_its_arbiter(readers: Readers) -> None:
    update = make_update("okapi", "zèbre 斑馬", arbiter=np.arange(10).reshape(2, 5), version=7)
    taken = readers.both(readers.signed(update), highest=6)
    assert taken.status == "OK"
    assert taken.table is not None
    assert taken.table.filled_names == ("okapi", "zèbre 斑馬")
    np.testing.assert_array_equal(taken.table.rows(), update.rows)
    np.testing.assert_array_equal(taken.table.coefficients[:2], update.arbiter)


def test_classes_are_added_replaced_and_removed_as_on_any_device(readers: Readers) -> None:
    table = filled(readers, "a", "b", "c", "d")
    update = make_update("e", version=2, replaced=("c",), removed=("b",))
    taken = readers.both(readers.signed(update), table=table, highest=1)
    assert taken.table is not None
    assert taken.table.class_names == ("a", "e", "c", "d")
    assert not taken.table.coefficients[1].any()


def test_a_complete_update_empties_what_it_does_not_list(readers: Readers) -> None:
    table = filled(readers, "a", "b", "c")
    taken = readers.both(readers.signed(make_update("c", "x", version=2, complete=True)), table=table, highest=1)
    assert taken.table is not None
    assert taken.table.filled_names == ("c", "x")


def test_an_update_follows_the_state_that_it_was_made_for(readers: Readers) -> None:
    table = filled(readers, "b", "ab", "a", "ä")  # in no order, one the beginning of another
    follows = FollowedState(version=1, digest=table.digest())
    update = make_update(version=2, follows=follows, removed=("b",), targets=(target_digest(readers.bundle),))
    assert readers.both(readers.signed(update), table=table, highest=1).status == "OK"
    assert readers.both(readers.signed(update), highest=1).status == "WRONG_ORDER"


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("WRONG_BASE", {"base_fingerprint": "0" * 64}),
        ("WRONG_TARGET", {"targets": ("1" * 64, "2" * 64)}),
        ("OLD_VERSION", {"version": 3}),
        ("EXPIRED", {"expires": NOW}),
        ("CONFLICT", {"removed": ("nobody",)}),
        ("CONFLICT", {"added": ("cat",)}),  # which is baked
    ],
)
def test_what_does_not_fit_the_device_is_refused_for_the_same_reason(
    status: str, fields: dict[str, object], readers: Readers
) -> None:
    update = replace(make_update("okapi", version=4), **fields)
    assert readers.both(readers.signed(update), highest=3).status == status


def test_time_is_read_as_the_calendar_has_it(readers: Readers) -> None:
    # A device believes no clock earlier than its bundle, so all of these come later.
    for text in ("2104-02-29T23:59:59Z", "2100-03-01T00:00:00Z", "2028-02-29T00:00:00Z", "2026-12-31T00:00:00Z"):
        expires = datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc)
        data = readers.signed(make_update("okapi", expires=expires))
        assert readers.both(data, now=expires - timedelta(seconds=1)).status == "OK"
        assert readers.both(data, now=expires).status == "EXPIRED"


def test_rows_with_an_arbiter_need_a_model_that_takes_one(readers: Readers) -> None:
    data = readers.signed(make_update("okapi", arbiter=np.ones((1, 5))))
    assert readers.both(data, arbiter=False).status == "NO_ARBITER"
    assert readers.both(readers.signed(make_update("okapi")), arbiter=False).status == "OK"


def test_more_classes_than_slots_and_rows_of_another_width_are_refused(readers: Readers) -> None:
    assert readers.both(readers.signed(make_update(*"abcde"))).status == "NO_ROOM"
    wide = replace(make_update("okapi"), rows=np.zeros((1, FEATURE_DIM + 2)))
    assert readers.both(readers.signed(wide)).status == "CONFLICT"


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 65, 128, 129, 256, 3309])
def test_a_signature_by_another_key_counts_for_nothing_whatever_its_size(readers: Readers, num_bytes: int) -> None:
    document = json.loads(readers.signed(make_update("okapi")))
    other = {"keyid": "a key of another kind", "sig": base64.b64encode(b"s" * num_bytes).decode()}
    ours = document["signatures"]

    for signatures in ([other, *ours], [*ours, other]):
        data = json.dumps(document | {"signatures": signatures}).encode()
        assert readers.both(data).status == "OK"
    data = json.dumps(document | {"signatures": [other | {"keyid": readers.key_id}]}).encode()
    assert readers.both(data).status == "UNSIGNED"


def test_nothing_is_taken_without_a_trusted_signature(readers: Readers) -> None:
    payload = serialize_payload(make_update("okapi"))
    stranger = Ed25519PrivateKey.generate()
    assert readers.both(signed_file(payload, stranger, readers.key_id)).status == "UNSIGNED"
    assert readers.both(signed_file(payload, readers.private, "0" * 64)).status == "UNSIGNED"
    document = json.loads(signed_file(payload, readers.private, readers.key_id))
    document["signatures"] = []
    assert readers.both(json.dumps(document).encode()).status == "UNSIGNED"


@pytest.mark.parametrize(
    "raw",
    [
        "00" * 32,
        "00" * 31 + "80",
        "01" + "00" * 31,
        "ec" + "ff" * 30 + "7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ],
)
def test_a_key_that_everybody_can_sign_with_signs_nothing(raw: str, readers: Readers) -> None:
    key = {"keytype": "ed25519", "keyval": {"public": raw}, "scheme": "ed25519"}
    key_id = hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).hexdigest()
    own = readers.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    reader = CReader(readers.library, readers.bundle, [bytes.fromhex(raw), own])
    journal = initial_journal(readers.bundle)
    # The neutral element as R, and 0 as S: it fits where the hash is a multiple of the point's order.
    forged = {"keyid": key_id, "sig": base64.b64encode(bytes([1]) + bytes(63)).decode()}

    for version in range(1, 65):
        good = readers.signed(make_update("okapi", version=version))
        data = json.dumps(json.loads(good) | {"signatures": [forged]}).encode()
        found = reader.apply(data, readers.empty, journal=journal, now=NOW, with_arbiter=True)
        assert found.status == "UNSIGNED"
    assert reader.apply(good, readers.empty, journal=journal, now=NOW, with_arbiter=True).status == "OK"


def test_a_set_of_trusted_keys_is_left_to_others(readers: Readers) -> None:
    payload = serialize_trusted_keys(TrustedKeys(version=2, public_keys=(readers.pem,)))
    kind = b"application/vnd.icis-deploy.trusted-keys.v1+json"
    signature = readers.private.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    signatures = [{"keyid": readers.key_id, "sig": base64.b64encode(signature).decode()}]
    document = {"payload": base64.b64encode(payload).decode(), "payloadType": kind.decode(), "signatures": signatures}
    assert readers.both(json.dumps(document).encode()).status == "OTHER_CONTENT"


def test_an_envelope_may_be_written_in_any_json_and_no_key_may_stand_twice(readers: Readers) -> None:
    data = readers.signed(make_update("okapi"))
    document = json.loads(data)
    assert readers.both(json.dumps(document, indent=3).encode()).status == "OK"
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in document["payload"])
    text = json.dumps(document).replace(document["payload"], escaped)
    assert readers.both(text.replace('"payload"', '"\\u0070ayload"').encode()).status == "OK"
    twice = (
        data.replace(b"}", b',"\\u0070ayload":""}', 1) if data.count(b"}") == 1 else data[:-1] + b',"\\u0070ayload":""}'
    )
    assert readers.both(twice).status == "CORRUPT"
    repeated = {**document, "signatures": document["signatures"] * 2}
    assert readers.both(json.dumps(repeated).encode()).status == "CORRUPT"
    more = {**document, "extra": {"deep": [1, 2.5e-3, None, True, "\ud83d\ude00"]}}
    assert readers.both(json.dumps(more).encode()).status == "OK"


@pytest.mark.parametrize(
    ("number", "is_taken"),
    [
        ("1.7976931348623157e308", True),
        ("1.7976931348623158e308", True),
        ("1.7976931348623159e308", False),
        ("17976931348623158.1e292", False),
        ("0.00017976931348623157e312", True),
        ("1e999", False),
        ("0e999999999999", True),
        ("1e-999999999999", True),
        ("9" * 4300, True),
        ("9" * 4301, False),
        ("NaN", False),
        ("01", False),
        ("-0", True),
        ("1.", False),
        ('"\\ud800"', False),
        ('"\\ud83d\\ude00"', True),
        ("[" * 40 + "]" * 40, True),
    ],
)
def test_provenance_is_what_json_can_hold(number: str, *, is_taken: bool, readers: Readers) -> None:
    payload = serialize_payload(make_update("okapi", provenance={"x": "PLACE"}))
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    fields = header["__metadata__"]["class_update"].replace('"PLACE"', number)
    header["__metadata__"]["class_update"] = fields
    text = json.dumps(header).encode()
    data = signed_file(len(text).to_bytes(8, "little") + text + payload[8 + size :], readers.private, readers.key_id)
    assert (readers.both(data).status == "OK") == is_taken


def test_files_are_not_read_beyond_the_size_that_an_update_can_have(readers: Readers) -> None:
    journal = initial_journal(readers.bundle)
    assert readers.reader.max_file_bytes(journal, NOW) == max_update_bytes(readers.bundle)
    data = readers.signed(make_update("okapi"))
    padded = data + b" " * (max_update_bytes(readers.bundle) - len(data))
    assert readers.both(padded).status == "OK"
    assert readers.both(padded + b" ").status == "TOO_LARGE"


def test_malformed_files_get_the_verdict_of_the_other_reader(tmp_path: Path) -> None:
    report = run_c_reader(tmp_path, 1500, seed=1)
    assert report.is_clean
    assert report.num_both_took > 50
    assert set(report.stricter) <= {"CORRUPT"}  # key ids that are no texts
    assert sum(report.stricter.values()) < 0.01 * report.num_files


def test_sanitizers_find_nothing_in_malformed_files(readers: Readers, tmp_path: Path) -> None:
    program = tmp_path / "files"
    flags = [*FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DICIS_FILES"]
    sources = [str(SOURCES / name) for name in ("fuzz.c", "icis_update.c")]
    built = subprocess.run(["cc", *flags, *sources, "-o", str(program), *libcrypto_flags()], check=False)
    if built.returncode:
        pytest.skip("this compiler has no address sanitizer")
    random = np.random.default_rng(0)
    payloads = [
        serialize_payload(replace(update, base_fingerprint="a" * 64, rows=update.rows[:, :4]))
        for update in (make_update("okapi"), make_update("b", removed=("zebra",), arbiter=np.ones((1, 5))))
    ]
    from scripts.robustness.mutations import MUTATIONS
    from scripts.robustness.two_readers import damaged

    paths = []
    for index in range(400):
        payload = payloads[index % 2]
        if index < 2:
            data = b"\1" + payload
        elif index % 2:
            data = b"\1" + damaged(payload, random)
        else:
            mutation = MUTATIONS[index // 2 % len(MUTATIONS)]
            data = b"\0" + mutation(signed_file(payload, readers.private, readers.key_id), random)
        paths.append(tmp_path / str(index))
        paths[-1].write_bytes(data)
    ran = subprocess.run([program, *paths], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
