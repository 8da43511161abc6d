"""MongoDB's protocol as a subject of the contract kit. `make` functions are of the module: processes import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pymongo

from semel.sinks import MongoDB
from semel.testing.contracts import Subject, over_the_wire
from tests.support.ferretdb import FerretProcess

HAND_OVER_S = 2.0  # nothing is locked: a stopped owner holds nobody up
# What semel refuses by itself; the last one is no number of 64 bits, which the client finds.
POISON = (b'{"id": "p", "n": "many"}', b'{"id": "p", "n": null}', b'{"id": "p", "n": 9223372036854775808}')


def documents(address: str, suffix: str) -> MongoDB:
    return MongoDB(address, "entries", key="id").renamed(suffix)


def read(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    with pymongo.MongoClient(address) as client:
        found = list(client.get_default_database()[f"entries{suffix}"].find({"semel_hidden": {"$exists": False}}))
    return [(one["id"], one["n"]) for one in found]


def left(address: str, suffix: str) -> Sequence[str]:
    with pymongo.MongoClient(address) as client:
        return [name for name in client.get_default_database().list_collection_names() if name.endswith(suffix)]


def subject(make: Callable[[str, str], Any], server: FerretProcess) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    return Subject(
        make=make,
        address=server.url,
        read=read,
        orphans=left,
        loses=lambda: over_the_wire(
            server.port, b"semel_incarnation", lambda port: f"mongodb://127.0.0.1:{port}/test?directConnection=true"
        ),
        crash=crash,
        poison=POISON,
        hand_over_s=HAND_OVER_S,
    )
