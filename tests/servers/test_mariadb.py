"""MariaDB on its real server: through the contract kit, through the tests of every transactional sink, and what only
MariaDB can get wrong."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from msgspec import structs

from semel.contract import Claim, LogIdentity, Remembered, Row
from semel.errors import UsageError
from semel.ports import Done, Fenced, NotDone, Step
from semel.sinks import MariaDB
from semel.sinks.mariadb import address_of
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import mariadb_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.test_tables import (  # noqa: F401
    EVERYTHING,
    Everything,
    test_a_key_of_any_type_finds_its_row,
    test_any_value_with_named_fields_is_a_row,
    test_different_keys_have_different_bytes,
    test_equal_keys_have_equal_bytes,
    test_every_type_arrives_as_it_was_committed,
    test_what_is_no_row_is_refused_before_it_enters_the_outbox,
)
from tests.sinks.test_transactional import (  # noqa: F401
    test_a_batch_written_again_changes_nothing,
    test_a_claim_returns_what_the_last_batch_left,
    test_a_gap_is_not_written,
    test_a_large_batch_is_the_same_as_a_small_one,
    test_a_renamed_sink_takes_the_shape_of_its_original_when_the_type_is_unknown,
    test_a_superseded_owner_writes_nothing,
    test_a_value_that_is_refused_is_named_and_nothing_is_written,
    test_another_log_is_diverged_and_leaves_no_trace,
    test_none_deletes_the_row_of_its_key,
    test_none_without_a_key_is_refused,
    test_only_renamed_tables_are_dropped,
    test_rows_and_position_are_one,
    test_the_kind_is_transactional,
    test_the_last_value_of_a_key_replaces_the_row,
    test_without_a_key_every_value_is_inserted,
)
from tests.sinks.values import Total, claimed, deleted, held, opened, rows, totals
from tests.support.mariadb import MariaDBServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDBServer]:
    with MariaDBServer(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture
def url(mariadb: MariaDBServer) -> str:
    """A database of its own."""
    name = f"test_{next(_numbers)}"
    subjects.query(mariadb.url, f"CREATE DATABASE {name}")
    return mariadb.url.rpartition("/")[0] + "/" + name


@pytest.fixture
def make_sink(url: str) -> MakeSink:
    return lambda table="totals", **said: MariaDB(said.pop("url", url), table, **{"hand_over_s": 4.0, **said})


class TestMariaDB(ContractTests):
    """By key and appended, on a server that is killed."""

    @pytest.fixture(params=[subjects.keyed, subjects.appended], ids=["keyed", "appended"])
    def subject(self, request: pytest.FixtureRequest, mariadb: MariaDBServer) -> Subject:
        return subjects.subject(request.param, mariadb)


def _no_epoch(execute: Any, connection: Any, statement: Any, *parameters: object) -> Any:
    said = statement.replace("AND epoch = %s", "AND epoch >= %s") if isinstance(statement, str) else statement
    return execute(connection, said, *parameters)


def _position_outside(execute: Any, connection: Any, statement: Any, *parameters: object) -> Any:
    if isinstance(statement, str) and "SET `position`" in statement:
        execute(connection, "COMMIT")
        execute(connection, "BEGIN")
    return execute(connection, statement, *parameters)


def _autocommitted(execute: Any, connection: Any, statement: Any, *parameters: object) -> Any:
    return execute(connection, "DO 0" if statement == "BEGIN" else statement, *parameters)


@pytest.mark.parametrize(
    ("mistake", "names"),
    [(_no_epoch, ("zombie",)), (_position_outside, ("torn", "replay")), (_autocommitted, ("torn", "poison"))],
)
def test_a_mistake_in_the_transaction_is_found(
    mistake: Any, names: tuple[str, ...], mariadb: MariaDBServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kit on MariaDB is worth what it finds: the guard dropped, the position outside, no transaction at all."""
    from semel.sinks import mariadb_connection

    real = mariadb_connection.execute
    monkeypatch.setattr(mariadb_connection, "execute", lambda *words: mistake(real, *words))
    for name in names:
        with pytest.raises(Refused):
            run(subjects.subject(subjects.appended, mariadb), getattr(trials, name))


# --- the claim and its locks -----------------------------------------------------------------------------------------


class Hold(Exception):
    """Stands where it was raised: its connection stays, inside the transaction."""


class HoldAt:
    def reached(self, step: Step) -> None:
        if step is Step.ROWS_AFTER:
            raise Hold


def standing(sink: Any) -> tuple[Any, Claim]:
    """An owner that stopped inside its transaction."""
    connection: Any = opened(sink, steps=HoldAt())
    claim = claimed(connection, sink)
    with pytest.raises(Hold):
        connection.write(claim, 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 1)]))
    return connection, claim


def test_a_claim_puts_out_an_owner_that_stands_in_its_transaction(make_sink: MakeSink) -> None:
    """S14: the holder is found by the lock that its row names, and its connection is killed: sooner than the server's
    own clock would."""
    sink = make_sink(key="customer", hand_over_s=20.0)
    stuck, stale = standing(sink)
    heir = opened(sink)
    began = time.monotonic()
    claim = claimed(heir, sink)
    assert time.monotonic() - began < 9, "one wait for the lock, a fifth of the hand-over time; the clock takes half"
    assert heir.write(claim, 0, 1, "r", rows(sink, [Total("a", 2)])) == Done()
    assert isinstance(stuck.write(stale, 0, 1, "r", rows(sink, [Total("a", 1)])), NotDone | Fenced)
    assert held(heir) == totals([("a", 2)])


def test_the_server_ends_an_owner_that_stands_by_itself(make_sink: MakeSink, url: str) -> None:
    """S14, without any claimer: idle_transaction_timeout, half of the hand-over time."""
    sink = make_sink(key="customer")
    stuck, _ = standing(sink)
    number = stuck._connection.thread_id()
    ended = time.monotonic() + 10
    while subjects.query(url, "SELECT 1 FROM information_schema.processlist WHERE id = %s", number):
        assert time.monotonic() < ended, "the server lets it stand"
    assert held(opened(sink)) == []


def test_another_connection_under_the_same_number_is_left_alone(make_sink: MakeSink, mariadb: MariaDBServer) -> None:
    """Numbers of connections begin anew with the server. The row names a lock, which nobody holds any more."""
    sink = make_sink(key="customer")
    first = opened(sink)
    assert first.write(claimed(first, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    mariadb.kill()
    mariadb.start()
    strangers = [subjects.connected(sink.url) for _ in range(30)]
    heir: Any = opened(sink)
    assert "is held by pid" in heir._put_out(claimed(heir, sink).delivery)
    for stranger in strangers:
        stranger.ping(reconnect=False)
        stranger.close()
    assert claimed(heir, sink).position == 1


def test_a_position_that_a_person_has_moved_is_the_one_that_counts(make_sink: MakeSink) -> None:
    """As `semel sink adopt` moves it after S16: another incarnation, and whoever claimed before is fenced. What has
    changed since they looked is not moved."""
    sink = make_sink()
    connection = opened(sink)
    before = claimed(connection, sink)
    assert connection.write(before, 0, 5, "r", []) == Done()
    other = LogIdentity("another", 4)
    with pytest.raises(Diverged, match=r"semel sink adopt APP.py totals"):
        claimed(connection, sink, log=other)
    seen = connection.remembered("app")
    to = [replace(seen[0], position=2, run="m", incarnation=2, log=other), Remembered(3, 0, 2, 7, "n", other)]
    assert connection.move("app", seen, to) == Done()
    assert isinstance(connection.write(before, 5, 6, "r", rows(sink, [Total("a", 1)], 5)), Fenced)
    assert isinstance(connection.move("app", seen, to), Fenced)
    claim = claimed(connection, sink, log=other)
    assert (claim.incarnation, claim.position, claim.run) == (2, 2, "m")
    assert claimed(connection, sink, 3, other).position == 7


def test_two_workers_prepare_at_once(make_sink: MakeSink) -> None:
    """One makes the tables, the others find them."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: opened(make_sink(key="customer")), range(8)))


# --- tables ----------------------------------------------------------------------------------------------------------

SHAPES: list[tuple[str, str | None, str]] = [
    ("(customer text)", None, "no column 'total'; wanted is bigint"),
    ("(customer text, total text)", None, "column 'total' is text, wanted is bigint"),
    ("(customer text, total float)", None, "column 'total' is float, wanted is bigint"),
    ("(customer text, total bigint, more text NOT NULL)", None, "'more' .* NOT NULL without a default"),
    (
        "(customer varchar(9) COLLATE utf8mb4_nopad_bin, total bigint)",
        "customer",
        r"no primary key or unique index on exactly \(customer\)",
    ),
    ("(customer varchar(9) PRIMARY KEY, total bigint) COLLATE utf8mb4_bin", "customer", "cannot be a key"),
    ("(customer varchar(9) PRIMARY KEY, total bigint) COLLATE utf8mb4_general_ci", "customer", "cannot be a key"),
    (
        "(customer text, total bigint, PRIMARY KEY (customer(5))) COLLATE utf8mb4_nopad_bin",
        "customer",
        "no primary key or unique index",
    ),
    (
        "(customer varchar(9) COLLATE utf8mb4_nopad_bin PRIMARY KEY, total bigint, UNIQUE t (total))",
        "customer",
        r"unique index t on \(total\) is not the key's",
    ),
    ("(customer text, total bigint) ENGINE = MyISAM", None, "is MyISAM, .* ALTER TABLE totals ENGINE = InnoDB"),
    ("(customer text, total bigint) ENGINE = Aria", None, "is Aria, "),
]


@pytest.mark.parametrize(("table", "key", "says"), SHAPES)
def test_a_table_of_another_shape_is_refused(make_sink: MakeSink, url: str, table: str, key: str, says: str) -> None:
    """Columns, keys that hold different texts for equal (also by padding), unique indexes that ON DUPLICATE KEY UPDATE
    would follow, engines without transactions."""
    subjects.query(url, f"CREATE TABLE totals {table}")
    with pytest.raises(SinkError, match=says):
        make_sink(key=key).open().prepare(Total)


def test_positions_in_an_engine_without_transactions_are_refused(make_sink: MakeSink, url: str) -> None:
    """S10: the position would stay when the rows go."""
    opened(make_sink())
    subjects.query(url, "ALTER TABLE semel_positions DROP PRIMARY KEY, ENGINE = MyISAM")
    with pytest.raises(SinkError, match="semel_positions is MyISAM"):
        make_sink().open().prepare(Total)


def test_a_view_is_no_table(make_sink: MakeSink, url: str) -> None:
    """Rows written through a view are somebody else's."""
    subjects.query(url, "CREATE VIEW totals AS SELECT 'a' AS customer, 1 AS total")
    with pytest.raises(SinkError, match="Name a table"):
        make_sink().open().prepare(Total)


def test_without_a_type_an_existing_table_decides(make_sink: MakeSink, url: str) -> None:
    """A stream of dicts: the table's columns are the fields; what fills itself is left out."""
    with pytest.raises(SinkError, match="value=TYPE"):
        opened(make_sink(), None)
    subjects.query(url, "CREATE TABLE totals (n bigint AUTO_INCREMENT PRIMARY KEY, customer text, total bigint)")
    sink = make_sink()
    connection = opened(sink, None)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [{"customer": "a", "total": 1}])) == Done()
    assert held(connection) == [("a", 1)]


def test_texts_that_other_collations_hold_for_equal_are_rows_of_their_own(make_sink: MakeSink) -> None:
    """S15: 'a', 'A', 'á' and 'a ' lie in different partitions, so they are different rows; so are a quote and a
    backslash what they are."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    texts = ["a", "A", "á", "a ", "'", "\\", "%s", "a\0b", "☃", "𝄞"]
    batch = rows(sink, [Total(text, n) for n, text in enumerate(texts)])
    assert connection.write(claimed(connection, sink), 0, len(texts), "r", batch) == Done()
    assert held(connection) == totals((text, n) for n, text in enumerate(texts))
    claim = claimed(connection, sink)
    gone = [deleted(sink, text, len(texts) + n) for n, text in enumerate(texts) if text != "a "]
    assert connection.write(claim, len(texts), 2 * len(texts), "r", gone) == Done()
    assert held(connection) == [("a ", 3)]


def test_decimals_that_are_one_as_floating_point_are_rows_of_their_own(make_sink: MakeSink) -> None:
    """A decimal compared with a text is compared as floating point, where these two are one: a delete of the one
    would take the other with it."""
    value_type = msgspec.defstruct("Keyed", [("k", Decimal), ("n", int)])
    sink = make_sink(key="k")
    connection = opened(sink, value_type)
    one, two = Decimal("12345678901234567890.1"), Decimal("12345678901234567890.2")
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", rows(sink, [value_type(one, 1), value_type(two, 2)])) == Done()
    assert connection.write(claim, 2, 3, "r", [deleted(sink, one, 2)]) == Done()
    assert [n for _, n in held(connection)] == [2]


# --- values ----------------------------------------------------------------------------------------------------------

AT = datetime(2013, 1, 1, 5, 15, 0, 123_456, timezone(timedelta(hours=2)))
ROUNDED: list[tuple[str, Any, Any, Any]] = [
    # the column, the field's type, a value that it holds, one that it would change, with a note at most
    ("decimal(9,2)", Decimal, Decimal("1.50"), Decimal("1.005")),
    ("decimal(9,2)", float, 0.25, 0.125),
    ("decimal(9,2)", Decimal, Decimal("1234567"), Decimal("12345678")),
    ("decimal(65,30)", Decimal, Decimal(10**34), Decimal(10**35)),
    ("decimal(65,30)", Decimal, Decimal("1E-30"), Decimal("1E-31")),
    ("datetime", datetime, AT.replace(microsecond=0), AT),
    ("datetime(3)", datetime, AT.replace(microsecond=5_000), AT),
    ("time", clock, clock(5, 15), clock(5, 15, 0, 500_000)),
    ("varchar(3)", str, "abc", "abc "),
    ("char(3)", str, "a", "a "),
    ("tinyint", int, 127, 128),
    ("int unsigned", int, 1, -1),
    ("tinytext", str, "x" * 255, "x" * 256),
    ("timestamp(6) NULL", datetime, AT, AT.replace(year=1960)),
]


@pytest.mark.parametrize(("column", "kind", "good", "bad"), ROUNDED, ids=[f"{c}-{b}"[:40] for c, _, _, b in ROUNDED])
def test_what_a_column_would_change_is_refused(
    make_sink: MakeSink, url: str, column: str, kind: Any, good: Any, bad: Any
) -> None:
    """Rounded, cut, out of range: refused by its offset, in a small batch and in a large one; what fits comes back."""
    value_type = msgspec.defstruct("Rounded", [("v", kind)])
    subjects.query(url, f"CREATE TABLE totals (v {column})")
    sink = make_sink()
    connection = opened(sink, value_type)
    claim = claimed(connection, sink)
    for count in (1, 150):
        batch = [*rows(sink, [value_type(good)] * count), *rows(sink, [value_type(bad)], 190)]
        with pytest.raises(RowRefused) as refused:
            connection.write(claim, 0, 200, "r", batch)
        assert refused.value.offset == 190
    assert connection.write(claim, 0, 1, "r", rows(sink, [value_type(good)])) == Done()
    assert list(connection.rows()) == [connection.canonical(sink.encode_value(value_type(good)))]


def test_a_row_larger_than_the_server_takes_is_refused_and_not_tried_for_ever(make_sink: MakeSink, url: str) -> None:
    """max_allowed_packet ends the connection, which would look like a loss to be waited out."""
    sink = make_sink()
    connection: Any = opened(sink)
    limit = connection._packet_bytes
    with pytest.raises(RowRefused, match="max_allowed_packet") as refused:
        connection.write(claimed(connection, sink), 0, 2, "r", rows(sink, [Total("a", 1), Total("x" * limit, 1)]))
    assert refused.value.offset == 1
    large = rows(sink, [Total("y" * 400_000, n) for n in range(60)])  # more than one packet together
    assert connection.write(claimed(connection, sink), 0, 60, "r", large) == Done()
    assert len(connection.rows()) == 60


def test_a_constraint_of_the_table_refuses_by_offset(make_sink: MakeSink, url: str) -> None:
    """UNIQUE on an appended table, and CHECK."""
    sink = make_sink()
    connection = opened(sink)
    subjects.query(url, "ALTER TABLE totals ADD CHECK (total < 1000)")
    subjects.query(url, "ALTER TABLE totals ADD UNIQUE (total)")
    claim = claimed(connection, sink)
    for last in (Total("a", 1000), Total("a", 5)):
        batch = rows(sink, [*(Total("a", n) for n in range(300)), last])
        with pytest.raises(RowRefused) as refused:
            connection.write(claim, 0, 400, "r", batch)
        assert refused.value.offset == 300


def test_weak_settings_are_named(tmp_path: Any, make_sink: MakeSink) -> None:
    """innodb_flush_log_at_trx_commit other than 1, and no doublewrite."""
    assert list(opened(make_sink()).notes()) == []
    settings = {"innodb-flush-log-at-trx-commit": "2", "innodb-doublewrite": "0"}
    with MariaDBServer(tmp_path / "weak", settings) as weak:
        notes = "".join(opened(make_sink(url=weak.url)).notes())
    assert "innodb_flush_log_at_trx_commit=2" in notes
    assert "innodb_doublewrite=OFF" in notes


# --- addresses and secrets -------------------------------------------------------------------------------------------


def test_where_names_the_place_and_no_secret() -> None:
    """repr, str and messages: host, port, database, table."""
    sink = MariaDB("mysql://me:hunt%40er2@db.example:3307/sales?ssl_ca=ca.pem", "totals", key="customer")
    assert sink.at.password == "hunt@er2"
    for text in (repr(sink), str(sink), sink.where, repr(sink.at)):
        assert "hunt" not in text
    assert sink.where == "MariaDB table totals at db.example:3307/sales"
    assert sink.renamed("_v").table == "sales.totals_v"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: address_of("postgresql://h/d"), "wanted is mysql://"),
        (lambda: address_of("mysql://u:secret@h"), "wanted is mysql://USER"),
        (lambda: address_of("mysql://u:secret@h:x/d"), "cannot be read"),
        (lambda: address_of("mysql://u:secret@h/d?local_infile=1"), "no option 'local_infile'"),
        (lambda: MariaDB("mysql://h/d", "a.b.c"), "DATABASE.TABLE"),
        (lambda: MariaDB("mysql://h/d", "t" * 60).renamed("_v123"), "64 characters"),
        (lambda: MariaDB("mysql://h/d", "t", hand_over_s=1), "at least 2 seconds"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_where_it_stands(make: Any, says: str) -> None:
    """Build-time mistakes are refused at build time, without what was given as a password."""
    with pytest.raises(SinkError, match=says) as refused:
        make()
    assert "secret" not in str(refused.value)


def test_a_refused_login_is_an_error_without_the_password(make_sink: MakeSink, url: str) -> None:
    """Waiting mends no password and no missing database; a server that is away is waited for."""
    with pytest.raises(SinkError, match="Access denied") as refused:
        make_sink(url=url.replace("root:@", "root:wrong@")).open().prepare(Total)
    assert "wrong" not in str(refused.value)
    with pytest.raises(SinkError, match="Unknown database"):
        make_sink(url=url + "_nowhere").open().prepare(Total)
    assert isinstance(MariaDB("mysql://root@127.0.0.1:1/test", "t").open().prepare(Total), NotDone)


def test_a_missing_extra_says_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyMySQL the declaration works, opening says what to do."""
    for name in ("connection", "tables"):
        monkeypatch.delitem(sys.modules, f"semel.sinks.mariadb_{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(UsageError, match=r"pip install 'semel\[mariadb\]'"):
        MariaDB("mysql://h/d", "totals").open()


def test_a_delete_without_a_row_is_none(make_sink: MakeSink) -> None:
    """A table of keys alone: what is written again changes nothing, what is deleted is gone."""
    value_type = msgspec.defstruct("Seen", [("k", int)])
    sink = make_sink(key="k")
    connection = opened(sink, value_type)
    claim = claimed(connection, sink)
    batch = rows(sink, [value_type(n) for n in range(3)])
    assert connection.write(claim, 0, 3, "r", batch) == Done()
    again = [structs.replace(row, offset=row.offset + 3) for row in batch]
    assert connection.write(claim, 3, 6, "r", again) == Done()
    assert connection.write(claim, 6, 8, "r", [deleted(sink, 1, 6), Row(7, 0, sink.encode_deleted(9), None)]) == Done()
    assert [row[0] for row in held(connection)] == [0, 2]


# --- a table that is gone --------------------------------------------------------------------------------------------


def test_a_dropped_table_is_not_made_anew_behind_its_positions(make_sink: MakeSink, url: str) -> None:
    """A new, empty table would lack for good what was delivered; what the message says mends it."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 2)])) == Done()
    connection.close()
    subjects.query(url, "DROP TABLE totals")
    for _ in range(2):  # it does not go away by trying again
        connection = opened(sink)
        with pytest.raises(SinkError, match=r"up to offset 2.*semel sink rewind .*by hand"):
            claimed(connection, sink)
    (seen,) = connection.remembered("app")
    assert connection.move("app", [seen], [replace(seen, position=0, run="")]) == Done()
    assert claimed(opened(sink), sink).position == 0


def test_verifys_table_is_like_the_users(make_sink: MakeSink, url: str) -> None:
    """One that rounds must do so in the run, too, where the values' type is known as well."""
    sink = make_sink(key="customer")
    opened(sink).close()
    subjects.query(url, "ALTER TABLE totals ADD COLUMN note varchar(3)")
    opened(sink.renamed("_run")).close()
    subjects.query(url, "SELECT note FROM totals_run")
