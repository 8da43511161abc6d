"""The oracle on a small app over an in-memory log: a run without faults is good, and each thing done wrong to what it
committed is found, where it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from semel.app import App
from semel.ports import TopicPartition
from semel.proof.world import read_back
from semel.streams.builder import Builder
from semel.streams.graph import Graph
from semel.streams.state import MemoryStore
from semel.streams.topic import Topic
from semel.streams.worker import Worker
from semel.verify.checkers import Entry
from semel.verify.oracle import Committed, Row, input_record, reckon, reckon_input, reckon_log_sink
from semel.verify.verdict import Output
from tests.support.memlog import MemBroker, MemLog

orders = Topic("orders", key=str, value=int)
totals = Topic("totals", key=str, value=int)
last = Topic("last", key=str, value=int)


def build(b: Builder) -> None:
    """A repartition, a state, every change to one topic and the coalesced ones to another."""
    sums = b.read(orders).key_by(lambda o: f"m{o % 3}").fold(0, lambda total, o: total + o, name="sums")
    sums.changes().write(totals)
    sums.changes(coalesce=True).write(last)


GRAPH = App("shop", build).graph()
SUM = TopicPartition("shop-sums-repartition", 0)


@pytest.fixture
def committed() -> Committed:
    """What a worker without faults leaves behind."""
    return ran(GRAPH)


def ran(graph: Graph) -> Committed:
    broker = MemBroker()
    broker.create("orders", 2)
    for n in range(60):
        broker.put("orders", b"k", b"%d" % n, n % 2)
    log = MemLog(broker, "a", batch=7)
    stores: dict[tuple[str, int], MemoryStore] = {}
    worker = Worker(
        graph, log, lambda name, p: stores.setdefault((name, p), MemoryStore()), commit_interval_ms=10, trace=True
    )
    worker.start(0)
    sources = tuple(topic for sub in graph.subtopologies for topic in sub.sources)
    broker.assign({"a": broker.all_partitions(sources)})
    for turn in range(60):
        worker.run_once(turn * 10, 0)
    worker.close(1000)
    found = read_back(MemLog(broker, "verify"), graph, "", broker.all_partitions(sources))
    assert found.positions
    return found


def bad(committed: Committed) -> dict[str, Output]:
    return {output.name: output for output in reckon(GRAPH, committed) if not output.good}


def filled(committed: Committed, topic: str) -> TopicPartition:
    return next(at for at, rows in committed.records.items() if at.topic == topic and rows)


def test_a_run_without_faults_is_good(committed: Committed) -> None:
    """Every output is compared, and with something."""
    outputs = reckon(GRAPH, committed)
    assert all(output.good for output in outputs), [o for o in outputs if not o.good]
    assert {o.name: o.kind for o in outputs} == {
        "input taken": "append",
        "shop-sums-repartition": "append",
        "totals": "append",
        "last": "keyed",
        "state sums": "state",
        "positions": "offsets",
    }
    assert all(output.expected and output.present for output in outputs)


def lose(rows: list[Row]) -> None:
    rows.pop()


def repeat(rows: list[Row]) -> None:
    rows.append(rows[-1]._replace(offset=rows[-1].offset + 1))


def change(rows: list[Row]) -> None:
    rows[-1] = rows[-1]._replace(value=b"-1")


@pytest.mark.parametrize(
    ("topic", "wrong", "found"),
    [
        ("totals", lose, "lost"),
        ("totals", repeat, "repeated"),
        ("totals", change, "wrong"),
        ("last", repeat, "repeated"),
        ("last", change, "wrong"),
        ("shop-sums-repartition", lose, "lost"),
        ("shop-sums-repartition", change, "wrong"),
    ],
)
def test_what_is_wrong_in_an_output_is_found_there(
    committed: Committed, topic: str, wrong: Callable[[list[Row]], None], found: str
) -> None:
    """Lost, repeated and wrong records, each counted as what it is."""
    wrong(committed.records[filled(committed, topic)])
    outputs = bad(committed)
    assert getattr(outputs[topic], found) >= 1, outputs


def test_a_state_that_is_not_the_fold_of_its_input_is_found(committed: Committed) -> None:
    """Law 6: the changelog's last value per key."""
    change(committed.records[filled(committed, "shop-sums-changelog")])
    assert bad(committed).keys() == {"state sums"}


def test_a_state_that_went_back_and_on_is_found(committed: Committed) -> None:
    """P1's shape: each input once, each output once, and all values after some point too small."""
    for topic in ("totals", "shop-sums-changelog"):
        rows = committed.records[filled(committed, topic)]
        rows[len(rows) // 2 :] = [
            row._replace(value=b"%d" % (int(row.value or b"0") - 1)) for row in rows[len(rows) // 2 :]
        ]
    assert bad(committed).keys() == {"totals", "state sums"}


def test_input_taken_twice_or_never_is_found(committed: Committed) -> None:
    """Two committed transactions that took the same records; one that is missing."""
    order = filled(committed, "shop-order")
    twice, never = (replace_records(committed, order) for _ in range(2))
    repeat(twice.records[order])
    lose(never.records[order])
    assert bad(twice)["input taken"].repeated and bad(never)["input taken"].lost


def replace_records(committed: Committed, at: TopicPartition) -> Committed:
    return replace(committed, records={**committed.records, at: list(committed.records[at])})


@pytest.mark.parametrize(("by", "found"), [(-1, "repeated"), (1, "lost")])
def test_positions_beside_the_ends_are_found(committed: Committed, by: int, found: str) -> None:
    """Law 4: behind the end records would come again, beyond it some never did."""
    at = filled(committed, "orders")
    committed.positions[at] += by
    outputs = bad(committed)
    assert outputs.keys() == {"positions"} and getattr(outputs["positions"], found) == 1


def test_input_that_the_log_has_lost_or_holds_twice_is_found(committed: Committed) -> None:
    """All else is recomputed from the input as it lies in the log, and is good without it."""
    fed = {"orders": Counter(input_record(b"k", b"%d" % n) for n in range(60))}
    (output,) = reckon_input(GRAPH, fed, committed)
    assert output.good and output.expected == output.present == 60
    at = filled(committed, "orders")
    del committed.records[at][3]
    (output,) = reckon_input(GRAPH, fed, committed)
    assert (output.lost, output.repeated, output.wrong) == (1, 0, 0)
    committed.records[at] += [committed.records[at][0]] * 2
    (output,) = reckon_input(GRAPH, fed, committed)
    assert (output.lost, output.repeated, output.wrong) == (1, 2, 0)


def test_a_repeat_that_distinct_lets_pass_is_found() -> None:
    """What passes is computed again from its input, like any output; its state like any state."""

    def firsts(b: Builder) -> None:
        b.read(orders).distinct(key=lambda o: f"m{o % 7}", name="seen").write(totals)

    graph = App("shop", firsts).graph()
    found = ran(graph)
    outputs = {o.name: o for o in reckon(graph, found)}
    assert all(o.good for o in outputs.values()), outputs
    assert (outputs["totals"].expected, outputs["state seen"].expected) == (7, 7)
    at = filled(found, "totals")
    later = next(row for row in found.records[filled(found, "shop-seen-repartition")][::-1])
    passed = found.records[at][0]._replace(origin=f"{passed_by(found, at)}|{later.offset}|0", value=later.value)
    found.records[at].append(passed)
    assert {o.name: (o.lost, o.wrong) for o in reckon(graph, found) if not o.good} == {"totals": (0, 1)}


def passed_by(found: Committed, at: TopicPartition) -> str:
    return found.records[at][0].origin.rpartition("|")[0].rpartition("|")[0]


def test_what_depends_on_when_commits_fell_is_unknown_and_not_broken() -> None:
    """Which coalesced change comes first decides what a distinct behind it lets pass."""

    def first_changes(b: Builder) -> None:
        sums = b.read(orders).key_by(lambda o: f"m{o % 3}").fold(0, lambda total, o: total + o, name="sums")
        sums.changes(coalesce=True).distinct(name="seen").write(totals)

    graph = App("shop", first_changes).graph()
    found = {o.name: o for o in reckon(graph, ran(graph)) if not o.good}
    assert set(found) == {"totals", "state seen"}
    assert all("depends on when commits fell" in o.unknown and not o.wrong for o in found.values())


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ([(b"a", b"1"), (b"b", b"1"), (b"a", None), (b"a", b"1"), (None, b"x")], (0, 0, 0)),
        ([(None, b"x"), (b"b", b"1"), (b"a", b"1"), (b"a", None), (b"a", b"1")], (0, 0, 0)),  # other keys, other order
        ([(b"a", b"1"), (b"b", b"1"), (b"a", None), (None, b"x")], (1, 0, 0)),
        ([(b"a", b"1"), (b"b", b"1"), (b"a", b"1"), (None, b"x")], (1, 0, 0)),  # the delete
        ([(b"a", b"1"), (b"b", b"1"), (b"a", None), (b"a", b"1"), (None, b"x"), (b"b", b"1")], (0, 1, 0)),
        ([(b"a", b"1"), (b"b", b"1"), (b"a", None), (b"b", b"1"), (None, b"x")], (1, 1, 0)),  # under another key
        ([(b"a", b"1"), (b"b", b"1"), (b"a", b"1"), (b"a", None), (None, b"x")], (0, 0, 1)),  # deleted at the end
    ],
)
def test_a_sink_that_is_a_log_is_compared_by_key_and_order(
    there: list[tuple[bytes | None, bytes | None]], found: tuple[int, int, int]
) -> None:
    """A last value per key would not see a repeat, a lost delete that was written over, or a key that changed."""
    wanted = [(b"a", b"1"), (b"b", b"1"), (b"a", None), (b"a", b"1"), (None, b"x")]
    committed = [Entry("", key, value, f"outbox-0@{n}") for n, (key, value) in enumerate(wanted)]
    output = reckon_log_sink("s", committed, there)
    assert (output.lost, output.repeated, output.wrong) == found
    assert bool(output.examples) == any(found)
