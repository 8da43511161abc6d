"""MariaDB as a sink: `MariaDB("mysql://user:password@host/db", "totals", key="customer")`. Contract: Transactional.

Nothing here needs the client library; `mariadb_connection.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from semel.contract import Contract, Transactional
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import Declared
from semel.sinks.positions import TABLE, transactional
from semel.sinks.sink import SinkError, key_fields

CONTRACT = transactional("InnoDB with innodb_flush_log_at_trx_commit=1 (its default); semel says so where it is not 1")
NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. The password is in no text of it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def address_of(url: str) -> Address:
    """mysql://USER:PASSWORD@HOST:PORT/DATABASE?unix_socket=…&ssl_ca=…; SinkError says what is missing, not what is
    there."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 3306
    except ValueError:
        raise SinkError("MariaDB: the address cannot be read; wanted is mysql://USER:PASSWORD@HOST:PORT/DB.") from None
    database = unquote(parts.path.strip("/"))
    options = dict(parse_qsl(parts.query))
    if parts.scheme not in ("mysql", "mariadb") or not database or "/" in database:
        raise SinkError(f"MariaDB at {host}:{port}: wanted is mysql://USER:PASSWORD@HOST:PORT/DATABASE.")
    if strange := options.keys() - {"unix_socket", "ssl_ca"}:
        raise SinkError(
            f"MariaDB at {host}:{port}: no option {sorted(strange)[0]!r}; there are unix_socket and ssl_ca."
        )
    return Address(host, port, unquote(parts.username or ""), unquote(parts.password or ""), database, options)


class MariaDB(Declared):
    """An InnoDB table of a MariaDB database (10.7 or newer).

    With `key`, a row per key that the last value replaces, and a value None deletes; without, every value is
    inserted. `value` is the type of the values where the topology cannot tell it; the table is created from it when
    it is not there. `hand_over_s` bounds how long an owner that has stopped may hold its locks.
    """

    def __init__(
        self,
        url: str,
        table: str,
        *,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        value: Any = None,
        hand_over_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        database, _, last = table.rpartition(".")
        if not last or "." in database:
            raise SinkError(f"MariaDB table {table!r}: wanted is TABLE or DATABASE.TABLE.")
        for given in (last + _suffix, TABLE + _suffix):
            if len(given) > NAME_MAX:
                raise SinkError(f"MariaDB table {given!r}: a name has at most {NAME_MAX} characters.")
        if hand_over_s < 2:
            raise SinkError(f"hand_over_s={hand_over_s}: at least 2 seconds (MariaDB counts in whole ones).")
        self.url = url
        self.at = address_of(url)
        self.database, self.table_name, self.suffix = database or self.at.database, last, _suffix
        self.value_type, self.hand_over_s = value, hand_over_s
        self._given = table
        self._key = key_fields(key)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", table)

    @property
    def table(self) -> str:
        return f"{self.database}.{self.table_name}{self.suffix}"

    @property
    def where(self) -> str:
        return f"MariaDB table {self.table_name}{self.suffix} at {self.at.host}:{self.at.port}/{self.database}"

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> MariaDB:
        return MariaDB(
            self.url,
            self._given,
            key=self._key,
            name=self._name,
            value=self.value_type,
            hand_over_s=self.hand_over_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.mariadb_connection import MariaDBConnection
        except ModuleNotFoundError as missing:
            if missing.name != "pymysql":
                raise
            raise UsageError(f"{self.where} needs PyMySQL: pip install 'semel[mariadb]'") from None
        return MariaDBConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"
