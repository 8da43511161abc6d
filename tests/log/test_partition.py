"""What readers of a partition see, and when: watermarks, aborted transactions, whole batches."""

from __future__ import annotations

import contextlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel import record
from semel.log import Accept, CorruptSegment, NotInTransaction, Partition
from semel.log.aborted import AbortedRanges
from semel.sim.disk import Disk

from .support import content, values


def new(segment_bytes: int = 1 << 20) -> Partition:
    return Partition(Disk(Random(0)), "topic", 0, segment_bytes=segment_bytes)


class Writer:
    """Appends to a partition; each call is one journal position later."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.position = 0
        self.sequences: dict[int, int] = {}

    def data(self, *texts: bytes, producer: int = -1, transactional: bool = True, time: int = 0, epoch: int = 1) -> int:
        offset = self.partition.end_offset
        sequence = self.sequences.get(producer, 0)
        self.sequences[producer] = sequence + len(texts)
        self.put(
            record.encode(
                list(texts),
                timestamps=time,
                base_offset=offset,
                leader_epoch=epoch,
                producer_id=producer,
                producer_epoch=0 if producer >= 0 else -1,
                base_sequence=sequence if producer >= 0 else -1,
                transactional=transactional and producer >= 0,
            )
        )
        return offset

    def marker(self, producer: int, commit: bool, epoch: int = 1) -> int:
        offset = self.partition.end_offset
        self.put(record.placed(record.marker(commit, producer, 0, 0, 0), offset, epoch))
        return offset

    def put(self, data: bytes) -> None:
        self.position += 1
        self.partition.apply(self.partition.end_offset, data, self.position)

    def durable(self) -> None:
        self.partition.durable(self.position)


def watermarks(partition: Partition) -> tuple[int, int, int]:
    return partition.last_stable_offset, partition.high_watermark, partition.end_offset


def test_nothing_is_seen_before_it_is_durable() -> None:
    """B27: high watermark and LSO follow the journal, not the append."""
    partition = new()
    writer = Writer(partition)
    writer.data(b"a", b"b")
    writer.data(b"c")
    assert watermarks(partition) == (0, 0, 3)
    assert not partition.read(0, 1000, committed=False).chunks
    partition.durable(1)
    assert watermarks(partition) == (2, 2, 3)
    assert values(partition, committed=False) == [b"a", b"b"]
    assert partition.durable(2)
    assert not partition.durable(2)
    assert values(partition) == [b"a", b"b", b"c"]


def test_the_stable_offset_waits_for_the_first_open_transaction() -> None:
    """B22."""
    partition = new()
    writer = Writer(partition)
    writer.data(b"plain")
    writer.data(b"one", producer=1)
    writer.data(b"two", producer=2)
    writer.durable()
    assert watermarks(partition) == (1, 3, 3)
    assert values(partition) == [b"plain"]
    assert values(partition, committed=False) == [b"plain", b"one", b"two"]
    writer.marker(2, commit=True)
    writer.durable()
    assert watermarks(partition) == (1, 4, 4)
    writer.marker(1, commit=True)
    writer.durable()
    assert watermarks(partition) == (5, 5, 5)
    assert values(partition) == [b"plain", b"one", b"two"]


def test_a_marker_counts_when_it_is_durable() -> None:
    partition = new()
    writer = Writer(partition)
    writer.data(b"one", producer=1)
    writer.durable()
    writer.marker(1, commit=True)
    assert watermarks(partition) == (0, 1, 2)
    assert values(partition) == []
    # The next transaction of the same producer starts while the marker is on its way.
    writer.data(b"two", producer=1)
    partition.durable(2)
    assert watermarks(partition) == (2, 2, 3)
    writer.durable()
    assert watermarks(partition) == (2, 3, 3)
    assert values(partition) == [b"one"]


def test_a_plain_batch_of_a_producer_in_a_transaction_is_refused() -> None:
    partition = new()
    writer = Writer(partition)
    writer.data(b"one", producer=1)
    plain = record.encode([b"x"], producer_id=1, producer_epoch=0, base_sequence=1)
    assert partition.check(record.parse(plain)) == NotInTransaction(0)
    writer.marker(1, commit=True)
    assert partition.check(record.parse(plain)) == Accept()


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["data", "data", "data", "commit", "abort", "durable", "plain"]),
                st.integers(1, 3),
                st.integers(1, 3),
            ),
            max_size=60,
        )
    )


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(150, 3000), st.booleans())
def test_readers_against_a_naive_model(history: list[tuple[str, int, int]], segment_bytes: int, restored: bool) -> None:
    """B21, B22: over interleaved producers, segment edges and any durable prefix, read_committed yields exactly the
    records of plain batches and committed transactions below the LSO, and the LSO is where the model has it."""
    partition = new(segment_bytes)
    writer = Writer(partition)
    rows: list[tuple[int, int, bytes, int]] = []  # offset, producer, value, position
    markers: list[tuple[int, int, bool, int]] = []  # offset, producer, commit, position
    durable = 0
    for number, (what, producer, count) in enumerate(history):
        if what == "durable":
            # The sync is some appends behind.
            durable = max(durable, writer.position - count + 1)
            partition.durable(durable)
        elif what in ("commit", "abort"):
            if producer in partition.open_transactions:
                markers.append((writer.marker(producer, what == "commit"), producer, what == "commit", writer.position))
        else:
            texts = [b"%d.%d" % (number, index) for index in range(count)]
            producer = producer if what == "data" else -1
            offset = writer.data(*texts, producer=producer)
            rows += [(offset + index, producer, text, writer.position) for index, text in enumerate(texts)]
    if restored:
        writer.durable()
        durable = writer.position
        partition.sync()
        partition = Partition.restore(partition._disk, partition.checkpoint(), segment_bytes=segment_bytes)

    def fate(offset: int, producer: int) -> bool | None:
        """Committed, aborted, or None: not decided as far as the disk knows."""
        if producer < 0:
            return True
        for at, owner, commit, position in markers:
            if owner == producer and at > offset:
                return commit if position <= durable else None
        return None

    high = max([row[0] + 1 for row in rows if row[3] <= durable] + [m[0] + 1 for m in markers if m[3] <= durable] + [0])
    open_ = [offset for offset, producer, _, _ in rows if fate(offset, producer) is None]
    stable = min([high, *open_])
    assert watermarks(partition)[:2] == (stable, high)
    assert values(partition, committed=False) == [text for offset, _, text, _ in rows if offset < high]
    assert values(partition) == [
        text for offset, producer, text, _ in rows if offset < stable and fate(offset, producer)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_the_aborted_index_against_a_naive_model(seed: int) -> None:
    """Transactions overlap as they like; the early end of the search leaves none out."""
    dice = Random(seed)
    events = [(dice.randrange(1, 6), dice.random() < 0.4) for _ in range(60)]
    ranges = AbortedRanges()
    open_: dict[int, int] = {}
    naive: list[tuple[int, int, int]] = []
    for offset, (producer, ends) in enumerate(events):
        if ends and producer in open_:
            first = open_.pop(producer)
            ranges.add(producer, first, offset, min(open_.values(), default=offset + 1))
            naive.append((producer, first, offset))
        else:
            open_.setdefault(producer, offset)
    again = AbortedRanges.from_bytes(ranges.to_bytes())
    for start in range(0, 60, 7):
        for end in range(start, 60, 5):
            expected = sorted((first, producer) for producer, first, last in naive if last >= start and first < end)
            assert [(first, producer) for producer, first in ranges.within(start, end)] == expected
            assert again.within(start, end) == ranges.within(start, end)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=40),
    st.integers(200, 2000),
    st.integers(0, 1500),
    st.data(),
)
def test_reads_are_whole_batches_within_the_size(
    sizes: list[int], segment_bytes: int, max_bytes: int, data: st.DataObject
) -> None:
    """From every offset: the batch that holds it first, then as many as fit; a larger one alone; never a part."""
    partition = new(segment_bytes)
    writer = Writer(partition)
    for number, size in enumerate(sizes):
        writer.data(*[bytes(size)] * (number % 3 + 1))
    writer.durable()
    offset = data.draw(st.integers(0, partition.end_offset - 1))
    read = partition.read(offset, max_bytes, committed=True)
    batches = record.parse_all(b"".join(bytes(chunk) for chunk in read.chunks))
    assert batches[0].base_offset <= offset <= batches[0].last_offset
    assert read.size <= max_bytes or len(batches) == 1
    assert read.next_offset == batches[-1].next_offset
    assert [batch.base_offset for batch in batches[1:]] == [batch.next_offset for batch in batches[:-1]]
    bare = partition.read(offset, max_bytes, committed=True, min_one=False)
    assert bare.size <= max_bytes
    if batches[0].size <= max_bytes:
        assert [bytes(chunk) for chunk in bare.chunks] == [bytes(chunk) for chunk in read.chunks]
        after = partition.read(read.next_offset, 1 << 20, committed=True)
        if after.chunks and partition._bases.count(read.next_offset) == 0:
            first = record.parse(after.chunks[0])
            assert read.size + first.size > max_bytes, "it could have held one more"


def test_a_reader_gets_past_a_stretch_of_aborted_records() -> None:
    """B24: a fetch of one small size over aborted data only still moves on to what is committed."""
    partition = new(2000)
    writer = Writer(partition)
    for _ in range(40):
        writer.data(b"x" * 100, producer=1)
    writer.marker(1, commit=False)
    writer.data(b"committed", producer=2)
    writer.marker(2, commit=True)
    for _ in range(10):
        writer.data(b"y" * 100, producer=1)
    writer.marker(1, commit=False)
    writer.durable()
    offset, fetches = 0, 0
    while offset < partition.last_stable_offset:
        read = partition.read(offset, 200, committed=True)
        assert read.next_offset > offset
        offset, fetches = read.next_offset, fetches + 1
    assert fetches > 50
    assert values(partition) == [b"committed"]


def test_a_small_index_row_that_lies_is_dropped() -> None:
    """The index is a hint: rows of an index file that the disk mixed up cost time, not correctness."""
    partition = new()
    writer = Writer(partition)
    for number in range(40):
        writer.data(b"%d" % number + bytes(5000))
    writer.durable()
    partition.sync()
    snapshot = partition.checkpoint()
    disk = partition._disk
    path = partition.folder + "/00000000000000000000.index"
    assert disk.exists(path)
    for position in range(0, disk.open(path).size(), 5):
        copy = disk.copy()  # type: ignore[attr-defined]
        copy.damage(path, position, 1 << position % 8)
        again = Partition.restore(copy, snapshot)
        for offset in range(40):
            read = again.read(offset, 6000, committed=True)
            assert record.parse(read.chunks[0]).base_offset == offset


def test_offsets_by_time() -> None:
    """The first record at or past a time, to the record; markers have none; only what the reader may see."""
    partition = new(600)
    writer = Writer(partition)
    for number in range(30):
        writer.data(b"x" * 50, time=1000 + number * 10)
    writer.data(b"late", time=500)
    writer.put(record.placed(record.marker(True, 5, 0, 0, 20_000), partition.end_offset, 1))
    writer.data(b"open", time=9000, producer=1)
    writer.durable()
    assert partition.offset_for_time(0) == (0, 1000)
    assert partition.offset_for_time(1055) == (6, 1060)
    assert partition.offset_for_time(1290) == (29, 1290)
    assert partition.offset_for_time(1291) == (32, 9000)
    assert partition.offset_for_time(1291, committed=True) is None
    assert partition.offset_for_time(9001) is None
    assert partition.max_timestamp == 9000
    partition.truncate_before(10)
    assert partition.offset_for_time(0) == (10, 1100)


def test_where_a_leader_epoch_ends() -> None:
    """As OffsetForLeaderEpoch answers."""
    partition = new()
    writer = Writer(partition)
    assert partition.epoch_end(1) == (-1, -1)
    for epoch in (2, 2, 5, 7):
        writer.data(b"x", epoch=epoch)
    assert [partition.epoch_end(epoch) for epoch in (1, 2, 3, 5, 6, 7, 8)] == [
        (1, 0),
        (2, 2),
        (2, 2),
        (5, 3),
        (5, 3),
        (7, 4),
        (-1, -1),
    ]
    assert [partition.epoch_at(offset) for offset in range(4)] == [2, 2, 5, 7]


def test_apply_places_a_batch_without_changing_its_checksum() -> None:
    partition = new()
    for number in range(3):
        data = record.encode([b"%d" % number])
        partition.apply(number, memoryview(data), number, leader_epoch=4)
    partition.durable(3)
    batches = record.parse_all(content(partition))
    assert [(batch.base_offset, batch.leader_epoch) for batch in batches] == [(0, 4), (1, 4), (2, 4)]


def test_deleted_records_are_gone_after_the_next_checkpoint_and_the_window_is_kept() -> None:
    """B17: DeleteRecords does not forget the producers."""
    partition = new(500)
    writer = Writer(partition)
    for _ in range(30):
        writer.data(b"x" * 50, producer=1, transactional=False)
    writer.durable()
    partition.truncate_before(25)
    partition.sync()
    snapshot = partition.checkpoint()
    partition.sweep()
    assert len(partition._disk.list(partition.folder)) < 5
    again = Partition.restore(partition._disk, snapshot)
    assert again.start_offset == 25
    assert len(values(again)) == 5
    assert again.producers.by_id[1] == partition.producers.by_id[1]


def test_a_segment_that_lost_synced_bytes_is_an_error() -> None:
    partition = new()
    Writer(partition).data(b"x")
    partition.sync()
    snapshot = partition.checkpoint()
    partition._disk.open(partition.folder + "/00000000000000000000.log").truncate(10)
    with pytest.raises(CorruptSegment, match=r"0000\.log holds 10 bytes"):
        Partition.restore(partition._disk, snapshot)


@pytest.mark.parametrize("byte", range(27))
def test_a_damaged_header_is_never_served_as_another_offset(byte: int) -> None:
    """A bit turned in a base offset, which no checksum covers, was served: readers took other offsets for granted.
    What lies before the batch is still read; then it is refused, by the log or by its checksum."""
    partition = new()
    writer = Writer(partition)
    for number in range(6):
        writer.data(b"%d" % number, b"more")
    writer.durable()
    partition.flush()
    size = partition.size // 6
    partition._disk.damage(partition.folder + "/00000000000000000000.log", 3 * size + byte, 1)  # type: ignore[attr-defined]
    for start in (0, 1, 4, 5):
        read = partition.read(start, 1 << 20, committed=True)
        offset = start - start % 2
        with contextlib.suppress(record.CorruptBatch):
            for batch in record.parse_all(b"".join(read.chunks)):
                assert batch.base_offset == offset
                offset = batch.next_offset
        assert offset >= 6 or byte >= 8
    if byte < 8:
        for _ in range(2):
            with pytest.raises(CorruptSegment, match=r"0000\.log: damaged at byte \d+ of \d+"):
                partition.read(6, 1 << 20, committed=True)
