"""Classic consumer groups: JoinGroup, SyncGroup, Heartbeat, LeaveGroup, with static members (KIP-345).

The members are volatile (`membership`); what a rebalance decided becomes a GroupMetadata record of
`__consumer_offsets` with the leader's assignment, and nobody hears of it before it is durable. A generation is recorded
when it is handed out, so that no two rebalances ever share a number, whatever a crash forgets in between.
Invariant: a request that names an old generation, an unknown member or a replaced instance changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import NOW, Ready, Reply, Request
from semel.broker.group_access import live, made, wake
from semel.broker.membership import LiveMember, Membership, Phase, Protocols, Waiting, same_subscription
from semel.broker.messages import (
    HeartbeatResponse,
    JoinGroupResponse,
    JoinGroupResponseMember,
    LeaveGroupResponse,
    MemberResponse,
    SyncGroupResponse,
)
from semel.broker.offset_records import GroupKey, Metadata, encode_key, encode_metadata
from semel.broker.records import GroupGeneration
from semel.broker.requests import milliseconds
from semel.record.batch import encode

if TYPE_CHECKING:
    from semel.broker.core import Broker

# --- JoinGroup --------------------------------------------------------------------------------------------------


def join_group(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 9."""
    message = request.message
    draft = Draft(broker.state)
    protocols: Protocols = tuple((one.name, bytes(one.metadata)) for one in message.protocols)
    error = _join_refused(broker, message, protocols)
    if error is Error.NONE:
        membership = made(broker, message.group_id, now_ms)
        error = _join(broker, draft, membership, request, protocols, now_ms)
        wake(broker, membership)
    if error is not Error.NONE:
        draft.replies.append(_join_error(request, error, message.member_id))
    return draft.ready()


def _join_refused(broker: Broker, message: Any, protocols: Protocols) -> Error:
    if not message.group_id:
        return Error.INVALID_GROUP_ID
    session_ms = milliseconds(message.session_timeout)
    config = broker.config
    if not config.group_min_session_timeout_ms <= session_ms <= config.group_max_session_timeout_ms:
        return Error.INVALID_SESSION_TIMEOUT
    if not protocols or not message.protocol_type:
        return Error.INCONSISTENT_GROUP_PROTOCOL
    membership = live(broker, message.group_id)
    if membership is None:
        # An id that only a group that is gone can have given out.
        return Error.UNKNOWN_MEMBER_ID if message.member_id else Error.NONE
    instance_id = getattr(message, "group_instance_id", None)
    replaced = membership.static.get(instance_id) if instance_id is not None else None
    if not membership.supports(message.protocol_type, protocols, message.member_id or replaced):
        return Error.INCONSISTENT_GROUP_PROTOCOL
    known = replaced is not None or message.member_id in membership.members or message.member_id in membership.promised
    if not known and len(membership.members) + len(membership.promised) >= config.group_max_size:
        return Error.GROUP_MAX_SIZE_REACHED
    return Error.NONE


def _join(
    broker: Broker, draft: Draft, membership: Membership, request: Request, protocols: Protocols, now_ms: int
) -> Error:
    message = request.message
    member_id = message.member_id
    instance_id = getattr(message, "group_instance_id", None)
    if not member_id:
        if instance_id is None and request.version >= 4:
            # The client has to come back with an id before it becomes a member (KIP-394), so that a lost answer
            # leaves no member behind that nobody is.
            given = _new_member_id(broker, request.client_id)
            membership.promised[given] = now_ms + milliseconds(message.session_timeout)
            draft.replies.append(_join_error(request, Error.MEMBER_ID_REQUIRED, given))
            return Error.NONE
        given = _new_member_id(broker, instance_id or request.client_id)
        if instance_id is not None and instance_id in membership.static:
            _replace(broker, draft, membership, given, request, protocols, now_ms)
        else:
            _enter(broker, draft, membership, given, request, protocols, now_ms)
        return Error.NONE
    if instance_id is None and member_id in membership.promised:
        del membership.promised[member_id]
        _enter(broker, draft, membership, member_id, request, protocols, now_ms)
        return Error.NONE
    error = membership.refused(member_id, instance_id)
    if error is not Error.NONE:
        return error
    _rejoin(broker, draft, membership, membership.members[member_id], request, protocols, now_ms)
    return Error.NONE


def _new_member_id(broker: Broker, prefix: str) -> str:
    return f"{prefix}-{broker.dice.getrandbits(128):032x}"


def _enter(
    broker: Broker,
    draft: Draft,
    membership: Membership,
    member_id: str,
    request: Request,
    protocols: Protocols,
    now_ms: int,
) -> None:
    """A new member."""
    member = LiveMember(member_id, getattr(request.message, "group_instance_id", None), "", "", 0, 0, protocols)
    if not membership.members:
        membership.protocol_type = request.message.protocol_type
    _update(member, request, protocols, now_ms)
    membership.add(member)
    if member.instance_id is not None:
        _record_name(broker, draft, membership.id, member.instance_id, member_id, now_ms)
    _await_join(broker, draft, member, request)
    _rebalance(broker, draft, membership, now_ms)


def _rejoin(
    broker: Broker,
    draft: Draft,
    membership: Membership,
    member: LiveMember,
    request: Request,
    protocols: Protocols,
    now_ms: int,
) -> None:
    """A member that is one already."""
    same = member.protocols == protocols
    phase = membership.phase
    # In STABLE the leader asks for a new rebalance by joining; anyone does by another subscription. What else comes has
    # lost its answer, and gets it again.
    if (phase is Phase.COMPLETING and same) or (
        phase is Phase.STABLE and membership.leader != member.id and _unchanged(membership, member, protocols)
    ):
        member.seen(now_ms)
        draft.replies.append(_joined(membership, member, Waiting.of(request)))
        return
    _update(member, request, protocols, now_ms)
    _await_join(broker, draft, member, request)
    _rebalance(broker, draft, membership, now_ms)


def _unchanged(membership: Membership, member: LiveMember, protocols: Protocols) -> bool:
    if member.protocols == protocols:
        return True
    # After a restart of the broker only the chosen protocol's metadata is known.
    now = dict(protocols)
    return len(member.protocols) == 1 and now.get(membership.protocol or "") == member.metadata(membership.protocol)


def _update(member: LiveMember, request: Request, protocols: Protocols, now_ms: int) -> None:
    message = request.message
    member.client_id, member.client_host = request.client_id, request.client_host
    member.session_timeout_ms = milliseconds(message.session_timeout)
    rebalance_ms = milliseconds(getattr(message, "rebalance_timeout", -1))
    member.rebalance_timeout_ms = rebalance_ms if rebalance_ms >= 0 else member.session_timeout_ms
    member.protocols = protocols
    member.seen(now_ms)


def _await_join(broker: Broker, draft: Draft, member: LiveMember, request: Request) -> None:
    if member.joining is not None:
        # Asked again: the answer goes to the newer request, but none is left without one.
        response = JoinGroupResponse(error_code=Error.REBALANCE_IN_PROGRESS, member_id=member.id)
        draft.replies.append(_join_reply(member.joining, response, NOW))
    member.joining = Waiting.of(request)
    broker.group_waits.setdefault(request.connection, set()).add(request.message.group_id)


def _replace(
    broker: Broker,
    draft: Draft,
    membership: Membership,
    new_id: str,
    request: Request,
    protocols: Protocols,
    now_ms: int,
) -> None:
    """A static member's next process. The former one is fenced from here on: its id is nobody's. Where the group is
    stable and the subscription the same, it takes over at once, without a rebalance."""
    instance_id = request.message.group_instance_id
    old_id = membership.static[instance_id]
    member = membership.members[old_id]
    before = member.metadata(membership.protocol)
    for waiting, error in ((member.joining, _fenced_join), (member.syncing, _fenced_sync)):
        if waiting is not None:
            draft.replies.append(error(waiting, old_id))
    member.joining = member.syncing = None
    old_leader = membership.leader
    membership.rename(old_id, new_id)
    _update(member, request, protocols, now_ms)
    if (
        membership.phase is Phase.STABLE
        and membership.selected() == membership.protocol
        and same_subscription(before, member.metadata(membership.protocol))
    ):
        _store(broker, draft, membership, now_ms)
        draft.replies.append(_joined(membership, member, Waiting.of(request), old_leader))
        return
    _record_name(broker, draft, membership.id, instance_id, new_id, now_ms)
    _await_join(broker, draft, member, request)
    _rebalance(broker, draft, membership, now_ms)


def _record_name(broker: Broker, draft: Draft, group_id: str, instance_id: str, member_id: str, now_ms: int) -> None:
    """A rebalance follows, at whose end the group is stored; a static member's new name must not wait for that:
    forgotten in a crash, it would fence the process that has it, for good, and let its predecessor in again."""
    group = broker.state.groups.get(group_id)
    if group is None or (stored := group.metadata) is None:
        return
    former = {one.id for one in stored.members if one.instance_id == instance_id and one.id != member_id}
    if not former:
        return
    members = tuple(replace(one, id=member_id) if one.id in former else one for one in stored.members)
    leader = member_id if stored.leader in former else stored.leader
    _append(broker, draft, group_id, replace(stored, members=members, leader=leader), now_ms)


def _fenced_join(waiting: Waiting, member_id: str) -> Reply:
    return _join_reply(waiting, JoinGroupResponse(error_code=Error.FENCED_INSTANCE_ID, member_id=member_id), NOW)


def _fenced_sync(waiting: Waiting, member_id: str) -> Reply:
    return Reply(waiting.connection, waiting.token, SyncGroupResponse(0, Error.FENCED_INSTANCE_ID), NOW)


def _join_error(request: Request, error: Error, member_id: str) -> Reply:
    response = JoinGroupResponse(error_code=error, member_id=member_id)
    return _join_reply(Waiting.of(request), response, NOW)


def _join_reply(waiting: Waiting, response: JoinGroupResponse, waits: bool) -> Reply:
    return Reply(waiting.connection, waiting.token, response, waits)


def _joined(membership: Membership, member: LiveMember, waiting: Waiting, former_leader: str | None = None) -> Reply:
    """The reply to a member that is in the generation. `former_leader`: it has taken over without a rebalance, so there
    is nothing to assign. Version 9 can say so (KIP-814); an older client must not take itself for the leader."""
    leads = membership.leader == member.id
    takes_over = former_leader is not None
    hides = takes_over and waiting.version < 9
    members = [
        JoinGroupResponseMember(one.id, one.instance_id, one.metadata(membership.protocol))
        for one in (membership.members.values() if leads and not hides else ())
    ]
    response = JoinGroupResponse(
        generation_id=membership.generation,
        protocol_type=membership.protocol_type,
        protocol_name=membership.protocol or "",
        leader=(former_leader if hides else membership.leader) or "",
        skip_assignment=takes_over and leads and not hides,
        member_id=member.id,
        members=members,
    )
    return _join_reply(waiting, response, True)


# --- Rebalances -------------------------------------------------------------------------------------------------


def _rebalance(broker: Broker, draft: Draft, membership: Membership, now_ms: int) -> None:
    """Everyone has to join again; completes at once when everyone has."""
    if membership.phase is not Phase.PREPARING:
        if membership.phase is Phase.COMPLETING:
            _answer_syncing(draft, membership, Error.REBALANCE_IN_PROGRESS)
        delay_ms = broker.config.group_initial_rebalance_delay_ms if membership.phase is Phase.EMPTY else 0
        membership.become(Phase.PREPARING)
        membership.not_before_ms = now_ms + delay_ms if delay_ms else 0
        membership.phase_until_ms = now_ms + max(membership.rebalance_timeout_ms, delay_ms)
    _complete_if_joined(broker, draft, membership, now_ms)


def _complete_if_joined(broker: Broker, draft: Draft, membership: Membership, now_ms: int) -> None:
    if membership.phase is Phase.PREPARING and membership.all_joined and now_ms >= membership.not_before_ms:
        _complete_join(broker, draft, membership, now_ms)


def _complete_join(broker: Broker, draft: Draft, membership: Membership, now_ms: int) -> None:
    """The generation begins: the leader gets all members, to assign."""
    membership.generation += 1
    membership.not_before_ms = 0
    draft.add(GroupGeneration(membership.id, membership.generation))
    if not membership.members:
        membership.become(Phase.EMPTY)
        membership.protocol = membership.leader = None
        _store(broker, draft, membership, now_ms)
        return
    membership.protocol = membership.selected()
    leader = membership.members.get(membership.leader or "")
    if leader is None or leader.joining is None:
        joined = (member.id for member in membership.members.values() if member.joining is not None)
        membership.leader = next(joined, membership.leader)
    membership.become(Phase.COMPLETING)
    membership.phase_until_ms = now_ms + membership.rebalance_timeout_ms
    for member in membership.members.values():
        # A static member that did not come to the rebalance is not expected at its end either.
        member.synced = member.joining is None
        if member.joining is not None:
            draft.replies.append(_joined(membership, member, member.joining))
            member.joining = None
            member.seen(now_ms)


def _store(broker: Broker, draft: Draft, membership: Membership, now_ms: int) -> None:
    """The group as it is becomes durable."""
    _append(broker, draft, membership.id, membership.stored(now_ms), now_ms)


def _append(broker: Broker, draft: Draft, group_id: str, metadata: Metadata, now_ms: int) -> None:
    batch = encode([encode_metadata(metadata)], [encode_key(GroupKey(group_id))], now_ms)
    state = broker.state
    key = (state.offsets_topic, state.groups.partition_of(group_id))
    partition = state.partition(key)
    assert partition is not None, key
    draft.append_own(key, partition, batch)


def _remove(draft: Draft, membership: Membership, member_id: str, error: Error = Error.UNKNOWN_MEMBER_ID) -> None:
    """A member goes; the caller sees to the rebalance."""
    member = membership.remove(member_id)
    if member.joining is not None:
        response = JoinGroupResponse(error_code=error, member_id=member_id)
        draft.replies.append(_join_reply(member.joining, response, NOW))
    if member.syncing is not None:
        response_sync = SyncGroupResponse(0, error)
        draft.replies.append(Reply(member.syncing.connection, member.syncing.token, response_sync, NOW))


def _left(broker: Broker, draft: Draft, membership: Membership, now_ms: int) -> None:
    """After members went."""
    if membership.phase is Phase.PREPARING:
        _complete_if_joined(broker, draft, membership, now_ms)
    elif membership.phase is not Phase.EMPTY:
        _rebalance(broker, draft, membership, now_ms)


# --- SyncGroup --------------------------------------------------------------------------------------------------


def sync_group(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 5. The leader brings the assignment, everyone gets its own once it is durable."""
    message = request.message
    draft = Draft(broker.state)
    membership = live(broker, message.group_id)
    error = Error.UNKNOWN_MEMBER_ID if membership is None else _sync_refused(membership, message)
    if membership is None or error is not Error.NONE:
        response = SyncGroupResponse(0, error)
        draft.replies.append(Reply(request.connection, request.token, response, NOW))
        return draft.ready()
    member = membership.members[message.member_id]
    member.seen(now_ms)
    member.synced = True
    if membership.phase is Phase.STABLE:
        draft.replies.append(_synced(membership, member, Waiting.of(request)))
        return draft.ready()
    if member.syncing is not None:
        former = member.syncing
        again = SyncGroupResponse(0, Error.REBALANCE_IN_PROGRESS)
        draft.replies.append(Reply(former.connection, former.token, again, NOW))
    member.syncing = Waiting.of(request)
    broker.group_waits.setdefault(request.connection, set()).add(membership.id)
    if membership.leader == member.id:
        given = {one.member_id: bytes(one.assignment) for one in message.assignments}
        for one in membership.members.values():
            one.assignment = given.get(one.id, b"")
        membership.become(Phase.STABLE)
        _store(broker, draft, membership, now_ms)
        _answer_syncing(draft, membership, Error.NONE, now_ms)
    wake(broker, membership)
    return draft.ready()


def _sync_refused(membership: Membership, message: Any) -> Error:
    error = membership.refused(message.member_id, getattr(message, "group_instance_id", None))
    if error is not Error.NONE:
        return error
    if message.generation_id != membership.generation:
        return Error.ILLEGAL_GENERATION
    kind, name = getattr(message, "protocol_type", None), getattr(message, "protocol_name", None)
    if (kind is not None and kind != membership.protocol_type) or (name is not None and name != membership.protocol):
        return Error.INCONSISTENT_GROUP_PROTOCOL
    if membership.phase is Phase.PREPARING:
        return Error.REBALANCE_IN_PROGRESS
    return Error.NONE


def _synced(membership: Membership, member: LiveMember, waiting: Waiting) -> Reply:
    response = SyncGroupResponse(0, 0, membership.protocol_type, membership.protocol, member.assignment)
    return Reply(waiting.connection, waiting.token, response)


def _answer_syncing(draft: Draft, membership: Membership, error: Error, now_ms: int | None = None) -> None:
    for member in membership.members.values():
        waiting = member.syncing
        if waiting is None:
            continue
        member.syncing = None
        if now_ms is not None:
            member.seen(now_ms)
        if error is Error.NONE:
            draft.replies.append(_synced(membership, member, waiting))
        else:
            draft.replies.append(Reply(waiting.connection, waiting.token, SyncGroupResponse(0, error), NOW))


# --- Heartbeat, LeaveGroup --------------------------------------------------------------------------------------


def heartbeat(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 4."""
    message = request.message
    membership = live(broker, message.group_id)
    if membership is None:
        error = Error.UNKNOWN_MEMBER_ID
    else:
        error = membership.refused(message.member_id, getattr(message, "group_instance_id", None))
        if error is Error.NONE:
            if message.generation_id != membership.generation:
                error = Error.ILLEGAL_GENERATION
            else:
                membership.members[message.member_id].seen(now_ms)
                if membership.phase is Phase.PREPARING:
                    error = Error.REBALANCE_IN_PROGRESS
    return Ready((), (Reply(request.connection, request.token, HeartbeatResponse(0, error), NOW),))


def leave_group(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 5; from 3 on several members, static ones by their instance id alone (KIP-345)."""
    message = request.message
    draft = Draft(broker.state)
    membership = live(broker, message.group_id)
    before = 0 if membership is None else len(membership.members)
    if request.version < 3:
        left = [_leave(draft, membership, message.member_id, None)]
        response = LeaveGroupResponse(0, left[0])
    else:
        left = [_leave(draft, membership, one.member_id, one.group_instance_id) for one in message.members]
        rows = [
            MemberResponse(one.member_id, one.group_instance_id, error)
            for one, error in zip(message.members, left, strict=True)
        ]
        response = LeaveGroupResponse(0, 0, rows)
    if membership is not None:
        if len(membership.members) < before:
            _left(broker, draft, membership, now_ms)
        else:
            _complete_if_joined(broker, draft, membership, now_ms)  # it may have waited for one that had only its id
        wake(broker, membership)
    draft.replies.append(Reply(request.connection, request.token, response))
    return draft.ready()


def _leave(draft: Draft, membership: Membership | None, member_id: str, instance_id: str | None) -> Error:
    if membership is None:
        return Error.UNKNOWN_MEMBER_ID
    if instance_id is not None and not member_id:
        member_id = membership.static.get(instance_id, "")
    if membership.promised.pop(member_id, None) is not None:
        return Error.NONE
    error = membership.refused(member_id, instance_id)
    if error is Error.NONE:
        _remove(draft, membership, member_id)
    return error


# --- The clock and closed connections ---------------------------------------------------------------------------


def tick(broker: Broker, draft: Draft, now_ms: int) -> None:
    """Sessions that are over, rebalances that waited long enough."""
    broker.groups_wake_ms = None
    for membership in list(broker.memberships.values()):
        if min(membership.deadlines(), default=now_ms + 1) <= now_ms:
            _expire(broker, draft, membership, now_ms)
        wake(broker, membership)


def _expire(broker: Broker, draft: Draft, membership: Membership, now_ms: int) -> None:
    for member_id, deadline_ms in list(membership.promised.items()):
        if deadline_ms <= now_ms:
            del membership.promised[member_id]
    phase, over = membership.phase, membership.phase_until_ms <= now_ms
    gone = []
    for member in membership.members.values():
        waits = member.joining is not None or member.syncing is not None
        expired = not waits and member.deadline_ms <= now_ms
        # A static member that is late to a rebalance keeps its place until its session ends (KIP-345).
        late_to_join = phase is Phase.PREPARING and over and member.joining is None and member.instance_id is None
        late_to_sync = phase is Phase.COMPLETING and over and not member.synced
        if expired or late_to_join or late_to_sync:
            gone.append(member.id)
    for member_id in gone:
        _remove(draft, membership, member_id)
    if gone:
        _left(broker, draft, membership, now_ms)
    if membership.phase is Phase.PREPARING and phase is Phase.PREPARING:
        _complete_if_joined(broker, draft, membership, now_ms)
    if membership.phase is Phase.PREPARING and phase is Phase.PREPARING and over:
        if any(member.joining is not None for member in membership.members.values()):
            membership.promised.clear()
            _complete_join(broker, draft, membership, now_ms)
        else:
            membership.phase_until_ms = now_ms + max(membership.rebalance_timeout_ms, 1)
    if membership.phase is Phase.COMPLETING and phase is Phase.COMPLETING and over:
        membership.phase_until_ms = now_ms + max(membership.rebalance_timeout_ms, 1)


def closed(broker: Broker, connection: int, now_ms: int) -> None:
    """A client is gone: nobody waits for its answers. Its members live on until their sessions end."""
    for group_id in broker.group_waits.pop(connection, ()):
        membership = broker.memberships.get(group_id)
        if membership is None:
            continue
        for member in membership.members.values():
            if member.joining is not None and member.joining.connection == connection:
                member.joining = None
                member.seen(now_ms)
            if member.syncing is not None and member.syncing.connection == connection:
                member.syncing = None
                member.seen(now_ms)
        wake(broker, membership)
