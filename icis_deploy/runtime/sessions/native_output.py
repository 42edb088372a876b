"""What native libraries print, kept off the standard output: answers of commands stand there, for programs to read."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 1 to the standard error until the block ends.

    It is the whole process's: for imports and loading, never for a request. Where the process has no standard output
    or error, nothing is changed.
    """
    with _lock:
        if sys.stdout is not None:
            sys.stdout.flush()
        _flush()
        try:
            os.fstat(2)
            kept = os.dup(1)
        except OSError:
            yield
            return
        os.dup2(2, 1)
        try:
            yield
        finally:
            _flush()  # the C library's buffer, which would otherwise come out after the block
            os.dup2(kept, 1)
            os.close(kept)


def _flush() -> None:
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
