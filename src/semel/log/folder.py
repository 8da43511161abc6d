"""The data folder: its format, and the space it keeps back for the day the disk is full.

Invariant: a folder of another format is never touched. Recovery needs no more new space than the reserve holds: the
reserve is a file of real zeros, given back when a write fails with ENOSPC while recovering, and made again afterwards
as large as fits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Final

from semel.ports import Buffer, Disk, File

from .errors import FolderError
from .partition import FOLDER as PARTITIONS
from .partition import folder_name

FORMAT: Final = 1
_FORMAT: Final = "format"
_RESERVE: Final = "reserve"
_UNFINISHED: Final = ".new"
RESERVE_BYTES: Final = 8 << 20
_RESERVE_BYTES_MIN: Final = 256 << 10
_ZEROS: Final = bytes(256 << 10)


class Folder:
    """`disk` is what journal and partitions are to be opened on: it gives up the reserve when recovery needs it."""

    def __init__(self, disk: Disk, reserve_bytes: int) -> None:
        self._real = disk
        self._reserve_bytes = reserve_bytes
        self.recovering = True
        self.released = False  # the disk was full while recovering
        self.disk: Disk = _Reserving(disk, self)

    @staticmethod
    def open(disk: Disk, *, reserve_bytes: int = RESERVE_BYTES) -> Folder:
        """Checks the format, or makes a new folder. FolderError for another version or somebody else's folder."""
        if disk.exists(_FORMAT):
            found = disk.open(_FORMAT).read(0, 100).decode("utf-8", "replace").strip()
            if found != _format_line():
                raise FolderError(
                    f"the data folder has format {found!r}, this semel reads {_format_line()!r}. Use the semel that "
                    f"wrote it, or another folder."
                )
        else:
            for name in ("journal", PARTITIONS):
                if disk.exists(name):
                    raise FolderError(
                        f"the data folder holds {name}/ but no file named {_FORMAT}: it is damaged, or not semel's. "
                        f"Restore that file from a backup, or use another folder."
                    )
            file = disk.open(_FORMAT + _UNFINISHED)
            file.truncate(0)
            file.append([_format_line().encode() + b"\n"])
            file.sync()
            file.close()
            disk.rename(_FORMAT + _UNFINISHED, _FORMAT)
            disk.sync_folder("")
        if disk.exists(_RESERVE + _UNFINISHED):
            disk.remove(_RESERVE + _UNFINISHED)
        return Folder(disk, reserve_bytes)

    def release(self) -> bool:
        """Gives the reserve back to the disk; False when there is none."""
        if not self._real.exists(_RESERVE):
            return False
        self._real.remove(_RESERVE)
        self._real.sync_folder("")
        self.released = True
        return True

    def recovered(self) -> int:
        """Recovery is over: from now on a full disk is an error. Makes the reserve again, as large as fits; returns
        its bytes (0: the disk is full)."""
        self.recovering = False
        if self._real.exists(_RESERVE):
            size = self._real.open(_RESERVE).size()
            if size >= min(_RESERVE_BYTES_MIN, self._reserve_bytes):
                return size
        size = self._reserve_bytes
        while size > 0:
            if self._make_reserve(size):
                return size
            size = size // 2 if size >= 2 * _RESERVE_BYTES_MIN else 0
        return 0

    def _make_reserve(self, size: int) -> bool:
        name = _RESERVE + _UNFINISHED
        file = self._real.open(name)
        try:
            file.truncate(0)
            for start in range(0, size, len(_ZEROS)):
                file.append([_ZEROS[: size - start]])
            file.sync()
            file.close()
            self._real.rename(name, _RESERVE)
            self._real.sync_folder("")
        except OSError as error:
            if not full(error):
                raise
            file.close()
            self._real.remove(name)
            return False
        return True

    def sweep(self, live: Iterable[tuple[str, int]]) -> None:
        """Removes the files of every partition that is not among `live` (topic id, index). Only after a checkpoint
        that does not know them: until then a crash may bring a deleted topic back."""
        kept = {folder_name(topic_id, index) for topic_id, index in live}
        gone = [name for name in self._real.list(PARTITIONS) if name not in kept]
        for name in gone:
            for file in self._real.list(f"{PARTITIONS}/{name}"):
                self._real.remove(f"{PARTITIONS}/{name}/{file}")
            self._real.remove(f"{PARTITIONS}/{name}")
        if gone:
            self._real.sync_folder(PARTITIONS)


def full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _format_line() -> str:
    return f"semel log, format {FORMAT}"


class _Reserving:
    """The disk, with the reserve behind it: a write that finds it full while recovering is tried once more."""

    __slots__ = ("_disk", "_folder")

    def __init__(self, disk: Disk, folder: Folder) -> None:
        self._disk = disk
        self._folder = folder

    def open(self, path: str) -> File:
        if not self._folder.recovering:
            return self._disk.open(path)
        try:
            return _ReservingFile(self._disk.open(path), self._folder)
        except OSError as error:
            if full(error) and self._folder.release():
                return _ReservingFile(self._disk.open(path), self._folder)
            raise

    def exists(self, path: str) -> bool:
        return self._disk.exists(path)

    def list(self, folder: str) -> list[str]:
        return self._disk.list(folder)

    def remove(self, path: str) -> None:
        self._disk.remove(path)

    def rename(self, old: str, new: str) -> None:
        self._disk.rename(old, new)

    def sync_folder(self, folder: str) -> None:
        self._disk.sync_folder(folder)


class _ReservingFile:
    __slots__ = ("_file", "_folder")

    def __init__(self, file: File, folder: Folder) -> None:
        self._file = file
        self._folder = folder

    def append(self, parts: Sequence[Buffer]) -> int:
        if not self._folder.recovering:
            return self._file.append(parts)
        size = self._file.size()
        try:
            return self._file.append(parts)
        except OSError as error:
            if not (full(error) and self._folder.release()):
                raise
            # What the failed write left behind is cut off before it is tried again.
            self._file.truncate(size)
            return self._file.append(parts)

    def read(self, position: int, size: int) -> bytes:
        return self._file.read(position, size)

    def size(self) -> int:
        return self._file.size()

    def sync(self) -> None:
        self._file.sync()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def close(self) -> None:
        self._file.close()
