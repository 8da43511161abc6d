"""One Parquet file, read from a row in it.

Invariant: a Parquet file is written once: its end (where its schema and its row groups are told) and its size identify
it, and one whose end is not there yet is not read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from semel.source_ports import SourceRow
from semel.sources.files import Files
from semel.sources.files_lines import FileAt, Unfinished
from semel.sources.source import Coder, Refused, SourceError, excerpt, shown

FOOT = 64 << 10


def print_of(path: str) -> tuple[int, str]:
    """Size in bytes, and the sha256 of the end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - FOOT))
        return size, hashlib.sha256(file.read()).hexdigest()


def matches(path: str, known: FileAt) -> bool:
    try:
        return print_of(path) == (known.head, known.sha)
    except OSError:
        return False


class ParquetFile:
    """Records of one file, portion by portion; as `LinesFile`, where `at` counts rows."""

    def __init__(
        self, source: Files, path: str, relative: str, known: FileAt | None, coder: Coder, follow: bool
    ) -> None:
        self._relative, self._coder, self._known = relative, coder, known
        self._size, self._sha = print_of(path)
        self._inode = os.stat(path).st_ino
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowInvalid, OSError) as why:
            raise Unfinished(f"{path} is no whole Parquet file ({str(why).splitlines()[0]})") from None
        self._row = known.at if known is not None else 0
        self._rows: Iterator[Any] | None = None
        self._stop: SourceError | None = None

    def read(self, records_max: int) -> tuple[list[SourceRow], FileAt | None]:
        if self._stop is not None:
            raise self._stop
        total = self._file.metadata.num_rows
        if self._row >= total and self._known is not None and self._known.whole:
            return [], None
        self._rows = self._rows or self._from(self._row)
        rows: list[SourceRow] = []
        while len(rows) < records_max and self._row < total:
            made = self._row_of(next(self._rows))
            if made.refused and self._coder.stops:
                self._stop = SourceError(
                    f"{made.place}: {made.refused}: {excerpt(made.value or b'')}\nNeither it nor what follows was "
                    "read. Say Topic(…, on_error='dead-letter') to go on without such rows."
                )
                if not rows:
                    raise self._stop
                break
            self._row += 1
            rows.append(made)
        self._known = FileAt(self._relative, self._size, self._sha, self._row, row=self._row, whole=self._row >= total,
                             inode=self._inode)  # fmt: skip
        return rows, self._known

    def _from(self, row: int) -> Iterator[Any]:
        """Rows from this one on; row groups before it are not read."""
        first = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if first + size > row:
                at = first
                for batch in self._file.iter_batches(row_groups=[group], batch_size=4_096):
                    if at + batch.num_rows > row:
                        yield from batch.slice(max(0, row - at)).to_pylist()
                    at += batch.num_rows
            first += size

    def _row_of(self, row: Any) -> SourceRow:
        place = f"{self._relative} row {self._row + 1}"
        try:
            key, value = self._coder.record(row)
        except Refused as why:
            return SourceRow(place, None, shown(row), str(why))
        return SourceRow(place, key, value)

    def sizes(self) -> tuple[int, int]:
        return self._size * self._row // max(1, self._file.metadata.num_rows), self._size

    def close(self) -> None:
        self._file.close()
