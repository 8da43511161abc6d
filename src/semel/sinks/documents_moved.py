"""A person's move of a delivery whose position is several documents of a store, which changes one at a time.

    log     whose positions they are, the incarnation; "moving" while a move is under way
    place   of each partition: epoch, incarnation, position, run

Invariants: while the first document says "moving" nobody is given a claim, so a move that was interrupted stops the
delivery until it is made again; every place is fenced (its epoch raised, compared with what was seen) before any is
moved, so where something was not as it was seen no position has changed; and each change names the version that it
replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from semel.contract import DeliveryId, LogIdentity, Remembered
from semel.ports import Done, Fenced, NotDone, Outcome, Unknown
from semel.sinks import positions
from semel.sinks.documents import OWN

MOVING = "moving"


class Own(Protocol):
    """semel's own documents of one sink. What the store raises goes through."""

    def get(self, name: str) -> tuple[Mapping[str, Any], Any] | None:
        """What it says, and the version of it."""
        ...

    def put(self, name: str, says: Mapping[str, Any], over: Any | None) -> Any | None:
        """The new version; None where `over` is not there any more (None: where something is)."""
        ...


def log_name(app: str, sink: str) -> str:
    return f"{OWN}log:{app}/{sink}"


def place_name(delivery: DeliveryId) -> str:
    return f"{OWN}position:{delivery.app}/{delivery.sink}/{delivery.partition}"


def remembered(own: Own, app: str, sink: str) -> list[Remembered]:
    found = own.get(log_name(app, sink))
    if found is None:
        return []
    said = found[0]
    log, incarnation = LogIdentity(said["topic_id"], int(said["partitions"])), int(said["incarnation"])
    seen = []
    for partition in range(log.partitions):
        place = own.get(place_name(DeliveryId(app, sink, partition)))
        if place is None:
            continue
        lane = place[0]
        own_incarnation, moving = int(lane["incarnation"]), bool(said.get(MOVING))
        # Of another incarnation it is no position in this one, as for the claim; a move that was interrupted has given
        # some the next one already.
        here = own_incarnation == incarnation or (moving and own_incarnation > incarnation)
        position, run = (int(lane["position"]), lane["run"]) if here else (0, "")
        seen.append(
            Remembered(
                partition, int(lane["epoch"]), max(incarnation, own_incarnation), position, run, log, lane["holder"],
                unfinished=moving,
            )
        )  # fmt: skip
    return seen


def moved(
    own: Own,
    where: str,
    app: str,
    sink: str,
    seen: Sequence[Remembered],
    to: Sequence[Remembered],
    reached: Callable[[], None],
) -> Outcome:
    """`reached` is called after each part of it that is there."""
    control = own.get(log_name(app, sink))
    if control is None:
        return NotDone(f"{where}: it knows of no delivery of {app}")
    if changed := positions.changed(seen, remembered(own, app, sink)):
        return Fenced(f"{where}: {changed}")
    marked = own.put(log_name(app, sink), {**control[0], MOVING: True}, control[1])
    if marked is None:
        return Fenced(f"{where}: {positions.meanwhile('what is said of this delivery')}")
    reached()
    fenced: dict[int, tuple[int, Any]] = {}
    for one in to:
        place = _fenced(own, DeliveryId(app, sink, one.partition), seen)
        if place is None:
            own.put(log_name(app, sink), {**control[0], MOVING: bool(control[0].get(MOVING))}, marked)
            return Fenced(f"{where}: {positions.meanwhile(f'the position of partition {one.partition}')}")
        fenced[one.partition] = place
        reached()
    for one in to:
        epoch, version = fenced[one.partition]
        says = {"epoch": epoch, "incarnation": one.incarnation, "position": one.position, "run": one.run}
        name = place_name(DeliveryId(app, sink, one.partition))
        if own.put(name, {**says, "holder": positions.OPERATOR}, version) is None:
            return Unknown(f"{where}: partition {one.partition} was claimed while it was moved, and others were moved")
        reached()
    log = to[0].log
    says = {"topic_id": log.topic_id, "partitions": log.partitions, "incarnation": to[0].incarnation, MOVING: False}
    if own.put(log_name(app, sink), says, marked) is None:
        return Unknown(f"{where}: what is said of this delivery has changed while it was moved")
    return Done()


def _fenced(own: Own, delivery: DeliveryId, seen: Sequence[Remembered]) -> tuple[int, Any] | None:
    """The place under a higher epoch, where it was as it was seen. What lies there of a former outbox's partition was
    not looked at, and is not compared."""
    before = next((one for one in seen if one.partition == delivery.partition), None)
    found = own.get(place_name(delivery))
    if found is None:
        says: Mapping[str, Any] = {"epoch": 0, "incarnation": 0, "position": 0, "run": ""}
        if before is not None:
            return None
    else:
        says = found[0]
        if before is not None and int(says["epoch"]) != before.epoch:  # each claim raises it; its owner moves on
            return None
        same = before is None or int(says["incarnation"]) != before.incarnation
        if before is not None and not same and (int(says["position"]), says["run"]) != (before.position, before.run):
            return None
    epoch = int(says["epoch"]) + 1
    version = own.put(
        place_name(delivery),
        {**says, "epoch": epoch, "holder": positions.OPERATOR},
        None if found is None else found[1],
    )
    return None if version is None else (epoch, version)
