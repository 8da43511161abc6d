"""How much disk a log takes, and when to say so: nothing is deleted by age or size yet, so a person must hear of it.

Invariant: a folder is mentioned at most once per doubling of its size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .journal import Journal
from .partition import Partition

WARN_BYTES: Final = 10 << 30


class SizeWatch:
    """Ask it now and then, say at each checkpoint: `warning` returns a line to print, or None."""

    def __init__(self, warn_bytes: int = WARN_BYTES) -> None:
        self.next_bytes = warn_bytes

    def warning(self, where: str, journal: Journal, partitions: Iterable[Partition]) -> str | None:
        segments = sum(partition.size for partition in partitions)
        size = segments + journal.size
        if size < self.next_bytes:
            return None
        while self.next_bytes <= size:
            self.next_bytes *= 2
        return (
            f"{where} holds {_readable(size)} ({_readable(segments)} in segments, {_readable(journal.size)} in the "
            f"journal). Retention is not implemented yet: delete topics or records that nobody needs, or make room. "
            f"The next notice comes at {_readable(self.next_bytes)}."
        )


def _readable(size: int) -> str:
    for shift, unit in ((40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")):
        if size >> shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} bytes"
