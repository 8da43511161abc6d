"""A classic group member by hand: joins, syncs, heartbeats on its own connection, and remembers who it is."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from semel.broker.errors import Error
from semel.broker.requests import (
    HeartbeatRequest,
    JoinGroupRequest,
    JoinGroupRequestProtocol,
    LeaveGroupRequest,
    MemberIdentity,
    SyncGroupRequest,
    SyncGroupRequestAssignment,
)

from .world import World, commit_request

_connections = itertools.count(1_000)


def subscription(*topics: str, user_data: bytes = b"") -> bytes:
    """ConsumerProtocolSubscription, version 0."""
    names = b"".join(struct.pack(">h", len(topic)) + topic.encode() for topic in topics)
    return struct.pack(">hi", 0, len(topics)) + names + struct.pack(">i", len(user_data)) + user_data


@dataclass(slots=True)
class Member:
    world: World
    group: str = "g"
    instance_id: str | None = None
    topics: Sequence[str] = ("a",)
    session_ms: int = 10_000
    rebalance_ms: int = 30_000
    protocols: Sequence[str] = ("range",)
    user_data: bytes = b""
    version: int = 9
    id: str = ""
    generation: int = -1
    leader: str = ""
    connection: int = field(default_factory=lambda: next(_connections))
    joined: Any = None  # the last JoinGroup reply
    token: int = 0  # of the request that waits

    @property
    def leads(self) -> bool:
        return self.leader == self.id

    def post_join(self) -> None:
        metadata = subscription(*self.topics, user_data=self.user_data)
        self.token = self.world.post(
            JoinGroupRequest(
                self.group,
                timedelta(milliseconds=self.session_ms),
                self.id,
                "consumer",
                tuple(JoinGroupRequestProtocol(name, metadata) for name in self.protocols),
                timedelta(milliseconds=self.rebalance_ms),
                self.instance_id,
            ),
            self.connection,
            self.version,
        )

    def take_join(self) -> int | None:
        """The error code of what was answered; None: nothing yet."""
        self.world.settle()
        reply = self.world.answer(self.token)
        if reply is None:
            return None
        self.joined = reply
        if reply.error_code == Error.MEMBER_ID_REQUIRED:
            self.id = reply.member_id
        elif reply.error_code == 0:
            self.id, self.generation, self.leader = reply.member_id, reply.generation_id, reply.leader
        return int(reply.error_code)

    def join(self) -> int | None:
        """As a client does: asks for an id first where that is the way."""
        self.post_join()
        error = self.take_join()
        if error == Error.MEMBER_ID_REQUIRED:
            self.post_join()
            error = self.take_join()
        return error

    def post_sync(self, assignments: Mapping[str, bytes] | None = None) -> None:
        rows = tuple(SyncGroupRequestAssignment(member, data) for member, data in (assignments or {}).items())
        self.token = self.world.post(
            SyncGroupRequest(self.group, self.generation, self.id, rows, self.instance_id), self.connection
        )

    def take_sync(self) -> tuple[int, bytes] | None:
        self.world.settle()
        reply = self.world.answer(self.token)
        return None if reply is None else (int(reply.error_code), bytes(reply.assignment))

    def sync(self, assignments: Mapping[str, bytes] | None = None) -> tuple[int, bytes] | None:
        self.post_sync(assignments)
        return self.take_sync()

    def heartbeat(self) -> int:
        request = HeartbeatRequest(self.group, self.generation, self.id, self.instance_id)
        return int(self.world.ask(request, self.connection).error_code)

    def leave(self) -> int:
        request = LeaveGroupRequest(self.group, members=(MemberIdentity(self.id, self.instance_id),))
        return int(self.world.ask(request, self.connection).members[0].error_code)

    def commit(self, topic: str, offset: int, partition: int = 0) -> int:
        request = commit_request(
            self.group, {(topic, partition): offset}, self.generation, self.id, group_instance_id=self.instance_id
        )
        return int(self.world.ask(request, self.connection).topics[0].partitions[0].error_code)


def stable(*members: Member) -> None:
    """Brings the members in one by one; each is assigned its own connection's number."""
    present: list[Member] = []
    for newcomer in members:
        newcomer.post_join()
        if newcomer.take_join() == Error.MEMBER_ID_REQUIRED:
            newcomer.post_join()
        for member in present:
            member.post_join()
        present.append(newcomer)
        for member in present:
            assert member.take_join() == 0, member
        assignments = {member.id: str(member.connection).encode() for member in present}
        for member in present:
            member.post_sync(assignments if member.leads else None)
        for member in present:
            assert member.take_sync() == (0, str(member.connection).encode()), member
