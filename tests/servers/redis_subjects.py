"""Redis and Valkey as subjects of the contract kit. `make` functions stand at module level: processes import them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis

from semel.sinks import Redis
from semel.sinks.redis_scripts import ROWS
from semel.testing.contracts import Subject, over_the_wire
from tests.support.redis import RedisProcess

HAND_OVER_S = 2.0  # nothing is locked: a stopped owner holds nobody up
# What semel refuses by itself: Redis takes any bytes.
POISON = (b'{"id": "p", "n": "many"}', b'{"id": "p", "n": null}', b'{"id": "other", "n": 1}', b"[1]")


def hashes(address: str, suffix: str) -> Redis:
    return Redis(address, "entries", key="id").renamed(suffix)


def strings(address: str, suffix: str) -> Redis:
    return Redis(address, "entries", key="id", form="json").renamed(suffix)


def client(address: str) -> redis.Redis:
    return redis.Redis.from_url(address, decode_responses=True, protocol=2)


def read_hashes(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    with client(address) as there:
        rows: list[Any] = [there.hgetall(key) for key in there.scan_iter(f"entries{suffix}:*", count=1_000)]
    return [(row["id"], int(row["n"])) for row in rows]


def read_strings(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    with client(address) as there:
        rows = [json.loads(str(there.get(key))) for key in there.scan_iter(f"entries{suffix}:*", count=1_000)]
    return [(row["id"], row["n"]) for row in rows]


def left(address: str, suffix: str) -> Sequence[str]:
    with client(address) as there:
        return [str(key) for key in there.scan_iter(f"*{suffix}*", count=1_000)]


def subject(make: Callable[[str, str], Any], server: RedisProcess, read: Any = None) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    needle = hashlib.sha1(ROWS.encode()).hexdigest().encode()
    return Subject(
        make=make,
        address=server.url,
        read=read or (read_strings if make is strings else read_hashes),
        orphans=left,
        loses=lambda: over_the_wire(server.port, needle, lambda port: f"redis://127.0.0.1:{port}/0"),
        crash=crash,
        poison=POISON,
        hand_over_s=HAND_OVER_S,
    )
