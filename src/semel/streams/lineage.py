"""Which histories a changelog partition has had: whether what a local store holds was written in one of them.

A log that was put back from a backup and went on gives old offsets to new records. A store of before would fit by its
offset and silently hold what the log never had. So each task that takes a changelog over begins a history of its own:
its id and the offset where it began. The list travels as the metadata of the group's position in that changelog, in
the transaction that writes there, so the two cannot come apart; a store's mark names the history that it was written
in. The idea is Kafka's own for followers: leader epochs and where each began (KIP-101, KIP-320), one level up,
because consumers are not told them.

Invariant (exactly-once): every committed record of a changelog lies in the history that the list gives for its offset.
"""

from __future__ import annotations

import msgspec

from semel.ports import Position

HISTORIES_MAX = 12  # Kafka allows 4,096 bytes of metadata; a store older than these is rebuilt


class History(msgspec.Struct, frozen=True, array_like=True):
    id: str
    begin: int  # the first offset of the changelog that may be of this one


class Lineage(msgspec.Struct, frozen=True):
    """Oldest first."""

    histories: tuple[History, ...] = ()

    @property
    def last(self) -> str:
        """The id of the history that is going on; "" when there is none."""
        return self.histories[-1].id if self.histories else ""

    def bound(self, id: str) -> int | None:
        """Up to which offset a store of history `id` can be right; -1 when that is not in the list, None: no bound."""
        following = iter(self.histories)
        if all(history.id != id for history in following):
            return -1
        after = next(following, None)
        return None if after is None else after.begin

    def followed_by(self, id: str, begin: int) -> Lineage:
        return Lineage((*self.histories, History(id, begin))[-HISTORIES_MAX:])

    def position(self) -> Position:
        """As it is committed. Nobody reads from this offset."""
        return Position(0, _encode(self).decode())


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Lineage).decode


def read_lineage(position: Position | None) -> Lineage:
    """What was committed; empty where nothing was, or another tool has set the offset."""
    if position is None:
        return Lineage()
    try:
        return _decode(position.metadata)
    except msgspec.MsgspecError:
        return Lineage()
