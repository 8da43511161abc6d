"""A member of a classic consumer group, sans I/O: join, sync, heartbeat, leave; dynamic or static; eager rebalances.

The user calls `join`, and from then on is told: `Assigned`; `Revoked`, whose partitions are still its own until it
calls `rejoin` (it commits first); `Forfeited`, whose partitions are not (it aborts); `Died`, when another member has
taken its static id. Invariant: between `Assigned` and the next of these three, the generation in `metadata` is the one
under which the partitions were given; a member that has not heard from the group for its session timeout has
forfeited them, whether or not the group knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Final

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.ports import Done, NotDone, Outcome, TopicPartition, Unknown

from . import codes
from .assignment import (
    PROTOCOL_TYPE,
    RANGE,
    assign_range,
    assignment,
    parse_assignment,
    parse_subscription,
    subscription,
)
from .effects import Answer, Assigned, Call, Departed, Died, Effect, Event, Forfeited, Lost, Revoked, Tick
from .flights import Flights, backoff_ms, earliest
from .steps import GroupMetadata


class State(Enum):
    OUT = "out"
    JOINING = "joining"
    SYNCING = "syncing"
    STABLE = "stable"
    REVOKING = "revoking"  # a rebalance waits for the user's `rejoin`; heartbeats go on
    LEAVING = "leaving"
    DEAD = "dead"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.OUT: frozenset({State.JOINING}),
    State.JOINING: frozenset({State.SYNCING, State.JOINING, State.LEAVING, State.DEAD}),
    State.SYNCING: frozenset({State.STABLE, State.JOINING, State.LEAVING, State.DEAD}),
    State.STABLE: frozenset({State.REVOKING, State.JOINING, State.LEAVING, State.DEAD}),
    State.REVOKING: frozenset({State.JOINING, State.LEAVING, State.DEAD}),
    State.LEAVING: frozenset({State.OUT, State.DEAD}),
    State.DEAD: frozenset(),
}
_OWNING: Final = frozenset({State.STABLE, State.REVOKING})
_API: Final[dict[State, int]] = {
    State.JOINING: codes.JOIN_GROUP,
    State.SYNCING: codes.SYNC_GROUP,
    State.STABLE: codes.HEARTBEAT,
    State.REVOKING: codes.HEARTBEAT,
    State.LEAVING: codes.LEAVE_GROUP,
}
_REJOIN: Final = frozenset({Error.UNKNOWN_MEMBER_ID, Error.ILLEGAL_GENERATION})


@dataclass(frozen=True, slots=True)
class MemberConfig:
    group: str
    topics: tuple[str, ...]
    instance_id: str | None = None
    session_timeout_ms: int = 10_000
    rebalance_timeout_ms: int = 60_000
    heartbeat_ms: int = 1_000
    request_timeout_ms: int = 5_000


class Member:
    def __init__(self, config: MemberConfig, partitions: Mapping[str, int]) -> None:
        """`partitions`: how many each topic has, for when this member leads; may be changed at any time."""
        self.config = config
        self.partitions = partitions
        self.state = State.OUT
        self.member_id = ""
        self.generation = -1
        self.assigned: tuple[TopicPartition, ...] = ()
        self._flights: Flights[int] = Flights(config.request_timeout_ms)  # the API key of what is in flight
        self._given: dict[str, list[TopicPartition]] = {}  # when leading: to whom
        self._heard_at_ms = 0  # when the last request was sent that the group has answered well
        self._sent_at_ms = 0
        self._attempts = 0
        self._again_at_ms = 0

    @property
    def metadata(self) -> GroupMetadata:
        """What a transaction's offsets are committed under."""
        return GroupMetadata(self.config.group, self.generation, self.member_id, self.config.instance_id)

    # --- What the user asks ---------------------------------------------------------------------------------------

    def join(self, now_ms: int) -> list[Effect]:
        self._join_again(now_ms)
        return self._advance(now_ms, [])

    def rejoin(self, now_ms: int) -> list[Effect]:
        """The revoked partitions are let go. Does nothing where they were forfeited in the meantime."""
        if self.state is not State.REVOKING:
            return []
        self.assigned = ()
        self._join_again(now_ms)
        return self._advance(now_ms, [])

    def leave(self, now_ms: int) -> list[Effect]:
        """Lets the partitions go (commit before) and ends with `Departed`."""
        out: list[Effect] = []
        self.assigned = ()
        # What is in flight is of no interest any more, and its answer must not be taken for the leave's.
        asking = self._flights.close(out)
        self._become(State.LEAVING)
        if not self.member_id and self.config.instance_id is None:
            self._depart(Unknown("it may still join, under an id it never learned") if asking else Done(), out)
            return out
        self._attempts = 0
        self._again_at_ms = now_ms
        return self._advance(now_ms, out)

    # --- What the world says --------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        out: list[Effect] = []
        lost: list[int] = []
        match event:
            case Answer(token, message):
                api_key = self._flights.answered(token)
                if api_key is not None and api_key == _API.get(self.state):
                    self._answered(api_key, message, now_ms, out)
            case Lost(connection):
                lost = self._flights.lost(connection)
            case Tick():
                pass
        lost += self._flights.overdue(now_ms, out)
        if lost:
            self._attempts += 1
            self._again_at_ms = now_ms + backoff_ms(self._attempts)
            if self.state is State.LEAVING:
                self._depart(Unknown("no answer to LeaveGroup"), out)
        if self.state in _OWNING and now_ms >= self._heard_at_ms + self.config.session_timeout_ms:
            self._forfeit(now_ms, out)
        return self._advance(now_ms, out)

    @property
    def wake_at_ms(self) -> int | None:
        if self.state in (State.OUT, State.DEAD):
            return None
        session = self._heard_at_ms + self.config.session_timeout_ms if self.state in _OWNING else None
        return earliest(self._flights.wake_at_ms, session, None if self._flights else self._due_ms())

    # --- What is next ---------------------------------------------------------------------------------------------

    def _due_ms(self) -> int:
        if self.state in _OWNING:
            return max(self._again_at_ms, self._sent_at_ms + self.config.heartbeat_ms)
        return self._again_at_ms

    def _advance(self, now_ms: int, out: list[Effect]) -> list[Effect]:
        if self.state in (State.OUT, State.DEAD) or self._flights or now_ms < self._due_ms():
            return out
        api_key = _API[self.state]
        # A join waits for the other members, as long as they may take to let their partitions go.
        waits = api_key in (codes.JOIN_GROUP, codes.SYNC_GROUP)
        patience_ms = self.config.rebalance_timeout_ms if waits else 0
        call = Call(api_key, codes.VERSIONS[api_key], self._message(api_key))
        self._sent_at_ms = now_ms
        self._flights.send(0, call, api_key, now_ms, out, patience_ms=patience_ms)
        return out

    def _message(self, api_key: int) -> object:
        config = self.config
        match api_key:
            case codes.JOIN_GROUP:
                return requests.JoinGroupRequest(
                    group_id=config.group,
                    session_timeout=timedelta(milliseconds=config.session_timeout_ms),
                    rebalance_timeout=timedelta(milliseconds=config.rebalance_timeout_ms),
                    member_id=self.member_id,
                    group_instance_id=config.instance_id,
                    protocol_type=PROTOCOL_TYPE,
                    protocols=(requests.JoinGroupRequestProtocol(RANGE, subscription(config.topics)),),
                )
            case codes.SYNC_GROUP:
                return requests.SyncGroupRequest(
                    group_id=config.group,
                    generation_id=self.generation,
                    member_id=self.member_id,
                    group_instance_id=config.instance_id,
                    protocol_type=PROTOCOL_TYPE,
                    protocol_name=RANGE,
                    assignments=tuple(
                        requests.SyncGroupRequestAssignment(member, assignment(found))
                        for member, found in self._given.items()
                    ),
                )
            case codes.HEARTBEAT:
                return requests.HeartbeatRequest(config.group, self.generation, self.member_id, config.instance_id)
        assert api_key == codes.LEAVE_GROUP, api_key
        member = requests.MemberIdentity(self.member_id, config.instance_id)
        return requests.LeaveGroupRequest(config.group, members=(member,))

    # --- Answers --------------------------------------------------------------------------------------------------

    def _answered(self, api_key: int, message: object, now_ms: int, out: list[Effect]) -> None:
        match message:
            case messages.JoinGroupResponse():
                code = message.error_code
            case messages.SyncGroupResponse() | messages.HeartbeatResponse():
                code = message.error_code
            case messages.LeaveGroupResponse():
                self._left(message, out)
                return
            case _:
                raise AssertionError(message)
        if code in codes.ELSEWHERE:
            self._attempts += 1
            self._again_at_ms = now_ms + backoff_ms(self._attempts)
        elif code == Error.NONE:
            self._attempts = 0
            # From when it was sent: the session's end counts from when the group received it, which is later.
            self._heard_at_ms = self._sent_at_ms
            if isinstance(message, messages.JoinGroupResponse):
                self._joined(message, now_ms)
            elif isinstance(message, messages.SyncGroupResponse):
                self.assigned = tuple(parse_assignment(message.assignment))
                self._become(State.STABLE)
                out.append(Assigned(self.assigned, self.generation))
        elif code == Error.MEMBER_ID_REQUIRED and isinstance(message, messages.JoinGroupResponse):
            self.member_id = message.member_id  # and join again with it (KIP-394)
        elif code == Error.REBALANCE_IN_PROGRESS:
            self._heard_at_ms = self._sent_at_ms
            if self.state is State.STABLE:
                self._become(State.REVOKING)
                out.append(Revoked(self.assigned))
            elif self.state is not State.REVOKING:
                self._join_again(now_ms)
        elif code in _REJOIN:
            if code == Error.UNKNOWN_MEMBER_ID:
                self.member_id = ""
            self._forfeit(now_ms, out)
        else:
            name = codes.name_of(code)
            fenced = code == Error.FENCED_INSTANCE_ID
            if self.state in _OWNING:
                out.append(Forfeited(self.assigned))
            self.assigned = ()
            self._flights.close(out)
            self._become(State.DEAD)
            out.append(Died(f"group {self.config.group} answered {name}", fenced))

    def _joined(self, message: messages.JoinGroupResponse, now_ms: int) -> None:
        self.member_id = message.member_id
        self.generation = message.generation_id
        self._given = {}
        if message.leader == message.member_id and not message.skip_assignment:
            members = {
                member.member_id: (member.group_instance_id, parse_subscription(member.metadata))
                for member in message.members
            }
            self._given = assign_range(members, self.partitions)
        self._become(State.SYNCING)
        # The group may have waited long for the others; the session begins with its answer.
        self._heard_at_ms = self._again_at_ms = now_ms

    def _left(self, message: messages.LeaveGroupResponse, out: list[Effect]) -> None:
        found = [message.error_code, *(member.error_code for member in message.members)]
        code = next((code for code in found if code != Error.NONE), 0)
        if code in (Error.NONE, Error.UNKNOWN_MEMBER_ID):
            self._depart(Done(), out)
        else:
            self._depart(NotDone(codes.name_of(code)), out)

    def _depart(self, outcome: Outcome, out: list[Effect]) -> None:
        self._flights.close(out)
        self._become(State.OUT)
        self.member_id = ""
        self.generation = -1
        out.append(Departed(outcome))

    def _forfeit(self, now_ms: int, out: list[Effect]) -> None:
        if self.state in _OWNING:
            out.append(Forfeited(self.assigned))
        self.assigned = ()
        self._join_again(now_ms)

    def _join_again(self, now_ms: int) -> None:
        self._become(State.JOINING)
        self._attempts = 0
        self._again_at_ms = now_ms

    def _become(self, target: State) -> None:
        assert target in TRANSITIONS[self.state], f"{self.config.group}: {self.state} may not become {target}"
        self.state = target
