"""What is durable: one journal as the truth, segments as its projection, and what partitions know of producers.

Start, in this order:

    folder = Folder.open(disk)                  # FolderError: another format
    journal = Journal.open(folder.disk)         # partitions too are opened on folder.disk: it holds the reserve
    for entry in journal.replay(): apply(entry.meta, entry.payload, entry.position)     # to the end: then all is synced
    for partition in partitions: partition.durable(journal.synced)
    append what recovery itself has to say (a new run, markers of prepared transactions), write, sync
    folder.recovered()                          # only now: it takes what space is left. 0: the disk is full

Running: `append` and `Partition.apply` per record; once per round `Partition.flush` of those touched, then `write`;
`sync` in any one thread, `durable` with what it returned. A replayed checkpoint record calls
`Partition.restore(folder.disk, snapshot)`.

Checkpoint, when `journal.bytes_since_checkpoint` is large:

    wait until no other thread is in `sync` or `sync_ahead`
    for partition in partitions: partition.sync()       # short, if `sync_ahead` ran in the syncing thread before
    journal.checkpoint([(meta, b""), ...])              # broker records, and Partition.checkpoint() for each partition
    journal.drop_before(journal.checkpoint_position)
    for partition in partitions: partition.durable(journal.synced); partition.sweep()
    folder.sweep((partition.topic_id, partition.index) for partition in partitions)     # deleted topics' files go

Files of a deleted topic are left alone until that sweep: until a checkpoint, a crash may bring the topic back.
"""

from __future__ import annotations

from .errors import CorruptJournal, CorruptSegment, FolderError, JournalFailed
from .folder import Folder
from .journal import Entry, Journal
from .partition import Partition, Read
from .producers import Accept, Conflict, Duplicate, Fenced, NotInTransaction, OutOfOrder, Verdict
from .size import SizeWatch
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
    "SizeWatch",
    "Verdict",
]
