"""One process per data folder: an advisory lock that the system releases with the process, however it ends.

Invariant: between `FolderLock.take` and `release` no other process that asks has the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from semel.errors import SemelError

NAME = "lock"
HOLDER_BYTES = 20


class FolderTaken(SemelError):
    """Another process, or another part of this one, has the folder open."""


class FolderLock:
    def __init__(self, descriptor: int, folder: Path) -> None:
        self._descriptor = descriptor
        self.folder = folder

    @staticmethod
    def take(folder: Path) -> FolderLock:
        """Takes the folder, or FolderTaken with the pid of who has it. The folder must exist."""
        path = folder / NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SemelError(
                f"{folder}: cannot be opened for writing ({error.strerror}). Choose a folder that this user may write."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f" by pid {holder}" if holder else ""
            raise FolderTaken(
                f"{folder}: already open{by}. Stop that process, or use it: one folder belongs to one process. "
                "For several at a time serve the folder with `semel broker` and name it as kafka://HOST:PORT."
            ) from None
        lock = FolderLock(descriptor, folder)
        lock._say(str(os.getpid()))
        return lock

    def release(self) -> None:
        """Gives the folder back; a second call does nothing. The file stays: removing it would race with a taker."""
        if self._descriptor >= 0:
            self._say("")
            os.close(self._descriptor)
            self._descriptor = -1

    def _say(self, holder: str) -> None:
        """Who has it, for the message of the next taker. Always as long, so that a full disk has its place already;
        and where there is no place the lock holds as well."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, holder.ljust(HOLDER_BYTES).encode() + b"\n", 0)
