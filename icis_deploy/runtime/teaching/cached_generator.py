"""The generator of an open bundle, cached after the first load.

Hashing and loading the file takes most of the time of teaching. Nothing for it is imported before the first class is
taught: a device that only answers opens without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from icis_deploy.bundle.manifest import Bundle

if TYPE_CHECKING:
    from icis_deploy.runtime.teaching.generator import Generator


class CachedGenerator:
    """The generator of an open bundle: loaded when it is first asked for, and again when its file was changed.

    Not safe for several threads by itself; a device asks for it while it changes nothing else.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._folder, self._bundle = folder, bundle
        self._cached: tuple[tuple[int, ...] | None, Generator] | None = None

    def load(self) -> Generator:
        """Return the generator; its file is hashed again where the system says that it is not the one it was.

        Raises:
            ICISDeployError: As `bundle_generator`.
        """
        from icis_deploy.bundle.generator_metadata import GENERATOR_NAME
        from icis_deploy.runtime.teaching.generator import bundle_generator

        stamp = _stamp(
            self._folder / GENERATOR_NAME
        )  # before the hash, so that a change in between is noticed the next time
        if self._cached is None or stamp is None or self._cached[0] != stamp:
            self._cached = None
            self._cached = stamp, bundle_generator(self._folder, self._bundle)
        return self._cached[1]


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of the last change of the inode as well: a program can set the other one back.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
