"""Groups as the handlers reach them: the living members of a group, and who of them may commit offsets.

Invariant: a group is made from its durable half exactly once per run, so no member that it had is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from semel.broker.errors import Error
from semel.broker.membership import Membership, Phase, subscribed

if TYPE_CHECKING:
    from semel.broker.core import Broker

CONSUMER: Final = "consumer"


# --- Which group ------------------------------------------------------------------------------------------------


def load(broker: Broker, now_ms: int) -> None:
    """At a start: the members of every group, so that those who do not come back expire."""
    for group in broker.state.groups.groups.values():
        if group.metadata is not None and group.metadata.members:
            broker.memberships[group.id] = Membership.of(group, now_ms)
            wake(broker, broker.memberships[group.id])


def live(broker: Broker, group_id: str) -> Membership | None:
    """The group as it is; None when nobody has been heard of in it."""
    return broker.memberships.get(group_id)


def made(broker: Broker, group_id: str, now_ms: int) -> Membership:
    membership = broker.memberships.get(group_id)
    if membership is None:
        group = broker.state.groups.get(group_id)
        membership = Membership(group_id) if group is None else Membership.of(group, now_ms)
        broker.memberships[group_id] = membership
    return membership


def wake(broker: Broker, membership: Membership) -> None:
    """Notes when this group's next deadline may be; a deadline that moves away later is found again by the tick."""
    due = min(membership.deadlines(), default=None)
    if due is not None and (broker.groups_wake_ms is None or due < broker.groups_wake_ms):
        broker.groups_wake_ms = due


# --- Offsets ----------------------------------------------------------------------------------------------------


def may_commit(
    broker: Broker,
    group_id: str,
    generation: int,
    member_id: str,
    instance_id: str | None,
    now_ms: int,
    transactional: bool = False,
) -> Error:
    """Whether this member may commit offsets now (KIP-447 for transactions). A commit counts as a heartbeat."""
    membership = live(broker, group_id)
    claims = generation >= 0 or member_id != "" or instance_id is not None
    if membership is None:
        return Error.ILLEGAL_GENERATION if claims and generation >= 0 else Error.NONE
    if not claims or (generation < 0 and not membership.members):
        # Nobody's member: a consumer that assigns its own partitions, or a producer that tells no generation.
        return Error.NONE if transactional or not membership.members else Error.UNKNOWN_MEMBER_ID
    error = membership.refused(member_id, instance_id)
    if error is not Error.NONE:
        return error
    if generation != membership.generation:
        return Error.ILLEGAL_GENERATION
    if membership.phase is Phase.COMPLETING and not transactional:
        return Error.REBALANCE_IN_PROGRESS
    membership.members[member_id].seen(now_ms)
    return Error.NONE


def subscribed_topics(broker: Broker, group_id: str) -> set[str] | None:
    """What the members of a group have subscribed to; None when that cannot be known."""
    membership = live(broker, group_id)
    if membership is None or not membership.members:
        return set()
    if membership.protocol_type != CONSUMER:
        return None
    found: set[str] = set()
    for member in membership.members.values():
        for _, metadata in member.protocols:
            found.update(subscribed(metadata) or ())
    return found
