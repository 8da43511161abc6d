"""ClickHouse as a sink: `ClickHouse("http://host:8123/db", "orders")`. Contract: Windowed.

Each cut of the outbox is one INSERT under a token that names it; the table remembers the tokens of its last inserts,
and no more of them than its settings say. Nothing here needs the client library; `clickhouse_connection.py` does the
work, `clickhouse_table.py` judges the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    Resolution,
    Settlement,
    Window,
    Windowed,
)
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.sink import SinkError

CONTRACT = Contract(
    name="Windowed",
    guarantee=Guarantee.ONCE_IN_WINDOW,
    identity=Identity.TOKEN,
    atomicity=Atomicity.BATCH,
    remembers_position=False,
    fence=Fence.FIRST_ANSWER,
    resolution=Resolution.SEND_AGAIN,
    durability="kill -9: always; a power cut: fsync_after_insert=1 and fsync_part_directory=1 of the table, which a "
    "table that semel makes has; semel says where they are 0",
    position=PositionIn.DELIVERY_TOPIC,
    settlement=Settlement.CUT_REPEATED,
)
INSERTS = 10_000  # the window of a table that semel makes
ROWS_MAX = 1_000_000  # an insert of more is split into blocks, each visible by itself (max_insert_block_size)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. The password is in no text of it."""

    host: str
    port: int
    tls: bool
    user: str
    password: str = field(repr=False)
    database: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def address_of(url: str) -> Address:
    """http(s)://USER:PASSWORD@HOST:PORT/DATABASE; SinkError says what is missing, not what is there."""
    wanted = "wanted is http://USER:PASSWORD@HOST:8123/DATABASE, or https"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise SinkError(f"ClickHouse: the address cannot be read; {wanted}.") from None
    database = unquote(parts.path.strip("/")) or "default"
    if parts.scheme not in ("http", "https") or not host or "/" in database or parts.query:
        raise SinkError(f"ClickHouse at {host or '?'}: {wanted}.")
    tls = parts.scheme == "https"
    user, password = unquote(parts.username or "default"), unquote(parts.password or "")
    return Address(host, port or (8443 if tls else 8123), tls, user, password, database)


def named(table: str, kind: str) -> str:
    if not table or "." in table or "`" in table:
        raise SinkError(f"{kind} table {table!r}: wanted is the name of a table; its database stands in the address.")
    return table


class ClickHouse(Declared):
    """A table of ClickHouse (tried on 26.9) to which every value is appended, by HTTP.

    The table is created from the type of the values (`value` where the topology cannot tell it), or validated: its
    engine is of the MergeTree family, and it remembers at least the last `window_inserts` inserts, of everybody
    (non_replicated_deduplication_window; of replicated engines replicated_deduplication_window, and `window_s` seconds
    at least). A table that remembers none is refused, as is one whose materialized views write into tables that
    remember none, unless `views_may_repeat`. A cut is due at `records` records, `bytes` bytes, or `seconds` after its
    first record. `timeout_s` bounds each wait for an answer; `compress` the inserts on their way.
    """

    def __init__(
        self,
        url: str,
        table: str,
        *,
        name: str | None = None,
        value: Any = None,
        window_inserts: int = INSERTS,
        window_s: float | None = None,
        views_may_repeat: bool = False,
        records: int = 100_000,
        bytes: int = 32 << 20,
        seconds: float = 1.0,
        timeout_s: float = 30.0,
        compress: bool = False,
        _suffix: str = "",
    ) -> None:
        self.at, self.table_name, self.suffix = address_of(url), named(table, "ClickHouse"), _suffix
        if window_inserts < 2 or (window_s is not None and window_s <= timeout_s):
            raise SinkError(
                f"ClickHouse table {table!r}: a window of {Window(window_s, window_inserts)} is none: 2 inserts at "
                f"least, and longer than an answer may take (timeout_s={timeout_s:g})."
            )
        if not 1 <= records <= ROWS_MAX or bytes < 1 or seconds <= 0 or timeout_s <= 0:
            raise SinkError(
                f"ClickHouse table {table!r}: records of a cut are 1 to {ROWS_MAX:,}: an insert of more is split. "
                "bytes, seconds and timeout_s are above 0."
            )
        self.declared = Window(window_s, window_inserts)
        self.window = self.declared  # when a table was judged, what it has
        self.views_may_repeat, self.compress = views_may_repeat, compress
        self.rule = Rule(records, bytes, int(seconds * 1000))
        self.value_type, self.timeout_s = value, timeout_s
        self._given: dict[str, Any] = {
            "window_inserts": window_inserts, "window_s": window_s, "views_may_repeat": views_may_repeat,
            "records": records, "bytes": bytes, "seconds": seconds, "timeout_s": timeout_s, "compress": compress,
            "value": value,
        }  # fmt: skip
        self.url = url
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", table)

    @property
    def table(self) -> str:
        return self.table_name + self.suffix

    @property
    def where(self) -> str:
        return f"ClickHouse table {self.table} at {self.at}"

    @property
    def kind(self) -> type[Windowed]:
        return Windowed

    @property
    def contract(self) -> Contract:
        """Its window is what was declared, which the table is held to; once it was judged, what it has."""
        return replace(CONTRACT, window=self.window)

    def renamed(self, suffix: str) -> ClickHouse:
        return ClickHouse(self.url, self.table_name, name=self._name, _suffix=self.suffix + suffix, **self._given)

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.clickhouse_connection import ClickHouseConnection
        except ModuleNotFoundError as missing:
            raise lacking(missing, self.where) from None
        return ClickHouseConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}>"


def lacking(missing: ModuleNotFoundError, where: str) -> Exception:
    if missing.name != "clickhouse_connect":
        return missing
    return UsageError(f"{where} needs clickhouse-connect: pip install 'semel[clickhouse]'")


def token(claim_place: Sequence[object], start: int, end: int, run: str) -> str:
    """Of one cut: whose, which, and of which records. The mark of its last record is a part of it, so that other
    records that came to the same offsets (a log put back) are not dropped under the token of the first."""
    return f"{'/'.join(map(str, claim_place))}/[{start},{end})/{run}"
