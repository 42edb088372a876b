from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from icis_deploy.errors import CorruptFileError, IncompatibleError, SignatureError
from icis_deploy.updates.signing import keygen
from icis_deploy.updates.trusted_keys import (
    MAX_TRUSTED_KEYS,
    MAX_TRUSTED_KEYS_BYTES,
    TrustedKeys,
    canonical_pem,
    key_ids,
    parse_trusted_keys,
    pem_from_public_key,
    serialize_trusted_keys,
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return [keygen(folder / f"key-{index}") for index in range(3)]


@pytest.fixture(scope="module")
def texts(pairs):
    return tuple(pair.public_path.read_text() for pair in pairs)


@given(version=st.integers(1, 1 << 50), expires=st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))
def test_parsing_gives_back_what_was_serialized(texts, version, expires):
    expires = None if expires is None else expires.replace(tzinfo=timezone.utc)
    keys = TrustedKeys(public_keys=texts, version=version, expires=expires)

    assert parse_trusted_keys(serialize_trusted_keys(keys)) == keys


def test_no_more_keys_than_a_device_reads_can_be_trusted():
    texts = tuple(pem_from_public_key(CryptoSigner.generate_ed25519().public_key) for _ in range(MAX_TRUSTED_KEYS + 1))
    assert len(TrustedKeys(public_keys=texts[:-1]).public_keys) == MAX_TRUSTED_KEYS
    with pytest.raises(IncompatibleError, match=f"A set of {MAX_TRUSTED_KEYS + 1} trusted keys was given"):
        TrustedKeys(public_keys=texts)


def test_a_key_stands_once_however_it_is_written(texts):
    keys = TrustedKeys(public_keys=(texts[0], texts[0].replace("\n", "\r\n"), "a comment\n" + texts[0], texts[1]))

    assert keys.public_keys == texts[:2]


def test_key_ids_are_those_that_keygen_states(pairs, texts):
    assert key_ids(texts) == tuple(pair.key_id for pair in pairs)


def test_other_terms_leave_the_keys_alone(texts):
    expires = datetime(2030, 1, 1, tzinfo=timezone.utc)

    changed = TrustedKeys(public_keys=texts).with_terms(version=4, expires=expires)
    assert (changed.public_keys, changed.version, changed.expires) == (texts, 4, expires)


def test_an_empty_set_would_lock_the_device_for_ever():
    with pytest.raises(IncompatibleError, match=f"A set of 0 trusted keys was given; expected 1 to {MAX_TRUSTED_KEYS}"):
        TrustedKeys(public_keys=())


def test_out_of_range_terms_are_refused(texts):
    with pytest.raises(IncompatibleError, match="have version 0; expected at least 1"):
        TrustedKeys(public_keys=texts, version=0)
    assert TrustedKeys(public_keys=texts, version=2**63 - 1).version == 2**63 - 1
    with pytest.raises(IncompatibleError, match="version does not fit into 63 bits"):
        TrustedKeys(public_keys=texts, version=10**5000)
    with pytest.raises(IncompatibleError, match="expiry of the trusted keys has no time zone"):
        TrustedKeys(public_keys=texts, expires=datetime(2030, 1, 1))


def pem_of(private_key):
    return private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_keys_that_tokens_have_are_taken_and_kept_in_canonical_form(curve, texts):
    pem = pem_of(ec.generate_private_key(curve))

    assert canonical_pem(f"\n{pem}\n") == canonical_pem(pem)
    keys = TrustedKeys(public_keys=(*texts, pem, f"{pem}\n"), version=3)
    assert len(keys.public_keys) == len(texts) + 1
    assert parse_trusted_keys(serialize_trusted_keys(keys)) == keys
    assert json.loads(serialize_trusted_keys(keys))["schema_version"] == 2
    assert json.loads(serialize_trusted_keys(TrustedKeys(public_keys=texts)))["schema_version"] == 1


@pytest.mark.parametrize(
    "private_key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
        x25519.X25519PrivateKey.generate(),
    ],
)
def test_other_kinds_of_keys_are_refused(private_key):
    with pytest.raises(SignatureError, match="expected an Ed25519 public key, or an ECDSA one of P-256 or P-384"):
        canonical_pem(pem_of(private_key))


def test_what_is_no_public_key_is_refused(pairs):
    with pytest.raises(SignatureError, match=r"is a private key; expected a public one\. Give the file next to it"):
        canonical_pem(pairs[0].private_path.read_text())
    with pytest.raises(SignatureError, match=r"not a public key in PEM form: .*`keygen\(\)` makes one"):
        canonical_pem("no key")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "its schema version is 3, this release reads 1 and 2"),
        ({"schema_version": True}, "expected a whole number, found True"),
        ({"schema_version": 1.0}, r"expected a whole number, found 1\.0"),
        ({"extra": 1}, r"its fields differ from the schema in \['extra'\]"),
        ({"public_keys": []}, "A set of 0 trusted keys"),
        ({"public_keys": ["x"]}, "not a public key in PEM form"),
        ({"public_keys": "x"}, "expected a list of texts, found 'x'"),
        ({"version": True}, "expected a whole number, found True"),
        ({"expires": "tomorrow"}, "has not the form"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(changes, message, texts):
    fields = json.loads(serialize_trusted_keys(TrustedKeys(public_keys=texts))) | changes

    with pytest.raises(CorruptFileError, match=message):
        parse_trusted_keys(json.dumps(fields).encode())


def test_a_set_in_which_a_key_stands_twice_is_refused(texts):
    data = serialize_trusted_keys(TrustedKeys(public_keys=texts))

    with pytest.raises(CorruptFileError, match="a key occurs twice in an object"):
        parse_trusted_keys(data.replace(b'{"', b'{"version":9,"', 1))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"{}", b"[" * 10_000, b"\xff"])
def test_what_is_no_set_of_keys_is_refused(payload):
    with pytest.raises(CorruptFileError, match="The file of trusted keys is damaged"):
        parse_trusted_keys(payload)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_set_in_another_encoding_than_utf_8_is_refused(encoding, texts):
    payload = serialize_trusted_keys(TrustedKeys(public_keys=texts, version=1)).decode()

    with pytest.raises(CorruptFileError, match="The file of trusted keys is damaged"):
        parse_trusted_keys(payload.encode(encoding))


def test_too_many_bytes_are_not_parsed():
    with pytest.raises(CorruptFileError, match=f"at most {MAX_TRUSTED_KEYS_BYTES} are read"):
        parse_trusted_keys(b" " * (MAX_TRUSTED_KEYS_BYTES + 1))


@pytest.mark.parametrize("threshold", [0, 2])
def test_a_number_of_root_keys_that_cannot_sign_is_refused(threshold, texts):
    with pytest.raises(IncompatibleError, match=rf"{threshold} of 1 root keys are to sign; expected at least one"):
        TrustedKeys(public_keys=texts[:1], root_keys=texts[1:2], root_threshold=threshold)
    # One root key that is listed twice is one key, whoever holds it.
    with pytest.raises(IncompatibleError, match="2 of 1 root keys are to sign"):
        TrustedKeys(public_keys=texts[:1], root_keys=(texts[1], texts[1]), root_threshold=2)
    both = TrustedKeys(public_keys=texts[:1], root_keys=texts[1:], root_threshold=2)
    assert (both.root_keys, both.root_threshold) == (texts[1:], 2)


def test_one_key_has_one_role(texts):
    with pytest.raises(IncompatibleError, match="1 keys are both root keys and keys that sign updates"):
        TrustedKeys(public_keys=texts[:2], root_keys=texts[1:])


def test_versions_that_are_given_back_are_in_range(texts):
    for highest in (-1, 2**63):
        with pytest.raises(IncompatibleError, match="highest version of the trusted keys is out of range") as raised:
            TrustedKeys(public_keys=texts[:1], root_keys=texts[1:], highest_version=highest)
        assert raised.value.found == highest
    for highest in (0, 2**63 - 1):
        assert (
            TrustedKeys(public_keys=texts[:1], root_keys=texts[1:], highest_version=highest).highest_version == highest
        )


def test_an_expiry_in_another_zone_is_the_same_moment_in_utc(texts):
    expires = datetime(2030, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert TrustedKeys(public_keys=texts, expires=expires).expires == datetime(2029, 12, 31, 23, tzinfo=timezone.utc)


SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 31,
    "ee" + "ff" * 30 + "7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_a_key_that_everybody_can_sign_with_is_none(raw):
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw))
    # The neutral element as R, and 0 as S: it fits where the hash of the message is a multiple of the point's order.
    forged, fits = bytes([1]) + bytes(63), 0
    for number in range(200):
        with suppress(InvalidSignature):
            key.verify(forged, b"%d" % number)
            fits += 1
    assert fits or raw[:2] in {"ed", "ee"}  # encodings that OpenSSL refuses today

    with pytest.raises(SignatureError, match="a point of small order"):
        canonical_pem(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
