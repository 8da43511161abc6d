"""Batches of one delivery as remote-write requests to Prometheus.

Invariant: a refusal (400) says nothing of who wrote what is there: it is also the answer to a sample that was written
before and is not the newest of its series. So it is read back: what is there with the same value is done, whoever
wrote it; what is there with another one is refused; what is missing is sent, and a record is blamed only when it was
refused alone. Everything else is unknown or not yet, and the same samples go again.
"""

from __future__ import annotations

import http.client
import re
import select
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec

from semel.contract import Claim, DeliveryId, LogIdentity, Row, Window
from semel.ports import Done, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.columns import decode
from semel.sinks.prometheus_form import NAME, Form, Sample, Series, by_series, encoded, samples_of
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.prometheus import Prometheus

TRIES, PAUSE_S, PAUSE_MAX_S = 3, 0.1, 2.0  # of what the server has no time for
SAMPLES_MAX = 5_000  # of a request: its sender's and its receiver's default
WRITES = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}


class _Away(Exception):
    """No answer, or none that is final. `arrived`: it may have had its effect."""

    def __init__(self, reason: str, arrived: bool) -> None:
        super().__init__(reason)
        self.arrived = arrived


class PrometheusConnection:
    """See `ports.SinkConnection`. The group's offsets are the position; its claim fences nobody, and need not: what is
    there is never replaced."""

    def __init__(self, sink: Prometheus, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._form = Form(sink.metric, sink.value, sink.labels, sink.at_field, sink.constant)
        self._made: http.client.HTTPConnection | None = None
        self._notes: list[str] = []

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with suppress(OSError):
                made.close()

    def prepare(self, value_type: object) -> Done | NotDone:
        try:
            self._answered(self._exchange("POST", "/api/v1/write", WRITES, encoded(())))
            self._notes = self._settings()
        except _Away as why:
            return NotDone(str(why))
        return Done()

    def _settings(self) -> list[str]:
        """Of the server: how long it keeps samples, which is the window, and how late one may come."""
        sink = self._sink
        told = self._json("/api/v1/status/runtimeinfo")
        text = str(told.get("storageRetention", "")) if told else ""
        seconds = duration_s(text)
        notes = []
        if seconds is None:
            notes.append(f"{sink.where}: it does not tell how long it keeps samples; retention_s={sink.retention_s:g}.")
        elif seconds < sink.retention_s:
            raise SinkError(
                f"{sink.where}: it keeps samples for {text} ({seconds:g} s), the sink is declared with "
                f"{sink.retention_s:g} s. Declare retention_s={seconds:g}, or start it with a longer "
                "--storage.tsdb.retention.time."
            )
        else:
            sink.window = Window(seconds=seconds)
        if re.search(r"\d\s*[KMGTPE]?i?B\b", text):
            notes.append(f"{sink.where}: it forgets by size, too ({text}): its window can be shorter.")
        config = self._json("/api/v1/status/config")
        late = re.search(r"out_of_order_time_window:\s*(\S+)", str(config.get("yaml", "")) if config else "")
        how = f"up to {late[1]} late" if late and duration_s(late[1]) else "never late: each series in order"
        return [*notes, f"{sink.where}: it takes samples {how}."]

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return Claim(delivery, epoch=0, incarnation=1, position=0, run="", log=log)

    # --- a batch ------------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        samples = samples_of(self._form, rows)
        self._steps.reached(Step.ROWS_BEFORE)
        arrived = False
        try:
            for first in range(0, len(samples), SAMPLES_MAX):
                self._sent(samples[first : first + SAMPLES_MAX])
                arrived = True
        except _Away as why:
            return Unknown(str(why)) if arrived or why.arrived else NotDone(str(why))
        self._steps.reached(Step.ROWS_AFTER)
        return Done()

    def _sent(self, samples: Sequence[Sample]) -> None:
        """All of them are there when this returns. Raises RowRefused for the first that is refused."""
        if self._taken(samples) is None:
            return
        missing = self._missing(samples)
        if missing:
            self._bisected(missing)

    def _bisected(self, samples: Sequence[Sample]) -> None:
        """In the order of the records, so that none is in the way of one before it."""
        why = self._taken(samples)
        if why is None:
            return
        if len(samples) == 1:
            one = samples[0]
            raise RowRefused(
                f"Prometheus refuses its sample at {one.at_ms} ms: {why}. Either it comes later than it may (a newer "
                "one of its series is there, and out_of_order_time_window is shorter), or it was there before and its "
                f"retention ({self._sink.window}) is over: which of the two is unknown",
                one.offset,
            )
        half = len(samples) // 2
        self._bisected(samples[:half])
        self._bisected(samples[half:])

    def _taken(self, samples: Sequence[Sample]) -> str | None:
        """None: they are there. Else why all of them were refused: a request is taken whole, or not at all."""
        status, _, body = self._answered(self._exchange("POST", "/api/v1/write", WRITES, encoded(samples)), also=(400,))
        return _told(body) or "it does not say why" if status == 400 else None

    def _missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """What is not there yet. Raises RowRefused where another value lies at the stamp."""
        missing = []
        for series, wanted in by_series(samples).items():
            there = self._read(series, wanted[0].at_ms, wanted[-1].at_ms)
            for sample in wanted:
                held = there.get(sample.at_ms)
                if held is None:
                    missing.append(sample)
                elif held != sample.value:
                    raise RowRefused(
                        f"its series holds {held!r} at {sample.at_ms} ms, and this is {sample.value!r}: what is there "
                        "is never replaced. Somebody else writes this series, or two records have one stamp",
                        sample.offset,
                    )
        return sorted(missing)

    def _read(self, series: Series, first_ms: int, last_ms: int) -> dict[int, float]:
        """The raw samples of a series within both stamps, by stamp."""
        labels = ",".join(f"{name}={msgspec.json.encode(text).decode()}" for name, text in series)
        wanted = dict(series)
        for found, values in self._query(f"{{{labels}}}", last_ms, last_ms - first_ms + 1):
            if found == wanted:  # series with more labels match, too
                return {at_ms: value for at_ms, value in values if first_ms <= at_ms <= last_ms}
        return {}

    def _query(
        self, selector: str, last_ms: int, range_ms: int
    ) -> Iterable[tuple[Mapping[str, str], list[tuple[int, float]]]]:
        asked = urlencode({"query": f"{selector}[{range_ms}ms]", "time": f"{last_ms / 1000:.3f}"}).encode()
        _, _, body = self._answered(self._exchange("POST", "/api/v1/query", FORM, asked))
        for one in msgspec.json.decode(body)["data"]["result"]:
            yield one["metric"], [(round(at * 1000), float(value)) for at, value in one["values"]]

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request and its answer; again, a few times, only what the server had no time for. Raises _Away."""
        for count in range(TRIES):
            status, told, text = self._once(method, path, headers, body)
            if status != 429 and status < 500:
                break
            if count + 1 < TRIES:
                after = told.get("retry-after", "")
                time.sleep(min(float(after) if after.isdigit() else PAUSE_S * 2**count, PAUSE_MAX_S))
        return status, told, text

    def _once(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        url = self._sink.address
        if self._made is not None and _closed(self._made):
            self.close()
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        try:
            if self._made is None:
                made = kind(url.hostname or "", url.port, timeout=self._sink.timeout_s)
                made.connect()
                self._made = made
        except OSError as why:
            raise _Away(f"{self._sink.where}: {why.strerror or why}", arrived=False) from None
        try:
            self._made.request(method, url.path.rstrip("/") + path, body, {**self._sink.headers, **headers})
            answer = self._made.getresponse()
            return answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read()
        except (OSError, http.client.HTTPException) as why:
            self.close()
            raise _Away(f"{self._sink.where}: no answer: {str(why) or type(why).__name__}", arrived=True) from None

    def _answered(
        self, found: tuple[int, Mapping[str, str], bytes], also: Sequence[int] = ()
    ) -> tuple[int, Mapping[str, str], bytes]:
        status, _, body = found
        if 200 <= status < 300 or status in also:
            return found
        told = f"{self._sink.where}: it answers {status}{f': {text}' if (text := _told(body)) else ''}"
        if status == 429 or status >= 500:
            raise _Away(told, arrived=status != 429)
        hint = "Give it credentials (headers=) that it takes" if status in (401, 403) else "Check the address"
        if status == 404:
            hint = "Start it with --web.enable-remote-write-receiver, or mend the address"
        raise SinkError(f"{told}. {hint}; nothing is lost.")

    def _json(self, path: str) -> dict[str, Any]:
        """What the server says of itself; {} where it does not (others take remote writes, too)."""
        status, told, body = self._exchange("GET", path, {}, None)
        if status != 200:
            self._answered((status, told, body), also=(404, 405, 400))
            return {}
        data = msgspec.json.decode(body).get("data")
        return data if isinstance(data, dict) else {}

    # --- for `semel verify` -------------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        """Every sample of the metric, up to a year from now: its labels, value and, where it is a field, its time."""
        last_ms = int(time.time() * 1000) + int(UNITS_S["y"] * 1000)
        try:
            found = list(self._query(f'{{{NAME}="{self._sink.metric}"}}', last_ms, last_ms))
        except _Away as why:
            raise SinkError(f"{why}. Try again when the server answers.") from None
        return [self._row(labels, at_ms, value) for labels, values in found for at_ms, value in values]

    def _row(self, labels: Mapping[str, str], at_ms: int, value: float) -> bytes:
        row: dict[str, object] = {label: labels.get(label, "") for label in self._sink.labels}
        row[self._sink.value] = value + 0.0
        if self._sink.at_field is not None:
            row[self._sink.at_field] = at_ms
        return msgspec.json.encode(row, order="sorted")

    def canonical(self, value: bytes) -> bytes:
        decode(value)
        (sample,) = samples_of(self._form, [Row(0, 0, None, value)])
        return self._row(dict(sample.series), sample.at_ms, sample.value)

    def drop(self) -> None:
        """Where its admin API is on; else the samples go when their retention is over."""
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only series that it has named itself.")
        asked = urlencode({"match[]": f'{{{NAME}="{self._sink.metric}"}}'})
        with suppress(_Away):
            self._exchange("POST", f"/api/v1/admin/tsdb/delete_series?{asked}", {}, b"")


def _closed(connection: http.client.HTTPConnection) -> bool:
    """By the server, while nothing was asked (Prometheus does it after five minutes): there is something to read, and
    nothing that we would want. A request over it would be one of which nobody knows whether it arrived."""
    if connection.sock is None:
        return True
    waited = select.poll()  # select() knows no descriptor above 1,023
    waited.register(connection.sock, select.POLLIN)
    return bool(waited.poll(0))


def _told(body: bytes) -> str:
    return " ".join(body[:300].decode(errors="replace").split())


def duration_s(text: str) -> float | None:
    """15d, 1h30m, "15d or 10GiB": the time in it; None where there is none."""
    found = re.findall(r"(\d+)(ms|[smhdwy])(?![a-zA-Z])|(\d+)(ms|[smhdwy])(?=\d)", text)
    if not found:
        return None
    return sum(float(a or c) * UNITS_S[b or d] for a, b, c, d in found)
