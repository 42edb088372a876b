"""The device of a worker, and everything that changes its classes while it answers.

Rules:

1. Before each request the device takes over what was committed since, by whomever (`Device.refresh`). Where a change is
   being made in this process, requests do not wait for it: they answer from the state before, and the change publishes
   the next one by one assignment.
2. A change that is refused, and a disk that refuses, leave the head that answers as it is.
3. One worker at a time looks into the inbox: whoever holds the lock in the folder that the workers share.
"""

# Why: docs/decisions/0116.

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from icis_deploy.common.syncing import CLOSE_ON_EXEC
from icis_deploy.errors import ICISDeployError, LoadError
from icis_deploy.runtime.device import AppliedUpdate, Device
from icis_deploy.runtime.inbox import SUFFIX, is_of_the_device, process_inbox
from icis_deploy.serving.logs import log
from icis_deploy.serving.metrics import Metrics
from icis_deploy.serving.tracing import Span, span

POLL_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 30.0
LOCK_NAME = "inbox.lock"


class ServedHead:
    """A device that requests are answered from while its classes change; safe to use from several threads."""

    def __init__(self, device: Device, metrics: Metrics, *, bundle: Path) -> None:
        self.device, self.metrics, self.bundle = device, metrics, bundle
        self._changing = threading.Lock()
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why this worker does not follow its bundle; `None` where it does."""
        return self._fault

    def follow(self) -> Device:
        """Take over what was committed since; return the device. Never raises for a bundle that cannot be followed."""
        if self._changing.acquire(blocking=False):
            try:
                if self.device.refresh():
                    log("classes changed elsewhere", version=self.device.version)
                self._fault = None
            except ICISDeployError as error:
                if str(error) != self._fault:
                    log("bundle cannot be followed", level=logging.ERROR, reason=error, version=self.device.version)
                self._fault = str(error)
            finally:
                self._changing.release()
        return self.device

    def apply(self, data: bytes) -> AppliedUpdate:
        """Take a class update, or a set of trusted keys, that somebody handed over; count and log what came of it.

        Raises:
            ICISDeployError: As `Device.apply`.
        """
        with span("apply", icis_deploy__update__via="admin") as traced:
            try:
                with self._changing:
                    applied = self.device.apply(data)
            except ICISDeployError as error:
                self._count(None, error, via="admin", traced=traced)
                raise
            self._count(applied, None, via="admin", traced=traced)
        return applied

    def take_inbox(self, inbox: Path, *, stopped: threading.Event) -> ICISDeployError | None:
        """Apply and sort what is in an inbox; return what is wrong with the device, if something is."""

        def pause(seconds: float) -> None:
            stopped.wait(seconds)

        try:
            with os.scandir(inbox) as entries:
                if not any(entry.name.endswith(SUFFIX) for entry in entries):
                    return None
            with span("apply", icis_deploy__update__via="inbox") as traced:
                return self._sort_inbox(inbox, pause, traced)
        except OSError as error:
            return LoadError(
                f"The inbox cannot be read: {error.strerror or error}.",
                found=str(error),
                where=inbox,
                hint="Check the path and its permissions.",
            )
        except ICISDeployError as error:
            self.metrics.updates.labels(result="fault", via="inbox").inc()
            return error

    def _sort_inbox(self, inbox: Path, pause: Callable[[float], None], traced: Span) -> ICISDeployError | None:
        with self._changing:
            report = process_inbox(inbox, self.bundle, device=self.device, sleep=pause)
        for each in report.files:
            self._count(each.applied, each.reason, via="inbox", file=each.name, traced=traced)
        if report.fault is not None:
            self.metrics.updates.labels(result="fault", via="inbox").inc()
            traced.fail(type(report.fault).__name__)
        return report.fault

    def _count(
        self,
        applied: AppliedUpdate | None,
        error: ICISDeployError | None,
        *,
        via: str,
        traced: Span,
        file: str | None = None,
    ) -> None:
        if applied is not None:
            entry = applied.entry
            result = "changed" if applied.changed else "unchanged"
            traced.event("update", icis_deploy__update__result=result, icis_deploy__head__version=entry.version)
            self.metrics.updates.labels(result=result, via=via).inc()
            log(
                "classes changed" if applied.changed else "update in effect already",
                via=via,
                file=file,
                version=entry.version,
                sequence=entry.sequence,
                action=entry.action,
                signed_by=entry.signed_by,
            )
            return
        is_refused = error is not None and not is_of_the_device(error, self.bundle)
        result = "refused" if is_refused else "fault"
        traced.event("update", icis_deploy__update__result=result, error__type=type(error).__name__)
        self.metrics.updates.labels(result=result, via=via).inc()
        log(
            "update refused" if is_refused else "update failed", level=logging.WARNING, via=via, file=file, reason=error
        )


class InboxWatch:
    """A thread that looks into an inbox until it is told to stop."""

    def __init__(self, head: ServedHead, inbox: Path, *, shared: Path | None) -> None:
        self._head, self._inbox, self._shared = head, inbox, shared
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="inbox", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, after the file that is being applied."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        said, wait = None, POLL_SECONDS
        while not self._stopped.wait(wait):
            fault: BaseException | None
            try:
                with _alone(self._shared) as is_alone:
                    fault = self._head.take_inbox(self._inbox, stopped=self._stopped) if is_alone else None
            except Exception as error:  # a bug must not end the watch: the next update may be the one that helps
                fault = error
                log("inbox failed", level=logging.ERROR, error=error)
            # A disk that is full now is full a moment later: the inbox waits, answers do not.
            wait = POLL_SECONDS if fault is None else min(MAX_BACKOFF_SECONDS, 2 * wait)
            if fault is not None and str(fault) != said:
                log("inbox waits", level=logging.ERROR, reason=fault, next_look_in_s=wait)
            said = None if fault is None else str(fault)


@contextmanager
def _alone(shared: Path | None) -> Iterator[bool]:
    """Say whether no other worker holds the lock; hold it meanwhile."""
    if shared is None:
        yield True
        return
    import fcntl

    descriptor = os.open(shared / LOCK_NAME, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC, 0o600)
    try:
        is_held = False
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        yield is_held
    finally:
        os.close(descriptor)
