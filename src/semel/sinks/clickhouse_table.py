"""A ClickHouse table, created or judged: its columns, and how long it, and the tables behind its materialized views,
remember what was inserted.

Invariant: a table is taken only if it remembers at least what the sink was declared with; one that remembers nothing
ignores every token, and takes a repeat like any other insert.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from semel.contract import Window
from semel.sinks.clickhouse_session import Session, quoted
from semel.sinks.clickhouse_types import CLICKHOUSE, HOLDS, converts, created_type, kind_of
from semel.sinks.columns import Column
from semel.sinks.rows import Shape
from semel.sinks.schema import Found, judged
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.clickhouse import ClickHouse
    from semel.sinks.clickhouse_appended import ClickHouseAppended

PLAIN, REPLICATED, SECONDS = (
    "non_replicated_deduplication_window",
    "replicated_deduplication_window",
    "replicated_deduplication_window_seconds",
)
SYNCED = ("fsync_after_insert", "fsync_part_directory")


class Table(NamedTuple):
    """One that is there, as system.tables tells of it."""

    engine: str
    engine_full: str
    partition_key: str
    create: str
    views: Sequence[tuple[str, str]]  # materialized views that read from it: (database, name)

    @property
    def replicated(self) -> bool:
        return self.engine.startswith(("Replicated", "Shared"))


def table_of(session: Session, database: str, name: str) -> Table | None:
    found = session.query(
        "SELECT engine, engine_full, partition_key, create_table_query, dependencies_database, dependencies_table "
        "FROM system.tables WHERE database = {database:String} AND name = {name:String}",
        {"database": database, "name": name},
    )
    if not found:
        return None
    engine, full, partition_key, create, databases, tables = found[0]
    return Table(engine, full, partition_key, create, list(zip(databases, tables, strict=True)))


def setting(session: Session, text: str, name: str) -> int:
    """Of a table whose statement is `text`; what it does not say is the server's."""
    if found := re.search(rf"\b{name} = '?(\d+)", text):
        return int(found[1])
    rows = session.query("SELECT value FROM system.merge_tree_settings WHERE name = {name:String}", {"name": name})
    return int(rows[0][0]) if rows else 0


def window_of(session: Session, table: Table) -> Window:
    if table.replicated:
        return Window(
            float(setting(session, table.engine_full, SECONDS)), setting(session, table.engine_full, REPLICATED)
        )
    return Window(None, setting(session, table.engine_full, PLAIN))


def held_to(sink: ClickHouse, table: Table, window: Window, declared: Window) -> None:
    """Raises SinkError where the table remembers less than was declared."""
    name = REPLICATED if table.replicated else PLAIN
    inserts = declared.inserts or 0
    if (window.inserts or 0) < inserts:
        forgets = "remembers no insert, so tokens are ignored and repeats are inserted again"
        less = f"remembers {window.inserts:,} inserts, the sink is declared with {inserts:,}"
        raise SinkError(
            f"{sink.where}: {name} is {window.inserts}: it {less if window.inserts else forgets}. ALTER TABLE "
            f"{quoted(sink.table)} MODIFY SETTING {name} = {inserts}"
            + (f"; or declare window_inserts={window.inserts}." if (window.inserts or 0) > 1 else ".")
        )
    if window.seconds is not None and (declared.seconds is None or window.seconds < declared.seconds):
        raise SinkError(
            f"{sink.where}: {SECONDS} is {window.seconds:g}, and the sink is declared with "
            f"window_s={declared.seconds}: declare window_s={window.seconds:g}, or less."
        )
    if window.seconds is None and declared.seconds is not None:
        raise SinkError(
            f"{sink.where}: it is not replicated, and forgets by inserts alone: leave out window_s={declared.seconds}."
        )


def views_remember(session: Session, sink: ClickHouse, database: str, table: Table) -> list[str]:
    """The tables that materialized views write into remember, too: a repeat that the table leaves out, they would not.
    Raises SinkError, or where that was accepted, says so."""
    forgetful: list[str] = []
    waiting, seen = list(table.views), set(table.views)
    while waiting:
        at = waiting.pop()
        view = table_of(session, *at)
        if view is None or view.engine != "MaterializedView":
            continue
        # … TO `db`.`table` …, or a table of its own, whose engine and settings stand in the view's statement.
        to = re.search(r"\sTO\s+`?([^`.\s(]+)`?\.`?([^`.\s(]+)`?", view.create)
        target = table_of(session, to[1], to[2]) if to else Table("", view.create, "", "", ())
        if target is None:
            continue
        text = target.engine_full
        own = target.replicated or " ENGINE = Replicated" in text
        if not setting(session, text, REPLICATED if own else PLAIN):
            forgetful.append(".".join(at))
        for more in target.views:
            if more not in seen:
                seen.add(more)
                waiting.append(more)
    if not forgetful:
        return []
    named = ", ".join(sorted(forgetful))
    if not sink.views_may_repeat:
        raise SinkError(
            f"{sink.where}: what its materialized views write into remembers no inserts ({named}): a cut that is sent "
            f"again would be there once, and twice behind them. Set {PLAIN} of those tables; or say "
            "views_may_repeat=True."
        )
    return [f"{sink.where}: its materialized views repeat what is sent again, which was accepted: {named}."]


def columns_there(session: Session, database: str, name: str) -> list[Found]:
    rows = session.query(
        "SELECT name, type, default_kind FROM system.columns WHERE database = {database:String} AND "
        "table = {name:String} ORDER BY position",
        {"database": database, "name": name},
    )
    found = []
    for column, text, default in rows:
        kind = kind_of(text)
        found.append(
            Found(
                column, text, kind.base, not kind.nullable, bool(default) or kind.nullable,
                default in ("MATERIALIZED", "ALIAS"), True, kind.digits, kind.scale,
            )
        )  # fmt: skip
    return found


def shape_of(sink: ClickHouse | ClickHouseAppended, found: Sequence[Found], wanted: Sequence[Column] | None) -> Shape:
    columns = judged(CLICKHOUSE, sink.where, found, wanted, None, [])
    return Shape(columns, converts(columns, found), None, sink.where)


def create_statement(name: str, columns: Sequence[tuple[str, str]], engine: str, order: str, settings: str) -> str:
    text = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns)
    return f"CREATE TABLE IF NOT EXISTS {quoted(name)} ({text}) ENGINE = {engine} ORDER BY {order} SETTINGS {settings}"


def created(columns: Sequence[Column]) -> list[tuple[str, str]]:
    return [(column.name, created_type(column)) for column in columns]


def weaknesses(session: Session, sink: ClickHouse | ClickHouseAppended, table: Table) -> list[str]:
    """What of the table's settings weakens the contract, in sentences."""
    notes = []
    if unsynced := [name for name in SYNCED if not setting(session, table.engine_full, name)]:
        notes.append(
            f"{sink.where}: {', '.join(unsynced)} is 0: a power cut of the server can lose inserts that it "
            "acknowledged (kill -9 cannot)."
        )
    if table.partition_key:
        notes.append(
            f"{sink.where}: it is partitioned by {table.partition_key}: a cut of several partitions becomes visible "
            "one by one."
        )
    return notes


assert set(HOLDS.values()) <= set(CLICKHOUSE.created)
