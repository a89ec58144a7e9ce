"""How far a source file is read: as far as a recording, a report or a table of them can reach, and no further.

A download that broke, or a file that somebody made for it, can hold or unpack to more than the memory does.
"""

import io
from pathlib import Path
from typing import IO, Any, BinaryIO

MAX_TEXT_BYTES = 2**22  # of a report or transcript: a thousand times the usual
MAX_TABLE_BYTES = 2**29  # unpacked; about eight times MIMIC-CXR's largest table
MAX_LINE_BYTES = 2**18
MAX_COLUMNS = 2**12
MAX_CELLS = 2**25  # about seven times MIMIC-CXR's largest table


class OutOfBoundsError(ValueError):
    """A file goes further than one of its kind can; the message says what it does, without its name or content."""


def read_bytes(file: IO[bytes], limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read an open file to its end; raises OutOfBoundsError where that lies beyond `limit` bytes."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise OutOfBoundsError(f"holds more than {limit} bytes")
    return data


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file with plain newlines; raises OutOfBoundsError, OSError, UnicodeDecodeError."""
    with path.open("rb") as file:
        text = read_bytes(file).decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_table_size(rows: int, columns: int) -> None:
    """Raise OutOfBoundsError where a table has more columns or cells than one of recordings can have."""
    if columns > MAX_COLUMNS:
        raise OutOfBoundsError(f"has more than {MAX_COLUMNS} columns")
    if rows * columns > MAX_CELLS:
        raise OutOfBoundsError(f"has more than {MAX_CELLS} cells")


class BoundedCsv(io.RawIOBase):
    """The bytes of a csv, unpacked, as long as they can be a table; reading further raises OutOfBoundsError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = self._lines = self._line_bytes = 0
        self._columns, self._quotes, self._in_header = 1, 0, True

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return how many bytes."""
        data = self._file.read(len(buffer))
        self._check(data)
        buffer[: len(data)] = data
        return len(data)

    def _check(self, data: bytes) -> None:
        if b"\0" in data:
            raise OutOfBoundsError("holds bytes of value 0: it is no csv, or one in UTF-16; save it as UTF-8")
        self._bytes += len(data)
        if self._bytes > MAX_TABLE_BYTES:
            raise OutOfBoundsError(f"holds more than {MAX_TABLE_BYTES} bytes")
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self._line_bytes = self._line_bytes + len(data) if end < 0 else len(data) - end - 1
        if self._line_bytes > MAX_LINE_BYTES:
            raise OutOfBoundsError(f"has a line of more than {MAX_LINE_BYTES} bytes")
        if self._in_header:
            self._count_columns(data)
        self._lines += data.count(b"\n") or data.count(b"\r")
        check_table_size(self._lines, self._columns)

    def _count_columns(self, data: bytes) -> None:
        """Count up to the first newline outside quotes: names may hold newlines."""
        for line in data.splitlines(keepends=True):
            self._columns += line.count(b",")
            self._quotes += line.count(b'"')
            if line.endswith((b"\n", b"\r")) and self._quotes % 2 == 0:
                self._in_header = False
                return
