"""The demo's schedule keeps its promises for every seed."""

import pytest
from examples.demo.schedule import BROKER_KILLS, WORKER_KILLS, WORKERS, ZOMBIES, Event, Kind, schedule

from semel.ports import Step

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 88131])


def kinds(events: list[Event], kind: Kind) -> list[Event]:
    return [event for event in events if event.kind is kind]


@SEEDS
def test_every_seed_has_the_kills_that_are_promised(seed: int) -> None:
    """At least 20 kills of workers, 5 of the broker, 3 zombies, in order of position, within the input."""
    events = schedule(seed, 336_776)
    assert len(kinds(events, Kind.WORKER)) == WORKER_KILLS >= 20
    assert len(kinds(events, Kind.BROKER)) == BROKER_KILLS >= 5
    assert len(kinds(events, Kind.STOP)) == len(kinds(events, Kind.RESUME)) == ZOMBIES >= 3
    positions = [event.at for event in events]
    assert positions == sorted(positions) and positions[0] > 0 and positions[-1] < 336_776


@SEEDS
def test_a_zombie_overlaps_a_kill_of_its_successor(seed: int) -> None:
    """Between stop and resume the other worker is killed, and nothing is aimed at the one that is stopped."""
    stopped = None
    killed_meanwhile = 0
    for event in schedule(seed, 336_776):
        assert 0 <= event.slot < WORKERS
        if event.kind is Kind.STOP:
            assert stopped is None
            stopped, killed_meanwhile = event.slot, 0
        elif event.kind is Kind.RESUME:
            assert stopped == event.slot and killed_meanwhile
            stopped = None
        elif event.kind is Kind.WORKER and stopped is not None:
            assert event.slot != stopped
            killed_meanwhile += 1
    assert stopped is None


@SEEDS
def test_each_mode_is_hit_where_it_is_weak(seed: int) -> None:
    """Between outputs and offsets (at-least-once repeats) and between offsets and outputs (at-most-once loses)."""
    steps = [event.step for event in kinds(schedule(seed, 336_776), Kind.WORKER)]
    assert steps.count(Step.OFFSETS_BEFORE) >= 2
    assert steps.count(Step.OFFSETS_AFTER) >= 2


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same events; another one others."""
    assert schedule(7, 336_776) == schedule(7, 336_776) != schedule(8, 336_776)
