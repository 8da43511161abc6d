"""Says in the log how large the data folder has become: nothing is removed by age or size yet (retention is not there).

Invariant: a warning when the folder passes 10 GiB and each doubling after that, and one when the disk's free space
falls below a tenth of the folder or 1 GiB, whichever is more; never the same one twice in a row.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger("semel.broker")

WARN_BYTES = 10 << 30
FREE_BYTES_MIN = 1 << 30
LOOK_S = 60.0


class SizeWatch:
    def __init__(self, folder: Path, warn_bytes: int = WARN_BYTES) -> None:
        self._folder = folder
        self._warn_bytes = warn_bytes
        self._tight = False

    def look(self, free_bytes: int | None = None) -> None:
        """Looks once; blocks for as long as it takes to list the folder."""
        size = folder_bytes(self._folder)
        if size >= self._warn_bytes:
            while self._warn_bytes <= size:
                self._warn_bytes *= 2
            logger.warning(
                "%s holds %.1f GiB. Nothing is removed by age or size yet: retention is stored, not acted on. "
                "Delete topics or records that are no longer needed. The next warning comes at %.0f GiB",
                self._folder,
                size / (1 << 30),
                self._warn_bytes / (1 << 30),
            )
        if free_bytes is None:
            disk = os.statvfs(self._folder)
            free_bytes = disk.f_bavail * disk.f_frsize
        tight = free_bytes < max(FREE_BYTES_MIN, size // 10)
        if tight and not self._tight:
            logger.warning(
                "%s: only %.2f GiB are free on its disk. When it is full the broker ends before it answers; what was "
                "acknowledged stays safe. Free space there",
                self._folder,
                free_bytes / (1 << 30),
            )
        self._tight = tight


def folder_bytes(folder: Path) -> int:
    """What the files below a folder occupy; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
