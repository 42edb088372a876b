"""Threads that ask while a test changes what they ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

PATIENCE_SECONDS = 120.0
"""Far longer than answers take on a machine that does other work."""

Answer = TypeVar("Answer")


class Asking(Generic[Answer]):
    """What threads were answered so far, in the order in which answers came."""

    def __init__(self, num_threads: int) -> None:
        self.answers: list[Answer] = []
        self.failures: list[BaseException] = []
        self.is_over = False
        self._num_threads = num_threads
        self._changed = threading.Condition()

    def wait_for_answers(self, count: int = 1) -> None:
        """Wait until so many answers have come that were asked for after this call began.

        Raises:
            AssertionError: If a thread failed, or they do not come for long.
        """
        with self._changed:
            # Each thread may be at one answer already.
            enough = len(self.answers) + self._num_threads + count
            self._changed.wait_for(lambda: self.failures or len(self.answers) >= enough, PATIENCE_SECONDS)
            assert not self.failures, self.failures
            assert len(self.answers) >= enough, f"{len(self.answers)} answers in {PATIENCE_SECONDS:.0f} s"

    def run(self, ask: Callable[[], Answer]) -> None:
        """Ask until it is over, or until asking fails."""
        while not self.is_over:
            try:
                answer = ask()
            except BaseException as error:  # the test's own thread raises it
                with self._changed:
                    self.failures.append(error)
                    self._changed.notify_all()
                return
            with self._changed:
                self.answers.append(answer)
                self._changed.notify_all()


@contextmanager
def asking(ask: Callable[[], Answer], *, num_threads: int) -> Iterator[Asking[Answer]]:
    """Ask again and again in several threads while the block runs.

    The threads end with the block, however it ends: one that went on would keep the whole process from ending.

    Args:
        ask: What is called, by all threads at once.
        num_threads: How many threads ask.

    Yields:
        What they were answered.

    Raises:
        BaseException: What `ask` raised in a thread, if the block itself raised nothing.
    """
    state = Asking[Answer](num_threads)
    threads = [threading.Thread(target=state.run, args=(ask,), daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        state.is_over = True
        for thread in threads:
            thread.join()
    if state.failures:
        raise state.failures[0]
