"""Values and helpers that the sinks' tests share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, SinkConnection

LOG = LogIdentity("topic-id", 4)


@dataclass(frozen=True)
class Total:
    customer: str
    total: int


def delivery(sink: Any, partition: int = 0) -> DeliveryId:
    return DeliveryId("app", sink.name, partition)


def rows(sink: Any, values: Iterable[Any], start: int = 0) -> list[Row]:
    return [Row(start + n, 0, sink.encode_key(value), sink.encode_value(value)) for n, value in enumerate(values)]


def deleted(sink: Any, key: object, offset: int) -> Row:
    return Row(offset, 0, sink.encode_deleted(key), None)


def opened(sink: Any, value_type: object = Total, steps: Any = None) -> SinkConnection:
    connection: SinkConnection = sink.open(steps)
    assert connection.prepare(value_type) == Done()
    return connection


def claimed(connection: SinkConnection, sink: Any, partition: int = 0, log: LogIdentity = LOG) -> Claim:
    claim = connection.claim(delivery(sink, partition), log)
    assert isinstance(claim, Claim), claim
    return claim


def adopted(connection: Any, log: LogIdentity, position: int = 0) -> None:
    """What `semel sink adopt` does at the sink for another log: every partition there, under the next incarnation."""
    seen = connection.remembered("app")
    incarnation = 1 + max(one.incarnation for one in seen)
    count = max(log.partitions, *(one.partition + 1 for one in seen))
    to = [Remembered(partition, 0, incarnation, position, "", log) for partition in range(count)]
    assert connection.move("app", seen, to) == Done()


def held(connection: SinkConnection) -> list[tuple[Any, ...]]:
    """What the table holds: each row's values in the order of its column names, sorted."""
    return sorted(tuple(msgspec.json.decode(row).values()) for row in connection.rows())


def totals(pairs: Iterable[tuple[str, int]]) -> list[tuple[Any, ...]]:
    return sorted(pairs)


def renamed_goes_on(make: Any) -> None:
    """A sink of another name over the same rows: its outbox begins at 0, and what is there has higher offsets."""
    former, sink = make(), make(name="other-name")
    connection = opened(former)
    assert connection.write(claimed(connection, former), 0, 10, "r", rows(former, [Total("a", 1)], 9)) == Done()
    heir = opened(sink)
    claim = claimed(heir, sink)
    assert heir.write(claim, 0, 1, "r", rows(sink, [Total("a", 2)])) == Done()
    assert [int(total) for _, total in held(heir)] == [2], "dropped as older"
    # Its other partitions are of the same incarnation, and so is whoever claims after it.
    assert claimed(opened(sink), sink).incarnation == claimed(heir, sink, 1).incarnation == claim.incarnation
