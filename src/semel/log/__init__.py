"""What is durable: one journal as the truth, segments as its projection, and what partitions know of producers."""

from __future__ import annotations

from .errors import CorruptJournal, CorruptSegment, FolderError, JournalFailed
from .folder import Folder
from .journal import Entry, Journal
from .partition import Partition, Read
from .producers import Accept, Conflict, Duplicate, Fenced, NotInTransaction, OutOfOrder, Verdict
from .snapshot import PartitionSnapshot

__all__ = [
    "Accept",
    "Conflict",
    "CorruptJournal",
    "CorruptSegment",
    "Duplicate",
    "Entry",
    "Fenced",
    "Folder",
    "FolderError",
    "Journal",
    "JournalFailed",
    "NotInTransaction",
    "OutOfOrder",
    "Partition",
    "PartitionSnapshot",
    "Read",
    "Verdict",
]
