"""Files as a source, declared: `Files("in/*.csv", key="id")`. Nothing is opened here: `files_reading.py` does that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from semel.contract import Guarantee, RecordIdentity, Replay, SourceContract, SourceFence, SourcePosition
from semel.errors import UsageError
from semel.source_ports import SourceConnection, SourceTrial
from semel.sources.source import SourceError, key_complaint, key_fields

Format = Literal["csv", "jsonl", "parquet", "lines"]
FORMATS = ("csv", "jsonl", "parquet", "lines")
SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
    ".txt": "lines", ".log": "lines",
}  # fmt: skip

CONTRACT = SourceContract(
    name="Files",
    guarantee=Guarantee.EXACTLY_ONCE,
    identity=RecordIdentity.BYTE_OFFSET,
    replay=Replay.UNCHANGED,
    position=SourcePosition.WITH_RECORDS,
    fence=SourceFence.TRANSACTIONAL_ID,
    boundary="what is changed in the middle of what was read is not noticed (the first 4 KiB and the last 256 bytes "
    "are compared); a copy of a file under another name is another file",
)


@dataclass(frozen=True, init=False)
class Files:
    """A file, a folder or a pattern (`*`, `?`, `**`): CSV with a header, JSON lines, Parquet or lines of text, also
    compressed (`.gz`), told by its name or by `format`.

    `key`: the field or fields that make the records' keys (none: records have no key and are spread). `delimiter`: of
    CSV; by default a comma, a tab in `.tsv`.
    """

    pattern: str
    key: tuple[str, ...]
    format: Format | None
    delimiter: str | None

    def __init__(
        self,
        pattern: str,
        *,
        key: str | Sequence[str] | None = None,
        format: Format | None = None,
        delimiter: str | None = None,
    ) -> None:
        if not pattern:
            raise SourceError("Files: a file, a folder or a pattern is wanted.")
        if format is not None and format not in FORMATS:
            raise SourceError(f"Files {pattern}: format={format!r}; it is one of {', '.join(FORMATS)}.")
        if delimiter is not None and len(delimiter) != 1:
            raise SourceError(f"Files {pattern}: delimiter={delimiter!r}; one character.")
        for name, value in (("pattern", pattern), ("key", key_fields(key)), ("format", format)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "delimiter", delimiter)

    @property
    def where(self) -> str:
        return f"files {self.pattern}"

    @property
    def contract(self) -> SourceContract:
        return CONTRACT

    @property
    def ordered(self) -> bool:
        return True

    @property
    def transaction_ms(self) -> int:
        return 10_000

    @property
    def lanes(self) -> int:
        # One: a file that was renamed is known by its content, which only who knows all positions can compare.
        return 1

    def complaint(self, key: Any, value: Any) -> str:
        if self.format == "lines" and value not in (str, bytes):
            return f"{self.where}: lines of text are values of str or bytes."
        if self.format not in (None, "lines") and value in (str, bytes):
            return f"{self.where}: rows of {self.format} have fields; the topic's value must be a type with fields."
        return key_complaint(self.where, self.key, key, value)

    @property
    def base(self) -> str:
        """The folder above the first part with a wildcard (above the file's name); "" is the current one."""
        head = re.split(r"[*?\[]", self.pattern, maxsplit=1)[0]
        return head.rpartition("/")[0] or ("/" if head.startswith("/") else "")

    def renamed(self, suffix: str) -> Files:
        rest = self.pattern[len(self.base) :].lstrip("/")
        folder = "-".join(filter(None, (self.base.rstrip("/"), suffix.strip("."))))
        return Files(f"{folder}/{rest}", key=self.key, format=self.format, delimiter=self.delimiter)

    def format_of(self, path: str) -> Format:
        if self.format is not None:
            return self.format
        name = path.removesuffix(".gz").lower()
        found = SUFFIXES.get("." + name.rpartition(".")[2])
        if found is None:
            raise SourceError(
                f"{path}: what is in it cannot be told from its name ({', '.join(SUFFIXES)}, each with .gz, too). "
                "Say it: Files(…, format=…)."
            )
        return found  # type: ignore[return-value]

    def delimiter_of(self, path: str) -> str:
        return self.delimiter or ("\t" if path.removesuffix(".gz").lower().endswith(".tsv") else ",")

    def open(self, topic: Any, lane: int, follow: bool) -> SourceConnection:
        from semel.sources.files_reading import FilesConnection

        return FilesConnection(self, topic, follow)

    def trial(self, topic: Any) -> SourceTrial:
        from semel.sources.files_trial import FilesTrial

        return FilesTrial(self, topic)

    def __repr__(self) -> str:
        return f"<{self.where}>"


def parquet_missing(where: str) -> UsageError:
    return UsageError(f"{where} needs pyarrow: pip install 'semel[parquet]'")
