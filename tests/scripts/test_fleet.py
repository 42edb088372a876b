"""The fleet scripts as their clients call them, with the real command on a real bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icis_deploy.runtime.operations import classes, history
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from testing.bundles import make_update, signed_bytes, trust, write_bundle

FLEET = Path(__file__).resolve().parents[2] / "scripts" / "fleet"
COMMAND = Path(sys.executable).with_name("icis-deploy")


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "KEY")


@pytest.fixture
def bundle(tmp_path, key):
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.public_path)
    return folder


def shell(script, *arguments, bundle, **settings):
    """Run a fleet script in a plain POSIX shell; return its result."""
    environment = os.environ | {"ICIS_BUNDLE": str(bundle), "ICIS_DEPLOY": str(COMMAND), "ICIS_CONFIG": "/nowhere"}
    return subprocess.run(
        ["/bin/sh", str(FLEET / script), *(str(argument) for argument in arguments)],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def artifact(folder, files):
    """Return a work folder as Mender lays it out."""
    (folder / "files").mkdir(parents=True)
    for name, data in files.items():
        (folder / "files" / name).write_bytes(data)
    return folder


def test_mender_learns_that_a_class_update_can_be_rolled_back_and_needs_no_reboot(bundle, tmp_path):
    def answer(state):
        return shell("icis-class-update", state, tmp_path, bundle=bundle).stdout

    assert answer("SupportsRollback") == "Yes\n"
    assert answer("NeedsArtifactReboot") == "No\n"
    assert answer("Download") == answer("AStateOfALaterVersion") == ""


def test_mender_installs_and_commits_an_artifact_of_several_files(bundle, key, tmp_path):
    files = {
        "1.icis": signed_bytes(make_update("okapi", version=1), key.private_path),
        "2.icis": signed_bytes(make_update("bongo", version=2), key.private_path),
    }
    work = artifact(tmp_path / "work", files)

    for state in ("Download", "ArtifactInstall", "ArtifactCommit", "Cleanup"):
        result = shell("icis-class-update", state, work, bundle=bundle)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr

    assert [listed.name for listed in classes(bundle).classes][-2:] == ["okapi", "bongo"]


def test_mender_keeps_the_version_of_before_on_the_disk_itself_before_anything_is_applied(bundle, key, tmp_path):
    """A rename that is not synced may be lost with the power: no rollback would find back from the update."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    before = tmp_path / "work" / "tmp" / "version-before"
    for name, text in {
        "sync": f"[ ! -e {before} ] || echo synced >>{log}",
        "icis-deploy": f'[ "$1" != apply ] || echo applied >>{log}\nexec {COMMAND} "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    work = artifact(tmp_path / "work", {"1.icis": signed_bytes(make_update("okapi"), key.private_path)})

    path = f"{tools}:{os.environ['PATH']}"
    result = shell("icis-class-update", "ArtifactInstall", work, bundle=bundle, PATH=path, ICIS_DEPLOY="icis-deploy")

    assert result.returncode == 0, result.stderr
    assert log.read_text().split()[:2] == ["synced", "applied"]


def test_mender_rolls_back_what_was_applied_and_nothing_else_however_often_it_asks(bundle, key, tmp_path):
    before = signed_bytes(make_update("okapi", version=1), key.private_path)
    (tmp_path / "before.icis").write_bytes(before)
    subprocess.run([COMMAND, "apply", tmp_path / "before.icis", "--to", bundle], check=True, capture_output=True)
    files = {"1.icis": signed_bytes(make_update("bongo", version=2), key.private_path), "2.icis": b"not an update"}
    work = artifact(tmp_path / "work", files)

    install = shell("icis-class-update", "ArtifactInstall", work, bundle=bundle)
    assert install.returncode == 6
    assert "not a class update" in install.stderr
    assert classes(bundle).version == 2
    for _ in range(2):  # a power cut makes Mender ask again
        assert shell("icis-class-update", "ArtifactRollback", work, bundle=bundle).returncode == 0
        assert classes(bundle).version == 1
    assert [entry.action for entry in history(bundle)] == ["apply", "apply", "rollback"]


def test_mender_rolls_back_an_artifact_that_rotated_the_keys_and_replaced_a_class(bundle, key, tmp_path):
    new = keygen(tmp_path / "NEW")
    (tmp_path / "before.icis").write_bytes(signed_bytes(make_update("okapi", version=1), key.private_path))
    subprocess.run([COMMAND, "apply", tmp_path / "before.icis", "--to", bundle], check=True, capture_output=True)
    files = {
        "1-keys.icis": signed_bytes(trusted_keys_from_files([new.public_path]), key.private_path),
        "2.icis": signed_bytes(make_update(replaced=("okapi",), version=2), new.private_path),
    }
    work = artifact(tmp_path / "work", files)

    assert shell("icis-class-update", "ArtifactInstall", work, bundle=bundle).returncode == 0
    assert shell("icis-class-update", "ArtifactRollback", work, bundle=bundle).returncode == 0
    assert classes(bundle).version == 1
    assert history(bundle)[-1].allowed_revoked
    assert classes(bundle).classes[-1].is_revoked


@pytest.mark.parametrize("num_updates", [7, 8])
def test_mender_installs_no_more_than_the_device_can_take_back(num_updates, bundle, key, tmp_path):
    files = {
        f"{version}.icis": signed_bytes(
            make_update("okapi", version=version)
            if version == 1
            else make_update(version=version, replaced=("okapi",)),
            key.private_path,
        )
        for version in range(1, num_updates + 1)
    }
    work = artifact(tmp_path / "work", files)

    install = shell("icis-class-update", "ArtifactInstall", work, bundle=bundle)

    assert install.returncode == (0 if num_updates == 7 else 1), install.stderr
    assert ("holds 8 files; a device can take back 7. Nothing applied." in install.stderr) == (num_updates == 8)
    assert classes(bundle).version == (7 if num_updates == 7 else 0)
    assert shell("icis-class-update", "ArtifactRollback", work, bundle=bundle).returncode == 0
    assert classes(bundle).version == 0


def test_mender_rolls_nothing_back_where_nothing_was_installed(bundle, tmp_path):
    work = artifact(tmp_path / "work", {})

    assert shell("icis-class-update", "ArtifactInstall", work, bundle=bundle).returncode == 1
    shutil.rmtree(work / "tmp")
    assert shell("icis-class-update", "ArtifactRollback", work, bundle=bundle).returncode == 0
    assert history(bundle) == ()


def test_mender_rolls_back_from_a_state_that_cannot_be_read(bundle, key, tmp_path):
    work = artifact(tmp_path / "work", {"1.icis": signed_bytes(make_update("okapi", version=1), key.private_path)})
    assert shell("icis-class-update", "ArtifactInstall", work, bundle=bundle).returncode == 0
    (slots,) = (bundle / "state").glob("slots-*")
    slots.write_bytes(b"damage")

    result = shell("icis-class-update", "ArtifactRollback", work, bundle=bundle)

    assert result.returncode == 0, result.stderr
    assert classes(bundle).version == 0


def test_mender_is_not_told_that_it_rolled_back_where_nobody_knows(bundle, key, tmp_path):
    work = artifact(tmp_path / "work", {"1.icis": signed_bytes(make_update("okapi", version=1), key.private_path)})
    assert shell("icis-class-update", "ArtifactInstall", work, bundle=bundle).returncode == 0
    (bundle / "state" / "journal.json").write_bytes(b"damage")

    result = shell("icis-class-update", "ArtifactRollback", work, bundle=bundle)

    assert result.returncode != 0
    assert "cannot read the version" in result.stderr


def test_mender_does_not_commit_where_the_health_check_fails(bundle, tmp_path):
    assert shell("icis-class-update", "ArtifactCommit", tmp_path, bundle=bundle, ICIS_HEALTH="false").returncode == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path):
    for name in ("icis-apply.path", "icis-apply.service"):
        text = (FLEET / name).read_text()
        # Where the command will be installed is no business of this machine.
        (tmp_path / name).write_text(text.replace("/usr/local/bin/icis-deploy", "/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "icis-apply.path", tmp_path / "icis-apply.service"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "icis-apply" not in result.stderr
