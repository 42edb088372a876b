"""The committed schemas are those of the code, and what commands really print and write is valid by them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from icis_deploy.cli.main import run
from icis_deploy.updates.signing import keygen
from scripts.maintenance.make_output_schemas import REPOSITORY, SCHEMAS
from testing.bundles import images, make_update, trust, write_bundle, write_signed
from testing.references import add_few_shot, add_reference

OUTPUT = json.loads((REPOSITORY / "icis_deploy" / "cli" / "output.schema.json").read_text("utf-8"))
MANIFEST = json.loads((REPOSITORY / "icis_deploy" / "bundle" / "manifest.schema.json").read_text("utf-8"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_committed_schema_is_the_one_of_the_code(name: str) -> None:
    schema = json.loads((REPOSITORY / name).read_text("utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json.loads(json.dumps(SCHEMAS[name]())), "run scripts/maintenance/make_output_schemas.py"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = add_few_shot(add_reference(write_bundle(tmp_path / "bundle"), max_changed_answers=1.0))
    pair = keygen(tmp_path / "key")
    trust(folder, pair.public_path)
    write_signed(tmp_path / "new.icis", make_update("okapi"), pair.private_path)
    np.save(tmp_path / "inputs.npy", images(2))
    return folder


def test_what_commands_print_is_valid(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for command, *rest in (
        ("apply", str(tmp_path / "new.icis"), "--to", str(bundle)),
        ("teach", str(bundle), "quagga", "--images", str(tmp_path / "inputs.npy")),
        ("predict", str(bundle), str(tmp_path / "inputs.npy")),
        ("disable", str(bundle), "cat"),
        ("classes", str(bundle)),
        ("rollback", str(bundle)),
        ("history", str(bundle)),
        ("status", str(bundle)),
    ):
        assert run([command, *rest, "--format", "json"]) == 0, capsys.readouterr().err
        printed[command] = json.loads(capsys.readouterr().out)
        jsonschema.validate(printed[command], OUTPUT)

    in_full = {case["if"]["properties"]["command"]["const"]: case["then"]["properties"] for case in OUTPUT["allOf"]}
    assert set(in_full) <= set(printed)
    for command, properties in in_full.items():
        assert set(printed[command]) == {"schema_version", "command", "status", *properties}, command


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_an_error_is_valid(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (tmp_path / "nothing").mkdir()
    for arguments in (["classes", str(tmp_path / "nothing")], ["disable", str(folder), "horse"]):
        assert run([*arguments, "--format", "json", *options]) == 3
        found = json.loads(capsys.readouterr().out)
        jsonschema.validate(found, OUTPUT)
        assert "error" in found


def test_a_wrong_output_is_not_valid() -> None:
    wrong = {"schema_version": 1, "command": "rollback", "status": "ok", "bundle": "bundle", "entry": {"sequence": 1}}

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, OUTPUT)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**wrong, "command": "roll-back", "entry": {}}, OUTPUT)


def test_manifests_are_valid(bundle: Path) -> None:
    newest = max((REPOSITORY / "tests" / "golden").glob("v*/manifest.json"))
    for path in (bundle / "manifest.json", newest):
        jsonschema.validate(json.loads(path.read_text("utf-8")), MANIFEST)
