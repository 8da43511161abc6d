"""`KafkaTopic` as it is declared, without a server: bytes, names, secrets, and what `check` says of it."""

from __future__ import annotations

from typing import Any

import pytest

from semel import App, Builder, TestDriver, Topic
from semel.contract import Guarantee
from semel.guarantees import Circumstances, LogKind, analyse
from semel.sinks import KafkaTopic
from semel.sinks.sink import SinkError
from semel.testing import trials
from semel.testing.subject import Stand, Subject
from tests.sinks.values import Total

URL = "kafka://host:9092"


def test_keys_and_values_are_written_as_topics_write_them() -> None:
    """bytes and text as they are, the rest as JSON; one field as such, several as an array; a delete under the same."""
    sink = KafkaTopic(URL, "totals", key="customer")
    assert (sink.encode_key(Total("a", 1)), sink.encode_deleted("a")) == (b"a", b"a")
    assert KafkaTopic(URL, "totals", key="total").encode_key(Total("a", 1)) == b"1"
    both = KafkaTopic(URL, "totals", key=("customer", "total"))
    assert both.encode_key(Total("a", 1)) == both.encode_deleted(("a", 1)) == b'["a",1]'
    plain = KafkaTopic(URL, "totals")
    assert (plain.key, plain.encode_key(Total("a", 1)), plain.encode_deleted("a")) == ((), None, b"a")
    assert plain.encode_deleted(7) == b"7"
    values: list[Any] = [b"\xff", "é", Total("a", 1), {"x": [1]}]
    assert [plain.encode_value(v) for v in values] == [
        b"\xff", "é".encode(), b'{"customer":"a","total":1}', b'{"x":[1]}',
    ]  # fmt: skip


def test_what_is_no_record_is_refused() -> None:
    """By the type that was said, by what JSON can carry; a delete that names nothing."""
    plain = KafkaTopic(URL, "totals")
    for bad in (float("nan"), object()):
        with pytest.raises(SinkError, match="totals at host:9092"):
            plain.encode_value(bad)
    with pytest.raises(SinkError, match="is no Total"):
        KafkaTopic(URL, "totals", value=Total).encode_value("text")
    with pytest.raises(SinkError, match="without a key"):
        plain.encode_deleted(None)
    with pytest.raises(SinkError, match="does not say the fields"):
        KafkaTopic(URL, "totals", key=("a", "b")).encode_deleted("a")


@pytest.mark.parametrize(
    ("url", "topic", "more"),
    [
        ("kafka://me:hush@host:1", "t", {}),
        ("http://hush:1", "t", {}),
        ("kafka://host", "t", {}),
        ("kafka://[hush", "t", {}),
        (URL, "a topic", {}),
        (URL, "t" * 250, {}),
        (URL, "t", {"partitions": 0}),
        (URL, "t", {"hand_over_s": 0.5}),
        (URL, "t", {"key": ""}),
    ],
)
def test_what_cannot_be_is_refused_at_once(url: str, topic: str, more: dict[str, Any]) -> None:
    """When it is declared, and without repeating an address that may hold a secret."""
    with pytest.raises(SinkError) as refused:
        KafkaTopic(url, topic, **more)
    assert "hush" not in str(refused.value)


def test_a_renamed_one_is_the_same_elsewhere() -> None:
    """Under a topic, positions and ids of its own; settings stay."""
    sink = KafkaTopic(URL, "totals", key="customer", name="n", partitions=3, options={"sasl.password": "hush"})
    own = sink.renamed("-run")
    assert (own.name, own.topic, own.positions_topic("app")) == ("n", "totals-run", "semel-app-n-positions-run")
    assert (own.key, own.partitions, own.options) == (("customer",), 3, {"sasl.password": "hush"})
    assert "hush" not in f"{own} {own!r} {own.where} {own.read_by_others}"


def test_its_contract_its_fields_and_its_type_agree() -> None:
    stand = Stand(Subject(make=lambda at, suffix: KafkaTopic(at, "t").renamed(suffix), address=URL, read=_none), "kit")
    trials.agreement(stand)


def _none(address: str, suffix: str) -> list[tuple[str, int]]:
    return []


def test_check_names_its_readers_and_the_boundary_of_its_transactions() -> None:
    """Exactly-once ends at readers of committed records, and at what transactions of version 1 can miss: said whatever
    log the app runs on. Deletes under the stream's key, and values that are no rows, are taken when it is built."""
    orders = Topic("orders", key=str, value=bytes | None)

    def bridge(b: Builder) -> None:
        b.read(orders).write(KafkaTopic(URL, "mirrored"))

    report = analyse(App("bridge", bridge).graph(), Circumstances(log=LogKind.EMBEDDED))
    (path,) = report.paths
    assert (path.guarantee, path.sink) == (Guarantee.EXACTLY_ONCE, "Kafka topic mirrored at host:9092")
    said = " ".join(path.reasons)
    assert "who reads mirrored at host:9092 must read committed" in said
    assert "a late EndTxn is fenced after every connection loss that librdkafka reports" in said
    assert report.outputs == ("mirrored at host:9092",)


@pytest.mark.parametrize("partitions", [None, 3])
def test_without_key_the_streams_key_is_the_records_however_many_partitions_it_has(partitions: int | None) -> None:
    """A write and the delete of it lie under one key: else a delete deletes nothing, and equal keys lie anywhere."""
    orders = Topic("orders", key=str, value=Total | None)
    sink = KafkaTopic(URL, "mirrored", partitions=partitions)
    driver = TestDriver(App("bridge", lambda b: b.read(orders).write(sink)))
    driver.put(orders, "ann", Total("a", 1))
    driver.put(orders, "ann", None)
    assert [key for key, _ in driver.take(sink)] == [b"ann", b"ann"]
