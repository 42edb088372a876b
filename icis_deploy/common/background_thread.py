"""A thread that is kept, and makes calls beside whoever begins them, one after the other.

Rules:

1. A thread that waits for work is woken without waiting for it; a new one is waited for until it runs. So it is kept.
2. Where all cores have other work, the thread may not come to a call for milliseconds. A call that it has not come to
   is made by whoever asks for its result; so begin only what either of both may do.
3. Whoever fails or is interrupted waits for the thread (`wait`) before undoing what its calls do.
"""

# Why: docs/decisions/0097, docs/decisions/0140.

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Result = TypeVar("Result")


class BegunCall(Generic[Result]):
    """A call that the thread makes, or whoever needs its result before the thread has come to it."""

    def __init__(self, call: Callable[[], Result], future: Future[Result]) -> None:
        self._call = call
        self._future = future

    def claim(self) -> None:
        """Make the call now, unless the thread has come to it; what it raises is kept for `result`."""
        if self._future.cancel():
            self._future = _made(self._call)

    def result(self) -> Result:
        """Return what the call returned, or raise what it raised."""
        self.claim()
        return self._future.result()


class BackgroundThread:
    """One thread, which is started with the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None

    def begin(self, call: Callable[[], Result]) -> BegunCall[Result]:
        """Let the thread make a call; where the system has no thread for it, it is made at once."""
        from concurrent.futures import ThreadPoolExecutor

        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)
        try:
            return BegunCall(call, self._executor.submit(call))
        except RuntimeError:  # "can't start new thread"
            self._executor = None
        return BegunCall(call, _made(call))

    def wait(self) -> None:
        """Wait until the thread has made all calls that were begun and not claimed."""
        if self._executor is not None:
            self._executor.submit(_nothing).exception()


def _nothing() -> None:
    pass


def _made(call: Callable[[], Result]) -> Future[Result]:
    from concurrent.futures import Future

    done: Future[Result] = Future()
    try:
        done.set_result(call())
    except BaseException as error:  # it is raised where the result is asked for
        done.set_exception(error)
    return done
