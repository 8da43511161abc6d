"""MongoDB as a sink, declared: `MongoDB("mongodb://host/db", "totals", key="customer")`. Contract: Versioned.

Nothing here needs the client library; `mongodb_connection.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    Resolution,
    Settlement,
    Versioned,
)
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import DeclaredByKey
from semel.sinks.sink import SinkError, key_fields

LIVE = "_live"  # the view without tombstones and positions

CONTRACT = Contract(
    name="Versioned",
    guarantee=Guarantee.EFFECTIVELY_ONCE,
    identity=Identity.VERSION,
    atomicity=Atomicity.RECORD,
    remembers_position=False,
    fence=Fence.OLDER_VERSION_LOSES,
    resolution=Resolution.SEND_AGAIN,
    durability="MongoDB with a journal; semel waits for it, and for a majority of the replicas, whatever the URL says "
    "(w=majority, j=true)",
    position=PositionIn.SINK,
    settlement=Settlement.REPEATED,
)


class MongoDB(DeclaredByKey):
    """A collection of a MongoDB database (4.4 or newer) with a document per key, whose `_id` is the key's text. It
    carries the version (`semel_incarnation`, `semel_offset`) of the record that wrote it: an older write loses.

    A value None leaves a tombstone (`semel_hidden`); readers use the view COLLECTION_live. Values are held as JSON has
    them: times and decimals as texts, whole numbers of up to 64 bits. `value` is the type of the values where the
    topology cannot tell it. `timeout_s` bounds each wait for an answer.
    """

    def __init__(
        self,
        url: str,
        collection: str,
        *,
        key: str | Sequence[str],
        name: str | None = None,
        value: Any = None,
        timeout_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        fields = key_fields(key)
        if fields is None:
            raise SinkError(f"MongoDB collection {collection!r}: versions are compared by key. Name key=.")
        parts = re.fullmatch(r"mongodb(?:\+srv)?://(?:[^@/]*@)?([^/?@]+)/([^/?]+)(?:\?.*)?", url)
        if parts is None:
            raise SinkError("MongoDB: wanted is mongodb://USER:PASSWORD@HOST:PORT/DATABASE.")
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", collection) or collection.startswith("system."):
            raise SinkError(f"MongoDB collection {collection!r}: wanted are letters, digits and _ . -, a letter first.")
        if timeout_s < 1:
            raise SinkError(f"timeout_s={timeout_s}: at least 1 second.")
        self.url, self.plain_collection, self.suffix = url, collection, _suffix
        self._place = f"{parts[1]}/{parts[2]}"
        self.value_type, self.timeout_s = value, timeout_s
        self._key = fields
        self._name = name or collection

    @property
    def collection(self) -> str:
        return _named(self.plain_collection + self.suffix)

    @property
    def live(self) -> str:
        return _named(self.plain_collection + LIVE + self.suffix)

    @property
    def where(self) -> str:
        return f"MongoDB collection {self.collection} at {self._place}"

    @property
    def kind(self) -> type[Versioned]:
        return Versioned

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> MongoDB:
        return MongoDB(
            self.url,
            self.plain_collection,
            key=self._key,
            name=self._name,
            value=self.value_type,
            timeout_s=self.timeout_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.mongodb_connection import MongoConnection
        except ModuleNotFoundError as missing:
            if missing.name not in ("pymongo", "bson"):
                raise
            raise UsageError(f"{self.where} needs pymongo: pip install 'semel[mongodb]'") from None
        return MongoConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}, by version>"


def _named(name: str) -> str:
    """A collection's name does not end with a point; verify's suffixes do."""
    return f"{name}_" if name.endswith(".") else name
