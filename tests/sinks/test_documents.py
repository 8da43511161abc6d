"""Values as documents: ids that name one key, fields as they were committed, and what is refused before anything is
sent. No server is needed here; tests/servers has the real ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import bson
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.contract import Claim, DeliveryId, Guarantee, Row
from semel.errors import UsageError
from semel.ports import NoSteps
from semel.sinks import DeltaLake, DuckDB, Files, Iceberg, MongoDB, OpenSearch, Redis
from semel.sinks.documents import documents_of, id_of
from semel.sinks.mongodb_connection import MongoConnection, field_name
from semel.sinks.opensearch_http import Http, NeverLeft, NoAnswer
from semel.sinks.redis_connection import texts
from semel.sinks.sink import RowRefused, SinkError
from tests.sinks.values import LOG, Total, deleted, rows

ROOT = Path(__file__).parents[2]
SINKS = [
    Redis("redis://h", "totals", key="customer"),
    OpenSearch("http://h", "totals", key="customer"),
    MongoDB("mongodb://h/d", "totals", key="customer"),
]


@given(st.lists(st.text(alphabet=":\\ab", max_size=4), min_size=2, max_size=3), st.data())
def test_an_id_names_one_key(parts: list[str], data: st.DataObject) -> None:
    """Several parts joined by colons, also where they hold some: two keys never share an id."""
    other = data.draw(st.lists(st.text(alphabet=":\\ab", max_size=4), min_size=len(parts), max_size=len(parts)))
    assert (id_of(parts) == id_of(other)) == (parts == other)


def test_ids_are_what_people_read() -> None:
    """A text as it is, a number as it is written."""
    assert [id_of(parts) for parts in (["a b"], [5], [True], ["a:b"], ["a:b", 5])] == [
        "a b",
        "5",
        "true",
        "a:b",
        "a\\:b:5",
    ]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"[1]", "not a JSON object"),
        (b'{"customer": "a", "total": "many"}', "'total' holds integer"),
        (b'{"customer": "a", "total": null}', "'total' is null"),
        (b'{"customer": "a"}', "'total' is null"),
        (b'{"customer": "a", "total": 1, "more": 1}', "'more'"),
        (b'{"customer": "b", "total": 1}', "'b', and 'a' in its key"),
        (b'{"customer": "a", "total": 1.5}', "'total' holds integer"),
    ],
)
def test_what_is_none_of_the_declared_values_is_refused(value: bytes, says: str) -> None:
    """S11: by its offset, before the store sees any of the batch."""
    sink = SINKS[0]
    form = documents_of(Total, sink.where, sink.key, lambda name: "")
    batch = rows(sink, [Total("b", 1), Total("a", 1)])
    bad = Row(1, 0, batch[1].key, value)
    with pytest.raises(RowRefused, match=says) as refused:
        form.batch([batch[0], bad])
    assert refused.value.offset == 1


def test_the_last_record_of_a_key_decides() -> None:
    """A delete among them; fields and value are the committed ones."""
    sink = SINKS[0]
    form = documents_of(Total, sink.where, sink.key, lambda name: "")
    batch = [*rows(sink, [Total("a", 1), Total("b", 1)]), deleted(sink, "a", 2), *rows(sink, [Total("b", 2**70)], 3)]
    a, b = form.batch(batch)
    assert (a.id, a.offset, a.fields, a.key) == ("a", 2, None, {"customer": "a"})
    assert (b.offset, b.fields, b.value) == (3, {"customer": "b", "total": 2**70}, batch[3].value)


def test_texts_of_a_hash_lose_nothing() -> None:
    """Numbers beyond a double, nested ones, null as no field."""
    fields = {"i": 2**64 + 1, "f": 1e22, "s": "5", "n": None, "l": [2**53 + 1, None]}
    assert texts(fields) == {"i": "18446744073709551617", "f": "1e22", "s": "5", "l": "[9007199254740993,null]"}


# --- MongoDB, whose server is not to be had here ----------------------------------------------------------------------


def mongo(value_type: Any = Total, **said: Any) -> tuple[MongoDB, MongoConnection, Claim]:
    sink = MongoDB("mongodb://127.0.0.1:1/d", "totals", **{"key": "customer", **said})
    connection = MongoConnection(sink, NoSteps())
    connection._documents = documents_of(value_type, sink.where, sink.key, field_name)
    return sink, connection, Claim(DeliveryId("app", sink.name, 0), 1, 3, 0, "", LOG)


def test_an_update_of_mongodb_is_guarded_by_the_version() -> None:
    """The filter lets only an older document be replaced; a whole number of 64 bits is one."""
    sink, connection, claim = mongo()
    assert connection._documents is not None
    upsert, delete = (
        bson.decode(connection._line(claim, document).update.raw)
        for document in connection._documents.batch([*rows(sink, [Total("a", 2**63 - 1)], 7), deleted(sink, "b", 8)])
    )
    older = [{"semel_incarnation": {"$lt": 3}}, {"semel_incarnation": 3, "semel_offset": {"$lt": 7}}]
    assert upsert["q"] == {"_id": "a", "$or": older}
    assert upsert["u"] == {"_id": "a", "customer": "a", "total": 2**63 - 1, "semel_incarnation": 3, "semel_offset": 7}
    assert (upsert["upsert"], upsert["multi"]) == (True, False)
    assert delete["u"].pop("semel_deleted")
    assert delete["u"] == {
        "_id": "b", "customer": "b", "semel_incarnation": 3, "semel_offset": 8, "semel_hidden": "deleted"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Total("a", 2**63), "cannot hold it"),
        (Total("semel:log:x", 1), "semel's own documents"),
        (Total("x" * (16 << 20), 1), "16777216 at most"),
    ],
)
def test_what_a_document_of_mongodb_cannot_hold_is_refused(value: Total, says: str) -> None:
    """Numbers beyond 64 bits would be changed; 16 MiB are the limit."""
    sink, connection, claim = mongo()
    assert connection._documents is not None
    (document,) = connection._documents.batch(rows(sink, [value]))
    with pytest.raises(RowRefused, match=says):
        connection._line(claim, document)


def test_field_names_that_mean_something_else_are_refused() -> None:
    """By the type, and without one by the record."""
    for name in ("_id", "$set", "a.b", "", "semel_offset"):
        value_type = msgspec.defstruct("Named", [("customer", str), ("total", int)], rename={"total": name})
        with pytest.raises(SinkError, match="Rename it"):
            mongo(value_type)
        sink, connection, _ = mongo(None)
        assert connection._documents is not None
        with pytest.raises(RowRefused, match="its field"):
            connection._documents.batch(rows(sink, [{"customer": "a", name: 1}]))


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: MongoDB("mongodb://u:secret@h", "t", key="k"), "wanted is mongodb://"),
        (lambda: MongoDB("http://u:secret@h/d", "t", key="k"), "wanted is mongodb://"),
        (lambda: MongoDB("mongodb://h/d", "a$b", key="k"), "a letter first"),
        (lambda: MongoDB("mongodb://h/d", "t", key=None), "Name key="),  # type: ignore[arg-type]
        (lambda: MongoDB("mongodb://h/d", "t", key="k", timeout_s=0), "at least 1 second"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_where_it_stands(declare: Any, says: str) -> None:
    """Without what was given as a password."""
    with pytest.raises(SinkError, match=says) as refused:
        declare()
    assert "secret" not in str(refused.value)


def test_where_names_the_place_and_no_secret() -> None:
    """Hosts, database, collection."""
    sink = MongoDB("mongodb://me:hunter2@a:1,b:2/d?replicaSet=r", "totals", key="customer")
    for text in (repr(sink), str(sink), sink.where):
        assert "hunter" not in text
    assert sink.where == "MongoDB collection totals at a:1,b:2/d"
    assert (sink.renamed("_v").collection, sink.renamed("_v").live) == ("totals_v", "totals_live_v")
    assert sink.renamed("v.").collection == "totalsv._", "no name ends with a point"


def test_a_missing_extra_says_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pymongo the declaration works, opening says what to do."""
    monkeypatch.delitem(sys.modules, "semel.sinks.mongodb_connection", raising=False)
    monkeypatch.setitem(sys.modules, "bson", None)
    with pytest.raises(UsageError, match=r"pip install 'semel\[mongodb\]'"):
        MongoDB("mongodb://h/d", "totals", key="k").open()


# --- OpenSearch: a request is sent once ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
def test_a_request_that_is_not_answered_is_not_sent_again(method: str) -> None:
    """S8: a server that takes a request and closes sees one; a port where nobody listens was never reached."""
    server = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            seen.append(client.recv(65_536))
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    port = server.getsockname()[1]
    http = Http(OpenSearch(f"http://127.0.0.1:{port}", "t", key="k"))
    with pytest.raises(NoAnswer) as lost:
        http.exchange(method, "/t/_bulk", b"{}\n")
    assert not isinstance(lost.value, NeverLeft)
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    with pytest.raises(NeverLeft):
        http.exchange(method, "/t/_bulk", b"{}\n")
    assert [one.partition(b" ")[0] for one in seen] == [method.encode()]


# --- what check and reset say -----------------------------------------------------------------------------------------


def test_check_gives_them_their_labels_and_says_under_which_settings() -> None:
    """Without any server or client library: effectively-once, by version, and what an acknowledged write needs."""
    done = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", "check", "tests/servers/apps/versioned.py", "--json"],
        cwd=ROOT,
        env={
            **os.environ,
            "VERSIONED_REDIS": "redis://u:secret@h",
            "VERSIONED_OPENSEARCH": "https://u:secret@h",
            "VERSIONED_MONGODB": "mongodb://u:secret@h/d",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout)
    assert [path["guarantee"] for path in report["paths"]] == [Guarantee.EFFECTIVELY_ONCE] * 3
    for said in (
        "appendfsync=always",
        "index.translog.durability=request",
        "w=majority, j=true",
        "by the row's version",
    ):
        assert said in done.stdout
    assert "secret" not in done.stdout


@pytest.mark.parametrize(
    "sink", [*SINKS, DeltaLake("/t", key="k"), Iceberg("a.b", key="k"), DuckDB("/d.duckdb", "t"), Files("/f")],
    ids=lambda sink: type(sink).__name__,
)  # fmt: skip
def test_a_reset_prints_one_command_for_every_sink(sink: Any) -> None:
    """Whatever its position lies in."""
    from types import SimpleNamespace as Some

    from semel.cli.app import _demanded

    node = Some(place=Some(file="APP.py"))
    graph = Some(writes=lambda: [Some(sink=sink, outbox="o")], app="app", nodes=[node])
    at: Any = Some(name="app", graph=graph, log=Some(name="embedded:data"))
    plan: Any = Some(emptied=[Some(name="o")])
    where, command = _demanded(at, plan)
    assert sink.where in where and command.strip() == (
        f"semel sink adopt APP.py {sink.name} --on embedded:data --at start --yes"
    )
