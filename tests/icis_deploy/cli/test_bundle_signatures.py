"""Who signed a bundle, said by every command that makes or looks at one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.api.signing import signers_of
from icis_deploy.cli.main import run
from icis_deploy.errors import CorruptFileError, ICISDeployWarning, SignatureError
from icis_deploy.runtime.device import Device
from icis_deploy.updates.signing import keygen
from testing.tiny_project import TinyProject
from tests.icis_deploy.cli.test_commands import run_json


@pytest.fixture
def keys(tmp_path: Path):
    return keygen(tmp_path / "key")


def export_arguments(project: TinyProject, out: Path) -> list[str]:
    model = [str(project.model), "--classes", str(project.classes)]
    head = ["--head", "updatable", "--capacity", "8", "--max-changed-answers", "none"]
    return ["export", *model, *head, "--out", str(out)]


@pytest.fixture
def signed(tiny_project: TinyProject, tmp_path: Path, keys) -> Path:
    arguments = export_arguments(tiny_project, tmp_path / "bundle")
    assert run([*arguments, "--trust", str(keys.public_path), "--key", str(keys.private_path)]) == 0
    return tmp_path / "bundle"


def test_an_export_can_be_signed_and_says_so(signed: Path, keys, tiny_project, tmp_path, capsys) -> None:
    assert icis_deploy.verify_bundle(signed, trust=[keys.public_path]) == keys.key_id
    assert Device.open(signed, trust=[keys.public_path]).bundle.written_at is not None

    code, result = run_json([*export_arguments(tiny_project, tmp_path / "b"), "--key", str(keys.private_path)], capsys)
    assert (code, result["signed_by"]) == (0, [keys.key_id])
    code, result = run_json(export_arguments(tiny_project, tmp_path / "plain"), capsys)
    assert (code, result["signed_by"]) == (0, [])
    with pytest.raises(SignatureError, match="is not signed"):
        Device.open(tmp_path / "plain", trust=[keys.public_path])


def test_an_export_whose_key_cannot_sign_leaves_nothing(tiny_project, tmp_path, capsys, keys) -> None:
    locked = keygen(tmp_path / "locked", passphrase="secret")
    code = run([*export_arguments(tiny_project, tmp_path / "bundle"), "--key", str(locked.private_path)])

    assert code == 2
    assert "no terminal to ask" in capsys.readouterr().err
    command = ["--sign-command", "false", "--public-key", str(keys.public_path)]
    assert run([*export_arguments(tiny_project, tmp_path / "bundle"), *command]) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"key", "key.pub", "locked", "locked.pub"}


def test_verify_says_who_signed_and_warns_where_nobody_did(signed: Path, keys, tiny_project, capsys, tmp_path) -> None:
    against = ["--against", str(tiny_project.model)]
    capsys.readouterr()
    assert run(["verify", str(signed), *against]) == 0
    printed = capsys.readouterr()
    assert f"signature: says it is by {keys.key_id[:16]}" in printed.out
    assert "not signed" not in printed.err

    code, result = run_json(["verify", str(signed), *against, "--trust", str(keys.public_path)], capsys)
    assert (code, result["signed_by"], result["is_signature_verified"]) == (0, [keys.key_id], True)
    stranger = keygen(tmp_path / "stranger")
    assert run(["verify", str(signed), *against, "--trust", str(stranger.public_path)]) == 6

    (signed / "bundle.dsse").unlink()
    capsys.readouterr()
    assert run(["verify", str(signed), *against]) == 0
    printed = capsys.readouterr()
    assert "signature: none" in printed.out
    assert f"Warning: {signed} is not signed" in printed.err


def test_inspect_shows_a_bundle_and_who_signed_it(signed: Path, keys, tiny_project, capsys) -> None:
    code, result = run_json(["inspect", str(signed)], capsys)
    assert (code, result["signed_by"], result["head"], result["capacity"]) == (0, [keys.key_id], "updatable", 8)
    assert run(["inspect", str(signed)]) == 0
    printed = capsys.readouterr()
    assert keys.key_id[:16] in printed.out
    assert printed.err == ""

    assert "1; no root keys, so any one of them may replace the others" in printed.out

    assert run(["inspect", str(signed), "--classes", str(tiny_project.classes)]) == 2
    (signed / "bundle.dsse").unlink()
    assert run(["inspect", str(signed)]) == 0
    assert "is not signed" in capsys.readouterr().err


def test_inspect_says_which_keys_may_replace_the_trusted_ones(signed: Path, keys, tmp_path, capsys) -> None:
    roots = [keygen(tmp_path / f"root-{index}") for index in range(2)]
    out, trust = tmp_path / "keys.icis", [keys.public_path]
    icis_deploy.rotate_keys(
        trust, key=keys.private_path, version=1, out=out, root=[root.public_path for root in roots], threshold=2
    )
    for root in roots:
        icis_deploy.sign(out, key=root.private_path)
    Device.open(signed).apply(out)

    capsys.readouterr()
    assert run(["inspect", str(signed)]) == 0
    assert "1; 2 of 2 root keys may replace them" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_bundle_that_was_changed_after_signing_is_refused(command, signed: Path, tiny_project, capsys) -> None:
    manifest = json.loads((signed / "manifest.json").read_bytes())
    (signed / "manifest.json").write_text(json.dumps(manifest | {"created_by": {}}))
    against = ["--against", str(tiny_project.model)] if command == "verify" else []

    assert run([command, str(signed), *against]) == 6
    assert "was changed after the bundle was signed" in capsys.readouterr().err


def test_a_signature_that_is_none_is_refused(signed: Path) -> None:
    (signed / "bundle.dsse").write_text("{}")

    with pytest.raises(CorruptFileError, match="is no DSSE envelope"):
        signers_of(signed)


def test_compact_signs_the_new_bundle_or_says_that_it_is_not(signed: Path, keys, tmp_path, capsys) -> None:
    with pytest.warns(ICISDeployWarning, match=r"is signed; .* is not: sign it"):
        icis_deploy.compact(signed, out=tmp_path / "plain")
    capsys.readouterr()
    assert run(["compact", str(signed), "--out", str(tmp_path / "noted")]) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith("sign it with `icis-deploy sign-bundle`, or give --key.\n")
    assert "`icis-deploy sign-bundle` signs it" in printed.out

    out = tmp_path / "compacted"
    assert run(["compact", str(signed), "--out", str(out), "--key", str(keys.private_path)]) == 0
    assert capsys.readouterr().err == ""
    assert icis_deploy.verify_bundle(out, trust=[keys.public_path]) == keys.key_id
