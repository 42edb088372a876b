"""A bundle that trusts a key, for every test of the server."""

import pytest

from icis_deploy.updates.signing import keygen
from testing.bundles import trust, write_bundle


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "KEY")


@pytest.fixture
def bundle(tmp_path, key):
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.public_path)
    return folder
