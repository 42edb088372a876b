"""Metrics of a server for Prometheus.

Rules:

1. Counters and times are of requests, and are summed over the workers of a server, which share a folder of memory maps.
2. What the head is (version, classes, free slots) is read from the device when it is asked for, and is the same in each
   worker, since each follows the bundle.
3. How many series there are is bounded, whatever clients and carriers send: endpoints are a fixed set, and the first
   `MAX_CLASSES` classes and `MAX_VERSIONS` versions that a worker answers with have their own label; later ones share
   `(other)`. So sums are exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from icis_deploy.common.terminal_text import printable
from icis_deploy.errors import ICISDeployError, MissingDependencyError
from icis_deploy.runtime.answers import Prediction
from icis_deploy.runtime.device import Device, state_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

Label = TypeVar("Label")
MAX_CLASSES, MAX_VERSIONS = 256, 32
MAX_LABEL = 80
"""Characters of a class name in a label; two names that differ later share one."""
OTHER = "(other)"
SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0)
"""Upper ends of the histogram's buckets."""


class Metrics:
    """The metrics of one worker, and the page about all of them."""

    def __init__(self, device: Device, *, shared: Path | None) -> None:
        """Begin to count.

        Args:
            device: What the head's values are read from.
            shared: A folder that the server's workers share; `None` where there is one.

        Raises:
            MissingDependencyError: If prometheus-client is not installed.
        """
        if shared is not None:  # it is read when the library is imported
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ImportError as error:
            raise MissingDependencyError(
                "The server needs prometheus-client, which is not installed.",
                found=str(error),
                hint="Install it: pip install 'icis-deploy[serve]'.",
            ) from error
        self._shared = shared
        registry = CollectorRegistry()
        self._registry: CollectorRegistry = registry
        self._head = _HeadCollector(device)
        registry.register(self._head)
        self.requests = Counter(
            "icis_deploy_requests", "Requests that were answered.", ["endpoint", "code"], registry=registry
        )
        self.seconds = Histogram(
            "icis_deploy_request_seconds",
            "Seconds from the request's header to the end of its answer, waiting included.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.inputs = Counter("icis_deploy_inputs", "Inputs that were classified.", registry=registry)
        self._answers = Counter(
            "icis_deploy_answers",
            "Inputs by the most probable class and the version of the head.",
            ["class_name", "version"],
            registry=registry,
        )
        self.updates = Counter(
            "icis_deploy_updates",
            "Class updates that this server was given: changed, unchanged (in effect already), refused, fault.",
            ["result", "via"],
            registry=registry,
        )
        self._classes: set[str] = set()
        self._versions: set[int] = set()

    def count_answers(self, predictions: Iterable[Prediction]) -> None:
        """Count answers by class and version; called in several threads."""
        num_inputs = 0
        for prediction in predictions:
            num_inputs += 1
            name, version = prediction.class_names[0], prediction.version
            known = _bounded(self._versions, version, MAX_VERSIONS)
            self._answers.labels(
                class_name=printable(name, max_length=MAX_LABEL)
                if _bounded(self._classes, name, MAX_CLASSES)
                else OTHER,
                version=str(version) if known else OTHER,
            ).inc()
        self.inputs.inc(num_inputs)

    def page(self) -> tuple[bytes, str]:
        """Return the metrics of all workers in Prometheus's text format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = self._registry
        if self._shared is not None:
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._shared))  # type: ignore[no-untyped-call]
            registry.register(self._head)
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _bounded(labels: set[Label], label: Label, limit: int) -> bool:
    """Say whether a label has a series of its own; two threads may let one more in."""
    if label in labels:
        return True
    if len(labels) >= limit:
        return False
    labels.add(label)
    return True


class _HeadCollector:
    """What the head is when Prometheus asks."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        state, bundle = state_of(self._device), self._device.bundle
        num_filled = 0 if state.table is None else len(state.table.filled_names)
        for name, text, value in (
            ("head_version", "Version of the head that answers.", state.version),
            ("classes", "Classes that an answer chooses among.", len(state.class_names)),
            ("slots", "Slots of the head.", bundle.capacity),
            ("slots_free", "Slots without a class.", bundle.capacity - num_filled),
        ):
            yield GaugeMetricFamily(f"icis_deploy_{name}", text, value=float(value))
        # Where the bundle cannot be read, all else is still to be seen, as then most.
        with suppress(ICISDeployError):
            history = self._device.history()
            yield GaugeMetricFamily(
                "icis_deploy_head_changes",
                "Changes committed to the bundle, by whomever.",
                value=float(history[-1].sequence if history else 0),
            )
        info = GaugeMetricFamily("icis_deploy_bundle_info", "The bundle that is served.", labels=["manifest_sha256"])
        info.add_metric([bundle.manifest_sha256 or ""], 1.0)
        yield info
