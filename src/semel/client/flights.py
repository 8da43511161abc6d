"""Requests in flight, by lane: one connection at a time to the broker, replaced once it is lost or too slow.

Invariants: requests of one lane arrive in the order sent, as long as its connection lives; when a connection is given
up, the fate of everything in flight on it is unknown, all at once; a late answer finds nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .effects import Call, Close, Effect, Open, Send

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Flight(Generic[T]):
    lane: int
    connection: int
    deadline_ms: int
    what: T


class Flights(Generic[T]):
    """`T` is what the client wants back with an answer, or with a loss."""

    def __init__(self, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._connections: dict[int, int] = {}  # lane -> its connection, while it has one
        self._flights: dict[int, _Flight[T]] = {}  # token -> request, in the order sent
        self._next_connection = 0
        self._next_token = 0

    def send(self, lane: int, call: Call, what: T, now_ms: int, out: list[Effect], *, patience_ms: int = 0) -> None:
        """`patience_ms`: how long the broker may wait on purpose, on top of the request timeout."""
        connection = self._connections.get(lane)
        if connection is None:
            connection = self._connections[lane] = self._next_connection
            self._next_connection += 1
            out.append(Open(connection))
        token = self._next_token
        self._next_token += 1
        self._flights[token] = _Flight(lane, connection, now_ms + self._timeout_ms + patience_ms, what)
        out.append(Send(connection, token, call))

    def answered(self, token: int) -> T | None:
        """What the answered request was; None for one that was given up."""
        flight = self._flights.pop(token, None)
        return None if flight is None else flight.what

    def lost(self, connection: int) -> list[T]:
        """The connection is gone; returns what was in flight on it, in the order sent. Unknown, every one."""
        for lane, current in self._connections.items():
            if current == connection:
                del self._connections[lane]
                break
        tokens = [token for token, flight in self._flights.items() if flight.connection == connection]
        return [self._flights.pop(token).what for token in tokens]

    def overdue(self, now_ms: int, out: list[Effect]) -> list[T]:
        """Gives up every connection with a request past its deadline; returns what was in flight on them."""
        late = {flight.connection for flight in self._flights.values() if now_ms >= flight.deadline_ms}
        unknown: list[T] = []
        for connection in sorted(late):
            out.append(Close(connection))
            unknown += self.lost(connection)
        return unknown

    def close(self, out: list[Effect]) -> list[T]:
        """Gives up everything; returns what was in flight."""
        unknown: list[T] = []
        for connection in sorted(self._connections.values()):
            out.append(Close(connection))
            unknown += self.lost(connection)
        return unknown

    def __iter__(self) -> Iterator[T]:
        return (flight.what for flight in self._flights.values())

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def wake_at_ms(self) -> int | None:
        return min((flight.deadline_ms for flight in self._flights.values()), default=None)


def backoff_ms(attempts: int, first_ms: int = 50, most_ms: int = 1_000) -> int:
    """Doubles with each attempt, without dice: two clients that collide are told apart by their network."""
    return int(min(most_ms, first_ms << min(attempts, 10)))


def earliest(*moments: int | None) -> int | None:
    return min((moment for moment in moments if moment is not None), default=None)
