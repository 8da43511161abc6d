"""What goes into a step and what comes out: the boundary between the broker's core and whoever drives it.

Invariant: nothing here has behaviour. A request is read through kio's attribute names, a reply is one of
`messages`; connections and accept numbers are small integers that the driver gives out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from semel.broker.records import Record
from semel.ports import Buffer


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a connection. `token` is the driver's name for it; replies carry it back."""

    connection: int
    token: int
    message: Any  # a request as kio or `requests` has it
    api_key: int
    version: int
    accepted: int = 0  # accept number of the connection: a later accepted connection has a higher one
    client_id: str = ""
    client_host: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    connection: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `wake_at_ms` of an earlier step is reached."""


Event = Request | ConnectionClosed | Tick


NOW: Final = False
WHEN_DURABLE: Final = True


class Reply(NamedTuple):
    """An answer. `message` None: nothing is sent (acks=0), the request is over. `close`: end the connection.

    `waits`: it shows what may not be durable yet, so it leaves once the journal is durable up to the end of
    the step that made it; otherwise everything in it lies below the durable position and it leaves at once.
    """

    connection: int
    token: int
    message: Any
    waits: bool = WHEN_DURABLE
    close: bool = False


class Ready(NamedTuple):
    """What must happen, in this order: the records are appended to the journal and applied, then replies leave
    (those that wait, once the records are durable)."""

    records: Sequence[tuple[Record, Buffer]] = ()
    replies: Sequence[Reply] = ()


NOTHING: Final = Ready()
