"""Read the rows of a CSV file one by one, so that only what a caller keeps of them is in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

MAX_LINE_BYTES = 1 << 22
"""Of one line: 65,536 numbers in full. A row as Python reads it takes some ten times its bytes."""


def csv_rows(data: bytes, *, max_cells: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not empty, with the number of the line that it ends in.

    Args:
        data: A CSV file in UTF-8, with or without a byte order mark.
        max_cells: How many commas and line ends it may have, which are as many as its cells or more. They are counted
            before anything is read.

    Raises:
        ValueError: If it is not that (`UnicodeDecodeError` among them), has more cells or a line of more than
            `MAX_LINE_BYTES`.
        csv.Error: If a cell breaks the rules of CSV, or has more than Python's limit of 131,072 characters.
    """
    if data.count(b",") + data.count(b"\n") > max_cells:
        raise ValueError(f"it has more than {max_cells} cells")
    reader = csv.reader(_lines(data), strict=True)
    for row in reader:
        if row:
            yield reader.line_num, row


def _lines(data: bytes) -> Iterator[str]:
    file = io.BytesIO(data.removeprefix(b"\xef\xbb\xbf"))
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
        yield from io.StringIO(line.decode(), newline="")
