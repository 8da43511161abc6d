"""What one step decides, while it is being decided: records in order, and where each batch will stand.

Handlers change nothing, so a step that appends several batches to one partition must know where the next one goes:
the draft does. Invariant: base offsets in a draft are those that `apply` will meet.
"""

from __future__ import annotations

from semel.broker.events import Ready, Reply
from semel.broker.records import Append, PartitionKey, Record
from semel.broker.state import State
from semel.log.partition import Partition
from semel.ports import Buffer
from semel.record.batch import headers_only, placed


class Draft:
    __slots__ = ("ends", "records", "replies", "run", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.run = state.run
        self.records: list[tuple[Record, Buffer]] = []
        self.replies: list[Reply] = []
        self.ends: dict[PartitionKey, int] = {}

    def add(self, record: Record) -> None:
        self.records.append((record, b""))

    def end(self, key: PartitionKey, partition: Partition) -> int:
        """The offset that the next batch of this partition gets."""
        return self.ends.get(key, partition.end_offset)

    def append(self, key: PartitionKey, partition: Partition, data: Buffer, offsets: int) -> int:
        """Appends a batch that covers so many offsets; returns its base offset."""
        base_offset = self.ends.get(key)
        if base_offset is None:
            base_offset = partition.end_offset
        self.ends[key] = base_offset + offsets
        self.records.append((Append(key[0], key[1], base_offset), placed(data, base_offset, self.run)))
        return base_offset

    def append_own(self, key: PartitionKey, partition: Partition, data: bytes) -> int:
        """The same for a batch that this broker has made."""
        return self.append(key, partition, data, headers_only(data).last_offset_delta + 1)

    def ready(self) -> Ready:
        return Ready(self.records, self.replies)
