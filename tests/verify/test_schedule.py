"""The schedule: as many kills as asked, every step of the path, and every seed its own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.ports import Step
from semel.verify.schedule import (
    BROKER_STEPS,
    INSIDE_SINK,
    SINK_STEPS,
    WORKER_STEPS,
    Fault,
    Kind,
    directed_fault,
    schedule,
)

SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.integers(1, 200), st.booleans(), st.booleans(), st.booleans())
def test_it_asks_for_exactly_the_kills(seed: int, crashes: int, broker: bool, sinks: bool, file_sinks: bool) -> None:
    """Neither fewer, which would prove less than asked, nor more; at least one zombie in ten from ten on."""
    plan = schedule(random.Random(seed), crashes, broker=broker, sinks=sinks, file_sinks=file_sinks)
    assert plan.kills == crashes
    assert crashes < 10 or plan.zombies >= crashes / 10


@given(SEEDS, st.integers(40, 200))
def test_every_step_is_struck(seed: int, crashes: int) -> None:
    """From 40 kills on, each named step of workers, broker and sink has its own."""
    plan = schedule(random.Random(seed), crashes)
    assert plan.steps >= {*WORKER_STEPS, *BROKER_STEPS, *SINK_STEPS}


@given(SEEDS, st.integers(1, 100))
def test_a_file_is_never_held_by_a_stopped_owner(seed: int, crashes: int) -> None:
    """Nobody could take a SQLite file's lock from it (FAULTS S14)."""
    plan = schedule(random.Random(seed), crashes, file_sinks=True)
    stopped = {f.step for queue in plan.workers for f in queue if f.kind in (Kind.ZOMBIE, Kind.LATE)}
    assert not stopped & set(INSIDE_SINK)


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same faults, another one others."""
    one, same, other = (schedule(random.Random(seed), 50) for seed in (7, 7, 8))
    assert one == same != other


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("commit.before", Fault(Kind.STEP, Step.COMMIT_BEFORE)),
        ("batch.before:zombie", Fault(Kind.ZOMBIE, Step.BATCH_BEFORE)),
        ("offsets.before:handover", Fault(Kind.HANDOVER, Step.OFFSETS_BEFORE)),
        ("leave", Fault(Kind.LEAVE)),
    ],
)
def test_directed_faults_are_read(text: str, fault: Fault) -> None:
    assert directed_fault(text) == fault


@pytest.mark.parametrize("text", ["", "commit", "commit.before:twice", "commit.before:", ":zombie"][:3])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        directed_fault(text)


@given(SEEDS, st.integers(1, 40))
def test_a_directed_schedule_has_nothing_else(seed: int, crashes: int) -> None:
    """Only what was asked for; a hand-over counts for its two kills."""
    asked = [directed_fault("commit.before"), directed_fault("offsets.before:handover"), directed_fault("sync.after")]
    plan = schedule(random.Random(seed), crashes, directed=asked)
    kinds = {(f.kind, f.step) for queue in [*plan.workers, plan.broker] for f in queue}
    assert kinds <= {(f.kind, f.step) for f in asked}
    assert crashes <= plan.kills <= crashes + 1
    assert all(f.step in BROKER_STEPS for f in plan.broker)
