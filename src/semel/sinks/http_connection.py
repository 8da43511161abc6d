"""The requests of the HTTP sink: several on their way, records of one key in order, each sent until it is answered.

Invariant: Done means that every row of the batch has a final answer. What this process has been told is remembered, so
that a batch tried again sends only the rest; what nobody here remembers is sent again, and answered from the receiver's
table.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import SplitResult

import msgspec

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.http import HTTP, Again, Answered, Meaning, Misplaced, Refused, Reused, meaning
from semel.sinks.sink import Diverged, RowRefused, SinkError

BACKOFF_S, BACKOFF_MAX_S = 0.05, 2.0
BODY_MAX = 1 << 20


class HTTPConnection:
    """See `ports.SinkConnection`, and where keys expire `window.Forgetful`. The group's offsets, or the delivery topic,
    are the position; its claim fences nobody, and need not: the receiver gives a superseded owner's requests their
    first answer."""

    keeps_nothing = True  # of a position

    def __init__(self, sink: HTTP, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._lines = [_Line(sink.url, sink.timeout_s) for _ in range(sink.in_flight)]
        self._pool = ThreadPoolExecutor(sink.in_flight, "semel-http")
        self._answered: dict[tuple[str, int], set[int]] = {}
        self._not_before_s = 0.0
        self._until_ms: int | None = None

    def prepare(self, value_type: object) -> Done | NotDone:
        url = self._sink.url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            socket.create_connection((url.hostname or "", port), self._sink.timeout_s).close()
        except OSError as why:
            return NotDone(f"{self._sink.where}: {why.strerror or why}")
        return Done()

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        if self._sink.forgets_after_s is None:
            return Claim(delivery, epoch=0, incarnation=1, position=0, run="", log=log)
        return Claim(delivery, epoch=0, incarnation=0, position=-1, run="", log=log)

    def seen(self) -> str | NotDone:
        return ""

    def inserts_since(self, seen: str) -> int | NotDone:
        return 0

    def remind(self, until_ms: int | None, seen: str) -> None:
        self._until_ms = until_ms

    def late(self) -> bool:
        """Whether the receiver may have forgotten the keys of the cut that is under way."""
        return self._until_ms is not None and time.time() * 1000 >= self._until_ms

    # --- for `semel sink`: what there is to move lies in the delivery topic -----------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return []

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return Done()

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        if time.monotonic() < self._not_before_s:
            return NotDone(f"{self._sink.where}: it asked for a pause (Retry-After)")
        if not claim.log.topic_id:
            raise SinkError(
                f"{self._sink.where}: this log does not tell topic ids, so keys of a topic made anew could not be told "
                "from old ones. Use a log that does (Apache Kafka 2.8 or newer, semel's own)."
            )
        # A topic made anew has another id; its offsets begin again, under other keys.
        incarnation = f"{claim.log.topic_id}.{claim.log.partitions}.{claim.incarnation}{self._sink.suffix}"
        partition = claim.delivery.partition
        known = self._answered.setdefault((incarnation, partition), set())
        known.difference_update([offset for offset in known if offset < start])
        batch = _Batch(self, claim, f"{incarnation}/{partition}", rows, known)
        self._steps.reached(Step.ROWS_BEFORE)
        outcome = batch.sent(self._lines, self._pool)
        if isinstance(outcome, Done):
            known.clear()
            self._steps.reached(Step.ROWS_AFTER)
        return outcome

    def notes(self) -> Sequence[str]:
        if self._sink.forgets_after_s is None:
            return ()
        return (
            f"{self._sink.where}: declared to forget its keys after {self._sink.forgets_after_s:g} s; a delivery whose "
            "last requests may have been sent longer ago than that stops, and a person looks.",
        )

    def rows(self) -> Sequence[bytes]:
        url = self._sink.rows_url
        if url is None:
            raise SinkError(f"{self._sink.where}: say where its rows can be read (rows_url=): a JSON array.")
        line = _Line(url, self._sink.timeout_s)
        try:
            status, _, body = line.exchange("GET", self._sink.headers, None)
        except (OSError, http.client.HTTPException) as why:
            raise SinkError(f"{self._sink.where}: its rows cannot be read: {why}.") from None
        finally:
            line.close()
        if status != 200:
            raise SinkError(f"{self._sink.where}: its rows cannot be read: rows_url answers {status}.")
        return [msgspec.json.encode(row, order="sorted") for row in msgspec.json.decode(body, type=list[object])]

    def canonical(self, value: bytes) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(value), order="sorted")

    def drop(self) -> None:
        """The sink has made nothing that it could remove."""
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes nothing from a receiver.")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for line in self._lines:
            line.close()


class _Batch:
    """The rows of one write, each until it has its final answer, or until the patience is at its end."""

    def __init__(
        self, connection: HTTPConnection, claim: Claim, place: str, rows: Sequence[Row], known: set[int]
    ) -> None:
        self._connection, self._sink, self._steps = connection, connection._sink, connection._steps
        self._sender = f"{claim.delivery.app}.{claim.delivery.sink}{self._sink.suffix}"
        self._place = place
        self._rows = [row for row in rows if row.offset not in known]
        self._open = sorted(row.offset for row in self._rows)  # without a final answer yet
        self._known = known
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._deadline_s = time.monotonic() + self._sink.patience_s
        self._given_up: list[Again] = []
        self._happened = len(self._rows) < len(rows)
        self._errors: list[tuple[int, BaseException]] = []

    def sent(self, lines: Sequence[_Line], pool: ThreadPoolExecutor) -> Outcome:
        chains: list[list[Row]] = [[] for _ in lines]
        for row in self._rows:
            chains[zlib.crc32(row.key or b"%d" % row.offset) % len(chains)].append(row)
        work = [(line, chain) for line, chain in zip(lines, chains, strict=True) if chain]
        if len(work) == 1:
            self._chain(*work[0])
        else:
            for future in [pool.submit(self._chain, line, chain) for line, chain in work]:
                future.result()
        if self._errors:
            # What is no refusal of a row is about all of them; of refused rows the first is named.
            refused = [error for error in self._errors if isinstance(error[1], RowRefused)]
            others = [error for error in self._errors if not isinstance(error[1], RowRefused)]
            raise (others or sorted(refused, key=lambda error: error[0]))[0][1]
        if not self._open:
            return Done()
        why = f"{self._sink.where}: {self._given_up[0].reason}" if self._given_up else f"{self._sink.where}: stopped"
        definite = not self._happened and not any(given.unknown for given in self._given_up)
        return NotDone(why) if definite else Unknown(why)

    def _chain(self, line: _Line, rows: Sequence[Row]) -> None:
        for row in rows:
            if self._stop.is_set():
                return
            try:
                if not self._row(line, row):
                    return
            except BaseException as why:
                self._errors.append((row.offset, why))
                self._stop.set()
                return

    def _row(self, line: _Line, row: Row) -> bool:
        """Whether it has its final answer. Raises what a person must settle."""
        pause_s = BACKOFF_S
        while not self._stop.is_set():
            self._steps.reached(Step.SINK_BEFORE)
            found = self._asked(line, row)
            self._steps.reached(Step.SINK_AFTER)
            match found:
                case Answered():
                    with self._lock:
                        self._open.remove(row.offset)
                        self._known.add(row.offset)
                        self._happened = True
                        self._deadline_s = time.monotonic() + self._sink.patience_s
                    return True
                case Refused(reason, kept):
                    raise RowRefused(
                        f"{reason}. Once the receiver takes it: an error that it has kept with the key "
                        f'"{self._place}/{row.offset}" is replayed until it is removed there (docs/receiver.md)',
                        row.offset,
                        "" if kept else "its answer does not say that it keeps it with the key (Semel-Answer)",
                    )
                case Reused(reason):
                    raise Diverged(
                        f"{self._sink.where} knows the key {self._place}/{row.offset} with another request ({reason}). "
                        "The log is not the one that was delivered from, or another sender has this name. Nothing "
                        "more is delivered: compare the record at that offset with what the receiver has."
                    )
                case Misplaced(reason):
                    raise SinkError(f"{self._sink.where}: {reason}. Nothing is lost; start again when it is mended.")
                case Again():
                    wait_s = max(pause_s, found.after_s)
                    pause_s = min(2 * pause_s, BACKOFF_MAX_S)
                    self._happened = self._happened or found.unknown
                    if time.monotonic() + wait_s > self._deadline_s:
                        self._given_up.append(found)
                        if found.after_s:
                            self._connection._not_before_s = time.monotonic() + found.after_s
                        self._stop.set()
                        return False
                    self._stop.wait(wait_s)
        return False

    def _asked(self, line: _Line, row: Row) -> Meaning:
        floors = self._sink.forgets_after_s is None
        if self._connection.late():
            return Again("its keys are forgotten by now, so the request is not sent", unknown=True)
        headers = {**self._sink.headers, "Idempotency-Key": f'"{self._place}/{row.offset}"'}
        if floors:
            with self._lock:
                floor = self._open[0]
            quoted = self._sender.replace("\\", "\\\\").replace('"', '\\"')
            headers["Semel-Floor"] = f'{floor};sender="{quoted}"'
        try:
            status, answered, body = line.exchange("POST", headers, row.value or b"null")
        except ConnectionRefusedError as why:
            return Again(why.strerror or str(why))  # it cannot have arrived
        except (OSError, http.client.HTTPException) as why:
            return Again(f"no answer: {str(why) or type(why).__name__}", unknown=True)
        return meaning(status, answered, body, floors, time.time())


class _Line:
    """One connection, used by one thread at a time: a request, its answer, and nothing by itself."""

    def __init__(self, url: SplitResult, timeout_s: float) -> None:
        self._url = url
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._make: Callable[[], http.client.HTTPConnection] = lambda: kind(
            url.hostname or "", url.port, timeout=timeout_s
        )
        self._connection: http.client.HTTPConnection | None = None

    def exchange(
        self, method: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        self._connection = self._connection or self._make()
        try:
            self._connection.request(
                method, target, body, {**({"Content-Type": "application/json"} if body else {}), **headers}
            )
            response = self._connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            text = response.read(BODY_MAX + 1)
            if len(text) > BODY_MAX or response.will_close:
                self.close()
            return response.status, found, text
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.close()
