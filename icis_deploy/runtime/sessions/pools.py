"""Things of a runtime that one request at a time may use, such as OpenVINO's infer requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Resource = TypeVar("Resource")


class ResourcePool(Generic[Resource]):
    """Lends one resource to each request that runs, and makes another where all are lent.

    The one that was given back last is lent first, as its memory is still in the caches. A resource whose request
    failed is lent again: a runtime that cannot go on says so by itself.
    """

    def __init__(self, make: Callable[[], Resource], *, limit: int | None = None) -> None:
        """Start empty.

        Args:
            make: Makes a resource.
            limit: How many may be made; a request then waits for one. `None` for as many as run at the same time.
        """
        self._make = make
        self._idle: list[Resource] = []
        self._lock = threading.Lock()
        self._places = None if limit is None else threading.BoundedSemaphore(limit)

    @contextmanager
    def lend(self) -> Iterator[Resource]:
        """Give a resource that nobody else has until the block ends."""
        if self._places is not None:
            self._places.acquire()
        try:
            with self._lock:
                resource = self._idle.pop() if self._idle else None
            if resource is None:
                resource = self._make()
            try:
                yield resource
            finally:
                with self._lock:
                    self._idle.append(resource)
        finally:
            if self._places is not None:
                self._places.release()
