"""Batches of one delivery to a ClickHouse table whose rows carry the id of their event.

Invariant: every row has the id of the committed record that it is, whoever wrote it and however often, so rows of one
id are equal, and the view TABLE_once has each once. The id names the topic, too: offsets of a topic made anew begin
again, and its records are no repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from semel.contract import Claim, DeliveryId, LogIdentity, Row
from semel.ports import Done, NotDone, Outcome, Step, Steps
from semel.sinks import clickhouse_table as tables
from semel.sinks import dedup
from semel.sinks.clickhouse_connection import SETTINGS, canonical, inserted, read, values
from semel.sinks.clickhouse_session import Away, Session, quoted
from semel.sinks.columns import columns_of
from semel.sinks.dedup import EVENT, SqlDialect
from semel.sinks.rows import Shape
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.clickhouse_appended import ClickHouseAppended

KEEPS = ("ReplacingMergeTree", "ReplicatedReplacingMergeTree", "SharedReplacingMergeTree")


class ClickHouseAppendedConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: ClickHouseAppended, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._session = Session(sink)
        self._shape: Shape | None = None
        self._types: list[str] = []
        self._notes: list[str] = []

    def close(self) -> None:
        self._session.close()

    def prepare(self, value_type: object) -> Done | NotDone:
        try:
            self._prepare(value_type)
        except Away as why:
            return NotDone(str(why))
        return Done()

    def _prepare(self, value_type: object) -> None:
        sink, session = self._sink, self._session
        wanted = columns_of(value_type if sink.value_type is None else sink.value_type, sink.where)
        if EVENT in {column.name for column in wanted or ()}:
            raise SinkError(f"{sink.where}: the field {EVENT!r} is semel's own column. Rename it.")
        table = tables.table_of(session, sink.at.database, sink.table)
        if table is None:
            if wanted is None:
                raise SinkError(
                    f"{sink.where} does not exist, and the type of the values is not known here. "
                    "Say it: ClickHouseAppended(…, value=TYPE), or create the table."
                )
            columns = [*tables.created(wanted), (EVENT, "String")]
            settings = ", ".join(f"{name} = 1" for name in tables.SYNCED)
            session.command(
                tables.create_statement(sink.table, columns, "ReplacingMergeTree", f"({quoted(EVENT)})", settings)
            )
            table = tables.table_of(session, sink.at.database, sink.table)
        assert table is not None, f"{sink.where} was just created"
        if table.engine not in KEEPS or EVENT not in table.create.partition("ORDER BY")[2]:
            raise SinkError(
                f"{sink.where}: its engine is {table.engine}; wanted is a ReplacingMergeTree whose ORDER BY ends with "
                f"{EVENT}: others keep every repeat for ever, or take rows for repeats that are none."
            )
        found = tables.columns_there(session, sink.at.database, sink.table)
        event = next((column for column in found if column.name == EVENT), None)
        if event is None or event.base != "String" or not event.not_null:
            raise SinkError(f"{sink.where}: its column {EVENT} is to be a String that is not Nullable.")
        shape = tables.shape_of(sink, [column for column in found if column.name != EVENT], wanted)
        types = {column.name: column.type_text for column in found}
        self._types = [*(types[column.name] for column in shape.columns), "String"]
        self._has_view([column.name for column in shape.columns])
        self._notes = tables.weaknesses(session, sink, table)
        self._shape = shape

    def _has_view(self, columns: Sequence[str]) -> None:
        """One that is there is left as it is, if it has what is written: a person may have made it."""
        sink, session = self._sink, self._session
        view = tables.table_of(session, sink.at.database, sink.view)
        if view is None:
            text = dedup.view(SqlDialect.CLICKHOUSE, (sink.table,), columns, name=(sink.view,))
            return session.command(text)
        if not view.engine.endswith("View"):
            raise SinkError(
                f"{sink.where}: {sink.view} is no view. Rename it: the view without repeats wants its name."
            )
        there = {column.name for column in tables.columns_there(session, sink.at.database, sink.view)}
        if lacks := sorted(set(columns) - there):
            raise SinkError(
                f"{sink.where}: its view {sink.view} has no column {lacks[0]!r}. DROP VIEW {sink.view}; the next start "
                "makes it anew."
            )
        return None

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        """The group's offsets are the position: nobody is fenced, and need not be."""
        return Claim(delivery, epoch=0, incarnation=1, position=0, run="", log=log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        shape = self._shape
        assert shape is not None, "prepare comes first"
        if not rows:
            return Done()
        if not claim.log.topic_id:
            raise SinkError(
                f"{self._sink.where}: this log does not tell topic ids, so events of a topic made anew could not be "
                "told from old ones. Use a log that does (Apache Kafka 2.8 or newer, semel's own)."
            )
        columns = [*values(shape, rows), [self._event(claim, row.offset) for row in rows]]
        self._steps.reached(Step.ROWS_BEFORE)
        names = [*(column.name for column in shape.columns), EVENT]
        outcome = inserted(self._session, names, self._types, columns, SETTINGS, rows)
        if isinstance(outcome, Done):
            self._steps.reached(Step.ROWS_AFTER)
        return outcome

    def _event(self, claim: Claim, offset: int) -> str:
        who, log = claim.delivery, claim.log
        of = f"{who.app}/{who.sink}/{log.topic_id}.{log.partitions}"
        return f"{of}.{claim.incarnation}/{who.partition}/{offset}"

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        """Through the view: what the contract promises is promised there."""
        assert self._shape is not None, "prepare comes first"
        return read(self._sink, self._session, self._shape, quoted(self._sink.view))

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical(self._shape, value)

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        self._session.command(f"DROP VIEW IF EXISTS {quoted(self._sink.view)} SYNC")
        self._session.command(f"DROP TABLE IF EXISTS {quoted(self._sink.table)} SYNC")
