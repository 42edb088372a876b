"""The application: which path does what.

    GET  /v2/health/live, /v2/health/ready, /v2/models/NAME[/versions/VERSION]/ready
    GET  /v2, /v2/models/NAME[/versions/VERSION]
    POST /v2/models/NAME[/versions/VERSION]/infer     tensors in, tensors out
    POST /predict?top=5                               images in, the most probable classes out
    GET  /metrics                                     for Prometheus
    POST /admin/apply                                 a class update, from whoever has the token; else it is not there

Rules:

1. An answer is of one version of the head, and says which.
2. A worker answers so many requests at once, so many wait, and the next ones are told so (503). A request that has
   waited too long is left out before the model sees it (504); one that the model is at is not interrupted, as no
   runtime can be.
3. What a client gets for an error is in `problems.py`.
"""

# Why: docs/decisions/0116, docs/decisions/0117.

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from icis_deploy._version import __version__
from icis_deploy.errors import ICISDeployError, RuntimeFailureError
from icis_deploy.runtime.answers import Logits, top_predictions
from icis_deploy.runtime.changes.rules import max_update_bytes
from icis_deploy.runtime.device import Device, Prediction, prepare_named
from icis_deploy.runtime.inbox import is_of_the_device
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.serving.bodies import LastAnswer, check_pixels, images_in, read_body
from icis_deploy.serving.head import InboxWatch, ServedHead
from icis_deploy.serving.logs import log, set_up_logs
from icis_deploy.serving.metrics import Metrics
from icis_deploy.serving.problems import HttpProblem, body_of, body_of_fault, status_of
from icis_deploy.serving.protocol import (
    JSON_LENGTH_HEADER,
    InferRequest,
    model_metadata,
    parse_request,
    serialize_response,
)
from icis_deploy.serving.settings import MAX_IMAGE_PIXELS, READ_SECONDS, ServeSettings
from icis_deploy.serving.tracing import carried, request_span, span

Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]
PROBES = ("live", "ready", "metrics")
"""Endpoints that are asked all the time; they are counted, and logged where they fail alone."""


def make_app(settings: ServeSettings) -> Starlette:
    """Return the application of one worker; its bundle is opened, and logs are set up.

    Raises:
        ICISDeployError: As `Device.open`.
    """
    set_up_logs()
    runtime = Runtime(name=settings.runtime, num_threads=settings.num_threads)
    return Worker(settings, Device.open(settings.bundle, runtime=runtime)).app()


class Worker:
    """One process that answers."""

    def __init__(self, settings: ServeSettings, device: Device) -> None:
        self._settings = settings
        self._metrics = Metrics(device, shared=settings.shared)
        self._head = ServedHead(device, self._metrics, bundle=settings.bundle)
        self._threads = ThreadPoolExecutor(settings.parallel, thread_name_prefix="answer")
        self._admin = ThreadPoolExecutor(1, thread_name_prefix="admin")
        self._num_in_flight = 0
        self._is_stopping = False

    def app(self) -> Starlette:
        """Return the application."""
        model = "/v2/models/{name}"
        routes = [
            self._route("/v2/health/live", "live", self._live),
            self._route("/v2/health/ready", "ready", self._ready),
            self._route("/v2", "metadata", self._server_metadata),
            self._route("/metrics", "metrics", self._metrics_page),
            self._route("/predict", "predict", self._predict, method="POST"),
        ]
        for path in (model, f"{model}/versions/{{version}}"):
            routes += [
                self._route(path, "metadata", self._model_metadata),
                self._route(f"{path}/ready", "ready", self._model_ready),
                self._route(f"{path}/infer", "infer", self._infer, method="POST"),
            ]
        if self._settings.token is not None:
            routes.append(self._route("/admin/apply", "apply", self._apply, method="POST"))
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _no_such_path})

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncGenerator[None, None]:
        settings = self._settings
        watch = None
        if settings.inbox is not None:
            watch = InboxWatch(self._head, settings.inbox, shared=settings.shared)
            watch.start()
        log("ready", bundle=settings.bundle, model=settings.name, version=self._head.device.version)
        try:
            yield
        finally:
            self._is_stopping = True
            loop = asyncio.get_running_loop()
            if watch is not None:
                await loop.run_in_executor(None, watch.stop)
            await loop.run_in_executor(None, self._threads.shutdown)
            await loop.run_in_executor(None, self._admin.shutdown)
            log("stopped", version=self._head.device.version)

    def _route(self, path: str, endpoint: str, handler: Handler, *, method: str = "GET") -> Route:
        """Return a route whose requests are counted, timed and logged, and whose errors become answers."""

        async def answer(request: Request) -> Response:
            start, request_id = time.perf_counter(), os.urandom(8).hex()
            if endpoint in PROBES:
                response = await self._answered(handler, request, endpoint, request_id)
            else:
                with request_span(request, path) as traced:
                    response = await self._answered(handler, request, endpoint, request_id)
                    traced.set(http__response__status_code=response.status_code, icis_deploy__request_id=request_id)
                    if response.status_code >= 500:
                        traced.fail(str(response.status_code))
            response.headers["x-request-id"] = request_id
            seconds = time.perf_counter() - start
            self._metrics.requests.labels(endpoint=endpoint, code=str(response.status_code)).inc()
            self._metrics.seconds.labels(endpoint=endpoint).observe(seconds)
            if self._settings.log_requests and endpoint not in PROBES and response.status_code < 400:
                self._log_request(request, response.status_code, endpoint, request_id, ms=1e3 * seconds)
            return response

        return Route(path, answer, methods=[method])

    async def _answered(self, handler: Handler, request: Request, endpoint: str, request_id: str) -> Response:
        try:
            return await handler(request)
        except HttpProblem as problem:
            status, error, headers = problem.status, problem.error, problem.headers
        except ICISDeployError as raised:
            is_update = endpoint == "apply"
            is_own = is_update and is_of_the_device(raised, self._settings.bundle)
            status, error, headers = 500 if is_own else status_of(raised, is_update=is_update), raised, {}
        except Exception as bug:  # whatever it is, this request alone fails
            log("request failed", level=logging.ERROR, error=bug, endpoint=endpoint, request_id=request_id)
            return JSONResponse(body_of_fault(request_id), status_code=500)
        level = logging.ERROR if status == 500 else logging.INFO
        self._log_request(request, status, endpoint, request_id, level=level, reason=error)
        if status == 500:
            return JSONResponse(body_of_fault(request_id), status_code=500)
        kind = LastAnswer if headers.get("connection") == "close" else JSONResponse
        return kind(body_of(error, request_id=request_id), status_code=status, headers=headers)

    @staticmethod
    def _log_request(
        request: Request,
        status: int,
        endpoint: str,
        request_id: str,
        *,
        level: int = logging.INFO,
        ms: float | None = None,
        reason: ICISDeployError | None = None,
    ) -> None:
        log(
            "request",
            level=level,
            endpoint=endpoint,
            status=status,
            request_id=request_id,
            client=None if request.client is None else request.client.host,
            ms=ms,
            reason=reason,
        )

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        """Return what a call in one of the answering threads does.

        Raises:
            HttpProblem: 503 if too many wait, 504 if it has waited too long.
        """
        settings = self._settings
        limit = settings.parallel + settings.max_waiting
        if self._num_in_flight >= limit:
            raise HttpProblem(
                503,
                f"{self._num_in_flight} requests are being answered or wait.",
                found=self._num_in_flight,
                expected=f"at most {limit}",
                hint="Send it again in a moment.",
                headers={"retry-after": "1"},
            )
        self._num_in_flight += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, carried(call))
        # Counted until it has ended, also where the client is gone: the thread is busy as long.
        future.add_done_callback(self._one_less)
        try:
            return await asyncio.wait_for(future, settings.answer_seconds)
        except asyncio.TimeoutError as error:
            raise HttpProblem(
                504,
                f"There was no answer within {settings.answer_seconds:g} seconds.",
                expected=f"within {settings.answer_seconds:g} s",
                hint="Send it again in a moment.",
                headers={"retry-after": "1"},
            ) from error

    def _one_less(self, _future: asyncio.Future[Result]) -> None:
        self._num_in_flight -= 1

    async def _body(self, request: Request, max_bytes: int | None = None) -> bytes:
        limit = self._settings.max_body_bytes if max_bytes is None else max_bytes
        return await read_body(request, max_bytes=limit, seconds=READ_SECONDS)

    # --- health and metadata ------------------------------------------------------------------------------------------

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        fault = self._head.fault
        is_ready = fault is None and not self._is_stopping
        return JSONResponse({"ready": is_ready}, status_code=200 if is_ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        self._check_model(request, self._head.follow().version)
        return await self._ready(request)

    async def _server_metadata(self, _request: Request) -> Response:
        return JSONResponse({"name": "icis-deploy", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _model_metadata(self, request: Request) -> Response:
        device = self._head.follow()
        version = device.version
        self._check_model(request, version)
        platform = f"icis-deploy_{self._settings.runtime}"
        metadata = model_metadata(device.bundle, name=self._settings.name, version=version, platform=platform)
        return JSONResponse(metadata)

    async def _metrics_page(self, _request: Request) -> Response:
        self._head.follow()
        page, kind = await asyncio.get_running_loop().run_in_executor(None, self._metrics.page)
        return Response(page, headers={"content-type": kind})

    def _check_model(self, request: Request, version: int | None) -> None:
        """Refuse another model than the one that is served, and another version where one is given."""
        name = request.path_params["name"]
        if name != self._settings.name:
            raise HttpProblem(
                404, f"There is no model {name[:80]!r} here.", found=name[:80], expected=self._settings.name
            )
        if version is not None:
            _check_version(request.path_params.get("version"), version)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        self._check_model(request, None)
        body = await self._body(request)
        json_length, asked = request.headers.get(JSON_LENGTH_HEADER), request.path_params.get("version")

        def answer() -> tuple[bytes, int | None]:
            device = self._head.follow()
            wanted = parse_request(
                body,
                json_length,
                device.bundle,
                max_batch=self._settings.max_batch,
                default_top=self._settings.top,
            )
            with span("inference", icis_deploy__inputs=len(wanted.images)) as inference:
                predictions, logits = _classified(device, wanted)
                version = predictions[0].version if logits is None else logits.version
                inference.set(icis_deploy__head__version=version)
            _check_version(asked, version)
            self._metrics.count_answers(predictions)
            return serialize_response(wanted, predictions, logits, name=self._settings.name, version=version)

        data, num_json_bytes = await self._in_thread(answer)
        if num_json_bytes is None:
            return Response(data, media_type="application/json")
        headers = {JSON_LENGTH_HEADER: str(num_json_bytes)}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def _predict(self, request: Request) -> Response:
        settings = self._settings
        top = _top(request.query_params.get("top"), settings.top)
        named = await images_in(request, await self._body(request), max_images=settings.max_batch)

        def answer() -> list[Prediction]:
            device = self._head.follow()
            if device.bundle.preprocessing is None:
                raise HttpProblem(
                    400,
                    "This model does not state how images are prepared.",
                    found="images",
                    expected="arrays as the model takes them",
                    hint="Send prepared arrays by the Open Inference Protocol, or export the bundle with `preprocess`.",
                )
            for name, data in named:
                check_pixels(data, where=name, max_pixels=MAX_IMAGE_PIXELS)
            with span("inference", icis_deploy__inputs=len(named)) as inference:
                predictions = device.predict(prepare_named(device, named), top=top)
                inference.set(icis_deploy__head__version=predictions[0].version)
            self._metrics.count_answers(predictions)
            return predictions

        predictions = await self._in_thread(answer)
        return JSONResponse(
            {
                "model_name": settings.name,
                "model_version": str(predictions[0].version),
                "predictions": [
                    {"image": name, "classes": one.to_dict()["classes"]}
                    for (name, _), one in zip(named, predictions, strict=True)
                ],
            }
        )

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _apply(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").encode().removeprefix(b"Bearer ")
        assert self._settings.token is not None
        if not hmac.compare_digest(token, self._settings.token):
            raise HttpProblem(
                401,
                "The token is missing or wrong.",
                expected="Authorization: Bearer TOKEN",
                headers={"www-authenticate": "Bearer", "connection": "close"},
            )
        data = await self._body(request, max_update_bytes(self._head.device.bundle))
        applied = await asyncio.get_running_loop().run_in_executor(
            self._admin, carried(partial(self._head.apply, data))
        )
        entry = applied.entry
        return JSONResponse(
            {"changed": applied.changed, "version": entry.version, "sequence": entry.sequence, "action": entry.action}
        )


def _check_version(asked: str | None, version: int) -> None:
    if asked not in {None, str(version)}:
        raise HttpProblem(
            404,
            f"The head has version {version} now; version {asked[:20]!r} was asked for.",
            found=asked[:20],
            expected=str(version),
            hint="Leave the version out of the path: an answer says which one gave it.",
        )


def _classified(device: Device, wanted: InferRequest) -> tuple[list[Prediction], Logits | None]:
    """Return the answers on a batch, and the logits where they are asked for: all of one version.

    Raises:
        HttpProblem: 400 if the model gives no numbers for what the input holds.
        RuntimeFailureError: If the runtime fails.
    """
    try:
        if {"logits", "class_names"}.isdisjoint(wanted.outputs):
            return device.predict(wanted.images, top=wanted.top), None
        logits = device.logits(wanted.images)
        independent = device.bundle.score_kind == "sigmoid"
        names, version = logits.class_names, logits.version
        return (
            top_predictions(logits.values, wanted.top, class_names=names, version=version, independent=independent),
            logits,
        )
    except RuntimeFailureError as error:
        if not np.isfinite(wanted.images).all():
            raise HttpProblem(
                400, "The input holds numbers that are not finite.", found="NaN or infinity", expected="finite numbers"
            ) from error
        if np.isfinite(device.logits(wanted.images).values).all():  # raises once more where the runtime is at fault
            raise
        raise HttpProblem(
            400,
            "The input holds numbers that are too large: the model gives no finite scores for them.",
            found=f"numbers up to {np.abs(wanted.images).max():g}",
            expected="numbers as the model takes them",
            hint="Prepare the input as the model's images are.",
        ) from error


def _top(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text)):
        raise HttpProblem(400, f"top is {text[:20]!r}.", found=text[:20], expected="a whole number from 1 on")
    return int(text)


async def _no_such_path(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {
            "error": f"{error.detail}. This server has /v2, /predict and /metrics.",
            "type": "HttpProblem",
            "found": None,
            "expected": ["/v2", "/v2/models/NAME/infer", "/predict", "/metrics"],
            "hint": None,
            "request_id": None,
        },
        status_code=error.status_code,
        headers=dict(error.headers or {}),
    )
