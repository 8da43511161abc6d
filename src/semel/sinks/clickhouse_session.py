"""One client of a ClickHouse server: statements and inserts, and what their errors mean.

Invariant: nothing is sent twice by the client library, which by itself repeats an INSERT whose connection was lost
(clickhouse-connect 1.12: `retryable=True` for inserts, once at least whatever `query_retries` says). An error says
whether the statement can have had its effect: `Away` without `arrived` it cannot; anything that the server, or the
wire, leaves open counts as arrived.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError
from clickhouse_connect.driver.httputil import get_pool_manager
from urllib3.exceptions import HTTPError

from semel.sinks.clickhouse import Address
from semel.sinks.sink import SinkError

logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())  # what it says is said by us

CONNECT_S = 5
# What a person mends: rights, passwords, a table or database that is gone or of another shape, a setting that may not
# be changed, values that were judged to fit.
FINAL = frozenset((6, 10, 16, 20, 27, 36, 44, 53, 60, 70, 73, 80, 81, 115, 164, 192, 193, 194, 291, 452, 497, 516))
CONSTRAINT = 469


class Away(Exception):
    """No answer, or one that leaves the outcome open. `arrived`: the statement may have had its effect."""

    def __init__(self, reason: str, arrived: bool) -> None:
        super().__init__(reason)
        self.arrived = arrived


class _Lost(Exception):
    """No answer. No HTTPError of urllib3's, which the client would answer by sending again."""


class Violated(Exception):
    """A constraint of the table refuses a row. `row` counts from 0; -1: it was not said."""

    def __init__(self, reason: str, row: int) -> None:
        super().__init__(reason)
        self.row = row


class Declared(Protocol):
    """What of a sink's declaration a session needs."""

    at: Address
    timeout_s: float
    compress: bool

    @property
    def where(self) -> str: ...
    @property
    def table(self) -> str: ...


class Session:
    def __init__(self, sink: Declared) -> None:
        self._sink = sink
        self._made: Any = None

    def _client(self) -> Any:
        if self._made is None:
            at = self._sink.at
            pool: Any = get_pool_manager()
            exchange = pool.request

            def once(*words: Any, **more: Any) -> Any:
                try:
                    return exchange(*words, **{**more, "retries": 0})
                except HTTPError as why:
                    raise _Lost from (getattr(why, "reason", None) or why)

            pool.request = once
            made: Any = clickhouse_connect.get_client(
                host=at.host,
                port=at.port,
                secure=at.tls,
                username=at.user,
                password=at.password,
                database=at.database,
                compress=self._sink.compress,
                connect_timeout=CONNECT_S,
                send_receive_timeout=self._sink.timeout_s,
                autogenerate_session_id=False,  # a session holds one statement at a time, also one that was cut off
                query_retries=0,
                show_clickhouse_errors="scrub",
                pool_mgr=pool,
            )
            self._made = made
        return self._made

    def knows(self, setting: str) -> bool:
        """Whether this server has a setting of this name."""
        try:
            return setting in self._client().server_settings
        except (ClickHouseError, _Lost) as why:
            raise self._judged(why) from None

    def query(self, sql: str, parameters: Mapping[str, object] | None = None, **more: Any) -> Sequence[Sequence[Any]]:
        try:
            found: Sequence[Sequence[Any]] = self._client().query(sql, parameters=parameters, **more).result_rows
            return found
        except (ClickHouseError, _Lost) as why:
            raise self._judged(why) from None

    def command(self, sql: str) -> None:
        try:
            self._client().command(sql)
        except (ClickHouseError, _Lost) as why:
            raise self._judged(why) from None

    def insert(
        self,
        names: Sequence[str],
        types: Sequence[str],
        columns: Sequence[Sequence[object]],
        settings: Mapping[str, object],
    ) -> None:
        """One INSERT. Raises Away, Violated or SinkError."""
        try:
            self._client().insert(
                quoted(self._sink.table), columns, column_names=list(names), column_type_names=list(types),
                column_oriented=True, settings=dict(settings),
            )  # fmt: skip
        except DataError as why:
            raise SinkError(f"{self._sink.where}: the client cannot write a column: {brief(why)}.") from None
        except (ClickHouseError, _Lost) as why:
            raise self._judged(why) from None

    def _judged(self, why: Exception) -> Exception:
        if isinstance(why, _Lost):
            kind = type(why.__cause__).__name__
            refused = kind in ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError")
            how = "it cannot be reached" if refused else f"no answer ({kind})"
            return Away(f"{self._sink.where}: {how}", arrived=not refused)
        code = getattr(why, "code", None)
        told = f"{self._sink.where}: {brief(why)}"
        if code == CONSTRAINT:
            row = re.search(r"violated at row (\d+)", str(why))
            return Violated(brief(why), int(row[1]) - 1 if row else -1)
        if code in FINAL:
            return SinkError(f"{told}. Mend that (address, rights, table), then start again; nothing is lost.")
        if code is not None:
            return Away(told, arrived=True)
        return SinkError(f"{told}.")  # the client refuses by itself: a setting that may not be changed, say

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with suppress(Exception):
                made.close()


def brief(why: BaseException) -> str:
    """The server's words, without the client's around them, without an address."""
    text = " ".join(str(why).split())
    text = re.sub(r"^.*?DB::Exception: ", "", text)
    return re.sub(r" \(for url .*?\)$", "", text)[:300].rstrip(". ")


def quoted(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
