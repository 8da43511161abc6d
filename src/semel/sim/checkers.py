"""Laws 1 to 5 (DESIGN §2), asked of a history. Each checker's docstring is its specification; each is pure.

A checker returns what it found broken, with the moment and the place. Invariant: a history that keeps the law yields
nothing, whatever else is wrong with it; what a timeout left unknown is held against nobody (law 9).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from semel.ports import TopicPartition

from . import history as h

OUTPUT: Final = "out"
SOURCE: Final = "in"


class Broken(NamedTuple):
    law: int  # 0: an assertion of the code itself, or nothing happens any more
    what: str
    where: str


def check(events: Sequence[h.Event], *, timeout_ms: int) -> list[Broken]:
    """All laws. `timeout_ms`: within it every open transaction is decided."""
    found: list[Broken] = []
    for law in LAWS:
        found += law(events)
    return [*found, *waits_are_bounded(events, timeout_ms=timeout_ms)]


# --- Law 1 ----------------------------------------------------------------------------------------------------------


def acked_is_kept(events: Sequence[h.Event]) -> Iterator[Broken]:
    """Law 1: after every recovery, and in the end, nothing is gone that a reply depends on which left before.

    - a batch that was acknowledged lies below the high watermark, and in the end holds the values that were sent;
    - no high watermark and no last stable offset that was told lies beyond the one recovered;
    - no epoch of a transactional id that was told is above the one recovered (its producer id never goes back), and
      no producer id is given to two;
    - no committed offset that was told is above the one recovered, nor a generation;
    - what one reader was handed at an offset, it and every other reader and the final log have there.
    """
    acked: dict[TopicPartition, h.Acked] = {}
    marks: dict[TopicPartition, tuple[int, int, int]] = {}
    epochs: dict[str, h.Epoch] = {}
    offsets: dict[TopicPartition, int] = {}
    generation = 0
    ids: dict[int, str] = {}
    records: dict[TopicPartition, dict[int, str]] = defaultdict(dict)
    for event in events:
        match event:
            case h.Acked(_, _, at, base_offset, size):
                if at not in acked or base_offset + size > acked[at].base_offset + acked[at].records:
                    acked[at] = event
            case h.Marks(at_ms, at, high_watermark, stable):
                _, high, low = marks.get(at, (at_ms, 0, 0))
                marks[at] = at_ms, max(high, high_watermark), max(low, stable)
            case h.Epoch(_, name, producer_id, epoch):
                if producer_id in ids and not (name and ids[producer_id] == name):
                    yield Broken(1, f"producer id {producer_id} is given out twice", _when(event))
                ids[producer_id] = name
                if name:
                    before = epochs.get(name)
                    if before is not None and (producer_id, epoch) < (before.producer_id, before.epoch):
                        yield Broken(1, f"{name} is told {(producer_id, epoch)} after {before[2:4]}", _when(event))
                    epochs[name] = event
            case h.Offsets(_, told):
                for at, offset in told.items():
                    if offset < offsets.get(at, 0):
                        yield Broken(1, f"offset of {_at(at)} is told as {offset} after {offsets[at]}", _when(event))
                    offsets[at] = max(offset, offsets.get(at, 0))
            case h.Given(_, _, given):
                generation = max(generation, given)
            case h.Read(_, who, _, at, _, _, read):
                for offset, value in read:
                    if records[at].setdefault(offset, value) != value:
                        yield Broken(1, f"{who} reads {value} where {records[at][offset]} was", f"{_at(at)} {offset}")
            case h.Recovered(_, state) | h.Final(_, state):
                for at, ack in acked.items():
                    if ack.base_offset + ack.records > _marks(state, at)[1]:
                        yield Broken(1, f"{ack.who}'s batch at {_at(at)} {ack.base_offset} is gone", _when(event))
                for at, (at_ms, high, low) in marks.items():
                    if high > _marks(state, at)[1] or low > _marks(state, at)[2]:
                        yield Broken(
                            1,
                            f"{_at(at)}: {high}/{low} was told by {at_ms}, {_marks(state, at)[1:]} is there",
                            _when(event),
                        )
                for name, told_epoch in epochs.items():
                    known = state.epochs.get(name, (-1, -1))
                    if known < (told_epoch.producer_id, told_epoch.epoch):
                        yield Broken(1, f"{name} was told epoch {told_epoch[2:4]}, {known} is there", _when(event))
                for at, offset in offsets.items():
                    there = state.offsets.get(at, -1)
                    if offset > there:
                        yield Broken(1, f"offset {offset} of {_at(at)} was told, {there} is there", _when(event))
                if generation > state.generation:
                    yield Broken(1, f"generation {generation} was told, {state.generation} is there", _when(event))
    final = _final(events)
    if final is None:
        return
    stored = {at: dict(_values(batches)) for at, batches in final.log.items()}
    for at, seen in records.items():
        for offset, value in seen.items():
            if stored[at].get(offset) != value:
                yield Broken(1, f"{value} was read, {stored[at].get(offset)} is in the log", f"{_at(at)} {offset}")
    for event in events:
        if isinstance(event, h.Settled) and event.outcome == "Done":
            places = range(event.base_offset, event.base_offset + len(event.values))
            if event.base_offset >= 0:
                found = tuple(stored[event.at].get(offset) for offset in places)
                if found != event.values:
                    yield Broken(1, f"{event.who} was told {event.values}, {found} is in the log", _when(event))
            elif not set(event.values) <= set(stored[event.at].values()):
                yield Broken(1, f"{event.who} was told {event.values}, which is not in the log", _when(event))


# --- Law 2 ----------------------------------------------------------------------------------------------------------


def a_retry_is_not_a_write(events: Sequence[h.Event]) -> Iterator[Broken]:
    """Law 2: every value that a program wrote once is in the log at most once, and in the order of its sends.

    - no value stands twice in any partition, committed or not;
    - of one program's batches in one partition, those in the log stand in the order in which they were sent;
    - a batch that was certainly not written is not there (NotDone, Fenced);
    - other bytes under a used sequence are refused, and nothing is in the log that no program wrote.
    """
    final = _final(events)
    if final is None:
        return
    place: dict[str, tuple[TopicPartition, int]] = {}
    for at, batches in final.log.items():
        for offset, value in _values(batches):
            if value in place:
                other, first = place[value]
                yield Broken(2, f"{value} is in the log twice", f"{_at(other)} {first} and {_at(at)} {offset}")
            place[value] = (at, offset)
    written = {value for event in events if isinstance(event, h.Wrote) for value in event.values}
    for value, (at, offset) in place.items():
        if value not in written:
            yield Broken(2, f"{value} was written by nobody", f"{_at(at)} {offset}")
    last: dict[tuple[str, TopicPartition], int] = {}
    for event in events:
        if isinstance(event, h.Wrote):
            for value in event.values:
                if value in place:
                    _, offset = place[value]
                    before = last.get((event.who, event.at), -1)
                    if offset < before:
                        yield Broken(2, f"{value} was sent later and stands earlier", f"{_at(event.at)} {offset}")
                    last[event.who, event.at] = max(offset, before)
        elif isinstance(event, h.Forged) and event.error_code == 0:
            yield Broken(
                2, f"other bytes under sequence {event.base_sequence} of {_at(event.at)} are acked", _when(event)
            )
        elif isinstance(event, h.Settled) and event.outcome in ("NotDone", "Fenced"):
            for value in event.values:
                if value in place:
                    _, offset = place[value]
                    yield Broken(2, f"{value} was told {event.outcome}, and is there", f"{_at(event.at)} {offset}")


# --- Law 3 ----------------------------------------------------------------------------------------------------------


def committed_or_invisible(events: Sequence[h.Event]) -> Iterator[Broken]:
    """Law 3: a transaction is visible as a whole or not at all, as its owner was told; readers see just that.

    - every batch of a transaction is followed by one marker of its producer in its partition: none is left open;
    - all batches of one transaction have the same fate, and a committed one lacks nothing of what was sent in it;
    - told Done about its commit: committed. Told NotDone or Fenced, or Done about its abort, or ended before its
      owner asked for a commit: not committed;
    - a read_committed reader is handed, between two positions, every committed record and no other; a
      read_uncommitted reader every record;
    - no recovery leaves a decision that is not carried out, or an open transaction that nobody will end.
    """
    for event in events:
        if isinstance(event, h.Recovered | h.Final):
            if event.state.prepared:
                yield Broken(3, f"decided and not carried out: {event.state.prepared}", _when(event))
            if event.state.hanging:
                yield Broken(3, f"open for ever: {event.state.hanging}", _when(event))
    final = _final(events)
    if final is None:
        return
    fate: dict[str, bool | None] = {}
    visible: dict[bool, dict[TopicPartition, list[tuple[int, str]]]] = {True: {}, False: {}}
    for at, batches in final.log.items():
        fates = _fates(batches)
        for batch in batches:
            for value in batch.values:
                fate[value] = fates[batch.base_offset]
        visible[True][at] = [(o, v) for o, v in _values(batches) if fate[v]]
        visible[False][at] = list(_values(batches))
    for who, txn in _transactions(events).items():
        yield from _one_fate(f"{who[0]}#{who[1]}", txn, fate)
    for event in events:
        if isinstance(event, h.Read):
            there = [r for r in visible[event.committed][event.at] if event.start <= r[0] < event.next_offset]
            if list(event.records) != there:
                lost = [record for record in there if record not in event.records]
                more = [record for record in event.records if record not in there]
                level = "committed" if event.committed else "uncommitted"
                yield Broken(
                    3,
                    f"{event.who} ({level}) read {_at(event.at)} from {event.start} to {event.next_offset}: "
                    f"missed {lost}, saw {more} besides",
                    _when(event),
                )


class _Txn(NamedTuple):
    values: list[str]
    asked: set[bool]  # to commit, to abort
    told: list[tuple[bool, str]]


def _transactions(events: Sequence[h.Event]) -> dict[tuple[str, int], _Txn]:
    found: dict[tuple[str, int], _Txn] = defaultdict(lambda: _Txn([], set(), []))
    for event in events:
        match event:
            case h.Wrote(_, who, txn, _, values) if txn >= 0:
                found[who, txn].values.extend(values)
            case h.Ending(_, who, txn, commit):
                found[who, txn].asked.add(commit)
            case h.Ended(_, who, txn, commit, outcome):
                found[who, txn].told.append((commit, outcome))
    return found


def _one_fate(name: str, txn: _Txn, fate: dict[str, bool | None]) -> Iterator[Broken]:
    committed = [value for value in txn.values if fate.get(value) is True]
    undecided = [value for value in txn.values if value in fate and fate[value] is None]
    if undecided:
        yield Broken(3, f"{undecided} was never decided", name)
    if committed and len(committed) < len(txn.values):
        rest = sorted(set(txn.values) - set(committed))
        yield Broken(3, f"torn: {committed} is committed, {rest} is not", name)
    if (True, "Done") in txn.told and len(committed) < len(txn.values):
        yield Broken(3, f"told that it is committed, {len(committed)} of {len(txn.values)} records are", name)
    refused = [told for told in txn.told if (told[1] in ("NotDone", "Fenced") and told[0]) or told == (False, "Done")]
    if committed and refused:
        yield Broken(3, f"told {refused}, and {committed} is committed", name)
    if committed and True not in txn.asked:
        yield Broken(3, f"nobody asked for its commit, and {committed} is committed", name)


def waits_are_bounded(events: Sequence[h.Event], *, timeout_ms: int) -> Iterator[Broken]:
    """Law 3, its bound: while records lie beyond it, a last stable offset that readers are told does not stand still
    for longer than `timeout_ms`, the time that the broker was down not counted; in the end nothing lies beyond it."""
    stands: dict[TopicPartition, tuple[int, int]] = {}  # since when, at which offset
    down_ms = 0
    down_since: int | None = None
    for event in events:
        match event:
            case h.Crashed(at_ms):
                down_since = at_ms if down_since is None else down_since
            case h.Recovered(at_ms):
                if down_since is not None:
                    down_ms += at_ms - down_since
                down_since = None
            case h.Marks(at_ms, at, high_watermark, stable):
                if stable == high_watermark:
                    stands.pop(at, None)
                elif at not in stands or stands[at][1] != stable:
                    stands[at] = (at_ms - down_ms, stable)
                elif at_ms - down_ms - stands[at][0] > timeout_ms:
                    yield Broken(3, f"{_at(at)} waits at {stable} for over {timeout_ms} ms", _when(event))
                    stands[at] = (at_ms - down_ms, stable)
            case h.Final(at_ms, state):
                for at, (_, high, low) in state.marks.items():
                    if low != high:
                        yield Broken(3, f"{_at(at)} ends at {high}, readers wait at {low}", _when(event))


# --- Law 4 ----------------------------------------------------------------------------------------------------------


def offsets_and_outputs_are_one(events: Sequence[h.Event]) -> Iterator[Broken]:
    """Law 4: after every recovery, and in the end, the committed outputs are those of the inputs below the committed
    offsets, each once.

    An output names its input (partition:offset). It counts as committed at a recovery when its commit marker lies
    below the end recovered (a reader may still have to wait for another transaction that is open before it).
    """
    final = _final(events)
    if final is None:
        return
    inputs = {at.partition: [o for o, _ in _values(batches)] for at, batches in final.log.items() if at.topic == SOURCE}
    outputs: list[tuple[TopicPartition, int, tuple[int, int]]] = []
    for at, batches in final.log.items():
        if at.topic == OUTPUT:
            for value, marker in _committed_by(batches):
                source, _, offset = value.partition("@")[0].partition(":")
                outputs.append((at, marker, (int(source), int(offset))))
    for event in events:
        if not isinstance(event, h.Recovered | h.Final):
            continue
        state = event.state
        there = Counter(origin for at, marker, origin in outputs if marker < _marks(state, at)[0])
        for partition, offsets in inputs.items():
            committed = state.offsets.get(TopicPartition(SOURCE, partition), 0)
            expected = Counter((partition, offset) for offset in offsets if offset < committed)
            found = Counter({origin: n for origin, n in there.items() if origin[0] == partition})
            if found != expected:
                yield Broken(
                    4,
                    f"{SOURCE}-{partition} is committed up to {committed}: outputs lost {sorted(expected - found)}, "
                    f"repeated or too many {sorted(found - expected)}",
                    _when(event),
                )


# --- Law 5 ----------------------------------------------------------------------------------------------------------


def the_superseded_write_nothing(events: Sequence[h.Event]) -> Iterator[Broken]:
    """Law 5: once a producer was told its epoch, nothing of a lower epoch of the same id is appended any more: no
    batch, no offsets that become committed (law 4 sees them), no commit marker. Only the markers of an abort carry
    other epochs. And of a group's offsets, none goes back from one recovery to the next.
    """
    final = _final(events)
    if final is None:
        return
    for event in events:
        if not isinstance(event, h.Epoch) or not event.id:
            continue
        for at, end in event.ends.items():
            for batch in final.log[at]:
                if batch.base_offset >= end and batch.producer_id == event.producer_id and batch.epoch < event.epoch:
                    yield Broken(
                        5,
                        f"{event.id} was given epoch {event.epoch} at {event.at_ms}; a batch ({batch.kind}) of epoch "
                        f"{batch.epoch} was appended later: {batch.values}",
                        f"{_at(at)} {batch.base_offset}",
                    )
    offsets: dict[TopicPartition, int] = {}
    for event in events:
        if isinstance(event, h.Recovered | h.Final):
            for at, offset in event.state.offsets.items():
                if offset < offsets.get(at, 0):
                    yield Broken(5, f"offset of {_at(at)} went back from {offsets[at]} to {offset}", _when(event))
                offsets[at] = offset


LAWS: Final[tuple[Callable[[Sequence[h.Event]], Iterator[Broken]], ...]] = (
    acked_is_kept,
    a_retry_is_not_a_write,
    committed_or_invisible,
    offsets_and_outputs_are_one,
    the_superseded_write_nothing,
)


# --- Within ---------------------------------------------------------------------------------------------------------


def _final(events: Sequence[h.Event]) -> h.Final | None:
    last = events[-1] if events else None
    return last if isinstance(last, h.Final) else None


def _values(batches: Sequence[h.Batch]) -> Iterator[tuple[int, str]]:
    for batch in batches:
        for index, value in enumerate(batch.values):
            yield batch.base_offset + index, value


def _fates(batches: Sequence[h.Batch]) -> dict[int, bool | None]:
    """By base offset: committed, aborted, or (None) neither. Known from the markers alone."""
    fates: dict[int, bool | None] = {}
    waiting: dict[int, list[int]] = defaultdict(list)
    for batch in batches:
        if batch.kind == "plain":
            fates[batch.base_offset] = True
        elif batch.kind == "open":
            fates[batch.base_offset] = None
            waiting[batch.producer_id].append(batch.base_offset)
        else:
            for base_offset in waiting.pop(batch.producer_id, []):
                fates[base_offset] = batch.kind == "commit"
    return fates


def _committed_by(batches: Sequence[h.Batch]) -> Iterator[tuple[str, int]]:
    """Values of committed transactions, each with the offset of its marker."""
    waiting: dict[int, list[str]] = defaultdict(list)
    for batch in batches:
        if batch.kind == "open":
            waiting[batch.producer_id].extend(batch.values)
        elif batch.kind != "plain":
            values = waiting.pop(batch.producer_id, [])
            if batch.kind == "commit":
                yield from ((value, batch.base_offset) for value in values)


def _marks(state: h.Snapshot, at: TopicPartition) -> tuple[int, int, int]:
    """End, high watermark, last stable offset; zeros for what did not exist yet."""
    return state.marks.get(at, (0, 0, 0))


def _at(at: TopicPartition) -> str:
    return f"{at.topic}-{at.partition}"


def _when(event: h.Event) -> str:
    return f"{type(event).__name__} at {event.at_ms}"
