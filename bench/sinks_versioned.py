"""Redis, Valkey, OpenSearch and (by name only) MongoDB's protocol beside plain upserts of the same client.

Redis: appendonly yes, appendfsync always, on both sides. The plain writer of hashes sends one pipeline of HSETs, that
of JSON one MSET; OpenSearch's one bulk request without versions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.sinks_common import FIELDS, Made, Order, Peer, decode, decoded, last_per_key


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[dict[str, Made]]:
    from tests.support.redis import redis_server

    with _keys(folder, redis_server(), "Redis") as made:
        yield made


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[dict[str, Made]]:
    from tests.support.redis import valkey_server

    with _keys(folder, valkey_server(), "Valkey") as made:
        yield made


@contextlib.contextmanager
def _keys(folder: Path, program: Path, system: str) -> Iterator[dict[str, Made]]:
    import redis as client
    from tests.support.redis import RedisProcess

    from semel.sinks import Redis

    with RedisProcess(program, folder / "server") as server:
        connection = client.Redis(port=server.port, protocol=2)

        def hashes() -> Peer:
            def write(batch: list[bytes]) -> None:
                pipeline = connection.pipeline(transaction=False)
                for row in last_per_key(decoded(batch)):
                    words = [word for pair in zip(FIELDS, row, strict=True) for word in pair]
                    pipeline.execute_command("HSET", f"peer-h:{row[0]}", *words)
                pipeline.execute()

            return write

        def strings() -> Peer:
            def write(batch: list[bytes]) -> None:
                connection.mset({f"peer-s:{decode(value).order_id}": value for value in batch})

            return write

        def shown(form: str) -> Callable[[bool], list[Any]]:
            def read(ours: bool) -> list[Any]:
                begin = f"{'ours' if ours else 'peer'}-{form}:"
                keys = sorted(set(connection.scan_iter(f"{begin}*", count=1_000)))
                pipeline = connection.pipeline(transaction=False)
                for key in keys:
                    (pipeline.hgetall if form == "h" else pipeline.get)(key)
                return [(key[len(begin) :], value) for key, value in zip(keys, pipeline.execute(), strict=True)]

            return read

        yield {
            f"{system}, hashes": Made(
                Redis(server.url, "ours-h", key="order_id", value=Order), hashes, shown("h"), rows=50_000
            ),
            f"{system}, JSON": Made(
                Redis(server.url, "ours-s", key="order_id", value=Order, form="json"), strings, shown("s"), rows=50_000
            ),
        }
        connection.close()


@contextlib.contextmanager
def opensearch(folder: Path) -> Iterator[dict[str, Made]]:
    import urllib3
    from tests.support.opensearch import OpenSearchProcess

    from semel.sinks import OpenSearch

    with OpenSearchProcess(folder / "node") as server:
        pool = urllib3.HTTPConnectionPool("127.0.0.1", server.port, maxsize=1, block=True)

        def asked(method: str, path: str, body: bytes | None = None, kind: str = "json") -> Any:
            answer = pool.urlopen(method, path, body=body, headers={"Content-Type": f"application/{kind}"})
            assert answer.status in (200, 201), answer.data[:500]
            return msgspec.json.decode(answer.data)

        def peer() -> Peer:
            # What semel's own index is: the same settings and fields, as the server tells them.
            there = asked("GET", "/orders")["orders"]
            index = there["settings"]["index"]
            settings = {name: index[name] for name in ("number_of_shards", "number_of_replicas")}
            asked("PUT", "/peer", msgspec.json.encode({"settings": settings, "mappings": there["mappings"]}))

            def write(batch: list[bytes]) -> None:
                last = {decode(value).order_id: value for value in batch}
                lines = [b'{"index":{"_id":"%s"}}\n%s\n' % (id.encode(), value) for id, value in last.items()]
                answer = asked("POST", "/peer/_bulk", b"".join(lines), "x-ndjson")
                assert not answer["errors"]

            return write

        def shown(ours: bool) -> list[Any]:
            index = "orders" if ours else "peer"
            asked("POST", f"/{index}/_refresh")
            found: list[Any] = []
            answer = asked("POST", f"/{index}/_search?scroll=1m", b'{"size":5000,"sort":["_doc"]}')
            while hits := answer["hits"]["hits"]:
                found += [tuple(h["_source"].get(f) for f in FIELDS) for h in hits if h["_id"][:6] != "semel:"]
                again = msgspec.json.encode({"scroll": "1m", "scroll_id": answer["_scroll_id"]})
                answer = asked("POST", "/_search/scroll", again)
            return sorted(found)

        yield {
            "OpenSearch": Made(OpenSearch(server.url, "orders", key="order_id", value=Order), peer, shown, rows=20_000)
        }
        pool.close()


@contextlib.contextmanager
def mongodb(folder: Path) -> Iterator[dict[str, Made]]:
    """FerretDB over SQLite, an imitation of MongoDB."""
    import pymongo
    from tests.support.ferretdb import FerretProcess

    from semel.sinks import MongoDB

    with FerretProcess(folder / "server") as server:
        client: Any = pymongo.MongoClient(server.url)
        database = client.get_default_database()

        def peer() -> Peer:
            def write(batch: list[bytes]) -> None:
                rows = (dict(zip(FIELDS, row, strict=True)) for row in last_per_key(decoded(batch)))
                database["peer"].bulk_write(
                    [pymongo.ReplaceOne({"_id": row["order_id"]}, {**row, "_id": row["order_id"]}, upsert=True)
                     for row in rows], ordered=False,
                )  # fmt: skip

            return write

        def shown(ours: bool) -> list[Any]:
            found = database["orders" if ours else "peer"].find({"semel_hidden": {"$exists": False}})
            return sorted(tuple(one[f] for f in FIELDS) for one in found)

        yield {
            "MongoDB's protocol (FerretDB)": Made(
                MongoDB(server.url, "orders", key="order_id", value=Order), peer, shown, 500, 2_000
            )
        }
        client.close()
