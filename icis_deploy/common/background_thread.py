"""A thread that is kept, and makes calls beside whoever begins them, one after the other.

Rules:

1. To wake a thread that waits for work takes less than to start a new one. So it is kept.
2. Where all cores have other work, the thread may not come to a call for milliseconds. A call that it has not come to
   is made by whoever asks for its result, or taken from it; so begin only what either of both may do.
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


class Promise(Generic[Result]):
    """What one thread tells another, once: a value or an error."""

    def __init__(self) -> None:
        self._is_kept = _thread.allocate_lock()
        self._is_kept.acquire()
        self._is_open = True
        self._value: list[Result] = []
        self._error: BaseException | None = None

    def set_result(self, value: Result) -> None:
        """Tell a value."""
        self._value.append(value)
        self._keep()

    def set_exception(self, error: BaseException) -> None:
        """Tell an error."""
        self._error = error
        self._keep()

    @property
    def is_kept(self) -> bool:
        """Whether something was told."""
        return not self._is_open

    def wait(self) -> None:
        """Wait until something was told."""
        while self._is_open:  # the lock alone would stay taken if an interruption came here
            with self._is_kept:
                pass

    def result(self) -> Result:
        """Wait, and return the value, or raise the error."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _keep(self) -> None:
        self._is_open = False
        self._is_kept.release()


class BegunCall(Generic[Result]):
    """A call that the thread makes, or whoever needs its result before the thread has come to it."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call: Callable[[], Result] | None = call
        self._is_taken = _thread.allocate_lock()
        self._promise: Promise[Result] = Promise()

    def take(self) -> bool:
        """Keep the thread from making the call, unless it has come to it; return whether that came in time.

        A call that was taken has no result: whoever took it does in its own way what the call would have done. What a
        call raised that has ended is raised here: one that was interrupted has not told what others would wait for.
        """
        if self._is_taken.acquire(blocking=False):
            return True
        if self._promise.is_kept:
            self._promise.result()
        return False

    def result(self) -> Result:
        """Return what the call returned, or raise what it raised."""
        self.make()
        return self._promise.result()

    def wait(self) -> None:
        """Wait until the call was made, by whomever."""
        self._promise.wait()

    def make(self) -> None:
        """Make the call, unless it was made or is being made; what it raises is kept."""
        call = self._call
        if call is None or not self._is_taken.acquire(blocking=False):
            return
        try:
            value = call()
        except BaseException as error:  # it is raised where the result is asked for
            self._call = None
            self._promise.set_exception(error)
        else:
            self._call = None
            self._promise.set_result(value)


class BackgroundThread:
    """One thread, which is started with the first call and ends with this object."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[BegunCall[Any] | None] | None = None
        self._process = 0

    def begin(self, call: Callable[[], Result]) -> BegunCall[Result]:
        """Let the thread make a call; where the system has no thread for it, it is made at once."""
        begun = BegunCall(call)
        try:
            self._started().put(begun)
        except RuntimeError:  # "can't start new thread"
            begun.make()
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
        call.make()
        del call  # else what it holds would stay until the next one


def _nothing() -> None:
    pass
