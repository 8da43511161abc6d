"""Batches of one delivery to an OpenSearch index whose documents carry versions.

Invariant: a document is only ever replaced under a higher external version, and a deleted one stays as a tombstone; so
what is written again, by whomever, has no effect. "Version conflict" is success only where the document that is there
is as new as ours, or newer: it is read back. The position is a document of the same index, which changes under the
sequence number that its owner has seen and follows the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import documents_moved, positions
from semel.sinks.documents import OWN, Document, Documents, Ready, documents_of, own_id
from semel.sinks.opensearch import version_of
from semel.sinks.opensearch_http import Http, NeverLeft, NoAnswer
from semel.sinks.opensearch_index import DELETED, HIDDEN, POSITION, Busy, aliased, field_name, judged, reason, refusal
from semel.sinks.sink import Diverged, RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.opensearch import OpenSearch

BULK_BYTES = 5_000_000
ID_BYTES_MAX = 512
TRIES, PAUSE_S = 4, 0.1  # of what the server has no room for
PASSING = (429, 503)

Answer = TypeVar("Answer")


class _Lane(NamedTuple):
    """The position of one partition, and under which sequence number it may be changed."""

    epoch: int
    incarnation: int
    position: int
    run: str
    holder: str
    seq_no: int
    primary_term: int


class _Line(NamedTuple):
    document: Document
    version: int
    text: bytes


class OpenSearchConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: OpenSearch, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._http = Http(sink)
        self._documents: Documents | None = None
        self._notes: list[str] = []
        self._arrived = False  # whether a request of the batch under way was answered
        self._lanes: dict[tuple[DeliveryId, int], _Lane] = {}  # by delivery and epoch

    def close(self) -> None:
        self._http.close()

    def prepare(self, value_type: object) -> Done | NotDone:
        sink = self._sink
        known = value_type if sink.value_type is None else sink.value_type
        documents = documents_of(known, sink.where, sink.key, field_name)
        notes = self._trying(lambda: judged(self._http, sink, documents.columns))
        if isinstance(notes, NotDone):
            return notes
        self._documents, self._notes = documents, notes
        return Done()

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    def _trying(self, what: Callable[[], Answer]) -> Answer | NotDone:
        """What changes nothing, or may be done again."""
        try:
            return what()
        except NoAnswer as why:
            return NotDone(f"{self._sink.where}: {why}")
        except Busy as why:
            return NotDone(str(why))

    # --- the claim ----------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda: self._claim(delivery, log))

    def _claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        incarnation = self._incarnation(delivery, log)
        for _ in range(10):
            lane = self._lane(delivery)
            # What was said of another incarnation is no position in this one.
            new = {
                "epoch": lane.epoch + 1 if lane is not None else 1,
                "incarnation": incarnation,
                "position": lane.position if lane is not None and lane.incarnation == incarnation else 0,
                "run": lane.run if lane is not None and lane.incarnation == incarnation else "",
                "holder": positions.here(),
            }
            claimed = self._put(delivery, new, lane)
            if claimed is not None:
                self._lanes[delivery, claimed.epoch] = claimed
                return Claim(
                    delivery,
                    epoch=claimed.epoch,
                    incarnation=incarnation,
                    position=claimed.position,
                    run=claimed.run,
                    log=log,
                )
        raise Busy(f"{self._sink.where}: others claim partition {delivery.partition} at the same time", unknown=False)

    def _incarnation(self, delivery: DeliveryId, log: LogIdentity) -> int:
        """Of the log that the positions of this delivery are of; the first one to come writes it down."""
        name = documents_moved.log_name(delivery.app, delivery.sink)
        mine = {"topic_id": log.topic_id, "partitions": log.partitions}
        for _ in range(2):
            found = self._get(name)
            if found is not None:
                said = found["_source"][POSITION]
                stored = positions.Stored(delivery.partition, said["topic_id"], said["partitions"])
                positions.same_log(delivery, log, [stored], self._sink.where)
                if said.get(documents_moved.MOVING):
                    raise Diverged(positions.interrupted(self._sink.where, delivery.sink))
                return int(said["incarnation"])
            self._written(name, {**mine, "incarnation": self._first()}, op_type="create")
        raise Busy(f"{self._sink.where}: {name} comes and goes", unknown=False)

    def _first(self) -> int:
        """Above the incarnations of sinks of other names (this one was renamed, say): their offsets, in the versions of
        what is there, mean nothing beside ours."""
        asked = {"size": 10_000, "query": {"term": {HIDDEN: "position"}}}
        for method, path, body in (
            ("POST", f"/{self._sink.index}/_refresh", None),
            ("POST", f"/{self._sink.index}/_search", asked),
        ):
            status, answer = self._http.exchange(method, path, body)
            if status != 200:
                raise refusal(self._sink, status, answer)
        said = (hit["_source"][POSITION] for hit in answer["hits"]["hits"])
        return 1 + max((int(one.get("incarnation", 0)) for one in said), default=0)

    def _lane(self, delivery: DeliveryId) -> _Lane | None:
        found = self._get(documents_moved.place_name(delivery))
        if found is None:
            return None
        said = found["_source"][POSITION]
        return _Lane(**said, seq_no=found["_seq_no"], primary_term=found["_primary_term"])

    def _put(self, delivery: DeliveryId, new: dict[str, Any], over: _Lane | None) -> _Lane | None:
        """None where somebody else was quicker."""
        if over is None:
            answer = self._written(documents_moved.place_name(delivery), new, op_type="create")
        else:
            answer = self._written(
                documents_moved.place_name(delivery), new, if_seq_no=over.seq_no, if_primary_term=over.primary_term
            )
        return None if answer is None else _Lane(**new, seq_no=answer["_seq_no"], primary_term=answer["_primary_term"])

    def _get(self, id: str) -> Any:
        status, answer = self._http.exchange("GET", f"/{self._sink.live}/_doc/{quote(id, safe='')}")
        if status == 200 and answer["found"]:
            return answer
        if status == 404 and isinstance(answer, dict) and answer.get("found") is False:
            return None
        raise refusal(self._sink, status, answer)

    def _written(self, id: str, position: dict[str, Any], **how: object) -> Any:
        """One of semel's own documents; None on a conflict."""
        body = {HIDDEN: "position", POSITION: position}
        path = f"/{self._sink.live}/_doc/{quote(id, safe='')}"
        status, answer = self._http.exchange("PUT", path, body, require_alias=True, **how)
        if status in (200, 201):
            return answer
        if status == 409:
            return None
        raise refusal(self._sink, status, answer)

    # --- a batch ------------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end and self._documents is not None, (start, end)
        lines = self._lines(claim, self._documents.batch(rows))
        self._steps.reached(Step.ROWS_BEFORE)
        stale, self._arrived = 0, False
        try:
            for chunk in _chunks(lines):
                self._steps.reached(Step.SINK_BEFORE)
                stale += self._sent(chunk)
                self._steps.reached(Step.SINK_AFTER)
            if not lines:  # a position alone
                self._steps.reached(Step.SINK_BEFORE)
                self._steps.reached(Step.SINK_AFTER)
        except NeverLeft as why:
            told = f"{self._sink.where}: {why}"
            return Unknown(told) if self._arrived else NotDone(told)
        except NoAnswer as why:
            return Unknown(f"{self._sink.where}: the rows [{start}, {end}) were not answered: {why}")
        except Busy as why:
            return Unknown(f"{why}; of the rows [{start}, {end}) some may be there")
        if stale:
            self._steps.reached(Step.SINK_STALE)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        try:
            outcome = self._moved(claim, start, end, run)
        except (NoAnswer, Busy) as why:
            return Unknown(f"{self._sink.where}: the rows up to {end} are there, their position: {why}")
        self._steps.reached(Step.POSITION_AFTER)
        return outcome

    def _moved(self, claim: Claim, start: int, end: int, run: str) -> Outcome:
        """The position follows the rows. It is moved only from where the batch began or from beyond: one that is behind
        has gone back with a server that lost what it acknowledged (S13), and what went with it is sent again."""
        where, key = self._sink.where, (claim.delivery, claim.epoch)
        for _ in range(3):
            seen = self._lanes.pop(key, None)
            lane = seen if seen is not None and start <= seen.position < end else self._lane(claim.delivery)
            if lane is None:
                return Fenced(f"{where}: its position is gone; ours was epoch {claim.epoch}")
            if lane.epoch != claim.epoch:
                return Fenced(
                    f"{where}: epoch {lane.epoch}, position {lane.position}, held by {lane.holder}; ours was epoch "
                    f"{claim.epoch}"
                )
            if lane.position < start:
                return Unknown(
                    f"{where}: its position is {lane.position}, behind {start}: it has lost what it acknowledged, "
                    "which is sent again from there"
                )
            if lane.position >= end:
                self._lanes[key] = lane
                return Done()
            new = {"epoch": lane.epoch, "incarnation": lane.incarnation, "position": end, "run": run}
            moved = self._put(claim.delivery, {**new, "holder": lane.holder}, lane)
            if moved is not None:
                self._lanes[key] = moved
                return Done()
        return Unknown(f"{where}: the rows up to {end} are there, their position changes all the time")

    def _lines(self, claim: Claim, batch: Sequence[Document]) -> list[_Line]:
        return _ready(claim, batch) or [self._line(claim, document) for document in batch]

    def _line(self, claim: Claim, document: Document) -> _Line:
        own_id(document)
        if not document.id or (len(document.id) > ID_BYTES_MAX // 4 and len(document.id.encode()) > ID_BYTES_MAX):
            told = f"its key as an id has {len(document.id.encode())} bytes; it has 1 to {ID_BYTES_MAX}"
            raise RowRefused(told, document.offset)
        version = version_of(claim.incarnation, document.offset)
        # In a line of its own: outside texts a line break is blank, within them JSON has none.
        body = document.value.replace(b"\r", b" ").replace(b"\n", b" ")
        if not document.value:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            body = msgspec.json.encode({**document.key, HIDDEN: "deleted", DELETED: now})
        return _Line(document, version, ACTION % (_encode(document.id), version, body))

    def _sent(self, lines: Sequence[_Line]) -> int:
        """Returns how many of them were without effect, once all the others had theirs. What the server has no room for
        is sent again a few times."""
        stale, pause_s, told = 0, PAUSE_S, ""
        for _ in range(TRIES):
            passing, conflicts = [], []
            for line, status, error in self._answers(lines):
                if status in (200, 201):
                    continue
                told = f"{self._sink.where}: it answers {status} {reason({'error': error})}"
                if status == 409:
                    conflicts.append(line)
                elif status in (401, 403, 404) and error.get("type") != "cluster_block_exception":
                    raise refusal(self._sink, status, {"error": error})
                elif status in PASSING or error.get("type") == "cluster_block_exception":
                    passing.append(line)
                elif 400 <= status < 500:
                    raise RowRefused(reason({"error": error}), line.document.offset)
                else:
                    raise Busy(told, unknown=True)
            older = self._older(conflicts)
            stale += len(conflicts) - len(older)
            lines = passing + older
            if not lines:
                return stale
            time.sleep(pause_s)
            pause_s *= 2
        raise Busy(told, unknown=True)

    def _answers(self, lines: Sequence[_Line]) -> list[tuple[_Line, int, dict[str, Any]]]:
        """200 for a bulk request says nothing of its items (S6): each has a status of its own."""
        body = b"".join(line.text for line in lines)
        refresh = self._sink.refresh
        status, answer = self._http.exchange(
            "POST", f"/{self._sink.live}/_bulk", body, require_alias=True, refresh=refresh, pipeline="_none"
        )
        self._arrived = True
        if status == 413:  # a middleman's or the server's limit (http.max_content_length)
            if len(lines) == 1:
                raise RowRefused(
                    f"with {len(body)} bytes it is larger than what is taken (413)", lines[0].document.offset
                )
            half = len(lines) // 2
            return self._answers(lines[:half]) + self._answers(lines[half:])
        if status != 200:
            raise refusal(self._sink, status, answer)
        items = [item["index"] for item in answer["items"]]
        assert len(items) == len(lines), f"{len(lines)} documents were sent, {len(items)} are answered"
        return [(line, item["status"], item.get("error", {})) for line, item in zip(lines, items, strict=True)]

    def _older(self, conflicts: Sequence[_Line]) -> list[_Line]:
        """Those of the refused ones that are newer than what is there, or of which nothing is there: somebody has
        deleted the document for good, and the server remembers its version for a while (index.gc_deletes)."""
        if not conflicts:
            return []
        asked = {"docs": [{"_id": line.document.id, "_source": False} for line in conflicts]}
        status, answer = self._http.exchange("POST", f"/{self._sink.live}/_mget", asked)
        if status != 200:
            raise refusal(self._sink, status, answer)
        there = {doc["_id"]: doc["_version"] for doc in answer["docs"] if doc.get("found")}
        return [line for line in conflicts if there.get(line.document.id, -1) < line.version]

    # --- for `semel sink` ---------------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._trying(lambda: self._remembered(app))

    def _remembered(self, app: str) -> list[Remembered]:
        if aliased(self._http, self._sink) is None:
            return []
        return documents_moved.remembered(_Own(self), app, self._sink.name)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        def reached() -> None:
            self._steps.reached(Step.MOVE_PART)

        try:
            return documents_moved.moved(_Own(self), self._sink.where, app, self._sink.name, seen, to, reached)
        except NeverLeft as why:
            return Unknown(f"{self._sink.where}: {why}")
        except NoAnswer as why:
            return Unknown(f"{self._sink.where}: a part of the move was not answered: {why}")
        except Busy as why:
            return Unknown(str(why))

    # --- for semel verify ---------------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._documents is not None, "prepare comes first"
        self._good("POST", f"/{self._sink.live}/_refresh")
        asked = {"size": 1_000, "sort": ["_doc"]}
        answer = self._good("POST", f"/{self._sink.live}/_search", asked, scroll="1m")
        found: list[bytes] = []
        while hits := answer["hits"]["hits"]:
            found += [self._documents.canonical(hit["_source"]) for hit in hits]
            answer = self._good("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": answer["_scroll_id"]})
        self._good("DELETE", "/_search/scroll", {"scroll_id": answer["_scroll_id"]})
        return found

    def _good(self, method: str, path: str, body: object = None, **query: object) -> Any:
        try:
            status, answer = self._http.exchange(method, path, body, **query)
        except NoAnswer as why:
            raise SinkError(f"{self._sink.where}: {why}.") from None
        if status != 200:
            raise SinkError(f"{self._sink.where}: it answers {status} {reason(answer)}.")
        return answer

    def canonical(self, value: bytes) -> bytes:
        assert self._documents is not None, "prepare comes first"
        return self._documents.canonical(msgspec.json.decode(value, type=dict[str, Any]))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only indexes that it has named itself.")
        status, answer = self._http.exchange("DELETE", f"/{self._sink.index}")
        if status not in (200, 404):
            raise SinkError(f"{self._sink.where}: it answers {status} {reason(answer)}.")


def _ready(claim: Claim, batch: Sequence[Document]) -> list[_Line] | None:
    """The lines of documents that came by column, whose ids are, byte for byte, in their keys, and whose values are one
    line each; None where one of them is to be looked at by itself."""
    if not isinstance(batch, Ready):
        return None
    lengths = list(map(len, batch.ids))
    whole = b"".join(batch.values)
    if not 0 < min(lengths) <= max(lengths) <= ID_BYTES_MAX // 4 or OWN in "".join(batch.ids):
        return None
    if b"\n" in whole or b"\r" in whole:
        return None
    quoted = [key[1:-1] for key in batch.keys]
    versions = [version_of(claim.incarnation, offset) for offset in batch.rows.offsets]
    return list(map(_Line, batch, versions, map(ACTION.__mod__, zip(quoted, versions, batch.values))))


ACTION = b'{"index":{"_id":%s,"version":%d,"version_type":"external"}}\n%s\n'
_encode = msgspec.json.Encoder().encode


class _Own:
    """See `documents_moved.Own`; the version is the sequence number of a document."""

    def __init__(self, connection: OpenSearchConnection) -> None:
        self._connection = connection

    def get(self, name: str) -> tuple[Mapping[str, Any], Any] | None:
        found = self._connection._get(name)
        return None if found is None else (found["_source"][POSITION], (found["_seq_no"], found["_primary_term"]))

    def put(self, name: str, says: Mapping[str, Any], over: Any | None) -> Any | None:
        how: dict[str, object] = {"op_type": "create"}
        if over is not None:
            how = {"if_seq_no": over[0], "if_primary_term": over[1]}
        answer = self._connection._written(name, dict(says), **how)
        return None if answer is None else (answer["_seq_no"], answer["_primary_term"])


def _chunks(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """Requests of about BULK_BYTES, each document whole."""
    chunk: list[_Line] = []
    size = 0
    for line in lines:
        if chunk and size + len(line.text) > BULK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line.text)
    if chunk:
        yield chunk
