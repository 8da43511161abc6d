"""One file of lines (CSV, JSON lines, text), read from a place in it; compressed or not.

A place is an offset in the file's content, after decompression. Invariants: a record is taken when its line has ended
(the last line of a file that is not followed counts as ended); what identifies the file is content that was read, so
it stays the same while the file grows.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import cast

import msgspec

from semel.source_ports import SourceRow
from semel.sources.files import Files
from semel.sources.source import Coder, Refused, SourceDiverged, SourceError, excerpt

HEAD, TAIL = 4_096, 256  # bytes that are compared
CHUNK = 256 << 10
RECORD_MAX = 16 << 20  # bytes of one record: an open quote would swallow the rest of the file
PORTION_BYTES = 4 << 20
BOM = b"\xef\xbb\xbf"


class FileAt(msgspec.Struct, frozen=True):
    """The position in one file. `head` bytes from its start have the sha256 `sha`, the `TAIL` before `at` have `tail`
    (both of content; of Parquet `head` is the file's size and `sha` that of its end, and `at` counts rows)."""

    path: str  # where it was last seen, relative to the source's folder
    head: int
    sha: str
    at: int
    tail: str = ""
    row: int = 0  # lines before `at`
    open: bool = False  # its last line had no end and was taken: nothing may be added to that line
    whole: bool = False  # it ended there
    inode: int = 0


class Unfinished(Exception):
    """The file ends in the middle of its compressed data: it is still being written, or was cut off."""


class Source(Iterator[bytes]):
    """Lines of a file from a place on, each with its end; the last one may have none."""

    def __init__(self, path: str, at: int = 0) -> None:
        self.path = path
        self._raw = open(path, "rb")  # noqa: SIM115
        self.inode = os.fstat(self._raw.fileno()).st_ino
        self._file: BufferedReader = self._raw
        if path.endswith(".gz"):
            self._file = cast(BufferedReader, gzip.GzipFile(fileobj=self._raw))
        self.at = 0
        self._buffer = b""
        self._from = 0
        self.ended = False  # the end of the file was seen
        self._skip(at)

    def _skip(self, at: int) -> None:
        if self._file is self._raw:
            self._raw.seek(at)
        else:
            left = at
            while left > 0:
                got = self.content(min(left, CHUNK))
                if not got:
                    raise SourceDiverged(_shrunk(self.path, at, at - left))
                left -= len(got)
        self.at = at

    def content(self, size: int) -> bytes:
        try:
            # One read at a time: of cut-off compressed data, what can be had is had before the error.
            return self._file.read1(size)
        except EOFError:
            raise Unfinished(f"{self.path} ends in the middle of its compressed data") from None
        except (OSError, zlib.error) as damage:
            raise SourceError(f"{self.path} cannot be read: {damage}. Put a whole one in its place.") from None

    def __next__(self) -> bytes:
        """The next line, of which `at` is then the end. At the end of the file what is there without an end of line."""
        while True:
            end = self._buffer.find(b"\n", self._from)
            if end >= 0:
                line = self._buffer[self._from : end + 1]
                self._from = end + 1
                self.at += len(line)
                return line
            if len(self._buffer) - self._from > RECORD_MAX:
                raise SourceError(f"{self.path}: at byte {self.at} a line is longer than {RECORD_MAX >> 20} MiB.")
            more = self.content(CHUNK)
            if not more:
                self.ended = True
                rest = self._buffer[self._from :]
                self._buffer, self._from = b"", 0
                self.at += len(rest)
                if not rest:
                    raise StopIteration
                return rest
            self._buffer, self._from = self._buffer[self._from :] + more, 0

    def push_back(self, data: bytes) -> None:
        self._buffer, self._from = data + self._buffer[self._from :], 0
        self.at -= len(data)

    def sizes(self) -> tuple[int, int]:
        """Bytes read, of how many; of a compressed file its compressed bytes."""
        return self._raw.tell() if self._file is not self._raw else self.at, os.fstat(self._raw.fileno()).st_size

    def close(self) -> None:
        self._file.close()
        self._raw.close()


def prints_of(path: str, end: int) -> tuple[int, str, str] | None:
    """Of a file's first `end` bytes of content: how many of its head are compared, their sha256 and that of its tail;
    None when there are fewer."""
    try:
        with contextlib.closing(Source(path)) as file:
            head = b""
            while len(head) < min(HEAD, end) and (got := file.content(min(HEAD, end) - len(head))):
                head += got
        with contextlib.closing(Source(path, max(0, end - TAIL))) as file:
            tail = b""
            while len(tail) < min(TAIL, end) and (got := file.content(min(TAIL, end) - len(tail))):
                tail += got
    except (OSError, Unfinished, SourceError):
        return None
    if len(head) < min(HEAD, end) or len(tail) < min(TAIL, end):
        return None
    return len(head), hashlib.sha256(head).hexdigest(), hashlib.sha256(tail).hexdigest()


def matches(path: str, known: FileAt) -> bool:
    """Whether this file begins with what was read of `known`. False also when it is shorter."""
    return prints_of(path, known.at) == (known.head, known.sha, known.tail)


class LinesFile:
    """Records of one file, portion by portion."""

    def __init__(
        self, source: Files, path: str, relative: str, known: FileAt | None, coder: Coder, follow: bool
    ) -> None:
        self.path, self._relative, self._coder, self._follow = path, relative, coder, follow
        self._format = source.format_of(path)
        self._delimiter = source.delimiter_of(path)
        self._known = known
        self._header: list[str] | None = None
        self._stop: SourceError | None = None
        self._unfinished: Unfinished | None = None
        self._row = known.row if known is not None else 0
        self._head, self._tail = b"", b""
        start = known.at if known is not None else 0
        if start:
            with contextlib.closing(Source(path)) as file:
                while len(self._head) < min(HEAD, start) and (got := file.content(min(HEAD, start) - len(self._head))):
                    self._head += got
            if self._format == "csv":
                with contextlib.closing(Source(path)) as self._lines:
                    self._set_header((self._record() or b"").removeprefix(BOM).rstrip(b"\r\n"))
                self._row = known.row if known is not None else 0
        self._lines = Source(path, max(0, start - TAIL))
        while len(self._tail) < min(TAIL, start) and (got := self._lines.content(min(TAIL, start) - len(self._tail))):
            self._tail += got
        self._lines.at = start
        if known is not None and known.open:
            self._after_open_end(known)

    def _taken(self, data: bytes) -> None:
        self._head += data[: HEAD - len(self._head)]
        self._tail = (self._tail + data[-TAIL:])[-TAIL:]

    def _after_open_end(self, known: FileAt) -> None:
        """A last line that had no end was taken as it was. What comes now must begin another line."""
        try:
            line = next(self._lines)
        except StopIteration:
            return
        if line not in (b"\n", b"\r\n"):
            raise SourceDiverged(
                f"{self.path}: it went on in its last line, line {known.row}, which had no end when it was taken as a "
                f"whole record (byte {known.at}). Put an end of line there, or read files that grow with --follow."
            )
        self._taken(line)

    # --- reading ---

    def read(self, records_max: int) -> tuple[list[SourceRow], FileAt | None]:
        """What follows and the position behind it; None when nothing was added. Raises Unfinished, when nothing
        whole follows, and SourceError for a row that is none, where that is to stop it."""
        if (why := self._stop or self._unfinished) is not None:
            raise why
        rows: list[SourceRow] = []
        begun, size, whole, open_end = self._lines.at, 0, False, False
        while len(rows) < records_max and size < PORTION_BYTES:
            at, row = self._lines.at, self._row
            try:
                raw = self._record()
            except Unfinished as why:
                self._lines.at, self._row, self._unfinished = at, row, why
                if rows:
                    break  # told by the next read
                raise
            if raw is None:
                whole = True
                break
            if not self._ended(raw):
                if self._follow:
                    self._lines.push_back(raw)
                    self._row = row
                    break
                open_end = whole = True
            size += len(raw)
            made = self._row_of(raw, row + 1)
            if made is not None and made.refused and self._coder.stops:
                self._stop = SourceError(
                    f"{made.place}: {made.refused}: {excerpt(made.value or b'')}\nNeither it nor what follows was "
                    "read. Mend it in the file and start again, or say Topic(…, on_error='dead-letter')."
                )
                if not rows:
                    raise self._stop
                self._lines.push_back(raw)
                self._row = row
                assert self._lines.at == at
                whole = False
                break
            self._taken(raw)
            if made is not None:
                rows.append(made)
            if open_end:
                break
        moved = self._lines.at != begun or (whole and not (self._known is not None and self._known.whole))
        if not moved:
            return rows, None
        self._known = FileAt(
            self._relative, len(self._head), hashlib.sha256(self._head).hexdigest(), self._lines.at,
            hashlib.sha256(self._tail).hexdigest(), self._row, open_end, whole, self._lines.inode,
        )  # fmt: skip
        return rows, self._known

    def _record(self) -> bytes | None:
        """The next record's bytes: a line; of CSV as many as an open quote spans."""
        line = next(self._lines, None)
        if line is None:
            return None
        self._row += 1
        if self._format == "csv":
            while not self._ended(line) and line.endswith(b"\n") and (more := next(self._lines, None)) is not None:
                line += more
                self._row += 1
                if len(line) > RECORD_MAX:
                    raise SourceError(f"{self.path} line {self._row}: a quote was opened far above and is not closed.")
        return line

    def _ended(self, record: bytes) -> bool:
        return record.endswith(b"\n") and not (self._format == "csv" and record.count(b'"') % 2)

    def _row_of(self, raw: bytes, number: int) -> SourceRow | None:
        """None: no record (an empty line, the header)."""
        line = raw.rstrip(b"\r\n")
        place = f"{self._relative} line {number}"
        if self._lines.at == len(raw):
            line = line.removeprefix(BOM)
        try:
            if self._format == "lines":
                row: object = line.decode() if self._coder.of_str else line
            elif not line.strip():
                return None
            elif self._format == "jsonl":
                row = msgspec.json.decode(line)
            elif self._header is None:
                self._set_header(line)
                return None
            else:
                cells = self._cells(line)
                if len(cells) != len(self._header):
                    raise Refused(f"{len(cells)} cells, the header has {len(self._header)}")
                row = dict(zip(self._header, cells, strict=True))
            key, value = self._coder.record(row)
        except (Refused, msgspec.MsgspecError, UnicodeDecodeError, csv.Error) as why:
            return SourceRow(place, None, line, str(why))
        return SourceRow(place, key, value)

    def _cells(self, line: bytes) -> list[str]:
        return next(csv.reader([line.decode()], delimiter=self._delimiter, strict=True), [])

    def _set_header(self, line: bytes) -> None:
        try:
            names = self._cells(line)
        except (UnicodeDecodeError, csv.Error) as why:
            raise SourceError(f"{self.path}: its first line is no header of CSV: {why}.") from None
        if len(set(names)) != len(names) or not all(names):
            raise SourceError(f"{self.path}: the header has empty or equal names: {', '.join(names)}.")
        self._header = names

    def sizes(self) -> tuple[int, int]:
        return self._lines.sizes()

    def close(self) -> None:
        self._lines.close()


def _shrunk(path: str, at: int, size: int) -> str:
    return (
        f"{path} was read up to byte {at} of its content, and has {size} now: it was cut off or replaced. Nothing "
        "more is read. Put the former file back, or give the new one another name."
    )
