"""`icis-deploy serve`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.options import BUNDLE, EXISTING_FILE, EXISTING_FOLDER, THREADS, runtime_option
from icis_deploy.cli.parameter_types import Number

_AT_LEAST_ONE = click.IntRange(min=1)


@click.command(short_help="Answer over HTTP, with classes that change meanwhile.")
@click.argument("bundle", type=BUNDLE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of them.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--name", help="Of the model, in the paths of the protocol. Default: the bundle's folder.")
@runtime_option
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads inside one operator.")
@click.option("--parallel", type=THREADS, default=2, show_default=True, help="Requests that a worker answers at once.")
@click.option("--workers", type=THREADS, default=1, show_default=True, help="Processes.")
@click.option("--max-waiting", type=click.IntRange(min=0), default=64, show_default=True, help="Waiting requests.")
@click.option(
    "--timeout", type=Number(min=0.001, max=86_400), default=30.0, show_default=True, help="Seconds to answer."
)
@click.option("--max-body", type=_AT_LEAST_ONE, default=64, show_default=True, help="MiB of a request.")
@click.option("--max-batch", type=_AT_LEAST_ONE, default=64, show_default=True, help="Inputs of a request.")
@click.option("--top", type=_AT_LEAST_ONE, default=5, show_default=True, help="How many classes per input.")
@click.option(
    "--inbox",
    type=EXISTING_FOLDER,
    help="A folder in which to look for class updates, as `icis-deploy inbox` does.",
)
@click.option(
    "--admin-token",
    type=EXISTING_FILE,
    help="A file with a secret: who sends it may post class updates to /admin/apply. Without it there is no such path.",
)
@click.option("--log-requests", is_flag=True, help="Log every request, not only those that fail.")
def serve(
    bundle: Path,
    host: str,
    port: int,
    name: str | None,
    runtime: str,
    threads: int,
    parallel: int,
    workers: int,
    max_waiting: int,
    timeout: float,
    max_body: int,
    max_batch: int,
    top: int,
    inbox: Path | None,
    admin_token: Path | None,
    log_requests: bool,
) -> None:
    """Answer requests for BUNDLE over HTTP until SIGTERM or Ctrl-C, then end those in flight.

    The Open Inference Protocol v2 at /v2, images at /predict, metrics for Prometheus at /metrics; logs are JSON lines
    on stderr. Class updates that are applied to BUNDLE by whatever means are taken over between two requests.
    """
    from icis_deploy.serving.server import serve as serve_bundle
    from icis_deploy.serving.settings import ServeSettings, load_token

    settings = ServeSettings(
        bundle=bundle,
        name=bundle.resolve().name if name is None else name,
        runtime=runtime,
        num_threads=threads,
        parallel=parallel,
        max_waiting=max_waiting,
        answer_seconds=timeout,
        max_body_bytes=max_body << 20,
        max_batch=max_batch,
        top=top,
        inbox=inbox,
        token=None if admin_token is None else load_token(admin_token),
        log_requests=log_requests,
    )
    serve_bundle(settings, host=host, port=port, workers=workers)
