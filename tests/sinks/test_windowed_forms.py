"""What the sinks with windows make of a record, and what `check` says of them; without any server."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import cramjam
import pytest
from msgspec import Struct

from semel import App, Builder, Topic
from semel.contract import Guarantee, Row, Window
from semel.guarantees import Circumstances, analyse
from semel.guarantees.report import as_text
from semel.guarantees.rules import LogKind, lowered
from semel.sinks import HTTP, ClickHouse, ClickHouseAppended, Prometheus
from semel.sinks.clickhouse import token
from semel.sinks.clickhouse_types import kind_of
from semel.sinks.prometheus_connection import duration_s
from semel.sinks.prometheus_form import Form, encoded, samples_of
from semel.sinks.sink import RowRefused

FORM = Form("orders_total", "n", ["shop"], "at", {"job": "semel"})


def row(offset: int, text: str) -> Row:
    return Row(offset, 7_000, None, text.encode())


def test_a_write_request_byte_by_byte() -> None:
    """Labels sorted by name, samples by stamp, each series once; doubles little-endian; a stamp before 1970 has ten
    bytes (protobuf, int64)."""
    rows = [
        row(0, '{"shop":"b","n":2,"at":300}'),
        row(1, '{"shop":"a","n":1.5,"at":-1}'),
        row(2, '{"shop":"b","n":1,"at":5}'),
    ]

    def label(name: bytes, value: bytes) -> bytes:
        body = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(value)]) + value
        return b"\x0a" + bytes([len(body)]) + body

    def sample(value: float, stamp: bytes) -> bytes:
        body = b"\x09" + struct.pack("<d", value) + b"\x10" + stamp
        return b"\x12" + bytes([len(body)]) + body

    def series(shop: bytes, *samples: bytes) -> bytes:
        named = label(b"__name__", b"orders_total") + label(b"job", b"semel") + label(b"shop", shop)
        body = named + b"".join(samples)
        return b"\x0a" + bytes([len(body)]) + body

    wanted = series(b"b", sample(1.0, b"\x05"), sample(2.0, b"\xac\x02"))
    wanted += series(b"a", sample(1.5, b"\xff" * 9 + b"\x01"))
    assert bytes(cramjam.snappy.decompress_raw(encoded(samples_of(FORM, rows)))) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"shop":"a","n":true,"at":1}', "a number"),
        ('{"shop":"a","at":1}', "stale markers"),
        ('{"shop":"a","n":9007199254740993,"at":1}', "no float is"),
        ('{"shop":"","n":1,"at":1}', "is empty"),
        ('{"n":1,"at":1}', "a text or a whole number"),
        ('{"shop":"a","n":1,"at":"2026-01-01T00:00:00"}', "a time with a zone"),
        ('{"shop":"a","n":1,"at":"2026-01-01T00:00:00.0001Z"}', "whole milliseconds"),
        ('{"shop":"a","n":1,"at":1.5}', "whole milliseconds"),
        ("[]", "no JSON object|not a JSON object"),
    ],
)
def test_what_is_no_sample_is_refused_by_its_offset(text: str, why: str) -> None:
    with pytest.raises(RowRefused, match=why) as refused:
        samples_of(FORM, [row(3, '{"shop":"a","n":1,"at":1}'), row(4, text)])
    assert refused.value.offset == 4


def test_times_and_stamps() -> None:
    """A datetime with a zone, ms, or the record's own time."""
    texts = ['{"shop":"a","n":1,"at":"1970-01-01T01:00:01.5+01:00"}', '{"shop":"a","n":1,"at":1500}']
    assert {samples_of(FORM, [row(0, text)])[0].at_ms for text in texts} == {1500}
    assert samples_of(FORM._replace(at=None), [row(0, '{"shop":"a","n":1}')])[0].at_ms == 7_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15d", 1_296_000.0),
        ("1h30m", 5_400.0),
        ("2w or 10GiB", 1_209_600.0),
        ("10GB", None),
        ("", None),
        ("250ms", 0.25),
    ],
)
def test_durations_as_prometheus_writes_them(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds


def test_a_token_names_the_cut_and_its_records() -> None:
    """Any part that differs makes another; the clock is none of them."""
    parts: list[Any] = [("app", "sink", "T1.4.1", 3), 10, 20, "0 1 - 00000000"]
    others = [
        [("app", "sink", "T2.4.1", 3), 10, 20, parts[3]], [("app", "sink", "T1.4.2", 3), 10, 20, parts[3]],
        [("app", "sink", "T1.4.1", 2), 10, 20, parts[3]], [parts[0], 11, 20, parts[3]], [parts[0], 10, 21, parts[3]],
        [parts[0], 10, 20, "0 1 - 00000001"],
    ]  # fmt: skip
    assert token(*parts) == token(*parts) == "app/sink/T1.4.1/3/[10,20)/0 1 - 00000000"
    assert len({token(*one) for one in [parts, *others]}) == 7


def test_types_of_clickhouse_are_taken_apart() -> None:
    assert kind_of("LowCardinality(Nullable(String))") == ("String", True, None, None)
    assert kind_of("Decimal(18, 4)") == ("Decimal", False, 18, 4)
    assert kind_of("DateTime64(3, 'Europe/Berlin')") == ("DateTime64", False, None, 3)
    assert kind_of("DateTime('UTC')") == ("DateTime", False, None, 0)


class Order(Struct):
    shop: str
    n: int


def build(b: Builder) -> None:
    read = b.read(Topic("orders", key=str, value=Order))
    read.write(ClickHouse("http://me:hush@h/db", "t", window_inserts=500, name="tokens"))
    read.write(ClickHouseAppended("http://h/db", "t", name="appended"))
    read.write(HTTP("http://h/", forgets_after_s=3_600, name="hook"))
    read.write(Prometheus("http://h", "m", value="n", labels=["shop"], retention_s=86_400, name="samples"))


def test_check_prints_the_window() -> None:
    """Never plain effectively-once; what forgets says after how much. No secret."""
    report = analyse(App("w", build).graph(), Circumstances(log=LogKind.EMBEDDED))
    text = as_text(report, str, "embedded:./data", 200)
    for window in ("500 inserts", "3600 s", "86400 s"):
        assert f"forgets what it has seen after {window}" in text
    assert report.weakest is Guarantee.ONCE_IN_WINDOW
    assert text.count("effectively-once-in-a-window") >= 3
    assert "the view t_once" in text and "hush" not in text


@pytest.mark.parametrize(
    "sink",
    [ClickHouse("http://h/db", "t"), HTTP("http://h/", forgets_after_s=60), Prometheus("http://h", "m", value="n")],
)
def test_without_its_window_it_claims_too_much(sink: Any) -> None:
    assert lowered(sink.contract) is None
    found = lowered(replace(sink.contract, window=None))
    assert found is not None and found.allows is Guarantee.AT_LEAST_ONCE
    assert Window(None, 5) != sink.contract.window
