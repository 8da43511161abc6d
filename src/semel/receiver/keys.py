"""What a receiver asks of the application's database: keys with their answers, and floors, in its own transaction.

Invariant: a key is kept exactly when what its request wrote is, since both are one transaction; an answer of 400 or
more keeps the key and undoes the writes. While a request runs, its key is held by a lock that dies with the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from semel.receiver.rules import Answer, Kept, Sent


class KeysUnavailable(Exception):
    """The database cannot be reached, or refused. Whether a commit has happened is unknown."""


class NotOurs(Exception):
    """The handler has ended the transaction itself, or left it failed. Nothing of ours was written."""


class Held(Protocol):
    """One request's transaction, open since `begin`, and what the database knew of its key then. Ended once."""

    @property
    def connection(self) -> Any:
        """For the handler: what it writes here commits with the key."""
        ...

    @property
    def kept(self) -> Kept | None: ...

    @property
    def floor(self) -> int:
        """The highest that this sender has announced for this incarnation and partition; 0 for none."""
        ...

    async def commit(self, kept: Kept | None, *, undo: bool = False) -> None:
        """Keeps the key (None: only a higher floor), with what the handler wrote, or, `undo`, without. Raises
        NotOurs (nothing was kept), or KeysUnavailable: unknown, until the key is read again."""
        ...

    async def rollback(self) -> None:
        """Nothing has happened. Never raises for a database that is away: it will find out itself."""
        ...


class Keys(Protocol):
    """`PostgresKeys`, `AsyncPostgresKeys`, `SQLiteKeys`, or one of your own."""

    @property
    def where(self) -> str:
        """For people and logs; no secrets."""
        ...

    async def begin(self, sent: Sent, now_ms: int) -> Held | None:
        """Takes the key and opens the transaction; None: another request with this key holds it right now.
        Raises KeysUnavailable."""
        ...

    async def purge(self, now_ms: int, limit: int) -> int:
        """Forgets up to `limit` expired keys: foreign ones, and those below their sender's floor. Returns how many."""
        ...


# --- the tables, in the SQL that Postgres and SQLite share --------------------------------------------------------

# {prefix}: the schema with its dot, or nothing. Offsets lie in `log_offset`: OFFSET is a word of SQL.
TABLES = (
    """CREATE TABLE IF NOT EXISTS {prefix}semel_keys (
    sender text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    status integer NOT NULL,
    headers text NOT NULL,
    body {bytes} NOT NULL,
    expires_ms bigint NOT NULL,
    incarnation text,
    log_partition bigint,
    log_offset bigint,
    PRIMARY KEY (sender, key)
)""",
    "CREATE INDEX IF NOT EXISTS semel_keys_expires ON {prefix}semel_keys (expires_ms)",
    """CREATE TABLE IF NOT EXISTS {prefix}semel_floors (
    sender text NOT NULL,
    incarnation text NOT NULL,
    log_partition bigint NOT NULL,
    floor bigint NOT NULL,
    PRIMARY KEY (sender, incarnation, log_partition)
)""",
)

# One statement, so one snapshot: where the purge of a key is seen, the floor that allowed it is seen too.
READ = """SELECT k.fingerprint, k.status, k.headers, k.body, k.expires_ms, k.log_offset, f.floor
FROM (SELECT 1 AS one) AS o
LEFT JOIN {prefix}semel_keys AS k ON k.sender = :sender AND k.key = :key
LEFT JOIN {prefix}semel_floors AS f
    ON f.sender = :sender AND f.incarnation = :incarnation AND f.log_partition = :partition"""

# Nobody else inserts this key: the lock is ours. One that is there has expired; a live one means a broken lock.
KEEP = """INSERT INTO {prefix}semel_keys AS k
    (sender, key, fingerprint, status, headers, body, expires_ms, incarnation, log_partition, log_offset)
VALUES (:sender, :key, :fingerprint, :status, :headers, :body, :expires_ms, :incarnation, :partition, :offset)
ON CONFLICT (sender, key) DO UPDATE SET fingerprint = excluded.fingerprint, status = excluded.status,
    headers = excluded.headers, body = excluded.body, expires_ms = excluded.expires_ms
WHERE k.log_offset IS NULL AND k.expires_ms <= :now_ms"""

RAISE = """INSERT INTO {prefix}semel_floors AS f (sender, incarnation, log_partition, floor)
VALUES (:sender, :incarnation, :partition, :floor)
ON CONFLICT (sender, incarnation, log_partition) DO UPDATE SET floor = excluded.floor WHERE f.floor < excluded.floor"""

# A key at or above its sender's floor is never forgotten, however old: its answer may never have arrived.
PURGE = """DELETE FROM {prefix}semel_keys WHERE (sender, key) IN (
    SELECT k.sender, k.key FROM {prefix}semel_keys AS k
    LEFT JOIN {prefix}semel_floors AS f
        ON f.sender = k.sender AND f.incarnation = k.incarnation AND f.log_partition = k.log_partition
    WHERE k.expires_ms <= :now_ms AND (k.log_offset IS NULL OR k.log_offset < f.floor)
    LIMIT :limit
)"""


def statement(text: str, prefix: str = "") -> str:
    return text.replace("{prefix}", prefix)


def of_sent(sent: Sent) -> dict[str, Any]:
    """The parameters that a request gives to READ and RAISE."""
    place = sent.place
    return {
        "sender": sent.sender,
        "key": sent.key,
        "incarnation": place.incarnation if place else None,
        "partition": place.partition if place else None,
        "offset": place.offset if place else None,
        "floor": sent.floor,
    }


def of_kept(kept: Kept, now_ms: int) -> dict[str, Any]:
    """The parameters that an answer gives to KEEP."""
    answer = kept.answer
    return {
        "fingerprint": kept.fingerprint,
        "status": answer.status,
        "headers": json.dumps([[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers]),
        "body": answer.body,
        "expires_ms": kept.expires_ms,
        "now_ms": now_ms,
    }


def of_row(row: tuple[Any, ...]) -> tuple[Kept | None, int]:
    """What READ has found: the key with its answer, and the floor."""
    fingerprint, status, headers, body, expires_ms, log_offset, floor = row
    if fingerprint is None:
        return None, floor or 0
    pairs = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(headers))
    answer = Answer(status, pairs, bytes(body))
    return Kept(fingerprint, answer, expires_ms, placed=log_offset is not None), floor or 0


def number_of(sent: Sent, bits: int, scope: str = "") -> int:
    """A number for locks that know numbers only. Two keys with one number wait for each other, no more."""
    text = "\0".join((scope, sent.sender, sent.key)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> (64 - bits)


# --- blocking databases ---------------------------------------------------------------------------------------------

R = TypeVar("R")


class Threads:
    """Runs a database's blocking calls beside the event loop. Ends have threads of their own: were they to wait
    behind begins, which may wait for a connection that only an end gives back, nothing would move."""

    def __init__(self) -> None:
        self._begins = ThreadPoolExecutor(32, "semel-keys-begin")
        self._ends = ThreadPoolExecutor(4, "semel-keys-end")

    async def begin(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._begins, call)

    async def end(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._ends, call)
