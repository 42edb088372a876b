"""Compare a bundle's files with its manifest while the runtime's library is imported.

Reading and hashing leave Python's lock to the import, which takes longer. Nothing of the bundle but its manifest is
used before the comparison has ended, so what cannot be trusted is not loaded.
"""

from __future__ import annotations

import threading
from pathlib import Path

from icis_deploy.bundle import Bundle, check_files


class FileCheck:
    """A comparison that runs in a thread of its own."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Start to compare every file that a manifest names."""
        self._folder, self._bundle = folder, bundle
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no more threads
            self._thread = None
            self._run()

    def wait(self) -> None:
        """Wait for the end of the comparison.

        Raises:
            BundleError: If a file cannot be read.
            CorruptFileError: If one has another size or hash.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            check_files(self._folder, self._bundle)
        except BaseException as error:
            self._error = error
