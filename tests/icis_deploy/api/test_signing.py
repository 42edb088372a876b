"""Keys and signatures through the public functions, with paths as text as a user has them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.errors import ICISDeployWarning, IncompatibleError, SignatureError, UsageError
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


WRONG_NUMBERS = pytest.mark.parametrize("number", [1.5, 2.0, True, "2"], ids=["half", "float", "truth", "text"])


@WRONG_NUMBERS
def test_no_terms_are_signed_that_are_no_whole_numbers(number, keys: icis_deploy.KeyPair, update: str, tmp_path: Path):
    """No device would read them, and all that was signed with them would be refused."""
    roots = [icis_deploy.keygen(tmp_path / f"root-{index}").public_path for index in range(2)]
    trust, key, out = [keys.public_path], keys.private_path, tmp_path / "keys.icis"
    for name, call in {
        "version": lambda: icis_deploy.sign(update, key=key, version=number),
        "threshold": lambda: icis_deploy.rotate_keys(trust, key=key, version=1, out=out, root=roots, threshold=number),
        "highest_version": lambda: icis_deploy.rotate_keys(trust, key=key, version=1, out=out, highest_version=number),
    }.items():
        with pytest.raises(UsageError, match=f"^`{name}` is .*; expected a whole number"):
            call()
    with pytest.raises(UsageError, match=r"^`version` is"):
        icis_deploy.rotate_keys(trust, key=key, version=number, out=out)
    with pytest.raises(UsageError, match=r"^`version` is"):
        make_update("okapi", version=number, seed=0)
    with pytest.raises(UsageError, match=r"^`expires` is '2100-01-01', of type str"):
        icis_deploy.sign(update, key=key, expires="2100-01-01")
    assert not out.exists()


def test_numbers_of_numpys_types_are_signed(keys: icis_deploy.KeyPair, update: str):
    icis_deploy.sign(update, key=keys.private_path, version=np.int64(7))
    assert icis_deploy.verify_update(update, trust=[keys.public_path]).content.version == 7


def test_a_file_of_two_public_keys_is_refused(keys: icis_deploy.KeyPair, update: str, tmp_path: Path):
    """A reader of PEM takes the first one, and the other would count for nothing, silently."""
    icis_deploy.sign(update, key=keys.private_path)
    both = tmp_path / "both.pub"
    both.write_bytes(keys.public_path.read_bytes() + icis_deploy.keygen(tmp_path / "second").public_path.read_bytes())

    for call in (
        lambda: icis_deploy.verify_update(update, trust=[both]),
        lambda: icis_deploy.rotate_keys([both], key=keys.private_path, version=1, out=tmp_path / "keys.icis"),
        lambda: icis_deploy.rotate_keys(
            [keys.public_path], key=keys.private_path, version=1, out=tmp_path / "keys.icis", root=[both]
        ),
    ):
        with pytest.raises(SignatureError, match=r"both\.pub holds 2 public keys; expected one"):
            call()


def test_a_set_that_its_root_keys_have_yet_to_sign_is_told_of(keys: icis_deploy.KeyPair, tmp_path: Path, capsys):
    roots = [icis_deploy.keygen(tmp_path / f"root-{index}") for index in range(2)]
    out, trust = str(tmp_path / "keys.icis"), ["--trust", str(keys.public_path)]
    publics = [root.public_path for root in roots]
    icis_deploy.rotate_keys([keys.public_path], key=keys.private_path, version=1, out=out, root=publics, threshold=2)
    icis_deploy.sign(out, key=roots[0].private_path)

    with pytest.warns(ICISDeployWarning, match=r"No device takes .* signed by 1 of the trusted keys; 2 must"):
        icis_deploy.verify_update(out, trust=[keys.public_path])
    assert run(["verify-update", out, *trust]) == 0
    assert "Warning: No device takes" in capsys.readouterr().err
    icis_deploy.sign(out, key=roots[1].private_path)
    assert run(["verify-update", out, *trust]) == 0
    assert "Warning" not in capsys.readouterr().err


def test_the_public_key_has_the_name_of_the_private_one_with_pub_after_it(tmp_path: Path):
    assert icis_deploy.keygen(tmp_path / "fleet.v2.key").public_path == tmp_path / "fleet.v2.key.pub"


def test_nothing_is_written_through_a_link_that_leads_nowhere_yet(
    keys: icis_deploy.KeyPair, update: str, tmp_path: Path
):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for call in (lambda: icis_deploy.keygen(link), lambda: icis_deploy.sign(update, key=keys.private_path, out=link)):
        with pytest.raises(UsageError, match="already exists"):
            call()
    assert not (tmp_path / "elsewhere").exists()


def test_an_expiry_without_a_zone_is_refused(keys: icis_deploy.KeyPair, update: str):
    before = Path(update).read_bytes()
    with pytest.raises(IncompatibleError, match="has no time zone"):
        icis_deploy.sign(update, key=keys.private_path, expires=EXPIRES.replace(tzinfo=None))
    assert Path(update).read_bytes() == before
