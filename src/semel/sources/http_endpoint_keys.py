"""What an endpoint knows of the keys it has taken: pure, as `receiver/rules.py`, whose decisions it carries out.

The keys lie in the positions' topic of the log: one record per key, in the transaction of the records that the request
brought, and one per sender, incarnation and partition for the highest floor. Who claims the lane reads them all.

Invariant: a key is known from the moment its transaction is committed until it is forgotten there, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from semel.receiver import rules
from semel.receiver.rules import Answer, DoneBelow, Kept, Problem, Replay, Run, Sent

KEY, FLOOR = "key ", "floor "
PURGED_MAX = 1_000  # in one transaction


class KeptAt(msgspec.Struct, frozen=True):
    fingerprint: str
    records: int
    expires_ms: int
    place: tuple[str, int, int] | None = None  # incarnation, partition, offset


def answer_of(records: int) -> Answer:
    return Answer(200, ((b"content-type", b"application/json"),), msgspec.json.encode({"records": records}))


class TakenKeys:
    def __init__(self, positions: Mapping[str, bytes], keep_ms: int) -> None:
        self._keep_ms = keep_ms
        self._kept: dict[tuple[str, str], KeptAt] = {}
        self._floors: dict[tuple[str, str, int], int] = {}
        for name, value in positions.items():
            self._apply(name, value)

    def _apply(self, name: str, value: bytes | None) -> None:
        kind, _, rest = name.partition(" ")
        if kind + " " == FLOOR:
            sender, incarnation, partition = msgspec.json.decode(rest, type=tuple[str, str, int])
            if value is not None:
                self._floors[sender, incarnation, partition] = msgspec.json.decode(value, type=int)
            return
        at = msgspec.json.decode(rest, type=tuple[str, str])
        if value is None:
            self._kept.pop(at, None)
        else:
            self._kept[at] = msgspec.json.decode(value, type=KeptAt)

    def committed(self, changes: Mapping[str, bytes | None]) -> None:
        for name, value in changes.items():
            self._apply(name, value)

    def decide(self, sent: Sent, now_ms: int) -> Run | Replay | DoneBelow | Problem:
        kept = self._kept.get((sent.sender, sent.key))
        known = None
        if kept is not None:
            known = Kept(kept.fingerprint, answer_of(kept.records), kept.expires_ms, kept.place is not None)
        return rules.decide(sent, known, self.floor(sent) or 0, now_ms)

    def floor(self, sent: Sent) -> int | None:
        """The highest that its sender has announced."""
        if sent.place is None:
            return None
        return self._floors.get((sent.sender, sent.place.incarnation, sent.place.partition))

    def taken(self, sent: Sent, records: int, now_ms: int) -> dict[str, bytes | None]:
        """What is written with the records of this request."""
        at = sent.place
        place = None if at is None else (at.incarnation, at.partition, at.offset)
        kept = KeptAt(sent.fingerprint, records, now_ms + self._keep_ms, place)
        found: dict[str, bytes | None] = {_name(KEY, (sent.sender, sent.key)): msgspec.json.encode(kept)}
        if sent.place is not None and sent.floor is not None and sent.floor > (self.floor(sent) or 0):
            whose = (sent.sender, sent.place.incarnation, sent.place.partition)
            found[_name(FLOOR, whose)] = msgspec.json.encode(sent.floor)
        return found

    def forgotten(self, now_ms: int) -> dict[str, bytes | None]:
        """Some of what may be forgotten: it has expired, and lies below its sender's floor where there is one."""
        found: dict[str, bytes | None] = {}
        for (sender, key), kept in self._kept.items():
            if kept.expires_ms > now_ms:
                continue
            if kept.place is not None and kept.place[2] >= self._floors.get((sender, *kept.place[:2]), 0):
                continue
            found[_name(KEY, (sender, key))] = None
            if len(found) >= PURGED_MAX:
                break
        return found

    def __len__(self) -> int:
        return len(self._kept)


def _name(kind: str, of: tuple[object, ...]) -> str:
    return kind + msgspec.json.encode(of).decode()
