"""Cuts of one delivery as inserts into a ClickHouse table, each under its token.

Invariant: an INSERT is one cut, its token names that cut and nothing else, and it is not asynchronous; so the same cut
again, by whomever, has no effect while the table remembers the token. When it may not remember any more, nothing is
sent (`remind`), and nobody here says that it was or was not (`window.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import clickhouse_table as tables
from semel.sinks.clickhouse import token
from semel.sinks.clickhouse_session import Away, Session, Violated, quoted
from semel.sinks.clickhouse_types import committed, told
from semel.sinks.columns import canonical_row, columns_of, decode
from semel.sinks.rows import Shape, by_column, may_lack, split
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.clickhouse import ClickHouse
    from semel.sinks.clickhouse_appended import ClickHouseAppended

SETTINGS: dict[str, object] = {
    "async_insert": 0,  # its blocks are mixed with others', and an answer comes before they are there
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # One insert is one block, or a part of it could be seen, and remembered, without the rest.
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 1 << 40,
    "max_insert_block_size": 1 << 21,
    "max_insert_threads": 1,
}
SINCE_26 = ("deduplicate_insert", "enable")  # an older server has insert_deduplicate alone


# Between the look before a cut is written down and its INSERT lies one transaction of the log. Looked again after this.
FRESH_S = 0.25
FILLED_BY = 1_000  # inserts of everybody; of a smaller window it is looked at each time


class ClickHouseConnection:
    """See `ports.SinkConnection` and `window.Forgetful`."""

    keeps_nothing = True  # of a position

    def __init__(self, sink: ClickHouse, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._session = Session(sink)
        self._declared = sink.declared
        self._shape: Shape | None = None
        self._types: list[str] = []
        self._replicated = False
        self._settings = dict(SETTINGS)
        self._notes: list[str] = []
        self._until_ms: int | None = None
        self._seen: str | None = None
        self._looked = ("", 0.0)  # the newest block that this process saw, and when it asked

    def close(self) -> None:
        self._session.close()

    # --- the table ----------------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        try:
            self._prepare(value_type)
        except Away as why:
            return NotDone(str(why))
        return Done()

    def _prepare(self, value_type: object) -> None:
        sink, session = self._sink, self._session
        wanted = columns_of(value_type if sink.value_type is None else sink.value_type, sink.where)
        table = tables.table_of(session, sink.at.database, sink.table)
        if table is None:
            if wanted is None:
                raise SinkError(
                    f"{sink.where} does not exist, and the type of the values is not known here. "
                    "Say it: ClickHouse(…, value=TYPE), or create the table."
                )
            how = f"{tables.PLAIN} = {self._declared.inserts}, " + ", ".join(f"{name} = 1" for name in tables.SYNCED)
            session.command(tables.create_statement(sink.table, tables.created(wanted), "MergeTree", "tuple()", how))
            table = tables.table_of(session, sink.at.database, sink.table)
        assert table is not None, f"{sink.where} was just created"
        if not table.engine.endswith("MergeTree"):
            raise SinkError(
                f"{sink.where}: its engine is {table.engine}; tokens are remembered by the MergeTree family only. "
                "Name the table that holds the rows."
            )
        self._remembers(table)
        found = tables.columns_there(session, sink.at.database, sink.table)
        shape = tables.shape_of(sink, found, wanted)
        types = {column.name: column.type_text for column in found}
        self._types = [types[column.name] for column in shape.columns]
        self._replicated = table.replicated
        if session.knows(SINCE_26[0]):
            self._settings[SINCE_26[0]] = SINCE_26[1]
        self._notes = [
            f"{sink.where}: it tells a repeat for {sink.window}, counted over everybody's.",
            *tables.views_remember(session, sink, sink.at.database, table),
            *tables.weaknesses(session, sink, table),
        ]
        self._shape = shape

    def _remembers(self, table: tables.Table) -> None:
        window = tables.window_of(self._session, table)
        tables.held_to(self._sink, table, window, self._declared)
        self._sink.window = window  # from here on the contract says what the table has

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the window ---------------------------------------------------------------------------------------------------

    def seen(self) -> str | NotDone:
        """The table's last block. Its window is looked at, too: a person can change it any time."""
        try:
            asked = _now_s()  # before: what is counted then is at least as old
            rows = self._session.query(
                f"SELECT engine, engine_full, ({self._newest}) FROM system.tables "
                "WHERE database = {database:String} AND name = {name:String}",
                self._named,
            )
            if not rows:
                raise SinkError(f"{self._sink.where} is gone. Put it back, or start again, which makes it anew.")
            engine, full, newest = rows[0]
            self._remembers(tables.Table(engine, full, "", "", []))
            self._looked = (str(int(newest or 0)), asked)
            return self._looked[0]
        except Away as why:
            return NotDone(str(why))

    @property
    def _named(self) -> dict[str, str]:
        return {"database": self._sink.at.database, "name": self._sink.table}

    @property
    def _newest(self) -> str:
        """Grows with every insert by one at least. Blocks are counted by the table; by a replicated one per partition,
        where what is dropped would be missed, and nothing else is to be had."""
        what = "sum(newest)" if self._replicated else "max(newest)"
        return (
            f"SELECT {what} FROM (SELECT max(max_block_number) AS newest "
            "FROM system.parts WHERE database = {database:String} AND table = {name:String} GROUP BY partition_id)"
        )

    def _blocks(self) -> int:
        rows = self._session.query(self._newest, self._named)
        return int(rows[0][0] or 0) if rows else 0

    def inserts_since(self, seen: str) -> int | NotDone:
        try:
            return self._blocks() - int(seen)
        except Away as why:
            return NotDone(str(why))

    def remind(self, until_ms: int | None, seen: str) -> None:
        self._until_ms, self._seen = until_ms, seen

    def _late(self) -> Unknown | NotDone | None:
        """Whether the table may have forgotten by now that this cut was inserted: by another owner, while this process
        was stopped."""
        if self._until_ms is not None and time.time() * 1000 >= self._until_ms:
            return Unknown(f"{self._sink.where}: its window is over, so nothing was sent")
        if self._seen is None or self._just_seen(self._seen):
            return None
        since = self.inserts_since(self._seen)
        if isinstance(since, NotDone):
            return since
        if not 0 <= since <= (self._sink.window.inserts or 0):
            return Unknown(f"{self._sink.where}: {since:,} inserts came meanwhile, so nothing was sent")
        return None

    def _just_seen(self, seen: str) -> bool:
        """Whether it was this process that saw it, a moment ago, and nobody can have filled the window since: a server
        that makes a part of each insert takes no thousand in that time."""
        known, at_s = self._looked
        return seen == known and 0 <= _now_s() - at_s < FRESH_S and (self._sink.window.inserts or 0) >= FILLED_BY

    # --- a cut --------------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        if not log.topic_id:
            raise SinkError(
                f"{self._sink.where}: this log does not tell topic ids, so tokens of a topic made anew could not be "
                "told from old ones. Use a log that does (Apache Kafka 2.8 or newer, semel's own)."
            )
        return Claim(delivery, epoch=0, incarnation=0, position=-1, run="", log=log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        shape = self._shape
        assert start < end and shape is not None, (start, end)
        columns = values(shape, rows)
        self._steps.reached(Step.ROWS_BEFORE)
        if (late := self._late()) is not None:
            return late
        settings = {**self._settings, "insert_deduplication_token": self._token(claim, start, end, run)}
        outcome = inserted(self._session, [c.name for c in shape.columns], self._types, columns, settings, rows)
        if isinstance(outcome, Done):
            self._steps.reached(Step.ROWS_AFTER)
        return outcome

    def _token(self, claim: Claim, start: int, end: int, run: str) -> str:
        who, log = claim.delivery, claim.log
        place = (who.app, who.sink, f"{log.topic_id}.{log.partitions}.{claim.incarnation}", who.partition)
        return token(place, start, end, run)

    # --- for `semel sink`: what there is to move lies in the delivery topic -------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return []

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return Done()

    # --- for `semel verify` -------------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        return read(self._sink, self._session, self._shape, quoted(self._sink.table))

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical(self._shape, value)

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        self._session.command(f"DROP TABLE IF EXISTS {quoted(self._sink.table)} SYNC")


def _now_s() -> float:
    """Counts the time that the machine was suspended, where the system tells it."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


# --- what both sinks share --------------------------------------------------------------------------------------------


def values(shape: Shape, rows: Sequence[Row]) -> Sequence[Sequence[object]]:
    """Column by column. Raises RowRefused: also for a None where the table would make 0 or "" of it."""
    upserts, _ = split(shape, rows)
    columns = by_column(upserts)
    for column, held in zip(shape.columns, columns, strict=True):
        if not column.nullable and may_lack(upserts, column) and None in held:
            raise RowRefused(
                f"column {column.name!r} is not Nullable, its value is None, and 0 or '' would be there",
                list(upserts)[held.index(None)].offset,
            )
    return columns


def inserted(
    session: Session,
    names: Sequence[str],
    types: Sequence[str],
    columns: Sequence[Sequence[object]],
    settings: dict[str, object],
    rows: Sequence[Row],
) -> Outcome:
    try:
        session.insert(names, types, columns, settings)
    except Violated as why:
        raise RowRefused(str(why), rows[max(0, why.row)].offset) from None
    except Away as why:
        return Unknown(str(why)) if why.arrived else NotDone(str(why))
    return Done()


def read(sink: ClickHouse | ClickHouseAppended, session: Session, shape: Shape, of: str) -> list[bytes]:
    names = [column.name for column in shape.columns]
    text = ", ".join(map(quoted, names))
    try:
        found = session.query(f"SELECT {text} FROM {of}", query_formats={"String": "bytes"})
    except Away as why:
        raise SinkError(f"{why}. Try again when the server answers.") from None
    return [
        canonical_row(shape.columns, {c.name: told(c, value) for c, value in zip(shape.columns, row, strict=True)})
        for row in found
    ]


def canonical(shape: Shape, value: bytes) -> bytes:
    fields = decode(value)
    return canonical_row(shape.columns, {c.name: committed(c, fields.get(c.name)) for c in shape.columns})
