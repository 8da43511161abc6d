"""The changes of one Postgres table: its rows at the slot's consistent point, then what the slot gives.

The slot is made together with a snapshot that shows exactly what was committed before the slot's first change. The
rows of that snapshot and the position behind them are **one** transaction of the log: a snapshot cannot be gone on with
after a crash (it ends with its connection), so a crash in it leaves nothing, and the next ingest makes the slot anew.

Changes are *peeked* and not consumed: the slot is advanced when their transaction of the log has been committed, and
what it gives again after a crash in between is known by its place and left out.

Invariants: the slot's confirmed place never passes the position in the log; a transaction of Postgres goes into the log
as a whole; what is left out as known ends with the very transaction that was read last. (A server that was put back
from a copy of its files, the slot among them, gives new transactions under places that were read.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import psycopg
from msgspec.structs import replace
from psycopg import pq, sql
from psycopg.adapt import Transformer
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from semel.ports import Done, NotDone
from semel.source_ports import Portion, SourceRow
from semel.sources import pgoutput
from semel.sources.postgres_changes import PostgresChanges
from semel.sources.postgres_session import ReadingSession
from semel.sources.source import Coder, Refused, SourceDiverged, SourceError, excerpt, shown

OVERTAKEN_MS = 5_000  # by then the group has told a superseded owner
LAG_BYTES_MAX = 16 << 20  # of write-ahead log without a change of this table, until the position follows it


class ChangesAt(msgspec.Struct, frozen=True):
    """The position: everything that was committed up to `lsn` is in the log."""

    system: str
    table: int
    slot: str
    lsn: int
    last: int = -1  # where the last transaction that was read ends; 0: none was; -1: written before this was told
    last_us: int = 0  # and when it was committed


class ChangesConnection:
    def __init__(self, source: PostgresChanges, topic: Any) -> None:
        self._source = source
        self._session = ReadingSession(source.dsn, source.where)
        self._coder = Coder(topic, source.key)
        self._name = f"changes {source.table}"
        self._table = sql.Identifier(*filter(None, (source.schema, source.table_name)))
        self._known: ChangesAt | None = None
        self._abandoned = ""  # where the slot stood when this was claimed without a position; "": there was none
        self._system, self._oid = "", 0
        self._maker: psycopg.Connection[Any] | None = None  # keeps the snapshot while it is read
        self._reader: psycopg.Connection[Any] | None = None
        self._point = 0
        self._stop: SourceError | None = None
        self._exhausted = False

    # --- the claim --------------------------------------------------------------------------------------------------

    def claim(self, positions: Mapping[str, bytes]) -> Done | NotDone:
        if others := sorted(set(positions) - {self._name}):
            raise SourceError(
                f"{self._source.where}: the positions are of {', '.join(others)}: the topic was fed from elsewhere so "
                "far. Feed another topic."
            )
        found = positions.get(self._name)
        self._known = None if found is None else msgspec.json.decode(found, type=ChangesAt)
        looked = self._session.trying(self._look)
        return looked if isinstance(looked, NotDone) else Done()

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        where, text = self._source.where, self._table.as_string(connection)
        row = connection.execute(
            "SELECT c.oid::bigint, c.relkind::text, c.relreplident::text, pg_is_in_recovery(), "
            "current_setting('wal_level') FROM pg_class c WHERE c.oid = to_regclass(%s)",
            (text,),
        ).fetchone()
        if row is None:
            raise SourceError(f"{where}: there is no such table. Make it, or mend its name.")
        self._oid, kind, identity, standby, level = row
        if kind != "r":
            raise SourceError(f"{where}: it is no plain table (pg_class.relkind {kind!r}). Name a table.")
        if standby:
            raise SourceError(f"{where}: this server is a standby. Read from the primary.")
        if level != "logical":
            raise SourceError(f"{where}: the server has wal_level={level}. Set wal_level=logical and restart it.")
        if identity != "f":
            raise SourceError(
                f"{where}: what a row was before a change is not kept (pg_class.relreplident {identity!r}). "
                f"ALTER TABLE {text} REPLICA IDENTITY FULL."
            )
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            found = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
            self._system = str(found[0]) if found else ""
        if self._known is not None:
            self._same(connection, self._known)
            return
        slot = connection.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", (self._source.slot,)
        ).fetchone()
        self._abandoned = slot[0] if slot else ""

    def _same(self, connection: psycopg.Connection[Any], known: ChangesAt) -> None:
        where = self._source.where
        if known.table != self._oid or (known.system and self._system and known.system != self._system):
            raise SourceDiverged(
                f"{where}: it is not the table that was read (another server, or the table was made anew). Nothing was "
                "read. Put the former one back, or read this one into another topic."
            )
        slot = connection.execute(
            "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s", (known.slot,)
        ).fetchone()
        if slot is None or known.slot != self._source.slot:
            raise SourceDiverged(
                f"{where}: the slot {known.slot} is gone (dropped, or this server took over without it): what was "
                f"changed since {_lsn(known.lsn)} cannot be had. Nothing was read. Read the table into another topic."
            )
        if slot[0] > known.lsn:
            raise SourceDiverged(
                f"{where}: the slot {known.slot} stands at {_lsn(slot[0])}, the log at {_lsn(known.lsn)}: somebody "
                "else reads from this slot, or the log was put back. Changes would be left out, so nothing was read. "
                "Read the table into another topic."
            )

    # --- the snapshot -----------------------------------------------------------------------------------------------

    def _begin(self, connection: psycopg.Connection[Any]) -> bool:
        """The publication, the slot, and the snapshot of its consistent point. False: somebody made the slot since."""
        slot, name = self._source.slot, sql.Identifier(self._source.slot)
        published = connection.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (slot,)).fetchone()
        if published is None:
            connection.execute(
                sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert, update, delete')").format(
                    name, self._table
                )
            )
        # Of an ingest that ended within its snapshot: nothing of it is in the log. Only the one that was there when we
        # claimed: a later one is of an ingest that took over while this one stood still, and its changes are its own.
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            "WHERE slot_name = %s AND confirmed_flush_lsn::text IS NOT DISTINCT FROM %s",
            (slot, self._abandoned),
        )
        there = connection.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", (slot,)
        ).fetchone()
        if there is not None:
            self._abandoned = there[0]  # whoever still owns the lane after a while may take it for abandoned
            return False
        self._maker = psycopg.connect(make_conninfo(self._source.dsn, replication="database"), autocommit=True)
        made = self._maker.execute(
            sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')").format(name)
        ).fetchone()
        assert made is not None
        point, snapshot = made[1], made[2]
        self._reader = psycopg.connect(self._source.dsn, row_factory=dict_row)
        self._reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        self._reader.execute(sql.SQL("DECLARE rows_there CURSOR FOR SELECT * FROM {}").format(self._table))
        high, low = (int(part, 16) for part in point.split("/"))
        self._point = high << 32 | low
        return True

    def _snapshot(self, connection: psycopg.Connection[Any], count: int) -> Portion:
        if self._reader is None and not self._begin(connection):
            return Portion(idle_ms=OVERTAKEN_MS)
        assert self._reader is not None
        there = self._reader.execute(sql.SQL("FETCH {} FROM rows_there").format(sql.Literal(count))).fetchall()
        rows = [self._row("read", None, row, "its snapshot") for row in there]
        if self._refused(rows):
            assert self._stop is not None
            raise self._stop  # nothing of the snapshot is in the log yet
        if len(there) == count:
            return Portion(rows, complete=False)
        self._end_snapshot()
        return self._portion(rows, ChangesAt(self._system, self._oid, self._source.slot, self._point, last=0))

    def _end_snapshot(self) -> None:
        for connection in (self._reader, self._maker):
            if connection is not None:
                with contextlib.suppress(psycopg.Error):
                    connection.close()
        self._reader = self._maker = None

    # --- the stream -------------------------------------------------------------------------------------------------

    def read(self, records_max: int) -> Portion | NotDone:
        if self._stop is not None:
            raise self._stop
        self._exhausted = False
        if self._known is None:
            found = self._session.trying(lambda connection: self._snapshot(connection, records_max))
            if isinstance(found, NotDone):
                self._end_snapshot()
            return found
        known = self._known
        return self._session.trying(lambda connection: self._changes(connection, known, records_max))

    def _changes(self, connection: psycopg.Connection[Any], known: ChangesAt, count: int) -> Portion:
        now = connection.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint").fetchone()
        assert now is not None
        if now[0] < known.lsn:
            raise self._put_back(f"its write-ahead log ends at {_lsn(now[0])}")
        peeked = self._peeked(connection, known, count=count)
        there = [one for one in peeked if one.end_lsn <= known.lsn]  # in the log: the slot had not been advanced
        if there and known.last >= 0:
            if len(there) == len(peeked) and there[-1].end_lsn < known.last:
                there = self._peeked(connection, known, until=_lsn(known.lsn))  # all of them, before any is let go of
            last = max((one for one in there if one.end_lsn <= known.lsn), key=lambda one: one.end_lsn)
            if (last.end_lsn, last.at_us) != (known.last, known.last_us):
                raise self._put_back(f"the last transaction up to there, at {_lsn(last.end_lsn)}, is not the one read")
        transformer: Any = Transformer(connection)
        rows: list[SourceRow] = []
        at = known
        for transaction in (one for one in peeked if one.end_lsn > known.lsn):
            made = [row for change in transaction.changes for row in self._rows(transformer, change, transaction)]
            if self._refused(made):
                break
            rows += made
            at = replace(known, lsn=transaction.end_lsn, last=transaction.end_lsn, last_us=transaction.at_us)
        if at is known:
            if self._stop is not None:
                raise self._stop
            if not peeked and now[0] - known.lsn > LAG_BYTES_MAX:
                return self._portion([], replace(known, lsn=now[0]))  # others' changes: they need not be kept for us
            if peeked:  # all of it is in the log: the one before us ended before it could tell the slot
                self._advance(connection, known)
            self._exhausted = not peeked
            return Portion()
        return self._portion(rows, at)

    def _peeked(
        self,
        connection: psycopg.Connection[Any],
        known: ChangesAt,
        *,
        until: str | None = None,
        count: int | None = None,
    ) -> list[pgoutput.Transaction]:
        found = connection.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, %s, %s, 'proto_version', '1', "
            "'publication_names', %s)",
            (known.slot, until, count, known.slot),
        ).fetchall()
        try:
            return list(pgoutput.Decoder().transactions(data for (data,) in found))
        except pgoutput.Malformed as why:
            raise SourceError(f"{self._source.where}: the server sends what is no pgoutput 1: {why}.") from None

    def _put_back(self, found: str) -> SourceDiverged:
        assert self._known is not None
        return SourceDiverged(
            f"{self._source.where}: it was read up to {_lsn(self._known.lsn)}, and {found}: the server was put back "
            "from a copy and went another way. Changes under places that were read would be left out, so nothing was "
            "read. Put the newer one back, or read the table into another topic."
        )

    def _rows(
        self, transformer: Any, change: pgoutput.Changed, transaction: pgoutput.Transaction
    ) -> Sequence[SourceRow]:
        if change.relation.oid != self._oid:
            return []
        before, after = (_loaded(transformer, change.relation, row) for row in (change.before, change.after))
        at = f"the transaction that ends at {_lsn(transaction.end_lsn)}"
        if not change.known:
            why = (
                "the table's REPLICA IDENTITY was not FULL then, so what the row was is not known. "
                "ALTER TABLE … REPLICA IDENTITY FULL, and read the table into another topic"
            )
            return [SourceRow(f"{self._source.table}, a change in {at}", None, shown({"after": after}), why)]
        if before is None:
            return [self._row("insert", None, after, at)]
        if after is None:
            return [self._row("delete", before, None, at)]
        if any(before.get(name) != after.get(name) for name in self._source.key):
            return [self._row("delete", before, None, at), self._row("insert", None, after, at)]
        return [self._row("update", before, after, at)]

    def _row(self, op: str, before: dict[str, Any] | None, after: dict[str, Any] | None, at: str) -> SourceRow:
        change = {"op": op, "before": before, "after": after}
        try:
            key, value = self._coder.record(change, after or before)
        except Refused as why:
            return SourceRow(f"{self._source.table}, {op} in {at}", None, shown(change), str(why))
        return SourceRow(f"{self._source.table}, {op} in {at}", key, value)

    def _refused(self, rows: Sequence[SourceRow]) -> bool:
        """Whether one of them stops it. A transaction goes into the log as a whole, so nothing of its own does."""
        bad = next((row for row in rows if row.refused), None) if self._coder.stops else None
        if bad is not None:
            self._stop = SourceError(
                f"{bad.place}: {bad.refused}: {excerpt(bad.value or b'')}\nNothing of that transaction was taken, and "
                "nothing that follows. Make the topic's type take it, or say Topic(…, on_error='dead-letter')."
            )
        return bad is not None

    def _portion(self, rows: Sequence[SourceRow], at: ChangesAt) -> Portion:
        self._known = at
        return Portion(rows, {self._name: msgspec.json.encode(self._known)})

    def committed(self) -> None:
        """The server may forget what is in the log now."""
        assert self._known is not None
        known = self._known
        self._session.trying(lambda connection: self._advance(connection, known))

    def _advance(self, connection: psycopg.Connection[Any], known: ChangesAt) -> None:
        connection.execute(
            "SELECT pg_replication_slot_advance(slot_name, %(lsn)s::pg_lsn) FROM pg_replication_slots "
            "WHERE slot_name = %(slot)s AND confirmed_flush_lsn < %(lsn)s::pg_lsn",
            {"slot": known.slot, "lsn": _lsn(known.lsn)},
        )

    def exhausted(self) -> bool:
        return self._exhausted

    def progress(self) -> str:
        return "its rows are being read" if self._known is None else f"read up to {_lsn(self._known.lsn)}"

    def close(self) -> None:
        self._end_snapshot()
        self._session.close()


def _loaded(transformer: Any, relation: pgoutput.Relation, row: pgoutput.Row | None) -> dict[str, Any] | None:
    """Values as the client gives them for a SELECT."""
    if row is None:
        return None
    return {
        name: transformer.get_loader(of, pq.Format.TEXT).load(value) if isinstance(value, bytes) else None
        for name, of, value in zip(relation.columns, relation.types, row, strict=True)
    }


def _lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
