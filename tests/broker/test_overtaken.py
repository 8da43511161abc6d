"""Delayed requests of transaction version 1 (FAULTS B1, B26; DESIGN, The broker).

Checked by taking `overtaken` out of each handler: the later transaction was then torn, or its offsets went back.
"""

from __future__ import annotations

from typing import Any

import pytest

from semel.broker.errors import Error

from .world import Txn, World, committed

OLD, NEW = 1, 2  # connections; the second was accepted later


@pytest.fixture
def world() -> World:
    world = World()
    world.topic("a", 2)
    return world


def started(world: World) -> Txn:
    one = Txn(world, "t", connection=OLD)
    one.init()
    one.send("a", 0, "first")
    return one


@pytest.mark.parametrize("commit", [True, False])
def test_a_delayed_end_does_not_end_the_next_transaction(world: World, commit: bool) -> None:
    """B1: EndTxn held on the older connection, retried on the newer, released in the middle of the next one."""
    one = started(world)
    held = one.end_request(commit)
    one.connection = NEW
    assert one.end(commit) == 0
    one.send("a", 0, "second")
    token = world.post(held, OLD)
    assert world.closed == {OLD} and world.answer(token) is None
    one.send("a", 1, "third")
    assert one.commit() == 0
    assert world.read("a", 0, committed=True) == (["first"] if commit else []) + ["second"]
    assert world.read("a", 1, committed=True) == ["third"]


def test_a_delayed_offset_commit_does_not_move_offsets_back(world: World) -> None:
    """B26, in the next transaction and in its own, in every version of the request."""
    for version in (0, 3, 4):
        world = World()
        world.topic("a", 2)
        one = started(world)
        one.add_offsets("g")
        held = one.offsets_request("g", {("a", 0): 10})
        one.connection = NEW
        assert one.offsets("g", {("a", 0): 10}, version=version) == 0
        assert one.offsets("g", {("a", 0): 20}, version=version) == 0
        world.post(held, OLD, version)
        assert one.commit() == 0
        assert committed(world, "g", "a") == (0, 20)
        one.add_offsets("g")
        one.offsets("g", {("a", 0): 30}, version=version)
        world.post(held, 0, version)
        assert one.commit() == 0
        assert committed(world, "g", "a") == (0, 30)
        assert world.closed == {OLD, 0}


def test_a_delayed_addition_does_not_open_a_transaction(world: World) -> None:
    """AddPartitionsToTxn and AddOffsetsToTxn: released after the commit, they would open one that nobody ends."""
    one = started(world)
    held: list[Any] = [one.add_request(("a", 0))]
    one.connection = NEW
    one.add(("a", 0))
    one.add_offsets("g")
    assert one.commit() == 0
    world.post(held[0], OLD)
    assert not world.state.open


def test_each_api_counts_for_itself(world: World) -> None:
    """A client holds several connections at once, by class of request: a rule per producer would end healthy ones."""
    one = started(world)
    one.connection = NEW
    one.add_offsets("g")
    one.connection = OLD
    assert one.send("a", 1, "x") == 0
    assert one.commit() == 0
    assert world.closed == set()


@pytest.mark.parametrize("connections", [(OLD, OLD), (OLD, NEW)])
def test_without_faults_no_connection_is_ended(world: World, connections: tuple[int, int]) -> None:
    """Many transactions over one connection, and over one that was replaced once."""
    one = started(world)
    for round_number in range(20):
        one.connection = connections[round_number // 10]
        assert one.send("a", 0, "x") == 0
        assert one.offsets("g", {("a", 0): round_number}) == 0
        assert one.commit() == 0
    assert world.closed == set()


def test_a_new_epoch_starts_the_count_again(world: World) -> None:
    """The next instance of the same id may come on any connection; the former one is fenced by its epoch instead."""
    one = started(world)
    one.connection = NEW
    one.commit()
    two = Txn(world, "t", connection=OLD)
    two.init()
    assert two.send("a", 0, "x") == 0 and two.commit() == 0
    assert one.commit() == Error.PRODUCER_FENCED
    assert world.closed == set()


def test_nothing_more_is_taken_from_an_ended_connection(world: World) -> None:
    """What was pipelined behind the late request changes nothing either."""
    one = started(world)
    held = one.end_request(True)
    one.connection = NEW
    one.commit()
    one.send("a", 0, "second")
    world.post(held, OLD)
    behind = world.post(one.end_request(False), OLD)
    assert world.answer(behind) is None and behind not in world.replies
    assert one.commit() == 0
    assert world.read("a", committed=True) == ["first", "second"]
