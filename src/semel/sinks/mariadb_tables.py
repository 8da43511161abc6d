"""MariaDB's tables: created from the values' type or judged against it.

Invariant: rows and positions lie in InnoDB, which alone writes both in one transaction; and a keyed table has no other
unique index than the key's, because ON DUPLICATE KEY UPDATE would take its conflicts for a row to replace.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from semel.contract import DeliveryId, LogIdentity
from semel.sinks import positions
from semel.sinks.columns import Column
from semel.sinks.mariadb_types import DISTINCT, MARIADB, converts, exact, key_type
from semel.sinks.rows import Shape
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.mariadb import MariaDB

BINARY = "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"


def execute(connection: Any, statement: str | bytes, *parameters: object) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement, parameters or None)
    return cursor


_ESCAPED = re.compile("[\\0\\n\\r\\x1a\"'\\\\]")  # by the client; within quotes all else stands for itself


def literals_of(connection: Any, values: Sequence[object]) -> Sequence[str]:
    """As the client escapes each of a column's values."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return list(map(str, values))
    if kinds == {str} and not _ESCAPED.search("".join(cast("Sequence[str]", values))):
        return [f"'{value}'" for value in values]
    return [connection.escape(value, connection.encoders) for value in values]


def one(connection: Any, statement: str, *parameters: object) -> Any:
    row = execute(connection, statement, *parameters).fetchone()
    assert row is not None, statement
    return row


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def names(fields: Sequence[str]) -> str:
    return ", ".join(map(quoted, fields))


Asked = tuple[DeliveryId, LogIdentity] | None  # who prepares, where it is a claim


def create(connection: Any, sink: MariaDB, control: str, wanted: Sequence[Column] | None, asked: Asked) -> bool:
    """The control table and the rows' table, where they are not there. The caller holds a lock: two workers start.
    False where the rows' table is gone and positions say that it was delivered: whose they are, the claim knows."""
    database = quoted(sink.database)
    if not there(connection, sink.database, control):
        execute(
            connection,
            f"CREATE TABLE {database}.{quoted(control)} (app varchar(255) NOT NULL, sink varchar(255) NOT NULL, "
            "`partition` int NOT NULL, epoch bigint NOT NULL, `position` bigint NOT NULL, run text NOT NULL, "
            "topic_id varchar(255) NOT NULL, partitions int NOT NULL, incarnation int NOT NULL, holder text NOT NULL, "
            "holder_lock varchar(64) NOT NULL, updated datetime(6) NOT NULL, PRIMARY KEY (app, sink, `partition`)) "
            f"ENGINE = InnoDB {BINARY}",
        )
    table = sink.table_name + sink.suffix
    if there(connection, sink.database, table):
        return True
    if _delivered(connection, sink, control, asked):
        return False
    if sink.suffix and there(connection, sink.database, sink.table_name):
        # For `semel verify`, whose table is like the user's: one that rounds values or holds two keys for equal must
        # do so there, too.
        _kept(connection, sink, sink.table_name)
        execute(connection, f"CREATE TABLE {database}.{quoted(table)} LIKE {database}.{quoted(sink.table_name)}")
    elif wanted is not None:
        kinds = dict(created(MARIADB, wanted, sink.key))
        kinds |= {c.name: key_type(c) + " NOT NULL" for c in wanted if c.name in (sink.key or ())}
        parts = [f"{quoted(name)} {kind}" for name, kind in kinds.items()]
        if sink.key is not None:
            parts.append(f"PRIMARY KEY ({names(sink.key)})")
        execute(connection, f"CREATE TABLE {database}.{quoted(table)} ({', '.join(parts)}) ENGINE = InnoDB {BINARY}")
    else:
        raise SinkError(
            f"{sink.where} does not exist, and the type of the values is not known here. "
            "Say it: MariaDB(…, value=TYPE), or create the table."
        )
    return True


def _delivered(connection: Any, sink: MariaDB, control: str, asked: Asked) -> bool:
    text = f"{quoted(sink.database)}.{quoted(control)}"
    found = execute(
        connection,
        f"SELECT `partition`, `position` FROM {text} WHERE sink = %s AND app = coalesce(%s, app) AND run <> '' "
        "ORDER BY `partition`",
        sink.name,
        asked and asked[0].app,
    ).fetchall()
    if found and asked is not None:
        positions.table_gone(*asked, found, sink.where, text)
    return bool(found)


def there(connection: Any, database: str, table: str) -> bool:
    found = execute(
        connection,
        "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s",
        database,
        table,
    ).fetchone()
    return found is not None


def judge(connection: Any, sink: MariaDB, control: str, wanted: Sequence[Column] | None) -> Shape:
    table = sink.table_name + sink.suffix
    for name in (control, table):
        _kept(connection, sink, name)
    found = _found(connection, sink.database, table)
    unique = _unique(connection, sink.database, table)
    columns = judged(MARIADB, sink.where, found, wanted, sink.key, list(unique.values()))
    if sink.key is not None:
        for index, fields in unique.items():
            if fields != frozenset(sink.key):
                raise SinkError(
                    f"{sink.where}: the unique index {index} on ({', '.join(sorted(fields))}) is not the key's. "
                    "MariaDB would replace the row that it conflicts with, whatever its key. Drop it."
                )
    return Shape(columns, exact(columns, found, converts(columns)), sink.key, sink.where)


def _kept(connection: Any, sink: MariaDB, table: str) -> None:
    """Refuses what takes no part in a transaction, or is kept somewhere else."""
    kind, engine = one(
        connection,
        "SELECT table_type, coalesce(engine, '') FROM information_schema.tables "
        "WHERE table_schema = %s AND table_name = %s",
        sink.database,
        table,
    )
    if kind != "BASE TABLE":
        raise SinkError(f"{sink.where}: {table} is no table ({kind}). Name a table.")
    if engine != "InnoDB":
        raise SinkError(
            f"{sink.where}: {table} is {engine}, which takes no part in a transaction: rows would stay when the "
            f"position does not. ALTER TABLE {table} ENGINE = InnoDB."
        )


def _found(connection: Any, database: str, table: str) -> list[Found]:
    rows = execute(
        connection,
        "SELECT column_name, column_type, data_type, is_nullable, column_default, extra, "
        "coalesce(generation_expression, ''), collation_name, character_maximum_length, numeric_precision, "
        "numeric_scale, datetime_precision FROM information_schema.columns WHERE table_schema = %s AND table_name = %s "
        "ORDER BY ordinal_position",
        database,
        table,
    ).fetchall()
    return [_column(*row) for row in rows]


def _column(
    name: str,
    type_text: str,
    base: str,
    nullable: str,
    default: str | None,
    extra: str,
    expression: str,
    collation: str | None,
    characters: int | None,
    precision: int | None,
    scale: int | None,
    fraction: int | None,
) -> Found:
    generated = bool(expression) or "GENERATED" in extra.upper()
    length = digits = None
    if base in ("varchar", "char"):
        length = characters
    elif base == "decimal":
        length, digits = precision, scale
    elif base in ("datetime", "timestamp", "time") and fraction != 6:  # six is all that is committed
        digits = fraction or 0
    return Found(
        name=name,
        type_text=type_text,
        base="tinyint(1)" if type_text.startswith("tinyint(1)") else base,
        not_null=nullable == "NO",
        filled=generated or "auto_increment" in extra.lower() or (default is not None and default.upper() != "NULL"),
        generated=generated,
        deterministic=collation is None or collation.endswith(DISTINCT),
        length=length,
        scale=digits,
    )


def _unique(connection: Any, database: str, table: str) -> dict[str, frozenset[str]]:
    """The unique indexes, by name, over whole columns."""
    found: dict[str, set[str]] = {}
    for index, column, part in execute(
        connection,
        "SELECT index_name, column_name, sub_part FROM information_schema.statistics "
        "WHERE table_schema = %s AND table_name = %s AND non_unique = 0",
        database,
        table,
    ).fetchall():
        found.setdefault(index, set()).add(column if part is None else f"{column}({part})")
    return {index: frozenset(columns) for index, columns in found.items()}


def weaknesses(connection: Any, sink: MariaDB) -> list[str]:
    notes = []
    flush, doublewrite = one(connection, "SELECT @@innodb_flush_log_at_trx_commit, @@innodb_doublewrite")
    if flush != 1:
        notes.append(
            f"{sink.where}: innodb_flush_log_at_trx_commit={flush}: what this server acknowledged can be lost in its "
            "crash or a power cut, rows and position together. Set it to 1."
        )
    if doublewrite in (0, "OFF"):
        notes.append(f"{sink.where}: innodb_doublewrite=OFF: a power cut can tear the server's pages.")
    triggers = one(
        connection,
        "SELECT count(*) FROM information_schema.triggers WHERE event_object_schema = %s AND event_object_table = %s",
        sink.database,
        sink.table_name + sink.suffix,
    )[0]
    if triggers:
        notes.append(f"{sink.where}: it has triggers; what they do outside this database is not part of the promise.")
    return notes
