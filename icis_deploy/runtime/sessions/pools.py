"""What a session lends: resources that one request at a time may use, and storage that slots are written to."""

# Why: docs/decisions/0033.

from __future__ import annotations

import threading
import weakref
from collections import deque
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
        self._permits = None if limit is None else threading.BoundedSemaphore(limit)

    @contextmanager
    def lend(self) -> Iterator[Resource]:
        """Give a resource that nobody else has until the block ends."""
        if self._permits is not None:
            self._permits.acquire()
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
            if self._permits is not None:
                self._permits.release()


Storage = TypeVar("Storage")


class SlotLease(Generic[Storage]):
    """The right to read one slot storage, for as long as the lease is referred to."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage


class SlotStoragePool(Generic[Storage]):
    """The slot storages of one session: two in practice, of which one is read and one is free.

    Rules:

    1. A storage is written only while nobody can read it. Whoever may still read it, a head state or a request in
       flight, holds its lease; it is free again when the last reference to the lease is gone.
    2. Where every storage is leased, one more is made. An update therefore never waits for a request, and never
       overwrites what a slow one still reads.
    """

    def __init__(self, make: Callable[[], Storage]) -> None:
        """Start without any; `make` makes one."""
        self._make = make
        # A deque and no lock: leases end wherever their last reference goes, in a thread that may hold any lock.
        self._free: deque[Storage] = deque()

    def lease(self) -> SlotLease[Storage]:
        """Return a storage that nobody reads, to be written before anybody gets its lease."""
        try:
            storage = self._free.pop()
        except IndexError:
            storage = self._make()
        lease = SlotLease(storage)
        weakref.finalize(lease, self._free.append, storage).atexit = False
        return lease
