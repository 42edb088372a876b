"""Logs as JSON, one object a line, on stderr: `time`, `level`, `event`, and what belongs to the event."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime, timezone
from typing import Any

from icis_deploy.common.terminal_text import printable

_LOGGER = logging.getLogger("icis_deploy.serving")
_RESERVED = ("time", "level", "event", "process")
MAX_LOGGED = 2000
"""Characters of one value; names and reasons may come from a client."""


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object, whoever logged it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII: no client can break a line, or obey a terminal."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": printable(record.getMessage(), max_length=MAX_LOGGED),
            "process": os.getpid(),
        }
        fields = getattr(record, "fields", {})
        values |= {name: _plain(value) for name, value in fields.items() if name not in _RESERVED}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(str(value), max_length=MAX_LOGGED)


class _Repeated(logging.Filter):
    """Leaves out what another library says again within a second.

    Where a process has no descriptor left, asyncio says so for each place in the queue of connections, again and again:
    three megabytes a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[str, str] | None = None
        self._time = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written."""
        said = (record.name, str(record.msg))
        if record.name == _LOGGER.name:
            return True
        if said == self._last and 0 <= record.created - self._time < 1:
            return False
        self._last, self._time = said, record.created
        return True


def set_up_logs() -> None:
    """Write what is logged and warned of as JSON lines to stderr, whoever says it: clients make any library speak."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(_Repeated())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _LOGGER.setLevel(logging.INFO)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """Log an event.

    Args:
        event: What happened, in a few fixed words.
        level: As of `logging`.
        error: A bug, whose traceback is logged.
        fields: What belongs to the event.
    """
    info = None if error is None else (type(error), error, error.__traceback__)
    _LOGGER.log(level, event, exc_info=info, extra={"fields": fields})
