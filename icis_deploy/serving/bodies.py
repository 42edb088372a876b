"""Bodies of requests: read with limits, and the images in them."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator

import PIL.Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from icis_deploy.common.terminal_text import printable, reason_of
from icis_deploy.errors import ImageError
from icis_deploy.serving.problems import HttpProblem, too_large

_MAX_NAME = 80
_MAX_DROPPED_BYTES = 64 << 20
_DROP_SECONDS = 5.0


async def read_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """Return a body.

    Args:
        request: Whose.
        max_bytes: How long it may be; of a longer one no more is read.
        seconds: How long the client may take.

    Where the body is not read to its end, the error asks for the connection to be closed (`LastAnswer`).

    Raises:
        HttpProblem: 413 for a longer one, 415 for a compressed one, 408 for a slow one, 400 for one that ends early.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HttpProblem(
            415,
            "The body is compressed.",
            found=encoding,
            expected="a body as it is",
            hint="Send it without Content-Encoding.",
            headers={"connection": "close"},
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
        raise too_large(max_bytes)
    try:
        return await asyncio.wait_for(_read(request, max_bytes), seconds)
    except asyncio.TimeoutError as error:
        raise HttpProblem(
            408,
            f"The body did not arrive within {seconds:g} seconds.",
            expected=f"within {seconds:g} s",
            headers={"connection": "close"},
        ) from error
    except ClientDisconnect as error:
        raise HttpProblem(400, "The client left before its body had arrived.") from error


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks, left = [], max_bytes
    async for chunk in request.stream():
        left -= len(chunk)
        if left < 0:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


class LastAnswer(JSONResponse):
    """An answer before the request's body has arrived whole, after which the connection is closed.

    The answer goes out at once. The rest of the body is then read and dropped, up to 64 MiB and for 5 s: a socket that
    is closed with bytes unread resets the connection, and a client that was still sending would find that instead of
    what it was told (RFC 9112, section 9.6).
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Send the answer, and drop what still comes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drop(receive), _DROP_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(receive: Receive) -> None:
    num_bytes, is_more = 0, True
    while is_more and num_bytes <= _MAX_DROPPED_BYTES:
        message = await receive()  # of a client that has gone: a message without a body
        num_bytes += len(message.get("body", b""))
        is_more = message.get("more_body", False)


async def images_in(request: Request, body: bytes, *, max_images: int) -> list[tuple[str, bytes]]:
    """Return the images of a body, each with what it is called in messages.

    Args:
        request: Whose content type says what the body is: `multipart/form-data`, a file for each image, in the order of
            the answers; anything else is one image.
        body: As it was read.
        max_images: How many are taken.

    Raises:
        HttpProblem: 400 if it holds none, too many, or is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if not body:
            raise HttpProblem(400, "The body is empty.", found="0 bytes", expected="an image file")
        return [("body", body)]

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = _InMemory(request.headers, stream(), max_files=max_images, max_fields=0)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = error.message if isinstance(error, MultiPartException) else reason_of(error)
        raise HttpProblem(
            400,
            f"The form cannot be read: {printable(reason.rstrip('.'), max_length=200)}.",
            found=reason,
            expected=f"multipart/form-data with 1 to {max_images} files and nothing else",
        ) from error
    files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
    if not files:
        raise HttpProblem(
            400,
            "The form holds no file.",
            found=0,
            expected=f"1 to {max_images} files",
            hint="Give each part a file name.",
        )
    return [
        (printable(file.filename or f"image {number}", max_length=_MAX_NAME), await file.read())
        for number, file in enumerate(files, start=1)
    ]


class _InMemory(MultiPartParser):
    """Keeps files in memory: the whole body is there already, and a full disk shall not stop answers."""

    spool_max_size = 1 << 62


def check_pixels(data: bytes, *, where: str, max_pixels: int) -> None:
    """Look at an image's header, before anything is decoded.

    Raises:
        ImageError: If it has more than `max_pixels` pixels. What is no image is left to whoever decodes it.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception:  # Pillow's readers raise whatever a damaged file leads them into
        return
    if width * height > max_pixels:
        raise ImageError(
            f"The image {where} has {width} x {height} pixels; at most {max_pixels} are taken.",
            found=width * height,
            expected=f"at most {max_pixels} pixels",
            where=where,
            hint="Send it smaller: the model sees a few hundred pixels a side.",
        )
