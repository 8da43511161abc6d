"""The files of one source, in the order of their names: which are there, which of them are known, what follows.

Invariant: a file is known by what was read of it, not by its name: one that was renamed (or renamed and compressed)
goes on where it was; one that is not what was read under its name stops the ingest before anything of it is taken.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from semel.ports import Done, NotDone
from semel.source_ports import Portion
from semel.sources import files_lines
from semel.sources.files import Files, parquet_missing
from semel.sources.files_lines import FileAt, LinesFile, Unfinished
from semel.sources.source import Coder, SourceDiverged, SourceError

Looked = tuple[int, int, int, int]  # device, inode, size, modified


class FilesConnection:
    def __init__(self, source: Files, topic: Any, follow: bool) -> None:
        self._source, self._topic, self._follow = source, topic, follow
        self._known: dict[str, FileAt] = {}  # source partition -> position
        self._names: dict[str, str] = {}  # path -> source partition
        self._looked: dict[str, Looked] = {}  # as it was when it was compared, or read to its end
        self._done: set[str] = set()  # paths with nothing to read since
        self._file: LinesFile | Any = None
        self._path = ""
        self._coders: dict[bool, Coder] = {}
        self._unfinished: dict[str, str] = {}

    def claim(self, positions: Mapping[str, bytes]) -> Done | NotDone:
        self._known = {name: msgspec.json.decode(at, type=FileAt) for name, at in positions.items()}
        self._look()
        return Done()

    # --- which files there are ---

    def _paths(self) -> list[str]:
        """Relative to the source's folder, sorted."""
        pattern = self._source.pattern
        if os.path.isdir(pattern):
            pattern = os.path.join(pattern, "*")
        elif not glob.has_magic(pattern) and not os.path.exists(pattern) and not self._follow and not self._known:
            raise SourceError(f"{pattern}: there is no such file or folder. Mend Files(…), or start from its folder.")
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        return sorted(os.path.relpath(path, self._base()) for path in found)

    def _base(self) -> str:
        pattern = self._source.pattern
        return pattern if os.path.isdir(pattern) else self._source.base or "."

    def _full(self, relative: str) -> str:
        return os.path.normpath(os.path.join(self._base(), relative))

    def _look(self) -> None:
        """Says of every file which known one it is, if any. Raises SourceDiverged for one that is not what was read
        under its name, and for one that is gone before it was read to its end."""
        there: dict[str, Looked] = {}
        for path in self._paths():
            if (looked := self._stat(path)) is not None:
                there[path] = looked
        by_path: dict[str, list[str]] = {}  # several, where one has got the name of another one that is gone
        for name, at in self._known.items():
            by_path.setdefault(at.path, []).append(name)
        names: dict[str, str] = {}
        strangers: list[str] = []
        for path, looked in there.items():
            may_be, unchanged = by_path.get(path, []), looked == self._looked.get(path)
            if unchanged and self._names.get(path) in may_be:
                names[path] = self._names[path]
                continue
            found = next((name for name in may_be if self._same(path, self._known[name])), None)
            if found is None:
                strangers.append(path)
                continue
            names[path] = found
            if not unchanged:
                self._done.discard(path)
                self._looked[path] = looked
        lost = [name for name in self._known if name not in names.values()]
        # All that are under other names first: rotated, one has the name of another one that is gone.
        unfound = [name for name in lost if not self._find(name, strangers, names, there)]
        for name in unfound:
            self._check_gone(self._known[name], strangers)
        for path in strangers:
            if path not in self._looked or self._looked[path] != there[path]:
                self._done.discard(path)
                self._looked[path] = there[path]
            if self._names.get(path) in lost:
                self._done.discard(path)
        self._names = names

    def _find(self, name: str, strangers: list[str], names: dict[str, str], there: Mapping[str, Looked]) -> bool:
        """Whether a known file that is not under its name is under another one."""
        known = self._known[name]
        for path in strangers:
            # Few bytes can be alike in files that have nothing to do with each other: then the inode must be, too.
            if (known.at >= files_lines.HEAD or known.inode == there[path][1]) and known.at and self._same(path, known):
                strangers.remove(path)
                names[path] = name
                self._known[name] = msgspec.structs.replace(known, path=path)
                self._looked[path] = there[path]
                self._done.discard(path)
                return True
        return False

    def _check_gone(self, known: FileAt, strangers: Sequence[str]) -> None:
        if known.path in strangers:
            raise SourceDiverged(
                f"{self._full(known.path)} is not the file that was read under this name up to {_place(known)}: it was "
                "replaced, cut off or changed, and where it goes on cannot be told. Nothing of it was read. Put the "
                "former one back, or give the new one another name."
            )
        if not known.whole:
            raise SourceDiverged(
                f"{self._full(known.path)} is gone, and was read up to {_place(known)}, not to its end. Put it back (a "
                "renamed one is found again as long as it fits the pattern), or put a file with what was read there."
            )

    def _stat(self, path: str) -> Looked | None:
        try:
            found = os.stat(self._full(path))
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _same(self, path: str, known: FileAt) -> bool:
        return self._matcher(path)(self._full(path), known)

    def _matcher(self, path: str) -> Callable[[str, FileAt], bool]:
        if self._source.format_of(path) == "parquet":
            return self._parquet().matches  # type: ignore[no-any-return]
        return files_lines.matches

    def _parquet(self) -> Any:
        try:
            from semel.sources import files_parquet
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] != "pyarrow":
                raise
            raise parquet_missing(self._source.where) from None
        return files_parquet

    # --- reading ---

    def read(self, records_max: int) -> Portion | NotDone:
        self._unfinished.clear()
        if self._file is None:
            self._look()
        while self._file is not None or self._next():
            try:
                rows, at = self._file.read(records_max)
            except Unfinished as why:
                self._unfinished[self._path] = str(why)
                rows, at = [], None
            if at is None:
                self._leave()
                continue
            self._known[self._name] = at
            self._names[at.path] = self._name
            return Portion(rows, {self._name: msgspec.json.encode(at)})
        return Portion()

    def _next(self) -> bool:
        """Opens the first file with something to read."""
        for path in sorted(self._looked):
            if path in self._done or self._stat(path) is None:
                continue
            name = self._names.get(path)
            known = self._known[name] if name is not None else None
            format = self._source.format_of(path)
            text = format == "csv"
            if text not in self._coders:
                self._coders[text] = Coder(self._topic, self._source.key, text=text)
            kind: Any = self._parquet().ParquetFile if format == "parquet" else LinesFile
            try:
                self._file = kind(self._source, self._full(path), path, known, self._coders[text], self._follow)
            except Unfinished as why:
                self._unfinished[path] = str(why)
                self._done.add(path)
                continue
            except OSError as why:
                raise SourceError(f"{self._full(path)} cannot be read: {why.strerror}.") from None
            self._path = path
            # The first name of a file and its inode now: a second file may get the name when this one is renamed.
            self._name = name or f"{path}#{self._looked[path][1]:x}.{self._looked[path][3]:x}"
            return True
        return False

    def _leave(self) -> None:
        """Nothing more in this file for now."""
        self._file.close()
        self._file = None
        self._done.add(self._path)

    def committed(self) -> None: ...

    def exhausted(self) -> bool:
        if self._unfinished and not self._follow:
            path, why = next(iter(self._unfinished.items()))
            raise SourceError(f"{why}. What is before that was read, {self._full(path)} is not whole. Mend it.")
        return True

    def progress(self) -> str:
        read = total = 0
        for path in sorted(self._looked):
            size = self._looked[path][2]
            total += size
            read += size if path in self._done else self._file.sizes()[0] if path == self._path and self._file else 0
        done = len(self._done & self._looked.keys())
        return f"{done} of {len(self._looked)} files, {read / 1e6:,.1f} of {total / 1e6:,.1f} MB" if total else ""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _place(known: FileAt) -> str:
    return f"line {known.row} (byte {known.at})" if known.tail else f"row {known.row}"
