"""A server as a process of its own, for tests: started, asked, and stopped as an operator would."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 90.0
"""For what takes a second on a machine that has nothing else to do."""


@dataclass(slots=True, kw_only=True)
class Served:
    """A server that is running, and what it has logged."""

    process: subprocess.Popen[str]
    logs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.logged("listening")[0]["port"])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return what was logged of an event so far."""
        return [line for line in list(self.logs) if line.get("event") == event]

    def await_log(self, event: str, number: int = 1) -> list[dict[str, Any]]:
        """Wait until an event was logged so many times; return them."""
        wait_for(lambda: len(self.logged(event)) >= number or self.process.poll() is not None)
        found = self.logged(event)
        assert len(found) >= number, f"{event!r} was not logged; the process: {self.process.poll()}, {self.logs[-5:]}"
        return found

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request; return status, headers with names in lower case, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send JSON, or nothing; return status and JSON."""
        status, _, data = self.ask(method, path, None if body is None else json.dumps(body).encode())
        return status, json.loads(data)

    def metrics(self) -> dict[str, float]:
        """Return the samples of `/metrics` by name and labels."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def served(bundle: Path, *options: object) -> Iterator[Served]:
    """Serve a bundle on a free port until the block ends."""
    command = [sys.executable, "-m", "icis_deploy.cli.main", "serve", str(bundle), "--port", "0", *map(str, options)]
    process = subprocess.Popen(  # noqa: S603 - this package
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    server = Served(process=process)
    assert process.stderr is not None
    reader = threading.Thread(target=_read, args=(process.stderr, server.logs), daemon=True)
    reader.start()
    try:
        server.await_log("ready")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        process.stderr.close()


def _read(lines: Iterator[str], logs: list[dict[str, Any]]) -> None:
    for line in lines:
        try:
            logs.append(json.loads(line))
        except ValueError:
            logs.append({"event": "no JSON", "line": line})


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        AssertionError: If it is not for long.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def infer_body(images: Any, *, name: str = "image", **fields: Any) -> dict[str, Any]:
    """Return a request of the Open Inference Protocol, with its tensor as JSON."""
    tensor = {"name": name, "datatype": "FP32", "shape": list(images.shape), "data": images.tolist()}
    return {"inputs": [tensor], **fields}
