"""Mistakes in a topology are refused when it is built, with the line of the user's program; and what is built is right:
names, sub-topologies, internal topics."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from semel import App, AtLeastOnce, Builder, Topic
from semel.sinks import Lines, SQLite
from semel.streams import graph as g
from semel.streams.place import GraphError


@dataclass(frozen=True, slots=True)
class Order:
    customer: str
    amount: Decimal
    tags: list[str]


class Plain:
    """Nothing that JSON could give back."""


orders = Topic("orders", key=int, value=Order)
refunds = Topic("refunds", key=int, value=Order)
sums = Topic("sums", key=str, value=Decimal)


def plus(total: Decimal, order: Order) -> Decimal:
    return total + order.amount


def key_twice(b: Builder) -> None:
    b.read(orders).fold(Decimal(0), plus, name="t")
    b.read(orders).count(name="t")  # here


def key_and_state(b: Builder) -> None:
    b.read(orders).key_by(lambda o: o.customer, name="t").count(name="n")
    b.read(orders).count(name="t")  # here


def declared_twice(b: Builder) -> None:
    b.read(orders)
    b.read(Topic("orders", key=str, value=Order))  # here


def untold_key(b: Builder) -> None:
    b.read(orders).key_by(lambda o: Plain()).count(name="n")  # here


def untold_value(b: Builder) -> None:
    b.read(orders).map_values(lambda o: o.tags).key_by(lambda t: t[0], key=str).map_values(
        lambda t: [t, 1]
    ).reduce(  # here
        lambda a, c: a, name="n"
    )


def plain_state(b: Builder) -> None:
    b.read(orders).fold(Plain(), lambda a, o: a, name="n")  # here


def empty_list(b: Builder) -> None:
    b.read(orders).fold([], lambda a, o: [*a, o.amount], name="n")  # type: ignore  # here


def none_zero(b: Builder) -> None:
    b.read(orders).fold(None, lambda a, o: a, name="n", state=int)  # here


def unhashable_key(b: Builder) -> None:
    b.read(orders).key_by(lambda o: o.tags).count(name="n")  # here


def own_loop(b: Builder) -> None:
    b.read(orders).filter(lambda o: o.amount > 0).write(orders)  # here


def long_loop(b: Builder) -> None:
    b.read(orders).write(refunds)  # here
    b.read(refunds).key_by(lambda o: o.customer).reduce(lambda a, o: o, name="n").changes().key_by(lambda o: 1).write(
        orders
    )


def wrong_topic(b: Builder) -> None:
    b.read(orders).write(sums)  # type: ignore  # here


def weak_sink(b: Builder) -> None:
    b.read(orders).write(Lines("f"))  # type: ignore  # here


def two_sinks(b: Builder) -> None:
    b.read(orders).write(SQLite("a.db", "t"))
    b.read(orders).write(SQLite("b.db", "t"))  # here


def accept_on_topic(b: Builder) -> None:
    b.read(orders).write(refunds, accept=AtLeastOnce("why not"))  # type: ignore  # here


def perhaps(total: int, order: Order) -> int | None:
    return total or None


def deleted_by_another_type(b: Builder) -> None:
    """S15: the delete of customer 1 was [1] in the outbox, the writes of its row ["1"]: the row stayed."""
    sums = b.read(orders).fold(0, perhaps, name="n", state=int).changes().filter(lambda n: n is None or n > 0)
    rows = sums.map(lambda k, n: None if n is None else Order(str(k), Decimal(n), []), value=Order)
    rows.write(SQLite("a.db", "t", key="customer"))  # here


def not_a_sink(b: Builder) -> None:
    b.read(orders).write("refunds")  # type: ignore  # here


def bad_state_name(b: Builder) -> None:
    b.read(orders).count(name="how many?")  # here


def long_state_name(b: Builder) -> None:
    b.read(orders).count(name="n" * 240)  # here


def merged_with_itself(b: Builder) -> None:
    b.read(orders).merge(b.read(orders))  # here


def not_a_function(b: Builder) -> None:
    b.read(orders).filter(True)  # type: ignore  # here


def no_such_operator(b: Builder) -> None:
    b.read(orders).flat_map_values(str)  # type: ignore  # here


def key_of_a_number(b: Builder) -> None:
    b.read(orders).count(name="t").changes().write(SQLite("t.db", "t", key="id"))  # type: ignore  # here


def key_without_its_field(b: Builder) -> None:
    b.read(orders).write(SQLite("t.db", "t", key="id"))  # here


def forgot_to_write(b: Builder) -> None:
    b.read(orders).filter(lambda o: o.amount > 0).map(lambda k, o: o.customer)  # here


def reads_and_forgets(b: Builder) -> None:
    b.read(orders)  # here


def forgot_both_ways(b: Builder) -> None:
    b.read(orders).branch(lambda o: o.amount > 0)  # here


def forgot_to_write_changes(b: Builder) -> None:
    b.read(orders).count(name="t").changes()  # here


def map_of_the_value_alone(b: Builder) -> None:
    b.read(orders).map(lambda o: o.customer).write(sums)  # type: ignore  # here


def values_with_a_key(b: Builder) -> None:
    b.read(orders).map_values(lambda k, o: o).write(refunds)  # type: ignore  # here


def fold_of_the_value_alone(b: Builder) -> None:
    b.read(orders).fold(0, lambda o: 1, name="t")  # type: ignore  # here


def key_by_with_a_key(b: Builder) -> None:
    b.read(orders).key_by(lambda k, o: o.customer).count(name="t")  # type: ignore  # here


def table_written(b: Builder) -> None:
    b.read(orders).count(name="t").write(sums)  # type: ignore  # here


def count_without_name(b: Builder) -> None:
    b.read(orders).count("t")  # type: ignore  # here


def key_by_what_is_not_there(b: Builder) -> None:
    b.read(orders).key_by(lambda o: o.customer.uper()).count(name="t")  # type: ignore  # here


def reads_nothing(b: Builder) -> None:
    return


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (key_twice, "named 't', as is what stands at test_build.py:"),
        (key_and_state, "named 't'"),
        (declared_twice, "declared twice and differently"),
        (untold_key, "Say it: key_by(…, key=TYPE"),
        (untold_value, "Say it: map(…, value=TYPE"),
        (plain_state, "Say it: fold(…, state=TYPE"),
        (empty_list, "Say it: fold(…, state=TYPE"),
        (none_zero, "cannot start from None"),
        (unhashable_key, "not hashable"),
        (own_loop, "write to orders is a loop"),
        (long_loop, "write to refunds is a loop"),
        (wrong_topic, "topic sums has"),
        (weak_sink, "accept=AtLeastOnce"),
        (two_sinks, "two sinks are named 't'"),
        (accept_on_topic, "accept= is for sinks"),
        (
            deleted_by_another_type,
            "deletes the row of the stream's key, and that is of type int, the field 'customer' of",
        ),
        (not_a_sink, "wants a Topic or a sink, got str"),
        (bad_state_name, "only letters, digits"),
        (long_state_name, "at most 249"),
        (merged_with_itself, "would double each record"),
        (not_a_function, "filter wants a function, got bool"),
        (no_such_operator, "has no attribute 'flat_map_values'"),
        (key_of_a_number, "the stream's values are int. Make rows of them first"),
        (key_without_its_field, "key 'id' is no field of Order"),
        (forgot_to_write, "gives goes nowhere: .write(…) is missing"),
        (reads_and_forgets, "what read orders (test_build.py:"),
        (forgot_both_ways, "goes nowhere"),
        (forgot_to_write_changes, "goes nowhere"),
        (map_of_the_value_alone, "map's function gets key and value (map_values gets the value alone), and lambda(o)"),
        (values_with_a_key, "map_values's function gets value (map gets key and value), and lambda(k, o) cannot take"),
        (fold_of_the_value_alone, "fold's function gets state and value, and lambda(o) cannot take that"),
        (key_by_with_a_key, "key_by's function gets value, and lambda(k, o) cannot take that: missing a required arg"),
        (table_written, "a table has no write: its updates are a stream, .changes().write(…)"),
        (count_without_name, "A state's name is given as name=…"),
        (
            key_by_what_is_not_there,
            "raised AttributeError: 'str' object has no attribute 'uper'). Say it: key_by",
        ),
    ],
)
def test_a_wrong_topology_is_refused_at_its_line(build: Callable[[Builder], object], message: str) -> None:
    """The error opens with file and line and says what is wrong."""
    with pytest.raises(GraphError, match=re.escape(message)) as refused:
        App("shop", build).graph()
    place = refused.value.place
    assert place.file == __file__
    with open(__file__) as source:
        assert "# here" in source.readlines()[place.line - 1]
    assert str(refused.value).startswith(f"{__file__}:{place.line}: ")
    assert refused.value.exit_code == 2


def test_an_empty_topology_is_refused() -> None:
    """An app that reads nothing would run for ever and do nothing."""
    with pytest.raises(GraphError, match="reads no topic"):
        App("shop", reads_nothing).graph()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Topic("a b", key=str, value=str), "only letters, digits"),
        (lambda: Topic("", key=str, value=str), "wants a name"),
        (lambda: Topic("..", key=str, value=str), "not '.' or '..'"),
        (lambda: Topic("t" * 250, key=str, value=str), "at most 249"),
        (lambda: Topic("t", key=str, value=Plain), "Plain is not a type that JSON can carry"),
        (lambda: Topic("t", key=str, value=dict[str, Plain]), "Plain is not a type that JSON can carry"),
        (lambda: Topic("t", key=str, value=object), "says nothing about the bytes"),
        (lambda: Topic("t", key=type(None), value=str), "stands for a deletion"),
        (lambda: Topic("t", key=str, value=__import__("pickle")), "pickle is refused"),  # type: ignore
        (lambda: Topic("t", key=str, value=str, on_error="skip"), "'stop' or 'dead-letter'"),  # type: ignore
        (lambda: Topic("t", key=str, value=str, partitions=0), "at least 1"),
        (lambda: App("my app", key_twice), "only letters, digits"),
        (lambda: App("a", key_twice, commit_interval_ms=0), "1 to 60000"),
    ],
)
def test_a_wrong_declaration_is_refused(make: Callable[[], object], message: str) -> None:
    """Names by Kafka's rules, types that can be read back; pickle never."""
    with pytest.raises(GraphError, match=re.escape(message)):
        make()


def shop(b: Builder) -> None:
    """Two sources, a shared repartition, two states, a sink."""
    by_customer = b.read(orders).merge(b.read(refunds)).key_by(lambda o: o.customer, name="customer")
    by_customer.fold(Decimal(0), plus, name="sums").changes().write(sums)
    by_customer.count(name="counts").changes().map(lambda k, n: Counted(k, n)).write(SQLite("a.db", "counts"))


class Counted(msgspec.Struct):
    customer: str
    count: int


def test_the_graph_says_what_there_is() -> None:
    """Sub-topologies between repartition topics, internal topics by the names of states, keys and sinks."""
    graph = App("shop", shop).graph()
    assert [sub.sources for sub in graph.subtopologies] == [("orders", "refunds"), ("shop-customer-repartition",)]
    assert graph.subtopologies[1].states == ("sums", "counts")
    assert {name: topic.kind.value for name, topic in graph.internal.items()} == {
        "shop-customer-repartition": "repartition",
        "shop-sums-changelog": "changelog",
        "shop-counts-changelog": "changelog",
        "shop-counts-outbox": "outbox",
    }
    assert graph.internal["shop-counts-outbox"].config["retention.ms"] == "-1"
    sink = next(write for write in graph.writes() if write.sink is not None)
    assert sink.value is Counted and sink.key is str
    assert {type(node) for node in graph.ancestors(sink.id)} >= {g.Read, g.Merge, g.KeyBy, g.Repartition, g.Fold}


def test_names_do_not_depend_on_what_stands_elsewhere() -> None:
    """An operator more, or another order, renames nothing durable."""

    def other(b: Builder) -> None:
        b.read(refunds).filter(lambda o: bool(o.tags)).count(name="before")
        merged = b.read(refunds).merge(b.read(orders)).filter(lambda o: o.amount > 1)
        by_customer = merged.key_by(lambda o: o.customer, name="customer")
        by_customer.count(name="counts").changes().map(Counted).write(SQLite("a.db", "counts"))
        by_customer.fold(Decimal(0), plus, name="sums").changes().write(sums)

    assert set(App("shop", shop).graph().internal) < set(App("shop", other).graph().internal)


def test_an_unnamed_key_by_goes_through_a_topic_named_after_the_state() -> None:
    """`APP-STATE-repartition`, where no name was given; and only where a state needs it."""

    def build(b: Builder) -> None:
        keyed = b.read(orders).key_by(lambda o: o.customer)
        keyed.count(name="counts")
        keyed.map_values(lambda o: o.amount).write(sums)

    assert set(App("shop", build).graph().internal) == {"shop-counts-repartition", "shop-counts-changelog"}


def test_sources_that_meet_in_a_state_are_copartitioned() -> None:
    """Equal keys must be in equal partitions; without a state in between nothing must."""

    def meet(b: Builder) -> None:
        b.read(orders).merge(b.read(refunds)).count(name="n")

    def pass_by(b: Builder) -> None:
        b.read(orders).merge(b.read(refunds)).write(Topic("out", key=int, value=Order))

    assert App("a", meet).graph().subtopologies[0].copartitioned == (("orders", "refunds"),)
    assert App("a", pass_by).graph().subtopologies[0].copartitioned == ()


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda o: o.customer, str),
        (lambda o: (o.customer, o.amount), tuple[str, Decimal]),
        (lambda o: f"{o.customer}/{o.amount}", str),
        (lambda o: o.customer.upper(), str),
        (lambda o: o.amount > 1, bool),
        (lambda o: o.tags[0], str),
        (lambda o: len(o.tags), int),
    ],
)
def test_the_type_of_a_lambdas_key_is_told(f: Callable[[Order], Any], expected: object) -> None:
    """A field, a tuple of fields, or whatever plain value comes out for a made-up order."""

    def build(b: Builder) -> None:
        b.read(orders).key_by(f).count(name="n")

    fold = next(App("a", build).graph().folds())
    assert fold.key.type == expected


def test_functions_with_a_name_are_believed_not_called() -> None:
    """A `def` may have effects: its annotation tells, it is never called to find out."""

    def key(order: Order) -> str:
        raise AssertionError("called")

    def build(b: Builder) -> None:
        b.read(orders).key_by(key).count(name="n")

    assert next(App("a", build).graph().folds()).key.type is str


def test_a_sink_keyed_by_another_field_than_the_stream_is_fine_where_nothing_is_deleted() -> None:
    """Types that differ matter only to deletes; and numbers that are written alike are of one kind."""

    def build(b: Builder) -> None:
        b.read(orders).write(SQLite("a.db", "t", key="customer"))
        changes = b.read(orders).fold(0, perhaps, name="n", state=int).changes()
        changes.filter(lambda n: n is not None).map(lambda k, n: Order(str(k), Decimal(n), [])).write(
            SQLite("a.db", "u", key="customer")
        )
        changes.map(lambda k, n: None if n is None else Order(str(k), Decimal(k), [])).write(
            SQLite("a.db", "v", key="amount")
        )

    App("shop", build).graph()


def test_what_may_be_an_end_is_one() -> None:
    """A state is kept under its name, read or not; and of the ways out of a branch one may lead nowhere."""

    def build(b: Builder) -> None:
        b.read(orders).count(name="n")
        big, _ = b.read(refunds).branch(lambda o: o.amount > 10)
        big.write(orders_out)

    orders_out = Topic("orders-out", key=int, value=Order)
    assert App("shop", build).graph().subtopologies


@pytest.mark.parametrize("f", [str.lower, str, len, Decimal, lambda *parts: 1, lambda o, more=2: o, hash])
def test_whatever_can_be_called_so_is_taken(f: Callable[..., Any]) -> None:
    """Classes, builtins that tell no signature, defaults, and any number of arguments."""
    texts, anything = Topic("texts", key=str, value=str), Topic("any", key=str, value=bytes)
    assert App("shop", lambda b: b.read(texts).map_values(f, value=bytes).write(anything)).graph()
