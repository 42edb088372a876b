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


def set_up_logs() -> None:
    """Write what is logged and warned of as JSON lines to stderr, whoever says it: clients make any library speak."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
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
