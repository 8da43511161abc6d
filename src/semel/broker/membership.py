"""Who is in a classic consumer group right now: the volatile half of a group, as data and questions.

    EMPTY --join--> PREPARING --all joined, or time is up--> COMPLETING --leader's assignment--> STABLE
      ^                 ^  |                                     |                                  |
      +--nobody left----+  +<------- a member comes, goes or changes its subscription --------------+

It dies with the process. What the last completed rebalance decided is durable (`group_state`), and a start makes the
members from it, each with a whole session ahead, so that they go on heartbeating in the same generation. If a newer
generation had been handed out, the start begins with a rebalance instead: the older one has given up its partitions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from semel.broker.errors import Error
from semel.broker.events import Request
from semel.broker.group_state import Group
from semel.broker.offset_records import Member, Metadata


class Phase(Enum):
    """By the names that Kafka's tools show."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.EMPTY: frozenset({Phase.PREPARING}),
    Phase.PREPARING: frozenset({Phase.COMPLETING, Phase.EMPTY}),
    Phase.COMPLETING: frozenset({Phase.PREPARING, Phase.STABLE}),
    Phase.STABLE: frozenset({Phase.PREPARING}),
}

Protocols = tuple[tuple[str, bytes], ...]  # name and metadata, in the member's order of preference


class Waiting(NamedTuple):
    """A request that will be answered later."""

    connection: int
    token: int
    version: int

    @staticmethod
    def of(request: Request) -> Waiting:
        return Waiting(request.connection, request.token, request.version)


@dataclass(slots=True)
class LiveMember:
    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocols: Protocols
    assignment: bytes = b""
    deadline_ms: int = 0  # of its session
    joining: Waiting | None = None
    syncing: Waiting | None = None
    synced: bool = False  # has asked for its assignment in this generation

    def metadata(self, protocol: str | None) -> bytes:
        return next((metadata for name, metadata in self.protocols if name == protocol), b"")

    def seen(self, now_ms: int) -> None:
        self.deadline_ms = now_ms + self.session_timeout_ms


@dataclass(slots=True)
class Membership:
    id: str
    phase: Phase = Phase.EMPTY
    generation: int = 0
    protocol_type: str = ""
    protocol: str | None = None
    leader: str | None = None
    members: dict[str, LiveMember] = field(default_factory=dict)
    static: dict[str, str] = field(default_factory=dict)  # instance id -> member id
    promised: dict[str, int] = field(default_factory=dict)  # ids given by MEMBER_ID_REQUIRED (KIP-394) -> deadline
    phase_until_ms: int = 0  # PREPARING and COMPLETING: when it ends without those who are missing
    not_before_ms: int = 0  # PREPARING: the initial delay

    @staticmethod
    def of(group: Group, now_ms: int) -> Membership:
        """As the last completed rebalance left it; every session starts anew."""
        stored = group.metadata
        if stored is None or not stored.members:
            return Membership(group.id, generation=group.generation)
        # A generation that was handed out but not completed has superseded the stored one, also after a crash: whoever
        # comes with the stored one, a zombie perhaps, may no longer commit (FAULTS B14).
        phase = Phase.STABLE if group.generation == stored.generation else Phase.PREPARING
        membership = Membership(group.id, phase, group.generation, stored.protocol_type, stored.protocol, stored.leader)
        for one in stored.members:
            member = LiveMember(
                one.id,
                one.instance_id,
                one.client_id,
                one.client_host,
                one.rebalance_timeout_ms,
                one.session_timeout_ms,
                ((stored.protocol or "", one.subscription),),
                one.assignment,
                synced=True,
            )
            member.seen(now_ms)
            membership.add(member)
        membership.phase_until_ms = now_ms + membership.rebalance_timeout_ms
        return membership

    def stored(self, now_ms: int) -> Metadata:
        """What becomes durable of it."""
        members = tuple(
            Member(
                member.id,
                member.instance_id,
                member.client_id,
                member.client_host,
                member.rebalance_timeout_ms,
                member.session_timeout_ms,
                member.metadata(self.protocol),
                member.assignment,
            )
            for member in self.members.values()
        )
        return Metadata(self.protocol_type, self.generation, self.protocol, self.leader, now_ms, members)

    # --- Changing

    def become(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self.phase], f"{self.id}: {self.phase.value} may not become {phase.value}"
        self.phase = phase

    def add(self, member: LiveMember) -> None:
        self.members[member.id] = member
        if member.instance_id is not None:
            self.static[member.instance_id] = member.id
        if self.leader is None:
            self.leader = member.id

    def remove(self, member_id: str) -> LiveMember:
        member = self.members.pop(member_id)
        if member.instance_id is not None and self.static.get(member.instance_id) == member_id:
            del self.static[member.instance_id]
        if self.leader == member_id:
            # The first that has joined already, or anyone: it is told with the next generation.
            joined = (one.id for one in self.members.values() if one.joining is not None)
            self.leader = next(joined, next(iter(self.members), None))
        return member

    def rename(self, old_id: str, new_id: str) -> LiveMember:
        """A static member has come back under a new id: it keeps its place, its assignment and its leadership."""
        member = self.members[old_id]
        member.id = new_id
        self.members = {one.id: one for one in self.members.values()}
        assert member.instance_id is not None, member
        self.static[member.instance_id] = new_id
        if self.leader == old_id:
            self.leader = new_id
        return member

    # --- Asking

    @property
    def all_joined(self) -> bool:
        return not self.promised and all(member.joining is not None for member in self.members.values())

    @property
    def rebalance_timeout_ms(self) -> int:
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    def refused(self, member_id: str, instance_id: str | None) -> Error:
        """Why this is not a member, NONE when it is."""
        if instance_id is not None:
            owner = self.static.get(instance_id)
            # No id is nobody's: librdkafka drops its own when it hears nothing for a session (this broker was away) and
            # goes on heartbeating until it has joined again. Fenced, which is for good, is who has another's id.
            if owner is None or not member_id:
                return Error.UNKNOWN_MEMBER_ID
            if owner != member_id:
                # Another process has taken this instance's place (KIP-345), and its name was durable before it knew.
                return Error.FENCED_INSTANCE_ID
        return Error.NONE if member_id in self.members else Error.UNKNOWN_MEMBER_ID

    def supports(self, protocol_type: str, protocols: Protocols, besides: str | None = None) -> bool:
        """A member with these protocols finds one that all others know."""
        others = [member for member in self.members.values() if member.id != besides]
        if not others:
            return True
        common = set.intersection(*({name for name, _ in member.protocols} for member in others))
        return protocol_type == self.protocol_type and any(name in common for name, _ in protocols)

    def selected(self) -> str:
        """The protocol that all know and most prefer; the earliest joined decide a tie."""
        members = list(self.members.values())
        common = set.intersection(*({name for name, _ in member.protocols} for member in members))
        assert common, (self.id, members)
        votes: dict[str, int] = {}
        for member in members:
            choice = next(name for name, _ in member.protocols if name in common)
            votes[choice] = votes.get(choice, 0) + 1
        return max(votes, key=lambda name: votes[name])

    def deadlines(self) -> Iterator[int]:
        """Every moment at which something may be due."""
        if self.phase in (Phase.PREPARING, Phase.COMPLETING):
            yield self.phase_until_ms
            if self.phase is Phase.PREPARING and self.not_before_ms:
                yield self.not_before_ms
        for member in self.members.values():
            if member.joining is None and member.syncing is None:
                yield member.deadline_ms
        yield from self.promised.values()


def same_subscription(before: bytes, now: bytes) -> bool:
    """Two metadata of the consumer protocol name the same topics. What else they carry (partitions owned, generation)
    differs between a process and its restart without changing what the group has to assign."""
    if before == now:
        return True
    first, second = subscribed(before), subscribed(now)
    return first is not None and second is not None and set(first) == set(second)


def subscribed(metadata: bytes) -> list[str] | None:
    """The topics of a ConsumerProtocolSubscription (every version starts the same); None when it is not one."""
    try:
        _, count = struct.unpack_from(">hi", metadata)
        at, topics = 6, []
        for _ in range(count):
            (size,) = struct.unpack_from(">h", metadata, at)
            if size < 0 or at + 2 + size > len(metadata):
                return None
            topics.append(metadata[at + 2 : at + 2 + size].decode())
            at += 2 + size
    except (struct.error, UnicodeDecodeError):
        return None
    return topics
