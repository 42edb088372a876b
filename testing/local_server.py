"""A real HTTP server on this machine, for as long as a test runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler] | partial[Any]) -> Iterator[str]:
    """Answer requests by a handler; give the server's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class QuietFiles(SimpleHTTPRequestHandler):
    """Serves the files of a folder and writes no log."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving_folder(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; give the server's address."""
    with serving(partial(QuietFiles, directory=str(folder))) as url:
        yield url
