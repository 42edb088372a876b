"""Requests over HTTP, and files fetched by size and SHA-256, with nothing left of what was not fetched whole.

A server is not trusted: answers are read to a limit, redirections lead to HTTP alone and never take a password or a
token along, and a file gets its name only after its last byte was compared.
"""

# Why: docs/decisions/0119.

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult, urljoin, urlsplit

from icis_deploy.common.files import write_file
from icis_deploy.common.terminal_text import MAX_REASON, printable, reason_of, shown
from icis_deploy.errors import CorruptFileError, TransferError, UsageError

TIMEOUT_SECONDS = 30.0
MAX_TEXT_BYTES = 4 << 20
"""Of an answer that is read whole: the limit of registries for a manifest."""
_PIECE_BYTES = 1 << 20
_TRY_AGAIN = "Nothing was changed; try again."
_SECRET_HEADERS = {"authorization"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to one request."""

    url: str
    """Where the request was sent."""

    status: int
    """The HTTP status, of an error too."""

    headers: Mapping[str, str]
    """By lower-case names."""

    body: bytes


def request(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | IO[bytes] | None = None,
) -> Answer:
    """Send one request and return its answer, whatever its status.

    Args:
        url: With the scheme http or https.
        method: Of HTTP.
        headers: Sent with it; `Authorization` is not sent on to where the server redirects to.
        body: What to send; a file needs a `Content-Length` among the headers.

    Raises:
        UsageError: If the URL is none of HTTP.
        TransferError: If there is no answer, or it has more than `MAX_TEXT_BYTES`.
    """
    with _opened(url, method, headers or {}, body) as answer, _as_transfer_error(url):
        data = answer.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise TransferError(
                f"{_shown(url)} answers with more than {MAX_TEXT_BYTES} bytes. Not read further.",
                found=f"more than {MAX_TEXT_BYTES} bytes",
                expected=f"at most {MAX_TEXT_BYTES} bytes",
                where=url,
                hint="Check the address: this is no answer of such a server.",
            )
        return Answer(url, answer.status or 0, {name.lower(): value for name, value in answer.headers.items()}, data)


def fetch_file(url: str, path: Path, *, size: int, sha256: str, headers: Mapping[str, str] | None = None) -> None:
    """Fetch a file whose size and digest are known; it is at `path` whole, or not at all.

    Args:
        url: Where it is.
        path: Where to write it, in a folder that exists. What is there is replaced.
        size: Its bytes.
        sha256: Of its bytes, lower-case hexadecimal.
        headers: As in `request`.

    Raises:
        UsageError: If the URL is none of HTTP.
        TransferError: If the server cannot be reached, does not have it, or breaks off.
        CorruptFileError: If it sends other bytes.
        StorageError: If the file cannot be written.
    """
    write_file(path, _verified_pieces(url, size=size, sha256=sha256, headers=headers or {}))


def parts_of(url: str) -> SplitResult:
    """Return the parts of an address of HTTP.

    Raises:
        UsageError: If it is none.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:  # brackets around what is no address of IPv6
        is_one = False
    if not is_one:
        raise UsageError(
            f"{_shown(url)} is no address of HTTP.",
            found=url,
            expected="http://… or https://…",
            where=url,
            hint="Give one that begins with https:// or http://.",
        )
    return parts


def is_of_server(url: str, server: str) -> bool:
    """Say whether an address is of the same server as another one, by scheme, host and port.

    Raises:
        UsageError: If one of them is no address of HTTP.
    """
    return parts_of(url)[:2] == parts_of(server)[:2]


def place_in(answer: Answer, link: str, *, what: str) -> str:
    """Return the address that a link in an answer leads to.

    Args:
        answer: What holds the link.
        link: As it stands there, relative to where the answer came from or not.
        what: What the link is of, for the message.

    Raises:
        TransferError: If it leads to no address of HTTP.
    """
    try:
        place = urljoin(answer.url, link)
        parts_of(place)
    except (ValueError, UsageError) as error:
        raise TransferError(
            f"{_shown(answer.url)} names {shown(link)} as {what}, which is no address of HTTP.",
            found=link,
            expected="http://… or https://…",
            where=answer.url,
            hint="Check the server's address.",
        ) from error
    return place


def refusal(answer: Answer, *, wanted: str, hint: str = "") -> TransferError:
    """Return the error for a status that a request cannot go on with.

    Args:
        answer: What the server answered.
        wanted: What was asked for, as the object of "does not give".
        hint: What to do next; by default it depends on the status.
    """
    said = printable(answer.body[:MAX_REASON].decode("utf-8", "replace").strip(), max_length=MAX_REASON)
    if not hint:
        who = "Check the user and the password."
        hint = {401: who, 403: who, 404: "Check the name."}.get(answer.status, "Try again later.")
    return TransferError(
        f"{_shown(answer.url)} does not give {wanted}: HTTP {answer.status}{f', {said}' if said else ''}.",
        found=answer.status,
        expected="HTTP 200",
        where=answer.url,
        hint=hint,
    )


def _verified_pieces(url: str, *, size: int, sha256: str, headers: Mapping[str, str]) -> Iterator[bytes]:
    digest, num_bytes = hashlib.sha256(), 0
    with _opened(url, "GET", headers, None) as answer, _as_transfer_error(url):
        if answer.status != 200:
            found = Answer(url, answer.status or 0, {}, answer.read(MAX_REASON))
            raise refusal(found, wanted="the file")
        while piece := answer.read(min(_PIECE_BYTES, size + 1 - num_bytes)):
            num_bytes += len(piece)
            digest.update(piece)
            if num_bytes > size:
                break
            yield piece
        is_cut_off = num_bytes < size and answer.headers.get("Content-Length") == str(size)
    if is_cut_off:
        raise TransferError(
            f"{_shown(url)} broke off after {num_bytes} of {size} bytes. {_TRY_AGAIN}",
            found=num_bytes,
            expected=size,
            where=url,
        )
    if num_bytes != size or digest.hexdigest() != sha256:
        length = f"more than {size}" if num_bytes > size else str(num_bytes)
        raise CorruptFileError(
            f"{_shown(url)} sent other bytes than it was asked for: {length} bytes with SHA-256 "
            f"{digest.hexdigest()[:16]}…, not {size} with {sha256[:16]}…. Nothing was kept.",
            found=digest.hexdigest(),
            expected=sha256,
            where=url,
            hint="Try again; if it stays so, the server's files are damaged, or somebody changes them.",
        )


@contextmanager
def _opened(
    url: str, method: str, headers: Mapping[str, str], body: bytes | IO[bytes] | None
) -> Iterator[http.client.HTTPResponse | urllib.error.HTTPError]:
    parts_of(url)
    with _as_transfer_error(url):
        asked = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - http and https alone
        for name, value in headers.items():
            # Storage that a server redirects to is somebody else's, and must not learn a token.
            add = asked.add_unredirected_header if name.lower() in _SECRET_HEADERS else asked.add_header
            add(name, value)
        try:
            answer = _opener().open(asked, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            answer = error  # an answer with a status
    with answer:
        yield answer


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener of HTTP alone: the default one also reads files and FTP, where a server may redirect to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


@contextmanager
def _as_transfer_error(url: str) -> Iterator[None]:
    try:
        yield
    except http.client.IncompleteRead as error:
        raise TransferError(
            f"{_shown(url)} broke off in the middle of its answer. {_TRY_AGAIN}", found="half an answer", where=url
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = reason_of(cause) if isinstance(cause, BaseException) else str(cause)
        raise TransferError(
            f"{_shown(url)} cannot be reached: {printable(reason, max_length=MAX_REASON)}. {_TRY_AGAIN}",
            found=reason,
            where=url,
            hint="Check the address and the network.",
        ) from error


def _shown(url: str) -> str:
    """Return an address for people, without what a query may hold of secrets."""
    return printable(url.partition("?")[0], max_length=MAX_REASON)
