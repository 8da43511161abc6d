"""Prometheus 2.42 by remote write: the contract kit, planted mistakes, and where its memory ends."""

from __future__ import annotations

import itertools
import select
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from semel.contract import Row
from semel.ports import Done, NotDone, Unknown
from semel.sinks import Prometheus
from semel.sinks.sink import RowRefused, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import prometheus_subjects as subjects
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.values import Total, claimed, held, opened, rows
from tests.support.prometheus import PrometheusProcess, samples


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    with PrometheusProcess(tmp_path_factory.mktemp("prometheus")) as made:
        yield made


@pytest.fixture(scope="session")
def tolerant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    with PrometheusProcess(tmp_path_factory.mktemp("tolerant"), late="30m") as made:
        yield made


class TestInOrder(ContractTests):
    """Its defaults: a sample that is not the newest of its series is refused, ours among them."""

    @pytest.fixture
    def subject(self, server: PrometheusProcess) -> Subject:
        return subjects.subject(subjects.absolute, server)


class TestLateOnesAreTaken(ContractTests):
    """With an out-of-order window: our own sample again is taken, and is no second one."""

    @pytest.fixture
    def subject(self, tolerant: PrometheusProcess) -> Subject:
        # Prometheus 2.42 does not delete late samples: what the trials made stays until the server goes.
        return replace(subjects.subject(subjects.absolute, tolerant), orphans=None)


# --- planted mistakes ------------------------------------------------------------------------------------------------


def _increments(connection: Any) -> Any:
    """As a counter in the process: each record adds to what was sent last."""
    total: dict[Any, float] = {}
    sent = connection._sent

    def added(samples: Any) -> None:
        made = []
        for sample in samples:
            total[sample.series] = total.get(sample.series, 0.0) + sample.value
            made.append(sample._replace(value=total[sample.series]))
        sent(made)

    connection._sent = added
    return connection


def _refused_is_done(connection: Any) -> Any:
    """400 taken for success: "it is only a duplicate"."""
    taken = connection._taken

    def done(samples: Any) -> None:
        taken(samples)

    connection._taken = done
    return connection


def _refused_is_final(connection: Any) -> Any:
    """400 taken for a refusal of the first record, as its words say."""
    connection._missing = lambda samples: list(samples)
    return connection


def _stamp_of_the_clock(connection: Any) -> Any:
    clock = itertools.count(1_000_000)
    sent = connection._sent
    connection._sent = lambda samples: sent([one._replace(at_ms=next(clock)) for one in samples])
    return connection


def _unknown_is_failure(connection: Any) -> Any:
    def write(real: Any, *words: Any) -> Any:
        outcome = real.write(*words)
        return NotDone(outcome.reason) if isinstance(outcome, Unknown) else outcome

    return Altered(connection, write=write)


@pytest.mark.parametrize(
    ("alter", "names"),
    [
        (_increments, ("plain", "replay")),
        (_refused_is_final, ("replay", "zombie")),
        (_unknown_is_failure, ("lost_after",)),
    ],
    ids=["increments", "400 is final", "unknown"],
)
def test_a_mistake_is_found(alter: Any, names: tuple[str, ...], server: PrometheusProcess) -> None:
    """S1, S8, S9: what is not absolute; what a refusal does not say; a failure said of an unknown."""
    make = lambda address, suffix: Planted(subjects.absolute(address, suffix), alter)  # noqa: E731
    subject = replace(subjects.subject(make, server), read=every)
    for name in names:
        with pytest.raises((Refused, RowRefused)):
            run(subject, getattr(trials, name))


def every(address: str, suffix: str) -> list[tuple[str, int]]:
    return [(labels["id"], int(value)) for labels, _, value in samples(address, f"entries{suffix}")]


def test_stamps_of_the_clock_repeat(tolerant: PrometheusProcess) -> None:
    """S7: a sample at the time of sending is another one each time it is sent."""
    make = lambda address, suffix: Planted(subjects.absolute(address, suffix), _stamp_of_the_clock)  # noqa: E731
    with pytest.raises(Refused, match="more"):
        run(replace(subjects.subject(make, tolerant), read=every), trials.replay)


def test_a_refusal_that_is_taken_for_a_success_loses(server: PrometheusProcess) -> None:
    """One sample of a batch is late: the server takes none of it, and Done would be said of all."""
    for alter, lost in ((_refused_is_done, True), (lambda connection: connection, False)):
        sink = made(server)
        connection = alter(opened(sink))
        claim = claimed(connection, sink)
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 50)])) == Done()
        batch = rows(sink, [Total("b", 51), Total("a", 50), Total("a", 52)], 1)
        assert connection.write(claim, 1, 4, "r", batch) == Done()
        late = rows(sink, [Total("b", 53), Total("a", 7), Total("a", 54)], 4)
        if lost:
            assert connection.write(claim, 4, 7, "r", late) == Done()
            assert held(connection) == [("a", 50.0), ("a", 52.0), ("b", 51.0)], "the planted bug: two are lost"
            continue
        with pytest.raises(RowRefused, match="comes later than it may") as refused:
            connection.write(claim, 4, 7, "r", late)
        assert refused.value.offset == 5
        assert held(connection) == [("a", 50.0), ("a", 52.0), ("b", 51.0), ("b", 53.0)]


# --- where its memory ends -------------------------------------------------------------------------------------------

_numbers = itertools.count()


def made(server: PrometheusProcess, **said: Any) -> Prometheus:
    given: dict[str, Any] = {"value": "total", "labels": ["customer"], "at": "total", **said}
    return Prometheus(
        said.pop("url", server.url), f"m{next(_numbers)}", **{k: v for k, v in given.items() if k != "url"}
    )


def test_what_is_past_the_retention_is_refused_and_said(server: PrometheusProcess) -> None:
    """S7. Ours, a newer one behind it, then the samples are gone (removed here as retention does, but sooner). The same
    batch again: whether it was there nobody can tell. It is refused, nothing is put back."""
    sink = made(server)
    connection = opened(sink)
    claim = claimed(connection, sink)
    first, second = rows(sink, [Total("a", 10), Total("a", 20)]), rows(sink, [Total("a", 30)], 2)
    assert connection.write(claim, 0, 2, "r", first) == Done()
    assert connection.write(claim, 2, 3, "r", second) == Done()
    assert connection.write(claim, 0, 2, "r", first) == Done(), "within its memory"
    gone = urllib.request.Request(
        f"{server.url}/api/v1/admin/tsdb/delete_series?match[]={sink.metric}&start=0&end=0.025", method="POST"
    )
    urllib.request.urlopen(gone).close()
    assert held(connection) == [("a", 30.0)]
    with pytest.raises(RowRefused, match=r"its retention \(.*\) is over: which of the two is unknown") as refused:
        connection.write(claim, 0, 2, "r", first)
    assert refused.value.offset == 0 and held(connection) == [("a", 30.0)]


def test_the_window_is_what_the_server_keeps(tmp_path: Path, server: PrometheusProcess) -> None:
    """Declared is what it is held to; the contract then says what it has."""
    with PrometheusProcess(tmp_path, options=["--storage.tsdb.retention.time=2d"]) as short:
        with pytest.raises(SinkError, match=r"keeps samples for 2d .*retention_s=172800"):
            opened(made(short))
        sink = made(short, retention_s=86_400)
        assert str(sink.contract.window) == "86400 s"
        connection = opened(sink)
        assert str(sink.contract.window) == "172800 s"
        assert "never late" in " ".join(connection.notes())
    with pytest.raises(SinkError, match="enable-remote-write-receiver"):
        opened(made(server, url=f"{server.url}/elsewhere"))


def test_a_connection_that_the_server_has_closed_is_not_used(tmp_path: Path) -> None:
    """Prometheus closes what was idle for five minutes (here less). A request over that connection would be unknown,
    and reading back what is there would fail: after ten minutes of kills `semel verify` ended with a broken pipe."""
    with PrometheusProcess(tmp_path, options=["--web.read-timeout=200ms"]) as brief:
        sink = made(brief)
        connection: Any = opened(sink)
        claim = claimed(connection, sink)
        for number in range(2):
            assert connection.write(claim, number, number + 1, "r", rows(sink, [Total("a", number)], number)) == Done()
            closed = select.poll()
            closed.register(connection._made.sock, select.POLLIN)
            assert closed.poll(10_000), "it was not closed: nothing was tried"
        assert held(connection) == [("a", 0.0), ("a", 1.0)]


def test_a_second_value_at_a_stamp_is_refused(tolerant: PrometheusProcess) -> None:
    """In a batch by us, over batches by the server and by what is read back; what is there stays."""
    sink = made(tolerant, at=None)
    connection = opened(sink)
    claim = claimed(connection, sink)

    def at(offset: int, total: int) -> Row:
        return Row(offset, 5_000, None, sink.encode_value(Total("a", total)))

    with pytest.raises(RowRefused, match="another value at 5000 ms already"):
        connection.write(claim, 0, 2, "r", [at(0, 1), at(1, 2)])
    assert connection.write(claim, 0, 1, "r", [at(0, 1)]) == Done()
    with pytest.raises(RowRefused, match="never replaced") as refused:
        connection.write(claim, 1, 2, "r", [at(1, 2)])
    assert refused.value.offset == 1 and held(connection) == [("a", 1.0)]


# --- the wire and the declaration ------------------------------------------------------------------------------------


class Answers:
    """An endpoint that answers as it is told, one after the other, then 204."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.left, self.seen = list(answers), 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.seen += 1
                status, headers = outer.left.pop(0) if outer.left else (204, {})
                self.send_response(status)
                for name, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.mark.parametrize(
    ("answers", "kind", "requests"),
    [
        ([(429, {"Retry-After": "0"}), (503, {})], Done, 3),
        ([(429, {"Retry-After": "0"})] * 3, NotDone, 3),
        ([(500, {"Retry-After": "0"})] * 3, Unknown, 3),
        ([(401, {})], SinkError, 1),
    ],
)
def test_what_has_no_time_is_tried_a_few_times(answers: Any, kind: Any, requests: int) -> None:
    """Bounded; then it is said what is known of it."""
    endpoint = Answers(*answers)
    sink = Prometheus(endpoint.url, "m", value="total", labels=["customer"], headers={"Authorization": "hush-hush"})
    connection = sink.open()
    try:
        found: Any = connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)]))
    except SinkError as why:
        found = why
        assert "hush" not in str(why)
    assert isinstance(found, kind) and endpoint.seen == requests
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["9x"]}, {"labels": ["__x"]}, {"labels": ["a", "a"]}, {"labels": ["total"]}, {"constant": {"x": ""}},
        {"labels": ["x"], "constant": {"x": "1"}}, {"url": "http://me:pw@h:9090"}, {"url": "ftp://h"},
        {"metric": "a-b"},
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_refused(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"url": "http://h:9090", "metric": "m", "value": "total", **wrong}
    with pytest.raises(SinkError) as refused:
        Prometheus(given.pop("url"), given.pop("metric"), **given)
    assert "pw" not in str(refused.value)


def test_a_series_lies_in_one_partition() -> None:
    """Whatever the stream's key: samples of one series would overtake each other."""
    sink = Prometheus("http://h", "m", value="total", labels=["customer"])
    assert sink.encode_key(Total("a", 1)) == sink.encode_key(Total("a", 2)) != sink.encode_key(Total("b", 1))
    assert sink.partitions_outbox and sink.key is None
