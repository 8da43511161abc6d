"""The group member against a coordinator played by hand, and Kafka's assignor and bytes."""

from __future__ import annotations

from typing import Any

import pytest

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.client.assignment import assign_range, assignment, parse_assignment, parse_subscription, subscription
from semel.client.effects import Assigned, Departed, Died, Forfeited, Revoked
from semel.client.member import Member, MemberConfig, State
from semel.client.steps import GroupMetadata
from semel.ports import Done, TopicPartition, Unknown

from .hand import Hand

AT = TopicPartition("in", 0)
OTHER = TopicPartition("in", 1)


def joined(member_id: str = "m1", leader: str = "m1", generation: int = 1, **more: Any) -> messages.JoinGroupResponse:
    members = (messages.JoinGroupResponseMember(member_id, None, subscription(["in"])),)
    return messages.JoinGroupResponse(
        0, 0, generation, "consumer", "range", leader, member_id=member_id, members=members, **more
    )


def joining(**config: Any) -> tuple[Member, Hand]:
    member = Member(MemberConfig("g", ("in",), **config), {"in": 2})
    hand = Hand(member)
    hand.did(member.join(hand.now_ms))
    return member, hand


def stable(**config: Any) -> tuple[Member, Hand]:
    member, hand = joining(**config)
    hand.answer(joined())
    hand.answer(messages.SyncGroupResponse(assignment=assignment([AT, OTHER])))
    assert hand.take(Assigned) == Assigned((AT, OTHER), 1)
    return member, hand


def test_a_leader_joins_assigns_and_heartbeats() -> None:
    """Join, again with the id that was given (KIP-394), sync with everyone's share, then heartbeats."""
    member, hand = joining()
    assert hand.asked().member_id == ""
    hand.answer(messages.JoinGroupResponse(error_code=Error.MEMBER_ID_REQUIRED, member_id="m1"))
    assert hand.asked().member_id == "m1"
    hand.answer(joined())
    sync = hand.asked()
    assert isinstance(sync, requests.SyncGroupRequest) and sync.generation_id == 1
    assert [(a.member_id, parse_assignment(a.assignment)) for a in sync.assignments] == [("m1", [AT, OTHER])]
    hand.answer(messages.SyncGroupResponse(assignment=sync.assignments[0].assignment))
    assert hand.take(Assigned) == Assigned((AT, OTHER), 1)
    assert member.metadata == GroupMetadata("g", 1, "m1", None)
    assert not hand.waiting
    hand.tick(1_000)
    assert hand.asked() == requests.HeartbeatRequest("g", 1, "m1", None)


def test_a_follower_assigns_nothing() -> None:
    """Only the leader sends shares; a leader told to skip it (a static one that came back) sends none either."""
    for answer in (joined(leader="m0"), joined(skip_assignment=True)):
        _, hand = joining()
        hand.answer(answer)
        assert hand.asked().assignments == ()


def test_a_rebalance_waits_for_the_user() -> None:
    """Revoked partitions are ours until `rejoin`; heartbeats go on meanwhile, and nothing is revoked twice."""
    member, hand = stable()
    hand.tick(1_000)
    hand.answer(messages.HeartbeatResponse(error_code=Error.REBALANCE_IN_PROGRESS))
    assert hand.take(Revoked) == Revoked((AT, OTHER))
    hand.tick(1_000)
    hand.answer(messages.HeartbeatResponse(error_code=Error.REBALANCE_IN_PROGRESS))
    assert not hand.log and member.generation == 1
    hand.did(member.rejoin(hand.now_ms))
    assert hand.asked().member_id == "m1"
    hand.answer(joined(generation=2))
    hand.answer(messages.SyncGroupResponse(assignment=assignment([OTHER])))
    assert hand.take(Assigned) == Assigned((OTHER,), 2)


def test_a_rebalance_before_the_sync_joins_again() -> None:
    """Nothing was assigned, so nothing is revoked."""
    _, hand = joining()
    hand.answer(joined())
    hand.answer(messages.SyncGroupResponse(error_code=Error.REBALANCE_IN_PROGRESS))
    assert isinstance(hand.asked(), requests.JoinGroupRequest) and not hand.log


@pytest.mark.parametrize(("code", "member_id"), [(Error.UNKNOWN_MEMBER_ID, ""), (Error.ILLEGAL_GENERATION, "m1")])
def test_what_the_group_took_away_is_forfeited(code: int, member_id: str) -> None:
    """The partitions are another's already: forfeited, never revoked, and the member joins again."""
    _, hand = stable()
    hand.tick(1_000)
    hand.answer(messages.HeartbeatResponse(error_code=code))
    assert hand.take(Forfeited) == Forfeited((AT, OTHER))
    assert hand.asked().member_id == member_id


def test_silence_forfeits_after_the_session() -> None:
    """Heartbeats that nobody answers: after the session timeout the group may have given the partitions away."""
    member, hand = stable(session_timeout_ms=3_000)
    waited = 0
    while not hand.log:
        hand.waiting.clear()
        assert member.wake_at_ms is not None
        after_ms = member.wake_at_ms - hand.now_ms
        assert after_ms > 0
        hand.tick(after_ms)
        waited += after_ms
    assert hand.take(Forfeited).partitions == (AT, OTHER) and waited == 3_000


def test_a_lost_heartbeat_alone_forfeits_nothing() -> None:
    """It is asked again on a new connection."""
    _, hand = stable()
    hand.tick(1_000)
    hand.lose()
    hand.tick(1_000)
    assert isinstance(hand.asked(), requests.HeartbeatRequest)
    hand.answer(messages.HeartbeatResponse())
    assert not hand.log


def test_a_lost_join_is_asked_again() -> None:
    """Unknown whether it arrived: the same id joins again, and the group knows it."""
    _, hand = joining(instance_id="s")
    hand.lose()
    hand.tick(100)
    assert isinstance(hand.asked(), requests.JoinGroupRequest) and hand.asked().group_instance_id == "s"
    hand.answer(joined())
    hand.lose()
    hand.tick(100)
    assert isinstance(hand.asked(), requests.SyncGroupRequest)


@pytest.mark.parametrize("when", ["joining", "syncing", "stable"])
def test_a_fenced_static_member_is_dead(when: str) -> None:
    """Another process has its instance id: nothing more is sent, partitions are forfeited."""
    code = int(Error.FENCED_INSTANCE_ID)
    if when == "stable":
        member, hand = stable(instance_id="s")
        hand.tick(1_000)
        hand.answer(messages.HeartbeatResponse(error_code=code))
        assert hand.log.pop(0) == Forfeited((AT, OTHER))
    else:
        member, hand = joining(instance_id="s")
        if when == "syncing":
            hand.answer(joined())
            hand.answer(messages.SyncGroupResponse(error_code=code))
        else:
            hand.answer(messages.JoinGroupResponse(error_code=code))
    assert hand.take(Died).fenced
    assert member.state is State.DEAD and not hand.open and not hand.waiting and member.wake_at_ms is None


@pytest.mark.parametrize("answered", [True, False])
def test_leaving(answered: bool) -> None:
    """Done when the group said so; unknown when the answer was lost. It can join again."""
    member, hand = stable(instance_id="s")
    hand.tick(1_000)
    heartbeat = hand.waiting.pop()
    hand.did(member.leave(hand.now_ms))
    assert heartbeat.connection in hand.closed
    assert hand.asked().members == (requests.MemberIdentity("m1", "s"),)
    if answered:
        hand.answer(messages.LeaveGroupResponse(members=(messages.MemberResponse("m1", "s"),)))
        assert hand.take(Departed) == Departed(Done())
    else:
        hand.lose()
        assert isinstance(hand.take(Departed).outcome, Unknown)
    hand.did(member.join(hand.now_ms))
    assert isinstance(hand.asked(), requests.JoinGroupRequest)


def test_leaving_before_it_has_an_id() -> None:
    """There is nobody to name in a LeaveGroup; the join under way may still be taken."""
    member, hand = joining()
    hand.did(member.leave(hand.now_ms))
    assert isinstance(hand.take(Departed).outcome, Unknown)
    assert member.state is State.OUT and not hand.open


def test_the_bytes_are_kafka_s() -> None:
    """Subscription and assignment, version 0: a version, an array, null user data (Kafka's ConsumerProtocol)."""
    assert subscription(["a", "b"]) == bytes.fromhex("0000 00000002 0001 61 0001 62 ffffffff".replace(" ", ""))
    assert parse_subscription(subscription(["x", "y"])) == ["x", "y"]
    assert assignment([OTHER, AT]) == bytes.fromhex("0000 00000001 0002 696e 00000002 00000000 00000001 ffffffff")
    assert parse_assignment(assignment([AT, OTHER, TopicPartition("z", 5)])) == [AT, OTHER, TopicPartition("z", 5)]
    assert parse_assignment(b"") == []


def test_range_is_kafka_s() -> None:
    """Consecutive partitions per topic, the first members take the remainder, static members go first."""
    members: dict[str, tuple[str | None, list[str]]] = {
        "c": (None, ["t", "u"]),
        "b": (None, ["t"]),
        "z": ("a", ["t"]),
    }
    given = assign_range(members, {"t": 5, "u": 2})
    assert [at.partition for at in given["z"]] == [0, 1]
    assert [at.partition for at in given["b"]] == [2, 3]
    assert given["c"] == [TopicPartition("t", 4), TopicPartition("u", 0), TopicPartition("u", 1)]
