"""What a reader sees of interleaved transactions is what a model says, wherever the fetch begins and ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from semel.client.visible import visible
from semel.record import Batch, encode, marker, parse, placed


@dataclass
class Log:
    """A partition by the book: what is in it, and which transactions were aborted."""

    data: list[Batch] = field(default_factory=list)
    end: int = 0
    records: list[tuple[int, bytes, int | None]] = field(default_factory=list)  # offset, value, transaction
    aborted: list[tuple[int, int, int]] = field(default_factory=list)  # producer id, first offset, marker's offset
    committed: set[int] = field(default_factory=set)
    open: dict[int, tuple[int, int]] = field(default_factory=dict)  # producer id -> transaction, first offset
    transactions: int = 0

    def append(self, raw: bytes) -> Batch:
        batch = parse(placed(raw, self.end, 0))
        self.data.append(batch)
        self.end = batch.next_offset
        return batch

    def write(self, producer_id: int, count: int) -> None:
        values = [f"{self.end + i}".encode() for i in range(count)]
        if producer_id < 0:
            batch = self.append(encode(values))
            transaction = None
        else:
            batch = self.append(encode(values, producer_id=producer_id, producer_epoch=0, transactional=True))
            if producer_id not in self.open:
                self.open[producer_id] = (self.transactions, batch.base_offset)
                self.transactions += 1
            transaction = self.open[producer_id][0]
        self.records += [(batch.base_offset + i, value, transaction) for i, value in enumerate(values)]

    def decide(self, producer_id: int, commit: bool) -> None:
        if producer_id not in self.open:
            return
        transaction, first = self.open.pop(producer_id)
        batch = self.append(marker(commit, producer_id, 0, 0, 0))
        if commit:
            self.committed.add(transaction)
        else:
            self.aborted.append((producer_id, first, batch.base_offset))


moves = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(-1, 3), st.integers(1, 4)),
        st.tuples(st.just("decide"), st.integers(0, 3), st.booleans()),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(moves, st.data())
def test_every_committed_record_once_and_nothing_else(steps: list[tuple[str, int, int]], data: st.DataObject) -> None:
    """Read in fetches of any size from any position: at read_committed what was committed or is in no transaction,
    up to the last stable offset; at read_uncommitted every record. Never a control record (FAULTS B21, B24)."""
    log = Log()
    for move, producer_id, argument in steps:
        if move == "write":
            log.write(producer_id, argument)
        else:
            log.decide(producer_id, bool(argument))
    stable = min((first for _, first in log.open.values()), default=log.end)
    for committed in (True, False):
        limit = stable if committed else log.end
        start = position = data.draw(st.integers(0, limit))
        seen: list[tuple[int, bytes | None]] = []
        while position < limit:
            # From the batch that holds the position, sometimes from one before it; some batches at a time.
            first = next(i for i, batch in enumerate(log.data) if batch.last_offset >= position)
            first = max(0, first - data.draw(st.integers(0, 2)))
            last = data.draw(st.integers(1, 5)) + next(
                i for i, batch in enumerate(log.data) if batch.last_offset >= position
            )
            chunk = [batch for batch in log.data[first:last] if batch.last_offset < limit]
            # As Fetch answers: transactions that overlap what is sent, from the position asked for.
            end = chunk[-1].next_offset
            aborted = [(p, f) for p, f, at in log.aborted if at >= position and f < end]
            found = visible(chunk, position, aborted, committed=committed)
            assert found.next_offset == end > position
            seen += zip(found.columns.offsets, found.columns.values, strict=True)
            position = found.next_offset
        assert seen == [
            (offset, value)
            for offset, value, transaction in log.records
            if start <= offset < limit and (not committed or transaction is None or transaction in log.committed)
        ]
