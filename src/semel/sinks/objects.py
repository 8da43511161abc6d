"""An object store as a sink: `Objects("s3://bucket/orders")`. Contract: Keyed.

Each cut of the outbox is one object, created and never replaced, named by what it holds:
`PREFIX/INCARNATION-PARTITION/INCARNATION-PARTITION-START-END.jsonl`. Nothing is opened here; `objects_connection.py`
does the work, `objects_store.py` has the client library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    Keyed,
    PositionIn,
    Resolution,
    Settlement,
)
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.columns import columns_of
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.objects_form import Form, form_of
from semel.sinks.sink import SinkError, encode_row

if TYPE_CHECKING:
    from semel.sinks.objects_connection import Complete

CONTRACT = Contract(
    name="Keyed",
    guarantee=Guarantee.EFFECTIVELY_ONCE,
    identity=Identity.CUT,
    atomicity=Atomicity.BATCH,
    remembers_position=False,
    fence=Fence.CREATE_ONLY,
    resolution=Resolution.READ_BACK,
    durability="an object store that has answered: always; a folder: power cut, each object and its name are synced",
    position=PositionIn.DELIVERY_TOPIC,
    settlement=Settlement.CUT_REPEATED,
)

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "https", "file")


class Objects(Declared):
    """Objects below `url`: s3://BUCKET/PREFIX, gs://…, az://…, file:///PATH or a folder's path. A cut is due at
    `records` records, `bytes` bytes, or `seconds` after its first record. `options` are the store's own settings and
    credentials (obstore's names: region, endpoint, access_key_id, …); what is not given is taken from the environment,
    as the store's own tools do. `store` is an obstore store for what a URL cannot say."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        format: Literal["jsonl", "csv", "parquet"] = "jsonl",
        compression: Literal["gzip", "zstd"] | None = None,
        columns: Sequence[str] | None = None,
        value: Any = None,
        records: int = 10_000,
        bytes: int = 8 << 20,
        seconds: float = 10.0,
        name: str | None = None,
        options: Mapping[str, str] | None = None,
        store: Any = None,
        _suffix: str = "",
    ) -> None:
        self.url = os.fspath(url).rstrip("/")
        self.original_url, self.suffix = self.url, _suffix
        self.url = re.sub(r"(?=[?#]|$)", _suffix, self.url, count=1)
        scheme, colon, _ = self.url.partition("://")
        if not self.url or (colon and scheme not in SCHEMES and store is None):
            raise SinkError(
                f"Objects at {self.where!r}: wanted is a folder's path, or a URL with {', '.join(SCHEMES)}."
            )
        if records < 1 or bytes < 1 or seconds <= 0:
            raise SinkError(f"{self.where}: records, bytes and seconds of a cut are above 0.")
        schema = None if format == "jsonl" else columns_of(value, self.where)
        self.shape: Form = form_of(format, compression, columns, schema, self.where)
        self.rule = Rule(records, bytes, int(seconds * 1000))
        self.options, self.store = dict(options or {}), store
        self._given = {"format": format, "compression": compression, "columns": columns, "value": value}
        self._given |= {"records": records, "bytes": bytes, "seconds": seconds, "store": store}
        path = re.sub(r"[?#].*", "", self.original_url)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]+", "-", path.rpartition("/")[2]) or "objects"

    @property
    def where(self) -> str:
        # What a URL can carry of a secret: user information, and a signature in the query.
        return "objects in " + re.sub(r"[?#].*", "", re.sub(r"^([\w+.-]+://)[^/@]*@", r"\1", self.url))

    @property
    def form(self) -> str:
        return str(self.shape)

    @property
    def kind(self) -> type[Keyed]:
        return Keyed

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def encode_value(self, value: object) -> bytes:
        if self.shape.format != "jsonl":
            return encode_row(value)
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError) as why:
            raise SinkError(f"{self.where}: a {type(value).__name__} cannot be written as JSON: {why}.") from None

    def renamed(self, suffix: str) -> Objects:
        suffix = self.suffix + suffix
        return Objects(self.original_url, name=self._name, options=self.options, _suffix=suffix, **self._given)

    def open(self, steps: Steps | None = None) -> SinkConnection:
        from semel.sinks.objects_connection import ObjectsConnection

        return ObjectsConnection(self, steps or NoSteps())

    def complete(self) -> Sequence[Complete]:
        """For readers: the objects that are complete, partition by partition, each in order. What is listed here
        stays; what is not listed yet is not to be read, though it may be there already."""
        from semel.sinks.objects_connection import complete

        return complete(self)

    def __repr__(self) -> str:
        return f"<{self.where}, {self.form}>"
