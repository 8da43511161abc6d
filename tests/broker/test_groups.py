"""Classic consumer groups: rebalances, sessions, static members, and what a restart keeps of them."""

from __future__ import annotations

import pytest

from semel.broker.errors import Error
from semel.broker.requests import (
    DeleteGroupsRequest,
    DescribeGroupsRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    ListGroupsRequest,
    MemberIdentity,
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)

from .member import Member, stable, subscription
from .world import Txn, World, commit_offsets, committed


@pytest.fixture
def world() -> World:
    world = World()
    world.topic("a", 2)
    return world


# --- Rebalances


def test_a_member_gets_its_id_first(world: World) -> None:
    """KIP-394: from version 4 on MEMBER_ID_REQUIRED carries the id to come back with."""
    new, old = Member(world), Member(world, "h", version=3)
    new.post_join()
    assert new.take_join() == Error.MEMBER_ID_REQUIRED and new.id
    assert new.join() == 0 and new.generation == 1 and new.leads
    assert old.join() == 0 and old.id


def test_members_share_a_generation_and_the_leader_assigns(world: World) -> None:
    """The leader alone sees all members; each gets its own assignment, once that is durable."""
    one, two = Member(world), Member(world)
    stable(one, two)
    assert one.generation == two.generation
    assert {one.leads, two.leads} == {True, False}
    leader, follower = (one, two) if one.leads else (two, one)
    assert {row.member_id for row in leader.joined.members} == {one.id, two.id}
    assert {row.metadata for row in leader.joined.members} == {subscription("a")}
    assert follower.joined.members == []
    assert one.heartbeat() == two.heartbeat() == 0


def test_nobody_hears_of_an_assignment_before_it_is_durable(world: World) -> None:
    """A member that works under it works under something that a restart knows."""
    one = Member(world)
    one.join()
    one.post_sync({one.id: b"x"})
    assert world.answer(one.token) is None
    world.settle()
    assert one.take_sync() == (0, b"x")


def test_a_new_member_makes_the_others_join_again(world: World) -> None:
    """Heartbeats tell them REBALANCE_IN_PROGRESS; the generation rises when all are there."""
    one, two = Member(world), Member(world)
    stable(one)
    assert two.join() is None
    assert one.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert one.sync() == (Error.REBALANCE_IN_PROGRESS, b"")
    assert one.join() == 0 and two.take_join() == 0
    assert one.generation == two.generation == 2


def test_a_member_that_does_not_join_again_is_left_out(world: World) -> None:
    """At the end of the rebalance timeout; then it is unknown."""
    one, two = Member(world, rebalance_ms=3_000), Member(world, rebalance_ms=3_000)
    stable(one)
    assert two.join() is None
    world.wait(2_000)
    assert two.take_join() is None
    world.wait(1_000)
    assert two.take_join() == 0 and two.leads
    assert one.heartbeat() == Error.UNKNOWN_MEMBER_ID


def test_a_member_that_does_not_sync_is_left_out(world: World) -> None:
    """A leader that dies between join and sync stops nobody for longer than the rebalance timeout."""
    one, two = Member(world, rebalance_ms=3_000, session_ms=60_000), Member(world, rebalance_ms=3_000)
    stable(one, two)
    leader, other = (one, two) if one.leads else (two, one)
    leader.post_join()
    other.join()
    assert leader.take_join() == 0
    other.post_sync()
    world.wait(3_000)
    assert other.take_sync() == (Error.REBALANCE_IN_PROGRESS, b"")
    assert other.join() == 0 and other.leads
    assert leader.sync({}) == (Error.UNKNOWN_MEMBER_ID, b"")


def test_a_leaver_is_gone_at_once(world: World) -> None:
    """The others join again without waiting for its session."""
    one, two = Member(world), Member(world)
    stable(one, two)
    assert two.leave() == 0
    assert one.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert one.join() == 0 and one.leads
    assert two.leave() == Error.UNKNOWN_MEMBER_ID


def test_a_strangers_leave_disturbs_nobody(world: World) -> None:
    """Unknown, fenced, or promised an id and never joined: the others stay in their generation."""
    one = Member(world, instance_id="i")
    stable(one)
    assert Member(world, id="stranger").leave() == Error.UNKNOWN_MEMBER_ID
    assert Member(world, id="stranger", instance_id="i").leave() == Error.FENCED_INSTANCE_ID
    assert world.ask(LeaveGroupRequest("g", "stranger"), version=2).error_code == Error.UNKNOWN_MEMBER_ID
    promised = Member(world)
    promised.post_join()
    assert promised.take_join() == Error.MEMBER_ID_REQUIRED and promised.leave() == 0
    assert one.heartbeat() == 0


def test_several_members_leave_in_one_request(world: World) -> None:
    """Version 3 on: each has its own answer, static ones go by their instance id alone."""
    one, two = Member(world, instance_id="i"), Member(world)
    stable(one, two)
    rows = (MemberIdentity("", "i"), MemberIdentity(two.id), MemberIdentity("nobody"), MemberIdentity("x", "j"))
    reply = world.ask(LeaveGroupRequest("g", members=rows))
    assert [row.error_code for row in reply.members] == [0, 0, Error.UNKNOWN_MEMBER_ID, Error.UNKNOWN_MEMBER_ID]
    (group,) = world.ask(DescribeGroupsRequest(("g",))).groups
    assert (group.group_state, list(group.members)) == ("Empty", [])
    assert world.ask(LeaveGroupRequest("g", "nobody"), version=2).error_code == Error.UNKNOWN_MEMBER_ID


def test_a_session_ends_without_heartbeats_and_lasts_with_them(world: World) -> None:
    """Sessions may be as short as a second; every request of the member renews its own."""
    one, two = Member(world, session_ms=1_000), Member(world, session_ms=1_000)
    stable(one, two)
    for _ in range(3):
        world.wait(900)
        assert one.heartbeat() == 0
        assert two.commit("a", 1) == 0
    world.wait(900)
    assert one.heartbeat() == 0
    world.wait(100)
    assert one.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert two.heartbeat() == Error.UNKNOWN_MEMBER_ID


def test_who_waits_for_a_rebalance_needs_no_heartbeats(world: World) -> None:
    """A join that waits is a sign of life, until its connection goes."""
    one, two = Member(world, session_ms=60_000, rebalance_ms=60_000), Member(world, session_ms=1_000)
    stable(one)
    assert two.join() is None
    world.wait(5_000)
    assert two.take_join() is None and len(world.node.broker.memberships["g"].members) == 2
    world.close(two.connection)
    world.wait(1_000)
    assert len(world.node.broker.memberships["g"].members) == 1


def test_a_lost_answer_is_given_again(world: World) -> None:
    """A follower that joins again with the same subscription changes nothing; the leader starts a rebalance."""
    one, two = Member(world), Member(world)
    stable(one, two)
    leader, other = (one, two) if one.leads else (two, one)
    before = other.generation
    assert other.join() == 0 and other.generation == before
    assert other.sync() == (0, str(other.connection).encode())
    leader.post_join()
    assert leader.take_join() is None
    assert other.heartbeat() == Error.REBALANCE_IN_PROGRESS


def test_another_subscription_starts_a_rebalance(world: World) -> None:
    """Also a follower's."""
    one, two = Member(world), Member(world)
    stable(one, two)
    other = two if one.leads else one
    other.topics = ("a", "b")
    assert other.join() is None


def test_the_protocol_is_one_that_all_know(world: World) -> None:
    """Who knows none of them is told INCONSISTENT_GROUP_PROTOCOL and disturbs nobody."""
    one, two = Member(world, protocols=("sticky", "range")), Member(world, protocols=("range", "roundrobin"))
    stable(one, two)
    assert one.joined.protocol_name == two.joined.protocol_name == "range"
    assert Member(world, protocols=("roundrobin", "other")).join() == Error.INCONSISTENT_GROUP_PROTOCOL
    assert one.heartbeat() == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"group": ""}, Error.INVALID_GROUP_ID),
        ({"session_ms": 999}, Error.INVALID_SESSION_TIMEOUT),
        ({"session_ms": 1_800_001}, Error.INVALID_SESSION_TIMEOUT),
        ({"protocols": ()}, Error.INCONSISTENT_GROUP_PROTOCOL),
        ({"id": "somebody"}, Error.UNKNOWN_MEMBER_ID),
    ],
)
def test_joins_that_make_no_sense(world: World, changes: dict[str, object], error: Error) -> None:
    """Refused at once; no group comes of it."""
    assert Member(world, **changes).join() == error  # type: ignore[arg-type]
    assert not world.node.broker.memberships


def test_a_group_has_a_largest_size(world: World) -> None:
    """group.max.size counts those too that were promised an id, so that asking alone fills no memory."""
    world = World(group_max_size=2)
    one, two = Member(world, instance_id="i"), Member(world)
    stable(one)
    two.post_join()
    assert two.take_join() == Error.MEMBER_ID_REQUIRED
    assert Member(world).join() == Error.GROUP_MAX_SIZE_REACHED
    assert two.join() is None
    assert Member(world, instance_id="i").join() == 0  # takes the place of `one`, so that all are there
    assert one.heartbeat() == Error.FENCED_INSTANCE_ID


def test_an_initial_delay_gathers_members(world: World) -> None:
    """group.initial.rebalance.delay.ms: the first generation waits for those who come a little later."""
    world = World(group_initial_rebalance_delay_ms=500)
    one, two = Member(world), Member(world)
    assert one.join() is None and two.join() is None
    world.wait(499)
    assert one.take_join() is None
    world.wait(1)
    assert one.take_join() == two.take_join() == 0
    assert one.generation == two.generation == 1


def test_an_old_generation_or_a_stranger_changes_nothing(world: World) -> None:
    """Heartbeat, sync, commit."""
    one = Member(world)
    stable(one)
    one.generation += 1
    assert one.heartbeat() == one.commit("a", 5) == Error.ILLEGAL_GENERATION
    assert one.sync() == (Error.ILLEGAL_GENERATION, b"")
    one.id = "stranger"
    assert one.heartbeat() == one.commit("a", 5) == Error.UNKNOWN_MEMBER_ID
    assert committed(world, "g", "a") == (0, -1)
    assert Member(world, "nowhere", id="x", generation=1).heartbeat() == Error.UNKNOWN_MEMBER_ID
    assert Member(world, "nowhere", id="x", generation=1).commit("a", 5) == Error.ILLEGAL_GENERATION


def test_commits_are_allowed_while_others_join_but_not_before_the_own_sync(world: World) -> None:
    """Before it joins again a member commits what it did (revoked); after the join it has to sync first."""
    one, two = Member(world), Member(world)
    stable(one)
    two.join()
    assert one.commit("a", 5) == 0
    one.join()
    assert one.commit("a", 6) == Error.REBALANCE_IN_PROGRESS
    assert committed(world, "g", "a") == (0, 5)


# --- Static members


def test_a_static_member_comes_back_at_once_without_a_rebalance(world: World) -> None:
    """KIP-345: the new process has the assignment of the old one, in the same generation; the old one is fenced."""
    one, two = Member(world, instance_id="i"), Member(world, instance_id="j")
    stable(one, two)
    for former in (one, two):
        again = Member(world, instance_id=former.instance_id, user_data=b"another process")
        assert again.join() == 0
        assert again.generation == former.generation and again.id != former.id
        assert again.sync() == (0, str(former.connection).encode())
        assert again.heartbeat() == 0
        assert former.heartbeat() == former.commit("a", 9) == Error.FENCED_INSTANCE_ID
        assert former.sync() == (Error.FENCED_INSTANCE_ID, b"")
        assert former.join() == Error.FENCED_INSTANCE_ID
    assert two.heartbeat() == Error.FENCED_INSTANCE_ID


@pytest.mark.parametrize("version", [5, 9])
def test_a_leader_that_comes_back_does_not_assign_again(world: World, version: int) -> None:
    """Before version 9 it is not told that it leads; from 9 on it is, with skip_assignment (KIP-814)."""
    one = Member(world, instance_id="i")
    stable(one)
    again = Member(world, instance_id="i", version=version)
    assert again.join() == 0
    assert again.leads == (version == 9)
    assert again.joined.skip_assignment == (version == 9)
    assert [row.member_id for row in again.joined.members] == ([again.id] if version == 9 else [])


def test_a_static_member_with_another_subscription_starts_a_rebalance(world: World) -> None:
    """There is something new to assign."""
    one, two = Member(world, instance_id="i"), Member(world, instance_id="j")
    stable(one, two)
    again = Member(world, instance_id="i", topics=("a", "b"))
    assert again.join() is None
    assert two.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert one.heartbeat() == Error.FENCED_INSTANCE_ID


def test_the_former_process_is_fenced_out_of_a_rebalance_that_it_waits_in(world: World) -> None:
    """Its join is answered FENCED_INSTANCE_ID, the new one takes its place in it."""
    one, other = Member(world, instance_id="i"), Member(world)
    stable(one, other)
    one.topics = ("a", "b")
    assert one.join() is None
    again = Member(world, instance_id="i")
    again.post_join()
    assert one.take_join() == Error.FENCED_INSTANCE_ID
    other.join()
    assert again.take_join() == 0


def test_a_static_member_keeps_its_place_until_its_session_ends(world: World) -> None:
    """A rebalance does not wait for it longer than the rebalance timeout, and does not throw it out."""
    one = Member(world, instance_id="i", session_ms=60_000, rebalance_ms=2_000)
    two = Member(world, rebalance_ms=2_000)
    stable(one)
    assert two.join() is None
    world.wait(2_000)
    assert two.take_join() == 0
    assert two.leads and len(two.joined.members) == 2


# --- Restarts


def test_members_go_on_after_a_restart_of_the_broker(world: World) -> None:
    """Their generation, assignments and offsets are durable: no rebalance, no lost generation."""
    one, two = Member(world, instance_id="i"), Member(world)
    stable(one, two)
    one.commit("a", 3)
    world.crash()
    assert one.heartbeat() == two.heartbeat() == 0
    assert one.sync() == (0, str(one.connection).encode())
    assert two.commit("a", 7, 1) == 0
    assert (committed(world, "g", "a"), committed(world, "g", "a", 1)) == ((0, 3), (0, 7))
    again = Member(world, instance_id="i")
    assert again.join() == 0 and again.generation == one.generation
    assert one.heartbeat() == Error.FENCED_INSTANCE_ID
    follower = two
    assert follower.join() is None or follower.generation == one.generation


def test_sessions_start_anew_with_the_broker_and_then_end(world: World) -> None:
    """Members that died with it do not hold their partitions for ever."""
    one, two = Member(world, session_ms=5_000), Member(world, session_ms=5_000)
    stable(one, two)
    world.wait(4_000)
    world.crash()
    world.wait(4_000)
    assert one.heartbeat() == 0
    world.wait(1_000)
    assert one.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert two.heartbeat() == Error.UNKNOWN_MEMBER_ID


def test_a_generation_is_never_used_twice(world: World) -> None:
    """It was handed out before the crash though its rebalance never ended. Checked by dropping the GroupGeneration
    record: after the restart the older generation was let in again, and the newer number came twice."""
    one, two = Member(world), Member(world)
    stable(one)
    two.join()
    one.post_join()
    former = one.generation
    assert two.take_join() == 0 and two.generation == former + 1
    world.crash()
    assert one.commit("a", 5) == Error.ILLEGAL_GENERATION  # superseded, whatever the crash forgot (FAULTS B14)
    assert two.heartbeat() == Error.UNKNOWN_MEMBER_ID
    two.id = ""
    two.join()
    one.join()
    assert two.take_join() == 0 and one.take_join() == 0
    assert one.generation == two.generation == former + 2


def test_a_static_members_new_name_is_durable_before_it_hears_it(world: World) -> None:
    """Found by the demo, seed 1: the broker died between the answer to a join, which renames a static member, and the
    end of that rebalance, where the group is recorded. Back again it fenced the only process there was, for good, and
    would have let its dead predecessor in. The rename is a record of its own now."""
    former, other = Member(world, instance_id="i"), Member(world, instance_id="j")
    stable(former, other)
    again = Member(world, instance_id="i", topics=("a", "b"))
    again.join()
    other.join()
    assert again.take_join() == 0
    world.crash()
    assert again.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert former.heartbeat() == former.commit("a", 5) == Error.FENCED_INSTANCE_ID
    again.post_join()
    other.join()
    assert again.take_join() == 0


def test_a_static_member_that_expired_enters_under_a_name_that_lasts(world: World) -> None:
    """Found by the demo, seed 5: a worker that was stopped beyond its session came back under a new name, the broker
    died before that rebalance was recorded, knew the instance by its old name again, and fenced the only one."""
    zombie, other = Member(world, instance_id="i", session_ms=1_000), Member(world, instance_id="j")
    stable(zombie, other)
    world.wait(1_000)
    assert other.heartbeat() == Error.REBALANCE_IN_PROGRESS
    assert zombie.heartbeat() == Error.UNKNOWN_MEMBER_ID
    zombie.id = ""
    zombie.post_join()
    other.join()
    assert zombie.take_join() == 0
    world.crash()
    assert zombie.heartbeat() == Error.REBALANCE_IN_PROGRESS


def test_a_heartbeat_without_an_id_is_no_proof_of_another_process(world: World) -> None:
    """Found by the demo, seed 5: after an outage longer than its session librdkafka has no member id and heartbeats all
    the same; FENCED_INSTANCE_ID, Kafka's answer to it, ended the process. It has to join again, and can."""
    member = Member(world, instance_id="i")
    stable(member)
    owner, member.id = member.id, ""
    assert member.heartbeat() == member.commit("a", 1) == Error.UNKNOWN_MEMBER_ID
    assert member.join() == 0 and member.id != owner


# --- Offsets in transactions


def test_offsets_in_a_transaction_are_those_of_a_living_member(world: World) -> None:
    """KIP-447, FAULTS B14: a paused member commits nothing after its partitions were given away. Version 0 cannot say
    who it is: there only the transactional id fences."""
    one = Member(world, session_ms=5_000, instance_id="i")
    stable(one)
    txn = Txn(world, "t")
    txn.init()
    where = {("a", 0): 5}
    assert txn.offsets("g", where, one.generation, one.id, group_instance_id="i") == 0
    assert txn.offsets("g", where, one.generation - 1, one.id) == Error.ILLEGAL_GENERATION
    assert txn.offsets("g", where, one.generation, "stranger") == Error.UNKNOWN_MEMBER_ID
    assert txn.offsets("g", where, one.generation, "other", group_instance_id="i") == Error.FENCED_INSTANCE_ID
    assert txn.offsets("h", where, 1, "x") == Error.ILLEGAL_GENERATION
    assert txn.offsets("g", where) == 0  # tells nothing: not checked, as in Kafka
    world.wait(5_000)
    assert txn.offsets("g", where, one.generation, one.id) == Error.UNKNOWN_MEMBER_ID
    assert txn.offsets("g", where, version=0) == 0
    assert txn.commit() == 0


# --- Administration


def test_groups_are_listed_described_and_deleted(world: World) -> None:
    """A group with members cannot be deleted; one that is deleted leaves nothing, also after a crash."""
    one = Member(world)
    stable(one)
    commit_offsets(world, "simple", {("a", 0): 4})
    rows = world.ask(ListGroupsRequest()).groups
    assert [(row.group_id, row.group_state, row.group_type) for row in rows] == [
        ("g", "Stable", "classic"),
        ("simple", "Empty", "classic"),
    ]
    assert [row.group_id for row in world.ask(ListGroupsRequest(("Stable",))).groups] == ["g"]
    assert world.ask(ListGroupsRequest((), ("consumer",))).groups == []
    found, missing = world.ask(DescribeGroupsRequest(("g", "no"))).groups
    assert (found.group_state, found.protocol_data, found.members[0].member_id) == ("Stable", "range", one.id)
    assert missing.error_code == Error.GROUP_ID_NOT_FOUND
    assert world.ask(DescribeGroupsRequest(("no",)), version=5).groups[0].group_state == "Dead"
    reply = world.ask(DeleteGroupsRequest(("g", "simple", "no")))
    assert [row.error_code for row in reply.results] == [Error.NON_EMPTY_GROUP, 0, Error.GROUP_ID_NOT_FOUND]
    one.leave()
    assert world.ask(DeleteGroupsRequest(("g",))).results[0].error_code == 0
    world.crash()
    assert world.ask(ListGroupsRequest()).groups == []
    assert committed(world, "simple", "a") == (0, -1)


def test_offsets_are_deleted_unless_somebody_reads_the_topic(world: World) -> None:
    """OffsetDelete: GROUP_SUBSCRIBED_TO_TOPIC for what a member has subscribed to."""
    world.topic("b")
    one = Member(world)
    stable(one)
    one.commit("a", 1)
    one.commit("b", 2)

    def delete(topic: str) -> int:
        rows = (OffsetDeleteRequestTopic(topic, (OffsetDeleteRequestPartition(0),)),)
        return int(world.ask(OffsetDeleteRequest("g", rows)).topics[0].partitions[0].error_code)

    assert delete("a") == Error.GROUP_SUBSCRIBED_TO_TOPIC
    assert delete("b") == 0
    assert (committed(world, "g", "a"), committed(world, "g", "b")) == ((0, 1), (0, -1))
    assert world.ask(OffsetDeleteRequest("no")).error_code == Error.GROUP_ID_NOT_FOUND


def test_a_join_of_another_kind_of_group_is_refused(world: World) -> None:
    """A Connect worker in a consumer group."""
    stable(Member(world))
    message = JoinGroupRequest("g", protocol_type="connect", protocols=())
    assert world.ask(message).error_code == Error.INCONSISTENT_GROUP_PROTOCOL
