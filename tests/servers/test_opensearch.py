"""OpenSearch on a real node: the contract kit, planted mistakes, and what only it gets wrong."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from semel.contract import LogIdentity, Versioned
from semel.errors import UsageError
from semel.ports import Done, Fenced, NotDone, Step, Unknown
from semel.sinks import OpenSearch, opensearch_index
from semel.sinks.opensearch import version_of
from semel.sinks.opensearch_connection import OpenSearchConnection
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from semel.testing.proxy import TcpProxy
from semel.testing.subject import Counting
from tests.servers import opensearch_subjects as subjects
from tests.servers.opensearch_subjects import asked
from tests.servers.test_orphans import IN_OPENSEARCH, found
from tests.sinks.conftest import MakeSink
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.values import Total, adopted, claimed, deleted, held, opened, renamed_goes_on, rows
from tests.support import inventories
from tests.support.campaigns import Place
from tests.support.opensearch import OpenSearchProcess

_numbers = itertools.count()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearchProcess]:
    with OpenSearchProcess(tmp_path_factory.mktemp("opensearch")) as server:
        yield server


class TestOpenSearch(ContractTests):
    """On a node that is killed."""

    @pytest.fixture
    def subject(self, node: OpenSearchProcess) -> Subject:
        return subjects.subject(subjects.documents, node)


def test_what_is_planted_is_found(node: OpenSearchProcess) -> None:
    """An index and an alias that a run has left behind."""
    found(Place({"EVERY_OPENSEARCH": node.url}, lambda: inventories.opensearch(node.url)), IN_OPENSEARCH)
    asked(node.url, "DELETE", "/left-behind")


@pytest.fixture
def make(node: OpenSearchProcess) -> MakeSink:
    index = f"t{next(_numbers)}"
    return lambda **said: OpenSearch(
        said.pop("url", node.url), said.pop("index", index), **{"key": "customer", "value": Total, **said}
    )


# --- planted mistakes ------------------------------------------------------------------------------------------------


def _altered_lines(alter: Any) -> Any:
    def plant(connection: Any) -> Any:
        lines = connection._lines

        def altered(claim: Any, batch: Any) -> Any:
            return [made._replace(text=alter(made, made.document)) for made in lines(claim, batch)]

        connection._lines = altered
        return connection

    return plant


def _without_version(line: Any, document: Any) -> bytes:
    """The server counts by itself, and takes whatever comes last."""
    body = line.text.partition(b"\n")[2]
    return b'{"index":{"_id":"' + document.id.encode() + b'"}}\n' + body


def _by_offset_alone(line: Any, document: Any) -> bytes:
    return bytes(line.text.replace(str(line.version).encode(), str(document.offset).encode(), 1))


def _conflict_is_failure(connection: Any) -> Any:
    connection._older = lambda conflicts: list(conflicts)
    return connection


def _items_are_not_looked_at(connection: Any) -> Any:
    answers = connection._answers
    connection._answers = lambda lines: [(line, 200, {}) for line, _, _ in answers(lines)]
    return connection


def _position_first(connection: Any) -> Any:
    def write(real: Any, claim: Any, start: int, end: int, run: str, batch: Any) -> Any:
        real._moved(claim, start, end, run)
        return real.write(claim, start, end, run, batch)

    return Altered(connection, write=write)


def _unknown_is_failure(connection: Any) -> Any:
    def write(real: Any, *words: Any) -> Any:
        outcome = real.write(*words)
        return NotDone(outcome.reason) if isinstance(outcome, Unknown) else outcome

    return Altered(connection, write=write)


@pytest.mark.parametrize(
    ("alter", "names"),
    [
        (_altered_lines(_without_version), ("zombie", "recut", "deletes", "reborn")),
        (_altered_lines(_by_offset_alone), ("reborn",)),
        (_conflict_is_failure, ("replay",)),
        (_items_are_not_looked_at, ("poison",)),
        (_position_first, ("torn",)),
        (_unknown_is_failure, ("lost_after",)),
    ],
    ids=["no version", "no incarnation", "409 a failure", "items", "position first", "unknown"],
)
def test_a_mistake_is_found(alter: Any, names: tuple[str, ...], node: OpenSearchProcess) -> None:
    """S1, S9, S12: the guard dropped; S6: 200 for the whole taken for 200 for each; S8, S10."""
    planted = subjects.subject(lambda address, suffix: Planted(subjects.documents(address, suffix), alter), node)
    for name in names:
        with pytest.raises(Refused):
            run(planted, getattr(trials, name))


def _hard_deletes(connection: Any) -> Any:
    """By the delete action, as everybody does; its version is remembered for index.gc_deletes, 60 s by default."""
    line, answers = connection._line, connection._answers

    def altered(claim: Any, document: Any) -> Any:
        made = line(claim, document)
        if document.fields is None:
            made = made._replace(text=made.text.partition(b"\n")[0].replace(b'"index"', b'"delete"') + b"\n")
        return made

    def renamed(lines: Any) -> Any:
        exchange = connection._http.exchange

        def as_index(*words: Any, **more: Any) -> Any:
            status, answer = exchange(*words, **more)
            for item in answer.get("items", ()):
                item["index"] = item.pop("delete", None) or item["index"]
                item["index"]["status"] = 200 if item["index"]["status"] == 404 else item["index"]["status"]
            return status, answer

        connection._http.exchange = as_index
        try:
            return answers(lines)
        finally:
            connection._http.exchange = exchange

    connection._line, connection._answers = altered, renamed
    return connection


def test_a_hard_delete_is_found(node: OpenSearchProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """S9: once the server has forgotten a delete, an older write brings the document back."""
    from semel.sinks.opensearch_http import Http

    real = Http.exchange

    def forgetful(http: Any, method: str, path: str, body: Any = None, **query: Any) -> Any:
        if method == "PUT" and isinstance(body, dict) and "aliases" in body:
            body = {**body, "settings": {"index.gc_deletes": "0s"}}
        return real(http, method, path, body, **query)

    monkeypatch.setattr(Http, "exchange", forgetful)
    run(subjects.subject(subjects.documents, node), trials.deletes)
    planted = subjects.subject(
        lambda address, suffix: Planted(subjects.documents(address, suffix), _hard_deletes), node
    )
    with pytest.raises(Refused, match="older write of deleted rows"):
        run(planted, trials.deletes)


def test_a_conflict_is_success_only_if_what_is_there_is_as_new(make: MakeSink, node: OpenSearchProcess) -> None:
    """Somebody has deleted a document for good: the server still knows its version and answers 409; nothing is there.
    Taken for success the row would be missing, and the position past it."""
    sink = make()

    def conflict(connection: Any, id: str) -> Any:
        claim = claimed(connection, sink)
        at = claim.position
        assert connection.write(claim, at, at + 1, "r", rows(sink, [Total(id, 1)], at)) == Done()
        gone = asked(
            node.url, "DELETE", f"/{sink.index}/_doc/{id}?version={version_of(1, at + 1)}&version_type=external"
        )
        assert gone["result"] == "deleted"
        outcome = connection.write(claim, at + 1, at + 2, "r", rows(sink, [Total(id, 2)], at + 1))
        return outcome, claimed(connection, sink).position - at

    outcome, moved = conflict(opened(sink), "a")
    assert isinstance(outcome, Unknown) and "version_conflict" in outcome.reason and moved == 1
    careless: Any = opened(sink)
    careless._older = lambda conflicts: []
    assert conflict(careless, "b") == (Done(), 2), "the planted bug: 409 taken for success"
    assert held(opened(sink)) == [], "and the row is not there"


# --- versions --------------------------------------------------------------------------------------------------------


def test_versions_grow_with_incarnation_and_offset() -> None:
    """One long: 15 bits for the incarnation, 48 for the offset; beyond them it is refused, not wrapped."""
    places = [(1, 0), (1, 1), (1, 2**48 - 1), (2, 0), (2, 5), (2**15 - 1, 2**48 - 1)]
    versions = [version_of(*place) for place in places]
    assert versions == sorted(set(versions)) and versions[0] == 2**48 and versions[-1] == 2**63 - 1
    for beyond in ((2**15, 0), (1, 2**48)):
        with pytest.raises(SinkError, match="do not fit into a version"):
            version_of(*beyond)


def test_a_renamed_sink_goes_on(make: MakeSink) -> None:
    renamed_goes_on(make)


def test_an_older_write_is_stale_and_no_error(make: MakeSink) -> None:
    """409 is counted once it is read back; a superseded owner is told by the position that it is one."""
    sink = make()
    steps = Counting()
    connection = opened(sink, steps=steps)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 0
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 0)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 1
    heir = opened(sink)
    assert heir.write(claimed(heir, sink), 1, 2, "r", rows(sink, [Total("a", 2)], 1)) == Done()
    assert isinstance(connection.write(claim, 1, 2, "r", rows(sink, [Total("a", 1)], 1)), Fenced)
    assert held(heir) == [("a", 2)]
    assert sink.kind is Versioned


def test_a_bulk_whose_answer_is_lost_is_sent_once(make: MakeSink, node: OpenSearchProcess) -> None:
    """S8: it is unknown, and nobody has sent it again behind our back: the version that is there is its own."""
    proxy = TcpProxy(node.port)
    try:
        sink = make(url=f"http://127.0.0.1:{proxy.port}")
        connection = opened(sink)
        claim = claimed(connection, sink)
        for needle in (b'"version_type":"external"', b"/_doc/semel"):
            at = claim.position
            proxy.lose_answer(needle)
            outcome = connection.write(claim, at, at + 1, "r", rows(sink, [Total("a", at)], at))
            assert isinstance(outcome, Unknown), (needle, outcome)
            claim = claimed(connection, sink)
            if claim.position == at:  # it had no effect; of the position it may have had
                assert connection.write(claim, at, at + 1, "r", rows(sink, [Total("a", at)], at)) == Done()
            claim = claimed(connection, sink)
        assert (proxy.cuts, claim.position) == (2, 2)
    finally:
        proxy.close()


def test_a_position_that_went_back_is_not_moved_on(make: MakeSink, node: OpenSearchProcess) -> None:
    """S13: a server that lost what it acknowledged has an older position: what went with it would be skipped."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    for at in range(2):
        assert connection.write(claim, at, at + 1, "r", rows(sink, [Total(f"c{at}", 1)], at)) == Done()
    path = f"/{sink.index}/_doc/semel:position:app%2F{sink.name}%2F0"
    there = asked(node.url, "GET", path)["_source"]
    there["semel_position"]["position"] = 1
    asked(node.url, "PUT", path, there)
    outcome = connection.write(claim, 2, 3, "r", rows(sink, [Total("c2", 1)], 2))
    assert isinstance(outcome, Unknown) and "is 1, behind 2" in outcome.reason
    assert claimed(connection, sink).position == 1


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_server_has_no_room_for_is_sent_again_a_few_times(make: MakeSink, status: int) -> None:
    """Only those items; then it is unknown, and the delivery waits."""
    sink = make()
    connection: Any = opened(sink)
    answers, sent = connection._answers, []

    def busy(lines: Any) -> Any:
        sent.append(len(lines))
        found = answers(lines)
        turn = len(sent)
        return [(line, code if turn > tries or n % 2 else status, error) for n, (line, code, error) in enumerate(found)]

    connection._answers = busy
    claim = claimed(connection, sink)
    tries = 2
    assert connection.write(claim, 0, 8, "r", rows(sink, [Total(f"c{n}", 1) for n in range(8)])) == Done()
    assert sent == [8, 4, 2]
    tries, sent[:] = 99, []
    outcome = connection.write(claim, 8, 16, "r", rows(sink, [Total(f"d{n}", 1) for n in range(8)], 8))
    assert isinstance(outcome, Unknown) and str(status) in outcome.reason and len(sent) <= 4


def test_a_deleted_document_is_hidden_from_its_readers(make: MakeSink, node: OpenSearchProcess) -> None:
    """The tombstone has the key, the version and the time; the alias shows neither it nor the positions."""
    sink = make(refresh="wait_for")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", [*rows(sink, [Total("a", 1)]), deleted(sink, "a", 1)]) == Done()
    there = asked(node.url, "GET", f"/{sink.index}/_doc/a")
    assert there["_version"] == version_of(1, 1)
    assert (there["_source"]["customer"], there["_source"]["semel_hidden"]) == ("a", "deleted")
    assert asked(node.url, "GET", f"/{sink.live}/_search")["hits"]["hits"] == []
    assert connection.write(claim, 2, 3, "r", rows(sink, [Total("a", 5)], 2)) == Done()
    (hit,) = asked(node.url, "GET", f"/{sink.live}/_search")["hits"]["hits"]
    assert hit["_source"] == {"customer": "a", "total": 5}, "wait_for: what is done can be searched"


# --- values ----------------------------------------------------------------------------------------------------------

Everything = msgspec.defstruct(
    "Everything",
    [("k", str), ("i", int), ("f", float), ("d", Decimal), ("b", bool), ("t", datetime), ("y", bytes),
     ("x", dict[str, Any]), ("o", int | None, None)],
)  # fmt: skip
AT = datetime(2013, 1, 1, 5, 15, 0, 123_456, UTC)
BIG = Everything("k/ é#\n", 2**63 - 1, 0.1, Decimal("12345678901234567890.123456789"), True, AT, b"\0", {"n": 2**70})


def test_values_are_held_as_they_were_committed(make: MakeSink, node: OpenSearchProcess) -> None:
    """_source is the value's JSON: big ints, decimals, microseconds, nested numbers digit for digit."""
    sink = make(key="k", value=Everything)
    connection = opened(sink, Everything)
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [BIG])) == Done()
    assert list(connection.rows()) == [connection.canonical(sink.encode_value(BIG))]
    (hit,) = asked(node.url, "GET", f"/{sink.live}/_search")["hits"]["hits"]
    assert (hit["_id"], hit["_source"]) == (BIG.k, msgspec.json.decode(sink.encode_value(BIG)))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Total("a", 2**63), "out of range of long"),
        (Total("x" * 513, 1), "513 bytes"),
        (Total("", 1), "0 bytes"),
        (Total("semel:log:app/x", 1), "semel's own documents"),
    ],
)
def test_what_it_would_not_hold_is_refused_by_offset(make: MakeSink, value: Any, says: str) -> None:
    """Beyond a long, an id that is none, an id of semel's own."""
    sink = make()
    connection = opened(sink)
    with pytest.raises(RowRefused, match=says) as refused:
        connection.write(claimed(connection, sink), 0, 3, "r", rows(sink, [Total("b", 1), value, Total("c", 1)]))
    assert refused.value.offset == 1


def test_a_batch_larger_than_a_request_may_be_goes_in_several(make: MakeSink, tmp_path: Path) -> None:
    """413 halves it; a single document that is too large is refused by its offset."""
    sink = make()
    connection: Any = opened(sink)
    exchange, seen = connection._http.exchange, []

    def narrow(method: str, path: str, body: Any = None, **query: Any) -> Any:
        if isinstance(body, bytes):
            seen.append(len(body))
            if len(body) > 1_000:
                return 413, None
        return exchange(method, path, body, **query)

    connection._http.exchange = narrow
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 40, "r", rows(sink, [Total(f"c{n}", n) for n in range(40)])) == Done()
    assert len(seen) > 8 and len(connection.rows()) == 40
    with pytest.raises(RowRefused, match="413") as refused:
        connection.write(claim, 40, 42, "r", rows(sink, [Total("a", 1), Total("x" * 500, 2**4000)], 40))
    assert refused.value.offset == 41


# --- the index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"mappings": {"properties": {"customer": {"type": "keyword"}}}}, r"lacks .*total.* PUT /t\d+/_mapping"),
        ({"total": {"type": "float"}}, "'total' is float, wanted is"),
        ({"total": {"type": "keyword"}}, "'total' is keyword, wanted is"),
        ({"customer": {"type": "date"}}, "'customer' is date, wanted is"),
        ({"mappings": {"_source": {"enabled": False}}}, "_source of"),
        ({"settings": {"index.final_pipeline": "p"}}, "final_pipeline=p"),
        ({"settings": {"index.translog.durability": "async", "index.number_of_shards": 2}}, "more than one shard"),
        ({"aliases": True}, "has not semel's filter"),
    ],
)
def test_an_index_of_another_shape_is_refused(make: MakeSink, node: OpenSearchProcess, body: Any, says: str) -> None:
    """Fields that would be found by something else than was committed, a source that is not kept, pipelines, shards
    that lose apart, an alias that shows what is deleted."""
    sink = make()
    good = {**opensearch_index.OURS, "customer": {"type": "keyword"}, "total": {"type": "long"}}
    fields = {k: v for k, v in body.items() if k in good}
    made: Any = {"mappings": {"properties": {**good, **fields}}}
    made.update({k: v for k, v in body.items() if k not in good})
    if body.get("aliases"):
        made["aliases"] = {sink.live: {}}
    if "_source" in made["mappings"]:
        made["mappings"]["properties"] = good
    assert asked(node.url, "PUT", f"/{sink.index}", made).get("acknowledged")
    with pytest.raises(SinkError, match=says):
        sink.open().prepare(Total)


def test_an_index_that_fits_is_taken_and_given_the_alias(make: MakeSink, node: OpenSearchProcess) -> None:
    """With a weaker translog that is said."""
    sink = make()
    fields = {**opensearch_index.OURS, "customer": {"type": "text"}, "total": {"type": "integer"}}
    settings = {"index.translog.durability": "async", "index.number_of_shards": 1}
    asked(node.url, "PUT", f"/{sink.index}", {"mappings": {"properties": fields}, "settings": settings})
    connection = opened(sink)
    assert "durability=async" in "".join(connection.notes())
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert held(connection) == [("a", 1)]
    assert list(opened(make(index="fresh")).notes()) == []


def test_an_index_that_is_gone_is_not_made_anew_by_a_write(make: MakeSink, node: OpenSearchProcess) -> None:
    """With a guessed mapping, without what was delivered: the delivery stops; its positions went with the index, so the
    next start fills it from the outbox's."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    asked(node.url, "DELETE", f"/{sink.index}")
    with pytest.raises(SinkError, match="The index is gone"):
        connection.write(claim, 1, 2, "r", rows(sink, [Total("b", 1)], 1))
    assert "error" in asked(node.url, "GET", f"/{sink.index}")
    assert claimed(opened(sink), sink).position == 0


def test_the_choice_can_be_taken(make: MakeSink) -> None:
    """S16: a person moves it to the other log; a new incarnation, from the start."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 5, "r", rows(sink, [Total("a", 1)])) == Done()
    other = LogIdentity("another", 4)
    with pytest.raises(Diverged, match=r"was re-created.*semel sink adopt APP.py"):
        claimed(connection, sink, log=other)
    adopted(connection, other)
    claim = claimed(connection, sink, log=other)
    assert (claim.incarnation, claim.position) == (2, 0)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 7)])) == Done()
    assert held(connection) == [("a", 7)]


def test_two_workers_prepare_and_claim_at_once(make: MakeSink) -> None:
    """One makes the index, the others find it; each claim has an epoch of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        connections = list(pool.map(lambda _: opened(make()), range(4)))
        epochs = list(pool.map(lambda connection: claimed(connection, make()).epoch, connections))
    assert sorted(epochs) == [1, 2, 3, 4]


# --- addresses and secrets -------------------------------------------------------------------------------------------


def test_where_names_the_place_and_no_secret() -> None:
    """repr, str and messages: host, port, index."""
    sink = OpenSearch(
        "https://me:hunt%40er2@db.example:9201/path", "totals", key="customer", headers={"X-Key": "hunter"}
    )
    assert sink.headers["Authorization"].startswith("Basic ") and sink.path == "/path"
    for text in (repr(sink), str(sink), sink.where):
        assert "hunt" not in text
    assert sink.where == "OpenSearch index totals at db.example:9201"
    assert (sink.renamed("_V").index, sink.renamed("_V").live) == ("totals_v", "totals_live_v")
    assert isinstance(sink.open(), OpenSearchConnection)


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: OpenSearch("ftp://u:secret@h", "t", key="k"), "wanted is https://"),
        (lambda: OpenSearch("http://u:secret@h:x", "t", key="k"), "unreadable|cannot be read"),
        (lambda: OpenSearch("http://h", "T", key="k"), "small letters"),
        (lambda: OpenSearch("http://h", "t" * 252, key="k"), "250 at most"),
        (lambda: OpenSearch("http://h", "t", key="k", refresh="later"), "'wait_for'"),  # type: ignore[arg-type]
        (lambda: OpenSearch("http://h", "t", key=None), "Name key="),  # type: ignore[arg-type]
    ],
)
def test_a_declaration_that_cannot_be_is_refused_where_it_stands(declare: Any, says: str) -> None:
    """Build-time mistakes are refused at build time, without what was given as a password."""
    with pytest.raises(SinkError, match=says) as refused:
        declare()
    assert "secret" not in str(refused.value)


def test_field_names_that_would_become_others_are_refused(make: MakeSink) -> None:
    """A point in a name makes two fields of one; a server that is away is waited for."""
    value_type = msgspec.defstruct("Named", [("customer", str), ("total", int)], rename={"total": "a.b"})
    with pytest.raises(SinkError, match="a point makes two fields"):
        make(value=value_type).open().prepare(None)
    assert isinstance(make(url="http://127.0.0.1:1").open().prepare(Total), NotDone)


def test_a_missing_extra_says_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without urllib3 the declaration works, opening says what to do."""
    for name in ("connection", "http"):
        monkeypatch.delitem(sys.modules, f"semel.sinks.opensearch_{name}", raising=False)
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(UsageError, match=r"pip install 'semel\[opensearch\]'"):
        OpenSearch("http://h", "totals", key="k").open()
