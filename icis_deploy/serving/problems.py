"""Errors as answers of HTTP: a status, and JSON that says what, found, expected and what to do next.

What is wrong with a request is said to the client. What is wrong with the server stands in its log, under the id that
the client is told: paths and states of a device are nobody's business.
"""

from __future__ import annotations

from typing import Any

from icis_deploy.common.terminal_text import printable
from icis_deploy.errors import (
    GuardError,
    ICISDeployError,
    IncompatibleError,
    IntegrityError,
    LoadError,
    UsageError,
    VerdictError,
)

MAX_SAID = 1000
"""Characters of one value in an answer."""


class HttpProblem(Exception):  # noqa: N818 - what is wrong may be the client's alone
    """Ends a request with a status of its own.

    Args:
        status: Of HTTP.
        what: What is wrong.
        found: What was found.
        expected: What was expected instead.
        hint: What to do next.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.status, self.headers = status, headers or {}
        self.error = ICISDeployError(what, found=found, expected=expected, hint=hint)


def too_large(limit: int) -> HttpProblem:
    """Return what a body gets that is longer than `limit` bytes."""
    return HttpProblem(
        413,
        f"The body is longer than {limit} bytes.",
        found=f"more than {limit} bytes",
        expected=f"at most {limit} bytes",
        hint="Send fewer inputs at once, or tensors as binary data.",
        headers={"connection": "close"},
    )


def status_of(error: ICISDeployError, *, is_update: bool) -> int:
    """Return the status of an error of ours.

    Args:
        error: What a request ended with.
        is_update: Whether it was a class update: 403 where its bytes are not to be trusted, 409 where it does not fit
            the head, or would change too much.
    """
    if is_update and isinstance(error, IntegrityError):
        return 403
    if is_update and isinstance(error, IncompatibleError | GuardError | VerdictError):
        return 409
    return 400 if isinstance(error, UsageError | LoadError | IncompatibleError) else 500


def body_of(error: ICISDeployError, *, request_id: str) -> dict[str, Any]:
    """Return what a client is told of an error: `error`, as the protocol has it, and its parts."""
    return {
        "error": printable(str(error), max_length=MAX_SAID),
        "type": type(error).__name__,
        "found": _plain(error.found),
        "expected": _plain(error.expected),
        "hint": error.hint,
        "request_id": request_id,
    }


def body_of_fault(request_id: str) -> dict[str, Any]:
    """Return what a client is told where the server is at fault."""
    return {
        "error": f"The server failed. Its log says why, under the request id {request_id}.",
        "type": "ServerFault",
        "found": None,
        "expected": None,
        "hint": "Send the request again; if it fails again, tell whoever runs the server the request id.",
        "request_id": request_id,
    }


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value[:16]]
    return printable(str(value), max_length=MAX_SAID)
