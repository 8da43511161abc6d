"""Tasks on the way back to their state: committed changelog records into the store, a slice at a time, so that polling
keeps the membership alive meanwhile.

Invariant: a store's mark never says more than was read, and never reaches beyond the target: what is above it may
belong to a later history of the changelog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from semel.ports import Records, TopicPartition
from semel.streams.task import Task

BATCHES = 16  # per state and round, between two polls


@dataclass
class Restore:
    """One state on its way back."""

    state: str
    at: TopicPartition  # of the changelog
    position: int
    target: int
    records: Iterator[Records]
    restored: int = 0
    waits: int = 0

    def slice(self, task: Task, now_ms: int, notice: Callable[[str], None]) -> bool:
        """Whether it has reached its target."""
        for _ in range(BATCHES):
            records = next(self.records, None)
            if records is None:
                return True
            advanced = records.next_offset > self.position
            self.position = max(self.position, records.next_offset)
            if not records.offsets and not advanced:
                self.waits += records.undecided
                if records.undecided and self.waits == 3:
                    notice(
                        f"restore of {self.state} partition {task.id.partition} waits at offset "
                        f"{self.position} of {self.at.topic} (target {self.target}): a transaction of a "
                        "former owner is open; it ends at its transaction timeout, 10 s for workers of semel"
                    )
                return False
            self.waits = 0
            if not records.offsets:
                continue
            reached = min(records.next_offset, self.target)
            task.states[self.state].restore(records.keys, records.values, reached, now_ms)
            self.restored += len(records.offsets)
        return False


@dataclass
class Restoring:
    """A task that is not ready yet; its partitions are paused."""

    task: Task
    states: list[Restore]
