"""The delivery over a log in memory and real sinks: what it claims, refuses, retries and says."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from semel.contract import AtLeastOnce, AtMostOnce, Claim, LogIdentity
from semel.host.postgres import PostgresServer
from semel.ports import Done, NotDone, Position, Step, TopicPartition
from semel.record.murmur2 import partition_for
from semel.sinks import Lines, Postgres
from semel.sinks.cuts import Rule
from semel.sinks.delivery import REPEAT_MS, Delivery
from semel.sinks.sink import Diverged, SinkError
from tests.sinks.conftest import MakeSink
from tests.sinks.values import Total, claimed, deleted, delivery, held, opened, rows, totals
from tests.support.outboxlog import OutboxLog, OutboxSession
from tests.support.tcpproxy import TcpProxy

OUTBOX = "app-totals-outbox"
EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


class Counted:
    """Steps that are counted."""

    def __init__(self) -> None:
        self.hits: dict[Step, int] = {}

    def reached(self, step: Step) -> None:
        self.hits[step] = self.hits.get(step, 0) + 1


class Worker:
    """A delivery, its session and a clock that moves a second per turn."""

    def __init__(self, log: OutboxLog, sink: Any, *partitions: int, **more: Any) -> None:
        self.session: OutboxSession = log.session()
        self.steps = Counted()
        self.said: list[str] = []
        self.now_ms = 1_000_000
        self.delivery = Delivery(
            self.session,
            sink,
            app="app",
            outbox=OUTBOX,
            value_type=Total,
            steps=self.steps,
            say=self.said.append,
            **more,
        )
        self.delivery.join()
        self.session.assign(OUTBOX, *(partitions or range(len(log.topics[OUTBOX].partitions))))

    def turn(self, count: int = 1) -> int:
        delivered = 0
        for _ in range(count):
            self.now_ms += 1_000
            delivered += self.delivery.step(self.now_ms, 0)
        return delivered

    def close(self) -> None:
        self.delivery.close()
        self.session.close()


def outbox(partitions: int = 1) -> OutboxLog:
    log = OutboxLog()
    log.create(OUTBOX, partitions, EVER)
    return log


def put(log: OutboxLog, sink: Any, *values: Any, partition: int = 0) -> None:
    for value in values:
        log.append(OUTBOX, partition, sink.encode_key(value), sink.encode_value(value))


def shown(sink: Any) -> list[tuple[Any, ...]]:
    connection = opened(sink)
    try:
        return held(connection)
    finally:
        connection.close()


def test_committed_records_arrive_once_over_workers_and_rebalances(make_sink: MakeSink) -> None:
    """Law 7: f(outbox) = sink, whoever delivers."""
    log, sink = outbox(3), make_sink()
    for n in range(30):
        put(log, sink, Total("a", n), partition=n % 3)
    first, second = Worker(log, sink, 0, 1, 2), Worker(log, sink, 2)
    first.turn(2)
    for n in range(30, 60):
        put(log, sink, Total("a", n), partition=n % 3)
    first.session.assign(OUTBOX, 0)
    second.session.assign(OUTBOX, 1, 2)
    second.turn(3)
    first.turn(3)
    assert shown(sink) == totals(("a", n) for n in range(60))
    assert first.delivery.lag() == second.delivery.lag() == 0


def test_markers_and_aborted_records_move_the_position_without_a_transaction_each(make_sink: MakeSink) -> None:
    """Their offsets travel with the next rows; alone, they are written once nothing else was for a second."""
    log, sink = outbox(), make_sink()
    put(log, sink, Total("a", 1))
    worker = Worker(log, sink)
    worker.turn(2)
    assert worker.steps.hits[Step.SINK_AFTER] == 1
    for _ in range(5):
        log.append(OUTBOX, 0, b"a", b"aborted", visible=False)
        worker.delivery.step(worker.now_ms, 0)
    assert worker.steps.hits[Step.SINK_AFTER] == 1
    put(log, sink, Total("a", 2))
    worker.delivery.step(worker.now_ms, 0)
    assert worker.steps.hits[Step.SINK_AFTER] == 2
    log.append(OUTBOX, 0, b"a", b"marker", visible=False)
    worker.delivery.step(worker.now_ms, 0)
    assert worker.delivery.lag() == 1
    worker.turn(2)
    assert (worker.steps.hits[Step.SINK_AFTER], worker.delivery.lag()) == (3, 0)
    assert shown(sink) == totals([("a", 1), ("a", 2)])


def test_the_groups_offsets_are_a_metric_only(make_sink: MakeSink) -> None:
    """Any member can move another's: moving them moves nothing at the sink."""
    log, sink = outbox(), make_sink()
    put(log, sink, *(Total("a", n) for n in range(5)))
    worker = Worker(log, sink)
    worker.turn(3)
    assert log.offsets[("app.sink", TopicPartition(OUTBOX, 0))].offset == 5
    worker.close()
    log.offsets[("app.sink", TopicPartition(OUTBOX, 0))] = Position(1)
    put(log, sink, Total("a", 5))
    Worker(log, sink).turn(3)
    assert shown(sink) == totals(("a", n) for n in range(6))


def test_a_superseded_delivery_is_fenced_and_counted(make_sink: MakeSink) -> None:
    """A zombie that missed its revocation: its batch is refused; it claims again only when still assigned."""
    log, sink = outbox(), make_sink()
    put(log, sink, Total("a", 1))
    zombie, heir = Worker(log, sink), Worker(log, sink)
    zombie.turn(2)
    heir.turn(2)
    put(log, sink, Total("a", 2))
    heir.turn()
    assert zombie.turn() == 0
    assert zombie.steps.hits[Step.SINK_FENCED] == 1
    assert "epoch 2" in zombie.said[-1]
    zombie.session.assign(OUTBOX)  # now it hears it
    zombie.turn(3)
    put(log, sink, Total("a", 3))
    assert heir.turn() == 1, "nobody took the claim from the heir"
    assert shown(sink) == totals([("a", 1), ("a", 2), ("a", 3)])


def test_a_sole_owner_that_is_fenced_stops(make_sink: MakeSink) -> None:
    """A zombie on a copy of an embedded log has no group to tell it: it never claims back."""
    log, sink = outbox(), make_sink()
    put(log, sink, Total("a", 1))
    zombie, heir = Worker(log, sink, sole_owner=True), Worker(log, sink, sole_owner=True)
    zombie.turn(2)
    heir.turn(2)
    put(log, sink, Total("a", 2))
    with pytest.raises(SinkError, match="is a copy of this folder in use"):
        zombie.turn()
    assert zombie.steps.hits[Step.SINK_FENCED] == 1
    assert heir.turn() == 1
    assert shown(sink) == totals([("a", 1), ("a", 2)])


def test_a_record_that_the_sink_refuses_stops_and_is_named(make_sink: MakeSink) -> None:
    """S11: topic, partition and offset; nothing of the batch was written; made to fit, the delivery goes on."""
    log, sink = outbox(), make_sink()
    put(log, sink, Total("a", 1), {"customer": "b", "total": None}, Total("c", 3))
    worker = Worker(log, sink)
    with pytest.raises(SinkError, match=rf"{OUTBOX}-0 at offset 1: .*total") as refused:
        worker.turn(2)
    assert refused.value.exit_code == 1
    assert "nothing from offset 0 on was delivered" in str(refused.value)  # the whole batch, not the record alone
    assert "goes on at offset 0." in str(refused.value)
    worker.close()
    assert shown(sink) == []
    log.topics[OUTBOX].partitions[0][1].value = sink.encode_value(Total("b", 2))
    Worker(log, sink).turn(2)
    assert shown(sink) == totals([("a", 1), ("b", 2), ("c", 3)])


# --- S12, S16: the log is not the one that the position is of --------------------------------------------------------


def delivered(make_sink: MakeSink, count: int = 10) -> tuple[OutboxLog, Any]:
    log, sink = outbox(), make_sink()
    put(log, sink, *(Total("a", n) for n in range(count)))
    worker = Worker(log, sink)
    worker.turn(2)
    worker.close()
    return log, sink


def diverged(log: OutboxLog, sink: Any) -> str:
    """The message with which a new delivery stops; nothing is delivered."""
    before = shown(sink)
    worker = Worker(log, sink)
    with pytest.raises(Diverged) as stopped:
        worker.turn(2)
    worker.close()
    assert shown(sink) == before
    assert OUTBOX in str(stopped.value) or "outbox" in str(stopped.value)
    return str(stopped.value)


def test_a_log_put_back_behind_the_sink_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: the copy ends before the position."""
    log, sink = delivered(make_sink)
    copied = log.copy()
    put(log, sink, Total("b", 1))
    Worker(log, sink).turn(2)
    log.put_back(copied)
    assert "now ends at 10" in diverged(log, sink)


@pytest.mark.parametrize("restart", [False, True])
def test_a_log_put_back_that_went_on_stops_the_delivery(make_sink: MakeSink, restart: bool) -> None:
    """S12: old offsets name new records, the same ones or others; the run tells, also when its number is used again."""
    log, sink = delivered(make_sink)
    copied = log.copy()
    if restart:
        log.restart()
    put(log, sink, *(Total("b", n) for n in range(5)))
    Worker(log, sink).turn(2)
    log.put_back(copied)
    put(log, sink, *(Total("b", n) for n in range(8)))
    assert ("with the id" if restart else "written in run 1, the one that is there now in run 2") in diverged(log, sink)


def test_a_log_without_runs_is_told_by_the_record_itself(make_sink: MakeSink) -> None:
    """Apache Kafka put back from a copy, its epoch used again: another record is at the offset."""
    log, sink = OutboxLog(with_runs=False), make_sink()
    log.create(OUTBOX, 1, EVER)
    put(log, sink, Total("a", 1))
    Worker(log, sink).turn(2)
    log.topics[OUTBOX].partitions[0].clear()
    put(log, sink, Total("b", 2), Total("b", 3))
    assert "another record is at 0 now" in diverged(log, sink)


def test_a_record_that_is_no_longer_visible_stops_the_delivery(make_sink: MakeSink) -> None:
    """The offset holds a marker or an aborted record now."""
    log, sink = delivered(make_sink)
    log.topics[OUTBOX].partitions[0][9].visible = False
    put(log, sink, Total("c", 1))
    assert "holds nothing now" in diverged(log, sink)


def test_records_deleted_before_they_were_delivered_stop_the_delivery(make_sink: MakeSink) -> None:
    """The log's start is past the position: a first claim too."""
    log, sink = delivered(make_sink)
    put(log, sink, *(Total("b", n) for n in range(5)))
    log.topics[OUTBOX].starts[0] = 12
    assert "2 offsets were deleted before they were delivered" in diverged(log, sink)
    log.topics[OUTBOX].starts[0] = 10
    worker = Worker(log, sink)
    assert worker.turn(2) == 5, "what was delivered may be gone"
    other = make_sink("others")
    other_log = outbox()
    other_log.topics[OUTBOX].starts[0] = 3
    other_log.topics[OUTBOX].partitions[0] = log.topics[OUTBOX].partitions[0][:5]
    assert "now begins at 3" in diverged(other_log, other)


def test_a_topic_made_anew_stops_the_delivery(make_sink: MakeSink) -> None:
    """S16: its first records would be skipped silently."""
    log, sink = delivered(make_sink)
    log.create(OUTBOX, 1, EVER)
    put(log, sink, *(Total("b", n) for n in range(20)))
    assert "re-created" in diverged(log, sink)


def test_another_partition_count_stops_the_delivery(make_sink: MakeSink) -> None:
    """Keys would change partitions: their order is lost."""
    log, sink = delivered(make_sink)
    log.topics[OUTBOX].partitions.append([])
    assert "2 partitions" in diverged(log, sink)


def test_restarts_of_the_log_are_no_divergence(make_sink: MakeSink) -> None:
    """New runs on the same log: the delivery goes on, also while it runs."""
    log, sink = delivered(make_sink)
    for n in range(3):
        log.restart()
        put(log, sink, Total("b", n))
        worker = Worker(log, sink)
        worker.turn(2)
        log.restart()
        put(log, sink, Total("c", n))
        assert worker.turn() == 1
        worker.close()
    assert len(shown(sink)) == 16


@pytest.mark.parametrize(("name", "value"), [("cleanup.policy", "compact"), ("retention.ms", "604800000")])
def test_an_outbox_that_forgets_is_refused(make_sqlite: MakeSink, name: str, value: str) -> None:
    """An outbox is never shorter than its delivery."""
    log = OutboxLog()
    log.create(OUTBOX, 1, {**EVER, name: value})
    with pytest.raises(SinkError, match=f"{name}={value}"):
        Worker(log, make_sqlite())


def test_an_outbox_that_is_gone_is_an_error(make_sqlite: MakeSink) -> None:
    """Deleted while the worker runs."""
    log, sink = outbox(), make_sqlite()
    worker = Worker(log, sink)
    worker.delivery.assigned([TopicPartition(OUTBOX, 0)])
    del log.topics[OUTBOX]
    worker.session.poll = lambda timeout_s: []  # type: ignore[method-assign]
    with pytest.raises(SinkError, match=f"the outbox {OUTBOX} is gone"):
        worker.turn()


# --- S15: the sink's key is not the stream's -------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sink", "stream"])
def test_order_within_a_sink_key_is_kept_by_its_partitioning(make_sink: MakeSink, by: str) -> None:
    """S15: records of one customer, keyed by order in the stream. Partitioned by the sink's key, the newest wins
    whatever the partitions' order of delivery; partitioned by the stream's (the mistake), the older one does."""
    log, sink = outbox(4), make_sink(key="customer")
    orders = [("order-1", Total("anna", 1)), ("order-2", Total("anna", 2)), ("order-3", Total("anna", 3))]
    for order, value in orders:
        key = sink.encode_key(value)
        at = partition_for(key if by == "sink" else order.encode(), 4)
        log.append(OUTBOX, at, key, sink.encode_value(value))
    for partition in reversed(range(4)):  # the newest order's partition is not the last to be delivered
        worker = Worker(log, sink, partition)
        worker.turn(2)
        worker.close()
    assert (shown(sink) == totals([("anna", 3)])) is (by == "sink")


# --- S8: the answer is lost ------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(make_postgres: MakeSink) -> Iterator[tuple[TcpProxy, Postgres, Postgres]]:
    direct = make_postgres(key=None)
    head, _, database = direct.dsn.rpartition("/")
    proxy = TcpProxy(int(head.rpartition(":")[2]))
    through = make_postgres(dsn=f"{head.rpartition(':')[0]}:{proxy.port}/{database}")
    yield proxy, through, direct
    proxy.close()


@pytest.mark.parametrize("effect", [False, True])
def test_a_commit_without_an_answer_is_resolved_by_a_claim(
    proxied: tuple[TcpProxy, Postgres, Postgres], effect: bool
) -> None:
    """S8: the connection is lost at COMMIT, before or after it had its effect: unknown, resolved, once."""
    proxy, sink, direct = proxied
    log = outbox()
    put(log, sink, Total("a", 1))
    worker = Worker(log, sink)
    worker.turn(2)
    put(log, sink, Total("a", 2))
    (proxy.lose_answer if effect else proxy.lose_request)(b"COMMIT\0")
    assert worker.turn() == 0
    assert proxy.cuts == 1
    assert "was not answered" in worker.said[-1]
    for _ in range(10):  # the server may need a moment to see that its client is gone
        worker.turn()
    assert worker.delivery.lag() == 0
    assert worker.said[-1].endswith("delivering again") or effect
    assert shown(direct) == totals([("a", 1), ("a", 2)])
    put(log, sink, Total("a", 3))
    assert worker.turn() == 1
    assert shown(direct) == totals([("a", 1), ("a", 2), ("a", 3)])


def test_a_commit_whose_answer_never_comes_is_unknown_after_a_bound(
    proxied: tuple[TcpProxy, Postgres, Postgres],
) -> None:
    """S8: the connection stays open and silent (a frozen middleman, a stopped server): no wait is without end."""
    proxy, through, direct = proxied
    sink = Postgres(through.dsn, "totals", hand_over_s=1.0)
    log = outbox()
    put(log, sink, Total("a", 1))
    worker = Worker(log, sink)
    worker.turn(2)
    put(log, sink, Total("a", 2))
    proxy.freeze(b"COMMIT\0")
    assert worker.turn() == 0
    assert "was not answered: no answer within 2 s" in worker.said[-1]
    worker.turn(2)
    assert worker.delivery.lag() == 0
    assert shown(direct) == totals([("a", 1), ("a", 2)])


@pytest.mark.parametrize("needle", [b"BEGIN\0", b"second", b"UPDATE"])
def test_a_connection_lost_anywhere_else_loses_nothing(
    proxied: tuple[TcpProxy, Postgres, Postgres], needle: bytes
) -> None:
    """Before COMMIT nothing can have happened; the next claim finds the position unmoved."""
    proxy, sink, direct = proxied
    log = outbox()
    put(log, sink, Total("a", 1))
    worker = Worker(log, sink)
    worker.turn(2)
    put(log, sink, Total("second", 2))
    proxy.lose_answer(needle)
    worker.turn(10)
    assert proxy.cuts == 1
    assert shown(direct) == totals([("a", 1), ("second", 2)])


def test_a_database_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Bounded pauses, a sentence now and then, membership kept (poll goes on), nothing lost; and back again."""
    with PostgresServer(tmp_path) as server:
        log, sink = outbox(), Postgres(server.dsn, "totals", hand_over_s=2.0)
        put(log, sink, Total("a", 1))
        worker = Worker(log, sink)
        worker.turn(2)
        server.kill()
        put(log, sink, Total("a", 2))
        turns = 2 * REPEAT_MS // 1_000
        assert worker.turn(turns) == 0
        away = [text for text in worker.said if "trying again" in text]
        assert 2 <= len(away) <= 5, worker.said
        server.start()
        worker.turn(4)
        assert worker.said[-1].endswith("delivering again")
        assert shown(sink) == totals([("a", 1), ("a", 2)])


def test_a_database_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    """Also before the first table was looked at."""
    with PostgresServer(tmp_path) as server:
        log, sink = outbox(), Postgres(server.dsn, "totals", hand_over_s=2.0)
        put(log, sink, Total("a", 1))
        server.stop()
        worker = Worker(log, sink)
        worker.turn(2)
        assert "trying again" in worker.said[-1]
        server.start()
        worker.turn(3)
        assert shown(sink) == totals([("a", 1)])


def test_a_sqlite_file_that_is_replaced_is_noticed(make_sqlite: MakeSink) -> None:
    """Writing on into a file that has no name any more would be a loss that nobody sees."""
    log, sink = outbox(), make_sqlite()
    put(log, sink, Total("a", 1))
    worker = Worker(log, sink)
    worker.turn(2)
    for ending in ("", "-wal", "-shm"):
        Path(sink.path + ending).unlink(missing_ok=True)
    put(log, sink, Total("a", 2))
    worker.turn(4)
    assert any("removed or replaced" in text for text in worker.said)
    assert shown(sink) == totals([("a", 1), ("a", 2)]), "a new file is a new sink: all of the outbox"


# --- weak sinks ------------------------------------------------------------------------------------------------------


def test_a_weak_sink_goes_by_the_groups_offsets(tmp_path: Path) -> None:
    """Lines are appended, then the offset moves; a crash in between repeats them and loses none."""
    log, sink = outbox(), Lines(tmp_path / "alerts.jsonl")
    for n in range(3):
        log.append(OUTBOX, 0, None, sink.encode_value({"n": n}))
    accept = AtLeastOnce("alerts may repeat")
    worker = Worker(log, sink, accept=accept)
    worker.turn(2)
    log.append(OUTBOX, 0, None, sink.encode_value({"n": 3}))
    worker.session.commit_offsets = lambda positions: NotDone("gone")  # type: ignore[method-assign]
    worker.turn()
    worker.close()
    Worker(log, sink, accept=accept).turn(2)
    assert (tmp_path / "alerts.jsonl").read_text().splitlines() == [f'{{"n":{n}}}' for n in (0, 1, 2, 3, 3)]


def test_at_most_once_moves_the_offset_first(tmp_path: Path) -> None:
    """accept=AtMostOnce: what fails after the offset has moved is missing, and never repeated."""
    log, sink = outbox(), Lines(tmp_path / "alerts.jsonl")
    log.append(OUTBOX, 0, None, b"1")
    worker = Worker(log, sink, accept=AtMostOnce("better none than two"))
    connection: Any = worker.delivery._connection
    write = connection.write
    connection.write = lambda *given: NotDone("the disk is full")
    worker.turn(2)
    connection.write = write
    log.append(OUTBOX, 0, None, b"2")
    worker.turn(4)
    assert (tmp_path / "alerts.jsonl").read_text() == "2\n"


def test_lines_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a path."""
    log, sink = outbox(), Lines()
    log.append(OUTBOX, 0, None, b'{"n":1}')
    Worker(log, sink, accept=AtLeastOnce("for looking")).turn(2)
    assert capsys.readouterr().out == '{"n":1}\n'
    assert (sink.name, sink.where) == ("stdout", "standard output")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """Named, with the reason."""
    with pytest.raises(SinkError, match="Is a directory"):
        Worker(_with(b"1"), Lines(tmp_path), accept=AtLeastOnce("x")).turn(2)


def _with(value: bytes) -> OutboxLog:
    log = outbox()
    log.append(OUTBOX, 0, None, value)
    return log


# --- S14, in one process ---------------------------------------------------------------------------------------------


class Hold(Exception):
    """Leaves a write where a stopped process would stand: inside its transaction."""


class HoldAt:
    def reached(self, step: Step) -> None:
        if step is Step.ROWS_AFTER:
            raise Hold


@pytest.mark.parametrize("rows_count", [1, 200])
def test_postgres_a_claim_puts_out_an_owner_that_stands_in_its_transaction(
    make_postgres: MakeSink, rows_count: int
) -> None:
    """S14: the holder's backend is in the claim row; the claimer ends it and has the claim below the hand-over time.
    The position's row is locked before the first row, so nothing can hold rows that the position does not guard."""
    sink = make_postgres(key="customer")
    log = LogIdentity("id", 1)
    stuck: Any = opened(sink, steps=HoldAt())
    claim = claimed(stuck, sink, log=log)
    with pytest.raises(Hold):
        stuck.write(claim, 0, rows_count, "r", rows(sink, [Total(f"c{n}", 1) for n in range(rows_count)]))
    heir = opened(sink)
    taken = claimed(heir, sink, log=log)
    assert (taken.epoch, taken.position) == (2, 0)
    batch = rows(sink, [Total(f"c{n}", 2) for n in range(rows_count)])
    assert heir.write(taken, 0, rows_count, "r", batch) == Done()
    outcome = stuck.write(claim, 0, rows_count, "r", batch)
    assert isinstance(outcome, NotDone), "its session was ended"
    assert {total for _, total in held(heir)} == {2}


def test_postgres_a_claim_puts_out_an_owner_that_stands_in_the_middle_of_a_copy(make_postgres: MakeSink) -> None:
    """S14: the server waits for the rest of its data, where neither statement_timeout nor the idle timeout counts; only
    ending the backend helps."""
    sink = make_postgres()
    log = LogIdentity("id", 1)
    stuck, heir = opened(sink), opened(sink)
    claim = claimed(stuck, sink, log=log)
    batch = rows(sink, [Total("a", n) for n in range(200)])
    connection: Any = stuck
    real = connection._connected()
    real.execute("BEGIN")
    real.execute("SELECT FROM semel_positions FOR UPDATE")
    with pytest.raises(psycopg.Error), real.cursor().copy("COPY totals FROM STDIN") as copy:
        copy.write_row(("a", "1"))
        taken = claimed(heir, sink, log=log)
        assert heir.write(taken, 0, 200, "r", batch) == Done()
    assert isinstance(stuck.write(claim, 0, 200, "r", batch), NotDone)
    assert len(held(heir)) == 200


def test_postgres_ends_an_owner_that_stands_behind_its_rows_by_itself(make_postgres: MakeSink) -> None:
    """S14, without any claimer: the server's clock of idle transactions runs while an owner stands behind the rows of a
    small batch. It did not: psycopg's pipeline leaves it stopped (found by the contract kit)."""

    class Standing:
        def reached(self, step: Step) -> None:
            if step is Step.ROWS_AFTER:
                other = psycopg.connect(sink.dsn, autocommit=True)
                ended = time.monotonic() + 10
                while other.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
                ).fetchone():
                    assert time.monotonic() < ended, "the server lets it stand"
                other.close()

    sink = make_postgres(key="customer")
    connection = opened(sink, steps=Standing())
    claim = claimed(connection, sink)
    batch = [*rows(sink, [Total("a", 1)]), deleted(sink, "b", 1)]
    assert isinstance(connection.write(claim, 0, 2, "r", batch), NotDone)


def test_postgres_an_owner_whose_connection_is_new_claims_again(make_postgres: MakeSink) -> None:
    """A claim names its backend, by which a successor can end it; under another backend nothing is written."""
    log, sink = outbox(2), make_postgres()
    put(log, sink, Total("a", 1))
    put(log, sink, Total("b", 1), partition=1)
    worker = Worker(log, sink)
    worker.turn(2)
    connection: Any = worker.delivery._connection
    connection._connected().close()
    put(log, sink, Total("a", 2))
    put(log, sink, Total("b", 2), partition=1)
    worker.turn(4)
    found = (
        connection._connected().execute("SELECT holder_pid = pg_backend_pid(), epoch FROM semel_positions").fetchall()
    )
    assert found == [(True, 2), (True, 2)]
    assert shown(sink) == totals([("a", 1), ("a", 2), ("b", 1), ("b", 2)])


def test_sqlite_a_waiting_claim_says_who_holds_the_file(make_sqlite: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """S14: SQLite cannot take the lock; on a system without /proc/locks the owners are named by their claims."""
    sink = make_sqlite()
    owner = opened(sink)
    connection: Any = owner
    claim = connection.claim(delivery(sink), LogIdentity("id", 1))
    assert isinstance(claim, Claim)
    connection._connected().execute("BEGIN IMMEDIATE")
    waiting = sink.open()
    monkeypatch.setattr("semel.sinks.sqlite_connection.WAIT_S", 0.01)
    waited = waiting.prepare(Total)
    assert isinstance(waited, NotDone)
    assert f"pid {os.getpid()}" in waited.reason
    connection._connected().execute("ROLLBACK")
    assert not isinstance(waiting.prepare(Total), NotDone)


def test_nothing_here_needs_a_clock_of_its_own() -> None:
    """delivery.py takes the time as an argument (DESIGN, The core decides)."""
    module: Any = sys.modules["semel.sinks.delivery"]
    assert not {"time", "threading", "random", "os"} & set(vars(module))


# --- batches by a rule -----------------------------------------------------------------------------------------------


def test_a_batch_is_written_when_the_sinks_rule_says_so(make_sqlite: MakeSink) -> None:
    """A sink to which each batch is a file (Delta, Iceberg) is given one per so many records or seconds, not per poll.
    What waits is not lost: a revoked or refused delivery reads it again."""
    sink = make_sqlite()
    sink.rule = Rule(records=5, ms=3_000)
    log = outbox()
    worker = Worker(log, sink)
    put(log, sink, Total("a", 1), Total("b", 1))
    worker.turn(2)
    assert held(opened(sink)) == []
    put(log, sink, Total("c", 1))
    worker.turn(2)
    assert held(opened(sink)) == [], "two seconds after the first was read"
    worker.turn()
    assert len(held(opened(sink))) == 3, "three seconds after the first"
    put(log, sink, *(Total("d", n) for n in range(6)))
    worker.turn()
    assert len(held(opened(sink))) == 9, "five records and more"
    assert worker.steps.hits[Step.SINK_AFTER] == 2
    put(log, sink, Total("e", 1))
    worker.turn()
    assert worker.delivery.lag() == 1
    worker.session.assign(OUTBOX, 0)  # revoked with a record that waits
    worker.turn(5)
    assert len(held(opened(sink))) == 10
    assert worker.delivery.lag() == 0


def test_a_batch_that_waited_is_written_once_after_a_fence(make_sqlite: MakeSink) -> None:
    """Another claim comes while records wait: they are read again under the next claim, and written once."""
    sink = make_sqlite()
    sink.rule = Rule(records=100, ms=3_000)
    log = outbox()
    worker = Worker(log, sink)
    put(log, sink, Total("a", 1))
    worker.turn(2)
    other = opened(sink)
    claimed(other, sink, log=LogIdentity(log.topics[OUTBOX].topic_id, 1))
    worker.turn(10)
    assert worker.steps.hits[Step.SINK_FENCED] == 1
    assert held(opened(sink)) == totals([("a", 1)])
