"""The durable state of a broker as plain values, to compare what was with what a replay makes of it."""

from __future__ import annotations

from typing import Any

from semel.broker.state import RUNS_TOPIC, State
from semel.log.partition import Partition


def durable(state: State) -> dict[str, Any]:
    """Everything but the run itself, which each start makes anew."""
    return {
        "topics": {
            topic.name: (topic.number, topic.id, topic.config, [partition(one) for one in topic.partitions])
            for topic in state.topics.values()
            if topic.name != RUNS_TOPIC
        },
        "next": (state.next_topic, state.next_producer_id),
        "transactions": dict(sorted(state.transactions.items())),
        "by producer": dict(sorted(state.by_producer.items())),
        "open": sorted(state.open),
        "groups": {
            group.id: (group.offsets, group.pending, group.metadata, group.generation)
            for _, group in sorted(state.groups.groups.items())
        },
        "pending groups": {key: sorted(value) for key, value in sorted(state.groups.by_producer.items()) if value},
    }


def partition(one: Partition) -> dict[str, Any]:
    return {
        "offsets": (one.start_offset, one.end_offset),
        "producers": {
            producer_id: (producer.epoch, list(producer.window))
            for producer_id, producer in one.producers.by_id.items()
        },
        "open": one.open_transactions,
        "aborted": one.aborted.to_bytes(),
        "epochs": one.epochs,
        "bytes": content(one),
    }


def content(one: Partition) -> bytes:
    """What a reader of uncommitted data gets, from the start on."""
    parts, offset = [], one.start_offset
    while True:
        read = one.read(offset, 1 << 20, committed=False)
        if not read.chunks:
            return b"".join(parts)
        parts += [bytes(chunk) for chunk in read.chunks]
        offset = read.next_offset
