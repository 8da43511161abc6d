"""OpenSearch as a subject of the contract kit. `make` functions stand at module level: processes import them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import urllib3

from semel.sinks import OpenSearch
from semel.testing.contracts import Subject, over_the_wire
from tests.support.opensearch import OpenSearchProcess

# What semel refuses by itself, and what only the server refuses: a number that is no long.
POISON = (b'{"id": "p", "n": "many"}', b'{"id": "p", "n": null}', b'{"id": "p", "n": 9223372036854775808}')


def documents(address: str, suffix: str) -> OpenSearch:
    return OpenSearch(address, "entries", key="id").renamed(suffix)


def asked(address: str, method: str, path: str, body: object = None) -> Any:
    said = None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    answer = urllib3.PoolManager(retries=False).request(method, address + path, body=said, headers=headers)
    return json.loads(answer.data)


def read(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    """By search, through the alias that readers use."""
    asked(address, "POST", f"/entries_live{suffix}/_refresh")
    found = asked(address, "POST", f"/entries_live{suffix}/_search", {"size": 10_000})
    return [(hit["_source"]["id"], hit["_source"]["n"]) for hit in found["hits"]["hits"]]


def left(address: str, suffix: str) -> Sequence[str]:
    return [*asked(address, "GET", f"/*{suffix}/_settings"), *asked(address, "GET", f"/_alias/*{suffix}")]


def subject(make: Callable[[str, str], Any], server: OpenSearchProcess) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    return Subject(
        make=make,
        address=server.url,
        read=read,
        orphans=left,
        # In the body: it leaves behind the headers, and the request is not there without it.
        loses=lambda: over_the_wire(server.port, b'"version_type":"external"', lambda port: f"http://127.0.0.1:{port}"),
        crash=crash,
        poison=POISON,
        hand_over_s=None,  # nothing is locked, so nothing has to be taken over; it would cost 20 s
    )
