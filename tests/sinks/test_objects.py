"""Objects: what is there already, what one holds in each format, the manifest, what is never shown."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import cramjam
import pytest
from pyarrow import parquet

from semel.contract import Row
from semel.ports import Step
from semel.sinks import Objects
from semel.sinks.objects_form import fingerprint
from semel.sinks.objects_store import Store, Taken
from semel.sinks.sink import SinkError
from tests.sinks.test_cuts import (
    OUTBOX,
    Died,
    MakeSink,
    Worker,
    die,
    held,
    make_sink,
    name,
    names,
    outbox,
    put,
    store_of,
)

__all__ = ["make_sink"]  # the fixture


# --- what is there already --------------------------------------------------------------------------------------------


def test_other_bytes_under_the_key_are_an_error(make_sink: MakeSink) -> None:
    """412 is no success: somebody else's object is neither replaced nor taken for ours."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    worker = Worker(log, sink)
    worker.turn()
    store_of(sink).create(f"00001-00000/{name(0, 3)}", b"something else\n", "0" * 64)
    with pytest.raises(SinkError, match="is there already, with other bytes") as refused:
        worker.turn(6)
    assert "00001-00000-" in str(refused.value)
    assert listed_body(sink, name(0, 3)) == b"something else\n"
    assert held(sink) == []


def listed_body(sink: Objects, key: str) -> bytes:
    found = store_of(sink).read(f"00001-00000/{key}")
    assert found is not None
    return found[0]


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_the_same_content_is_done_however_it_was_packed(make_sink: MakeSink, compression: str | None) -> None:
    """A replay by another version of the compressor: other bytes, the same records."""
    log, sink = outbox(), make_sink(compression=compression)
    put(log, *range(3))
    worker = Worker(log, sink)
    worker.turn()
    store = store_of(sink)
    content = sink.shape.content([Row(n, 0, None, b"%d" % n) for n in range(3)])
    packed = {"gzip": lambda: gzip.compress(content, 1), "zstd": lambda: bytes(cramjam.zstd.compress(content, 19))}
    body = packed[compression]() if compression else content
    key = f"00001-00000/{name(0, 3, ending=sink.shape.ending)}"
    store.create(key, body, fingerprint(content))
    assert worker.turn(6) == 3
    assert store.read(key) is not None and held(sink) == [0, 1, 2]


def test_two_sinks_under_one_prefix_are_refused(make_sink: MakeSink) -> None:
    """Their objects would mix."""
    log, sink = outbox(), make_sink()
    Worker(log, sink).turn()
    with pytest.raises(SinkError, match=r"these are the objects of sink orders of app app.*a prefix of its own"):
        Worker(log, make_sink(name="others")).turn()


# --- poison, forms, manifests -----------------------------------------------------------------------------------------


def test_a_record_that_has_no_place_is_named(make_sink: MakeSink) -> None:
    """S11: topic, partition and offset; nothing of its cut was written, so the sink may be declared otherwise, and the
    delivery goes on with the same cut."""
    log, sink = outbox(), make_sink(format="csv", columns=("a", "b"))
    put(log, {"a": 1}, {"a": 2, "c": [3]}, {"b": 'x,"y"', "a": None})
    with pytest.raises(SinkError, match=rf"{OUTBOX}-0 at offset 1: it has the field 'c'"):
        Worker(log, sink).turn(8)
    assert names(sink) == []
    wider = make_sink(format="csv", columns=("a", "b", "c"))
    for _ in range(2):
        dying = Worker(log, wider)
        dying.steps.at[Step.OBJECT_AFTER] = die
        with pytest.raises(Died):
            dying.turn(8)
    Worker(log, wider).turn(8)
    assert names(wider) == [name(0, 3, ending=".csv")]
    assert listed_body(wider, name(0, 3, ending=".csv")) == b'a,b,c\n1,,\n2,,[3]\n,"x,""y""",\n'
    assert wider.open().canonical(b'{"a": 1}') == b'{"a":"1","b":"","c":""}'


@pytest.mark.parametrize("step", [Step.OBJECT_BEFORE, Step.OBJECT_AFTER])
def test_a_cut_that_has_begun_is_not_finished_in_another_form(make_sink: MakeSink, step: Step) -> None:
    """Its records would be there twice, under two names."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    dying = Worker(log, sink)
    dying.steps.at[step] = die
    with pytest.raises(Died):
        dying.turn(8)
    with pytest.raises(SinkError, match=r"was begun as jsonl, the sink is declared as jsonl\.gz now"):
        Worker(log, make_sink(compression="gzip")).turn(8)
    Worker(log, sink).turn(3)
    put(log, *range(3, 6))
    Worker(log, make_sink(compression="gzip")).turn(8)
    assert names(sink) == [name(0, 3), name(3, 6, ending=".jsonl.gz")]


def test_a_manifest_names_what_is_complete_in_order(make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """An incremental reader takes what is new in it; beyond its bound the older objects are found by listing."""
    monkeypatch.setattr("semel.sinks.objects_connection.LISTED_MAX", 2)
    log, sink = outbox(2), make_sink()
    for n in range(100):
        put(log, n, partition=n % 2)
    worker = Worker(log, sink)
    worker.steps.at[Step.OBJECT_AFTER] = lambda: None
    worker.turn(4)
    done = sink.complete()
    assert [(one.partition, one.start, one.end) for one in done] == [
        (p, n, n + 10) for p in (0, 1) for n in range(0, 50, 10)
    ]
    assert [one.records for one in done] == [-1, -1, -1, 10, 10] * 2
    put(log, *range(100, 110))
    worker.steps.at[Step.OBJECT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    assert len(names(sink)) == 11
    assert sink.complete() == done, "there, and not yet named"
    Worker(log, sink).turn(8)
    assert len(sink.complete()) == 11


def test_a_manifest_that_was_removed_is_made_again(make_sink: MakeSink) -> None:
    """The objects are the truth."""
    log, sink = outbox(), make_sink()
    put(log, *range(30))
    Worker(log, sink).turn(3)
    whole, store = sink.complete(), store_of(sink)
    store.delete([key for key in store.keys("_semel") if "delivery" not in key])
    assert sink.complete() == []
    put(log, *range(30, 40))
    Worker(log, sink).turn(3)
    assert list(sink.complete())[:3] == list(whole)
    assert held(sink) == list(range(40))


def test_a_folder_replaces_a_document_only_over_the_version_that_was_read(tmp_path: Path) -> None:
    """A superseded owner that stood between reading and writing, for one version or for many: refused, and what it
    wrote counts for nobody."""
    store = Store(str(tmp_path), "here", {})
    old = store.replace("d/m.json", b"1", None)
    with pytest.raises(Taken):
        store.replace("d/m.json", b"other", None)
    now = old
    for n in range(2, 9):
        now = store.replace("d/m.json", b"%d" % n, now)
        with pytest.raises(Taken):
            store.replace("d/m.json", b"late", old)
    assert store.document("d/m.json") == (b"8", now)
    assert store.documents("d") == ["d/m.json"]
    assert len(store.keys("d")) == 2


@dataclass(frozen=True)
class Event:
    id: int
    at: datetime
    price: Decimal
    tags: list[str]
    note: str | None = None


def events(count: int) -> list[Event]:
    when = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
    return [Event(n, when, Decimal("0.10"), ["a", "ü"], None if n % 2 else f"note {n}") for n in range(count)]


def test_parquet_has_the_schema_of_the_values_type(make_sink: MakeSink) -> None:
    """One row group; times are instants, what Arrow would round is text; a replay finds its fingerprint in the file."""
    log, sink = outbox(), make_sink(format="parquet", value=Event, compression="zstd")
    for event in events(4):
        log.append(OUTBOX, 0, None, sink.encode_value(event))
    worker = Worker(log, sink)
    worker.steps.at[Step.OBJECT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    (made,) = names(sink)
    before = listed_body(sink, made)
    Worker(log, sink).turn(2)
    assert made == name(0, 4, ending=".parquet") and listed_body(sink, made) == before
    content = sink.shape.content([Row(n, 0, None, sink.encode_value(event)) for n, event in enumerate(events(4))])
    assert sink.shape.pack(content) == before, "the bytes are a function of the records"
    table = parquet.read_table(io.BytesIO(before))
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "int64",
        "at": "timestamp[us, tz=UTC]",
        "price": "string",
        "tags": "string",
        "note": "string",
    }
    assert table.to_pylist()[0] | {"at": None} == {
        "id": 0,
        "at": None,
        "price": "0.10",
        "tags": '["a","ü"]',
        "note": "note 0",
    }
    assert sorted(sink.open().rows()) == sorted(sink.open().canonical(sink.encode_value(event)) for event in events(4))


@pytest.mark.parametrize("field", ['"id": 99999999999999999999', '"at": "yesterday"', '"id": "1"', '"more": 1'])
def test_parquet_refuses_what_its_schema_cannot_hold(make_sink: MakeSink, field: str) -> None:
    """S11: by its offset, before anything is put."""
    log, sink = outbox(), make_sink(format="parquet", value=Event)
    log.append(OUTBOX, 0, None, sink.encode_value(events(1)[0]))
    log.append(OUTBOX, 0, None, b"{%s}" % field.encode())
    with pytest.raises(SinkError, match=rf"{OUTBOX}-0 at offset 1: "):
        Worker(log, sink).turn(8)
    assert names(sink) == []


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    """In `where`, `repr`, names and errors."""
    sink = Objects("s3://user:hunter2@bucket/orders?sig=hunter2", options={"secret_access_key": "hunter2"})
    assert (sink.where, sink.name) == ("objects in s3://bucket/orders", "orders")
    assert "hunter2" not in repr(sink)
    with pytest.raises(SinkError) as refused:
        Objects("s3://b/p", options={"endpoint": "http://x", "nonsense": "hunter2"}).open()
    assert "hunter2" not in str(refused.value) and "nonsense" in str(refused.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Not a traceback: the first mistake that people make with a folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"file/archive: the folder cannot be made or opened.*name another"):
        Objects(str(tmp_path / "file" / "archive")).open()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"format": "xml"}, "wanted is 'jsonl', 'csv' or 'parquet'"),
        ({"format": "parquet"}, "Parquet wants the type of the values"),
        ({"format": "csv"}, "CSV wants its columns"),
        ({"compression": "lzma"}, "wanted is 'gzip', 'zstd' or None"),
        ({"records": 0}, "are above 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_declared(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    """With what is wanted."""
    with pytest.raises(SinkError, match=message):
        Objects(tmp_path, **said)
    with pytest.raises(SinkError, match="wanted is a folder's path, or a URL with s3"):
        Objects("ftp://x/y")
