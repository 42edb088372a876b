"""Spans of OpenTelemetry: of each request, of the inference in it, and of each class update.

Rules:

1. The API alone is used, and only where it is installed: which spans are kept, and where they are sent, is up to
   whoever sets up a tracer provider (`opentelemetry-instrument icis-deploy serve …`). Without one, a span costs a call.
2. A request's span continues that of its client (`traceparent`), and has the attributes of the semantic conventions for
   HTTP servers. What a convention does not name is under `icis_deploy.`.
3. No span holds an input, an answer, a class name, or the text of an error, which may quote one. What is asked all the
   time (health, metrics) has no span.

Sources: OpenTelemetry semantic conventions 1.36, `http/http-spans.md` and `general/recording-errors.md`.
"""

# Why: docs/decisions/0143.

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from icis_deploy._version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Result = TypeVar("Result")
Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Span:
    """A span, or nothing where OpenTelemetry is not installed."""

    _span: Any = None

    def set(self, **attributes: Value) -> None:
        """Set attributes, with two underscores for each dot of their names."""
        if self._span is not None:
            self._span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})

    def event(self, name: str, **attributes: Value) -> None:
        """Add an event, with attributes as `set`."""
        if self._span is not None:
            self._span.add_event(name, {key.replace("__", "."): value for key, value in attributes.items()})

    def fail(self, error_type: str) -> None:
        """Mark it as failed: with the name of an error, or the code of an answer."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR)


@lru_cache(maxsize=1)
def _tracer() -> Tracer | None:
    """Return what makes spans; `None` where OpenTelemetry's API is not installed."""
    try:
        from opentelemetry.trace import get_tracer
    except ImportError:
        return None
    return get_tracer("icis_deploy", __version__)


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[Span]:
    """Be in a span within that of the request, if there is one; an error that leaves the block marks it as failed."""
    tracer = _tracer()
    if tracer is None:
        yield Span()
        return
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as started:
        found = Span(started)
        found.set(**attributes)
        try:
            yield found
        except Exception as error:
            found.fail(type(error).__name__)
            raise


@contextmanager
def request_span(request: Request, route: str) -> Iterator[Span]:
    """Be in the span of a request, which continues the one that its client names."""
    tracer = _tracer()
    if tracer is None:
        yield Span()
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(
        f"{request.method} {route}",
        context=extract(dict(request.headers)),
        kind=SpanKind.SERVER,
        attributes=_of_request(request, route),
        record_exception=False,
        set_status_on_exception=False,
    ) as started:
        yield Span(started)


def _of_request(request: Request, route: str) -> Mapping[str, Value]:
    stated: dict[str, Value | None] = {
        "http.request.method": request.method,
        "http.route": route,
        "url.path": request.url.path,
        "url.scheme": request.url.scheme,
        "server.address": request.url.hostname,
        "server.port": request.url.port,
        "client.address": None if request.client is None else request.client.host,
        "network.protocol.version": request.scope.get("http_version"),
        "user_agent.original": request.headers.get("user-agent"),
    }
    return {name: value for name, value in stated.items() if value is not None}


def carried(call: Callable[[], Result]) -> Callable[[], Result]:
    """Return a call that another thread makes within the span that is the current one here."""
    return call if _tracer() is None else partial(contextvars.copy_context().run, call)
