"""What each operator does to records, through `TestDriver`: the same compiled code as in a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel import App, Builder, TestDriver, Topic
from semel.errors import UsageError
from semel.sinks import SQLite
from semel.streams.compile import compile_subtopology
from semel.streams.task import ProcessingError


@dataclass(frozen=True, slots=True)
class Order:
    customer: str
    amount: Decimal


orders = Topic("orders", key=int, value=Order)
others = Topic("others", key=int, value=Order)
out = Topic("out", key=int, value=Order)
texts = Topic("texts", key=str, value=str)
numbers = Topic("numbers", key=str, value=int)


def drive(build: Callable[[Builder], object], name: str = "shop") -> TestDriver:
    return TestDriver(App(name, build))


def some(driver: TestDriver, *rows: tuple[str, int]) -> None:
    for key, (customer, amount) in enumerate(rows):
        driver.put(orders, key, Order(customer, Decimal(amount)))


def test_stateless_operators_keep_order_and_keys() -> None:
    """map, map_values, filter, flat_map, branch, merge: each record once, in order."""

    def build(b: Builder) -> None:
        read = b.read(orders)
        big, mid, rest = read.branch(lambda o: o.amount > 10, lambda o: o.amount > 5)
        big.map(lambda k, o: Order(f"big {k}", o.amount)).write(out)
        mid.merge(rest.filter(lambda o: o.amount > 1)).map_values(lambda o: Order("mid", -o.amount)).write(out)
        rest.flat_map(lambda k, o: [o.customer] * k).key_by(lambda c: c).write(texts)

    driver = drive(build)
    some(driver, ("a", 20), ("b", 7), ("c", 3), ("d", 1))
    assert driver.take(out) == [
        (0, Order("big 0", Decimal(20))),
        (1, Order("mid", Decimal(-7))),
        (2, Order("mid", Decimal(-3))),
    ]
    assert driver.take(texts) == [("c", "c")] * 2 + [("d", "d")] * 3
    assert driver.take(out) == []


def test_fold_count_and_reduce_per_key() -> None:
    """State per key, each update as a change, in order."""

    def build(b: Builder) -> None:
        keyed = b.read(orders).key_by(lambda o: o.customer, name="customer")
        keyed.fold(0, lambda n, o: n + int(o.amount), name="sums").changes().write(numbers)
        keyed.count(name="counts").changes().map(lambda k, n: f"{k}{n}").write(texts)
        keyed.reduce(lambda a, o: a if a.amount > o.amount else o, name="largest")

    driver = drive(build)
    some(driver, ("a", 1), ("b", 5), ("a", 3), ("a", 2))
    assert driver.take(numbers) == [("a", 1), ("b", 5), ("a", 4), ("a", 6)]
    assert driver.take(texts) == [("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3")]
    assert driver.state("largest") == {"a": Order("a", Decimal(3)), "b": Order("b", Decimal(5))}
    assert driver.state("counts") == {"a": 3, "b": 1}


def test_coalesced_changes_come_once_per_key_and_commit() -> None:
    """The last state of each dirty key when the interval ends; nothing for keys that did not change."""

    def build(b: Builder) -> None:
        sums = b.read(orders).key_by(lambda o: o.customer).fold(0, lambda n, o: n + int(o.amount), name="sums")
        sums.changes(coalesce=True).write(numbers)
        sums.changes(coalesce=True).map(lambda k, n: f"{k}={n}").write(texts)

    driver = drive(build)
    some(driver, ("a", 1), ("b", 5), ("a", 3))
    assert driver.take(numbers) == [("a", 4), ("b", 5)]
    assert driver.take(texts) == [("a", "a=4"), ("b", "b=5")]
    some(driver, ("b", 1))
    driver.advance(100)
    some(driver, ("b", 1))
    assert driver.take(numbers) == [("b", 6), ("b", 7)]


def test_coalesced_changes_feed_a_later_state_in_the_same_commit() -> None:
    """A fold of coalesced changes: what the flush of the first emits is in the second before it is flushed."""

    def build(b: Builder) -> None:
        sums = b.read(numbers).fold(0, lambda n, v: n + v, name="sums")
        sums.changes(coalesce=True).fold(0, lambda n, v: max(n, v), name="peaks").changes(coalesce=True).write(
            Topic("peaks", key=str, value=int)
        )

    driver = drive(build)
    for value in (5, -3, 10):
        driver.put(numbers, "a", value)
    assert driver.take(Topic("peaks", key=str, value=int)) == [("a", 12)]
    assert driver.state("peaks") == {"a": 12}


def test_a_state_of_none_is_deleted_and_starts_from_zero_again() -> None:
    """None is a deletion: a tombstone in changelog and output, the key gone from the state."""

    def build(b: Builder) -> None:
        folded = b.read(numbers).fold(0, lambda n, v: None if v == 0 else n + v, name="sums")  # type: ignore
        folded.changes().write(Topic("sums", key=str, value=int | None))  # type: ignore

    driver = drive(build)
    for value in (5, 0, 2):
        driver.put(numbers, "a", value)
    assert driver.take(Topic("sums", key=str, value=int)) == [("a", 5), ("a", None), ("a", 2)]
    assert driver.state("sums") == {"a": 2}
    driver.put(numbers, "a", 0)
    assert driver.state("sums") == {}
    assert driver.take_bytes("shop-sums-changelog")[-1].value is None


def test_a_mutable_zero_is_not_shared_between_keys() -> None:
    """A function that changes its state in place cannot mix keys."""

    def add(held: list[int], value: int) -> list[int]:
        held.append(value)
        return held

    def build(b: Builder) -> None:
        b.read(numbers).fold([], add, name="lists", state=list[int])

    driver = drive(build)
    for key, value in [("a", 1), ("b", 2), ("a", 3)]:
        driver.put(numbers, key, value)
    assert driver.state("lists") == {"a": [1, 3], "b": [2]}


def test_a_sink_gets_rows_keyed_by_its_own_key() -> None:
    """The outbox is partitioned by the sink's key, a deletion carries the stream's; appended rows keep the stream's."""

    def build(b: Builder) -> None:
        by_customer = b.read(orders).key_by(lambda o: o.customer)
        by_customer.map(lambda k, o: o if o.amount > 0 else None).write(SQLite("a.db", "t", key="customer"))
        b.read(orders).filter(lambda o: o.amount > 0).write(SQLite("a.db", "u"))

    driver = drive(build)
    some(driver, ("a", 1), ("b", 0))
    keyed, appended = driver.take_bytes("shop-t-outbox"), driver.take_bytes("shop-u-outbox")
    assert [(r.key, r.value) for r in keyed] == [(b'["a"]', b'{"customer":"a","amount":"1"}'), (b'["b"]', None)]
    assert [r.key for r in appended] == [b"0"]


def test_a_delete_under_a_key_of_another_type_is_refused_with_its_record() -> None:
    """S15: the stream's key 1 is [1] in the outbox, the rows of customer "1" are ["1"]: another partition, no order
    among them, and the row could stay. Here only the record tells that the value is None."""

    def build(b: Builder) -> None:
        b.read(orders).map(lambda k, o: o if o.amount > 0 else None).write(SQLite("a.db", "t", key="customer"))

    driver = drive(build)
    with pytest.raises(ProcessingError, match=r"a delete at sink t, for the key field 'customer', wants str, got int"):
        some(driver, ("0", 1), ("1", 0))


def test_time_is_the_records_or_what_the_topic_says() -> None:
    """Outputs carry the time of the record that caused them."""
    dated = Topic("dated", key=str, value=str, time=datetime.fromisoformat)

    def build(b: Builder) -> None:
        b.read(dated).write(texts)
        b.read(numbers).map_values(str).write(texts)

    driver = drive(build)
    driver.put(dated, "a", "2024-01-02T00:00:00+00:00", time=5)
    driver.put(numbers, "b", 1, time=datetime(2024, 1, 1, tzinfo=UTC))
    assert [r.time_ms for r in driver.take_bytes("texts")] == [1704153600000, 1704067200000]


def test_an_undecodable_record_stops_naming_where_why_and_what_next() -> None:
    """Topic, partition, offset, reason, next step; and nothing of it is done."""
    driver = drive(lambda b: b.read(orders).write(out))
    some(driver, ("a", 1))
    driver.commit()
    with pytest.raises(ProcessingError) as stopped:
        driver.put_bytes("orders", b"5", b'{"customer":"a","amount":{}}')
    for part in (
        "orders partition 0 offset 1",
        "`$.amount`",
        "test_driver.py:",
        "on_error='dead-letter'",
        "semel read",
    ):
        assert part in str(stopped.value)
    assert len(driver.take(out)) == 1


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"1", b"{", "Input data was truncated"),
        (b"1", b'{"customer":1,"amount":"2"}', "Expected `str`, got `int`"),
        (b"1", None, "it has no value"),
        (b"one", b'{"customer":"a","amount":"2"}', "malformed"),
        (None, b'{"customer":"a","amount":"2"}', "it has no key"),
        (b"\xff", b"\xff", "malformed"),
    ],
)
def test_an_undecodable_record_becomes_a_dead_letter(key: bytes | None, value: bytes | None, reason: str) -> None:
    """In the same transaction, with its bytes, its place and the reason, under Kafka Streams' header names."""
    lenient = Topic("orders", key=int, value=Order, on_error="dead-letter")

    def build(b: Builder) -> None:
        b.read(lenient).count(name="n").changes().map(lambda k, n: Order(str(k), Decimal(n))).write(out)

    driver = drive(build)
    driver.put(lenient, 1, Order("a", Decimal(1)), time=3)
    driver.put_bytes("orders", key, value, time_ms=4)
    driver.put(lenient, 1, Order("a", Decimal(1)))
    [letter] = driver.dead_letters()
    assert (letter.topic, letter.offset, letter.key, letter.value) == ("orders", 1, key, value)
    assert reason in letter.reason
    assert [o.amount for _, o in driver.take(out)] == [1, 2]


def test_a_failing_function_names_node_line_and_record_and_undoes_the_transaction() -> None:
    """No half-applied state: the earlier operators of the record and the records before it are undone with it."""

    def build(b: Builder) -> None:
        keyed = b.read(numbers)
        keyed.count(name="n")
        keyed.filter(lambda v: 10 // v > 0).write(numbers_out)

    numbers_out = Topic("numbers-out", key=str, value=int)
    driver = drive(build)
    driver.put(numbers, "a", 1)
    driver.commit()
    driver.put(numbers, "a", 1)
    with pytest.raises(
        ProcessingError, match=r"filter lambda \(test_driver.py:\d+\) failed at numbers partition 0 offset 2"
    ):
        driver.put(numbers, "a", 0)
    assert driver.state("n") == {"a": 1}


def test_a_value_of_another_type_is_refused_not_written() -> None:
    """For whoever runs no type checker: a topic never gets what its readers cannot decode."""
    driver = drive(lambda b: b.read(orders).map(lambda k, o: o.customer).write(out))  # type: ignore
    with pytest.raises(ProcessingError, match=r"write out .* topic out wants Order, got str: 'a'"):
        some(driver, ("a", 1))


def test_a_none_deletes_only_where_the_type_says_so() -> None:
    """`map(lambda k, v: print(k, v)).write(out)` wrote nulls: every key was deleted, without a word."""
    driver = drive(lambda b: b.read(numbers).map(lambda k, v: print(end="")).write(texts))  # type: ignore
    with pytest.raises(
        ProcessingError, match=r"write texts \(test_driver.py:\d+\) failed at numbers partition 0 offset 0: .* got None"
    ):
        driver.put(numbers, "a", 1)
    maybe: Topic[str, str | None] = Topic("maybe", key=str, value=str | None)  # type: ignore[arg-type, unused-ignore]
    maybe_out: Topic[str, str | None] = Topic("out", key=str, value=str | None)  # type: ignore[arg-type, unused-ignore]
    driver = drive(lambda b: b.read(maybe).map(lambda k, v: v and v * 2).write(maybe_out))
    driver.put(maybe, "a", "x")
    driver.put(maybe, "a", None)
    assert driver.take(maybe_out) == [("a", "xx"), ("a", None)]


def test_what_a_test_asks_wrongly_is_refused() -> None:
    """A typing error in a test must not pass as an empty answer, or as a dead letter."""
    lenient = Topic("orders", key=int, value=Order, on_error="dead-letter")
    driver = drive(lambda b: b.read(lenient).write(out))
    for ask in (lambda: driver.take(texts), lambda: driver.take(SQLite("a.db", "out"))):
        with pytest.raises(UsageError, match=r"the app does not write to (texts|out)\. It writes to out\."):
            ask()  # type: ignore[no-untyped-call, unused-ignore]
    with pytest.raises(UsageError, match=r"put to orders: key 'a' is no int .*put_bytes"):
        driver.put(lenient, "a", Order("a", Decimal(1)))  # type: ignore
    with pytest.raises(UsageError, match=r"put to orders: value 'text' is no Order"):
        driver.put(lenient, 1, "text")  # type: ignore
    assert driver.dead_letters() == []


def test_a_wrong_guess_at_a_keys_type_is_refused_not_written() -> None:
    """The key's type was told from a made-up order; a record for which it is another stops before it is written."""
    driver = drive(lambda b: b.read(orders).key_by(lambda o: o.customer or 7).count(name="n"))
    some(driver, ("a", 1))
    with pytest.raises(ProcessingError, match="wants str, got int: 7"):
        driver.put(orders, 1, Order("", Decimal(1)))


def test_a_key_of_none_at_a_repartition_is_refused() -> None:
    """Kafka Streams drops such records with a log line; here nothing is dropped silently."""
    driver = drive(lambda b: b.read(orders).key_by(lambda o: None, key=str).count(name="n"))  # type: ignore
    with pytest.raises(ProcessingError, match="wants a key"):
        some(driver, ("a", 1))


values = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 9)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(rows=values, commits=st.sets(st.integers(0, 40)))
def test_the_result_does_not_depend_on_where_the_commits_fall(rows: list[tuple[str, int]], commits: set[int]) -> None:
    """Law 6: state and every-update outputs are a function of the input; coalesced ones in their last value per key."""

    def build(b: Builder) -> None:
        positive, rest = b.read(numbers).branch(lambda v: v > 0)
        merged = positive.merge(rest.map_values(lambda v: -v))
        sums = merged.fold(0, lambda n, v: n + v, name="sums")
        sums.changes().write(Topic("every", key=str, value=int))
        sums.changes(coalesce=True).write(Topic("last", key=str, value=int))

    def run(at: set[int]) -> tuple[Any, Any, Any]:
        driver = drive(build)
        for i, (key, value) in enumerate(rows):
            driver.put(numbers, key, value)
            if i in at:
                driver.commit()
        return (
            driver.take(Topic("every", key=str, value=int)),
            dict(driver.take(Topic("last", key=str, value=int))),
            driver.state("sums"),
        )

    assert run(commits) == run(set())


def test_a_deep_topology_compiles() -> None:
    """More nested filters than Python allows blocks."""

    def build(b: Builder) -> None:
        stream = b.read(numbers)
        for limit in range(150):
            stream = stream.filter(lambda v, limit=limit: v > limit)  # type: ignore
        stream.map(lambda k, v: f"{k}{v}").write(texts)

    driver = drive(build)
    driver.put(numbers, "a", 500)
    driver.put(numbers, "a", 100)
    assert driver.take(texts) == [("a", "a500")]


def test_tracing_is_not_in_untraced_code() -> None:
    """`semel-origin` costs nothing when off: it is other text."""
    graph = App("shop", lambda b: b.read(orders).write(out)).graph()
    assert "semel-origin" not in compile_subtopology(graph, graph.subtopologies[0], trace=False).text
    assert "semel-origin" in compile_subtopology(graph, graph.subtopologies[0], trace=True).text
