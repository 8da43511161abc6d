"""Redis and Valkey as a sink, declared: `Redis("redis://host:6379/0", "totals", key="customer")`. Contract: Versioned.

Nothing here needs the client library; `redis_connection.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

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

KEPT_S_MIN = 7 * 86_400.0  # what an outbox keeps: the oldest backup of a sink that may be put back

CONTRACT = Contract(
    name="Versioned",
    guarantee=Guarantee.EFFECTIVELY_ONCE,
    identity=Identity.VERSION,
    atomicity=Atomicity.BATCH,
    remembers_position=False,
    fence=Fence.OLDER_VERSION_LOSES,
    resolution=Resolution.SEND_AGAIN,
    durability="Redis or Valkey with appendonly=yes, appendfsync=always and maxmemory-policy=noeviction; what a weaker "
    "server loses in its crash is sent again as long as the outbox holds it (weaker settings are said at the start)",
    position=PositionIn.SINK,
    settlement=Settlement.REPEATED,
)
Form = Literal["hash", "json"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. The password is in no text of it."""

    host: str
    port: int
    database: int
    user: str | None
    password: str | None = field(repr=False)
    tls: bool
    options: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def address_of(url: str) -> Address:
    """redis://USER:PASSWORD@HOST:PORT/DATABASE?ssl_ca=…, or rediss://, valkey://, valkeys://."""
    wanted = "wanted is redis://USER:PASSWORD@HOST:PORT/DATABASE (rediss:// with TLS)"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        raise SinkError(f"Redis: the address cannot be read; {wanted}.") from None
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss", "valkey", "valkeys") or not database.isdecimal():
        raise SinkError(f"Redis at {host}:{port}: {wanted}.")
    options = dict(parse_qsl(parts.query))
    if strange := options.keys() - {"ssl_ca"}:
        raise SinkError(f"Redis at {host}:{port}: no option {sorted(strange)[0]!r}; there is ssl_ca.")
    user, password = (unquote(said) if said else None for said in (parts.username, parts.password))
    tls = parts.scheme in ("rediss", "valkeys")
    return Address(host, port, int(database), user, password, tls, options)


class Redis(DeclaredByKey):
    """Keys PREFIX:ID of a Redis (6 or newer) or Valkey server, one for each sink key; ID is the key's text.

    `form="hash"`: a hash with the value's fields as texts; `form="json"`: a string, the value as JSON, byte for byte
    as committed. A value None removes the key. Beside each lies its version, semel:mark:PREFIX:ID, which stays when
    the key is removed: `keep_deleted_s` seconds (at least 7 days), or for ever. `value` is the type of the values where
    the topology cannot tell it. `timeout_s` bounds each wait for an answer.

    On a cluster, name a prefix with a hash tag ("{totals}"): all keys of the sink lie in that slot.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        key: str | Sequence[str],
        form: Form = "hash",
        name: str | None = None,
        value: Any = None,
        keep_deleted_s: float | None = None,
        timeout_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        fields = key_fields(key)
        if fields is None:
            raise SinkError(f"Redis keys {prefix!r}: versions are compared by key. Name key=.")
        if not prefix or not re.fullmatch(r"[\w.:/-]*(\{[\w.:/-]+\})?[\w.:/-]*", prefix) or prefix.startswith("semel:"):
            raise SinkError(
                f"Redis keys {prefix!r}: wanted is a prefix of letters, digits and . : / - _, with one hash tag in "
                "braces at most, which does not begin with semel:."
            )
        if form not in ("hash", "json"):
            raise SinkError(f"Redis keys {prefix}: form={form!r}; there are 'hash' and 'json'.")
        if keep_deleted_s is not None and keep_deleted_s < KEPT_S_MIN:
            raise SinkError(
                f"Redis keys {prefix}: keep_deleted_s={keep_deleted_s:g}: an older write could come after that and "
                f"bring a deleted key back. At least {KEPT_S_MIN:g} (7 days, what an outbox keeps), or None: for ever."
            )
        if timeout_s < 1:
            raise SinkError(f"timeout_s={timeout_s}: at least 1 second.")
        self.at = address_of(url)
        self.url, self.form, self.value_type = url, form, value
        self.plain_prefix, self.suffix = prefix, _suffix
        self.keep_deleted_s, self.timeout_s = keep_deleted_s, timeout_s
        self._key = fields
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", prefix).strip("-")

    @property
    def prefix(self) -> str:
        return self.plain_prefix + self.suffix

    @property
    def where(self) -> str:
        return f"Redis keys {self.prefix}:* at {self.at}"

    @property
    def kind(self) -> type[Versioned]:
        return Versioned

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> Redis:
        return Redis(
            self.url,
            self.plain_prefix,
            key=self._key,
            form=self.form,
            name=self._name,
            value=self.value_type,
            keep_deleted_s=self.keep_deleted_s,
            timeout_s=self.timeout_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.redis_connection import RedisConnection
        except ModuleNotFoundError as missing:
            if missing.name != "redis":
                raise
            raise UsageError(f"{self.where} needs redis: pip install 'semel[redis]'") from None
        return RedisConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}, {self.form}, by version>"
