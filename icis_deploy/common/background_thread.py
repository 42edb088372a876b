"""A thread that is kept, and makes calls beside whoever begins them, one after the other.

Rules:

1. A thread that waits for work is woken without waiting for it; a new one is waited for until it runs. So it is kept.
2. Where all cores have other work, the thread may not come to a call for milliseconds. A call that it has not come to
   is made by whoever asks for its result; so begin only what either of both may do.
3. Whoever fails or is interrupted waits for the thread (`wait`) before undoing what its calls do.
4. An interruption (Ctrl-C) may come between any two steps of whoever begins, asks or waits, and leaves no lock behind
   that the thread or a later call would wait for. So nothing here is Python code that holds a lock, as `Future`,
   `Queue`, `Event` and `Thread.start` are.
"""

# Why: docs/decisions/0097, docs/decisions/0140.

from __future__ import annotations

import _thread
import os
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class BegunCall(Generic[Result]):
    """A call that the thread makes, or whoever needs its result before the thread has come to it."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call: Callable[[], Result] | None = call
        self._is_taken, self._is_made = _thread.allocate_lock(), _thread.allocate_lock()
        self._is_made.acquire()
        self._returned: list[Result] = []
        self._raised: BaseException | None = None

    def claim(self) -> None:
        """Make the call now, unless the thread has come to it; what it raises is kept for `result`."""
        call = self._call
        if call is None or not self._is_taken.acquire(blocking=False):
            return
        try:
            self._returned.append(call())
        except BaseException as error:  # it is raised where the result is asked for
            self._raised = error
        finally:
            self._call = None
            self._is_made.release()

    def result(self) -> Result:
        """Return what the call returned, or raise what it raised."""
        self.claim()
        self.wait()
        if self._raised is not None:
            raise self._raised
        return self._returned[0]

    def wait(self) -> None:
        """Wait until the call was made, by whomever."""
        while self._call is not None:  # the lock alone would stay taken if an interruption came here
            with self._is_made:
                pass


class BackgroundThread:
    """One thread, which is started with the first call and ends with this object."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[BegunCall[Any] | None] | None = None
        self._process = 0

    def begin(self, call: Callable[[], Result]) -> BegunCall[Result]:
        """Let the thread make a call; where the system has no thread for it, it is made at once."""
        begun = BegunCall(call)
        try:
            self._started().put(begun)
        except RuntimeError:  # "can't start new thread"
            begun.claim()
        return begun

    def wait(self) -> None:
        """Wait until the thread has made all calls that were begun and not claimed."""
        if self._calls is not None and self._process == os.getpid():
            last = BegunCall(_nothing)
            self._calls.put(last)
            last.wait()

    def _started(self) -> SimpleQueue[BegunCall[Any] | None]:
        """Return the queue of the thread, which a forked process lacks."""
        if self._calls is None or self._process != os.getpid():
            calls: SimpleQueue[BegunCall[Any] | None] = SimpleQueue()
            _thread.start_new_thread(_make_calls, (calls,))
            weakref.finalize(self, calls.put, None).atexit = False
            self._calls, self._process = calls, os.getpid()
        return self._calls


def _make_calls(calls: SimpleQueue[BegunCall[Any] | None]) -> None:
    while (call := calls.get()) is not None:
        call.claim()
        del call  # else what it holds would stay until the next one


def _nothing() -> None:
    pass
