"""The changes of a Postgres table: its rows at one point, then each change since, once, with before and after."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import pytest

from semel import Topic
from semel.host.postgres import PostgresServer
from semel.ports import Done, Step
from semel.source_ports import Portion
from semel.sources import Change, PostgresChanges, pgoutput
from semel.sources.postgres_changes_connection import ChangesAt, ChangesConnection
from semel.sources.source import SourceDiverged, SourceError
from tests.sources.world import Died, Reader, die, keys, values
from tests.support.outboxlog import OutboxLog


@dataclass(frozen=True)
class Item:
    id: int
    name: str
    size: float | None = None


Declared = Topic[int, Change[Item]]
_numbers = iter(range(1_000))


@pytest.fixture
def topic(server: PostgresServer, dsn: str) -> Iterator[Declared]:
    slot = f"slot_{next(_numbers)}"
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text, size float8, more text)")
        connection.execute("ALTER TABLE items REPLICA IDENTITY FULL")
    source = PostgresChanges(dsn, "items", key="id", slot=slot)
    yield Topic("orders", key=int, value=Change[Item], source=source, partitions=1)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                           (slot,))  # fmt: skip


def connect(topic: Declared) -> psycopg.Connection[Any]:
    assert isinstance(topic.source, PostgresChanges)
    return psycopg.connect(topic.source.dsn)


def insert(connection: psycopg.Connection[Any], *ids: int) -> None:
    for n in ids:
        connection.execute("INSERT INTO items (id, name) VALUES (%s, %s)", (n, f"n{n}"))


def changes(log: OutboxLog) -> list[tuple[str, Any, Any]]:
    """Operation and what was and is: the name, or None."""
    found = [json.loads(value) for value in values(log, "orders")]
    return [(c["op"], (c.get("before") or {}).get("name"), (c.get("after") or {}).get("name")) for c in found]


def test_rows_then_changes_with_before_and_after(topic: Declared) -> None:
    with connect(topic) as connection:
        insert(connection, 1, 2)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    reader.turn(3)
    assert changes(log) == [("read", None, "n1"), ("read", None, "n2")]
    with connect(topic) as connection:
        insert(connection, 3)
        connection.execute("UPDATE items SET name = 'x', size = 1.5 WHERE id = 1")
        connection.commit()
        connection.execute("DELETE FROM items WHERE id = 2")
        connection.execute("UPDATE items SET id = 30 WHERE id = 3")
    with connect(topic) as connection:
        insert(connection, 99)
        connection.rollback()
    reader.turn(3)
    assert changes(log)[2:] == [
        ("insert", None, "n3"),
        ("update", "n1", "x"),
        ("delete", "n2", None),
        ("delete", "n3", None),
        ("insert", None, "n3"),
    ]
    assert json.loads(values(log, "orders")[3])["after"]["size"] == 1.5
    assert keys(log, "orders")[2:] == [b"3", b"1", b"2", b"3", b"30"]


def test_what_is_committed_around_the_snapshot_is_there_once(topic: Declared) -> None:
    """Rows that were there, rows that were open when the slot was made, rows since: each once."""
    with connect(topic) as connection:
        insert(connection, *range(20))
    log = OutboxLog()
    reader = Reader(log, topic, follow=True, records_max=7)
    reader.turn(1)
    with connect(topic) as connection:
        insert(connection, 100)
        connection.execute("UPDATE items SET name = 'later' WHERE id = 19")
    assert changes(log) == []  # the snapshot is one transaction
    reader.turn(8)
    found = changes(log)
    assert [c for c in found if c[0] == "read"] == [("read", None, f"n{n}") for n in range(20)]
    assert found[20:] == [("insert", None, "n100"), ("update", "n19", "later")]


STEPS = (Step.INGEST_READ, Step.INGEST_RECORDS, Step.INGEST_POSITION, Step.INGEST_COMMIT)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_ended_at_every_step_each_change_is_there_once(topic: Declared, step: Step, nth: int) -> None:
    """In the snapshot, which leaves nothing and is made anew, and in the stream, which goes on where the log is."""
    with connect(topic) as connection:
        insert(connection, *range(5))
    log = OutboxLog()
    n = 100
    for left in (nth, nth, 10**6):
        reader = Reader(log, topic, follow=True, records_max=2, steps=die(step, left))
        try:
            for _ in range(6):
                reader.turn()
                with connect(topic) as connection:
                    insert(connection, n)
                n += 1
            reader.turn(30)
        except Died:
            lane = next(iter(reader.ingest._lanes.values()))
            assert lane.connection is not None
            lane.connection.close()  # as the end of the process does
    ids = [json.loads(value)["after"]["id"] for value in values(log, "orders")]
    with connect(topic) as connection:
        there = [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]
    assert sorted(ids) == there and len(set(ids)) == len(ids)


def test_the_slot_lets_go_of_what_is_in_the_log_and_of_no_more(topic: Declared) -> None:
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    reader.turn(2)
    with connect(topic) as connection:
        insert(connection, 1)
    log.owners[-1].next = "refused"
    reader.turn(1)
    assert changes(log) == [] and confirmed(topic) <= position(log)
    reader.turn(9)
    assert changes(log) == [("insert", None, "n1")] and confirmed(topic) == position(log)


def confirmed(topic: Declared) -> int:
    assert isinstance(topic.source, PostgresChanges)
    with connect(topic) as connection:
        row = connection.execute(
            "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s",
            (topic.source.slot,),
        ).fetchone()
    assert row is not None
    return int(row[0])


def position(log: OutboxLog) -> int:
    return int(json.loads(values(log, "orders-positions")[-1])["at"]["lsn"])


def test_a_slot_that_is_gone_or_ahead_stops_it(topic: Declared) -> None:
    log = OutboxLog()
    Reader(log, topic, follow=True).turn(3)
    copied = log.copy()
    with connect(topic) as connection:
        insert(connection, 1)
    Reader(log, topic, follow=True).turn(3)
    log.put_back(copied)
    with pytest.raises(SourceDiverged, match="the log was put back"):
        Reader(log, topic, follow=True).turn(3)
    assert isinstance(topic.source, PostgresChanges)
    with connect(topic) as connection:
        connection.autocommit = True
        connection.execute("SELECT pg_drop_replication_slot(%s)", (topic.source.slot,))
    with pytest.raises(SourceDiverged, match="is gone"):
        Reader(log, topic, follow=True).turn(3)


def test_who_was_overtaken_while_it_claimed_is_told_so(topic: Declared, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read the positions, stands still, and its heir reads on: the slot is ahead of what it has read, not of the
    log. (`semel verify`, 142 kills: a worker took that for a log put back, told its user to read into another topic,
    and ended.)"""
    log = OutboxLog()
    Reader(log, topic, follow=True).turn(3)
    with connect(topic) as connection:
        insert(connection, 1)
    opened = PostgresChanges.open

    def late(self: PostgresChanges, *words: Any) -> Any:
        monkeypatch.undo()
        heirs.append(Reader(log, topic, follow=True))
        heirs[0].turn(3)
        return opened(self, *words)

    heirs: list[Reader] = []
    said: list[str] = []
    monkeypatch.setattr(PostgresChanges, "open", late)
    Reader(log, topic, follow=True, say=said.append).turn(1)
    assert len(said) == 1 and "another ingest has taken over and read on; nothing is lost, trying again" in said[0]
    assert changes(log) == [("insert", None, "n1")]


def test_who_comes_back_late_drops_no_slot_of_its_heir(topic: Declared, monkeypatch: pytest.MonkeyPatch) -> None:
    """S17: it has claimed a table that was never read, and stands still; its heir makes the slot and goes on. What the
    late one finds then is not what its own predecessor left."""
    log = OutboxLog()
    claim = ChangesConnection.claim
    heirs: list[Reader] = []

    def late(self: ChangesConnection, found: Any) -> Any:
        monkeypatch.undo()
        claimed = claim(self, found)
        heirs.append(Reader(log, topic, follow=True))
        heirs[0].turn(3)
        return claimed

    monkeypatch.setattr(ChangesConnection, "claim", late)
    Reader(log, topic, follow=True).turn(3)
    with connect(topic) as connection:
        insert(connection, 1)
    Reader(log, topic, follow=True).turn(3)
    assert len(heirs) == 1 and changes(log) == [("insert", None, "n1")]


def test_a_large_value_that_an_update_does_not_touch(topic: Declared) -> None:
    """The server does not send it again: it is taken from what was."""
    with connect(topic) as connection:
        connection.execute("ALTER TABLE items ALTER name SET STORAGE EXTERNAL")
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    reader.turn(2)
    with connect(topic) as connection:
        connection.execute("INSERT INTO items (id, name) VALUES (1, repeat('x', 10000))")
        connection.execute("UPDATE items SET size = 2 WHERE id = 1")
    reader.turn(2)
    assert [len(after) for _, _, after in changes(log)] == [10_000, 10_000]


def test_what_cannot_be_read_so_is_refused(topic: Declared, dsn: str) -> None:
    with connect(topic) as connection:
        connection.execute("ALTER TABLE items REPLICA IDENTITY DEFAULT")
    with pytest.raises(SourceError, match="REPLICA IDENTITY FULL"):
        Reader(OutboxLog(), topic).all()
    with pytest.raises(Exception, match=r"value=Change\[ROW\]"):
        Topic("o", key=int, value=Item, source=topic.source)
    with pytest.raises(Exception, match="key=nr is no field of Item"):
        Topic("o", key=int, value=Change[Item], source=PostgresChanges(dsn, "items", key="nr"))


def test_messages_that_end_early_are_refused() -> None:
    """Every cut of every message, and bytes behind its end."""
    begin = b"B" + struct.pack("!qqi", 5, 0, 7)
    relation = (
        b"R"
        + struct.pack("!I", 9)
        + b"public\0items\0f"
        + struct.pack("!hB", 1, 1)
        + b"id\0"
        + struct.pack("!Ii", 23, -1)
    )
    insert = b"I" + struct.pack("!I", 9) + b"N" + struct.pack("!h", 1) + b"t" + struct.pack("!i", 2) + b"42"
    commit = b"C" + struct.pack("!Bqqq", 0, 5, 8, 0)
    whole = [begin, relation, insert, commit]
    (made,) = pgoutput.Decoder().transactions(whole)
    assert made.end_lsn == 8 and made.changes[0].after == (b"42",)
    for index, message in enumerate(whole):
        for broken in (*(message[:size] for size in range(1, len(message))), message + b"x"):
            with pytest.raises(pgoutput.Malformed):
                list(pgoutput.Decoder().transactions([*whole[:index], broken, *whole[index + 1 :]]))
    for wrong in ([insert, commit], [commit], [begin, insert, commit], [begin, relation], [b"Z"]):
        with pytest.raises(pgoutput.Malformed):
            list(pgoutput.Decoder().transactions(wrong))


def test_an_update_without_what_was_is_no_insert(topic: Declared) -> None:
    """REPLICA IDENTITY is taken back while the ingest runs: an update then tells the new row only."""
    with connect(topic) as connection:
        insert(connection, 1)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    reader.turn(2)
    with connect(topic) as connection:
        connection.execute("UPDATE items SET name = 'x'")
        connection.commit()
        connection.execute("ALTER TABLE items REPLICA IDENTITY DEFAULT")
        connection.execute("UPDATE items SET name = 'y'")
    with pytest.raises(SourceError, match="REPLICA IDENTITY was not FULL"):
        reader.turn(3)
    assert changes(log) == [("read", None, "n1"), ("update", "n1", "x")]


def _went_on(**said: Any) -> Any:
    return lambda at: msgspec.structs.replace(at, **{name: change(getattr(at, name)) for name, change in said.items()})


@pytest.mark.parametrize(
    ("altered", "why"),
    [
        (_went_on(last_us=lambda us: us - 1), "is not the one read"),
        (_went_on(last=lambda lsn: lsn - 1), "is not the one read"),
        (_went_on(last=lambda lsn: lsn + 1, lsn=lambda lsn: lsn + 1), "is not the one read"),
        (_went_on(lsn=lambda lsn: lsn + (1 << 30)), "write-ahead log ends at"),
        (_went_on(last=lambda lsn: -1, last_us=lambda us: 0), ""),  # of a version that did not tell it
        (_went_on(), ""),
    ],
)
def test_a_server_that_went_another_way_under_places_that_were_read_stops(
    topic: Declared, altered: Any, why: str
) -> None:
    """A copy of the server's files is put back, its slot in it, and is written to: its new transactions lie where
    others were read. Seen from the ingest: what is left out as known is not what it has read."""
    source = topic.source
    assert isinstance(source, PostgresChanges)
    first = ChangesConnection(source, topic)
    assert first.claim({}) == Done()
    portion = first.read(100)
    with connect(topic) as connection:
        insert(connection, 1)
        connection.commit()
        insert(connection, 2)
        connection.commit()
        portion = first.read(100)  # and dies before it tells the slot
        first.close()
        insert(connection, 3)
    assert isinstance(portion, Portion) and len(portion.rows) == 2
    ((name, said),) = portion.positions.items()
    assert said is not None
    at = altered(msgspec.json.decode(said, type=ChangesAt))
    heir = ChangesConnection(source, topic)
    try:
        assert heir.claim({name: msgspec.json.encode(at)}) == Done()
        if why:
            with pytest.raises(SourceDiverged, match=why):
                heir.read(100)
            return
        found = [heir.read(1) for _ in range(4)]  # a change at a time: the slot follows what was compared
        ids = [msgspec.json.decode(row.value)["after"]["id"] for one in found for row in one.rows]  # type: ignore
        assert ids == [3]
    finally:
        heir.close()
