"""Spans of the server, as the SDK of OpenTelemetry keeps them; and none where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")
pytest.importorskip("httpx", reason="what starlette's test client asks with is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from icis_deploy.serving import tracing
from icis_deploy.serving.app import make_app
from icis_deploy.serving.settings import ServeSettings
from testing.bundles import images, make_update, signed_bytes
from testing.serving import infer_body, wait_for

TOKEN = b"a token of these tests"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROUTE = "/v2/models/{name}/infer"


@pytest.fixture
def spans(monkeypatch):
    """What keeps the spans of one test: a provider of its own, as the one of a process can be set once alone."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    tracing._tracer.cache_clear()
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    tracing._tracer.cache_clear()
    provider.shutdown()


@pytest.fixture
def client(bundle, tmp_path, spans):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with TestClient(make_app(ServeSettings(bundle=bundle, name="bundle", token=TOKEN, inbox=inbox))) as asked:
        yield asked


def test_a_request_continues_its_clients_trace_and_holds_the_inference(client, spans):
    answer = client.post("/v2/models/bundle/infer", json=infer_body(images(3)), headers={"traceparent": PARENT})
    assert answer.status_code == 200
    request, inference = spans()[f"POST {ROUTE}"], spans()["inference"]

    assert request.kind is SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert inference.parent.span_id == request.context.span_id
    assert dict(inference.attributes) == {"icis_deploy.inputs": 3, "icis_deploy.head.version": 0}
    stated = dict(request.attributes)
    assert stated.pop("icis_deploy.request_id") == answer.headers["x-request-id"]
    assert {name: stated[name] for name in stated if name.startswith(("http.", "url."))} == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "url.path": "/v2/models/bundle/infer",
        "url.scheme": "http",
    }
    assert (stated["server.address"], stated["client.address"]) == ("testserver", "testclient")
    assert stated["user_agent.original"] == "testclient"
    assert request.status.status_code is StatusCode.UNSET


def test_a_clients_mistake_is_no_failure_of_the_server(client, spans):
    assert client.post("/v2/models/bundle/infer", content=b"{").status_code == 400
    request = spans()[f"POST {ROUTE}"]

    assert request.attributes["http.response.status_code"] == 400
    assert request.status.status_code is StatusCode.UNSET
    assert "error.type" not in request.attributes


def test_a_failure_of_the_server_is_one(client, spans, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug that quotes an input")

    monkeypatch.setattr("icis_deploy.serving.app._classified", broken)
    assert client.post("/v2/models/bundle/infer", json=infer_body(images(1))).status_code == 500
    request, inference = spans()[f"POST {ROUTE}"], spans()["inference"]

    assert (request.attributes["error.type"], inference.attributes["error.type"]) == ("500", "ZeroDivisionError")
    assert {request.status.status_code, inference.status.status_code} == {StatusCode.ERROR}
    assert not any("quotes an input" in span.to_json() for span in (request, inference))


def test_what_is_asked_all_the_time_has_no_span(client, spans):
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/bundle/ready"):
        assert client.get(path).status_code == 200
    assert spans() == {}


def test_a_class_update_has_a_span_with_what_came_of_it(client, key, spans):
    headers = {"authorization": f"Bearer {TOKEN.decode()}"}
    update = signed_bytes(make_update("okapi"), key.private_path)
    assert client.post("/admin/apply", content=update, headers=headers).status_code == 200
    taken, request = spans()["apply"], spans()["POST /admin/apply"]
    assert taken.parent.span_id == request.context.span_id
    assert dict(taken.attributes) == {"icis_deploy.update.via": "admin"}
    assert [dict(event.attributes) for event in taken.events] == [
        {"icis_deploy.update.result": "changed", "icis_deploy.head.version": 1}
    ]

    assert client.post("/admin/apply", content=b"no update", headers=headers).status_code == 403
    refused = spans()["apply"]
    assert refused.attributes["error.type"] == refused.events[0].attributes["error.type"]
    assert refused.events[0].attributes["icis_deploy.update.result"] == "refused"
    assert not any("okapi" in span.to_json() for span in (taken, request, refused))


def test_an_inbox_has_a_span_where_something_is_in_it(client, key, spans, tmp_path):
    data = signed_bytes(make_update("okapi"), key.private_path)
    (tmp_path / "8.part").write_bytes(data)
    (tmp_path / "8.part").rename(tmp_path / "inbox" / "8.icis")
    wait_for(lambda: "apply" in spans())

    assert dict(spans()["apply"].attributes) == {"icis_deploy.update.via": "inbox"}
    assert spans()["apply"].events[0].attributes["icis_deploy.head.version"] == 1
    assert spans()["apply"].parent is None


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from pathlib import Path
from starlette.testclient import TestClient
from icis_deploy.serving.app import make_app
from icis_deploy.serving.settings import ServeSettings

settings = ServeSettings(bundle=Path(sys.argv[1]), name="bundle")
with TestClient(make_app(settings)) as client:
    print(client.get("/v2/models/bundle").status_code, client.post("/predict", content=b"").status_code)
print([name for name in sys.modules if name.startswith("opentelemetry.")])
"""


def test_without_opentelemetry_the_server_is_the_same(bundle):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, bundle], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == ["200 400", "[]"]


def test_its_code_uses_the_api_alone():
    source = Path(tracing.__file__).read_text("utf-8")
    assert "opentelemetry.sdk" not in source
