"""What serving costs over a bare `session.run`, and whether an answer is torn while classes change ten times a second.

    python scripts/experiments/serving_load.py bundle [--seconds 60] [--clients 2] [--updates 10] [--classes 50]

Works on a copy of a bundle with an updatable head and without a guard (`export --max-changed-answers none`), since the
updates here change every answer on purpose. The server runs in this process, the clients in one of their own, over
loopback, with tensors as binary data. A round has three blocks in random order, so that all meet the same load:

    bare        as many threads as there are clients call `session.run` of the same model in this process
    served      the clients send requests without a pause
    changing    the same, while class updates are posted to the server

Every answer of the clients is compared with what its version must give, computed in float64. Every tenth request asks
for all outputs, logits and class names included: it is compared with the names and with the answer of its version, and
left out of the latencies. The counters of `/metrics` must agree with what the clients saw. Exit code 1: something was
torn, dropped, or counted wrongly.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing.percentiles import percentile_ratio
from benchmarks.updates.bundle_copy import bundle_copy
from benchmarks.updates.changing_head import (
    NUM_INPUTS,
    TOP,
    ChangingHead,
    changing_head,
    count_wrong,
    next_update,
)
from icis_deploy.runtime.answers import Prediction
from icis_deploy.runtime.device import session_of, state_of

NAME, TOKEN = "classifier", b"token of a measurement"
ALL_EVERY = 10
"""Every so many requests ask for all outputs."""
TOLERANCE = 1e-4


@dataclass(slots=True, kw_only=True)
class Load:
    """What was measured."""

    bare: list[Any] = field(default_factory=list)
    """Of each round, `(num_requests,)` float64: milliseconds."""
    served: list[Any] = field(default_factory=list)
    changing: list[Any] = field(default_factory=list)
    apply_ms: list[float] = field(default_factory=list)
    answers: list[tuple[int, Prediction]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_torn: int = 0
    num_wrong_labels: int = 0
    num_updates: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def num_versions(self) -> int:
        """How many versions of the head gave answers."""
        return len({prediction.version for _, prediction in self.answers})


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--updates", type=float, default=10.0)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    load = measure(
        given.bundle,
        seconds=given.seconds,
        num_clients=given.clients,
        updates_per_second=given.updates,
        num_new_classes=given.classes,
        num_rounds=given.rounds,
    )
    print(f"{given.clients} clients, {given.classes} classes an update, load {os.getloadavg()[0]:.1f}")
    for name in ("bare", "served", "changing"):
        rounds = getattr(load, name)
        p50, p99 = np.percentile(np.concatenate(rounds), [50, 99])
        print(f"{name:10} {sum(map(len, rounds)):7,} requests, median {p50:7.2f} ms, p99 {p99:7.2f} ms")
    for one, other in (("served", "bare"), ("changing", "bare"), ("changing", "served")):
        ratio = percentile_ratio(getattr(load, one), getattr(load, other), 99.0)
        said = "too few requests" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        print(f"p99 of {one} over {other}: {said}")
    print(
        f"{load.num_updates} updates, one takes {np.median(load.apply_ms):.1f} ms; {len(load.answers):,} answers of "
        f"{load.num_versions} versions: {load.num_torn} torn, {load.num_wrong_labels} wrong labels, "
        f"{len(load.failures)} dropped"
    )
    wrong = wrong_counts(load)
    print("\n".join([*load.failures[:5], *wrong]) or "The metrics agree with what the clients saw.")
    return int(bool(load.num_torn or load.num_wrong_labels or load.failures or wrong))


def measure(
    bundle: Path,
    *,
    seconds: float,
    num_clients: int,
    updates_per_second: float,
    num_new_classes: int,
    num_rounds: int,
) -> Load:
    """Return what was measured on a copy of a bundle.

    Args:
        bundle: With an updatable head, logits and no guard.
        seconds: How long updates are applied; as long are the blocks without, and those of the bare session.
        num_clients: Connections, and threads of the bare session.
        updates_per_second: How often the classes change.
        num_new_classes: Classes in each update.
        num_rounds: Into how many rounds this is cut.
    """
    load, random = Load(), np.random.default_rng(0)
    each = seconds / num_rounds
    with bundle_copy(bundle) as copy, tempfile.TemporaryDirectory() as scratch:
        head = changing_head(copy, None, num_new_classes)
        inputs = Path(scratch) / "inputs.npy"
        np.save(inputs, np.concatenate(head.inputs))
        with _served(head, num_clients) as port:
            clients = partial(_clients, port, inputs, num_clients, head.device.bundle.model_input.name)
            for _ in range(num_rounds):
                updates = [next_update(head) for _ in range(max(1, round(each * updates_per_second)))]
                blocks: dict[str, Callable[[], Any]] = {
                    "bare": partial(_bare, head, num_clients, each),
                    "served": partial(clients, each, load),
                    "changing": partial(
                        _changing, port, updates, updates_per_second, load, partial(clients, each, load)
                    ),
                }
                for name in random.permutation(list(blocks)):
                    getattr(load, name).append(np.array(blocks[name]()))
            load.metrics = metrics_of(port)
        load.num_updates = len(head.updates)
        load.num_torn, load.num_wrong_labels = count_wrong(head, load.answers)
    return load


def wrong_counts(load: Load) -> list[str]:
    """Return a sentence for each counter that does not agree with what the clients saw."""
    answers = sum(value for name, value in load.metrics.items() if name.startswith("icis_deploy_answers_total"))
    expected = {
        'icis_deploy_requests_total{code="200",endpoint="infer"}': len(load.answers),
        'icis_deploy_request_seconds_count{endpoint="infer"}': len(load.answers),
        "icis_deploy_inputs_total": len(load.answers),
        'icis_deploy_updates_total{result="changed",via="admin"}': load.num_updates,
        "icis_deploy_head_version": load.num_updates,
    }
    found = {name: load.metrics.get(name, 0.0) for name in expected}
    wrong = [f"{name} is {found[name]:g}, expected {value}" for name, value in expected.items() if found[name] != value]
    return wrong + [f"answers by class and version are {answers:g}"] * (answers != len(load.answers))


def metrics_of(port: int) -> dict[str, float]:
    """Return the samples of a server's metrics by name and labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@contextmanager
def _served(head: ChangingHead, num_clients: int) -> Iterator[int]:
    """Serve the bundle from a thread of this process; give the port."""
    import uvicorn

    from icis_deploy.serving.app import make_app
    from icis_deploy.serving.server import listen, server_config
    from icis_deploy.serving.settings import ServeSettings

    settings = ServeSettings(bundle=head.copy.folder, name=NAME, parallel=num_clients, top=TOP, token=TOKEN)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(server_config(partial(make_app, settings), workers=1))
        thread = threading.Thread(target=partial(server.run, sockets=[listener]))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def _bare(head: ChangingHead, num_threads: int, seconds: float) -> list[float]:
    """Return the milliseconds of `session.run` in several threads."""
    session, buffers = session_of(head.device), state_of(head.device).buffers
    found: list[float] = []
    end = time.perf_counter() + seconds

    def run(index: int) -> None:
        while (start := time.perf_counter()) < end:
            index = (index + 1) % NUM_INPUTS
            session.run(head.inputs[index], buffers)
            found.append(1e3 * (time.perf_counter() - start))

    _in_threads([partial(run, index) for index in range(num_threads)])
    return found


def _in_threads(calls: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _changing(
    port: int, updates: list[bytes], updates_per_second: float, load: Load, clients: Callable[[], list[float]]
) -> list[float]:
    """Post updates at fixed moments while the clients ask; return the milliseconds of their requests."""
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(clients()))
    thread.start()
    connection, start = http.client.HTTPConnection("127.0.0.1", port, timeout=60), time.perf_counter()
    for number, data in enumerate(updates, start=1):
        before = time.perf_counter()
        connection.request("POST", "/admin/apply", data, {"Authorization": f"Bearer {TOKEN.decode()}"})
        response = connection.getresponse()
        said = response.read().decode()
        now = time.perf_counter()
        load.apply_ms.append(1e3 * (now - before))
        if response.status != 200:
            load.failures.append(f"an update: {response.status} {said}")
        time.sleep(max(0.0, start + number / updates_per_second - now))
    connection.close()
    thread.join()
    return found


def _clients(port: int, inputs: Path, num_clients: int, input_name: str, seconds: float, load: Load) -> list[float]:
    """Let clients ask from a process of their own; return the milliseconds of their requests."""
    command = [
        sys.executable,
        __file__,
        "--as-clients",
        str(port),
        str(inputs),
        str(num_clients),
        input_name,
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this file
    said = json.loads(done.stdout)
    load.failures += said["failures"]
    load.answers += [
        (index, Prediction(tuple(names), tuple(probabilities), version))
        for index, names, probabilities, version in said["answers"]
    ]
    return list(said["latencies_ms"])


def as_clients(port: int, inputs: Path, num_clients: int, input_name: str, seconds: float) -> None:
    """Ask without a pause in several threads, and print what came as JSON."""
    images = np.load(inputs)
    asked = [_requests(image[None], input_name) for image in images]
    said: dict[str, list[Any]] = {"answers": [], "latencies_ms": [], "failures": []}
    end = time.perf_counter() + seconds

    def ask(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        number = first
        while (start := time.perf_counter()) < end:
            number += 1
            index, wants_all = number % len(asked), number % ALL_EVERY == 0
            try:
                body, headers = asked[index][wants_all]
                connection.request("POST", f"/v2/models/{NAME}/infer", body, headers)
                response = connection.getresponse()
                data = response.read()
                if response.status != 200:
                    raise ValueError(f"{response.status} {data[:300]!r}")
                ms = 1e3 * (time.perf_counter() - start)
                answer = json.loads(data)
                if not wants_all:
                    said["latencies_ms"].append(ms)
                said["answers"].append((index, *_read(answer, wants_all)))
            except Exception as error:  # a thread cannot raise to its caller: what it says is counted as dropped
                said["failures"].append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    _in_threads([partial(ask, first) for first in range(num_clients)])
    json.dump(said, sys.stdout)


def _requests(images: Any, input_name: str) -> dict[bool, tuple[bytes, dict[str, str]]]:
    """Return body and headers of a request for the answer, and of one for all outputs."""
    data = images.tobytes()
    datatype = {"float32": "FP32", "uint8": "UINT8"}[str(images.dtype)]
    tensor = {"name": input_name, "datatype": datatype, "shape": list(images.shape)}
    tensor["parameters"] = {"binary_data_size": len(data)}
    found = {}
    for wants_all in (False, True):
        request: dict[str, Any] = {"inputs": [tensor]}
        if not wants_all:
            request["outputs"] = [{"name": "classes"}, {"name": "probabilities"}]
        head = json.dumps(request).encode()
        found[wants_all] = (head + data, {"Inference-Header-Content-Length": str(len(head))})
    return found


def _read(answer: dict[str, Any], wants_all: bool) -> tuple[list[str], list[float], int]:
    """Return classes, probabilities and version of an answer.

    Raises:
        ValueError: If its tensors are not of one version.
    """
    tensors = {each["name"]: each["data"] for each in answer["outputs"]}
    version = int(answer["model_version"])
    if wants_all:
        logits, names = np.array(tensors["logits"], dtype=np.float64), tensors["class_names"]
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        own = dict(zip(names, chances, strict=True))
        if any(name.startswith("version ") and not name.startswith(f"version {version} ") for name in names):
            raise ValueError(f"torn: names of another version in an answer of version {version}")
        for name, probability in zip(tensors["classes"], tensors["probabilities"], strict=True):
            if abs(own[name] - probability) > TOLERANCE:
                raise ValueError(f"torn: {name} has {probability}, and {own[name]} by its logits")
    return tensors["classes"], tensors["probabilities"], version


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-clients"]:
        as_clients(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5], float(sys.argv[6]))
        sys.exit(0)
    sys.exit(main())
