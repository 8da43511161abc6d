"""What people write first: an INSERT per record, the position elsewhere. Its contract is honest: at least once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg

from semel.contract import (
    Atomicity,
    Claim,
    Contract,
    DeliveryId,
    Fence,
    Guarantee,
    Identity,
    LogIdentity,
    Resolution,
    Row,
    Weak,
)
from semel.ports import Done, Outcome, Step
from semel.sinks.sink import encode_row

CONTRACT = Contract(
    name="AtLeastOnce",
    guarantee=Guarantee.AT_LEAST_ONCE,
    identity=Identity.NONE,
    atomicity=Atomicity.BATCH,
    remembers_position=False,
    fence=Fence.NONE,
    resolution=Resolution.NONE,
    durability="fsync=on",
)


class NaiveInsert:
    """Values with the two fields of `columns`, into a table that is there or is made."""

    kind = Weak
    contract = CONTRACT
    key = None

    def __init__(self, dsn: str, table: str, columns: tuple[str, str]) -> None:
        self.dsn, self.table, self.columns = dsn, table, columns
        self.name = self.where = table

    def encode_key(self, value: object) -> bytes | None:
        return None

    def encode_deleted(self, key: object) -> bytes:
        return str(key).encode()

    def encode_value(self, value: object) -> bytes:
        return encode_row(value)

    def renamed(self, suffix: str) -> NaiveInsert:
        return NaiveInsert(self.dsn, self.table + suffix, self.columns)

    def open(self, steps: Any) -> NaiveConnection:
        return NaiveConnection(self, steps)


class NaiveConnection:
    def __init__(self, sink: NaiveInsert, steps: Any) -> None:
        self._sink, self._steps = sink, steps
        self._connection: Any = psycopg.connect(sink.dsn, autocommit=True)

    def prepare(self, value_type: object) -> Done:
        one, two = self._sink.columns
        self._connection.execute(f'CREATE TABLE IF NOT EXISTS "{self._sink.table}" ({one} text, {two} bigint)')
        return Done()

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        return Claim(delivery, 0, 1, 0, "", log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        self._steps.reached(Step.ROWS_BEFORE)
        values = [tuple(msgspec.json.decode(row.value or b"{}").values()) for row in rows]
        with self._connection.cursor() as cursor:
            cursor.executemany(f'INSERT INTO "{self._sink.table}" VALUES (%s, %s)', values)
        self._steps.reached(Step.ROWS_AFTER)
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def rows(self) -> Sequence[bytes]:
        found = self._connection.execute(f'SELECT * FROM "{self._sink.table}"').fetchall()
        return [msgspec.json.encode(dict(zip(self._sink.columns, row, strict=True))) for row in found]

    def canonical(self, value: bytes) -> bytes:
        return value

    def drop(self) -> None:
        self._connection.execute(f'DROP TABLE IF EXISTS "{self._sink.table}"')

    def close(self) -> None:
        self._connection.close()
