"""A server on a port: one worker in this process, or several that uvicorn starts, watches and stops.

SIGTERM and Ctrl-C stop it: no connection is taken any more, requests in flight are answered, then it ends. A worker
that dies is replaced.
"""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.errors import MissingDependencyError, RuntimeFailureError, UsageError
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.serving.logs import log, set_up_logs
from icis_deploy.serving.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from uvicorn import Config

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 20
STOP_SECONDS = 30
"""How long requests in flight may take once the server is told to stop."""
HEALTH_SECONDS = 60
"""After which a worker that says nothing is replaced; a busy machine may keep one from its core for a while."""
MAX_CONNECTIONS = 1024
"""Of one worker; further ones get 503."""


def serve(settings: ServeSettings, *, host: str, port: int, workers: int) -> None:
    """Serve a bundle until a signal stops the process.

    Args:
        settings: What is served.
        host: Address to listen on.
        port: Port; 0 takes a free one, which the log names.
        workers: Processes.

    Raises:
        MissingDependencyError: If the extra `serve` is not installed.
        UsageError: If the host is empty.
        RuntimeFailureError: If the port is taken, or a worker does not start.
        ICISDeployError: As `Device.open`.
    """
    _check_libraries()
    set_up_logs()
    with listen(host, port) as listener, tempfile.TemporaryDirectory(prefix="icis-deploy-serve-") as shared:
        address = listener.getsockname()
        log("listening", host=address[0], port=address[1], workers=workers, model=settings.name)
        if workers == 1:
            _serve_here(settings, listener)
        else:
            # Opened once here, so that what is wrong with the bundle is said once, and not by workers without end.
            Device.open(
                settings.bundle, runtime=Runtime(name=settings.runtime, num_threads=settings.num_threads)
            ).close()
            _serve_in_workers(replace(settings, shared=Path(shared)), listener, workers)


def _check_libraries() -> None:
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"The server needs {error.name}, which is not installed.",
            found=str(error),
            hint="Install it: pip install 'icis-deploy[serve]'.",
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        RuntimeFailureError: If the port is taken, or the address is not this machine's.
    """
    if not host.strip():
        raise UsageError(
            "The host to listen on is empty.",
            found=host,
            expected="an address or a name of this machine",
            hint="Give `host` as '127.0.0.1' for this machine alone, or '0.0.0.0' for all of its addresses.",
        )
    try:
        # With its protocol: asyncio sends small answers at once (TCP_NODELAY) where a socket says that it is TCP.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RuntimeFailureError(
            f"Cannot listen on {host}, port {port}: {reason}.",
            found=reason,
            expected="an address of this machine, and a port that nobody listens on",
            where=f"{host}:{port}",
            hint="Stop whoever has the port, or choose another `port`; 0 takes a free one.",
        ) from error
    listener.set_inheritable(True)
    return listener


def server_config(make_application: Callable[[], Starlette], *, workers: int) -> Config:
    """Return how the HTTP server is set up, for an application that a worker makes when it starts."""
    from uvicorn import Config

    return Config(
        make_application,
        factory=True,
        workers=workers,
        http="h11",  # the only one that bounds the length of headers
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_worker_healthcheck=HEALTH_SECONDS,
    )


def _serve_here(settings: ServeSettings, listener: socket.socket) -> None:
    from uvicorn import Server

    from icis_deploy.serving.app import make_app

    config = server_config(partial(make_app, settings), workers=1)
    config.load()  # here, where an error of ours reaches the caller
    server = Server(config)
    # uvicorn raises the signal that stopped it once more when it is done; an orderly stop is no failure.
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if not server.started:
        raise RuntimeFailureError(
            "The server did not start; its log says why.",
            found="not started",
            expected="started",
            where=settings.bundle,
        )


def _serve_in_workers(settings: ServeSettings, listener: socket.socket, workers: int) -> None:
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    from icis_deploy.serving.app import make_app

    supervisor = Multiprocess(server_config(partial(make_app, settings), workers=workers), sockets=[listener])
    supervisor.run()
    if any(each.exitcode == STARTUP_FAILURE for each in supervisor.processes):
        raise RuntimeFailureError(
            "A worker did not start; its log says why.",
            found="not started",
            expected="started",
            where=settings.bundle,
        )
