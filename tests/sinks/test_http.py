"""HTTP as a sink: before our receiver it passes the contract kit; a plain endpoint repeats under the same faults."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from semel.contract import Claim, DeliveryId, Guarantee, LogIdentity, Row
from semel.ports import Done, NoSteps, NotDone, Unknown
from semel.sinks import HTTP
from semel.sinks.http import Again, Answered, Meaning, Misplaced, Refused, Reused, meaning
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import processes
from semel.testing.contracts import ContractTests, Subject, over_the_wire, run
from semel.testing.contracts import Refused as KitRefused
from semel.testing.trials import lost_after
from tests.receiver.served import Served

# --- under the kit ----------------------------------------------------------------------------------------------------


def hook(address: str, suffix: str) -> HTTP:
    return HTTP(f"{address}/hook", rows_url=f"{address}/rows").renamed(suffix)


def windowed_hook(address: str, suffix: str) -> HTTP:
    return HTTP(f"{address}/hook", rows_url=f"{address}/rows", forgets_after_s=86400).renamed(suffix)


def read_hook(address: str, suffix: str) -> list[tuple[str, int]]:
    with urllib.request.urlopen(f"{address}/rows{suffix}") as reply:
        return [(row["id"], row["n"]) for row in json.load(reply)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hook")
    with Served("ours", str(folder / "hook.db"), folder, "tests.sinks.hook") as served:
        yield served


def subject_of(served: Served, make: Callable[[str, str], HTTP]) -> Subject:
    return Subject(
        make=make,
        address=f"http://127.0.0.1:{served.port}",
        read=read_hook,
        loses=lambda: over_the_wire(served.port, b'{"id":', lambda port: f"http://127.0.0.1:{port}"),
        crash=served.restart,
        forget=lambda address, suffix: time.sleep(0.8),
        hand_over_s=2.0,
        large=30,
    )


class TestHTTP(ContractTests):
    """Our receiver on Starlette over SQLite, its keys expiring after half a second."""

    @pytest.fixture
    def subject(self, ours: Served) -> Subject:
        return subject_of(ours, hook)


# --- keys that expire -------------------------------------------------------------------------------------------------

WINDOW_S = 5.0  # processes that start within it send again, and know that they may


def short_hook(address: str, suffix: str) -> HTTP:
    return HTTP(
        f"{address}/hook", rows_url=f"{address}/rows", forgets_after_s=WINDOW_S, timeout_s=0.5, patience_s=0.5
    ).renamed(suffix)


def trusting_hook(address: str, suffix: str) -> HTTP:
    """The naive setting: it is told that keys are kept for a day, and they are not."""
    return HTTP(
        f"{address}/hook", rows_url=f"{address}/rows", forgets_after_s=86_400, timeout_s=0.5, patience_s=0.5
    ).renamed(suffix)


@pytest.fixture(scope="module")
def expiring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The plain draft: no floor is announced to it, and its keys last as long as it says."""
    folder = tmp_path_factory.mktemp("expiring")
    with Served("ours", str(folder / "hook.db"), folder, "tests.sinks.hook", EXPIRES_S=str(WINDOW_S)) as served:
        yield served


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("kept")
    with Served("ours", str(folder / "hook.db"), folder, "tests.sinks.hook", EXPIRES_S="86400") as served:
        yield served


def windowed_subject(served: Served, make: Callable[[str, str], HTTP]) -> Subject:
    return replace(subject_of(served, make), forget=lambda address, suffix: time.sleep(WINDOW_S + 0.5))


@pytest.mark.long
class TestWindowedHTTP(ContractTests):
    """Keys that are kept for a day, and no floor."""

    @pytest.fixture
    def subject(self, kept: Served) -> Subject:
        # Nothing is locked, so nothing has to be taken over.
        return replace(subject_of(kept, windowed_hook), forget=None, hand_over_s=None)


@pytest.mark.long
def test_what_was_forgotten_is_not_sent_again(expiring: Served) -> None:
    """S7: killed with requests sent and not written down; when the keys have expired nobody can tell, and it stops."""
    run(windowed_subject(expiring, short_hook), processes.forgotten)


@pytest.mark.long
def test_a_window_that_is_not_so_long_repeats(expiring: Served) -> None:
    """The same receiver, told to keep its keys for a day: the requests come again and are done again."""
    with pytest.raises(KitRefused, match="ended with 0"):
        run(windowed_subject(expiring, trusting_hook), processes.forgotten)


@pytest.mark.long
@pytest.mark.parametrize("trial", [lost_after, processes.crashes])
def test_a_plain_endpoint_repeats_under_the_same_faults(trial: Any, tmp_path: Path) -> None:
    """The naive POST: the same sink and the same faults, and nobody who keeps keys."""
    with Served("naive", str(tmp_path / "hook.db"), tmp_path, "tests.sinks.hook") as served:
        subject = subject_of(served, windowed_hook)
        with pytest.raises(KitRefused) as why:
            run(subject, trial)
        assert "more [" in str(why.value) or "a part of the batch is there" in str(why.value)


# --- what an answer means ---------------------------------------------------------------------------------------------

FLOOR = {"semel-floor": "5"}


@pytest.mark.parametrize(
    ("status", "headers", "means"),
    [
        (200, FLOOR, Answered),
        (204, {**FLOOR, "semel-answer": "done"}, Answered),
        (200, {}, Misplaced),  # it keeps no floor, and was declared to
        (302, {"location": "https://example.org/"}, Misplaced),
        (400, {}, Refused),
        (404, {}, Refused),
        (409, {}, Again),  # the first is running
        (409, {"semel-answer": "replayed"}, Refused),  # the application's own conflict
        (422, {}, Reused),  # of the receiver: another request under this key
        (422, {"semel-answer": "first"}, Refused),  # of the application: it does not like the record
        (401, {}, Misplaced),
        (403, {}, Misplaced),
        (408, {}, Again),
        (425, {}, Again),
        (429, {}, Again),
        (500, {}, Again),
        (503, {}, Again),
    ],
)
def test_what_an_answer_means(status: int, headers: dict[str, str], means: type[Meaning]) -> None:
    assert isinstance(meaning(status, headers, b"", True, 0.0), means)


def test_a_receiver_without_floors_is_enough_for_a_window() -> None:
    assert meaning(201, {}, b"", False, 0.0) == Answered()
    contract = HTTP("http://x/", forgets_after_s=3600).contract
    assert (contract.name, contract.guarantee, str(contract.window)) == (
        "Windowed",
        Guarantee.ONCE_IN_WINDOW,
        "3600 s",
    )


DATE = "Thu, 01 Jan 1970 00:0{}:40 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), (DATE.format(1), 90.0), ("", 0.0), ("soon", 0.0), ("999999", 300.0)]
)
def test_retry_after(value: str, seconds: float) -> None:
    """Seconds or a date (RFC 9110, 10.2.3); bounded, and never an error."""
    found = meaning(503, {"retry-after": value}, b"", True, 10.0)
    assert isinstance(found, Again) and found.after_s == seconds


# --- requests ---------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    key: str
    floor: str
    body: bytes
    headers: dict[str, str]


class Scripted:
    """An endpoint that answers as it is told: `answer(body)` gives status and headers; None cuts the connection."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.answer: Callable[[bytes], tuple[int, dict[str, str]] | None] = lambda body: (201, FLOOR)
        lock = threading.Lock()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    said = Said(headers.get("idempotency-key", ""), headers.get("semel-floor", ""), body, headers)
                    scripted.said.append(said)
                    found = scripted.answer(body)
                if found is None:
                    self.close_connection = True
                    return
                self.send_response(found[0])
                for name, value in {**found[1], "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.server.shutdown()
    made.server.server_close()


def claim(position: int = 0, topic_id: str = "T1") -> Claim:
    return Claim(DeliveryId("app", 'a"b', 3), 0, 1, position, "", LogIdentity(topic_id, 4))


def rows(*offsets: int) -> list[Row]:
    return [Row(n, 0, b"k%d" % (n % 2), b'{"n":%d}' % n) for n in offsets]


def opened(endpoint: Scripted, **said: Any) -> Any:
    return HTTP(endpoint.url, **{"timeout_s": 2.0, "patience_s": 0.5, **said}).open(NoSteps())


def test_a_request_carries_key_and_floor(endpoint: Scripted) -> None:
    """The key names topic id, partitions, incarnation, partition and offset; the floor is the lowest without an
    answer, and rises with the answers."""
    connection = opened(endpoint, in_flight=1, headers={"Authorization": "Bearer s"})
    assert connection.write(claim(), 10, 14, "", rows(10, 11, 13)) == Done()
    assert [said.key for said in endpoint.said] == ['"T1.4.1/3/10"', '"T1.4.1/3/11"', '"T1.4.1/3/13"']
    assert [said.floor for said in endpoint.said] == [f'{n};sender="app.a\\"b"' for n in (10, 11, 13)]
    assert endpoint.said[0].headers["authorization"] == "Bearer s"
    assert endpoint.said[0].headers["content-type"] == "application/json"


def test_a_topic_made_anew_has_other_keys(ours: Served) -> None:
    """S16: offsets of a topic that was deleted and created begin again. Under the old keys its first records would be
    taken for done, silently, since the floor is far above them."""
    suffix = "_anew"
    sink = hook(f"http://127.0.0.1:{ours.port}", suffix)
    connection = sink.open(NoSteps())
    for topic_id in ("T1", "T2"):
        batch = [Row(n, 0, None, sink.encode_value({"id": topic_id, "n": n})) for n in range(5)]
        assert connection.write(claim(topic_id=topic_id), 0, 5, "", batch) == Done()
    connection.close()
    found = read_hook(f"http://127.0.0.1:{ours.port}", suffix)
    assert sorted(found) == [(topic_id, n) for topic_id in ("T1", "T2") for n in range(5)]


def test_the_floor_waits_for_the_slowest(endpoint: Scripted) -> None:
    """S18: 11 and 13 are answered while 10 is not; nobody says that 10 was."""
    answers = {b'{"n":10}': 0}

    def answer(body: bytes) -> tuple[int, dict[str, str]] | None:
        if body in answers and answers[body] < 3:
            answers[body] += 1
            return 503, {}
        return 201, FLOOR

    endpoint.answer = answer
    connection = opened(endpoint, in_flight=8, patience_s=5.0)
    assert connection.write(claim(), 10, 16, "", rows(10, 11, 13, 15)) == Done()
    last = max(n for n, said in enumerate(endpoint.said) if said.body == b'{"n":10}')
    assert b'{"n":15}' in [said.body for said in endpoint.said[:last]], "nothing was overtaken: nothing was tried"
    assert {said.floor.partition(";")[0] for said in endpoint.said[: last + 1]} == {"10"}


def test_records_of_one_key_stay_in_order(endpoint: Scripted) -> None:
    """Also when the first of them has to be sent again."""
    failed = set()

    def answer(body: bytes) -> tuple[int, dict[str, str]] | None:
        if body not in failed:
            failed.add(body)
            return None
        return 201, FLOOR

    endpoint.answer = answer
    connection = opened(endpoint, in_flight=4, patience_s=5.0)
    assert connection.write(claim(), 0, 10, "", rows(*range(10))) == Done()
    for parity in (0, 1):
        numbers = [json.loads(said.body)["n"] for said in endpoint.said]
        assert [n for n in numbers if n % 2 == parity] == [n for n in range(parity, 10, 2) for _ in range(2)]


def test_what_was_answered_is_not_sent_again(endpoint: Scripted) -> None:
    """A batch that is tried again sends only the rest; who does not know sends all of it."""
    endpoint.answer = lambda body: (503, {}) if body == b'{"n":3}' else (201, FLOOR)
    connection = opened(endpoint, in_flight=1)
    assert isinstance(connection.write(claim(), 0, 5, "", rows(*range(5))), Unknown)
    endpoint.answer = lambda body: (201, FLOOR)
    before = len(endpoint.said)
    assert connection.write(claim(), 0, 5, "", rows(*range(5))) == Done()
    assert [said.body for said in endpoint.said[before:]] == [b'{"n":3}', b'{"n":4}']
    assert endpoint.said[-1].floor.startswith("4;")


def test_a_pause_that_was_asked_for_is_kept(endpoint: Scripted) -> None:
    endpoint.answer = lambda body: (429, {"Retry-After": "60", "Semel-Answer": "not-kept"})
    connection = opened(endpoint, in_flight=1)
    assert isinstance(connection.write(claim(), 0, 1, "", rows(0)), NotDone)
    found = connection.write(claim(), 0, 1, "", rows(0))
    assert isinstance(found, NotDone) and "Retry-After" in found.reason
    assert len(endpoint.said) == 1


def test_what_a_person_must_settle(endpoint: Scripted) -> None:
    """A refused record by its offset; a reused key as a log that has diverged; a receiver that is not what it was
    declared to be. Each says where and what next."""
    connection = opened(endpoint, in_flight=1)
    endpoint.answer = lambda body: (400, {}) if body == b'{"n":1}' else (201, FLOOR)
    with pytest.raises(RowRefused, match="kept with the key") as refused:
        connection.write(claim(), 0, 3, "", rows(0, 1, 2))
    assert refused.value.offset == 1
    endpoint.answer = lambda body: (422, {})
    with pytest.raises(Diverged, match=r"T1\.4\.1/3/7"):
        connection.write(claim(), 7, 8, "", rows(7))
    endpoint.answer = lambda body: (201, {})
    with pytest.raises(SinkError, match=r"Semel-Floor.*forgets_after_s="):
        connection.write(claim(), 8, 9, "", rows(8))
    endpoint.answer = lambda body: (302, {"Location": "http://elsewhere/"})
    with pytest.raises(SinkError, match="elsewhere"):
        connection.write(claim(), 8, 9, "", rows(8))
    with pytest.raises(SinkError, match="topic ids"):
        connection.write(claim(topic_id=""), 8, 9, "", rows(8))


def test_a_receiver_that_is_away_is_not_done(endpoint: Scripted) -> None:
    sink = HTTP("http://127.0.0.1:1/hook", patience_s=0.2)
    connection = sink.open(NoSteps())
    assert isinstance(connection.prepare(None), NotDone)
    assert isinstance(connection.write(claim(), 0, 1, "", rows(0)), NotDone)
    connection.close()


def test_an_answer_that_never_comes_is_unknown(endpoint: Scripted) -> None:
    endpoint.answer = lambda body: None
    assert isinstance(opened(endpoint).write(claim(), 0, 1, "", rows(0)), Unknown)
    assert len({said.key for said in endpoint.said}) == 1 and len(endpoint.said) > 1


def test_secrets_stay_out_of_what_is_said() -> None:
    sink = HTTP("https://example.org/hook?token=secret", headers={"Authorization": "Bearer secret"})
    assert "secret" not in f"{sink.where} {sink!r} {sink.name}"
    with pytest.raises(SinkError) as why:
        HTTP("https://ann:secret@example.org/hook")
    assert "secret" not in str(why.value) and "headers=" in str(why.value)
    with pytest.raises(SinkError) as why:
        HTTP("https://example.org/", headers={"Authorization": "secret\r\nX: 1"})
    assert "secret" not in str(why.value)


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org/", "http:///hook", "http://x/#a"])
def test_an_address_is_checked_when_it_is_declared(url: str) -> None:
    with pytest.raises(SinkError, match="address"):
        HTTP(url)
