"""`Topic[K, V]`: a topic as the user declares it, with the types of its keys and values.

Invariant: a Topic exists only if Kafka would take its name and both types have a serde.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from semel.source_ports import Source
from semel.streams.infer import without_none
from semel.streams.place import GraphError, Place, caller
from semel.streams.serde import NoSerde, Serde, serde_of, type_name

K = TypeVar("K")
V = TypeVar("V")

OnError = Literal["stop", "dead-letter"]

_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")
NAME_LENGTH_MAX = 249  # Kafka's


def check_name(name: object, what: str, place: Place, *, length_max: int = NAME_LENGTH_MAX) -> str:
    """A name that may be (part of) a topic's name, by Kafka's rules; refused with its place otherwise."""
    if not isinstance(name, str) or not name:
        raise GraphError(place, f"{what} wants a name, got {name!r}.")
    if name in (".", "..") or not _LEGAL.fullmatch(name):
        raise GraphError(place, f"{what} {name!r}: only letters, digits, '.', '_' and '-' (and not '.' or '..').")
    if len(name) > length_max:
        raise GraphError(place, f"{what} {name[:40]!r}… has {len(name)} characters; at most {length_max}.")
    return name


def to_serde(of: Any, what: str, place: Place) -> Serde:
    try:
        return serde_of(of)
    except NoSerde as why:
        raise GraphError(place, f"{what}: {why}.") from None


def milliseconds(at: datetime | int) -> int:
    """Milliseconds since the epoch. A datetime without a zone is UTC: the machine's zone must not decide."""
    if isinstance(at, datetime):
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return round(at.timestamp() * 1000)
    if isinstance(at, int) and not isinstance(at, bool):
        return at
    raise TypeError(f"time= must give a datetime or milliseconds since the epoch (int), not {type(at).__name__}")


class Topic(Generic[K, V]):
    """A topic and the types of what is in it.

    `value=T | None`: records without a value belong to it, which delete their key: they are read as None and None is
    written as one. In any other topic such a record cannot be decoded, and a None is refused.

    `time`: when a record happened, taken from its value (a datetime, or milliseconds); without it the record's own
    timestamp counts. `on_error`: what happens to a record that cannot be decoded: `stop` (default) ends the app with an
    error that names it; `dead-letter` writes it to `APP.dlq` within the transaction, its reason in the headers.
    `partitions`: how many it has if it must be created, and how many it must have if it exists.

    `source`: where its records come from (`semel.sources`): they are read into it, each once, by the app's workers or
    by `semel ingest`, with the position behind them in one transaction.

    Two Topics of one name must be equal in types; they are then the same topic.
    """

    __slots__ = (
        "key",
        "key_serde",
        "name",
        "nullable",
        "on_error",
        "partitions",
        "place",
        "source",
        "time",
        "value",
        "value_serde",
    )

    def __init__(
        self,
        name: str,
        *,
        key: type[K],
        value: type[V],
        time: Callable[[V], datetime | int] | None = None,
        on_error: OnError = "stop",
        partitions: int | None = None,
        source: Source | None = None,
    ) -> None:
        self.place = place = caller()
        self.name = check_name(name, "Topic", place)
        if on_error not in ("stop", "dead-letter"):
            raise GraphError(place, f"topic {name}: on_error={on_error!r}; it is 'stop' or 'dead-letter'.")
        if partitions is not None and (not isinstance(partitions, int) or partitions < 1):
            raise GraphError(place, f"topic {name}: partitions={partitions!r}; at least 1.")
        if source is not None and (complaint := source.complaint(key, without_none(value))):
            raise GraphError(place, f"topic {name}: {complaint}")
        self.key = key
        self.value = value
        self.source = source
        self.time = time
        self.on_error: OnError = on_error
        self.partitions = partitions
        self.key_serde = to_serde(key, f"topic {name}, key", place)
        # A null is no value of any type: it travels past the serde, where the type says that there may be one.
        plain = without_none(value)
        self.nullable = plain is not value
        self.value_serde = to_serde(plain, f"topic {name}, value", place)

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, key={type_name(self.key)}, value={type_name(self.value)})"
