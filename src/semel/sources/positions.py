"""Where it is written how far a source was read: a compacted topic beside the topic that it feeds.

TOPIC-positions has a partition per lane of the source, and in it, keyed by source partition, the newest position. A
record is written in the transaction that writes the records before that position, so neither is there without the
other. It names the topic that it is a position of: one that was made anew is empty, and its source was not read.
"""

from __future__ import annotations

import msgspec

from semel.ports import Log, TopicPartition
from semel.sources.source import SourceDiverged, SourceError

ENDING, REFUSED_ENDING, GROUP_ENDING = "-positions", "-refused", ".ingest"
CONFIG = {"cleanup.policy": "compact"}
UNDECIDED_MAX = 100  # tenths of a second that an open transaction of somebody else is waited for


class Written(msgspec.Struct, frozen=True):
    """The record of one source partition."""

    topic_id: str  # of the topic that is fed; "" where the log tells none
    source: str  # its contract's name: a position of another kind is none
    at: msgspec.Raw  # what the source itself says


class Undecided(Exception):
    """Somebody else's transaction is open in the positions, and has been for long."""


def encoded(topic_id: str, source: str, at: bytes) -> bytes:
    return msgspec.json.encode(Written(topic_id, source, msgspec.Raw(at)))


def read(log: Log, at: TopicPartition, topic: str, topic_id: str, source: str) -> dict[str, bytes]:
    """The newest position of every source partition of this lane. Read committed, up to the end: the caller has
    initialised the lane's transactional id, so nothing of a former ingest is still to come."""
    newest: dict[bytes, bytes | None] = {}
    waited = 0
    for records in log.read(at, log.starts([at])[at], log.ends([at])[at]):
        for key, value in zip(records.keys, records.values, strict=True):
            if key is not None:
                newest[key] = value
        waited += records.undecided
        if waited > UNDECIDED_MAX:
            raise Undecided(f"a transaction is open in {at.topic}-{at.partition} that is not of this ingest")
    found: dict[str, bytes] = {}
    for key, value in newest.items():
        if value is None:
            continue
        try:
            written = msgspec.json.decode(value, type=Written)
        except msgspec.MsgspecError as why:
            raise SourceError(
                f"{log.name}: what {at.topic}-{at.partition} says of {key!r} was not written by semel ({why}). Nothing "
                "was read. Put the former record back."
            ) from None
        if written.topic_id != topic_id:
            raise SourceDiverged(
                f"{log.name}: {at.topic} holds positions of another topic {topic} (id {written.topic_id or 'unknown'}, "
                f"now {topic_id or 'unknown'}): it was made anew, and what was read into the former one would be "
                f"missing. Put the former topic back; or delete {at.topic}, too, to read the source from its start."
            )
        if written.source != source:
            raise SourceError(
                f"{log.name}: {topic} was fed by {written.source} so far, and is declared to be fed by {source} now: "
                "which of its records are there already cannot be told. Feed another topic."
            )
        found[key.decode()] = bytes(written.at)
    return found


def check(log: Log, topic: str, lanes: int) -> None:
    """The positions' topic is there, with a partition per lane, and forgets nothing but what was replaced."""
    name = topic + ENDING
    found = log.topics()[name].partitions
    if found != lanes:
        raise SourceError(
            f"{log.name}: {name} has {found} partitions, the source of {topic} has {lanes} lanes: positions would be "
            "looked for where they are not. Give the source the lanes that it had."
        )
    policy = log.config(name).get("cleanup.policy", "compact")
    if policy != "compact":
        raise SourceError(
            f"{log.name}: {name} has cleanup.policy={policy}: it could forget what was read. "
            "Set cleanup.policy=compact."
        )
