"""S6: a bulk request is answered with 200 as a whole, whatever became of its items. Without a server: what OpenSearch
answers is recorded (tests/servers/test_opensearch.py asks a real node)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from semel.sinks import OpenSearch
from semel.sinks.documents import Document
from semel.sinks.opensearch_connection import _Line
from semel.sinks.sink import RowRefused
from semel.steps import NoSteps

REFUSED = {"type": "mapper_parsing_exception", "reason": "failed to parse field [total] of type [long]"}
FULL = {"type": "es_rejected_execution_exception", "reason": "rejected execution"}


class Node:
    """Answers bulks: `status_of` gives each document's status and error, by its id."""

    def __init__(self, status_of: Callable[[str], tuple[int, dict[str, Any]]]) -> None:
        self.status_of = status_of
        self.bulks: list[list[str]] = []

    def exchange(self, method: str, path: str, body: bytes, **query: object) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/totals_live/_bulk")
        ids = [msgspec.json.decode(line)["index"]["_id"] for line in body.splitlines()[::2]]
        self.bulks.append(ids)
        answered = [(id, *self.status_of(id)) for id in ids]
        items = [{"index": {"_id": id, "status": status, "error": error}} for id, status, error in answered]
        return 200, {"errors": any(error for *_, error in answered), "items": items}


def bulk(node: Node, count: int = 500) -> tuple[Any, list[_Line]]:
    connection: Any = OpenSearch("http://127.0.0.1:9", "totals", key="customer").open(NoSteps())
    connection._http = node
    lines = []
    for n in range(count):
        document = Document(n, f"k{n}", {"customer": f"k{n}"}, {"customer": f"k{n}", "total": n}, b"{}")
        action = {"index": {"_id": document.id, "version": n, "version_type": "external"}}
        lines.append(_Line(document, n, msgspec.json.encode(action) + b"\n{}\n"))
    return connection, lines


def test_one_bad_document_in_a_bulk_of_500_is_named() -> None:
    """By its offset; it is neither taken for done nor does it hide among the 499."""
    node = Node(lambda id: (400, REFUSED) if id == "k317" else (201, {}))
    connection, lines = bulk(node)
    with pytest.raises(RowRefused, match="failed to parse field") as refused:
        connection._sent(lines)
    assert refused.value.offset == 317
    assert len(node.bulks[0]) == 500


def test_those_that_there_was_no_room_for_are_sent_again_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 for three of 500: the next request has these three."""
    monkeypatch.setattr("semel.sinks.opensearch_connection.PAUSE_S", 0.0)
    full = {"k3", "k77", "k499"}
    node = Node(lambda id: (429, FULL) if id in full and len(node.bulks) == 1 else (201, {}))
    connection, lines = bulk(node)
    assert connection._sent(lines) == 0
    assert [len(sent) for sent in node.bulks] == [500, 3] and set(node.bulks[1]) == full
