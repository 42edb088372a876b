"""The user's folder for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """Return this project's folder in the user's cache (XDG base directory specification); it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "icis-deploy"
