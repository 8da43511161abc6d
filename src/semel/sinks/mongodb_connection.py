"""Batches of one delivery to a MongoDB collection whose documents carry versions.

Invariant: a document is only ever replaced by one of a higher (incarnation, offset), and a deleted one stays as a
tombstone; so what is written again, by whomever, has no effect. An upsert whose filter does not match what is there
ends in "duplicate key": that is success only where the document that is there is as new as ours, or newer: it is read
back. The position is a document of the same collection and follows the rows. No request is sent twice by the client
library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import bson
import msgspec
import pymongo
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import ReadPreference, errors
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import documents_moved, positions
from semel.sinks.documents import Document, Documents, documents_of, own_id
from semel.sinks.sink import Diverged, RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.mongodb import MongoDB

HIDDEN, DELETED, INCARNATION, OFFSET = "semel_hidden", "semel_deleted", "semel_incarnation", "semel_offset"
BSON_BYTES_MAX = 16 << 20
UPDATES_MAX, UPDATES_BYTES = 1_000, 8_000_000  # of one command, which has 16 MiB at most
DUPLICATE, NOT_IMPLEMENTED, NAMESPACE_EXISTS = 11000, 238, 48
# The document itself is what the collection will not take: a bad value, a name, its size, a validator.
REFUSED = {2, 9, 14, 52, 55, 57, 121, 10334, 17280, 17419}
HUMAN = {13, 18, 8000}  # rights, a wrong password
TRIES, PAUSE_S = 4, 0.05
# Of semel's own documents; a field that is not there compares as null.
COMPARED = ("epoch", "incarnation", "position", "run", "topic_id", "partitions", documents_moved.MOVING)

Answer = TypeVar("Answer")


class _Line(NamedTuple):
    document: Document
    version: tuple[int, int]
    update: RawBSONDocument


class _Busy(Exception):
    """The server has answered that it has not done it, or not for sure."""


class MongoConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: MongoDB, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._client: pymongo.MongoClient[dict[str, Any]] | None = None
        self._documents: Documents | None = None
        self._notes: list[str] = []

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- connecting -------------------------------------------------------------------------------------------------

    def _database(self) -> Any:
        if self._client is None:
            wait_ms = round(self._sink.timeout_s * 1_000)
            try:
                self._client = pymongo.MongoClient(
                    self._sink.url,
                    serverSelectionTimeoutMS=max(1_000, wait_ms // 2),
                    connectTimeoutMS=max(1_000, wait_ms // 2),
                    socketTimeoutMS=wait_ms,
                    maxPoolSize=1,
                    # By default it sends a write again; what was not answered is Unknown here.
                    retryWrites=False,
                    retryReads=False,
                    appname=f"semel {self._sink.name}"[:100],
                )
            except (errors.ConfigurationError, errors.InvalidURI, ValueError) as why:
                raise SinkError(f"{self._sink.where}: the address cannot be used: {brief(why)}.") from None
        return self._client.get_default_database()

    def _collection(self) -> Any:
        return self._database().get_collection(
            self._sink.collection,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", j=True),
        )

    def _trying(self, what: Callable[[], Answer]) -> Answer | NotDone:
        """What changes nothing, or may be done again."""
        try:
            return what()
        except (errors.PyMongoError, _Busy) as why:
            return NotDone(self._lost(why))

    def _lost(self, why: Exception) -> str:
        """In one sentence; SinkError where waiting mends nothing."""
        if isinstance(why, errors.OperationFailure) and why.code in HUMAN:
            raise SinkError(f"{self._sink.where} refuses us: {brief(why)}. Check user, password and rights.") from None
        return f"{self._sink.where}: {brief(why)}"

    # --- the collection -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        sink = self._sink
        known = value_type if sink.value_type is None else sink.value_type
        documents = documents_of(known, sink.where, sink.key, field_name)
        notes = self._trying(self._judged)
        if isinstance(notes, NotDone):
            return notes
        self._documents, self._notes = documents, notes
        return Done()

    def _judged(self) -> list[str]:
        sink, database = self._sink, self._database()
        there = {one["name"]: one for one in database.list_collections(filter={"name": sink.collection})}
        found = there.get(sink.collection)
        if found is None:
            try:
                database.create_collection(sink.collection, check_exists=False)
            except errors.OperationFailure as why:
                if why.code != NAMESPACE_EXISTS:  # of another worker
                    raise
        else:
            options = found.get("options", {})
            if found.get("type", "collection") != "collection" or options.get("capped"):
                raise SinkError(f"{sink.where}: it is a view, capped or a time series. Name a plain collection.")
            if options.get("collation", {}).get("locale", "simple") != "simple":
                raise SinkError(
                    f"{sink.where}: it has the collation {options['collation']['locale']}, which may hold two keys for "
                    "equal. Name a collection without one."
                )
        return self._view(database)

    def _view(self, database: Any) -> list[str]:
        sink = self._sink
        if list(database.list_collections(filter={"name": sink.live})):
            return []
        shown = [{"$match": {HIDDEN: {"$exists": False}}}, {"$unset": [INCARNATION, OFFSET]}]
        try:
            database.command({"create": sink.live, "viewOn": sink.collection, "pipeline": shown})
        except errors.OperationFailure as why:
            if why.code == NOT_IMPLEMENTED:  # an imitation of MongoDB
                return [
                    f"{sink.where}: this server makes no view {sink.live}; readers leave out deleted documents by "
                    f"{{{HIDDEN}: {{$exists: false}}}}."
                ]
            if why.code != NAMESPACE_EXISTS:
                raise
        return []

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ----------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda: self._claim(delivery, log))

    def _claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        incarnation = self._incarnation(delivery, log)
        collection, place = self._collection(), documents_moved.place_name(delivery)
        for _ in range(10):
            lane = collection.find_one({"_id": place})
            now: dict[str, Any] = {"incarnation": incarnation, "holder": positions.here(), "updated": datetime.now(UTC)}
            if lane is None:
                now |= {"_id": place, HIDDEN: "position", "epoch": 1, "position": 0, "run": ""}
                try:
                    collection.insert_one(now)
                except errors.DuplicateKeyError:
                    continue
            else:
                if lane["incarnation"] != incarnation:  # no position in this one
                    now |= {"position": 0, "run": ""}
                now["epoch"] = lane["epoch"] + 1
                changed = collection.update_one({"_id": place, "epoch": lane["epoch"]}, {"$set": now})
                if not changed.matched_count:
                    continue
                # What a former owner moved it to in between is there now.
                lane = collection.find_one({"_id": place, "epoch": now["epoch"]})
                if lane is None:
                    continue
                now = lane
            return Claim(
                delivery,
                epoch=int(now["epoch"]),
                incarnation=incarnation,
                position=int(now["position"]),
                run=now["run"],
                log=log,
            )
        raise _Busy(f"others claim partition {delivery.partition} at the same time")

    def _incarnation(self, delivery: DeliveryId, log: LogIdentity) -> int:
        """Of the log that the positions of this delivery are of; the first one to come writes it down."""
        name, collection = documents_moved.log_name(delivery.app, delivery.sink), self._collection()
        mine = {"topic_id": log.topic_id, "partitions": log.partitions}
        for _ in range(2):
            found = collection.find_one({"_id": name})
            if found is not None:
                stored = positions.Stored(delivery.partition, found["topic_id"], found["partitions"])
                positions.same_log(delivery, log, [stored], self._sink.where)
                if found.get(documents_moved.MOVING):
                    raise Diverged(positions.interrupted(self._sink.where, delivery.sink))
                return int(found["incarnation"])
            # Of sinks of other names (this one was renamed, say): their offsets mean nothing beside ours.
            others = collection.find({HIDDEN: "position", "incarnation": {"$exists": True}}, {"incarnation": 1})
            first = 1 + max((int(one["incarnation"]) for one in others), default=0)
            try:
                collection.insert_one({"_id": name, HIDDEN: "position", **mine, "incarnation": first})
            except errors.DuplicateKeyError:
                continue
        raise _Busy(f"{name} comes and goes")

    # --- a batch ------------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end and self._documents is not None, (start, end)
        lines = [self._line(claim, document) for document in self._documents.batch(rows)]
        self._steps.reached(Step.ROWS_BEFORE)
        stale = 0
        for number, chunk in enumerate(_chunks(lines)):
            self._steps.reached(Step.SINK_BEFORE)
            try:
                stale += self._sent(chunk)
            except errors.ServerSelectionTimeoutError as why:  # nothing was sent of this one
                told = self._lost(why)
                return Unknown(told) if number else NotDone(told)
            except (errors.PyMongoError, _Busy) as why:
                return Unknown(f"the rows [{start}, {end}): {self._lost(why)}")
            self._steps.reached(Step.SINK_AFTER)
        if not lines:  # a position alone
            self._steps.reached(Step.SINK_BEFORE)
            self._steps.reached(Step.SINK_AFTER)
        if stale:
            self._steps.reached(Step.SINK_STALE)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        try:
            outcome = self._moved(claim, start, end, run)
        except (errors.PyMongoError, _Busy) as why:
            return Unknown(f"the rows up to {end} are there, their position: {self._lost(why)}")
        self._steps.reached(Step.POSITION_AFTER)
        return outcome

    def _moved(self, claim: Claim, start: int, end: int, run: str) -> Outcome:
        """Only from where the batch began or from beyond: a position that is behind has gone back with a server that
        lost what it acknowledged (S13), and what went with it is sent again."""
        where, collection = self._sink.where, self._collection()
        mine = {
            "_id": documents_moved.place_name(claim.delivery),
            "epoch": claim.epoch,
            "position": {"$gte": start, "$lt": end},
        }
        now = {"position": end, "run": run, "updated": datetime.now(UTC)}
        if collection.update_one(mine, {"$set": now}).matched_count:
            return Done()
        lane = collection.find_one({"_id": documents_moved.place_name(claim.delivery)})
        if lane is None:
            return Fenced(f"{where}: its position is gone; ours was epoch {claim.epoch}")
        if lane["epoch"] != claim.epoch:
            return Fenced(
                f"{where}: epoch {lane['epoch']}, position {lane['position']}, held by {lane['holder']}; ours was "
                f"epoch {claim.epoch}"
            )
        if lane["position"] < start:
            return Unknown(
                f"{where}: its position is {lane['position']}, behind {start}: it has lost what it acknowledged, "
                "which is sent again from there"
            )
        return Done()

    def _line(self, claim: Claim, document: Document) -> _Line:
        own_id(document)
        incarnation, offset = claim.incarnation, document.offset
        held: dict[str, Any] = {"_id": document.id, **(document.fields or document.key)}
        held |= {INCARNATION: incarnation, OFFSET: offset}
        if not document.value:
            held |= {HIDDEN: "deleted", DELETED: datetime.now(UTC)}
        older = [{INCARNATION: {"$lt": incarnation}}, {INCARNATION: incarnation, OFFSET: {"$lt": offset}}]
        try:
            raw = bson.encode(held)
            update = {
                "q": {"_id": document.id, "$or": older},
                "u": RawBSONDocument(raw),
                "upsert": True,
                "multi": False,
            }
            line = RawBSONDocument(bson.encode(update))
        except (BSONError, OverflowError, UnicodeError, ValueError) as why:  # a number beyond 64 bits among them
            raise RowRefused(f"a document cannot hold it: {brief(why)}", offset) from None
        if len(raw) > BSON_BYTES_MAX:
            raise RowRefused(f"it has {len(raw)} bytes as a document, which has {BSON_BYTES_MAX} at most", offset)
        return _Line(document, (incarnation, offset), line)

    def _sent(self, lines: Sequence[_Line]) -> int:
        """Returns how many of them were without effect, once all the others had theirs."""
        stale, pause_s, told = 0, PAUSE_S, ""
        for _ in range(TRIES):
            failed = self._failed(lines)
            if failed is None:
                return stale
            line, code, told = failed
            if code in REFUSED:
                raise RowRefused(told, line.document.offset)
            if code != DUPLICATE:
                raise _Busy(f"{told} (code {code})")
            there = self._there(lines)
            stale += sum(there.get(line.document.id, (0, 0)) >= line.version for line in lines)
            lines = [line for line in lines if there.get(line.document.id, (0, 0)) < line.version]
            if not lines:
                return stale
            # Two upserts of one new key at once, or a majority that is behind; a unique index of somebody's otherwise.
            time.sleep(pause_s)
            pause_s *= 2
        if line in lines:
            raise RowRefused(told, line.document.offset)
        raise _Busy(told)

    def _failed(self, lines: Sequence[_Line]) -> tuple[_Line, int, str] | None:
        """The first document that was not taken, with code and reason. By the command itself, unordered: each of them
        is tried, whatever becomes of the others."""
        command = {"update": self._sink.collection, "updates": [line.update for line in lines], "ordered": False}
        answer = self._database().command({**command, "writeConcern": {"w": "majority", "j": True}})
        found = answer.get("writeErrors", [])
        # What is told of more than a duplicate comes first: it is not mended by looking.
        for error in sorted(found, key=lambda error: error["code"] == DUPLICATE):
            return lines[error["index"]], error["code"], str(error.get("errmsg", ""))[:300]
        if "writeConcernError" in answer:
            raise _Busy(f"a majority has not taken it: {answer['writeConcernError'].get('errmsg', '')}")
        return None

    def _there(self, lines: Sequence[_Line]) -> dict[str, tuple[int, int]]:
        """The versions that are there, as a majority has them."""
        found = self._collection().find(
            {"_id": {"$in": [line.document.id for line in lines]}}, {INCARNATION: 1, OFFSET: 1}
        )
        return {one["_id"]: (one.get(INCARNATION, 0), one.get(OFFSET, -1)) for one in found}

    # --- for `semel sink` ---------------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._trying(lambda: documents_moved.remembered(_Own(self._collection()), app, self._sink.name))

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        def reached() -> None:
            self._steps.reached(Step.MOVE_PART)

        try:
            own = _Own(self._collection())
            return documents_moved.moved(own, self._sink.where, app, self._sink.name, seen, to, reached)
        except (errors.PyMongoError, _Busy) as why:
            return Unknown(f"a part of the move: {self._lost(why)}")

    # --- for semel verify ---------------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._documents is not None, "prepare comes first"
        found = self._collection().find({HIDDEN: {"$exists": False}}, {"_id": 0, INCARNATION: 0, OFFSET: 0})
        return [self._documents.canonical(_plain(one)) for one in found]

    def canonical(self, value: bytes) -> bytes:
        assert self._documents is not None, "prepare comes first"
        return self._documents.canonical(msgspec.json.decode(value, type=dict[str, Any]))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only collections that it has named itself.")
        for name in (self._sink.live, self._sink.collection):
            self._database().drop_collection(name)


def field_name(name: str) -> str:
    """Why a field cannot have this name in a document."""
    if name.startswith("semel_"):
        return "begins with semel_, as semel's own do"
    if not name or name == "_id" or name.startswith("$") or "." in name or "\0" in name:
        return "is no field of a document of its own: _id is the key's, $ and points have a meaning"
    return ""


class _Own:
    """See `documents_moved.Own`; the version of a document is what it says."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def get(self, name: str) -> tuple[Mapping[str, Any], Any] | None:
        found = self._collection.find_one({"_id": name})
        return None if found is None else (found, {field: found.get(field) for field in COMPARED})

    def put(self, name: str, says: Mapping[str, Any], over: Any | None) -> Any | None:
        now = {field: value for field, value in says.items() if field not in ("_id", HIDDEN)}
        now["updated"] = datetime.now(UTC)
        if over is None:
            try:
                self._collection.insert_one({"_id": name, HIDDEN: "position", **now})
            except errors.DuplicateKeyError:
                return None
        elif not self._collection.update_one({"_id": name, **over}, {"$set": now}).matched_count:
            return None
        return {field: {**(over or {}), **now}.get(field) for field in COMPARED}


def _chunks(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """Commands of at most UPDATES_MAX updates and about UPDATES_BYTES, each document whole."""
    chunk: list[_Line] = []
    size = 0
    for line in lines:
        if chunk and (size + len(line.update.raw) > UPDATES_BYTES or len(chunk) >= UPDATES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line.update.raw)
    if chunk:
        yield chunk


def _plain(value: Any) -> Any:
    """Python's own numbers instead of the library's."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def brief(why: BaseException) -> str:
    """The server's own words, one line; the client prints no password."""
    said = why.details.get("errmsg") if isinstance(why, errors.OperationFailure) and why.details else None
    return (str(said or why).strip().split("\n")[0].partition(", full error:")[0][:300] or type(why).__name__).rstrip(
        "."
    )
