"""The TUF client of docs/fleet.md, as it stands there, against a repository of signed metadata on a real server."""

from __future__ import annotations

import re
import threading
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="tuf is not installed")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater  # noqa: F401 - what the snippet imports

from icis_deploy.runtime.inbox import process_inbox
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, signed_bytes, trust, write_bundle

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "fleet.md"
TARGET = "classes/camera/new.icis"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "repository").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "repository"))) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()
        thread.join()


def publish(folder, data):
    """Write a repository with one target; return the bytes of its root."""
    signer, expires = CryptoSigner.generate_ed25519(), datetime.now(timezone.utc) + timedelta(days=1)
    root = Root(expires=expires, consistent_snapshot=False)
    for role in ("root", "timestamp", "snapshot", "targets"):
        root.add_key(signer.public_key, role)
    targets = Targets(expires=expires)
    targets.targets[TARGET] = TargetFile.from_data(TARGET, data)
    parts = {"targets": targets, "snapshot": Snapshot(expires=expires, meta={"targets.json": MetaFile(1)})}
    parts |= {"timestamp": Timestamp(expires=expires, snapshot_meta=MetaFile(1)), "root": root}
    (folder / "metadata").mkdir()
    (folder / "targets" / TARGET).parent.mkdir(parents=True)
    (folder / "targets" / TARGET).write_bytes(data)
    for name, part in parts.items():
        metadata = Metadata(part)
        metadata.sign(signer)
        metadata.to_file(str(folder / "metadata" / f"{'1.root' if name == 'root' else name}.json"))
    return (folder / "metadata" / "1.root.json").read_bytes()


def snippet(tmp_path, server):
    """Return the code of the document, on folders and a server of this test."""
    (code,) = re.findall(r"```python\n(.*?tuf\.ngclient.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    for there, here in (
        ("/var/lib/icis-deploy", tmp_path),
        ("/etc/icis-deploy", tmp_path),
        ("https://updates.example", server),
    ):
        assert there in code
        code = code.replace(there, str(here))
    return code


@pytest.mark.parametrize("is_changed_on_the_way", [False, True])
def test_the_client_of_the_document_brings_an_update_into_the_inbox(is_changed_on_the_way, tmp_path, server):
    key = keygen(tmp_path / "KEY")
    bundle = write_bundle(tmp_path / "bundle")
    trust(bundle, key.public_path)
    data = signed_bytes(make_update("okapi"), key.private_path)
    (tmp_path / "root.json").write_bytes(publish(tmp_path / "repository", data))
    (tmp_path / "inbox").mkdir()
    code = compile(snippet(tmp_path, server), str(DOCUMENT), "exec")
    if is_changed_on_the_way:
        (tmp_path / "repository" / "targets" / TARGET).write_bytes(data[:-1] + b" ")
        with pytest.raises(Exception, match=r"hash|length"):
            exec(code, {})
        assert list((tmp_path / "inbox").iterdir()) == []
        return

    exec(code, {})

    (taken,) = process_inbox(tmp_path / "inbox", bundle).files
    assert (taken.name, taken.reason) == ("8.icis", None)
