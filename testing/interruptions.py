"""Ctrl-C at a chosen moment, for tests of what it leaves behind."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interruptions:
    """Interrupts its caller, which is the main thread: `with` it, call `after`, do the work, and `end`.

    A signal that came to another thread is noticed in the main one a moment later, perhaps together with the next. So
    one interrupts only between `after` and `end`, and once.
    """

    def __init__(self) -> None:
        self._is_armed = False

    def __enter__(self) -> Interruptions:
        """Take the signal of the timer."""
        self._previous = signal.signal(signal.SIGALRM, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back; one that is still to come is dropped, as its old handler may be to end the process."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, self._previous)

    def after(self, seconds: float) -> None:
        """Raise `KeyboardInterrupt` in so many seconds; call it in the `try` that takes it."""
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def end(self) -> None:
        """Interrupt no more."""
        self._is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            raise KeyboardInterrupt
