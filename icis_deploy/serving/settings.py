"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from icis_deploy.common.files import read_plain
from icis_deploy.errors import UsageError

MIN_TOKEN_BYTES, MAX_TOKEN_BYTES = 16, 4096
MAX_IMAGE_PIXELS = 1 << 24
"""Of one image: a photo of 16 megapixels takes 50 MB once it is decoded, and each thread decodes one."""

READ_SECONDS = 30.0
"""How long a client may take to send a body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a server is told; it is pickled to its workers.

    Raises:
        UsageError: On construction, if something contradicts itself.
    """

    bundle: Path

    name: str
    """Of the model, in the paths of the protocol."""

    runtime: str = "onnxruntime"

    num_threads: int = 1
    """Threads inside one operator."""

    parallel: int = 2
    """Requests that a worker answers at once; further ones wait."""

    max_waiting: int = 64
    """Requests of a worker that may wait; further ones get 503 at once."""

    answer_seconds: float = 30.0
    """How long a request may wait for its answer."""

    max_body_bytes: int = 1 << 26

    max_batch: int = 64
    """Inputs of one request."""

    top: int = 5
    """Classes in an answer, where the request does not say how many."""

    inbox: Path | None = None
    """A folder into which carriers put class updates."""

    token: bytes | None = None
    """Whoever sends it may hand class updates to the server; `None` for nobody."""

    log_requests: bool = False
    """Whether each request is logged, and not only those that fail."""

    shared: Path | None = None
    """A folder that all workers of this server share and nobody else; `None` where there is one worker."""

    def __post_init__(self) -> None:
        if not self.name or not all(char.isalnum() or char in "-_." for char in self.name):
            raise UsageError(
                f"The model's name {self.name!r} cannot stand in a path.",
                found=self.name,
                expected="letters, digits, '-', '_' and '.'",
                hint="Give it another `name`.",
            )


def load_token(path: Path) -> bytes:
    """Read the token of a server from a file, without the white space around it.

    Raises:
        UsageError: If it cannot be read, or is too short to be secret.
    """
    token = read_plain(path, max_bytes=MAX_TOKEN_BYTES, what="token", error_type=UsageError).strip()
    if len(token) < MIN_TOKEN_BYTES:
        raise UsageError(
            f"The token in {path} has {len(token)} bytes; at least {MIN_TOKEN_BYTES} are needed.",
            found=len(token),
            expected=f"at least {MIN_TOKEN_BYTES} bytes",
            where=path,
            hint="Make one: head -c 32 /dev/urandom | base64.",
        )
    return token
