"""The life of a class update on the command line: sign, verify, diff, apply, roll back."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.cli.main import run
from icis_deploy.runtime import operations
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import load_update, save_update
from testing.bundles import make_update, trust, write_bundle, write_signed
from testing.tiny_project import NUM_SEEN, NUM_UNSEEN, TinyProject
from tests.icis_deploy.cli.test_commands import export_arguments, names_in, run_json


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "KEY"
    assert run(["keygen", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def unsigned(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("update") / "new.icis"
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    assert run(["inject", str(tiny_project.model), *files, "--out", str(out)]) == 0
    return out


@pytest.fixture
def signed(unsigned: Path, key: Path, tmp_path: Path) -> Path:
    out = tmp_path / "signed.icis"
    assert run(["sign", str(unsigned), "--key", str(key), "--version", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture
def bundle(tiny_project: TinyProject, unsigned: Path, key: Path, tmp_path: Path) -> Path:
    """An updatable bundle without an update, that trusts the key, and has no guard: the images here are noise."""
    out = tmp_path / "bundle"
    arguments = export_arguments(tiny_project, unsigned, out, head="updatable")
    index = arguments.index("--update")
    del arguments[index : index + 2]
    assert run([*arguments, "--trust", f"{key}.pub", "--max-changed-answers", "none"]) == 0
    return out


@pytest.fixture
def guarded(tiny_project: TinyProject, unsigned: Path, key: Path, tmp_path: Path) -> Path:
    """The same bundle with a guard that lets 2.5 % of the answers change."""
    out = tmp_path / "guarded"
    arguments = export_arguments(tiny_project, unsigned, out, head="updatable")
    index = arguments.index("--update")
    del arguments[index : index + 2]
    assert run([*arguments, "--trust", f"{key}.pub", "--max-changed-answers", "2.5"]) == 0
    return out


def hijack(unsigned: Path, path: Path, key: Path) -> Path:
    """Sign an update whose only class answers everything."""
    row = np.zeros((1, load_update(unsigned).rows.shape[1]), np.float32)
    row[0, -1] = 1000.0
    return write_signed(path, replace(load_update(unsigned), added=("hijack",), rows=row, version=1), key)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def class_names(bundle: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    code, result = run_json(["classes", str(bundle)], capsys)
    assert code == 0
    return [each["name"] for each in result["classes"]]


def test_keygen_keeps_the_private_key_to_its_owner(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert names_in(key.parent) == {"KEY", "KEY.pub"}


def test_keygen_does_not_replace_a_key(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = key.read_bytes()
    assert run(["keygen", "--out", str(key)]) == 2
    assert key.read_bytes() == before
    assert str(key) in capsys.readouterr().err


def test_a_signed_update_is_verified_and_an_unsigned_one_is_not(
    signed: Path, unsigned: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    code, result = run_json(["verify-update", str(signed), "--trust", f"{key}.pub"], capsys)
    assert (code, result["version"]) == (0, 3)
    assert run(["verify-update", str(unsigned), "--trust", f"{key}.pub"]) == 6
    assert "not signed" in capsys.readouterr().err


def test_apply_adds_the_classes_and_rollback_takes_them_away(
    bundle: Path, signed: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(class_names(bundle, capsys)) == NUM_SEEN
    assert run(["apply", str(signed), "--to", str(bundle)]) == 0
    assert class_names(bundle, capsys)[NUM_SEEN:] == list(tiny_project.unseen_names)
    assert run(["rollback", str(bundle)]) == 0
    assert len(class_names(bundle, capsys)) == NUM_SEEN
    code, result = run_json(["history", str(bundle)], capsys)
    assert code == 0
    assert [(entry["action"], entry["num_added"]) for entry in result["history"]][:1] == [("apply", NUM_UNSEEN)]
    assert len(result["history"]) == 2


def test_an_applied_update_answers_like_the_same_update_exported(
    bundle: Path, signed: Path, tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["apply", str(signed), "--to", str(bundle)]) == 0
    exported = tmp_path / "exported"
    assert run(export_arguments(tiny_project, signed, exported, head="updatable")) == 0
    capsys.readouterr()
    images = ["--images", str(tiny_project.images), "--unseen", str(tiny_project.unseen)]
    results = [run_json(["evaluate", str(each), *images], capsys)[1]["details"] for each in (bundle, exported)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [("unsigned", 6, "not signed"), ("flipped", 6, "sign"), ("text", 6, "not a class update")],
)
def test_a_refused_update_leaves_every_byte_of_the_bundle(
    change: str, code: int, words: str, bundle: Path, signed: Path, unsigned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update = unsigned if change == "unsigned" else signed
    if change == "flipped":
        envelope = json.loads(signed.read_bytes())
        envelope["payload"] = envelope["payload"].replace("A", "B", 1)
        signed.write_text(json.dumps(envelope))
    if change == "text":
        signed.write_text("hello")
    before = bytes_in(bundle)
    capsys.readouterr()
    assert run(["apply", str(update), "--to", str(bundle)]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert bytes_in(bundle) == before


def test_an_update_that_is_in_effect_is_no_error_and_leaves_every_byte(
    bundle: Path, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["apply", str(signed), "--to", str(bundle)]) == 0
    before = bytes_in(bundle)
    capsys.readouterr()

    assert run(["apply", str(signed), "--to", str(bundle)]) == 0

    captured = capsys.readouterr()
    assert "already" in captured.out
    assert captured.err == ""
    assert bytes_in(bundle) == before


def test_an_unsigned_update_is_taken_when_allowed_and_the_history_says_so(
    bundle: Path, unsigned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["apply", str(unsigned), "--to", str(bundle), "--allow-unsigned"]) == 0
    assert "UNSIGNED" in capsys.readouterr().out
    assert run(["history", str(bundle)]) == 0
    assert f"UNSIGNED: {NUM_UNSEEN} classes in effect" in capsys.readouterr().out
    assert run(["classes", str(bundle)]) == 0
    assert capsys.readouterr().out.count("UNSIGNED") == NUM_UNSEEN
    _, result = run_json(["history", str(bundle)], capsys)
    assert result["doubtful"] == [{"signed_by": None, "num_classes": NUM_UNSEEN}]


def test_rotated_keys_are_trusted_and_the_old_one_no_more(
    bundle: Path, unsigned: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_key, rotation = tmp_path / "NEW", tmp_path / "keys.icis"
    assert run(["keygen", "--out", str(new_key)]) == 0
    arguments = [
        "rotate-keys",
        "--trust",
        f"{new_key}.pub",
        "--key",
        str(key),
        "--version",
        "1",
        "--out",
        str(rotation),
    ]
    assert run(arguments) == 0
    assert run(["verify-update", str(rotation), "--trust", f"{key}.pub"]) == 0
    assert run(["apply", str(rotation), "--to", str(bundle)]) == 0
    assert "trusted keys replaced" in capsys.readouterr().out

    files = {name: tmp_path / f"{name}.icis" for name in ("old", "new")}
    assert run(["sign", str(unsigned), "--key", str(key), "--out", str(files["old"])]) == 0
    assert run(["sign", str(unsigned), "--key", str(new_key), "--out", str(files["new"])]) == 0
    assert run(["apply", str(files["old"]), "--to", str(bundle)]) == 6
    assert run(["apply", str(files["new"]), "--to", str(bundle)]) == 0
    assert run(["apply", str(rotation), "--to", str(bundle)]) == 0  # it is in effect already
    assert run(arguments) == 2  # nothing is overwritten


def test_a_rollback_to_classes_of_a_revoked_key_must_be_allowed(
    bundle: Path, unsigned: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, rotation, recall = tmp_path / "NEW", tmp_path / "keys.icis", tmp_path / "recall.icis"
    assert run(["keygen", "--out", str(new)]) == 0
    assert run(["sign", str(unsigned), "--key", str(key), "--out", str(tmp_path / "1.icis"), "--version", "1"]) == 0
    update = load_update(unsigned)
    save_update(replace(update, added=(), removed=update.added, rows=update.rows[:0], arbiter=None), recall)
    assert run(["sign", str(recall), "--key", str(new), "--version", "2"]) == 0
    trusted = ["--trust", f"{new}.pub", "--key", str(key), "--version", "1", "--out", str(rotation)]
    assert run(["rotate-keys", *trusted]) == 0
    for file in (tmp_path / "1.icis", rotation, recall):
        assert run(["apply", str(file), "--to", str(bundle)]) == 0
    before = bytes_in(bundle)
    capsys.readouterr()

    assert run(["rollback", str(bundle)]) == 6
    assert "give --allow-revoked, and the history says so" in capsys.readouterr().err
    assert bytes_in(bundle) == before
    assert run(["rollback", str(bundle), "--allow-revoked"]) == 0
    assert "ALLOWED" in capsys.readouterr().out
    assert run(["history", str(bundle)]) == 0
    assert f"NOT TRUSTED any more: {NUM_UNSEEN} classes in effect" in capsys.readouterr().out


def test_compact_bakes_the_slots_and_keeps_answers_version_and_history(
    bundle: Path,
    signed: Path,
    unsigned: Path,
    key: Path,
    tiny_project: TinyProject,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["apply", str(signed), "--to", str(bundle)]) == 0
    old = Device.open(bundle)
    batch = np.random.default_rng(0).normal(size=(3, *old.bundle.model_input.shape)).astype(np.float32)
    before, out = bytes_in(bundle), tmp_path / "compacted"
    arguments = ["compact", str(bundle), "--out", str(out), "--capacity", "5"]
    capsys.readouterr()

    code, result = run_json(arguments, capsys)

    assert code == 0
    assert (result["version"], result["num_baked"], result["num_free_slots"]) == (3, NUM_UNSEEN, 5)
    assert bytes_in(bundle) == before
    new = Device.open(out)
    assert new.classes() == old.classes()
    assert new.history() == old.history()
    signed_by = {each.name: (each.origin, each.signed_by) for each in operations.classes(bundle).classes}
    assert {each.name: (each.origin, each.signed_by) for each in operations.classes(out).classes} == signed_by
    assert [origin for origin, _ in signed_by.values()].count("signed") == NUM_UNSEEN
    np.testing.assert_allclose(new.logits(batch).values, old.logits(batch).values, rtol=1e-4, atol=1e-4)
    assert run(["verify", str(out), "--against", str(tiny_project.model)]) == 0
    assert run(["apply", str(signed), "--to", str(out)]) == 0  # it is in effect here too
    assert run(["rollback", str(out)]) == 2  # there is no state before
    assert run(arguments) == 2

    again = tmp_path / "again"
    assert run(["disable", str(out), old.classes()[-1]]) == 0
    assert run(["compact", str(out), "--out", str(again)]) == 0
    assert Device.open(again).classes() == old.classes()[:-1]
    renamed = replace(
        load_update(unsigned),
        added=tuple(f"new {name}" for name in load_update(unsigned).added[:2]),
        rows=load_update(unsigned).rows[:2],
    )
    save_update(renamed, tmp_path / "more.icis")
    more = str(tmp_path / "more.icis")
    assert run(["sign", more, "--key", str(key), "--version", "4"]) == 0
    assert run(["apply", more, "--to", str(again)]) == 0
    assert run(["verify", str(again), "--against", str(tiny_project.model)]) == 0


def test_what_has_no_slots_cannot_be_compacted(
    tiny_project: TinyProject, unsigned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = tmp_path / "fused"
    assert run(export_arguments(tiny_project, unsigned, fused, head="fused")) == 0
    out = tmp_path / "out"
    assert run(["compact", str(fused), "--out", str(out)]) == 3
    assert "has a fused head: there are no slots to bake" in capsys.readouterr().err
    assert not out.exists()


def test_a_disabled_class_is_listed_so_and_can_come_back(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["disable", str(bundle), "class03"]) == 0
    capsys.readouterr()
    _, result = run_json(["classes", str(bundle)], capsys)
    assert [each["name"] for each in result["classes"] if not each["is_enabled"]] == ["class03"]
    assert run(["enable", str(bundle), "class03"]) == 0
    assert run(["disable", str(bundle), "no such class"]) == 3


def test_diff_shows_what_an_update_would_do_to_a_bundle(
    bundle: Path, signed: Path, tiny_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    code, result = run_json(["diff", str(bundle), str(signed)], capsys)
    assert code == 0
    assert tuple(result["added"]) == tiny_project.unseen_names
    pairs = [frozenset((each["name"], each["nearest"])) for each in result["nearest"]]
    assert len(set(pairs)) == len(pairs)
    assert frozenset.union(*pairs) >= set(tiny_project.unseen_names)


def test_an_update_that_takes_too_many_answers_is_refused_unless_it_is_allowed(
    guarded: Path, unsigned: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update = str(hijack(unsigned, tmp_path / "hijack.icis", key))
    before = bytes_in(guarded)
    capsys.readouterr()

    assert run(["diff", str(guarded), update]) == 0
    shown = capsys.readouterr().out
    assert "answers on known classes change (100.0 %; the bundle lets 2.5 % change)" in shown
    assert "`icis-deploy apply` REFUSES this update without --allow-changed-answers." in shown
    changed = run_json(["diff", str(guarded), update], capsys)[1]["changed_answers"]
    assert (changed["share"], changed["limit"], changed["is_refused"]) == (1.0, 0.025, True)
    assert changed["takers"] == [{"name": "hijack", "count": changed["num_reference"]}]

    assert run(["apply", update, "--to", str(guarded)]) == 1
    error = capsys.readouterr().err
    assert "They would go to 'hijack'" in error
    assert "give --allow-changed-answers, and the history says so" in error
    assert bytes_in(guarded) == before

    assert run(["apply", update, "--to", str(guarded), "--allow-changed-answers"]) == 0
    assert "ALLOWED past the guard: 100.0 % of answers on known classes changed" in capsys.readouterr().out
    result = run_json(["history", str(guarded)], capsys)[1]
    assert (result["max_changed_answers"], result["history"][0]["changed_answers"]) == (0.025, 1.0)


def test_history_says_that_a_bundle_has_no_guard(
    bundle: Path, guarded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for folder, is_said in ((bundle, True), (guarded, False)):
        assert run(["history", str(folder)]) == 0
        assert ("has no reference images" in capsys.readouterr().out) == is_said


def test_a_compacted_bundle_keeps_its_guard(
    guarded: Path, unsigned: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compacted"
    assert run(["compact", str(guarded), "--out", str(out)]) == 0
    name = "reference.safetensors"
    assert (out / name).read_bytes() == (guarded / name).read_bytes()
    assert run(["apply", str(hijack(unsigned, tmp_path / "hijack.icis", key)), "--to", str(out)]) == 1


@pytest.mark.parametrize("value", ["101", "-1", "many"])
def test_what_is_no_percentage_is_refused(
    value: str, tiny_project: TinyProject, unsigned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = export_arguments(tiny_project, unsigned, tmp_path / "out", head="updatable")
    assert run([*arguments, "--max-changed-answers", value]) == 2
    assert "--max-changed-answers" in capsys.readouterr().err


EVIL = "okapi\x1b[2J\nversion 9, 1 classes\x9b0m\u202etac"


@pytest.mark.parametrize("command", ["diff", "classes", "history"])
def test_no_class_name_can_rewrite_a_terminal_or_forge_a_line(
    command: str, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.with_name("KEY.pub"))
    update = write_signed(tmp_path / "evil.icis", make_update(EVIL, "bongo"), key)
    if command != "diff":
        assert run(["apply", str(update), "--to", str(folder)]) == 0
        assert run(["disable", str(folder), EVIL]) == 0
    capsys.readouterr()
    assert run([command, str(folder), *([str(update)] if command == "diff" else [])]) == 0

    lines = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert any("okapi\\x1b[2J\\nversion 9, 1 classes\\x9b0m\\u202etac" in line for line in lines)
    assert not any(line.startswith("version 9") for line in lines)


def test_json_holds_escapes_for_what_a_terminal_would_obey_and_the_same_text(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.with_name("KEY.pub"))
    update = write_signed(tmp_path / "evil.icis", make_update(EVIL, "Bärtierchen \U000e0041"), key)
    assert run(["apply", str(update), "--to", str(folder)]) == 0
    capsys.readouterr()
    assert run(["classes", str(folder), "--format", "json"]) == 0

    text = capsys.readouterr().out.removesuffix("\n")
    assert text.isprintable()
    assert "Bärtierchen" in text
    assert [each["name"] for each in json.loads(text)["classes"]][3:] == [EVIL, "Bärtierchen \U000e0041"]


def test_no_file_name_can_forge_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new\x1b[2J\x9b.icis"
    path.write_bytes(b"{}")

    assert run(["diff", str(path), str(path)]) == 6
    error = capsys.readouterr().err
    assert "new\\x1b[2J\\x9b.icis: The file is not" in error
    assert error.removesuffix("\n").isprintable()
