"""ClickHouse (its engine, chdb, behind HTTP): the contract kit, planted mistakes, the window that it really has."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from datetime import time as dtime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from semel.contract import Window, Windowed
from semel.errors import UsageError
from semel.ports import Done, NotDone, Unknown
from semel.sinks import ClickHouse, ClickHouseAppended
from semel.sinks.sink import RowRefused, SinkError
from semel.testing import processes, trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import clickhouse_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.values import Total, claimed, held, opened, rows
from tests.support.clickhouse import ClickHouseProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    with ClickHouseProcess(tmp_path_factory.mktemp("clickhouse")) as made:
        yield made


class TestTokens(ContractTests):
    """Windowed, on a server that is killed."""

    @pytest.fixture
    def subject(self, server: ClickHouseProcess) -> Subject:
        return subjects.subject(subjects.tokens, server)


class TestAppended(ContractTests):
    """Deduplicated: repeats are stored, the view leaves them out."""

    @pytest.fixture
    def subject(self, server: ClickHouseProcess) -> Subject:
        return subjects.subject(subjects.appended, server, read=subjects.read_once, stored=subjects.stored, forget=None)


# --- planted mistakes ------------------------------------------------------------------------------------------------


def _token_of_the_clock(connection: Any) -> Any:
    """As a writer does that makes a new one for every insert."""
    connection._token = lambda *words: str(time.monotonic_ns())
    return connection


def _one_token(connection: Any) -> Any:
    connection._token = lambda *words: "semel"
    return connection


def _no_window(connection: Any) -> Any:
    """The table that everybody has: it remembers nothing, and nobody looks."""
    connection._declared = Window(None, 0)
    return connection


def _unknown_is_failure(connection: Any) -> Any:
    def write(real: Any, *words: Any) -> Any:
        outcome = real.write(*words)
        return NotDone(outcome.reason) if isinstance(outcome, Unknown) else outcome

    return Altered(connection, write=write)


def _nothing_is_refused(connection: Any) -> Any:
    """What the client and the server make of it: 0 for None."""

    def write(real: Any, claim: Any, start: int, end: int, run: str, batch: Any) -> Any:
        try:
            return real.write(claim, start, end, run, batch)
        except RowRefused as why:
            rest = [structs.replace(r, value=b'{"id": "p", "n": 0}') if r.offset == why.offset else r for r in batch]
            return real.write(claim, start, end, run, rest)

    return Altered(connection, write=write)


@pytest.mark.parametrize(
    ("alter", "names"),
    [
        (_token_of_the_clock, ("replay", "zombie", "lost_after", "torn")),
        (_no_window, ("replay", "zombie")),
        (_one_token, ("plain",)),
        (_unknown_is_failure, ("lost_after",)),
        (_nothing_is_refused, ("poison",)),
    ],
    ids=["token of the clock", "window 0", "one token", "unknown", "poison"],
)
def test_a_mistake_is_found(alter: Any, names: tuple[str, ...], server: ClickHouseProcess) -> None:
    """S1, S7, S8, S11."""
    planted = subjects.subject(lambda address, suffix: Planted(subjects.tokens(address, suffix), alter), server)
    for name in names:
        with pytest.raises(Refused):
            run(planted, getattr(trials, name))


def careless(address: str, suffix: str) -> Any:
    """Nobody counts the inserts that came meanwhile."""

    def alter(connection: Any) -> Any:
        connection.inserts_since = lambda seen: 0
        return connection

    return Planted(subjects.tokens(address, suffix), alter)


def test_a_window_that_nobody_counts_duplicates(server: ClickHouseProcess) -> None:
    """The naive setting: tokens, and trust in them. The same kill, the same inserts of others, and the cut is there
    twice."""
    with pytest.raises(Refused, match="ended with 0"):
        run(subjects.subject(careless, server), processes.forgotten)


def test_a_view_that_is_no_view_is_found(server: ClickHouseProcess) -> None:
    """Deduplicated, read before its view."""
    planted = subjects.subject(subjects.appended, server, stored=subjects.stored, forget=None)
    with pytest.raises(Refused):
        run(planted, trials.replay)


# --- the table and its window ----------------------------------------------------------------------------------------

_numbers = itertools.count()


@pytest.fixture
def make(server: ClickHouseProcess) -> MakeSink:
    table = f"t{next(_numbers)}"
    return lambda **said: ClickHouse(said.pop("url", server.url), table, **{"value": Total, **said})


def test_the_contract_says_what_the_table_really_has(make: MakeSink, server: ClickHouseProcess) -> None:
    """Declared is what it is held to; judged, the contract tells the table's own, and so does a note."""
    sink = make(window_inserts=50)
    assert (sink.kind, str(sink.contract.window)) == (Windowed, "50 inserts")
    subjects.asked(
        server.url,
        f"CREATE TABLE {sink.table} (customer String, total Int64) ENGINE = MergeTree ORDER BY customer "
        "SETTINGS non_replicated_deduplication_window = 700",
    )
    connection = opened(sink)
    assert str(sink.contract.window) == "700 inserts"
    said = " ".join(connection.notes())
    assert "tells a repeat for 700 inserts" in said and "fsync_after_insert" in said
    mine = make(window_inserts=60).renamed("_mine")
    connection = opened(mine)
    assert str(mine.contract.window) == "60 inserts" and "fsync" not in " ".join(connection.notes())


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("MergeTree ORDER BY customer", r"window is 0: it remembers no insert.*MODIFY SETTING"),
        (
            "MergeTree ORDER BY customer SETTINGS non_replicated_deduplication_window = 100",
            r"remembers 100 inserts, the sink is declared with 10,000.*window_inserts=100",
        ),
        ("Memory", "its engine is Memory"),
        ("Log", "its engine is Log"),
    ],
)
def test_a_table_that_forgets_is_refused(make: MakeSink, server: ClickHouseProcess, engine: str, says: str) -> None:
    sink = make()
    subjects.asked(server.url, f"CREATE TABLE {sink.table} (customer String, total Int64) ENGINE = {engine}")
    with pytest.raises(SinkError, match=says):
        opened(sink)


def test_a_window_that_is_taken_away_is_noticed(make: MakeSink, server: ClickHouseProcess) -> None:
    """Before the next cut is written down, not at the next start."""
    sink = make()
    connection: Any = opened(sink)
    assert connection.seen() == "0"
    subjects.asked(server.url, f"ALTER TABLE {sink.table} MODIFY SETTING non_replicated_deduplication_window = 0")
    with pytest.raises(SinkError, match="remembers no insert"):
        connection.seen()
    subjects.asked(server.url, f"DROP TABLE {sink.table} SYNC")
    with pytest.raises(SinkError, match="is gone"):
        connection.seen()


@pytest.mark.parametrize("own", [False, True], ids=["to a table", "its own table"])
def test_views_that_forget_are_refused_unless_told(make: MakeSink, server: ClickHouseProcess, own: bool) -> None:
    """A repeat that the table leaves out goes into what stands behind it; shown, too: it is there twice."""
    sink = make(views_may_repeat=True)
    opened(sink)
    if own:
        made = f"CREATE MATERIALIZED VIEW {sink.table}_v ENGINE = MergeTree ORDER BY total"
    else:
        subjects.asked(server.url, f"CREATE TABLE {sink.table}_to (total Int64) ENGINE = MergeTree ORDER BY total")
        made = f"CREATE MATERIALIZED VIEW {sink.table}_v TO {sink.table}_to"
    subjects.asked(server.url, f"{made} AS SELECT total FROM {sink.table}")
    with pytest.raises(SinkError, match=f"remembers no inserts .*{sink.table}_v.*views_may_repeat"):
        opened(make())
    connection = opened(sink)
    assert "which was accepted" in " ".join(connection.notes())
    claim = claimed(connection, sink)
    for _ in range(2):
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert len(held(connection)) == 1
    assert subjects.asked(server.url, f"SELECT count() FROM {sink.table}_v") == [(2,)]
    if not own:
        name = "non_replicated_deduplication_window"
        subjects.asked(server.url, f"ALTER TABLE {sink.table}_to MODIFY SETTING {name} = 1000")
        again = make()
        connection = opened(again)
        for _ in range(2):
            assert connection.write(claimed(connection, again), 1, 2, "r", rows(sink, [Total("a", 2)], 1)) == Done()
        assert subjects.asked(server.url, f"SELECT count() FROM {sink.table}_v WHERE total = 2") == [(1,)]


def test_an_insert_is_known_for_as_many_as_the_window_says(make: MakeSink) -> None:
    """What the engine does, and what `inserts_since` says of it: the count is never below the truth."""
    sink = make(window_inserts=3)
    connection: Any = opened(sink)
    claim = claimed(connection, sink)

    def write(n: int) -> None:
        assert connection.write(claim, n, n + 1, "r", rows(sink, [Total("a", n)], n)) == Done()

    mark = connection.seen()
    for n in range(3):
        write(n)
    assert connection.inserts_since(mark) == 3
    write(0)
    assert len(held(connection)) == 3, "the third insert from the last is known"
    write(3)
    assert connection.inserts_since(mark) > 3
    write(0)
    assert len(held(connection)) == 5, "the fourth is not"


def test_other_records_under_the_same_offsets_are_not_dropped(make: MakeSink) -> None:
    """A log that was put back: the server drops what comes under a token that it knows, whatever it holds. The mark of
    the cut's last record is in the token."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "0 1 - aaaaaaaa", rows(sink, [Total("a", 1)])) == Done()
    assert connection.write(claim, 0, 1, "0 1 - bbbbbbbb", rows(sink, [Total("b", 2)])) == Done()
    assert held(connection) == [("a", 1), ("b", 2)]


def test_who_was_stopped_past_the_window_sends_nothing(make: MakeSink) -> None:
    """By inserts and by the clock: looked at when the insert is about to leave."""
    sink = make(window_inserts=2)
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    mark = connection.seen()
    for n in range(4):
        assert connection.write(claim, n, n + 1, "r", rows(sink, [Total("a", n)], n)) == Done()
    for until_ms, seen in ((None, mark), (1, connection.seen())):
        connection.remind(until_ms, seen)
        outcome = connection.write(claim, 9, 10, "r", rows(sink, [Total("a", 9)], 9))
        assert isinstance(outcome, Unknown) and "nothing was sent" in outcome.reason
    assert len(held(connection)) == 4


# --- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Every:
    whole: int
    broken: float
    exact: Decimal
    yes: bool
    text: str
    at: datetime
    day: date
    of_day: dtime
    long: timedelta
    id: UUID
    data: bytes
    more: dict[str, int]
    maybe: int | None


def test_every_kind_of_value_comes_back(make: MakeSink) -> None:
    sink = make(value=Every)
    values = [
        Every(
            n * 2**62, 0.1 * n, Decimal("12345678901234567890.000000001") * n, n > 0, "süß '\\\n" * n,
            datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2))), date(1999, 12, 31),
            dtime(23, 59), timedelta(days=n, seconds=1), UUID(int=n + 1), b"\x00\xff" * n, {"a": n}, None if n else 5,
        )
        for n in (-1, 0, 1)
    ]  # fmt: skip
    connection = opened(sink, Every)
    batch = rows(sink, values)
    assert connection.write(claimed(connection, sink), 0, 3, "r", batch) == Done()
    assert sorted(connection.rows()) == sorted(connection.canonical(row.value or b"") for row in batch)


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("UInt8", 256, "UInt8 holds 0 to 255"),
        ("Int64", 2**63, "Int64 holds"),
        ("Int64", None, "not Nullable"),
        ("Decimal(9, 2)", "1.005", "it would be rounded"),
        ("Decimal(9, 2)", "12345678.5", "digits are before the point"),
        ("DateTime", "2200-01-01T00:00:00Z", "DateTime holds 1970 to 2106"),
        ("DateTime64(3)", "2026-01-01T00:00:00.0001Z", "digits of a second"),
        ("Date", "1969-12-31", "Date holds"),
    ],
)
def test_what_a_column_would_change_is_refused(
    make: MakeSink, server: ClickHouseProcess, column: str, value: Any, why: str
) -> None:
    """ClickHouse wraps, saturates and fills up without a word."""
    sink = make(value=None)
    subjects.asked(
        server.url,
        f"CREATE TABLE {sink.table} (v {column}) ENGINE = MergeTree ORDER BY tuple() "
        "SETTINGS non_replicated_deduplication_window = 10000",
    )
    connection = opened(sink, None)
    with pytest.raises(RowRefused, match=why) as refused:
        connection.write(claimed(connection, sink), 4, 5, "r", rows(sink, [{"v": value}], 4))
    assert refused.value.offset == 4 and held(connection) == []


def test_a_constraint_names_the_record(make: MakeSink, server: ClickHouseProcess) -> None:
    sink = make()
    subjects.asked(
        server.url,
        f"CREATE TABLE {sink.table} (customer String, total Int64, CONSTRAINT small CHECK total < 10) "
        "ENGINE = MergeTree ORDER BY customer SETTINGS non_replicated_deduplication_window = 10000",
    )
    connection = opened(sink)
    batch = rows(sink, [Total("c", 1), Total("b", 99), Total("a", 2)], 7)
    with pytest.raises(RowRefused, match="`small`") as refused:
        connection.write(claimed(connection, sink), 7, 10, "r", batch)
    assert refused.value.offset == 8 and held(connection) == []


def test_no_secret_is_told(make: MakeSink, server: ClickHouseProcess) -> None:
    sink = make(url=f"http://me:hush-hush@127.0.0.1:{server.port}/default")
    assert "hush" not in f"{sink!r} {sink.where} {sink.at!r}"
    away = ClickHouse("http://me:hush-hush@127.0.0.1:1/default", "t", value=Total).open()
    told = away.prepare(Total)
    assert isinstance(told, NotDone) and "hush" not in told.reason


def test_the_extra_is_named(make: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clickhouse_connect", None)
    for name in ("clickhouse_session", "clickhouse_connection"):
        monkeypatch.delitem(sys.modules, f"semel.sinks.{name}", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'semel\[clickhouse\]'"):
        make().open()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "clickhouse://h/db"}, {"url": "http://h/a/b"}, {"window_inserts": 1}, {"records": 2_000_000},
        {"window_s": 5.0, "timeout_s": 10.0},
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_refused(make: MakeSink, wrong: dict[str, Any]) -> None:
    with pytest.raises(SinkError):
        make(**wrong)


# --- Deduplicated ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "(customer String, total Int64, semel_event String) ENGINE = MergeTree ORDER BY semel_event",
            "ReplacingMerge",
        ),
        (
            "(customer String, total Int64, semel_event String) ENGINE = ReplacingMergeTree ORDER BY customer",
            "ORDER BY",
        ),
    ],
)
def test_a_table_that_would_keep_repeats_or_lose_rows_is_refused(
    server: ClickHouseProcess, text: str, says: str
) -> None:
    sink = ClickHouseAppended(server.url, f"t{next(_numbers)}", value=Total)
    subjects.asked(server.url, f"CREATE TABLE {sink.table} {text}")
    with pytest.raises(SinkError, match=says):
        opened(sink)


def test_merges_take_the_repeats_out_for_good(server: ClickHouseProcess) -> None:
    sink = ClickHouseAppended(server.url, f"t{next(_numbers)}", value=Total)
    connection = opened(sink)
    claim = claimed(connection, sink)
    for _ in range(3):
        assert connection.write(claim, 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 2)])) == Done()

    def count(of: str) -> Any:
        return subjects.asked(server.url, f"SELECT count() FROM {of}")[0][0]

    assert (count(sink.table), count(sink.view)) == (6, 2)
    subjects.asked(server.url, "SYSTEM START MERGES")
    subjects.asked(server.url, f"OPTIMIZE TABLE {sink.table} FINAL")
    subjects.asked(server.url, "SYSTEM STOP MERGES")
    assert (count(sink.table), count(sink.view)) == (2, 2)
