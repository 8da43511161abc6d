"""`write(sink, on_error=…)`: what it makes, and what is refused when the program is read (FAULTS S11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semel import App, Builder, Topic
from semel.contract import AtLeastOnce
from semel.guarantees import Circumstances, analyse
from semel.sinks import (
    HTTP,
    ClickHouse,
    DeltaLake,
    DuckDB,
    Files,
    Iceberg,
    KafkaTopic,
    MariaDB,
    MariaDBTwoPhase,
    MongoDB,
    MultipartObjects,
    Objects,
    OpenSearch,
    Postgres,
    PostgresAppended,
    PostgresTwoPhase,
    PostgresVersioned,
    Redis,
    SQLite,
)
from semel.streams.place import GraphError

orders = Topic("orders", key=str, value=dict[str, int])
DSN, MARIA = "postgresql://me:secret@host/db", "mysql://me:secret@host/db"

SOUND: list[Callable[[], Any]] = [
    lambda: Postgres(DSN, "t"),
    lambda: PostgresTwoPhase(DSN, "t"),
    lambda: MariaDB(MARIA, "t"),
    lambda: MariaDBTwoPhase(MARIA, "t"),
    lambda: SQLite("f.db", "t"),
    lambda: DuckDB("f.duckdb", "t"),
    lambda: DeltaLake("/t"),
    lambda: Iceberg("a.t", catalog={"type": "sql", "uri": "sqlite:///f"}),
    lambda: KafkaTopic("kafka://other:9092", "t"),
    lambda: Files("/t"),
    lambda: Objects("/t"),
    lambda: MultipartObjects("s3://bucket/t"),
    lambda: HTTP("http://host/hook"),
]
UNSOUND: list[tuple[Callable[[], Any], str]] = [
    (lambda: PostgresVersioned(DSN, "t", key="n"), "a refused record leaves none"),
    (lambda: PostgresAppended(DSN, "t"), "nothing there stops a superseded owner"),
    (lambda: Redis("redis://host:6379/0", "t", key="n"), "a refused record leaves none"),
    (lambda: OpenSearch("http://host:9200", "t", key="n"), "a refused record leaves none"),
    (lambda: MongoDB("mongodb://host/db", "t", key="n"), "a refused record leaves none"),
    (lambda: ClickHouse("http://host:8123/db", "t"), "it forgets what it has seen"),
    (lambda: HTTP("http://host/hook", forgets_after_s=60.0), "it forgets what it has seen"),
]


def graph(*writes: tuple[Any, dict[str, Any]]) -> Any:
    def build(b: Builder) -> None:
        stream = b.read(orders)
        for sink, said in writes:
            stream.write(sink, **said)

    return App("shop", build).graph()


DEAD = {"on_error": "dead-letter"}


@pytest.mark.parametrize("make", SOUND)
def test_dead_letters_have_a_topic(make: Callable[[], Any]) -> None:
    made = graph((make(), DEAD))
    assert made.internal["shop.dlq"].kind == "dlq"
    assert "shop.dlq" not in graph((make(), {})).internal, "stop is the default"


@pytest.mark.parametrize(("make", "why"), UNSOUND)
def test_a_sink_that_cannot_stop_a_late_write_is_refused(make: Callable[[], Any], why: str) -> None:
    """Named, with the reason; and nothing of the address is told."""
    with pytest.raises(GraphError, match=f"cannot have on_error='dead-letter': .*{why}") as refused:
        graph((make(), DEAD))
    assert "secret" not in str(refused.value)
    graph((make(), {"on_error": "stop"}))


@pytest.mark.parametrize(
    ("writes", "why"),
    [
        ([(orders, DEAD)], "is a loop|on_error= is for sinks"),
        ([(Topic("out", key=str, value=dict[str, int]), DEAD)], "on_error= is for sinks"),
        ([(SQLite("f.db", "t"), {"on_error": "skip"})], "must be 'stop' or 'dead-letter', not 'skip'"),
    ],
)
def test_what_cannot_be_meant_is_refused(writes: list[Any], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        graph(*writes)


def test_one_sink_has_one_policy() -> None:
    sink = SQLite("f.db", "t")
    graph((sink, DEAD), (sink, DEAD))
    with pytest.raises(GraphError, match="Say the same in both places"):
        graph((sink, DEAD), (sink, {}))


def test_check_says_so() -> None:
    found = analyse(graph((SQLite("f.db", "t"), DEAD)), Circumstances())
    assert "records that t refuses go to the dead letters instead, each once" in repr(found)


def test_a_weak_sink_is_refused() -> None:
    from semel.sinks import Lines

    accept = {"accept": AtLeastOnce("a test")}
    with pytest.raises(GraphError, match="its contract is at-least-once"):
        graph((Lines("f.jsonl"), {**accept, **DEAD}))
