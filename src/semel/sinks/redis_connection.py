"""Batches of one delivery to a Redis or Valkey server, each in one script.

Invariant: a key is only ever replaced, or removed, by a record of a higher (incarnation, offset) than the mark beside
it says; the mark stays when the key goes. So what is written again, by whomever, has no effect. The position follows
in a step of its own, under the epoch of the claim, and never from behind its start: a server that lost its tail is
given it again. No request is sent twice by the client library.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.columns import decode
from semel.sinks.documents import Document, Documents, Ready, documents_of
from semel.sinks.redis_scripts import CLAIM, MOVE, OPERATE, ROWS
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.redis import Redis

# What waiting may mend: errors that the client has a class for, and the first words of others.
PASSING = (
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,  # the slot is on its way to another node
    exceptions.MasterDownError,
    exceptions.BusyLoadingError,
)
PASSING_WORDS = ("LOADING", "BUSY", "MISCONF", "NOREPLICAS", "UNKILLABLE")
SCAN = 1_000
REDIRECTS_MAX = 5
KEYS_MANY = 100  # from here on a command is written by us: the client's own writing costs 2 us a word
VALUE_BYTES_MAX = 512 << 20  # of a string, and of what a server takes as one (proto-max-bulk-len)

Answer = TypeVar("Answer")


class RedisConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: Redis, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._client: redis.Redis | None = None
        self._place = (sink.at.host, sink.at.port)  # on a cluster: of the node that holds the slot
        self._documents: Documents | None = None
        self._notes: list[str] = []

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- the names of keys ------------------------------------------------------------------------------------------

    def _row(self, id: str) -> str:
        return f"{self._sink.prefix}:{id}"

    def _mark(self, id: str) -> str:
        return f"semel:mark:{self._sink.prefix}:{id}"

    def _positions(self, delivery: DeliveryId) -> str:
        return f"{self._positions_of_all}{delivery.app}/{delivery.sink}"

    @property
    def _positions_of_all(self) -> str:
        return f"semel:position:{self._sink.prefix}:"

    @property
    def _form(self) -> str:
        return f"semel:sink:{self._sink.prefix}"

    # --- connecting -------------------------------------------------------------------------------------------------

    def _connected(self) -> redis.Redis:
        if self._client is None:
            at, wait_s = self._sink.at, self._sink.timeout_s
            tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": at.options.get("ssl_ca")} if at.tls else {}
            self._client = redis.Redis(
                host=self._place[0],
                port=self._place[1],
                db=at.database,
                username=at.user,
                password=at.password,
                socket_timeout=wait_s,
                socket_connect_timeout=max(1.0, wait_s / 2),
                socket_keepalive=True,
                # By default it sends a command again, three times, after a lost connection. What was not answered is
                # Unknown here, and whoever claims next decides.
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                single_connection_client=True,
                client_name=re.sub(r"[^!-~]", "-", f"semel-{self._sink.name}")[:60],
                **tls,
            )
        return self._client

    def _script(self, text: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Its answer. By its hash, and whole where the server has not seen it (NOSCRIPT: it did nothing); on a cluster,
        at the node that holds the slot."""
        for _ in range(REDIRECTS_MAX):
            client = self._connected()
            try:
                sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
                try:
                    if len(keys) > KEYS_MANY and (line := client.connection) is not None:
                        said = packed(["EVALSHA", sha, str(len(keys)), *keys], arguments)
                        line.send_packed_command([said])  # type: ignore[no-untyped-call]
                        return client.parse_response(line, "EVALSHA")  # type: ignore[no-untyped-call]
                    return client.evalsha(sha, len(keys), *keys, *arguments)
                except exceptions.NoScriptError:
                    return client.eval(text, len(keys), *keys, *arguments)
            except exceptions.MovedError as moved:
                self.close()
                self._place = (moved.host or self._place[0], moved.port)
        raise exceptions.ClusterDownError("CLUSTERDOWN the slot is sent from node to node")

    def _trying(self, what: Callable[[], Answer]) -> Answer | NotDone:
        """What changes nothing, or may be done again."""
        try:
            return what()
        except exceptions.RedisError as why:
            return NotDone(self._lost(why))

    def _lost(self, why: exceptions.RedisError) -> str:
        """In one sentence; SinkError where waiting mends nothing. The client is connected anew afterwards."""
        text = brief(why)
        if isinstance(why, exceptions.AuthenticationError | exceptions.AuthorizationError):
            raise SinkError(f"{self._sink.where} refuses us: {text}. Check user, password and rights.") from None
        passing = isinstance(why, PASSING) or text.startswith(PASSING_WORDS)
        if isinstance(why, exceptions.ResponseError) and not passing:
            raise SinkError(f"{self._sink.where}: {text}.") from None
        self.close()
        self._place = (self._sink.at.host, self._sink.at.port)
        return f"{self._sink.where}: {text}"

    # --- the server and the form --------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        sink = self._sink
        known = value_type if sink.value_type is None else sink.value_type
        self._documents = documents_of(known, sink.where, sink.key, lambda name: "")
        prepared = self._trying(self._judged)
        return Done() if prepared is None else prepared

    def _judged(self) -> None:
        sink = self._sink
        client = self._connected()
        server: dict[str, Any] = client.info("server")
        version = str(server.get("valkey_version") or server.get("redis_version") or "0")
        if int(version.partition(".")[0]) < 6:
            raise SinkError(f"{sink.where}: it is version {version}; wanted is Redis 6 or newer, or Valkey.")
        cluster: dict[str, Any] = client.info("cluster")
        if cluster.get("cluster_enabled") and "{" not in sink.prefix:
            raise SinkError(
                f"{sink.where}: it is a cluster, and the keys of a batch, its marks and its position must lie in one "
                f'slot. Name a prefix with a hash tag: "{{{sink.plain_prefix}}}".'
            )
        said = msgspec.json.encode({"form": sink.form, "key": list(sink.key)}).decode()
        there = self._script("return redis.call('SET', KEYS[1], ARGV[1], 'NX') and '' or redis.call('GET', KEYS[1])",
                             [self._form], [said])  # fmt: skip
        if there and there.decode() != said:
            raise SinkError(
                f"{sink.where}: its keys were begun as {there.decode()}, declared is {said}. Name another prefix, or "
                f"remove the keys {sink.prefix}:* and semel:*:{sink.prefix}* first."
            )
        self._notes = self._weaknesses(self._connected())  # on a cluster, of the node that was found

    def _weaknesses(self, client: redis.Redis) -> list[str]:
        where = self._sink.where
        try:
            found = {
                name: client.config_get(name).get(name, "?")
                for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
            }
        except exceptions.ResponseError as why:
            return [
                f"{where}: its settings cannot be read ({brief(why)}): whether an acknowledged write survives its "
                "crash is not known here. Wanted are appendonly yes, appendfsync always, maxmemory-policy noeviction."
            ]
        notes = []
        again = "what is lost with it is sent again as long as the outbox holds it"
        if found["appendonly"] != "yes":
            notes.append(
                f"{where}: appendonly={found['appendonly']}: what it acknowledged since its last snapshot is lost in "
                f"its crash; {again}. CONFIG SET appendonly yes, appendfsync always."
            )
        elif found["appendfsync"] != "always":
            notes.append(
                f"{where}: appendfsync={found['appendfsync']}: what it acknowledged in the last second or more is lost "
                f"in a power cut; {again}. CONFIG SET appendfsync always."
            )
        if found["maxmemory-policy"] != "noeviction" and found["maxmemory"] not in ("0", "?"):
            notes.append(
                f"{where}: maxmemory-policy={found['maxmemory-policy']}: with its memory full it removes keys for "
                "good, rows and their marks among them, and says nothing. CONFIG SET maxmemory-policy noeviction."
            )
        return notes

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ----------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda: self._claim(delivery, log))

    def _claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        key = self._positions(delivery)
        word, *said = self._script(
            CLAIM,
            [key],
            [str(delivery.partition), log.topic_id, str(log.partitions), positions.here(), str(self._first(key))],
        )
        texts = [one.decode() for one in said]
        if word == b"other":
            other = positions.Stored(delivery.partition, texts[0], int(texts[1]))
            positions.same_log(delivery, log, [other], self._sink.where)
        epoch, incarnation, position = (int(text) for text in texts[:3])
        return Claim(delivery, epoch=epoch, incarnation=incarnation, position=position, run=texts[3], log=log)

    def _first(self, key: str) -> int:
        """The incarnation of a delivery that was never here: above those of sinks of other names (this one was renamed,
        say), whose offsets, in the marks of the rows, mean nothing beside ours. Looked for once in a sink's life."""
        read = "return redis.call('HGET', KEYS[1], 'incarnation') or '0'"
        if int(self._script(read, [key], [])):
            return 1  # not new
        there = [name.decode() for names in self._scanned(self._positions_of_all) for name in names]
        return 1 + max((int(self._script(read, [name], [])) for name in there), default=0)

    # --- a batch ------------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end and self._documents is not None, (start, end)
        batch = self._documents.batch(rows)
        self._steps.reached(Step.ROWS_BEFORE)
        keys, arguments = self._said(claim, batch)
        self._steps.reached(Step.SINK_BEFORE)
        if batch:
            try:
                taken, unread = self._script(ROWS, keys, arguments)
            except exceptions.RedisError as why:
                return self._unanswered(why, f"the rows [{start}, {end})")
            if taken < 0:
                raise SinkError(f"{self._sink.where}: {unread.decode()!r} is no mark of semel's. Remove or rename it.")
            if taken < len(batch):
                self._steps.reached(Step.SINK_STALE)
        self._steps.reached(Step.SINK_AFTER)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        outcome = self._moved(claim, start, end, run)
        self._steps.reached(Step.POSITION_AFTER)
        return outcome

    def _moved(self, claim: Claim, start: int, end: int, run: str) -> Outcome:
        said = [str(claim.delivery.partition), str(claim.epoch), str(start), str(end), run]
        try:
            word, *found = self._script(MOVE, [self._positions(claim.delivery)], said)
        except exceptions.RedisError as why:
            return Unknown(f"the rows up to {end} are there, their position: {self._lost(why)}")
        if word == b"done":
            return Done()
        epoch, position, holder = (one.decode() for one in found)
        if word == b"behind":
            return Unknown(
                f"{self._sink.where}: its position is {position}, behind {start}: it has lost what it acknowledged, "
                "which is sent again from there"
            )
        there = f"epoch {epoch}, position {position}, held by {holder}" if epoch else "its position is gone"
        return Fenced(f"{self._sink.where}: {there}; ours was epoch {claim.epoch}")

    def _said(self, claim: Claim, batch: Sequence[Document]) -> tuple[list[str], list[Any]]:
        kept_s = self._sink.keep_deleted_s
        arguments: list[Any] = [str(claim.incarnation), self._sink.form, str(time.time_ns() // 1_000_000)]
        arguments.append("" if kept_s is None else str(math.ceil(kept_s * 1_000)))
        payloads: Sequence[str | list[str]]
        if isinstance(batch, Ready) and self._sink.form == "json":
            # As texts: what MessagePack has for bytes is unknown to the server's library.
            ids, offsets, payloads = batch.ids, batch.rows.offsets, list(map(bytes.decode, batch.values))
            largest = max(map(len, batch.values))
        else:
            ids, offsets = [document.id for document in batch], [document.offset for document in batch]
            payloads = [self._payload(document) if document.value else "" for document in batch]
            largest = max((len(document.value) for document in batch), default=0)
        if largest > VALUE_BYTES_MAX:
            large = next(document for document in batch if len(document.value) > VALUE_BYTES_MAX)
            raise RowRefused(f"it has {len(large.value)} bytes, a string of Redis 512 MiB", large.offset)
        row, mark = self._row(""), self._mark("")
        keys = [*[row + id for id in ids], *[mark + id for id in ids]]
        return keys, [*arguments, msgspec.msgpack.encode([list(map(str, offsets)), payloads])]

    def _payload(self, document: Document) -> str | list[str]:
        if self._sink.form == "json":
            return document.value.decode()
        return [text for pair in texts(decode(document.value)).items() for text in pair]

    def _unanswered(self, why: exceptions.RedisError, what: str) -> Outcome:
        """Whether it happened. An error is an answer: the script changes nothing before the last that it can make."""
        refused = isinstance(
            why, exceptions.ResponseError | exceptions.BusyLoadingError | exceptions.AuthenticationError
        )
        never_left = isinstance(why.__cause__ or why.__context__, ConnectionRefusedError)
        told = f"{what}: {self._lost(why)}"
        return NotDone(told) if refused or never_left else Unknown(told)

    # --- for `semel sink` ---------------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._trying(lambda: self._remembered(self._positions(DeliveryId(app, self._sink.name, 0))))

    def _remembered(self, key: str) -> list[Remembered]:
        found = self._script("return redis.call('HGETALL', KEYS[1])", [key], [])
        said = {name.decode(): text.decode() for name, text in zip(found[::2], found[1::2], strict=True)}
        if "incarnation" not in said:
            return []
        log = LogIdentity(said["topic_id"], int(said["partitions"]))
        partitions = sorted(int(name.partition(".")[0]) for name in said if name.endswith(".epoch"))
        # What was said of another incarnation is no position in this one, as for the claim.
        here = {p: said.get(f"{p}.incarnation") == said["incarnation"] for p in partitions}
        return [
            Remembered(
                p, int(said[f"{p}.epoch"]), int(said["incarnation"]), int(said[f"{p}.position"]) if here[p] else 0,
                said[f"{p}.run"] if here[p] else "", log, said.get(f"{p}.holder", ""),
            )
            for p in partitions
        ]  # fmt: skip

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        log = to[0].log
        said = [str(to[0].incarnation), log.topic_id, str(log.partitions), positions.OPERATOR, str(len(seen))]
        for one in seen:
            said += [str(one.partition), str(one.epoch), str(one.position), one.run]
        for one in to:
            said += [str(one.partition), str(one.position), one.run]
        try:
            changed = self._script(OPERATE, [self._positions(DeliveryId(app, self._sink.name, 0))], said).decode()
        except exceptions.RedisError as why:
            return self._unanswered(why, "the move")
        if changed:
            return Fenced(f"{self._sink.where}: {positions.meanwhile(changed)}")
        return Done()

    # --- for semel verify ---------------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        client, found = self._connected(), []
        begins = len(self._row(""))
        kind = "string" if self._sink.form == "json" else "hash"
        for keys in self._scanned(self._row("")):
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                (pipeline.get if kind == "string" else pipeline.hgetall)(key)
            for key, value in zip(keys, pipeline.execute(), strict=True):
                assert value, f"{key[begins:]!r} went while it was read"
                if kind == "string":
                    found.append(self.canonical(value))
                else:
                    found.append(_sorted({name.decode(): text.decode() for name, text in value.items()}))
        return found

    def canonical(self, value: bytes) -> bytes:
        assert self._documents is not None, "prepare comes first"
        fields = msgspec.json.decode(value, type=dict[str, Any])
        return self._documents.canonical(fields) if self._sink.form == "json" else _sorted(texts(fields))

    def _scanned(self, begin: str) -> Iterator[list[bytes]]:
        """Each key once, in lists."""
        client = self._connected()
        pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in begin) + "*"
        seen: set[bytes] = set()
        cursor = 0
        while True:
            answer: Any = client.scan(cursor, match=pattern, count=SCAN)
            cursor, keys = answer
            fresh = [key for key in dict.fromkeys(keys) if key not in seen]
            seen.update(fresh)
            if fresh:
                yield fresh
            if cursor == 0:
                return

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only keys that it has named itself.")
        prefix = self._sink.prefix
        for begin in (f"{prefix}:", f"semel:mark:{prefix}:", f"semel:position:{prefix}:"):
            for keys in self._scanned(begin):
                self._connected().unlink(*keys)
        self._connected().unlink(self._form)


def texts(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a hash: a text as it is, anything else as its JSON; null is no field."""
    return {
        name: value if type(value) is str else str(value) if type(value) is int else _encode(value).decode()
        for name, value in fields.items()
        if value is not None
    }


_encode = msgspec.json.Encoder().encode


def _sorted(fields: dict[str, str]) -> bytes:
    return msgspec.json.encode(fields, order="sorted")


def packed(words: Sequence[str], more: Sequence[str | bytes]) -> bytes:
    """A command as the protocol has it (RESP: an array of bulk strings)."""
    text = "".join(words)
    if text.isascii():
        written = "".join([f"${len(word)}\r\n{word}\r\n" for word in words]).encode()
    else:
        written = b"".join([b"$%d\r\n%s\r\n" % (len(word), word) for word in map(str.encode, words)])
    rest = [word if isinstance(word, bytes) else word.encode() for word in more]
    end = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in rest)
    return b"*%d\r\n%s%s" % (len(words) + len(more), written, end)


def brief(why: BaseException) -> str:
    """The first line; it never holds the password, which the client does not print."""
    return (str(why).strip().split("\n")[0] or type(why).__name__).rstrip(".")
