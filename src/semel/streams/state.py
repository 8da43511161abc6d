"""The state of one fold in one task: a decoded cache over a Store, and a changelog that is the truth.

Within a transaction only the cache changes. `flush` writes one changelog record per dirty key into the transaction;
`committed`, called after the log said that it is committed, moves the same bytes to the store, with a mark in the same
batch: changelog topic id and history, offset and time. An aborted transaction is forgotten by dropping the object.

The mark's offset is a lower bound: at least everything below it is in the store. Reading the changelog on from there
may repeat changes that the store has; a change is the whole new value, so repeating the last ones in order is harmless.
Its `top` is an upper bound: nothing that the store has lies above it. A changelog that ends between the two, or a later
history that began there, has lost some of what the store has; comparing the lower bound would not see it (a sceptic's
find: the last transaction before a backup was put back stayed in the state).

Invariant: the store never holds what is not committed (FAULTS P2), and never less than its mark says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from semel.errors import SemelError
from semel.ports import Headers, Store, Write
from semel.streams.graph import Fold, label
from semel.streams.lineage import Lineage
from semel.streams.serde import NotFinite, type_name
from semel.streams.trace import ORIGIN, node_name

CACHE_KEYS_MAX = 500_000  # per state and task; beyond it the longest unchanged clean entries go, the store has them
DELETE_RETENTION_MS = 86_400_000  # Kafka's default of delete.retention.ms


class Mark(msgspec.Struct, frozen=True):
    """What a store says of itself."""

    topic_id: str
    history: str  # of the changelog that it was written in (lineage.py)
    offset: int  # of the changelog: the next one to read
    top: int  # … and where it ended, or ends above, after what the store has: a log that ends below has lost some of it
    time_ms: int  # when it was written


_encode_mark = msgspec.json.Encoder().encode
_decode_mark = msgspec.json.Decoder(Mark).decode


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a store may be used: where the changelog is read on from, or why it is read from its start."""

    offset: int
    rebuild: str  # "" when the store is used


def fit(
    mark: bytes | None,
    *,
    topic_id: str,
    lineage: Lineage,
    start: int,
    end: int,
    now_ms: int,
    delete_retention_ms: int = DELETE_RETENTION_MS,
) -> Fit:
    """Compares a store's mark with its changelog partition [start, end) and the histories that it has had."""
    if mark is None:
        return Fit(start, "it is new" if end > start else "")
    try:
        held = _decode_mark(mark)
    except msgspec.MsgspecError:
        return Fit(start, "its mark cannot be read")
    if held.topic_id != topic_id:
        return Fit(start, f"it belongs to another changelog topic (id {held.topic_id or 'unknown'}, now {topic_id})")
    if held.top > end:
        return Fit(start, f"it is ahead of its changelog (offset {held.top}, the log ends at {end}): the log went back")
    if held.offset < start:
        return Fit(start, f"its changelog begins at {start}, after the store's offset {held.offset}")
    bound = lineage.bound(held.history)
    if bound is not None and held.top > bound:
        told = f"ended at offset {bound}" if bound >= 0 else "its changelog does not know (any more)"
        return Fit(
            start,
            f"it was written up to offset {held.top} in a history that {told}: the log went back and went on, or "
            "others have held this partition for long",
        )
    # A tombstone may have been compacted away since, and the deleted key would be back (FAULTS P10).
    if now_ms - held.time_ms > delete_retention_ms // 2:
        hours = (now_ms - held.time_ms) / 3_600_000
        return Fit(
            start, f"it was last written {hours:.1f} h ago, more than half of the changelog's delete.retention.ms"
        )
    return Fit(held.offset, "")


class MemoryStore:
    """A Store that lives as long as the process: each start restores from the changelog."""

    def __init__(self) -> None:
        self._held: dict[bytes, bytes] = {}
        self._mark: bytes | None = None

    def get(self, key: bytes) -> bytes | None:
        return self._held.get(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(self._held.items()))

    def write(self, changes: Mapping[bytes, bytes | None], mark: bytes) -> None:
        for key, value in changes.items():
            if value is None:
                self._held.pop(key, None)
            else:
                self._held[key] = value
        self._mark = mark

    def mark(self) -> bytes | None:
        return self._mark

    def clear(self) -> None:
        self._held.clear()
        self._mark = None

    def close(self) -> None:
        return


class State:
    """One fold's state in one task. `cache`, `dirty` and `origins` are used by the compiled code; they are changed in
    place and never replaced."""

    __slots__ = ("_fold", "_former", "_pending", "_store", "_topic_id", "cache", "dirty", "lineage", "name", "origins")

    def __init__(self, fold: Fold, store: Store) -> None:
        self.name = fold.name
        self._fold = fold
        self._store = store
        self.cache: dict[bytes, Any] = {}  # key -> state; None: there is none
        self.dirty: dict[bytes, int] = {}  # key -> time of its last update, since the last flush
        self.origins: dict[bytes, bytes] = {}  # traced runs: key -> the input that updated it last
        self._pending: dict[bytes, bytes | None] = {}  # flushed to the changelog, not yet in the store
        self.lineage = Lineage()  # with our own history last; committed with what we write
        self._former = ""  # the history before ours: what is restored was written in it, or earlier
        self._topic_id = ""

    def load(self, key: bytes) -> Any:
        """The state of a key that the cache does not hold, or a fresh zero (None for a reduce)."""
        if key not in self.cache:
            pending = self._pending
            data = pending[key] if key in pending else self._store.get(key)
            if data is not None:
                return self._fold.state.decode(data)
        zero = self._fold.zero
        return None if zero is None else zero()

    def get(self, key: bytes) -> Any:
        """The current state, uncommitted updates included; None when there is none."""
        if key in self.cache:
            return self.cache[key]
        data = self._pending[key] if key in self._pending else self._store.get(key)
        return None if data is None else self._fold.state.decode(data)

    def items(self) -> Iterator[tuple[bytes, Any]]:
        """Everything, uncommitted updates included, sorted by key."""
        held: dict[bytes, Any] = {key: self._fold.state.decode(data) for key, data in self._store.items()}
        for key, data in self._pending.items():
            held[key] = None if data is None else self._fold.state.decode(data)
        held.update(self.cache)
        return iter(sorted((key, state) for key, state in held.items() if state is not None))

    def flush(self, write: Write, partition: int, *, trace: bool) -> None:
        """One changelog record per dirty key."""
        encode, check, cache, pending = self._fold.state.encode, self._fold.state.check, self.cache, self._pending
        node = node_name(self._fold.id, self._fold.name)
        headers: Headers | None = None
        for key, time_ms in self.dirty.items():
            state = cache[key]
            if state is None:
                data = None
            else:
                if check is not None and not isinstance(state, check):
                    raise SemelError(
                        f"{label(self._fold)} returned a {type_name(type(state))} for key {key!r}, its state is "
                        f"{self._fold.state.name}. Say state=TYPE, or mend the function.",
                    )
                try:
                    data = encode(state)
                except NotFinite as why:
                    raise SemelError(f"{label(self._fold)}, key {key!r}: {why}") from None
            if trace:
                headers = [(ORIGIN, node + self.origins[key] + b"0")]
            write(partition, key, data, time_ms, headers)
            pending[key] = data
        self.dirty.clear()
        self.origins.clear()

    @property
    def unstored(self) -> int:
        """Keys whose committed change the store does not have yet."""
        return len(self._pending)

    def committed(self, offset: int, top: int, now_ms: int) -> None:
        """Everything flushed so far is committed and lies in the changelog below `top`, which was read after that
        commit, as does everything below `offset`, which was read before it: that it then succeeded proves that nobody
        else has written below `offset`."""
        assert not self.dirty, f"{self.name}: {len(self.dirty)} keys are not flushed"
        self._store.write(self._pending, _encode_mark(Mark(self._topic_id, self.lineage.last, offset, top, now_ms)))
        self._pending.clear()
        excess = len(self.cache) - CACHE_KEYS_MAX
        if excess > 0:
            for key in list(self.cache)[: excess + CACHE_KEYS_MAX // 4]:
                del self.cache[key]

    # --- restore ---

    def take_over(
        self,
        lineage: Lineage,
        id: str,
        *,
        topic_id: str,
        start: int,
        end: int,
        now_ms: int,
        delete_retention_ms: int = DELETE_RETENTION_MS,
    ) -> Fit:
        """Begins the history `id` of the changelog after those committed so far. Returns where to restore from, up to
        `end`. Clears a store that may not be used."""
        self._topic_id, self._former, self.lineage = topic_id, lineage.last, lineage.followed_by(id, end)
        found = fit(
            self._store.mark(),
            topic_id=topic_id,
            lineage=self.lineage,
            start=start,
            end=end,
            now_ms=now_ms,
            delete_retention_ms=delete_retention_ms,
        )
        if found.rebuild:
            self._store.clear()
        return found

    def restore(
        self, keys: Sequence[bytes | None], values: Sequence[bytes | None], next_offset: int, now_ms: int
    ) -> None:
        """Committed changelog records in order, up to `next_offset`, which is not beyond where our history begins."""
        changes = {key: value for key, value in zip(keys, values, strict=True) if key is not None}
        self._store.write(changes, _encode_mark(Mark(self._topic_id, self._former, next_offset, next_offset, now_ms)))

    def close(self) -> None:
        self._store.close()
