"""Artifacts of Mender, RAUC and SWUpdate, built by their own tools as docs/fleet.md says, read back and installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icis_deploy.runtime.inbox import process_inbox
from icis_deploy.runtime.operations import classes
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, signed_bytes, trust, write_bundle

FLEET = Path(__file__).resolve().parents[2] / "scripts" / "fleet"
COMMAND = Path(sys.executable).with_name("icis-deploy")


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def bundle(tmp_path):
    key = keygen(tmp_path / "KEY")
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.public_path)
    # RAUC's verity format asks for more than 4 KiB, which is little for an update and much for one of four features.
    update = make_update("okapi", provenance={"note": os.urandom(6000).hex()})
    (tmp_path / "new.icis").write_bytes(signed_bytes(update, key.private_path))
    return folder


@pytest.fixture
def certificate(tmp_path):
    """Return the files of a private key and its certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=t",
    )
    return key, certificate


def run(*command, code=0, folder=None, **settings):
    """Run a tool; return what it printed, both streams."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        timeout=300,
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def changed_in(path, data):
    """Change a byte of what a file holds of some data, uncompressed, or of its middle."""
    whole = bytearray(path.read_bytes())
    place = whole.find(data[1000:1100])
    whole[place + 50 if place >= 0 else len(whole) // 2] ^= 1
    path.write_bytes(whole)


@needs("mender-artifact", "openssl")
def test_a_signed_mender_artifact_holds_the_update_and_the_module_installs_it(bundle, tmp_path):
    artifact, key, public = tmp_path / "classes-8.mender", tmp_path / "mender.key", tmp_path / "mender.pub"
    run("openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", key)
    run("openssl", "ec", "-in", key, "-pubout", "-out", public)
    run(
        *("mender-artifact", "write", "module-image", "--type", "icis-class-update", "--device-type", "camera"),
        *("--artifact-name", "classes-8", "--file", tmp_path / "new.icis", "--output-path", artifact, "--key", key),
    )

    assert "validated successfully" in run("mender-artifact", "validate", artifact, "--key", public)
    read = run("mender-artifact", "read", artifact)
    assert "icis-class-update" in read
    (tmp_path / "work" / "files").mkdir(parents=True)
    run("mender-artifact", "dump", "--files", tmp_path / "work" / "files", artifact)
    for state in ("ArtifactInstall", "ArtifactCommit", "Cleanup"):
        settings = {"ICIS_BUNDLE": bundle, "ICIS_DEPLOY": COMMAND, "ICIS_CONFIG": "/nowhere"}
        run("sh", FLEET / "icis-class-update", state, tmp_path / "work", **settings)
    assert classes(bundle).version == 1

    changed_in(artifact, b"")
    run("mender-artifact", "validate", artifact, "--key", public, code=1)


@needs("rauc", "mksquashfs", "openssl")
def test_a_rauc_bundle_holds_the_update_and_its_handler_installs_it(bundle, certificate, tmp_path):
    key, cert = certificate
    source, artifact = tmp_path / "source", tmp_path / "classes-8.raucb"
    source.mkdir()
    shutil.copy(tmp_path / "new.icis", source)
    shutil.copy(FLEET / "rauc-class-update", source)
    (source / "manifest.raucm").write_text(
        "[update]\ncompatible=camera\nversion=8\n[bundle]\nformat=verity\n[handler]\nfilename=rauc-class-update\n"
    )
    run("rauc", "--cert", cert, "--key", key, "bundle", source, artifact)

    run("rauc", "--keyring", cert, "extract", artifact, tmp_path / "read")
    settings = {"RAUC_BUNDLE_MOUNT_POINT": tmp_path / "read", "ICIS_BUNDLE": bundle, "ICIS_DEPLOY": COMMAND}
    for _ in range(2):  # RAUC may install it again
        run(tmp_path / "read" / "rauc-class-update", **settings)
    assert classes(bundle).version == 1

    (tmp_path / "read" / "new.icis").write_bytes(b"no update")
    assert "not a class update" in run(tmp_path / "read" / "rauc-class-update", code=6, **settings)
    (tmp_path / "read" / "new.icis").unlink()
    assert "holds no .icis file" in run(tmp_path / "read" / "rauc-class-update", code=1, **settings)


@needs("rauc", "mksquashfs", "openssl")
def test_a_rauc_bundle_by_another_certificate_is_refused(certificate, tmp_path):
    key, cert = certificate
    source, artifact = tmp_path / "source", tmp_path / "classes-8.raucb"
    source.mkdir()
    (source / "new.icis").write_bytes(os.urandom(9000))
    (source / "manifest.raucm").write_text("[update]\ncompatible=camera\nversion=8\n[bundle]\nformat=verity\n")
    run("rauc", "--cert", cert, "--key", key, "bundle", source, artifact)
    other = tmp_path / "other.pem"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        tmp_path / "o",
        "-out",
        other,
        "-subj",
        "/CN=o",
    )

    run("rauc", "--keyring", other, "extract", artifact, tmp_path / "read", code=1)
    assert not (tmp_path / "read").exists()


@needs("swupdate", "cpio", "openssl")
@pytest.mark.parametrize("is_changed", [False, True])
def test_swupdate_puts_the_update_into_the_inbox_whole_or_not_at_all(is_changed, bundle, certificate, tmp_path):
    key, cert = certificate
    (tmp_path / "inbox").mkdir()
    data = (tmp_path / "new.icis").read_bytes()
    template = (FLEET / "sw-description").read_text()
    for there, here in (("SHA256", hashlib.sha256(data).hexdigest()), ("/var/lib/icis-deploy", tmp_path)):
        assert there in template
        template = template.replace(there, str(here))
    (tmp_path / "sw-description").write_text(template)
    run(
        *("openssl", "cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-signer", cert),
        *("-inkey", key, "-outform", "DER", "-nosmimecap", "-binary"),
        folder=tmp_path,
    )
    run(
        "sh", "-c", "printf '%s\\n' sw-description sw-description.sig new.icis | cpio -o -H crc >8.swu", folder=tmp_path
    )
    if is_changed:
        changed_in(tmp_path / "8.swu", data)

    # Its sockets lie in a folder of this test, so that it meets no service of the machine. On a busy machine it may end
    # with 1 after an installation, when it does not hear its own last message; what it says is right.
    install = ("swupdate", "-k", cert, "-H", "camera:1.0", "-i", tmp_path / "8.swu")
    done = subprocess.run(
        install, capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert ("SWUPDATE successful" in done.stdout + done.stderr) == (not is_changed), done.stdout + done.stderr
    assert done.returncode != 0 or not is_changed

    if is_changed:
        assert not list((tmp_path / "inbox").glob("*.icis"))
    else:
        (taken,) = process_inbox(tmp_path / "inbox", bundle).files
        assert (taken.name, taken.reason) == ("8.icis", None)
