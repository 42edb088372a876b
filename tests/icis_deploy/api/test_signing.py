"""Keys and signatures through the public functions, with paths as text as a user has them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.errors import SignatureError, UsageError
from testing.bundles import make_update

EXPIRES = datetime(2100, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def keys(tmp_path: Path) -> icis_deploy.KeyPair:
    return icis_deploy.keygen(str(tmp_path / "key"))


@pytest.fixture
def update(tmp_path: Path) -> str:
    icis_deploy.save_update(make_update("okapi"), str(tmp_path / "new.icis"))
    return str(tmp_path / "new.icis")


def test_a_signed_update_is_verified_and_says_who_signed_it(keys: icis_deploy.KeyPair, update: str):
    signed = icis_deploy.sign(update, key=str(keys.private_path), version=3, expires=EXPIRES)
    found = icis_deploy.verify_update(update, trust=[str(keys.public_path)])

    assert found == signed
    assert found.signed_by == keys.key_id
    assert isinstance(found.content, icis_deploy.ClassUpdate)
    assert (found.content.added, found.content.version, found.content.expires) == (("okapi",), 3, EXPIRES)


def test_an_update_that_nobody_trusted_signed_is_refused(keys: icis_deploy.KeyPair, update: str, tmp_path: Path):
    stranger = icis_deploy.keygen(tmp_path / "stranger")
    with pytest.raises(SignatureError, match="is not signed"):
        icis_deploy.verify_update(update, trust=[keys.public_path])
    icis_deploy.sign(update, key=stranger.private_path)

    with pytest.raises(
        SignatureError, match=f"is signed by '{stranger.key_id[:16]}'; trusted are '{keys.key_id[:16]}'"
    ):
        icis_deploy.verify_update(update, trust=[keys.public_path])


def test_signing_to_another_file_leaves_the_first_as_it_was(keys: icis_deploy.KeyPair, update: str, tmp_path: Path):
    before = Path(update).read_bytes()
    signed = icis_deploy.sign(update, key=keys.private_path, out=str(tmp_path / "signed.icis"))

    assert signed.path == tmp_path / "signed.icis"
    assert Path(update).read_bytes() == before
    with pytest.raises(UsageError, match="already exists"):
        icis_deploy.sign(update, key=keys.private_path, out=signed.path)


def test_a_rotation_is_signed_by_the_key_that_it_replaces(keys: icis_deploy.KeyPair, tmp_path: Path):
    new, out = icis_deploy.keygen(tmp_path / "new-key"), tmp_path / "keys.icis"
    icis_deploy.rotate_keys([str(new.public_path)], key=keys.private_path, version=1, out=str(out))
    found = icis_deploy.verify_update(out, trust=[keys.public_path])

    assert isinstance(found.content, icis_deploy.TrustedKeys)
    assert found.content.public_keys == (new.public_path.read_text(),)
