"""A move over documents that change one at a time: refused, ended at each of its parts, made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from semel.contract import DeliveryId, LogIdentity, Remembered
from semel.ports import Done, Fenced, Outcome
from semel.sinks.documents_moved import log_name, moved, place_name, remembered

LOG = LogIdentity("topic", 2)


class Ended(Exception):
    """The person's process."""


class Kept:
    """Documents in memory, each with a version."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[Mapping[str, Any], int]] = {}
        self.put(log_name("app", "sink"), {"topic_id": "topic", "partitions": 2, "incarnation": 1}, None)
        for partition in range(2):
            says = {"epoch": 3, "incarnation": 1, "position": 10, "run": "m", "holder": "somebody"}
            self.put(place_name(DeliveryId("app", "sink", partition)), says, None)

    def get(self, name: str) -> tuple[Mapping[str, Any], Any] | None:
        return self.said.get(name)

    def put(self, name: str, says: Mapping[str, Any], over: Any | None) -> Any | None:
        now = self.said.get(name)
        if (None if now is None else now[1]) != over:
            return None
        self.said[name] = (dict(says), (over or 0) + 1)
        return self.said[name][1]

    def delivered(self, partition: int, position: int) -> None:
        """By an owner that lives."""
        name = place_name(DeliveryId("app", "sink", partition))
        says, version = self.said[name]
        self.put(name, {**says, "position": position}, version)


def move(kept: Kept, to: int, reached: Callable[[], None] = lambda: None, seen: Any = None) -> Outcome:
    now = remembered(kept, "app", "sink")
    incarnation = 1 + max(one.incarnation for one in now)
    target = [Remembered(partition, 0, incarnation, to, "n", LOG) for partition in range(2)]
    return moved(kept, "here", "app", "sink", now if seen is None else seen, target, reached)


def test_all_of_it_is_moved_and_everybody_is_fenced() -> None:
    """Under the next incarnation, each epoch raised."""
    kept = Kept()
    assert move(kept, 4) == Done()
    now = remembered(kept, "app", "sink")
    assert [(one.position, one.incarnation, one.run, one.unfinished) for one in now] == [(4, 2, "n", False)] * 2
    assert all(one.epoch > 3 for one in now)


@pytest.mark.parametrize("partition", [0, 1])
@pytest.mark.parametrize("when", [0, 1])
def test_what_has_moved_meanwhile_is_not_moved(partition: int, when: int) -> None:
    """S1: before the move, and after it has said that it is under way. No position is another one then."""
    kept = Kept()
    seen = remembered(kept, "app", "sink")

    def delivers() -> None:
        if kept.said[place_name(DeliveryId("app", "sink", partition))][0]["position"] == 10:
            kept.delivered(partition, 15)

    if when == 0:
        delivers()
    outcome = move(kept, 4, delivers if when else lambda: None, seen)
    assert isinstance(outcome, Fenced)
    now = remembered(kept, "app", "sink")
    assert [one.position for one in now] == [15 if one.partition == partition else 10 for one in now]
    assert [(one.incarnation, one.unfinished) for one in now] == [(1, False)] * 2


@pytest.mark.parametrize("part", range(1, 6))
def test_a_move_that_ended_is_seen_and_made_again(part: int) -> None:
    """S10: each part after which the process may end. While it is half done it says so, and what shows of a partition
    that was moved is where it was moved to."""
    kept, count = Kept(), 0

    def ends() -> None:
        nonlocal count
        count += 1
        if count == part:
            raise Ended

    with pytest.raises(Ended):
        move(kept, 4, ends)
    now = remembered(kept, "app", "sink")
    assert all(one.unfinished for one in now)
    assert {one.position for one in now} <= {4, 10}
    assert move(kept, 4) == Done()
    after = remembered(kept, "app", "sink")
    assert [(one.position, one.unfinished) for one in after] == [(4, False)] * 2
    assert all(later.epoch > one.epoch for later, one in zip(after, now, strict=True))
