"""Files fetched by digest from servers that lie, break off, redirect or are not there."""

from __future__ import annotations

import hashlib
import socket
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from icis_deploy.carriers import transfer
from icis_deploy.carriers.transfer import fetch_file, request
from icis_deploy.errors import CorruptFileError, StorageError, TransferError, UsageError
from testing.local_server import serving

DATA = b"rows of a class" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


def answering(status, body, *, announced=None, headers=()):
    """Return a handler that gives one answer, of which it may announce another length, and remembers requests."""

    class Handler(BaseHTTPRequestHandler):
        seen: list[dict[str, str]] = []  # noqa: RUF012 - of this class alone

        def do_GET(self):
            self.seen.append(dict(self.headers.items()))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if announced != "nothing":
                self.send_header("Content-Length", str(len(body) if announced is None else announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    return Handler


def fetch(url, path, **changed):
    fetch_file(url, path, **{"size": len(DATA), "sha256": DIGEST} | changed)


def test_a_file_is_there_whole(tmp_path):
    with serving(answering(200, DATA)) as url:
        fetch(url, tmp_path / "8.icis")

    assert (tmp_path / "8.icis").read_bytes() == DATA


@pytest.mark.parametrize(
    ("body", "announced", "error"),
    [
        (DATA[:-1] + b"!", None, CorruptFileError),
        (DATA + b"!", None, CorruptFileError),
        (DATA[:100], None, CorruptFileError),
        (DATA[:100], len(DATA), TransferError),  # half of it: the network is at fault, so that one may try again
        (DATA[:100], "nothing", CorruptFileError),  # nobody can tell
        (b"", len(DATA), TransferError),
    ],
)
def test_nothing_is_left_of_a_file_that_is_not_the_one_asked_for(body, announced, error, tmp_path):
    (tmp_path / "8.icis").write_bytes(b"what was there")
    with serving(answering(200, body, announced=announced)) as url, pytest.raises(error):
        fetch(url, tmp_path / "8.icis")

    assert [path.name for path in tmp_path.iterdir()] == ["8.icis"]
    assert (tmp_path / "8.icis").read_bytes() == b"what was there"


def test_an_endless_file_is_not_read_to_its_end(tmp_path):
    sent = []

    class Endless(answering(200, b"")):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                while len(sent) < 1000:
                    self.wfile.write(bytes(1 << 16))
                    sent.append(1)
            except OSError:
                pass

    with serving(Endless) as url, pytest.raises(CorruptFileError, match=f"more than {len(DATA)}"):
        fetch(url, tmp_path / "8.icis")

    assert list(tmp_path.iterdir()) == []
    assert len(sent) < 1000


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x?secret=1"

    with pytest.raises(TransferError, match=r"cannot be reached: .*refused.*Nothing was changed") as caught:
        request(url)

    assert caught.value.exit_code == 4
    assert "secret" not in str(caught.value)


def test_a_server_that_falls_silent_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TransferError, match="timed out"):
        request(f"http://127.0.0.1:{silent.getsockname()[1]}/")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example/x", "/etc/passwd", "http://", "http:///x", "http://[::1"]
)
def test_what_is_no_address_of_http_is_refused(url, tmp_path):
    with pytest.raises(UsageError, match="no address of HTTP"):
        fetch(url, tmp_path / "x")


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirection_away_from_http_is_not_followed(place, tmp_path):
    with serving(answering(302, b"", headers=[("Location", place)])) as url, pytest.raises(TransferError):
        fetch(url, tmp_path / "x")

    assert list(tmp_path.iterdir()) == []


def test_a_token_does_not_follow_a_redirection(tmp_path):
    store = answering(200, DATA)
    with serving(store) as other, serving(answering(307, b"", headers=[("Location", f"{other}/blob")])) as url:
        fetch(url, tmp_path / "x", headers={"Authorization": "Bearer secret", "X-Other": "1"})

    assert (tmp_path / "x").read_bytes() == DATA
    assert [("Authorization" in each, each["X-Other"]) for each in store.seen] == [(False, "1")]


def test_an_answer_that_is_read_whole_has_a_limit(monkeypatch):
    monkeypatch.setattr(transfer, "MAX_TEXT_BYTES", 100)
    with serving(answering(200, bytes(101))) as url, pytest.raises(TransferError, match="more than 100 bytes"):
        request(url)


def test_a_refusal_quotes_the_server_in_one_line(tmp_path):
    with serving(answering(404, b"no\n\x1b[31mfile")) as url, pytest.raises(TransferError) as caught:
        fetch(url, tmp_path / "x")

    assert str(caught.value).endswith(r"does not give the file: HTTP 404, no\n\x1b[31mfile. Check the name.")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_apart_from_a_broken_server(tmp_path, monkeypatch):
    import os

    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, *rest, **more: real("/dev/full", os.O_WRONLY)
        if str(path).endswith(".tmp") else real(path, flags, *rest, **more),
    )  # fmt: skip
    with serving(answering(200, DATA)) as url, pytest.raises(StorageError, match="No space left"):
        fetch(url, tmp_path / "x")

    assert list(tmp_path.iterdir()) == []
