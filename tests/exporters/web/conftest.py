"""Fixtures of the tests of JavaScript devices."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from icis_deploy.updates.signing import KeyPair, keygen
from tests.exporters.web.javascript import Node, node_modules


@pytest.fixture(scope="session")
def library() -> Path:
    """A folder with onnxruntime-web."""
    return node_modules()


@pytest.fixture(scope="session")
def node(library: Path) -> Iterator[Node]:
    """One process for all tests."""
    process = Node(library)
    yield process
    process.close()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """A publisher's keys."""
    return keygen(tmp_path_factory.mktemp("keys") / "publisher.key")
