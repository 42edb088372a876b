"""A real HTTP server on this machine that stands for a language model's, and does what a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SILENT = "silent"
"""A behaviour: no answer for a second, then a closed connection."""

DRIPPING = "dripping"
"""A behaviour: a body that comes a byte at a time, with pauses that no timeout notices, and never ends."""

Reply = tuple[int, str, Mapping[str, str]]
Behaviour = str | Reply | Callable[[str], str]
"""The answer itself, or status, body and headers, or what makes the answer of the question."""


@dataclass
class ChatServer:
    """What the server received and what it is to do, request by request."""

    default: Callable[[str], str]
    """What makes the answer of the question once `behaviours` are used up."""

    behaviours: list[Behaviour] = field(default_factory=list)
    finish_reason: str = "stop"
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers in lower case, and body of every request."""

    url: str = ""

    @property
    def questions(self) -> list[str]:
        """The questions in the order in which they came."""
        return [json.loads(body)["messages"][0]["content"] for _, _, body in self.requests]

    is_over: threading.Event = field(default_factory=threading.Event)
    """Set where the server ends, so that no body drips on and no silence lasts."""

    def reply(self) -> Reply | None:
        """Return what the last request gets, `None` if nothing."""
        behaviour = self.behaviours.pop(0) if self.behaviours else self.default
        if behaviour == DRIPPING:
            return 200, DRIPPING, {}
        if behaviour == SILENT:
            return None
        if isinstance(behaviour, tuple):
            return behaviour
        text = behaviour if isinstance(behaviour, str) else behaviour(self.questions[-1])
        choice = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "message": {"role": "assistant", "content": text},
        }
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "small", "choices": [choice]}
        return 200, json.dumps(completion), {}


@contextmanager
def running_chat_server(default: Callable[[str], str]) -> Iterator[ChatServer]:
    """Run a server while the block runs."""
    state = ChatServer(default=default)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            reply = state.reply()
            if reply is None:
                state.is_over.wait()  # whoever asks gives up first, however busy the machine is
                self.close_connection = True
                return
            status, text, headers = reply
            self.send_response(status)
            if text == DRIPPING:
                self.send_header("Content-Length", str(1 << 20))
                self.end_headers()
                while not state.is_over.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                self.close_connection = True
                return
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Keep stderr clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        state.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()
