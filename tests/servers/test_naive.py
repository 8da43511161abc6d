"""What people write first, and the shipped sinks, under the same faults: deliveries killed before, within and behind a
batch, twice each. The lines that this prints are the ones in docs/naive.md: the page cannot say what is not so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.host.postgres import PostgresServer
from semel.ports import Step
from semel.sinks import HTTP
from semel.testing.contracts import Subject
from semel.testing.processes import RECORDS, processes
from semel.testing.subject import Stand
from tests.receiver.served import Served
from tests.sinks import subjects
from tests.sinks.naive import NaiveInsert
from tests.sinks.naive_post import Naive, NaiveObjects, NaivePost
from tests.sinks.test_http import read_hook
from tests.support.planted import ROOT
from tests.support.seaweed import SeaweedProcess

Found = Counter[tuple[str, int]]
Read = Callable[[str, str], Iterable[tuple[str, int]]]

PAGE = ROOT / "docs" / "naive.md"
# Before a batch is begun, in it, and right behind its effect, when nobody knows of it yet; in a process's second batch
# (request, object), then in its first.
KILLS = [(step, nth) for step in (Step.BATCH_BEFORE, Step.ROWS_BEFORE, Step.SINK_AFTER) for nth in (2, 1)]


def naive_insert(address: str, suffix: str) -> NaiveInsert:
    return NaiveInsert(address, "entries", ("id", "n")).renamed(suffix)


def naive_post(address: str, suffix: str) -> Naive:
    return Naive("hook", NaivePost(f"{address}/hook{suffix}"))


def naive_objects(address: str, suffix: str) -> Naive:
    return Naive("objects", NaiveObjects(subjects._bucket(address), f"kit{suffix}"))


def hook(address: str, suffix: str) -> HTTP:
    return HTTP(f"{address}/hook", in_flight=1, rows_url=f"{address}/rows").renamed(suffix)


def survived(subject: Subject, *reads: Read) -> list[Found]:
    """What each reader finds when all deliveries have died and a last one has finished."""
    stand = Stand(subject, "naive")
    with processes(stand) as runs:
        for step, nth in KILLS:
            if step is Step.SINK_AFTER and isinstance(stand.sink, NaiveInsert | Naive):
                step = Step.ROWS_AFTER  # its effect is there with its last row
            runs.ends(runs.start(SEMEL_KILL=f"{step}:{nth}"), -9, f"a process to be killed at {step}:{nth}")
        runs.ends(runs.start(), 0, "the last process")
    found = [Counter(read(subject.address, stand.suffix)) for read in (subject.read, *reads)]
    stand.close()
    stand.removed()
    return found


def line(name: str, found: Found) -> str:
    wanted = {(f"k{n % 7}", n) for n in range(RECORDS)}
    lost, rows = len(wanted - found.keys()), sum(found.values())
    return f"{name:<50} {RECORDS} records, {len(KILLS)} kills: {rows} there, {lost} lost, {rows - len(found)} repeated"


# --- the places ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("naive")) as server:
        yield server
        server.kill()


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    served: list[Served] = []

    def serve(kind: str) -> str:
        served.append(Served(kind, str(tmp_path / f"{kind}.db"), tmp_path, "tests.sinks.hook"))
        served[-1].start()
        return f"http://127.0.0.1:{served[-1].port}"

    yield serve
    for one in served:
        one.kill()


def shown(name: str, found: Found, *, repeats: bool) -> None:
    """Nothing is lost by anybody here; who repeats is the question. The page has this very line."""
    told = line(name, found)
    print(told)
    assert " 0 lost, " in told
    assert told.endswith(" 0 repeated") != repeats, told
    assert told in PAGE.read_text(), f"{PAGE.name} does not say: {told}"


def test_rows(postgres: PostgresServer) -> None:
    """The position elsewhere repeats; beside the rows, or with an id in each and a view before them, it does not."""

    def of(make: Any, read: Read, *more: Read) -> list[Found]:
        return survived(Subject(make=make, address=postgres.dsn, read=read), *more)

    shown("an INSERT per record", *of(naive_insert, subjects.read_postgres), repeats=True)
    shown("Postgres(dsn, table)", *of(subjects.postgres_appended, subjects.read_postgres), repeats=False)
    table, view = of(subjects.postgres_once, subjects.read_postgres, subjects.read_once)
    shown("PostgresAppended(dsn, table), its table", table, repeats=True)
    shown("PostgresAppended(dsn, table), its view", view, repeats=False)


def test_posts(endpoint: Callable[[str], str]) -> None:
    """A plain endpoint, and one that keeps keys and floors."""
    naive = Subject(make=naive_post, address=endpoint("naive"), read=read_hook)
    ours = Subject(make=hook, address=endpoint("ours"), read=read_hook)
    shown("a POST per record", *survived(naive), repeats=True)
    shown("HTTP(url), to semel.receiver", *survived(ours), repeats=False)


def test_objects(tmp_path: Path) -> None:
    """On a real S3 server: cut by the clock, and by a decision that is written down."""
    with SeaweedProcess(tmp_path) as seaweed:
        address = f"http://127.0.0.1:{seaweed.port}"
        naive = Subject(make=naive_objects, address=address, read=subjects.read_s3)
        shown("an object per batch, named by the clock", *survived(naive), repeats=True)
        written = Subject(make=subjects.objects_s3, address=address, read=subjects.read_s3)
        shown("Objects(url)", *survived(written), repeats=False)
