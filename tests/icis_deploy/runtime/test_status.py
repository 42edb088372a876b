"""What a carrier reports of a device, read while others answer from it, and from bundles that are damaged."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone

import pytest

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.cli.main import run
from icis_deploy.errors import LoadError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.inbox import process_inbox
from icis_deploy.runtime.operations import apply, disable, rollback
from icis_deploy.runtime.status import MAX_REFUSALS, _refusals, status
from testing.bundles import files_in, make_update, signed_bytes, write_bundle, write_signed

NOW = datetime(2026, 11, 30, 9, tzinfo=timezone.utc)


def status_of(folder, **named):
    return status(folder, device="camera", release="1.0", clock=lambda: NOW, **named)


def test_a_fresh_bundle(bundle_folder):
    before = files_in(bundle_folder)
    bundle = load_manifest(bundle_folder)

    found = status_of(bundle_folder)

    assert (found.device, found.time, found.release) == ("camera", "2026-11-30T09:00:00Z", "1.0")
    assert (found.bundle_sha256, found.base_fingerprint) == (bundle.manifest_sha256, bundle.base_fingerprint)
    assert (found.version, found.highest_version, found.sequence, found.changed) == (0, 0, 0, None)
    assert (found.num_classes, found.capacity, found.num_free_slots) == (3, 4, 4)
    assert (found.trust_version, len(found.key_ids), found.root_key_ids) == (0, 1, ())
    assert (found.num_refused, found.refusals, found.problems) == (None, (), ())
    assert files_in(bundle_folder) == before


def test_a_bundle_that_changed(bundle_folder, keys, tmp_path):
    for version in (1, 2):
        update = make_update(f"new {version}", version=version)
        apply(write_signed(tmp_path / "u.icis", update, keys.private_path), bundle_folder)
    rollback(bundle_folder)
    disable(bundle_folder, "cat")

    found = status_of(bundle_folder)

    history = Device.open(bundle_folder).history()
    assert (found.version, found.highest_version, found.sequence) == (1, 2, 4)
    assert found.changed == history[-1].time.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (found.num_classes, found.num_free_slots, found.disabled) == (4, 3, ("cat",))
    assert history[0].signed_by in found.key_ids


def test_equal_classes_have_equal_heads_and_others_do_not(tmp_path, keys):
    heads = []
    for name, update in (("a", "okapi"), ("b", "okapi"), ("c", "quagga")):
        folder = write_bundle(tmp_path / name)
        Device.open(folder).apply(make_update(update, version=1), allow_unsigned=True)
        heads.append(status_of(folder).head_sha256)

    assert heads[0] == heads[1] != heads[2]


def test_a_fused_head_has_no_slots(tmp_path):
    found = status_of(write_bundle(tmp_path / "fused", capacity=0))

    assert (found.capacity, found.num_free_slots, found.head_sha256, found.problems) == (0, 0, None, ())


def test_what_the_inbox_refused_is_told_the_latest_first(bundle_folder, keys, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    assert status_of(bundle_folder, inbox=inbox).num_refused == 0
    for number in range(MAX_REFUSALS + 2):
        (inbox / f"{number}.icis").write_bytes(signed_bytes(make_update("cat", version=number + 1), keys.private_path))
    process_inbox(inbox, bundle_folder, sleep=lambda _seconds: None)

    found = status_of(bundle_folder, inbox=inbox)

    assert found.num_refused == MAX_REFUSALS + 2
    assert [each.file for each in found.refusals] == [f"{number}.icis" for number in (6, 5, 4, 3, 2)]
    assert all("cat" in each.reason for each in found.refusals)


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (2.0**62, "9999-12-31T23:59:59Z"),
        (2.0**38, "9999-12-31T23:59:59Z"),
        (-(2.0**38), "1970-01-01T00:00:00Z"),
        (1e9, "2001-09-09T01:46:40Z"),
    ],
)
def test_a_carrier_gives_its_files_any_time(seconds, time, tmp_path):
    (tmp_path / "8.icis.reason").write_text("Error: x")

    (found,) = _refusals(tmp_path, [(seconds, "8.icis.reason")])  # as a memory file system keeps it

    assert found.time == time


def test_an_inbox_that_is_not_there_is_named(bundle_folder, tmp_path):
    with pytest.raises(LoadError, match="There is no inbox"):
        status_of(bundle_folder, inbox=tmp_path / "nowhere")


def test_an_inbox_whose_refusals_are_no_folder_is_named(bundle_folder, tmp_path):
    (tmp_path / "refused").write_text("a carrier's file")
    with pytest.raises(
        LoadError, match=rf"^The inbox {tmp_path} cannot be read: Not a directory\. Check its"
    ) as raised:
        status_of(bundle_folder, inbox=tmp_path)
    assert raised.value.where == tmp_path


def damage_model(folder):
    (folder / "model.onnx").write_bytes(b"damaged")


def damage_journal(folder):
    (folder / "state" / "journal.json").write_bytes(b"damaged")


def damage_slots(folder):
    (slots,) = (folder / "state").glob("slots-*.safetensors")
    slots.write_bytes(b"damaged")


def damage_manifest(folder):
    (folder / "manifest.json").write_bytes(b"{")


def damage_key(folder):
    next((folder / "trust").iterdir()).write_bytes(b"no key")


@pytest.mark.parametrize(
    ("damage", "named", "left_out", "kept"),
    [
        (damage_model, "model.onnx", (), ("version", "sequence", "bundle_sha256")),
        (damage_journal, "journal.json", ("version", "num_classes"), ("bundle_sha256", "capacity")),
        (damage_slots, "slots-", ("num_classes", "head_sha256"), ("version", "bundle_sha256")),
        (damage_manifest, "manifest", ("version", "bundle_sha256"), ()),
        (damage_key, "trust", (), ("version", "num_classes")),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_told(bundle_folder, keys, tmp_path, damage, named, left_out, kept):
    apply(write_signed(tmp_path / "u.icis", make_update("okapi", version=1), keys.private_path), bundle_folder)
    damage(bundle_folder)

    found = status_of(bundle_folder)

    assert found.problems
    assert named in found.problems[0]
    assert all(getattr(found, name) is None for name in left_out)
    assert all(getattr(found, name) is not None for name in kept)


def test_the_command_prints_all_of_it_and_says_whether_the_bundle_is_whole(bundle_folder, capsys):
    code = run(["status", str(bundle_folder), "--device", "camera", "--format", "json"])
    whole = json.loads(capsys.readouterr().out)
    damage_model(bundle_folder)
    damaged_code = run(["status", str(bundle_folder), "--device", "camera", "--format", "json"])
    damaged = json.loads(capsys.readouterr().out)
    text_code = run(["status", str(bundle_folder)])
    text = capsys.readouterr().out

    assert (code, whole["status"], whole["device"], whole["problems"]) == (0, "ok", "camera", [])
    assert (damaged_code, damaged["status"], damaged["version"]) == (4, "error", 0)
    assert "model.onnx" in damaged["problems"][0]
    assert text_code == 4
    assert "model.onnx" in text
    found = len(damaged["problems"])
    assert re.search(rf"health +{found} problem{'s' * (found > 1)}\n", text)


def test_the_text_gives_reasons_in_the_words_of_the_command_line(bundle_folder, tmp_path, capsys):
    inbox = tmp_path / "inbox"
    inbox.mkdir(mode=0o700)
    (inbox / "1.icis").write_text("{}")
    os.utime(inbox / "1.icis", (0, 0))  # nobody is writing it any more
    process_inbox(inbox, bundle_folder, sleep=lambda _seconds: None)

    assert run(["status", str(bundle_folder), "--inbox", str(inbox)]) == 0
    assert "that `icis-deploy inject` and `icis-deploy sign` made" in capsys.readouterr().out
