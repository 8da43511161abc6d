"""OpenSearch and Elasticsearch as a sink, declared: `OpenSearch("https://host:9200", "totals", key="customer")`.
Contract: Versioned.

Nothing here needs a client library; `opensearch_connection.py` does the work.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
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
    Versioned,
)
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import DeclaredByKey
from semel.sinks.sink import SinkError, key_fields

LIVE = "_live"  # the alias without tombstones and positions
# An external version is one long: the incarnation in its upper 15 bits, the offset in its lower 48 (the sign is 0).
OFFSET_BITS, INCARNATION_BITS = 48, 15

CONTRACT = Contract(
    name="Versioned",
    guarantee=Guarantee.EFFECTIVELY_ONCE,
    identity=Identity.VERSION,
    atomicity=Atomicity.RECORD,
    remembers_position=False,
    fence=Fence.OLDER_VERSION_LOSES,
    resolution=Resolution.SEND_AGAIN,
    durability="OpenSearch or Elasticsearch with index.translog.durability=request (its default); semel refuses "
    "another where it could lose rows and keep their position",
    position=PositionIn.SINK,
    settlement=Settlement.REPEATED,
)
Refresh = Literal[False, True, "wait_for"]


class OpenSearch(DeclaredByKey):
    """An index of an OpenSearch (1 or newer) or Elasticsearch (7.10 or newer) cluster with a document per key, whose
    external version is the incarnation and offset of the record that wrote it: an older write loses, whoever sends it.

    A value None puts a tombstone in place of the document; readers use the alias INDEX_live, which hides it. The index
    is created from the type of the values when it is not there (`value` where the topology cannot tell it).
    `refresh="wait_for"`: a batch waits until it can be searched. `headers` go with each request (an API key);
    `ca_file` names the certificates that are trusted. `timeout_s` bounds each wait for an answer.
    """

    def __init__(
        self,
        url: str,
        index: str,
        *,
        key: str | Sequence[str],
        name: str | None = None,
        value: Any = None,
        refresh: Refresh = False,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        timeout_s: float = 30.0,
        _suffix: str = "",
    ) -> None:
        fields = key_fields(key)
        if fields is None:
            raise SinkError(f"OpenSearch index {index!r}: versions are compared by key. Name key=.")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", index) or len(index + LIVE + _suffix) > 255:
            raise SinkError(
                f"OpenSearch index {index!r}: wanted are small letters, digits and _ . -, 250 at most; the first is a "
                "letter or a digit."
            )
        if refresh not in (False, True, "wait_for"):
            raise SinkError(f"OpenSearch index {index}: refresh={refresh!r}; there are False, True and 'wait_for'.")
        if timeout_s < 1:
            raise SinkError(f"timeout_s={timeout_s}: at least 1 second.")
        try:
            parts = urlsplit(url)
            self.host, port = parts.hostname or "", parts.port
        except ValueError:
            raise SinkError(
                "OpenSearch: the address cannot be read; wanted is https://USER:PASSWORD@HOST:9200."
            ) from None
        if parts.scheme not in ("http", "https") or not self.host or parts.query:
            raise SinkError(f"OpenSearch at {self.host or '?'}: wanted is https://USER:PASSWORD@HOST:9200.")
        self.tls, self.path = parts.scheme == "https", parts.path.rstrip("/")
        self.port = port or (443 if self.tls else 9200)
        self._headers = dict(headers or {})
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        self.url, self.plain_index, self.suffix = url, index, _suffix
        self.value_type, self.refresh, self.ca_file, self.timeout_s = value, refresh, ca_file, timeout_s
        self._key = fields
        self._name = name or index

    @property
    def index(self) -> str:
        return self.plain_index + self.suffix

    @property
    def live(self) -> str:
        return self.plain_index + LIVE + self.suffix

    @property
    def where(self) -> str:
        return f"OpenSearch index {self.index} at {self.host}:{self.port}"

    @property
    def headers(self) -> Mapping[str, str]:
        return dict(self._headers)

    @property
    def kind(self) -> type[Versioned]:
        return Versioned

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> OpenSearch:
        return OpenSearch(
            self.url,
            self.plain_index,
            key=self._key,
            name=self._name,
            value=self.value_type,
            refresh=self.refresh,
            headers=self._headers,
            ca_file=self.ca_file,
            timeout_s=self.timeout_s,
            _suffix=self.suffix + suffix.lower(),
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.opensearch_connection import OpenSearchConnection
        except ModuleNotFoundError as missing:
            if missing.name != "urllib3":
                raise
            raise UsageError(f"{self.where} needs urllib3: pip install 'semel[opensearch]'") from None
        return OpenSearchConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}, by version>"


def version_of(incarnation: int, offset: int) -> int:
    """One long that grows with (incarnation, offset), from 2**48 (incarnation 1, offset 0) to below 2**63."""
    assert incarnation >= 1 and offset >= 0, (incarnation, offset)
    if incarnation >= 1 << INCARNATION_BITS or offset >= 1 << OFFSET_BITS:
        raise SinkError(
            f"OpenSearch: incarnation {incarnation}, offset {offset} do not fit into a version, which has "
            f"{INCARNATION_BITS} and {OFFSET_BITS} bits for them. Begin with a new index."
        )
    return incarnation << OFFSET_BITS | offset
