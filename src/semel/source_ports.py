"""What an ingest asks of a source, where records enter the log: protocols and plain data, as in `ports.py`.

Invariant: a portion's rows and its positions go into one transaction of the log, or neither does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from semel.contract import SourceContract
from semel.ports import Done, NotDone


class SourceRow(NamedTuple):
    """One record of a source, encoded under its topic's types; or one that is none, with the reason."""

    place: str  # for people: which row of what
    key: bytes | None
    value: bytes | None
    refused: str = ""  # why it is none; `value` is then what was found there


@dataclass(frozen=True, slots=True)
class Portion:
    """What a source gives at once: rows in its order, and where it stands behind them, per source partition. Both go
    into one transaction of the log, or neither. Without positions there was nothing to read; not `complete`: the
    transaction stays open, the next portion goes into it, and the positions come with the last of them."""

    rows: Sequence[SourceRow] = ()
    positions: Mapping[str, bytes | None] = field(default_factory=dict)  # None: it is forgotten
    complete: bool = True
    idle_ms: int = 100  # how long it is left alone when there was nothing


class SourceConnection(Protocol):
    """One lane of a source, opened by one ingest and used by one thread. What a person must settle is a SourceError."""

    def claim(self, positions: Mapping[str, bytes]) -> Done | NotDone:
        """Takes up where the log says. `positions`: all that was ever committed for this lane and not replaced. Every
        one is compared with what is there now: a source that is not what the position was taken in raises
        SourceError and nothing is read (never reset, never guessed)."""
        ...

    def read(self, records_max: int) -> Portion | NotDone:
        """What follows; a portion without positions when nothing is there now. NotDone: it cannot be reached."""
        ...

    def committed(self) -> None:
        """What `read` gave last is in the log, decided: a source that keeps things for us may let go of it."""
        ...

    def exhausted(self) -> bool:
        """Whether everything that is there was read. Asked when `read` gave nothing."""
        ...

    def progress(self) -> str:
        """How far it is, for people; "" when there is nothing to tell."""
        ...

    def close(self) -> None: ...


class SourceTrial(Protocol):
    """A renamed source as `semel verify` uses it: its own files or table, filled while the ingest reads.
    `after_the_start`: only once a position of it is committed."""

    after_the_start: bool

    def prepare(self) -> None: ...
    def add(self, rows: Sequence[Any]) -> int:
        """Values of the topic's type as plain dicts and scalars; how many records they will be. There at the latest
        when it is called again."""
        ...

    def rows(self) -> Sequence[tuple[bytes | None, bytes | None]]:
        """Key and value of every record that the topic must hold, read from the source by other means."""
        ...

    def drop(self) -> None:
        """Removes what `prepare` made."""
        ...


class Source(Protocol):
    """Where a topic's records come from, as the user declares it: data, nothing is opened before `open`."""

    @property
    def where(self) -> str:
        """For people: system, place and table. Never a secret."""
        ...

    @property
    def contract(self) -> SourceContract: ...
    @property
    def ordered(self) -> bool:
        """Whether the records of a key keep the order of the source."""
        ...

    @property
    def transaction_ms(self) -> int:
        """How long a transaction of the log may take that holds portions which are not complete."""
        ...

    @property
    def lanes(self) -> int:
        """How many ingests can work on it side by side, each under a transactional id of its own."""
        ...

    def complaint(self, key: Any, value: Any) -> str:
        """Why these types cannot be filled from it; "" when they can."""
        ...

    def renamed(self, suffix: str) -> Source:
        """The same source over a place of its own. For `semel verify`."""
        ...

    def open(self, topic: Any, lane: int, follow: bool) -> SourceConnection:
        """`topic`: the Topic that it feeds. `follow`: it is read for ever; else what is there counts as whole."""
        ...

    def trial(self, topic: Any) -> SourceTrial: ...
