from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.bundle.slot_files import exported_slots
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.runtime.state.filesystem import FileSystem
from icis_deploy.runtime.state.head_state import make_head_state
from icis_deploy.runtime.state.store import Store
from icis_deploy.updates.signing import KeyPair, keygen
from icis_deploy.updates.trusted_keys import TrustedKeys
from testing.bundles import signed_bytes, trust, write_bundle


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    """The key pair that `bundle_folder` trusts."""
    return keygen(tmp_path / "release-key")


@pytest.fixture
def bundle_folder(tmp_path: Path, keys: KeyPair) -> Path:
    """A bundle with three seen classes and four empty slots."""
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, keys.public_path)
    return folder


@pytest.fixture
def new_folder(tmp_path: Path, keys: KeyPair) -> Path:
    """A bundle of the same head that was exported with version 2 and has more slots."""
    folder = write_bundle(tmp_path / "new", capacity=9, head_version=2)
    trust(folder, keys.public_path)
    return folder


@pytest.fixture
def signed(keys: KeyPair) -> Callable[[ClassUpdate | TrustedKeys], bytes]:
    """Sign with the trusted key."""
    return lambda content: signed_bytes(content, keys.private_path)


@pytest.fixture
def open_with(bundle_folder: Path) -> Callable[[FileSystem], Device]:
    """Open the bundle through another file system, with one session for all, as a restarted process would."""
    bundle = load_bundle(bundle_folder)
    session = load_session(bundle_folder / "model.onnx", num_threads=1)
    exported = make_head_state(bundle, session, table=exported_slots(bundle_folder, bundle), version=0)

    def open_device(files: FileSystem) -> Device:
        device = Device(
            folder=bundle_folder, bundle=bundle, session=session, state=exported, store=Store(bundle_folder, files)
        )
        device.refresh()
        return device

    return open_device
