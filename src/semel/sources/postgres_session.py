"""One session with Postgres for reading: connected when first asked, and again after a loss.

Invariant: whoever is away or busy is NotDone; what only a person can mend is a SourceError; no password is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from semel.ports import NotDone
from semel.sinks.postgres_session import DSN_FORMS, HOPELESS, HUMAN, _Bounded, brief
from semel.sources.source import SourceError

BOUND_S = 60.0
Answer = TypeVar("Answer")


class ReadingSession:
    def __init__(self, dsn: str, where: str) -> None:
        self._dsn, self._where = dsn, where
        self._connection: psycopg.Connection[Any] | None = None

    def connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        ours = {
            "connect_timeout": "10",
            "keepalives_idle": "5",
            "keepalives_interval": "2",
            "keepalives_count": "3",
            "application_name": "semel ingest",
        }
        try:
            ours.update({name: str(value) for name, value in conninfo_to_dict(self._dsn).items()})
        except psycopg.ProgrammingError:  # libpq quotes what it cannot read, and the password with it
            raise SourceError(f"{self._where}: the connection string cannot be read. {DSN_FORMS}") from None
        try:
            connection = _Bounded.connect(make_conninfo(**ours), autocommit=True, row_factory=tuple_row)
            connection.bound_s = BOUND_S + 5
            for name, value in (("statement_timeout", f"{BOUND_S:.0f}s"), ("TimeZone", "UTC")):
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        except psycopg.OperationalError as why:
            text = brief(why)
            if any(sign in text for sign in HOPELESS) and "starting up" not in text:
                raise SourceError(f"{self._where} refuses us: {text}.") from None
            raise
        self._connection = connection
        return connection

    def trying(self, what: Callable[[psycopg.Connection[Any]], Answer]) -> Answer | NotDone:
        try:
            return what(self.connected())
        except psycopg.Error as why:
            state = why.sqlstate or ""
            if state[:2] in HUMAN:
                raise SourceError(f"{self._where}: {brief(why)} (SQLSTATE {state}).") from None
            if self._connection is not None:
                self._connection.close()
            return NotDone(f"{self._where}: {brief(why)}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
