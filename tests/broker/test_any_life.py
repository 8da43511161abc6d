"""A group under any order of events: no handler raises, no request is left unanswered."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from semel.broker.errors import Error
from semel.broker.membership import Membership, Phase
from semel.broker.requests import (
    HeartbeatRequest,
    JoinGroupRequest,
    JoinGroupRequestProtocol,
    LeaveGroupRequest,
    MemberIdentity,
    OffsetCommitRequest,
    SyncGroupRequest,
    SyncGroupRequestAssignment,
)

from .member import subscription
from .snapshot import durable
from .world import World, commit_request


class Client:
    """A member that does what it likes, with what it remembers or with what it makes up."""

    def __init__(self, world: World, dice: random.Random, number: int) -> None:
        self.world, self.dice = world, dice
        self.connection = 10 + number
        self.instance = dice.choice((None, None, "i", "j"))
        self.id, self.generation, self.leads = "", -1, False
        self.waiting: int | None = None

    def step(self) -> None:
        dice, world = self.dice, self.world
        if self.waiting is not None:
            self.take()
            if self.waiting is not None and dice.random() < 0.9:
                return
        if dice.random() < 0.05:
            world.close(self.connection)
            self.connection += 100
            self.waiting = None
        version = dice.choice((0, 3, 4, 5, 9)) if self.instance is None else dice.choice((5, 9))
        match dice.randrange(8):
            case 0 | 1 | 2:
                protocols = tuple(
                    JoinGroupRequestProtocol(name, subscription(*dice.choice((("a",), ("a", "b")))))
                    for name in dice.choice((("range",), ("range", "sticky"), ("sticky", "range")))
                )
                member_id = self.id if dice.random() < 0.9 else dice.choice(("", "made up"))
                self.waiting = world.post(
                    JoinGroupRequest(
                        "g",
                        timedelta(milliseconds=dice.choice((1_000, 6_000))),
                        member_id,
                        "consumer",
                        protocols,
                        timedelta(milliseconds=dice.choice((500, 5_000))),
                        self.instance,
                    ),
                    self.connection,
                    version,
                )
            case 3 | 4:
                members = list(self.membership().members) if self.leads else []
                rows = tuple(SyncGroupRequestAssignment(member, b"x") for member in members)
                request = SyncGroupRequest("g", self.generation, self.id, rows, self.instance)
                self.waiting = world.post(request, self.connection)
            case 5:
                self.ask(HeartbeatRequest("g", self.generation, self.id, self.instance))
            case 6:
                self.ask(commit_request("g", {("a", 0): dice.randrange(9)}, self.generation, self.id))
            case 7 if dice.random() < 0.3:
                self.ask(LeaveGroupRequest("g", members=(MemberIdentity(self.id, self.instance),)))

    def membership(self) -> Membership:
        return self.world.node.broker.memberships.get("g", Membership("g"))

    def ask(self, message: HeartbeatRequest | LeaveGroupRequest | OffsetCommitRequest) -> None:
        self.waiting = self.world.post(message, self.connection)
        self.take()

    def take(self) -> None:
        assert self.waiting is not None
        self.world.settle()
        reply = self.world.answer(self.waiting)
        if reply is None:
            return
        self.waiting = None
        error = getattr(reply, "error_code", 0)
        if error in (Error.UNKNOWN_MEMBER_ID, Error.FENCED_INSTANCE_ID):
            self.id = ""
        elif hasattr(reply, "member_id") and error in (0, Error.MEMBER_ID_REQUIRED):
            self.id = reply.member_id
            if not error:
                self.generation = reply.generation_id
                self.leads = reply.leader == reply.member_id


@pytest.mark.parametrize("seed", range(10))
def test_a_group_survives_any_order_of_events(seed: int) -> None:
    """Joins, syncs, leaves, lost connections, time, crashes: the state machine stays in its table, everyone who waits
    is answered in the end, and what is durable is what a replay makes of it."""
    dice = random.Random(seed)
    world = World(seed)
    world.topic("a")
    clients = [Client(world, dice, number) for number in range(5)]
    generations: set[int] = set()
    for _ in range(400):
        dice.choice(clients).step()
        if dice.random() < 0.1:
            world.wait(dice.choice((10, 600, 3_000)))
        if dice.random() < 0.01:
            world.settle()
            before = durable(world.state)
            world.crash()
            assert durable(world.state)["groups"] == before["groups"]
            for client in clients:
                client.waiting = None
        membership = world.node.broker.memberships.get("g")
        if membership is not None:
            assert membership.generation >= max(generations, default=0)
            generations.add(membership.generation)
            assert set(membership.static.values()) <= set(membership.members)
            assert (membership.phase is Phase.EMPTY) <= (not membership.members)
            assert membership.leader is None or membership.leader in membership.members
    assert len(generations) > 5
    world.wait(60_000)
    for client in clients:
        if client.waiting is not None:
            assert world.answer(client.waiting) is not None
    assert not clients[0].membership().members
    assert not world.node._order or all(not order for order in world.node._order.values())
