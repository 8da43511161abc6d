"""Which process holds a database's file, as far as this machine tells (Linux: /proc/locks).

The file itself is never opened for this: closing it again would drop every lock of this process on it.
"""

from __future__ import annotations

import os
from pathlib import Path


def identity(path: str) -> tuple[int, int]:
    """Device and inode; (0, 0) when there is no such file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino


def held_by(system: str, *paths: str, readers: bool = False) -> str:
    """A sentence that names the other processes with a write lock on one of these files (`readers`: with any lock), and
    what to do; "" when none is to be seen."""
    return "; ".join(
        f"the file is held by pid {pid}{' (stopped)' if is_stopped(pid) else ''}: {system} cannot take the lock "
        f"from it. Let it go on (kill -CONT {pid}) or end it (kill -9 {pid})"
        for pid in holders(*paths, readers=readers)
    )


def holders(*paths: str, readers: bool = False) -> list[int]:
    kinds = ("READ", "WRITE") if readers else ("WRITE",)
    inodes = {str(inode) for _, inode in map(identity, paths) if inode}
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    pids = {int(f[4]) for f in fields if len(f) >= 8 and f[3] in kinds and f[5].rpartition(":")[2] in inodes}
    return sorted(pid for pid in pids if pid > 0 and pid != os.getpid())


def is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False
