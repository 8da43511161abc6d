"""The checkers themselves, on histories made by hand: a good one passes, each way to break a law is seen and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from semel.ports import TopicPartition
from semel.sim import checkers
from semel.sim import history as h
from semel.sim.history import Batch, Event

IN, OUT_0, OUT_1 = TopicPartition("in", 0), TopicPartition("out", 0), TopicPartition("out", 1)

# Two inputs; one transaction copies both, one to each partition, and commits; a second one is aborted.
LOG: Mapping[TopicPartition, tuple[Batch, ...]] = {
    IN: (Batch(0, 2, 1, 0, "plain", ("0@f", "1@f")),),
    OUT_0: (
        Batch(0, 1, 5, 0, "open", ("0:0@c#0",)),
        Batch(1, 2, 5, 0, "commit", ()),
        Batch(2, 3, 5, 0, "open", ("0:0@c#1",)),
        Batch(3, 4, 5, 1, "abort", ()),
    ),
    OUT_1: (Batch(0, 1, 5, 0, "open", ("0:1@c#0",)), Batch(1, 2, 5, 0, "commit", ())),
}
STATE = h.Snapshot(
    run=3,
    marks={IN: (2, 2, 2), OUT_0: (4, 4, 4), OUT_1: (2, 2, 2)},
    epochs={"c": (5, 1)},
    prepared=(),
    hanging=(),
    offsets={IN: 2},
    generation=4,
)
GOOD: list[Event] = [
    h.Epoch(1, "c", 5, 0, {IN: 0, OUT_0: 0, OUT_1: 0}),
    h.Wrote(2, "f", -1, IN, ("0@f", "1@f")),
    h.Acked(3, "f", IN, 0, 2),
    h.Settled(4, "f", -1, IN, ("0@f", "1@f"), "Done", 0),
    h.Given(5, "c", 4, (IN,)),
    h.Wrote(6, "c", 0, OUT_0, ("0:0@c#0",)),
    h.Wrote(6, "c", 0, OUT_1, ("0:1@c#0",)),
    h.Ending(7, "c", 0, True),
    h.Ended(8, "c", 0, True, "Done"),
    h.Marks(9, OUT_0, 2, 2),
    h.Offsets(9, {IN: 2}),
    h.Wrote(10, "c", 1, OUT_0, ("0:0@c#1",)),
    h.Marks(11, OUT_0, 3, 2),
    h.Ending(12, "c", 1, False),
    h.Ended(13, "c", 1, False, "Done"),
    h.Read(14, "rc", True, OUT_0, 0, 4, ((0, "0:0@c#0"),)),
    h.Read(14, "ru", False, OUT_0, 0, 4, ((0, "0:0@c#0"), (2, "0:0@c#1"))),
    h.Epoch(15, "c", 5, 1, {IN: 2, OUT_0: 4, OUT_1: 2}),
    h.Crashed(16, "power cut", "operation 3: sync journal/0.log"),
    h.Recovered(17, STATE),
    h.Final(20, STATE, LOG),
]


def broken(events: list[Event]) -> list[checkers.Broken]:
    return checkers.check(events, timeout_ms=100)


def test_a_good_history_holds() -> None:
    """Nothing is found where every law is kept."""
    assert broken(GOOD) == []


def at_end(**changes: object) -> list[Event]:
    """The good history, with another state in the end."""
    return [*GOOD[:-1], h.Final(20, STATE._replace(**changes), LOG)]


def recovered(**changes: object) -> list[Event]:
    return [*GOOD[:-2], h.Recovered(17, STATE._replace(**changes)), GOOD[-1]]


def log(at: TopicPartition, *batches: Batch) -> list[Event]:
    """The good history, with another log in the end."""
    return [*GOOD[:-1], h.Final(20, STATE, {**LOG, at: batches})]


def more(*events: Event) -> list[Event]:
    """Besides what happened, this did, before the end."""
    return [*GOOD[:-1], *events, GOOD[-1]]


def without(kind: type) -> list[Event]:
    return [event for event in GOOD if not isinstance(event, kind)]


BAD: dict[str, tuple[int, str, Callable[[], list[Event]]]] = {
    "an acked batch is gone after a recovery": (
        1,
        "f's batch at in-0 0 is gone",
        lambda: recovered(marks={**STATE.marks, IN: (1, 1, 1)}),
    ),
    "a high watermark that was told is gone": (
        1,
        "3/2 was told",
        lambda: recovered(marks={**STATE.marks, OUT_0: (2, 2, 2)}),
    ),
    "an epoch that was told is gone": (1, "was told epoch (5, 1)", lambda: recovered(epochs={"c": (5, 0)})),
    "an epoch is told twice": (1, "is told (5, 0) after (5, 1)", lambda: more(h.Epoch(18, "c", 5, 0, {}))),
    "a producer id is given out twice": (1, "producer id 5 is given out", lambda: more(h.Epoch(18, "", 5, 0, {}))),
    "a committed offset that was told is gone": (1, "offset 2 of in-0 was told", lambda: recovered(offsets={IN: 1})),
    "a generation that was told is gone": (1, "generation 4 was told", lambda: recovered(generation=3)),
    "two readers see two values in one place": (
        1,
        "ru reads other",
        lambda: more(
            h.Read(18, "ru", False, IN, 0, 1, ((0, "0@f"),)), h.Read(18, "ru", False, IN, 0, 1, ((0, "other"),))
        ),
    ),
    "an acked value is not in the log": (
        1,
        "f was told",
        lambda: log(IN, Batch(0, 2, 1, 0, "plain", ("0@f", "other"))),
    ),
    "an acked value of unknown place is not in the log": (
        1,
        "which is not in the log",
        lambda: more(h.Settled(18, "f", -1, IN, ("7@f",), "Done", -1)),
    ),
    "a value is there twice": (
        2,
        "0@f is in the log twice",
        lambda: log(IN, *LOG[IN], Batch(2, 3, 1, 0, "plain", ("0@f",))),
    ),
    "a value comes from nowhere": (
        2,
        "forged was written by nobody",
        lambda: log(IN, *LOG[IN], Batch(2, 3, 1, 0, "plain", ("forged",))),
    ),
    "other bytes are taken for a repetition": (2, "other bytes under sequence 4", lambda: more(h.Forged(18, IN, 4, 0))),
    "a later batch stands earlier": (
        2,
        "1@f was sent later",
        lambda: log(IN, Batch(0, 2, 1, 0, "plain", ("1@f", "0@f"))),
    ),
    "what was refused is there": (
        2,
        "0@f was told NotDone",
        lambda: more(h.Settled(18, "f", -1, IN, ("0@f",), "NotDone", -1)),
    ),
    "a commit reaches one partition only": (
        3,
        "torn: ['0:0@c#0'] is committed, ['0:1@c#0'] is not",
        lambda: log(OUT_1, LOG[OUT_1][0], Batch(1, 2, 5, 1, "abort", ())),
    ),
    "a transaction is open for ever": (3, "was never decided", lambda: log(OUT_1, LOG[OUT_1][0])),
    "told committed, aborted": (
        3,
        "told that it is committed",
        lambda: [
            *GOOD[:-1],
            h.Final(20, STATE, {**LOG, OUT_0: (LOG[OUT_0][0], *LOG[OUT_0][3:]), OUT_1: (LOG[OUT_1][0], LOG[OUT_0][3])}),
        ],
    ),
    "told aborted, committed": (
        3,
        "told [(False, 'Done')]",
        lambda: log(OUT_0, *LOG[OUT_0][:3], Batch(3, 4, 5, 0, "commit", ())),
    ),
    "nobody asked for the commit": (3, "nobody asked for its commit", lambda: without(h.Ending)),
    "an aborted record is read": (
        3,
        "saw [(2, '0:0@c#1')]",
        lambda: more(h.Read(18, "rc", True, OUT_0, 2, 4, ((2, "0:0@c#1"),))),
    ),
    "a committed record is skipped": (
        3,
        "missed [(0, '0:0@c#0')]",
        lambda: more(h.Read(18, "rc", True, OUT_0, 0, 2, ())),
    ),
    "a decision is not carried out": (3, "decided and not carried out", lambda: recovered(prepared=("c",))),
    "a producer without transaction holds a partition": (3, "open for ever", lambda: recovered(hanging=((OUT_0, 5),))),
    "readers wait for ever": (3, "readers wait at 2", lambda: at_end(marks={**STATE.marks, OUT_0: (4, 4, 2)})),
    "readers wait longer than the timeout": (
        3,
        "out-0 waits at 2 for over 100 ms",
        lambda: more(h.Marks(200, OUT_0, 4, 2), h.Marks(250, OUT_0, 4, 2), h.Marks(301, OUT_0, 4, 2)),
    ),
    "offsets without outputs": (
        4,
        "outputs lost [(0, 1)]",
        lambda: log(OUT_1, Batch(0, 1, 5, 0, "open", ("0:7@c#0",)), Batch(1, 2, 5, 0, "commit", ())),
    ),
    "outputs without offsets": (4, "too many [(0, 1)]", lambda: recovered(offsets={IN: 1})),
    "an input twice in the output": (
        4,
        "too many [(0, 0)]",
        lambda: log(OUT_0, *LOG[OUT_0][:3], Batch(3, 4, 5, 1, "commit", ())),
    ),
    "a superseded producer's batch": (
        5,
        "a batch (open) of epoch 0 was appended later",
        lambda: log(OUT_0, *LOG[OUT_0], Batch(4, 5, 5, 0, "open", ("9@c#1",)), Batch(5, 6, 5, 1, "abort", ())),
    ),
    "a superseded producer's commit": (
        5,
        "a batch (commit) of epoch 0",
        lambda: log(OUT_0, *LOG[OUT_0], Batch(4, 5, 5, 0, "commit", ())),
    ),
    "committed offsets go back": (5, "went back from 2 to 1", lambda: at_end(offsets={IN: 1})),
}


@pytest.mark.parametrize("name", BAD)
def test_each_way_to_break_a_law_is_seen(name: str) -> None:
    """The checker of that law names it; so every sentence of the checkers' docstrings has a history that breaks it."""
    law, said, events = BAD[name]
    found = broken(events())
    assert any(one.law == law and said in one.what for one in found), found


def test_unknown_is_held_against_nobody() -> None:
    """A commit whose answer was lost may come out either way (law 9)."""
    unknown = [event._replace(outcome="Unknown") if isinstance(event, h.Ended) else event for event in GOOD]
    assert broken(unknown) == []
    outputs = {OUT_0: (LOG[OUT_0][0], *LOG[OUT_0][2:]), OUT_1: (LOG[OUT_1][0], Batch(1, 2, 5, 1, "abort", ()))}
    aborted = STATE._replace(offsets={IN: 0}, marks={**STATE.marks, OUT_0: (4, 4, 4)})
    history = [e for e in unknown if not isinstance(e, h.Offsets | h.Read | h.Recovered | h.Final)]
    assert broken([*history, h.Final(20, aborted, {**LOG, **outputs})]) == []


def test_the_time_that_the_broker_is_down_does_not_count() -> None:
    """A transaction cannot time out while there is no broker: its readers wait that much longer."""
    waits: list[Event] = [
        h.Marks(199, OUT_0, 4, 4),
        h.Marks(200, OUT_0, 4, 2),
        h.Crashed(210, "power cut", ""),
        h.Recovered(290, STATE),
    ]
    assert broken(more(*waits, h.Marks(350, OUT_0, 4, 2))) == []
