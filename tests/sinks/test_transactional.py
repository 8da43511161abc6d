"""What a Transactional sink promises, on a real SQLite file and a real Postgres: rows and position are one."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from msgspec import structs

from semel.contract import LogIdentity, Remembered, Row, Transactional
from semel.ports import Done, Fenced, NoSteps, Step
from semel.sinks.sink import Diverged, RowRefused, SinkError
from tests.sinks.conftest import MakeSink
from tests.sinks.values import LOG, Total, claimed, deleted, held, opened, rows, totals


class Crash(Exception):
    """Stands for the end of the process."""


class CrashAt:
    """Steps that end the process at the first `step`."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def reached(self, step: Step) -> None:
        if step is self.step:
            raise Crash(step)


def test_the_last_value_of_a_key_replaces_the_row(make_sink: MakeSink) -> None:
    """With key=: one row per key, also when a batch holds a key several times, and over batches."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    batch = rows(sink, [Total("a", 1), Total("b", 1), Total("a", 2), Total("a", 3)])
    assert connection.write(claim, 0, 4, "r", batch) == Done()
    assert held(connection) == totals([("a", 3), ("b", 1)])
    assert connection.write(claim, 4, 5, "r", rows(sink, [Total("b", 7)], 4)) == Done()
    assert held(connection) == totals([("a", 3), ("b", 7)])


def test_without_a_key_every_value_is_inserted(make_sink: MakeSink) -> None:
    """Equal values are two rows."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", rows(sink, [Total("a", 1), Total("a", 1)])) == Done()
    assert held(connection) == totals([("a", 1), ("a", 1)])


@pytest.mark.parametrize("key", ["customer", None])
def test_a_large_batch_is_the_same_as_a_small_one(make_sink: MakeSink, key: str | None) -> None:
    """Past the size where Postgres is given COPY and a merge, nothing else differs."""
    sink = make_sink(key=key)
    connection = opened(sink)
    claim = claimed(connection, sink)
    values = [Total(f"c{n % 150}", n) for n in range(400)]
    for start in (0, 400):
        assert connection.write(claim, start, start + 400, "r", rows(sink, values, start)) == Done()
    every = [(v.customer, v.total) for v in values]
    assert held(connection) == totals(dict(every).items() if key else every * 2)


def test_none_deletes_the_row_of_its_key(make_sink: MakeSink) -> None:
    """A delete is ordered with the writes of its key, in a batch and over batches."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    batch = [*rows(sink, [Total("a", 1), Total("b", 1)]), deleted(sink, "a", 2), deleted(sink, "c", 3)]
    batch += rows(sink, [Total("c", 5)], 4)
    assert connection.write(claim, 0, 5, "r", batch) == Done()
    assert held(connection) == totals([("b", 1), ("c", 5)])
    assert connection.write(claim, 5, 6, "r", [deleted(sink, "c", 5)]) == Done()
    assert held(connection) == totals([("b", 1)])


def test_none_without_a_key_is_refused(make_sink: MakeSink) -> None:
    """An appended row has no key by which it could go away: refused, by the stream and by the sink."""
    sink = make_sink()
    with pytest.raises(SinkError, match="without key="):
        sink.encode_deleted("a")
    connection = opened(sink)
    with pytest.raises(RowRefused, match="without key=") as refused:
        connection.write(claimed(connection, sink), 0, 1, "r", [Row(0, 0, b"a", None)])
    assert refused.value.offset == 0


def test_a_claim_returns_what_the_last_batch_left(make_sink: MakeSink) -> None:
    """Position and run come back with the claim; the epoch grows; each partition has its own."""
    sink = make_sink()
    first, second = opened(sink), opened(sink)
    claim = claimed(first, sink)
    assert (claim.epoch, claim.position, claim.run, claim.incarnation) == (1, 0, "", 1)
    assert first.write(claim, 0, 7, "run 7", []) == Done()
    again = claimed(second, sink)
    assert (again.epoch, again.position, again.run) == (2, 7, "run 7")
    assert claimed(second, sink, partition=1).position == 0


def test_a_batch_written_again_changes_nothing(make_sink: MakeSink) -> None:
    """The replay after a crash: the position has moved, so the same batch is refused, rows and all."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    batch = rows(sink, [Total("a", 1)])
    assert connection.write(claim, 0, 1, "r", batch) == Done()
    assert isinstance(connection.write(claim, 0, 1, "r", batch), Fenced)
    assert held(connection) == totals([("a", 1)])
    assert claimed(connection, sink).position == 1


def test_a_superseded_owner_writes_nothing(make_sink: MakeSink) -> None:
    """S1: after another claim, the old owner's batch is fenced, and told by whom; the new owner goes on."""
    sink = make_sink(key="customer")
    old, new = opened(sink), opened(sink)
    stale = claimed(old, sink)
    claim = claimed(new, sink)
    assert new.write(claim, 0, 1, "r", rows(sink, [Total("a", 2)])) == Done()
    for start, end in ((0, 1), (1, 2)):
        outcome = old.write(stale, start, end, "r", rows(sink, [Total("a", 1)], start))
        assert isinstance(outcome, Fenced)
        assert "pid" in outcome.reason
    assert held(new) == totals([("a", 2)])
    assert new.write(claim, 1, 2, "r", rows(sink, [Total("a", 3)], 1)) == Done()


def test_a_gap_is_not_written(make_sink: MakeSink) -> None:
    """A batch that does not begin at the position is refused even under the right epoch."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert isinstance(connection.write(claim, 3, 4, "r", rows(sink, [Total("a", 1)], 3)), Fenced)
    assert held(connection) == []


@pytest.mark.parametrize("step", [Step.ROWS_BEFORE, Step.ROWS_AFTER, Step.POSITION_BEFORE, Step.POSITION_AFTER])
def test_rows_and_position_are_one(make_sink: MakeSink, step: Step) -> None:
    """S10: an owner that ends before the commit leaves neither rows nor position."""
    sink = make_sink()
    crashing = opened(sink, steps=CrashAt(step))
    claim = claimed(crashing, sink)
    with pytest.raises(Crash):
        crashing.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)]))
    crashing.close()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert claim.position == 0
    assert held(connection) == []
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert held(connection) == totals([("a", 1)])


@pytest.mark.parametrize(
    ("other", "says"),
    [(LogIdentity("another", 4), "re-created"), (LogIdentity("topic-id", 6), "6 partitions, the positions .* of 4")],
)
def test_another_log_is_diverged_and_leaves_no_trace(make_sink: MakeSink, other: LogIdentity, says: str) -> None:
    """S16: a topic made anew, or with other partitions: the claim says so and the choice, and changes nothing. Also
    for a partition that this sink has never seen."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 5, "r", rows(sink, [Total("a", 1)])) == Done()
    for partition in (0, 3):
        with pytest.raises(Diverged, match=says) as diverged:
            claimed(connection, sink, partition, other)
        operated = hasattr(connection, "move")
        assert (f"semel sink adopt APP.py {sink.name}" if operated else "UPDATE") in str(diverged.value)
        assert "put the former log back" in str(diverged.value)
    assert connection.write(claim, 5, 6, "r", rows(sink, [Total("a", 1)], 5)) == Done(), "the epoch did not move"


def test_a_position_that_a_person_has_moved_is_the_one_that_counts(make_sink: MakeSink) -> None:
    """As `semel sink adopt` moves it after S16: another incarnation, and whoever claimed before is fenced."""
    sink = make_sink()
    connection = opened(sink)
    before = claimed(connection, sink)
    assert connection.write(before, 0, 5, "r", []) == Done()
    other = LogIdentity("another", 4)
    seen = connection.remembered("app")  # type: ignore[attr-defined]
    to = [replace(seen[0], position=2, run="m", incarnation=2, log=other), Remembered(3, 0, 2, 7, "n", other)]
    assert connection.move("app", seen, to) == Done()  # type: ignore[attr-defined]
    assert isinstance(connection.write(before, 5, 6, "r", rows(sink, [Total("a", 1)], 5)), Fenced)
    assert held(connection) == []
    claim = claimed(connection, sink, log=other)
    assert (claim.incarnation, claim.position, claim.run) == (2, 2, "m")
    assert claimed(connection, sink, 3, other).position == 7
    assert claimed(connection, sink, 2, other).incarnation == 2, "of partitions that come later, too"


@pytest.mark.parametrize("what", ["claim", "batch"])
def test_what_has_changed_since_a_person_looked_is_not_moved(make_sink: MakeSink, what: str) -> None:
    """A delivery at work: what would be skipped or repeated is not what was said any more."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 5, "r", []) == Done()
    seen = connection.remembered("app")  # type: ignore[attr-defined]
    if what == "claim":
        claimed(connection, sink)
    else:
        assert connection.write(claim, 5, 6, "r", []) == Done()
    now = connection.remembered("app")  # type: ignore[attr-defined]
    outcome = connection.move("app", seen, [replace(seen[0], position=0)])  # type: ignore[attr-defined]
    assert isinstance(outcome, Fenced) and "changed meanwhile" in outcome.reason
    assert connection.remembered("app") == now  # type: ignore[attr-defined]


def test_looking_makes_nothing(make_sink: MakeSink) -> None:
    sink = make_sink()
    connection = sink.open(NoSteps())
    assert connection.remembered("app") == []
    assert connection.remembered("app") == []
    assert not hasattr(sink, "path") or not os.path.exists(sink.path)


def test_a_value_that_is_refused_is_named_and_nothing_is_written(make_sink: MakeSink) -> None:
    """S11: the record's offset, whether semel sees it or the database; the batch leaves no rows."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    good = rows(sink, [Total("a", 1), Total("b", 2)], 10)
    for bad, says in (
        (b'{"customer": "c", "total": "many"}', "'total'"),
        (b'{"customer": "c", "total": null}', "(?i)null"),
        (b'{"customer": "c", "total": 1, "more": 2}', "'more'"),
        (b'{"customer": "c", "total": 9223372036854775808}', "total|range"),
        (b"[]", "object"),
    ):
        for many in (good, rows(sink, [Total("x", n) for n in range(200)], 100)):
            last = many[-1].offset + 1
            with pytest.raises(RowRefused, match=says) as refused:
                connection.write(claim, 0, last + 1, "r", [*many, structs.replace(good[0], offset=last, value=bad)])
            assert refused.value.offset == last
    assert held(connection) == []
    assert connection.write(claim, 0, 12, "r", good) == Done()


def test_a_constraint_of_the_table_refuses_by_offset(make_sink: MakeSink) -> None:
    """Two rows of one batch that a unique index keeps apart: the second is the one."""
    sink = make_sink()
    connection = opened(sink)
    connection._connected().execute("CREATE UNIQUE INDEX u ON totals (customer)")  # type: ignore[attr-defined]
    for count in (2, 300):
        batch = rows(sink, [*(Total(f"c{n}", 1) for n in range(count)), Total("c1", 2)])
        with pytest.raises(RowRefused, match=r"(?i)unique") as refused:
            connection.write(claimed(connection, sink), 0, 9, "r", batch)
        assert refused.value.offset == count


def test_only_renamed_tables_are_dropped(make_sink: MakeSink) -> None:
    """verify's own tables go, positions with them; the named ones are untouched and cannot be dropped."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    with pytest.raises(SinkError, match="named itself"):
        connection.drop()
    renamed = sink.renamed("_v1")
    assert (renamed.name, renamed.key) == (sink.name, sink.key)
    own = opened(renamed)
    claim = claimed(own, renamed, log=LOG)
    assert claim.position == 0
    assert own.write(claim, 0, 1, "r", rows(renamed, [Total("b", 1)])) == Done()
    assert held(own) == totals([("b", 1)])
    own.drop()
    own.close()
    assert held(connection) == totals([("a", 1)])
    assert claimed(connection, sink).position == 1
    again = opened(sink.renamed("_v1"))
    assert held(again) == []


def test_a_renamed_sink_takes_the_shape_of_its_original_when_the_type_is_unknown(make_sink: MakeSink) -> None:
    """verify on a sink whose values are dicts."""
    sink = make_sink(key="customer")
    opened(sink)
    renamed = make_sink(key="customer").renamed("_v")
    connection = opened(renamed, value_type=None)
    values = [{"customer": "a", "total": 1}]
    assert connection.write(claimed(connection, renamed), 0, 1, "r", rows(renamed, values)) == Done()
    assert held(connection) == totals([("a", 1)])


def test_the_kind_is_transactional(make_sink: MakeSink) -> None:
    """The type that `write` accepts without accept=, and the contract that `check` reads."""
    sink = make_sink()
    assert sink.kind is Transactional
    assert sink.contract.remembers_position
