"""The server as a process of its own: what clients, carriers, operators and Prometheus see of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from icis_deploy.bundle.manifest import load_manifest
from icis_deploy.errors import UsageError
from icis_deploy.runtime.changes.rules import max_update_bytes
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.operations import apply
from icis_deploy.serving import bodies
from icis_deploy.serving.protocol import parse_request
from icis_deploy.serving.server import listen
from icis_deploy.updates.signing import keygen
from testing.bundles import images, make_update, signed_bytes, trust, write_bundle, write_signed
from testing.serving import infer_body, served, wait_for

INFER = "/v2/models/bundle/infer"
TOKEN = "a token of the tests"


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def put(inbox, name, data):
    """Put a file into an inbox as a carrier should: whole, by renaming."""
    (inbox / f"{name}.part").write_bytes(data)
    (inbox / f"{name}.part").rename(inbox / name)


def total(metrics, name):
    return sum(value for sample, value in metrics.items() if sample.partition("{")[0] == name)


def test_an_answer_is_the_devices_and_says_its_version(bundle):
    batch = images(3)
    expected = Device.open(bundle).predict(batch, top=2)
    logits = Device.open(bundle).logits(batch)

    with served(bundle, "--top", 2) as server:
        status, answer = server.json("POST", INFER, infer_body(batch, id="7"))

    outputs = {each["name"]: each for each in answer["outputs"]}
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("bundle", "0", "7")
    assert outputs["classes"]["data"] == [name for one in expected for name in one.class_names]
    assert outputs["classes"]["shape"] == outputs["probabilities"]["shape"] == [3, 2]
    np.testing.assert_allclose(
        outputs["probabilities"]["data"], [each for one in expected for each in one.probabilities], rtol=1e-6
    )
    np.testing.assert_array_equal(np.float32(outputs["logits"]["data"]).reshape(3, 3), logits.values)
    assert outputs["class_names"]["data"] == ["cat", "dog", "owl"]


def test_a_client_of_the_protocol_that_nobody_here_wrote(bundle):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient's HTTP client needs geventhttpclient")
    batch = images(4)
    expected = Device.open(bundle).predict(batch)
    logits = Device.open(bundle).logits(batch).values

    with served(bundle) as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("bundle")
        assert client.is_model_ready("bundle", "0")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata("bundle")
        for binary in (True, False):
            tensor = triton.InferInput(metadata["inputs"][0]["name"], list(batch.shape), "FP32")
            tensor.set_data_from_numpy(batch, binary_data=binary)
            asked = [triton.InferRequestedOutput(each["name"], binary_data=binary) for each in metadata["outputs"]]
            for outputs in (asked, None):
                result = client.infer("bundle", [tensor], outputs=outputs, request_id="9")
                answer = result.get_response()
                names = [[_text(name) for name in row] for row in result.as_numpy("classes")]
                assert names == [list(each.class_names) for each in expected]
                np.testing.assert_array_equal(result.as_numpy("logits"), logits)
                assert (answer["model_version"], answer["id"]) == ("0", "9")
        big = triton.InferInput("image", [65, 6], "FP32")
        big.set_data_from_numpy(images(65))
        with pytest.raises(triton.InferenceServerException, match="1 to 64 are taken at once"):
            client.infer("bundle", [big])
        client.close()


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


def test_classes_change_by_inbox_by_token_and_by_another_process(bundle, inbox, key, tmp_path):
    secret = tmp_path / "token"
    secret.write_text(f"{TOKEN}\n")
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    with served(bundle, "--inbox", inbox, "--admin-token", secret) as server:
        put(inbox, "1.icis", signed_bytes(make_update("okapi", version=1), key.private_path))
        server.await_log("classes changed")
        first = server.json("GET", "/v2/models/bundle")[1]["versions"]
        posted = server.ask(
            "POST", "/admin/apply", signed_bytes(make_update("quagga", version=2), key.private_path), bearer
        )
        again = server.ask(
            "POST", "/admin/apply", signed_bytes(make_update("quagga", version=2), key.private_path), bearer
        )
        second = server.json("GET", "/v2/models/bundle")[1]["versions"]
        apply(write_signed(tmp_path / "3.icis", make_update("dodo", version=3), key.private_path), bundle)
        answer = server.json("POST", INFER, infer_body(images(1), parameters={"top": 9}))[1]
        metrics = server.metrics()

    assert (first, second, answer["model_version"]) == (["1"], ["2"], "3")
    assert sorted(answer["outputs"][0]["data"]) == ["cat", "dodo", "dog", "okapi", "owl", "quagga"]
    assert (posted[0], json.loads(posted[2])["changed"]) == (200, True)
    assert (again[0], json.loads(again[2])["changed"]) == (200, False)
    assert (inbox / "done" / "1.icis").exists()
    assert metrics['icis_deploy_updates_total{result="changed",via="inbox"}'] == 1
    assert metrics['icis_deploy_updates_total{result="changed",via="admin"}'] == 1
    assert metrics['icis_deploy_updates_total{result="unchanged",via="admin"}'] == 1
    assert metrics["icis_deploy_head_version"] == metrics["icis_deploy_head_changes"] == 3
    assert (metrics["icis_deploy_slots"], metrics["icis_deploy_slots_free"]) == (4, 1)
    assert server.logged("classes changed elsewhere")[0]["version"] == 3


REFUSED = 'icis_deploy_updates_total{result="refused",via="admin"}'


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A server with a token, for what changes nothing in it; with its bundle and the key that this trusts."""
    folder = tmp_path_factory.mktemp("refusing")
    bundle, key = write_bundle(folder / "bundle"), keygen(folder / "KEY")
    trust(bundle, key.public_path)
    (folder / "token").write_text(TOKEN)
    with served(bundle, "--admin-token", folder / "token", "--max-body", 1) as server:
        yield server, bundle, key


@pytest.mark.parametrize(
    ("update", "status", "kind"),
    [
        (make_update("okapi", version=1, base_fingerprint="0" * 64), 409, "WrongBaseError"),
        (make_update("cat", version=1), 409, "ClassConflictError"),
        (make_update(*"abcde", version=1), 409, "CapacityError"),
        ("a stranger's", 403, "SignatureError"),
        (b"no update", 403, "CorruptFileError"),
        ("too long", 413, "ICISDeployError"),
    ],
)
def test_an_update_that_is_refused_changes_nothing_and_is_counted(refusing, tmp_path, update, status, kind):
    server, bundle, key = refusing
    if update == "a stranger's":
        update = signed_bytes(make_update("okapi", version=1), keygen(tmp_path / "stranger").private_path)
    if update == "too long":
        update = b"x" * (max_update_bytes(load_manifest(bundle)) + 1)
    data = update if isinstance(update, bytes) else signed_bytes(update, key.private_path)

    before = server.metrics().get(REFUSED, 0)
    answer = server.ask("POST", "/admin/apply", data, {"Authorization": f"Bearer {TOKEN}"})
    metrics = server.metrics()

    assert (answer[0], json.loads(answer[2])["type"]) == (status, kind)
    assert metrics["icis_deploy_head_version"] == 0
    assert metrics.get(REFUSED, 0) - before == (status != 413)


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Bearer a token of the test", "Basic a token of the tests"])
def test_nobody_without_the_token_hands_over_an_update(refusing, header):
    server, _, key = refusing
    data = signed_bytes(make_update("okapi", version=1), key.private_path)

    said = {} if header is None else {"Authorization": header}
    status, headers, body = server.ask("POST", "/admin/apply", data, said)
    version = server.metrics()["icis_deploy_head_version"]

    assert (status, headers["www-authenticate"], version) == (401, "Bearer", 0)
    assert TOKEN not in body.decode()


def test_without_a_token_there_is_no_such_path(bundle, key):
    data = signed_bytes(make_update("okapi", version=1), key.private_path)

    with served(bundle) as server:
        assert server.ask("POST", "/admin/apply", data)[0] == 404


BAD_REQUESTS = {
    "no JSON": (b"{", {}, 400, "no JSON"),
    "no object": (b"[]", {}, 400, "no JSON object"),
    "no inputs": (b"{}", {}, 400, "the model has one, 'image'"),
    "NaN": (b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,6],"data":[NaN,1,1,1,1,1]}]}', {}, 400, "NaN"),
    "another name": (infer_body(images(1), name="pixels"), {}, 400, "the model takes 'image' of FP32"),
    "another shape": (infer_body(images(1)[:, :5]), {}, 400, "expected ['batch', 6]"),
    "an empty batch": (infer_body(images(1)[:0]), {}, 400, "1 to 64 are taken at once"),
    "a batch too large": (infer_body(images(65)), {}, 400, "1 to 64 are taken at once"),
    "fewer values": (
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 6], "data": [1, 2]}]},
        {},
        400,
        "its shape says [1, 6]",
    ),
    "texts": (
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 6], "data": list("abcdef")}]},
        {},
        400,
        "something else than numbers",
    ),
    "a text among numbers": (
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 6], "data": [[1, 2, "3", 4, 5, 6]]}]},
        {},
        400,
        "something else than numbers",
    ),
    "whole numbers without end": (
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 6], "data": [1, 2, 3, 4, 5, 1 << 70]}]},
        {},
        400,
        "beyond 64 bits",
    ),
    "numbers too large for the model": (infer_body(np.full((1, 6), -3e38)), {}, 400, "too large"),
    "an id that no UTF-8 holds": (infer_body(images(1), id="\ud800"), {}, 400, "surrogate"),
    "an output's name that is none": (infer_body(images(1), outputs=[{"name": []}]), {}, 400, "The output []"),
    "an output that is not there": (infer_body(images(1), outputs=[{"name": "scores"}]), {}, 400, "'scores'"),
    "top 0": (infer_body(images(1), parameters={"top": 0}), {}, 400, "'top' is 0"),
    "a JSON length past the end": (b"{}", {"Inference-Header-Content-Length": "9"}, 400, "the body has 2 bytes"),
    "compressed": (b"{}", {"Content-Encoding": "gzip"}, 415, "compressed"),
    "nested too deeply": (b'{"inputs":' + b"[" * 100_000, {}, 400, "no JSON"),
    "far too many values": (b"[" + b"1," * 60_000 + b"1]", {}, 400, "JSON values"),
}


def test_a_bad_request_is_told_what_is_wrong_and_harms_nobody_else(bundle):
    with served(bundle) as server:
        for name, (body, headers, status, said) in BAD_REQUESTS.items():
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            found, answered, text = server.ask("POST", INFER, data, headers)
            answer = json.loads(text)
            assert found == status, (name, answer)
            assert said in answer["error"], name
            assert answer["request_id"] == answered["x-request-id"]
            assert str(bundle) not in answer["error"]
        assert server.ask("POST", "/v2/models/other/infer", b"{}")[0] == 404
        assert (
            server.ask("POST", "/v2/models/bundle/versions/7/infer", json.dumps(infer_body(images(1))).encode())[0]
            == 404
        )
        assert server.ask("GET", INFER)[0] == 405
        assert server.ask("GET", "/nothing")[0] == 404
        assert server.json("POST", INFER, infer_body(images(1)))[0] == 200
        metrics = server.metrics()

    assert not server.logged("request failed")
    assert total(metrics, "icis_deploy_requests_total") == len(BAD_REQUESTS) + 3
    assert metrics['icis_deploy_requests_total{code="200",endpoint="infer"}'] == 1


def test_a_long_text_among_numbers_takes_no_memory(bundle):
    # numpy would make each of the values as long as the text: 128 MiB here, more than any machine has in a larger one.
    tensor = {"name": "image", "datatype": "FP32", "shape": [64, 6], "data": ["a" * (1 << 18), *[1.0] * 383]}
    body, opened = json.dumps({"inputs": [tensor]}).encode(), load_manifest(bundle)

    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="something else than numbers"):
            parse_request(body, None, opened, max_batch=64, default_top=5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_empty_lists_in_the_place_of_numbers_take_no_memory(bundle):
    opened = load_manifest(bundle)
    opened = replace(opened, model_input=replace(opened.model_input, shape=(3, 224, 224)))
    body = b'{"inputs":[{"data":[' + b"[]," * (1 << 20) + b"[]]}]}"

    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="has 1048581 lists and objects, and at most 47360 are"):
            parse_request(body, None, opened, max_batch=64, default_top=5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("shape", [(6,), (1, 1, 400), (3, 20, 7), (20, 20, 1)])
def test_a_tensor_that_is_nested_to_its_last_axis_is_taken_in_the_greatest_batch(bundle, shape, batch):
    opened = load_manifest(bundle)
    opened = replace(opened, model_input=replace(opened.model_input, shape=shape))
    values = np.arange(batch * math.prod(shape), dtype=np.float32).reshape(batch, *shape)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(values.shape), "data": values.tolist()}

    request = parse_request(json.dumps({"inputs": [tensor]}).encode(), None, opened, max_batch=batch, default_top=5)

    np.testing.assert_array_equal(request.images, values)


def test_infinite_numbers_in_binary_data_are_the_clients_fault(bundle):
    data = np.full((1, 6), np.nan, dtype=np.float32).tobytes()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 6], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()

    with served(bundle) as server:
        status, _, body = server.ask("POST", INFER, head + data, {"Inference-Header-Content-Length": str(len(head))})

    assert (status, json.loads(body)["expected"]) == (400, "finite numbers")


def test_a_body_over_the_limit_is_not_read(bundle):
    with served(bundle, "--max-body", 1) as server:
        stated = server.ask("POST", INFER, b"x" * ((1 << 20) + 1))
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head.encode())
            piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            with pytest.raises(OSError):  # noqa: PT011 - the server closes the connection while we send
                connection.sendall(piece * 4096)
        assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})

    assert stated[0] == 413
    assert server.logged("request")[-1]["status"] == 413


@pytest.mark.parametrize(
    ("path", "extra", "status"),
    [(INFER, "", 413), ("/admin/apply", "", 401), (INFER, "Content-Encoding: gzip\r\n", 415)],
    ids=["too long", "no token", "compressed"],
)
def test_a_client_that_is_answered_while_it_still_sends_finds_the_answer(refusing, path, extra, status):
    # A connection that is closed with bytes unread is reset, and the answer with it.
    server = refusing[0]
    body = b"x" * (33 << 20)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        wait_for(lambda: server.logged("request") and server.logged("request")[-1]["status"] == status)
        connection.sendall(body)
        with connection.makefile("rb") as answer:
            received = answer.read()

    assert received.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in received
    assert received.endswith(b"}")


@pytest.mark.parametrize("is_endless", [False, True], ids=["no more comes", "it never ends"])
def test_a_body_is_dropped_for_a_while_alone(is_endless, monkeypatch):
    monkeypatch.setattr(bodies, "_DROP_SECONDS", 0.1)
    sent, num_received = [], 0

    async def send(message):
        sent.append(message)

    async def receive():
        nonlocal num_received
        num_received += 1
        await asyncio.sleep(0 if is_endless else 60)
        return {"type": "http.request", "body": b"x" * (1 << 20), "more_body": True}

    asyncio.run(bodies.LastAnswer({"a": 1}, status_code=413)({"type": "http"}, receive, send))

    assert [each["type"] for each in sent] == ["http.response.start", "http.response.body", "http.response.body"]
    assert [each.get("more_body") for each in sent[1:]] == [True, False]
    assert b"".join(each["body"] for each in sent[1:]) == b'{"a":1}'
    assert num_received == (65 if is_endless else 1)


def test_more_requests_than_may_wait_are_told_so_and_the_others_answered(bundle):
    batch = json.dumps(infer_body(images(64), parameters={"top": 9})).encode()

    with served(bundle, "--parallel", 1, "--max-waiting", 0) as server:
        statuses = []

        def ask():
            for _ in range(30):
                status, headers, _ = server.ask("POST", INFER, batch)
                statuses.append((status, headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = server.metrics()

    assert set(statuses) == {(200, None), (503, "1")}
    assert metrics['icis_deploy_requests_total{code="200",endpoint="infer"}'] == statuses.count((200, None))
    assert metrics['icis_deploy_requests_total{code="503",endpoint="infer"}'] == statuses.count((503, "1"))
    assert metrics["icis_deploy_inputs_total"] == 64 * statuses.count((200, None))
    assert total(metrics, "icis_deploy_answers_total") == metrics["icis_deploy_inputs_total"]


def test_a_request_that_waits_too_long_is_told_so(bundle):
    # Answers of so many inputs take tens of milliseconds on any machine.
    with served(bundle, "--timeout", 0.001, "--max-batch", 5000) as server:
        statuses = {server.json("POST", INFER, infer_body(images(5000)))[0] for _ in range(3)}

    assert 504 in statuses
    assert statuses <= {200, 504}


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_requests_in_flight_and_takes_no_more(bundle, workers):
    body = json.dumps(infer_body(images(1))).encode()
    with served(bundle, "--workers", workers) as server:
        port = server.port
        server.await_log("ready", workers)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("POST", INFER)
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 ")  # the worker has the header, and waits
        connection.send(body[:10])
        server.process.send_signal(signal.SIGTERM)
        if workers == 1:
            wait_for(lambda: not _accepts(port))
        connection.send(body[10:])
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        code = server.process.wait(60)
        stopped = server.await_log("stopped", workers)

    assert (response.status, answer["model_version"]) == (200, "0")
    assert code == 0
    assert len(stopped) == workers


def _accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_workers_see_one_anothers_changes_and_are_counted_together(bundle, inbox, key):
    with served(bundle, "--workers", 2, "--inbox", inbox) as server:
        server.await_log("ready", 2)
        num_answers, versions = 0, []
        for version in (1, 2, 3):
            put(
                inbox,
                f"{version}.icis",
                signed_bytes(make_update(f"new {version}", version=version), key.private_path),
            )
            server.await_log("classes changed", version)
            for _ in range(20):
                versions.append(server.json("POST", INFER, infer_body(images(2)))[1]["model_version"])
                num_answers += 2
        metrics = server.metrics()

    assert versions == ["1"] * 20 + ["2"] * 20 + ["3"] * 20
    assert len({line["process"] for line in server.logged("ready")}) == 2
    assert metrics["icis_deploy_inputs_total"] == total(metrics, "icis_deploy_answers_total") == num_answers
    assert metrics['icis_deploy_requests_total{code="200",endpoint="infer"}'] == 60
    assert metrics['icis_deploy_updates_total{result="changed",via="inbox"}'] == 3
    assert metrics["icis_deploy_head_version"] == 3


def test_a_worker_that_is_killed_is_replaced(bundle):
    with served(bundle, "--workers", 2) as server:
        first = {line["process"] for line in server.await_log("ready", 2)}
        os.kill(min(first), signal.SIGKILL)
        ready = server.await_log("ready", 3)
        assert server.json("POST", INFER, infer_body(images(1)))[0] == 200

    assert ready[2]["process"] not in first


def test_an_inbox_on_a_full_disk_waits_and_answers_go_on(bundle, inbox, key):
    with served(bundle, "--inbox", inbox) as server:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        put(inbox, "1.icis", signed_bytes(make_update("okapi", version=1), key.private_path))
        (waits,) = server.await_log("inbox waits")
        status, answer = server.json("POST", INFER, infer_body(images(1)))
        full = server.metrics()
        is_left = (inbox / "1.icis").exists()
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        server.await_log("classes changed")
        version = server.json("POST", INFER, infer_body(images(1)))[1]["model_version"]

    assert (status, answer["model_version"], is_left) == (200, "0", True)
    assert "Could not write" in waits["reason"] or "File too large" in waits["reason"]
    assert full['icis_deploy_updates_total{result="fault",via="inbox"}'] >= 1
    assert (version, (inbox / "1.icis").exists()) == ("1", False)


def test_a_refused_file_leaves_the_inbox_and_the_next_is_taken(bundle, inbox, key):
    with served(bundle, "--inbox", inbox) as server:
        put(inbox, "1.icis", signed_bytes(make_update("cat", version=1), key.private_path))
        put(inbox, "2.icis", signed_bytes(make_update("okapi", version=2), key.private_path))
        server.await_log("classes changed")
        metrics = server.metrics()

    assert server.logged("update refused")[0]["file"] == "1.icis"
    assert metrics['icis_deploy_updates_total{result="refused",via="inbox"}'] == 1
    assert "cat" in (inbox / "refused" / "1.icis.reason").read_text()


def test_what_a_library_says_without_end_is_written_once_a_second():
    # asyncio does where a process has no descriptor left: two thousand times a second, with a traceback each.
    code = """
        import logging
        from icis_deploy.serving.logs import log, set_up_logs
        set_up_logs()
        for _ in range(3):
            log("request")
            for _ in range(2000):
                logging.getLogger("asyncio").error("out of system resource")
        logging.getLogger("asyncio").error("another thing")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events.count("request") == 3
    assert 1 <= events.count("out of system resource") < 100
    assert events[-1] == "another thing"


def test_a_fault_of_the_device_is_not_the_updates_and_stays_in_the_log(bundle, key, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    data = signed_bytes(make_update("okapi", version=1), key.private_path)
    with served(bundle, "--admin-token", tmp_path / "token") as server:
        (bundle / "state").mkdir()
        (bundle / "state" / "journal.json").write_text("damaged")
        status, _, body = server.ask("POST", "/admin/apply", data, {"Authorization": f"Bearer {TOKEN}"})
        metrics = server.metrics()

    assert (status, json.loads(body)["type"]) == (500, "ServerFault")
    assert str(bundle) not in body.decode()
    assert "journal.json" in server.logged("update failed")[0]["reason"]
    assert metrics['icis_deploy_updates_total{result="fault",via="admin"}'] == 1
    assert metrics["icis_deploy_head_version"] == 0
    assert "icis_deploy_head_changes" not in metrics


def test_a_bundle_that_is_damaged_meanwhile_is_still_answered_and_not_called_ready(bundle, key, tmp_path):
    update = write_signed(tmp_path / "1.icis", make_update("okapi", version=1), key.private_path)
    with served(bundle) as server:
        apply(update, bundle)
        (slots,) = (bundle / "state").glob("slots-*.safetensors")
        slots.write_bytes(b"damaged")
        statuses = [server.json("POST", INFER, infer_body(images(1))) for _ in range(3)]
        ready = server.json("GET", "/v2/health/ready")
        live = server.json("GET", "/v2/health/live")

    assert [(status, answer["model_version"]) for status, answer in statuses] == [(200, "0")] * 3
    assert (ready, live) == ((503, {"ready": False}), (200, {"live": True}))
    assert len(server.logged("bundle cannot be followed")) == 1


def test_a_port_that_is_taken_is_named(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "icis_deploy.cli.main", "serve", str(bundle), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    assert done.returncode == 4
    assert f"port {port}: Address already in use" in done.stderr
    assert "--port" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bundle_that_cannot_be_opened_is_no_server(bundle, workers):
    (bundle / "model.onnx").write_bytes(b"damaged")
    done = subprocess.run(
        [sys.executable, "-m", "icis_deploy.cli.main", "serve", str(bundle), "--port", "0", "--workers", str(workers)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )

    assert done.returncode == 6
    assert "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_short_token_is_refused(bundle, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("short")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "icis_deploy.cli.main",
            "serve",
            str(bundle),
            "--port",
            "0",
            "--admin-token",
            str(secret),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )

    assert done.returncode == 2
    assert "at least 16" in done.stderr


def test_every_line_of_the_log_is_json_whatever_clients_send(bundle):
    with served(bundle, "--log-requests") as server:
        server.ask("POST", "/v2/models/%0A%1B%5B2J/infer", b"{}")
        server.ask("POST", INFER, b'{"id": "\\u001b[2J\\nforged"}', {"Inference-Header-Content-Length": "\x7f9"})
        server.json("POST", INFER, infer_body(images(1)))

    assert not server.logged("no JSON")
    assert [line["status"] for line in server.logged("request")] == [404, 400, 200]
    assert all(text.isprintable() for line in server.logs for text in line.values() if isinstance(text, str))


def test_a_host_without_a_name_is_refused_as_such():
    with pytest.raises(UsageError, match="The host to listen on is empty"):
        listen("", 0)
