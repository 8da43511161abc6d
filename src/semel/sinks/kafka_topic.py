"""A topic of another Kafka cluster as a sink: `KafkaTopic("kafka://host:9092", "totals")`. Contract: Transactional.

Records and the delivery's position are written in one transaction of the target cluster. Nothing here needs the client
library; `host/kafka_sink.py` does the work, with the client of a log:
what that does about lost connections (FAULTS B1) exists once.

Invariant: equal keys have equal bytes, in the outbox and in the target, so that the records of one key lie in one
partition of both, in one order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    Resolution,
    Settlement,
    Transactional,
)
from semel.errors import SemelError, UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.sink import SinkError, canonical_part, encode_parts, field_of, key_fields
from semel.streams.serde import NoSerde, serde_of

CONTRACT = Contract(
    name="Transactional",
    guarantee=Guarantee.EXACTLY_ONCE,
    identity=Identity.OFFSET,
    atomicity=Atomicity.BATCH,
    remembers_position=True,
    fence=Fence.TRANSACTIONAL_ID,
    resolution=Resolution.READ_POSITION_AFTER_CLAIM,
    durability="acks=all, which semel sets, on topics with replicas and min.insync.replicas=2; one broker alone keeps "
    "it over kill -9, and over a power cut where it syncs (`semel broker` does)",
    position=PositionIn.SINK,
    settlement=Settlement.ROLLED_BACK,
)
NAME_MAX = 249
NAME = re.compile(r"[a-zA-Z0-9._-]+")


class KafkaTopic:
    """A topic of the cluster at `url`, kafka://host:port[,host:port…].

    A record's key is the stream's key, and a value None is a tombstone of it. With `key`, fields of the value, the key
    is their content: one field as text or JSON, several as a JSON array. Values are written as `Topic` writes them:
    `bytes` and `str` as they are, everything else as JSON; `value` is their type where they are to be checked against
    one. The topic is created when it is not there, with `partitions` or as many as the cluster gives; where it is
    there, `partitions` must be what it has. `options` are librdkafka's settings (sasl.password, ssl.ca.location,
    compression.type …); they are in no text of semel. `hand_over_s` bounds how long the cluster may be silent before
    a claim or a batch is given up, to be tried again.
    """

    def __init__(
        self,
        url: str,
        topic: str,
        *,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        value: Any = None,
        partitions: int | None = None,
        options: Mapping[str, str] | None = None,
        hand_over_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        if not NAME.fullmatch(topic) or len(topic + _suffix) > NAME_MAX:
            raise SinkError(f"Kafka topic {topic!r}: a name has up to {NAME_MAX} letters, digits, '.', '_' and '-'.")
        if partitions is not None and partitions < 1:
            raise SinkError(f"Kafka topic {topic!r}: partitions={partitions}, wanted is 1 or more.")
        if hand_over_s < 1:
            raise SinkError(f"Kafka topic {topic!r}: hand_over_s={hand_over_s}, wanted is 1 or more.")
        self.servers = _servers(url)
        self.url, self.suffix = url, _suffix
        self.value_type, self.partitions = value, partitions
        self.options, self.hand_over_s = dict(options or {}), hand_over_s
        self._given = topic
        self._key = key_fields(key)
        self._name = name or topic

    @property
    def name(self) -> str:
        return self._name

    @property
    def topic(self) -> str:
        return self._given + self.suffix

    def positions_topic(self, app: str) -> str:
        """Where the positions of this delivery lie, on the target."""
        return f"semel-{app}-{self._name}{self.ending}"

    @property
    def ending(self) -> str:
        return f"-positions{self.suffix}"

    @property
    def where(self) -> str:
        return f"Kafka topic {self.topic} at {self.servers}"

    @property
    def read_by_others(self) -> str:
        """The topic for `semel check`: who reads it must read committed."""
        return f"{self.topic} at {self.servers}"

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    @property
    def key(self) -> tuple[str, ...] | None:
        return self._key or ()

    def encode_key(self, value: object) -> bytes | None:
        return None if self._key is None else self._encoded([field_of(value, field) for field in self._key])

    def encode_deleted(self, key: object) -> bytes:
        if key is None:
            raise SinkError(f"{self.where}: a value None without a key deletes nothing: give the stream a key.")
        if self._key is None:
            return serde_of(type(key)).encode(key)
        parts = key if isinstance(key, tuple | list) else (key,)
        if len(parts) != len(self._key):
            raise SinkError(f"{self.where}: a delete for the key {key!r} does not say the fields {list(self._key)}.")
        return self._encoded(parts)

    def _encoded(self, parts: Sequence[object]) -> bytes:
        """One field as a topic's key of its type would be, several as a JSON array."""
        assert self._key is not None
        whole = encode_parts(self._key, parts)  # refuses what identifies nothing
        if len(parts) > 1:
            return whole
        part = canonical_part(parts[0])
        return part if isinstance(part, bytes) else part.encode() if isinstance(part, str) else whole[1:-1]

    def encode_value(self, value: object) -> bytes:
        try:
            serde = serde_of(self.value_type or type(value))
            if serde.check is not None and not isinstance(value, serde.check):
                raise SinkError(f"{self.where}: a {type(value).__name__} is no {serde.name}: {value!r:.200}")
            return serde.encode(value)
        except (NoSerde, TypeError, ValueError, OverflowError) as why:
            raise SinkError(f"{self.where}: a {type(value).__name__} cannot be written: {why}.") from None
        except SemelError as why:
            raise SinkError(f"{self.where}: {why}") from None

    def renamed(self, suffix: str) -> KafkaTopic:
        return KafkaTopic(
            self.url,
            self._given,
            key=self._key,
            name=self._name,
            value=self.value_type,
            partitions=self.partitions,
            options=self.options,
            hand_over_s=self.hand_over_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.host.kafka_sink import KafkaTopicConnection
        except UsageError as missing:  # confluent-kafka is not installed
            raise UsageError(f"{self.where}: {missing}") from None
        return KafkaTopicConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"


def _servers(url: str) -> str:
    """HOST:PORT,… of the address, which may hold settings; SinkError without what was written."""
    try:
        parts = urlsplit(url)
        servers = parts.netloc
        fits = parts.scheme == "kafka" and parts.path in ("", "/") and "@" not in servers
    except ValueError:
        fits, servers = False, ""
    if not fits or not servers or not all(one.rpartition(":")[2].isdigit() for one in servers.split(",")):
        raise SinkError("KafkaTopic: the address cannot be read; wanted is kafka://HOST:PORT[,HOST:PORT…].")
    return servers
