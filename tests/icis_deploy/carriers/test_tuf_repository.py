"""A TUF repository made with python-tuf's own API, on a real server, and what a device refuses of it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="tuf is not installed")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from icis_deploy.carriers.tuf_repository import fetch_target
from icis_deploy.errors import (
    CorruptFileError,
    ExpiredError,
    LoadError,
    SignatureError,
    StorageError,
    TransferError,
    VersionRollbackError,
)
from icis_deploy.runtime.inbox import process_inbox
from icis_deploy.updates.signing import keygen
from testing.bundles import files_in, make_update, signed_bytes, trust, write_bundle
from testing.local_server import serving_folder

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "fleet" / "icis_carrier.py"
TARGET = "camera/new.icis"
ROLES = ("root", "timestamp", "snapshot", "targets")
DAY = timedelta(days=1)


class Repository:
    """A repository with a key for each role, which publishes one target after the other."""

    def __init__(self, folder):
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        for each in (self.metadata, self.targets / "camera"):
            each.mkdir(parents=True)
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        self.version, self.root_version = 0, 0
        self.publish_root()

    def publish_root(self, *, also_signed_by=()):
        self.root_version += 1
        root = Root(version=self.root_version, expires=datetime.now(timezone.utc) + DAY, consistent_snapshot=True)
        for role in ROLES:
            root.add_key(self.signers[role].public_key, role)
        metadata = Metadata(root)
        for signer in (self.signers["root"], *also_signed_by):
            metadata.sign(signer, append=True)
        metadata.to_file(str(self.metadata / f"{self.root_version}.root.json"))

    def rotate_root_key(self):
        former = self.signers["root"]
        self.signers["root"] = CryptoSigner.generate_ed25519()
        self.publish_root(also_signed_by=[former])

    def publish(self, data, *, life=DAY, signers=None):
        """Publish a target, its versions one higher than before."""
        signers = self.signers | (signers or {})
        self.version += 1
        expires = datetime.now(timezone.utc) + life
        targets = Targets(version=self.version, expires=expires)
        info = TargetFile.from_data(TARGET, data)
        targets.targets[TARGET] = info
        (self.targets / "camera" / f"{info.hashes['sha256']}.new.icis").write_bytes(data)
        whole = Metadata(targets)
        whole.sign(signers["targets"])
        bytes_of_targets = whole.to_bytes()
        (self.metadata / f"{self.version}.targets.json").write_bytes(bytes_of_targets)
        meta = {"targets.json": MetaFile.from_data(self.version, bytes_of_targets, ["sha256"])}
        snapshot = Metadata(Snapshot(version=self.version, expires=expires, meta=meta))
        snapshot.sign(signers["snapshot"])
        data_of_snapshot = snapshot.to_bytes()
        (self.metadata / f"{self.version}.snapshot.json").write_bytes(data_of_snapshot)
        timestamp = Timestamp(version=self.version, expires=expires)
        timestamp.snapshot_meta = MetaFile.from_data(self.version, data_of_snapshot, ["sha256"])
        signed = Metadata(timestamp)
        signed.sign(signers["timestamp"])
        signed.to_file(str(self.metadata / "timestamp.json"))


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture
def server(tmp_path, repository):
    with serving_folder(tmp_path / "repository") as url:
        yield url


@pytest.fixture
def fetch(tmp_path, repository, server):
    """Return what a device calls; it trusts the first root alone."""
    root = tmp_path / "root.json"
    shutil.copy(repository.metadata / "1.root.json", root)
    (tmp_path / "inbox").mkdir()

    def call(target=TARGET, **changed):
        places = {"state": tmp_path / "state", "out": tmp_path / "inbox" / "new.icis"} | changed
        return fetch_target(
            metadata_url=f"{server}/metadata/", targets_url=f"{server}/targets/", target=target, root=root, **places
        )

    return call


def in_inbox(tmp_path):
    return {path.name: path.read_bytes() for path in (tmp_path / "inbox").iterdir()}


def test_todays_update_is_brought_once_and_applied(fetch, repository, tmp_path):
    key = keygen(tmp_path / "KEY")
    bundle = write_bundle(tmp_path / "bundle")
    trust(bundle, key.public_path)
    repository.publish(signed_bytes(make_update("okapi", version=1), key.private_path))

    assert fetch() == tmp_path / "inbox" / "new.icis"
    (taken,) = process_inbox(tmp_path / "inbox", bundle).files
    assert (taken.name, taken.reason) == ("new.icis", None)
    assert fetch() is None
    repository.publish(signed_bytes(make_update("bongo", version=2), key.private_path))
    assert fetch() == tmp_path / "inbox" / "new.icis"
    (taken,) = process_inbox(tmp_path / "inbox", bundle).files
    assert (taken.applied.entry.version, taken.reason) == (2, None)


def test_a_rotated_root_key_is_followed(fetch, repository):
    repository.publish(b"first")
    assert fetch() is not None
    repository.rotate_root_key()
    repository.rotate_root_key()
    repository.signers["targets"] = CryptoSigner.generate_ed25519()
    repository.publish_root()
    repository.publish(b"second")

    assert fetch().read_bytes() == b"second"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_tampered_metadata_is_refused(role, fetch, repository, tmp_path):
    repository.publish(b"first")
    fetch()
    repository.publish(b"second")
    name = "timestamp.json" if role == "timestamp" else f"2.{role}.json"
    place = repository.metadata / name
    changed = json.loads(place.read_bytes())
    changed["signed"]["expires"] = "2100-01-01T00:00:00Z"
    place.write_bytes(json.dumps(changed).encode())

    with pytest.raises((SignatureError, CorruptFileError)) as caught:
        fetch()

    assert caught.value.exit_code == 6
    assert in_inbox(tmp_path) == {"new.icis": b"first"}


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_a_strangers_signature_is_refused_for_every_role(role, fetch, repository, tmp_path):
    repository.publish(b"first")
    fetch()
    stranger = {role: CryptoSigner.generate_ed25519()}
    if role == "root":
        repository.signers |= stranger
        repository.publish_root()
    else:
        repository.publish(b"second", signers=stranger)

    with pytest.raises(SignatureError, match="not signed by who may sign it"):
        fetch()
    assert in_inbox(tmp_path) == {"new.icis": b"first"}


def test_a_frozen_repository_is_refused(fetch, repository, tmp_path):
    repository.publish(b"first", life=timedelta(seconds=-1))

    with pytest.raises(ExpiredError, match="has expired") as caught:
        fetch()

    assert caught.value.exit_code == 6
    assert in_inbox(tmp_path) == {}


def test_a_repository_that_was_rolled_back_is_refused(fetch, repository, tmp_path):
    repository.publish(b"first")
    shutil.copytree(repository.metadata, tmp_path / "old")
    repository.publish(b"second")
    assert fetch().read_bytes() == b"second"
    shutil.rmtree(repository.metadata)
    shutil.copytree(tmp_path / "old", repository.metadata)

    with pytest.raises(VersionRollbackError, match="went back"):
        fetch()
    assert in_inbox(tmp_path) == {"new.icis": b"second"}


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_metadata_of_two_states_is_refused(role, fetch, repository, tmp_path):
    """An attacker without keys puts an old signed file in the place of the new one."""
    repository.publish(b"first")
    fetch()
    repository.publish(b"second")
    shutil.copy(repository.metadata / f"1.{role}.json", repository.metadata / f"2.{role}.json")

    with pytest.raises((CorruptFileError, VersionRollbackError)):
        fetch()
    assert in_inbox(tmp_path) == {"new.icis": b"first"}


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"!", lambda data: data[:-1], lambda data: data + b"!"])
def test_another_target_than_was_signed_is_refused(change, fetch, repository, tmp_path):
    repository.publish(b"first")
    (place,) = (repository.targets / "camera").iterdir()
    place.write_bytes(change(place.read_bytes()))

    with pytest.raises(CorruptFileError):
        fetch()
    assert in_inbox(tmp_path) == {}


def test_endless_metadata_is_not_read_to_its_end(fetch, repository):
    repository.publish(b"first")
    (repository.metadata / "timestamp.json").write_bytes(b" " * (1 << 22))

    with pytest.raises(CorruptFileError):
        fetch()


def test_what_lies_on_the_devices_disk_is_compared_again(fetch, repository, tmp_path):
    repository.publish(b"first")
    fetch()
    (kept,) = (path for path in (tmp_path / "state").iterdir() if path.suffix == ".icis")
    kept.write_bytes(b"other")
    (tmp_path / "inbox" / "new.icis").unlink()

    assert fetch() is None  # fetched again, and the same that was brought before
    assert kept.read_bytes() == b"first"


def test_a_repository_that_is_not_there_or_lacks_a_file_is_named(fetch, repository, tmp_path):
    with pytest.raises(TransferError, match="cannot be read") as caught:
        fetch()  # nothing published yet
    assert caught.value.exit_code == 4
    repository.publish(b"first")
    with pytest.raises(LoadError, match="lists no target 'camera/other'"):
        fetch("camera/other")
    shutil.rmtree(repository.targets)
    with pytest.raises(TransferError, match="cannot be read"):
        fetch()
    assert in_inbox(tmp_path) == {}


def test_a_server_that_takes_no_connection_is_said_to(repository, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"

    with pytest.raises(TransferError, match=r"cannot be read: .*refused"):
        fetch_target(
            metadata_url=url,
            targets_url=url,
            target=TARGET,
            root=repository.metadata / "1.root.json",
            state=tmp_path / "state",
            out=tmp_path / "new.icis",
        )


def test_a_disk_that_refuses_is_no_fault_of_the_repository(fetch, repository, tmp_path):
    repository.publish(b"first")
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError):
        fetch(state=tmp_path / "file")
    with pytest.raises(StorageError):
        fetch(out=tmp_path / "no inbox" / "new.icis")
    assert fetch() is not None  # what could not be brought is brought the next time


def test_root_metadata_that_is_none_is_refused(fetch, repository, tmp_path):
    repository.publish(b"first")
    (tmp_path / "root.json").write_bytes(b"{}")

    with pytest.raises(CorruptFileError, match=r"root\.json is no root metadata of TUF") as caught:
        fetch()
    assert caught.value.exit_code == 6
    (tmp_path / "root.json").unlink()
    with pytest.raises(LoadError, match="Cannot read the root metadata"):
        fetch()


def test_the_script_brings_the_update_and_says_what_is_wrong_in_one_line(fetch, repository, server, tmp_path):
    def run(*options):
        command = [sys.executable, SCRIPT, "tuf", server, TARGET, tmp_path / "inbox", "--root", tmp_path / "root.json"]
        done = subprocess.run([*command, "--state", tmp_path / "state"], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip(), done.stderr

    repository.publish(b"first")
    assert run() == (0, str(tmp_path / "inbox" / "new.icis"), "")
    assert run() == (0, "nothing new", "")
    repository.publish(b"second", signers={"targets": CryptoSigner.generate_ed25519()})
    before = files_in(tmp_path / "inbox")
    code, _, error = run()
    assert (code, error.count("\n")) == (6, 1)
    assert files_in(tmp_path / "inbox") == before
