"""An HTTP endpoint into the log: a request has its effect once, whatever its sender repeats."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from semel import Topic
from semel.host.free_port import free_port
from semel.ports import Step
from semel.receiver import rules
from semel.sources import HTTPEndpoint, http_endpoint_connection
from semel.sources.http_endpoint_keys import TakenKeys
from semel.sources.source import SourceError
from tests.sources.world import Died, Reader, die, keys, values
from tests.support.outboxlog import OutboxLog


@dataclass(frozen=True)
class Order:
    id: int
    customer: str = "c"


@pytest.fixture
def topic() -> Topic[str, Order]:
    source = HTTPEndpoint(f"127.0.0.1:{free_port()}", "/orders", key="customer")
    return Topic("orders", key=str, value=Order, source=source, partitions=2)


def ask(topic: Topic[Any, Any], body: str, key: str | None = '"k"', **headers: str) -> tuple[int, dict[str, str], Any]:
    assert topic.source is not None
    host, port = topic.source.address  # type: ignore[attr-defined]
    connection = http.client.HTTPConnection(host, port, timeout=5)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        given["Idempotency-Key"] = key
    with contextlib.closing(connection):
        connection.request("POST", "/orders", body.encode(), given)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read())


class Serving:
    """Turns of the ingest, while requests are made."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._end = reader, threading.Event()
        self.error: BaseException | None = None
        reader.turn()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._reader.turn()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._end.set()
        self._thread.join()
        self._reader.ingest.close()


@pytest.fixture
def served(topic: Topic[str, Order]) -> Iterator[OutboxLog]:
    log = OutboxLog()
    with Serving(Reader(log, topic, follow=True)):
        yield log


def ids(log: OutboxLog) -> list[int]:
    return sorted(json.loads(value)["id"] for value in values(log, "orders"))


def test_a_request_is_a_record_or_several_once(topic: Topic[str, Order], served: OutboxLog) -> None:
    """The first answer is replayed; another body under the key is 422; another key is another request."""
    assert ask(topic, '{"id": 1}')[0::2] == (200, {"records": 1})
    status, headers, told = ask(topic, '{"id": 1}')
    assert (status, told, headers["semel-answer"]) == (200, {"records": 1}, "replayed")
    assert ask(topic, '{"id": 2}')[0] == 422
    assert ask(topic, '[{"id": 2}, {"id": 3, "customer": "d"}]', '"l"')[0::2] == (200, {"records": 2})
    assert ids(served) == [1, 2, 3]
    assert sorted(k for k in keys(served, "orders") if k) == [b"c", b"c", b"d"]


def test_what_is_no_request_is_refused_and_not_kept(topic: Topic[str, Order], served: OutboxLog) -> None:
    assert ask(topic, '{"id": 1}', None)[0] == 400
    assert ask(topic, '{"id": 1}', "k")[0] == 400
    status, _, told = ask(topic, '{"id": "x"}')
    assert status == 400 and "Expected `int`" in told["next"]
    assert ask(topic, "not json")[0] == 400
    assert ask(topic, " " * (2 << 20))[0] == 413
    assert ask(topic, '{"id": 7}')[0] == 200  # the same key: nothing had been done under it
    assert ids(served) == [7]


def test_floors_keep_what_expiry_forgets(topic: Topic[str, Order], served: OutboxLog) -> None:
    """Below the announced floor everything was answered: nothing is run again, not even under a key that is unknown."""
    floor = {"Semel_Floor": '5;sender="app.sink"'}
    assert ask(topic, '{"id": 1}', '"i/0/5"', **floor)[0] == 200
    status, headers, _ = ask(topic, '{"id": 2}', '"i/0/3"', Semel_Floor='2;sender="app.sink"')
    assert (status, headers["semel-answer"], headers["semel-floor"]) == (200, "done", "5")
    assert ids(served) == [1]


def test_keys_are_forgotten_when_they_may_be() -> None:
    """Expired and, for who announces floors, below the floor; and then in the log, too."""
    taken = TakenKeys({}, 1_000)
    plain = rules.Sent("|", "a", "f")
    placed = rules.Sent("|s", "i/0/3", "f", rules.Place("i", 0, 3), 3)
    for sent in (plain, placed):
        taken.committed(taken.taken(sent, 1, 0))
    assert taken.forgotten(999) == {}
    gone = taken.forgotten(1_001)
    assert [name for name in gone if "i/0/3" in name] == [] and len(gone) == 1
    later = rules.Sent("|s", "i/0/9", "f", rules.Place("i", 0, 9), 4)
    taken.committed(taken.taken(later, 1, 500))
    taken.committed(taken.forgotten(1_001))
    assert len(taken) == 1 and isinstance(taken.decide(placed, 1_001), rules.DoneBelow)
    assert isinstance(taken.decide(plain, 1_001), rules.Run)


@pytest.mark.parametrize("step", [Step.INGEST_READ, Step.INGEST_RECORDS, Step.INGEST_POSITION, Step.INGEST_COMMIT])
def test_a_crash_before_the_answer_is_resolved_by_the_same_key(topic: Topic[str, Order], step: Step) -> None:
    """The sender asks again under its key and gets an answer; the record is there once."""
    log = OutboxLog()
    reader = Reader(log, topic, follow=True, steps=die(step))
    reader.turn()
    lane = next(iter(reader.ingest._lanes.values()))

    def unheard() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            ask(topic, '{"id": 1}')

    asked = threading.Thread(target=unheard, daemon=True)
    asked.start()
    with pytest.raises(Died):
        while True:
            reader.turn()
    assert lane.connection is not None
    lane.connection.close()  # as the end of the process closes its sockets
    asked.join()
    with Serving(Reader(log, topic, follow=True)):
        status, headers, _ = ask(topic, '{"id": 1}')
        assert (status, headers["semel-answer"]) == (200, "replayed" if step is Step.INGEST_COMMIT else "first")
    assert ids(log) == [1]


def test_an_answer_of_the_log_that_is_lost_is_told_as_unknown(topic: Topic[str, Order]) -> None:
    """503, and the same key tells: the record is there once although the commit was not heard of."""
    log = OutboxLog()
    with Serving(Reader(log, topic, follow=True)):
        log.owners[-1].next = "unheard"
        status, headers, told = ask(topic, '{"id": 1}')
        assert (status, headers["retry-after"]) == (503, "1") and "keys-unavailable" in told["type"]
        while True:
            with contextlib.suppress(OSError):
                status, headers, _ = ask(topic, '{"id": 1}')
                break
        assert (status, headers["semel-answer"]) == (200, "replayed")
    assert ids(log) == [1]


def test_equal_keys_at_the_same_time_run_once(topic: Topic[str, Order]) -> None:
    """One is done, the other is told that it is running, or gets the same answer."""
    log, found = OutboxLog(), []
    reader = Reader(log, topic, follow=True)
    reader.turn()
    asked = [threading.Thread(target=lambda: found.append(ask(topic, '{"id": 1}')[0])) for _ in range(5)]
    for thread in asked:
        thread.start()
    lane = next(iter(reader.ingest._lanes.values()))
    while lane.connection.requests.qsize() < 5 and any(t.is_alive() for t in asked):  # type: ignore[union-attr]
        pass
    reader.turn()
    for thread in asked:
        thread.join()
    reader.ingest.close()
    assert sorted(found) == [200, 409, 409, 409, 409] and ids(log) == [1]


def test_it_has_no_end_and_needs_an_address(topic: Topic[str, Order], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="has no end"):
        Reader(OutboxLog(), topic, follow=False).all()
    for listen, path, why in (("8080", "/", "HOST:PORT"), ("h:1", "x", "begins with a slash")):
        with pytest.raises(SourceError, match=why):
            HTTPEndpoint(listen, path)
    with pytest.raises(SourceError, match="at least 60"):
        HTTPEndpoint("h:1", keep_s=1)
    monkeypatch.setattr(http_endpoint_connection._Server, "allow_reuse_port", False)
    said: list[str] = []
    with Serving(Reader(OutboxLog(), topic, follow=True)):
        second = Reader(OutboxLog(), topic, follow=True, say=said.append)
        second.turn(2)
    assert "cannot be listened at: Address already in use" in said[0]
