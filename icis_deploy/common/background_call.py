"""A call that runs in a thread of its own while its caller does something else, and whose result is asked for later.

Rules:

1. Whoever starts it need not wait for it: a caller that fails or is interrupted leaves it behind. So it may only read
   what nobody changes, and must end by itself.
2. It has its caller's priority: a thread inherits that.
"""

# Why: docs/decisions/0056 (the priority).

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class BackgroundCall(Generic[Result]):
    """One call that has started."""

    def __init__(self, call: Callable[[], Result]) -> None:
        """Start `call`; where the system has no thread for it, it runs when its result is asked for."""
        self.seconds = 0.0
        """How long it took from its start, that of its thread included; 0 until it ended."""
        self._call = call
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self._start = time.perf_counter()
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="icis-deploy background call")
        try:
            self._thread.start()
        except RuntimeError:  # "can't start new thread"
            self._thread = None

    def result(self) -> Result:
        """Wait for the call and return what it returned, or raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def wait(self) -> None:
        """Wait until the call has ended, however it did."""
        if self._thread is not None:
            self._thread.join()
        elif not self._result and self._error is None:
            self._start = time.perf_counter()
            self._run()

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error
        self.seconds = time.perf_counter() - self._start
