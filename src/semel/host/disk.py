"""The real disk: ports.Disk on a folder of the operating system.

Invariant: `append` either has handed every byte to the system or raises; `sync` returns only when the system says
that what was appended before is on the medium. Nothing is retried here: after a failed write or sync the pages may be
gone though they still read well (fsyncgate), so the caller must end and let recovery decide. `sim/disk.py` is its twin.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from semel.ports import Buffer

_PARTS_MAX: Final = 1024  # IOV_MAX on Linux and macOS
_FULL_SYNC: Final = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
_data_sync: Final = getattr(os, "fdatasync", os.fsync)


class File:
    """One append-only file. Reading and `sync` are safe beside appends from another thread."""

    __slots__ = ("_fd", "_size", "path")

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._fd).st_size

    def append(self, parts: Sequence[Buffer]) -> int:
        total = 0
        for part in parts:
            total += len(part)
        if len(parts) > _PARTS_MAX:
            for start in range(0, len(parts), _PARTS_MAX):
                self.append(parts[start : start + _PARTS_MAX])
            return self._size
        try:
            written = os.pwritev(self._fd, parts, self._size) if total else 0
            if written != total:
                # A signal, a limit or a nearly full disk cut the write short; the next one says which.
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    more = os.pwrite(self._fd, rest, self._size + written)
                    written += more
                    rest = rest[more:]
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._size += total
        return self._size

    def read(self, position: int, size: int) -> bytes:
        data = os.pread(self._fd, size, position)
        if len(data) == size or not data:
            return data
        # Short: the end of the file, or more than the system hands over at once (2 GiB).
        parts = [data]
        done = len(data)
        while done < size and (data := os.pread(self._fd, size - done, position + done)):
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def size(self) -> int:
        return self._size

    def sync(self) -> None:
        try:
            if _FULL_SYNC is not None:
                fcntl.fcntl(self._fd, _FULL_SYNC)
            else:
                _data_sync(self._fd)
        except OSError as error:
            error.filename = str(self.path)
            raise

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self._size = size

    def close(self) -> None:
        """A file dropped without it is closed when its last user (a thread that syncs) is gone."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


class Disk:
    """A folder. `root` is created when it is not there."""

    __slots__ = ("root",)

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        # Every partition holds a file open; the usual soft limit of 1024 is meant for programs using select().
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def open(self, path: str) -> File:
        return File(self.root / path)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, path: str) -> None:
        """A file, or a folder that is empty."""
        try:
            os.unlink(self.root / path)
        except IsADirectoryError:
            os.rmdir(self.root / path)
        except PermissionError:
            # macOS answers so for a folder.
            os.rmdir(self.root / path)

    def rename(self, old: str, new: str) -> None:
        os.replace(self.root / old, self.root / new)

    def sync_folder(self, folder: str) -> None:
        fd = os.open(self.root / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
