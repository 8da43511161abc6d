"""Rows of a Postgres table in the order of their cursor, each when nothing can come before it any more.

The trap: a sequence gives 5 to one transaction and 6 to another; 6 commits first, is read, and the position passes 5,
which commits later and is never read. So a row is read only below a bound that is *settled*:

- **A sequence** is drawn from by an INSERT that holds the table's lock (RowExclusiveLock) until its transaction ends.
  The bound is the highest cursor that is visible; then those that hold the lock are noted; when none of them holds it
  any more, every row at or below the bound that will ever be is visible. Writers wait for nothing.
- **xid8**: rows are ordered by the transaction that wrote them, and read below the oldest one that is still open
  (pg_snapshot_xmin): what commits later has a higher one.

Invariants: the bound is taken before the holders, the holders before the rows, each in a snapshot of its own; what is
read is in the cursor's order and the position is the last row's cursor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from semel.ports import Done, NotDone
from semel.source_ports import Portion, SourceRow
from semel.sources.postgres_session import ReadingSession
from semel.sources.postgres_table import PostgresTable
from semel.sources.source import Coder, Refused, SourceDiverged, SourceError, excerpt, fields_of, shown

WAIT_TOLD_S = 5.0  # an open transaction that is waited for so long is named
WHOLE_NUMBERS = ("smallint", "integer", "bigint")


class TableAt(msgspec.Struct, frozen=True):
    """The position in one table."""

    system: str  # of the server (pg_control_system), "" where it is not told
    table: int  # its oid: a table made anew has another one
    cursor: tuple[str, ...]
    after: tuple[str, ...]  # of the last row that was read, as text


class TableConnection:
    def __init__(self, source: PostgresTable, topic: Any) -> None:
        self._source = source
        self._session = ReadingSession(source.dsn, source.where)
        self._coder = Coder(topic, source.key)
        fields = fields_of(topic.value_serde.type)
        self._columns = sorted(fields) if fields is not None else None
        self._name = f"table {source.table}"
        self._table = sql.Identifier(*filter(None, (source.schema, source.table_name)))
        self._known: TableAt | None = None
        self._system, self._oid, self._sequence = "", 0, 0
        self._types: tuple[str, ...] = ()
        self._bound: int | None = None
        self._holders: frozenset[str] = frozenset()
        self._since = 0.0
        self._exhausted = False
        self._stop: SourceError | None = None
        self._read = 0

    # --- the claim --------------------------------------------------------------------------------------------------

    def claim(self, positions: Mapping[str, bytes]) -> Done | NotDone:
        if others := sorted(set(positions) - {self._name}):
            raise SourceError(
                f"{self._source.where}: the positions are of {', '.join(others)}: the topic was fed from elsewhere so "
                "far. Feed another topic."
            )
        found = positions.get(self._name)
        self._known = None if found is None else msgspec.json.decode(found, type=TableAt)
        looked = self._session.trying(self._look)
        return looked if isinstance(looked, NotDone) else Done()

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        """Whether this table can be read by this cursor, and is the one that was read."""
        where, text = self._source.where, self._table.as_string(connection)
        row = connection.execute(
            "SELECT c.oid::bigint, c.relkind::text, pg_is_in_recovery() FROM pg_class c WHERE c.oid = to_regclass(%s)",
            (text,),
        ).fetchone()
        if row is None:
            raise SourceError(f"{where}: there is no such table. Make it, or mend its name.")
        self._oid, kind, standby = row
        if kind not in ("r", "p"):
            raise SourceError(f"{where}: it is no table (pg_class.relkind {kind!r}). Name a table.")
        if standby:
            raise SourceError(
                f"{where}: this server is a standby, where the primary's open transactions are not seen. Read from the "
                "primary."
            )
        if (
            kind == "r"
            and connection.execute("SELECT 1 FROM pg_inherits WHERE inhparent = %s::oid", (self._oid,)).fetchone()
        ):
            raise SourceError(
                f"{where}: other tables inherit from it, and share neither its locks nor its unique index: their rows "
                "would be left out, or be there twice. Use partitions, or read each of the tables into a topic."
            )
        try:
            self._system = str(_one(connection, "SELECT system_identifier FROM pg_control_system()")[0])
        except psycopg.errors.InsufficientPrivilege:
            self._system = ""
        self._check_cursor(connection, text)
        known = self._known
        if known is None:
            return
        if known.cursor != self._source.cursor:
            raise SourceDiverged(
                f"{where}: it was read by the cursor {', '.join(known.cursor)} so far, now by "
                f"{', '.join(self._source.cursor)}: which rows were read cannot be told. Go back to the former cursor."
            )
        if known.table != self._oid or (known.system and self._system and known.system != self._system):
            raise SourceDiverged(
                f"{where}: it is not the table that was read up to {_told(known)} (another server, or the table was "
                "made anew). Nothing was read. Put the former one back, or read this one into another topic."
            )
        self._check_not_back(connection, known)

    def _check_cursor(self, connection: psycopg.Connection[Any], text: str) -> None:
        where, cursor = self._source.where, self._source.cursor
        found = {
            name: (of, not_null, default or "", identity)
            for name, of, not_null, default, identity in connection.execute(
                "SELECT a.attname, format_type(a.atttypid, NULL), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), "
                "a.attidentity <> '' FROM pg_attribute a "
                "LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
                "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
                (text,),
            )
        }
        if missing := [name for name in cursor if name not in found]:
            raise SourceError(f"{where}: it has no column {', '.join(missing)}. It has {', '.join(sorted(found))}.")
        if nullable := [name for name in cursor if not found[name][1]]:
            raise SourceError(f"{where}: the cursor {', '.join(nullable)} may be null: ALTER it SET NOT NULL.")
        self._types = tuple(found[name][0] for name in cursor)
        uniques = connection.execute(
            "SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            "AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) "
            "WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL "
            "AND i.indexprs IS NULL GROUP BY i.indexrelid",
            (text,),
        ).fetchall()
        if not any(set(columns) <= set(cursor) for (columns,) in uniques):
            raise SourceError(
                f"{where}: nothing makes {', '.join(cursor)} unique, so a position would not tell which of equal ones "
                f"were read. Make it so: ALTER TABLE {text} ADD UNIQUE ({', '.join(cursor)}), or add a column to the "
                "cursor."
            )
        of, _, default, identity = found[cursor[0]]
        if of == "xid8":
            if "pg_current_xact_id" not in default:
                raise SourceError(
                    f"{where}: {cursor[0]} is an xid8 without its default: ALTER TABLE {text} ALTER {cursor[0]} SET "
                    "DEFAULT pg_current_xact_id()."
                )
            return
        if of not in WHOLE_NUMBERS or not (identity or "nextval(" in default):
            raise SourceError(
                f"{where}: {cursor[0]} ({of}) is no column that an identity or a sequence fills. Whoever gives such "
                "values takes them before the row is written, so rows appear below others later (a time is that of its "
                f"transaction's beginning) and would be left out. ALTER TABLE {text} ADD txid xid8 NOT NULL DEFAULT "
                f'pg_current_xact_id(), and say cursor=("txid", "{cursor[0]}").'
            )
        if len(cursor) > 1:
            raise SourceError(
                f"{where}: behind {cursor[0]}, which is unique, the cursor needs no {', '.join(cursor[1:])}."
            )
        self._check_sequence(connection, cursor[0], text)

    def _check_sequence(self, connection: psycopg.Connection[Any], column: str, text: str) -> None:
        """Gives one number after the other. The sequences that the column's default uses, or its identity."""
        found = connection.execute(
            "SELECT s.seqrelid::bigint, s.seqrelid::regclass::text, s.seqincrement, s.seqcache, s.seqcycle "
            "FROM pg_sequence s WHERE s.seqrelid IN (SELECT objid FROM pg_depend WHERE refobjid = to_regclass(%(t)s) "
            "AND classid = 'pg_class'::regclass AND deptype IN ('a', 'i') AND refobjsubid = (SELECT attnum FROM "
            "pg_attribute WHERE attrelid = to_regclass(%(t)s) AND attname = %(c)s) UNION SELECT d.refobjid FROM "
            "pg_depend d JOIN pg_attrdef a ON a.oid = d.objid AND d.classid = 'pg_attrdef'::regclass WHERE "
            "a.adrelid = to_regclass(%(t)s) AND a.adnum = (SELECT attnum FROM pg_attribute WHERE attrelid = "
            "to_regclass(%(t)s) AND attname = %(c)s))",
            {"t": text, "c": column},
        ).fetchall()
        for oid, name, increment, cache, cycle in found:
            if increment < 1 or cache != 1 or cycle:
                raise SourceError(
                    f"{self._source.where}: the sequence {name} has INCREMENT {increment}, CACHE {cache}"
                    f"{', CYCLE' if cycle else ''}: a later row can have a lower number. ALTER SEQUENCE {name} "
                    "INCREMENT 1 CACHE 1 NO CYCLE."
                )
            self._sequence = oid

    def _check_not_back(self, connection: psycopg.Connection[Any], known: TableAt) -> None:
        """New rows under numbers that were read would be left out."""
        if self._types[0] == "xid8":
            last = int(_one(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0])
        else:
            told = (
                _one(connection, "SELECT pg_sequence_last_value(%s::oid)", self._sequence)[0]
                if self._sequence
                else None
            )
            if told is None:
                return  # without rights on the sequence; or nothing was drawn since it was restarted
            last = told
        if last < int(known.after[0]):
            raise SourceDiverged(
                f"{self._source.where}: it was read up to {_told(known)}, and the newest there ever was is {last} now: "
                "it was put back from a backup, or its sequence was restarted. Rows under numbers that were read would "
                "be left out, so nothing was read. Put the newer one back, or set the sequence beyond what was read."
            )

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, records_max: int) -> Portion | NotDone:
        if self._stop is not None:
            raise self._stop
        self._exhausted = False
        how = self._by_transaction if self._types[0] == "xid8" else self._by_sequence
        try:
            found = self._session.trying(lambda connection: how(connection, records_max))
        except _Waits as why:
            return NotDone(str(why))
        return found if isinstance(found, NotDone) else self._portion(found)

    def _by_transaction(self, connection: psycopg.Connection[Any], count: int) -> Any:
        first = sql.Identifier(self._source.cursor[0])
        settled = sql.SQL("{} < pg_snapshot_xmin(pg_current_snapshot())").format(first)
        found = self._select(connection, settled, count)
        if not found[1]:
            more = self._select(connection, sql.SQL("true"), 1)
            self._exhausted = not more[1]
            if more[1] and self._waited():
                raise _Waits(f"{self._source.where}: a transaction that is older than the newest rows is still open")
        else:
            self._since = 0.0
        return found

    def _by_sequence(self, connection: psycopg.Connection[Any], count: int) -> Any:
        column = sql.Identifier(self._source.cursor[0])
        if self._bound is None:
            if self._known is not None:
                self._check_not_back(connection, self._known)
            after, parameters = self._after()
            query = sql.SQL("SELECT max({}) FROM {} WHERE {}").format(column, self._table, after)
            bound = _one(connection, query, *parameters)[0]
            if bound is None:
                self._exhausted = True
                return [], []
            self._bound, self._holders, self._since = bound, self._held(connection), 0.0
        if self._holders:
            # A prepared transaction keeps its name until the server starts again, and has another one then.
            self._holders = frozenset(h for h in self._held(connection) if h in self._holders or h.startswith("-1/"))
            if self._holders:
                if self._waited():
                    raise _Waits(
                        f"{self._source.where}: open transactions have written to it and may still commit rows before "
                        f"those that are there ({self._told_holders(connection)})"
                    )
                return [], []
        found = self._select(connection, sql.SQL("{} <= {}").format(column, sql.Literal(self._bound)), count)
        if len(found[1]) < count:
            self._bound = None  # all of it was read: the next bound
        return found

    def _waited(self) -> bool:
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > WAIT_TOLD_S

    def _held(self, connection: psycopg.Connection[Any]) -> frozenset[str]:
        """The transactions that hold a lock under which rows are written, to the table or a partition of it. (Prepared
        ones are among them; those that were prepared before the server's start as -1/xid.)"""
        return frozenset(
            name
            for (name,) in connection.execute(
                "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted "
                "AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND (relation = %(t)s::oid "
                "OR relation IN (SELECT relid FROM pg_partition_tree(%(t)s::oid::regclass)))",
                {"t": self._oid},
            )
        )

    def _told_holders(self, connection: psycopg.Connection[Any]) -> str:
        pids = connection.execute(
            "SELECT DISTINCT pid FROM pg_locks WHERE virtualtransaction = ANY(%s)", (sorted(self._holders),)
        ).fetchall()
        return ", ".join(f"process {pid}" if pid is not None else "a prepared transaction" for (pid,) in pids)

    def _after(self) -> tuple[sql.Composable, tuple[str, ...]]:
        if self._known is None:
            return sql.SQL("true"), ()
        names = sql.SQL(", ").join(map(sql.Identifier, self._source.cursor))
        values = sql.SQL(", ").join(sql.SQL("%s::" + of) for of in self._types)  # format_type's own text
        return sql.SQL("({}) > ({})").format(names, values), self._known.after

    def _select(self, connection: psycopg.Connection[Any], more: sql.Composable, count: int) -> Any:
        after, parameters = self._after()
        # ORDER BY a bare name would be the column of the result: its text, "10" before "9".
        cursor = sql.SQL(", ").join(sql.Identifier("t", name) for name in self._source.cursor)
        marks = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in self._source.cursor)
        columns = (
            sql.SQL("*")
            if self._columns is None
            else sql.SQL(", ").join(map(sql.Identifier, self._columns))
            if self._columns
            else sql.SQL("NULL")
        )
        query = sql.SQL("SELECT {}, {} FROM {} AS t WHERE {} AND {} ORDER BY {} LIMIT {}").format(
            marks, columns, self._table, after, more, cursor, sql.Literal(count)
        )
        found = connection.execute(query, parameters)
        names = [column.name for column in (found.description or ())][len(self._source.cursor) :]
        return names, found.fetchall()

    def _portion(self, found: tuple[Sequence[str], Sequence[Sequence[Any]]]) -> Portion | NotDone:
        names, rows = found
        width = len(self._source.cursor)
        made: list[SourceRow] = []
        last: tuple[str, ...] = ()
        for row in rows:
            mark = tuple(row[:width])
            one = self._row(mark, dict(zip(names, row[width:], strict=True)))
            if one.refused and self._coder.stops:
                self._stop = SourceError(
                    f"{one.place}: {one.refused}: {excerpt(one.value or b'')}\nNeither it nor what follows was read. "
                    "Mend the row and start again, or say Topic(…, on_error='dead-letter')."
                )
                if not made:
                    raise self._stop
                break
            made.append(one)
            last = mark
        if not made:
            return Portion()
        self._read += len(made)
        self._known = TableAt(self._system, self._oid, self._source.cursor, last)
        return Portion(made, {self._name: msgspec.json.encode(self._known)})

    def _row(self, mark: tuple[str, ...], row: dict[str, Any]) -> SourceRow:
        at = f"{self._source.table}, {', '.join(f'{n}={v}' for n, v in zip(self._source.cursor, mark, strict=True))}"
        try:
            key, value = self._coder.record(row)
        except Refused as why:
            return SourceRow(at, None, shown(row), str(why))
        return SourceRow(at, key, value)

    def committed(self) -> None: ...

    def exhausted(self) -> bool:
        return self._exhausted

    def progress(self) -> str:
        return "" if self._known is None else f"read up to {_told(self._known)}"

    def close(self) -> None:
        self._session.close()


class _Waits(Exception):
    """Somebody's transaction is waited for, and has been for long: told as what does not go on."""


def _told(at: TableAt) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(at.cursor, at.after, strict=True))


def _one(connection: psycopg.Connection[Any], query: Any, *parameters: object) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None, query
    return row
