"""How many records at once go to a sink that can hold no position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from semel.contract import AtLeastOnce
from semel.ports import Records, TopicPartition
from semel.sinks import Lines
from semel.sinks.pace import FEWEST, MOST, Pace, parted
from tests.sinks.test_delivery import OUTBOX, Worker, outbox

AT = TopicPartition(OUTBOX, 0)


def records(start: int, count: int, epoch: int, first: int) -> Records:
    offsets = list(range(start, start + count))
    keys, values = [b"%d" % o for o in offsets], [b"v%d" % o for o in offsets]
    return Records(AT, offsets, [o * 10 for o in offsets], keys, values, None, start + count + 1, epoch, first)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=8), st.integers(1, 30))
def test_nothing_is_left_out_and_the_order_stays(sizes: list[tuple[int, bool]], count: int) -> None:
    """Both parts together are what came, next offsets never go back, and each part ends where the other begins.
    Records of two epochs are not parted, so a part may be larger by those."""
    found, start = [], 0
    for epoch, (size, mixed) in enumerate(sizes, 1):
        found.append(records(start, size, epoch, epoch - mixed))
        start = found[-1].next_offset
    now, rest = parted(found, count)
    together = [*now, *rest]
    for column in ("offsets", "timestamps", "keys", "values"):
        assert [x for r in together for x in getattr(r, column)] == [x for r in found for x in getattr(r, column)]
    assert [r.next_offset for r in together] == sorted(r.next_offset for r in together)
    assert not found or together[-1].next_offset == found[-1].next_offset
    taken = sum(len(r.offsets) for r in now)
    assert taken >= min(count, sum(len(r.offsets) for r in found))
    if not any(mixed for _, mixed in sizes):
        assert taken <= count
    assert all(r.offsets for r in rest[:1])


def test_it_follows_what_a_turn_takes() -> None:
    pace = Pace()
    for _ in range(20):
        pace.took(5_000)
    assert pace.records == FEWEST
    for _ in range(20):
        pace.took(10)
    assert pace.records == MOST
    pace.took(600)
    assert pace.records == MOST


class Slow:
    """A connection that takes 10 ms for a record, by the worker's clock; at `dies` records its owner is killed."""

    def __init__(self, real: Any, worker: Worker, dies: int) -> None:
        self._real, self._worker, self._dies = real, worker, dies
        self.taken = 0

    def write(self, claim: Any, start: int, end: int, run: str, rows: Any) -> Any:
        self.taken += len(rows)
        self._worker.now_ms += 10 * len(rows)
        if self.taken > self._dies:
            raise Killed
        return self._real.write(claim, start, end, run, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Killed(Exception):
    pass


def test_owners_that_live_shorter_than_a_poll_brings_get_on(tmp_path: Path) -> None:
    """3,000 records wait at an endpoint that takes 100 a second, and each owner is killed after eight seconds.

    `semel verify` on HTTP with a kill every five seconds: each new owner was given all that waited by one poll, sent it
    again from the start and was killed before the position moved; nothing was wrong, and nothing got on for minutes.
    """
    log = outbox()
    for n in range(3_000):
        log.append(OUTBOX, 0, b"k%d" % (n % 7), b'{"n": %d}' % n)
    stands = []
    for _ in range(12):
        worker = Worker(log, Lines(tmp_path / "lines"), accept=AtLeastOnce("a test"))
        worker.session.records_max = 10_000
        worker.delivery._connection = Slow(worker.delivery._connection, worker, dies=800)  # type: ignore[assignment]
        try:
            while worker.delivery.step(worker.now_ms, 0) or not stands or stands[-1] < 3_000:
                worker.now_ms += 1
                if worker.session.committed([AT])[AT] is not None:
                    stands.append(worker.session.committed([AT])[AT].offset)  # type: ignore[union-attr]
                    if stands[-1] == 3_000:
                        return
        except Killed:
            continue
    raise AssertionError(f"it got to {max(stands, default=0)} of 3,000")
