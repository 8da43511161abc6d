"""What goes into a client and what comes out: connections, requests, answers, and what became of what was asked.

A client is driven by whoever has a network: it is given events and returns effects, to be carried out in order.
Connections are numbered by the client, never used again once closed, and their requests arrive in the order sent;
what is late on an old connection may still reach the broker (FAULTS B1). Every answer is for one token; an answer
to a token that the client has given up is dropped. Invariant: nothing here has behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from semel.ports import Outcome, Records, TopicPartition


class Call(NamedTuple):
    """A request in the version that the client speaks."""

    api_key: int
    version: int
    message: Any  # of broker.requests


# --- In ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to `token`: one of broker.messages."""

    token: int
    message: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone. Whether what was in flight on it has happened is unknown."""

    connection: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `wake_at_ms` is reached."""


Event = Answer | Lost | Tick


# --- Out: the network -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    connection: int


@dataclass(frozen=True, slots=True)
class Send:
    connection: int
    token: int
    call: Call


@dataclass(frozen=True, slots=True)
class Close:
    """The client gives the connection up; what it has sent on it may still arrive."""

    connection: int


# --- Out: what became of it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Initialised:
    """The producer has its id; whoever had the same transactional id before is fenced."""

    producer_id: int
    producer_epoch: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one batch. Done in a transaction means: in the log, visible once committed."""

    ticket: int
    at: TopicPartition
    outcome: Outcome
    base_offset: int = -1  # -1: not told, also where Done (a duplicate whose first answer was lost)


@dataclass(frozen=True, slots=True)
class MustAbort:
    """The transaction can no longer commit: call `abort`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a commit or an abort. Not Done leaves the producer waiting for `abort`, or dead."""

    commit: bool
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Died:
    """This client can do nothing more: make a new one. `fenced`: another one has taken over."""

    reason: str
    fenced: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """Visible records of one partition, or none and a `next_offset` to go on from."""

    records: Records
    high_watermark: int
    last_stable_offset: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """A partition cannot be read on: its position is not in the log and no reset was allowed, or its bytes are
    corrupt. It is no longer fetched; `seek` starts it again."""

    at: TopicPartition
    reason: str


@dataclass(frozen=True, slots=True)
class Assigned:
    partitions: Sequence[TopicPartition]
    generation: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """The group rebalances. The partitions are still ours until `rejoin` is called: commit first."""

    partitions: Sequence[TopicPartition]


@dataclass(frozen=True, slots=True)
class Forfeited:
    """The partitions are no longer ours: abort, never commit. The member joins again by itself."""

    partitions: Sequence[TopicPartition]


@dataclass(frozen=True, slots=True)
class Departed:
    """`leave` is over. Unknown when no answer came: the session's end does the rest."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Told:
    """The answer to `Caller.ask`, or None with the reason why there is none: it is then unknown whether it was done."""

    ticket: int
    message: Any
    reason: str = ""


Effect = (
    Open
    | Send
    | Close
    | Initialised
    | Settled
    | MustAbort
    | Ended
    | Died
    | Fetched
    | Stuck
    | Assigned
    | Revoked
    | Forfeited
    | Departed
    | Told
)
