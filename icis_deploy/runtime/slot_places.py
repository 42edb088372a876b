"""Places in a runtime's memory where slots are written: two in practice, of which one is read and one is free.

Rules:

1. A place is written only while nobody can read it. Whoever may still read it, a head state or a request in flight,
   holds its lease; the place is free again when the last reference to the lease is gone.
2. Where every place is leased, one more is made. An update therefore never waits for a request, and never writes below
   one that is slow.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Place = TypeVar("Place")


class SlotLease(Generic[Place]):
    """The right to read one place, for as long as it is referred to."""

    def __init__(self, place: Place) -> None:
        self.place = place
        """Where the slots are."""


class SlotPlaces(Generic[Place]):
    """The places of one session."""

    def __init__(self, make: Callable[[], Place]) -> None:
        """Start without any; `make` makes one."""
        self._make = make
        # A deque and no lock: leases end wherever their last reference goes, in a thread that may hold any lock.
        self._free: deque[Place] = deque()

    def lease(self) -> SlotLease[Place]:
        """Return a place that nobody reads, to be written before anybody gets its lease."""
        try:
            place = self._free.pop()
        except IndexError:
            place = self._make()
        lease = SlotLease(place)
        weakref.finalize(lease, self._free.append, place).atexit = False
        return lease
