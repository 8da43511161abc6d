"""Postgres as a table that is only ever appended to: `PostgresAppended(dsn, "events")`. Contract: Deduplicated.

Each row carries the id of its event (`semel_event`); a repeat is appended like any other row, and the view TABLE_once
leaves it out. Nothing here needs the client library; `postgres_appended_connection.py` does the work.
"""

from __future__ import annotations

from typing import Any

from semel.contract import (
    Atomicity,
    Contract,
    Deduplicated,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    Resolution,
    Settlement,
)
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import Declared
from semel.sinks.dedup import ONCE
from semel.sinks.postgres import Postgres
from semel.sinks.sink import SinkError


def deduplicated(through: str, durability: str) -> Contract:
    """The contract of a sink that stores repeats, behind `through`, which removes them."""
    return Contract(
        name="Deduplicated",
        guarantee=Guarantee.EFFECTIVELY_ONCE,
        identity=Identity.EVENT_ID,
        atomicity=Atomicity.BATCH,
        remembers_position=False,
        fence=Fence.NONE,
        resolution=Resolution.SEND_AGAIN,
        durability=durability,
        position=PositionIn.SINK,
        settlement=Settlement.REPEATED,
        through=through,
    )


class PostgresAppended(Declared):
    """A table of a Postgres database (14 or newer) to which every value is appended with its event id.

    Readers use the view TABLE_once, which is created with the table; `semel dedup run` takes the repeats out of the
    table itself. `name`, `value` and `hand_over_s` are those of `Postgres`.
    """

    def __init__(
        self,
        dsn: str,
        table: str,
        *,
        name: str | None = None,
        value: Any = None,
        hand_over_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        plain = Postgres(dsn, table, name=name, value=value, hand_over_s=hand_over_s, _suffix=_suffix)
        if len((plain.table_name + ONCE + _suffix).encode()) > 63:
            raise SinkError(f"Postgres table {table!r}: with {ONCE} its name has more than 63 bytes.")
        self._plain, self._name = plain, plain.name
        self.dsn, self.schema, self.table_name, self.suffix = dsn, plain.schema, plain.table_name, _suffix
        self.value_type, self.hand_over_s = value, hand_over_s

    @property
    def table(self) -> str:
        return self._plain.table

    @property
    def view(self) -> str:
        """Where each record is once."""
        return ".".join(filter(None, (self.schema, self.table_name + ONCE + self.suffix)))

    @property
    def where(self) -> str:
        return self._plain.where

    @property
    def kind(self) -> type[Deduplicated]:
        return Deduplicated

    @property
    def contract(self) -> Contract:
        return deduplicated(
            f"the view {self.view} (or `semel dedup run`)",
            "Postgres with fsync=on (its default); semel sets synchronous_commit=on for the rows; the position follows "
            "asynchronously: if it is lost, rows are appended again",
        )

    def renamed(self, suffix: str) -> PostgresAppended:
        return PostgresAppended(
            self.dsn,
            ".".join(filter(None, (self.schema, self.table_name))),
            name=self.name,
            value=self.value_type,
            hand_over_s=self.hand_over_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.postgres_appended_connection import AppendedConnection
        except ModuleNotFoundError as missing:
            if missing.name != "psycopg":
                raise
            raise UsageError(f"{self.where} needs psycopg: pip install 'semel[postgres]'") from None
        return AppendedConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, appended>"
