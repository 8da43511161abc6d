"""A folder of files of the run's own, for `semel verify`: written while they are read, and read back by other means.

Invariant: only files of this folder, which this object has made, are written or removed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from semel.sources.files import Files, parquet_missing
from semel.sources.source import Coder, SourceError

ROWS_PER_FILE = 400


class FilesTrial:
    after_the_start = False

    def __init__(self, source: Files, topic: Any) -> None:
        self._source, self._topic = source, topic
        self._folder = Path(source.base)
        self._one = not any(sign in source.pattern for sign in "*?[")
        self._made: list[Path] = []
        self._rows = 0  # in the newest file

    def prepare(self) -> None:
        self._folder.mkdir(parents=True)  # nobody else's

    def add(self, rows: Sequence[Any]) -> int:
        if not rows:
            return 0
        rows = msgspec.to_builtins(rows) if self._format() != "parquet" else rows
        if not self._made or (not self._one and self._rows >= ROWS_PER_FILE) or self._format() == "parquet":
            self._made.append(self._new())
            self._rows = 0
        path, first = self._made[-1], self._rows == 0
        self._rows += len(rows)
        if self._format() == "parquet":
            self._write_parquet(path, rows)
            return len(rows)
        data = self._encoded(rows, first)
        if path.name.endswith(".gz"):
            data = gzip.compress(data)
        with path.open("ab") as file:
            file.write(data)
        return len(rows)

    def _format(self) -> str:
        return self._source.format_of(self._name(0))

    def _name(self, number: int) -> str:
        rest = self._source.pattern[len(self._source.base) :].lstrip("/")
        if self._one:
            if os.path.splitext(rest)[1] == "" and self._source.format is None:
                raise SourceError(f"{self._source.where}: verify fills a pattern (in/*.csv) or a file, not a folder.")
            return rest
        last = rest.rpartition("/")[2]
        for sign in "*?":
            last = last.replace(sign, f"{number:05}", 1)
            last = last.replace(sign, "")
        return last

    def _new(self) -> Path:
        if self._one and self._made:
            raise SourceError(
                f"{self._source.where}: one Parquet file cannot grow; verify it as a pattern (in/*.parquet)."
            )
        return self._folder / self._name(len(self._made) + 1)

    def _encoded(self, rows: Sequence[Any], first: bool) -> bytes:
        match self._source.format_of(self._made[-1].name):
            case "lines":
                return b"".join((r if isinstance(r, bytes) else str(r).encode()) + b"\n" for r in rows)
            case "jsonl":
                return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=self._source.delimiter_of(self._made[-1].name))
        if first:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    def _write_parquet(self, path: Path, rows: Sequence[Any]) -> None:
        try:
            import pyarrow  # type: ignore[import-untyped]
            import pyarrow.parquet  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            raise parquet_missing(self._source.where) from None
        # Whole at once under its name, as who writes Parquet does.
        hidden = path.with_name("." + path.name)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), hidden)
        hidden.rename(path)

    def rows(self) -> Sequence[tuple[bytes | None, bytes | None]]:
        found = []
        for path in self._made:
            coder = Coder(self._topic, self._source.key, text=self._format() == "csv")
            found += [coder.record(row) for row in self._read(path)]
        return found

    def _read(self, path: Path) -> list[Any]:
        if self._format() == "parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_table(path).to_pylist())
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode()
        match self._format():
            case "lines":
                lines = text.splitlines()
                return [line.encode() for line in lines] if self._topic.value_serde.type is bytes else list(lines)
            case "jsonl":
                return [json.loads(line) for line in text.splitlines()]
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=self._source.delimiter_of(path.name)))

    def drop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
