"""A function of many items by several threads, in order, with few of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items begun for each thread: one that it works on, and one that waits, so that it never does."""


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield the results of a function in the order of the items; what it raises is raised here.

    Items are taken in the caller's thread, at most `AHEAD` for each worker before their results are asked for, so that
    memory does not depend on how many there are. With one worker all is done in the caller's thread.

    Args:
        function: Called by several threads at once.
        items: Taken one by one.
        workers: Number of threads, at least 1.
    """
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) == AHEAD * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:  # also when the caller stops, or one failed: the rest need not be done
            for each in begun:
                each.cancel()
