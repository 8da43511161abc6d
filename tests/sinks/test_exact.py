"""What a table holds is what was committed, or the record is refused; and one row has one key.

Databases round, cut, convert and drop without a word: what was counted once is then held as something else.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from semel.contract import Row
from semel.ports import Done
from semel.sinks.sink import RowRefused, SinkError
from tests.sinks.conftest import MakeSink
from tests.sinks.test_tables import execute
from tests.sinks.values import Total, claimed, deleted, held, opened, rows

AT = datetime(2013, 1, 1, 12, 0, 0, 123_456, timezone(timedelta(hours=2)))
NAIVE = datetime(2013, 1, 1, 12)
BIG = 2**53 + 1  # the first whole number that no float is


def keyed(kind: Any) -> Any:
    return msgspec.defstruct("Keyed", [("k", kind), ("n", int)])


def valued(kind: Any) -> Any:
    return msgspec.defstruct("Valued", [("v", kind)])


# --- values --------------------------------------------------------------------------------------------------------

# The column, the field's type (None: rows of dicts), what it holds as it is, what it would change, and how.
CHANGED: list[tuple[str, Any, list[Any], Any, str]] = [
    ("numeric(12,2)", Decimal, [Decimal("1.50"), Decimal("-0.25"), Decimal("7.000")], Decimal("1.005"), "round"),
    ("numeric(12,2)", float, [0.25, 3.0], 0.125, "round"),
    ("numeric(9)", Decimal, [Decimal("7.0"), Decimal("1E+3")], Decimal("7.5"), "round"),
    ("numeric(5,-2)", int, [1200, 0], 1234, "round"),
    ("numeric", None, ["12345678901234567890.5", 7, 0.1], "0x1F", "no decimal"),
    ("double precision", float, [0.1, 1e308, 5e-324], BIG, "53 bits"),
    ("double precision", None, [0.1, 2**53], BIG, "53 bits"),
    ("timestamp(3) with time zone", datetime, [AT.replace(microsecond=5_000)], AT, "3 digits of a second"),
    ("timestamptz", datetime, [AT], NAIVE, "no zone"),
    ("timestamptz", None, ["2013-01-01T12:00:00Z"], "now", "no timestamp"),
    ("timestamptz", None, ["2013-01-01T12:00:00.123456Z"], "2013-01-01T12:00:00.1234567Z", "6 digits of a second"),
    ("timestamp", datetime, [NAIVE], AT, "drop its zone"),
    ("timestamp(0)", datetime, [NAIVE], NAIVE.replace(microsecond=1), "0 digits of a second"),
    ("date", date, [date(2013, 1, 1)], None, ""),
    ("date", None, ["2013-01-01"], "20130101", "no date"),
    ("time", time, [time(5, 15), time(5, 15, 0, 1)], time(5, 15, tzinfo=UTC), "drop its zone"),
    ("time(0)", time, [time(5, 15)], time(23, 59, 59, 500_000), "0 digits of a second"),
    ("timetz", time, [time(5, 15, tzinfo=UTC)], time(5, 15), "no zone"),
    ("interval(0)", timedelta, [timedelta(days=40, seconds=2)], timedelta(seconds=2.5), "0 digits of a second"),
    ("interval", timedelta, [timedelta(hours=-5), timedelta(microseconds=-1), timedelta(-1, 1, 1)], None, ""),
    ("varchar(3)", str, ["abc", "a ", "日本語"], "abc   ", "6 characters"),
    ("char(3)", str, ["abc", "ab "], "a", "blanks"),
]


@pytest.mark.parametrize(
    ("column", "kind", "exact", "changed", "says"),
    CHANGED,
    ids=[f"{column}-{getattr(kind, '__name__', 'dict')}" for column, kind, *_ in CHANGED],
)
def test_postgres_holds_a_value_exactly_or_refuses_its_record(
    make_postgres: MakeSink, column: str, kind: Any, exact: list[Any], changed: Any, says: str
) -> None:
    """The story: numeric(10,2) made 1.01 of 1.005, `timestamp` dropped +02:00, varchar(3) the blanks; a timedelta
    below zero was refused though an interval holds it. Whether one statement writes a batch, or COPY."""
    execute(make_postgres, f"CREATE TABLE totals (v {column})")
    sink = make_postgres()
    value_type = None if kind is None else valued(kind)
    connection = opened(sink, value_type)
    claim = claimed(connection, sink)

    def row(value: Any) -> Any:
        return {"v": value} if value_type is None else value_type(value)

    done = 0
    for copies in (1, 150):
        batch = rows(sink, [row(value) for value in exact * copies], done)
        assert connection.write(claim, done, done + len(batch), "r", batch) == Done()
        done += len(batch)
    expected = [connection.canonical(sink.encode_value(row(value))) for value in exact * 151]
    assert sorted(connection.rows()) == sorted(expected)
    if changed is not None:
        with pytest.raises(RowRefused, match=says) as refused:
            connection.write(claim, done, done + 2, "r", rows(sink, [row(exact[0]), row(changed)], done))
        assert refused.value.offset == done + 1


def test_postgres_a_domain_is_judged_by_what_it_stands_for(make_postgres: MakeSink) -> None:
    """Its name says nothing of the digits that it rounds to."""
    execute(make_postgres, "CREATE DOMAIN money_of_ours AS numeric(12,2)")
    execute(make_postgres, "CREATE TABLE totals (v money_of_ours)")
    sink, value_type = make_postgres(), valued(Decimal)
    connection = opened(sink, value_type)
    with pytest.raises(RowRefused, match="money_of_ours would round it"):
        connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [value_type(Decimal("1.005"))]))


@pytest.mark.parametrize("column", ["interval day", "interval day to second(3)"])
def test_postgres_an_interval_of_some_fields_is_refused_at_the_start(make_postgres: MakeSink, column: str) -> None:
    """It drops what is smaller; no value needs to come to know it."""
    execute(make_postgres, f"CREATE TABLE totals (v {column})")
    with pytest.raises(SinkError, match=r"'v' is interval day.*, wanted is interval"):
        opened(make_postgres(), valued(timedelta))


@pytest.mark.parametrize("column", ["DATE", "DATETIME", "TIMESTAMP", "NUMERIC", "DECIMAL(10,2)"])
def test_sqlite_a_column_that_makes_numbers_of_texts_is_refused_for_them(make_sqlite: MakeSink, column: str) -> None:
    """The story: `day DATE` made 7 of "007" and 100000 of "1e5", and one row of the keys "01" and "1". Dates keep
    their hyphens in it, so they may lie there."""
    execute(make_sqlite, f"CREATE TABLE totals (v {column})")
    for kind in (str, Decimal, float, None):
        with pytest.raises(SinkError, match=r"column 'v' is .*TEXT|column 'v' is .*REAL"):
            opened(make_sqlite(), None if kind is None else valued(kind))
    for kind, value in (
        (datetime, AT),
        (date, AT.date()),
        (time, time(5)),
        (timedelta, timedelta(-1)),
        (uuid.UUID, uuid.UUID(int=7)),
    ):
        sink, value_type = make_sqlite(), valued(kind)
        connection = opened(sink, value_type)
        execute(make_sqlite, "DELETE FROM totals")
        claim = claimed(connection, sink)
        batch = rows(sink, [value_type(value)], claim.position)
        assert connection.write(claim, claim.position, claim.position + 1, "r", batch) == Done()
        assert connection.rows() == [connection.canonical(sink.encode_value(value_type(value)))]
    with pytest.raises(RowRefused, match="looks like a number"):  # the type is only said, nobody has looked
        connection.write(claim, claim.position + 1, claim.position + 2, "r", [Row(9, 0, None, b'{"v":"007"}')])


def test_sqlite_real_rounds_whole_numbers_that_no_float_is(make_sqlite: MakeSink) -> None:
    """Rows of dicts may hold an int in a column of floats."""
    execute(make_sqlite, "CREATE TABLE totals (v REAL)")
    sink = make_sqlite()
    connection = opened(sink, None)
    with pytest.raises(RowRefused, match="53 bits"):
        connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [{"v": BIG}]))


# --- keys (FAULTS S15) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("numeric(10,2)", Decimal),
        ("numeric(10,2)", float),
        ("numeric(5,-2)", int),
        ("timestamptz(0)", datetime),
        ("timestamp(3)", datetime),
        ("time(0)", time),
    ],
)
def test_postgres_a_column_that_rounds_cannot_be_a_key(make_postgres: MakeSink, column: str, kind: Any) -> None:
    """It made one row of 1.001 and 1.002, written from two partitions."""
    execute(make_postgres, f"CREATE TABLE totals (k {column} PRIMARY KEY, n bigint)")
    with pytest.raises(SinkError, match=r"cannot be a key: it holds fewer digits"):
        opened(make_postgres(key="k"), keyed(kind))


def test_postgres_whole_numbers_as_keys_in_a_numeric_of_some_digits(make_postgres: MakeSink) -> None:
    """numeric(10,0) rounds no int."""
    execute(make_postgres, "CREATE TABLE totals (k numeric(10,0) PRIMARY KEY, n bigint)")
    sink, value_type = make_postgres(key="k"), keyed(int)
    connection = opened(sink, value_type)
    batch = rows(sink, [value_type(5, 1), value_type(5, 2)])
    assert connection.write(claimed(connection, sink), 0, 2, "r", batch) == Done()
    assert held(connection) == [("5", 2)] or held(connection) == [(5, 2)]


# The column of a table whose rows are dicts; a key that is taken; one that the database holds for equal, or changes.
WAYS: list[tuple[str, Any, Any]] = [
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
    ("date", "2013-01-01", "20130101"),
    ("numeric", 1, "1.0"),
    ("numeric", Decimal("1.50"), "1.50"),
    ("numeric", Decimal("1.5"), 1.5),
    ("numeric", Decimal("1E+120"), 10**120),
    ("timestamptz", "2013-01-01T12:00:00Z", "2013-01-01T14:00:00+02:00"),
    ("timestamptz", "2013-01-01T12:00:00.500000Z", "2013-01-01T12:00:00.5Z"),
    ("timestamp", "2013-01-01T12:00:00", "2013-01-01T12:00:00Z"),
    ("timestamptz", "0001-01-02T00:00:00Z", "0001-01-01T00:00:00+14:00"),
    ("float8", 2**53, BIG),
    ("text", "1", 1),
    ("bigint", 1, "1"),
    ("varchar(3)", "abc", "abc "),
    ("bytea", "AA==", "AB=="),
]


@pytest.mark.parametrize(("column", "taken", "other"), WAYS)
def test_postgres_a_key_is_written_in_one_way_or_refused(
    make_postgres: MakeSink, column: str, taken: Any, other: Any
) -> None:
    """The story: rows of dicts with "1.0" and "1.00" in a numeric key are one row under two keys of the outbox, in two
    partitions. Writes and deletes alike."""
    execute(make_postgres, f"CREATE TABLE totals (k {column} PRIMARY KEY, n bigint)")
    sink = make_postgres(key="k")
    connection = opened(sink, None)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [{"k": taken, "n": 1}])) == Done()
    for wrong in (rows(sink, [{"k": other, "n": 2}], 1), [deleted(sink, other, 1)]):
        with pytest.raises(RowRefused) as refused:
            connection.write(claim, 1, 2, "r", wrong)
        assert refused.value.offset == 1
    assert len(connection.rows()) == 1
    assert connection.write(claim, 1, 2, "r", [deleted(sink, taken, 1)]) == Done()
    assert connection.rows() == []


def test_a_delete_whose_key_is_of_another_type_is_refused(make_sink: MakeSink) -> None:
    """The story: a stream keyed by int 1, rows keyed by the text "1": the delete was [1], the write ["1"], in two
    partitions, and the row stayed. Where no type tells it before, the sink does."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("1", 1)])) == Done()
    with pytest.raises(RowRefused, match=r"its key has 1 for the column 'customer', which holds text"):
        connection.write(claim, 1, 2, "r", [deleted(sink, 1, 1)])
    assert connection.write(claim, 1, 2, "r", [deleted(sink, "1", 1)]) == Done()
    assert held(connection) == []


def test_a_row_whose_key_is_another_than_its_field_is_refused(make_sqlite: MakeSink) -> None:
    """A Decimal among dicts loses its zeros in the key: a TEXT column would hold another value than was committed."""
    execute(make_sqlite, "CREATE TABLE totals (k TEXT PRIMARY KEY, n INTEGER)")
    sink = make_sqlite(key="k")
    connection = opened(sink, None)
    with pytest.raises(RowRefused, match=r"field 'k' is '1\.50', and '1\.5' in its key"):
        connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [{"k": Decimal("1.50"), "n": 1}]))


def test_huge_decimals_that_are_equal_have_equal_keys(make_sink: MakeSink) -> None:
    """From 100 digits on they were written as they came: 1E+120 and 1.0E+120 were two keys of one row."""
    sink = make_sink(key="k")
    assert sink.encode_deleted(Decimal("1E+120")) == sink.encode_deleted(Decimal("1.0E+120"))


# --- a table that is gone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["refill", "by hand"])
def test_a_dropped_table_is_not_made_anew_behind_its_positions(make_sink: MakeSink, way: str) -> None:
    """The story: somebody dropped the table, the next start made it anew, empty, and went on at offset 6: rows 0 to 5
    were missing for good, and nothing was said. Now it stops and says how to go on."""
    sink = make_sink(key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    batch = rows(sink, [Total(str(n), n) for n in range(6)])
    assert connection.write(claim, 0, 6, "r", batch) == Done()
    connection.close()
    execute(make_sink, "DROP TABLE totals")
    for _ in range(2):  # it does not go away by trying again
        connection = opened(sink)
        with pytest.raises(
            SinkError, match=r"up to offset 6.*semel sink rewind APP.py totals --to-start.*create the table by hand"
        ):
            claimed(connection, sink)
    if way == "refill":
        (seen,) = connection.remembered("app")  # type: ignore[attr-defined]
        assert connection.move("app", [seen], [replace(seen, position=0, run="")]) == Done()  # type: ignore[attr-defined]
    else:
        execute(make_sink, "CREATE TABLE totals (customer text PRIMARY KEY, total bigint)")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert claim.position == (0 if way == "refill" else 6)
    more = rows(sink, [Total(str(n), n) for n in range(claim.position, 7)], claim.position)
    assert connection.write(claim, claim.position, 7, "r", more) == Done()
    assert len(connection.rows()) == 7 - claim.position


def test_a_table_of_another_app_with_a_sink_of_that_name_is_created(make_sink: MakeSink) -> None:
    """Positions of somebody else say nothing of ours."""
    other = make_sink("others", name="totals")
    connection = opened(other)
    connection.write(claimed(connection, other), 0, 1, "r", rows(other, [Total("a", 1)]))
    connection._connected().execute("UPDATE semel_positions SET app = 'other'")  # type: ignore[attr-defined]
    sink = make_sink()
    connection = opened(sink)
    assert claimed(connection, sink).position == 0
    assert connection.rows() == []


def test_a_missing_unique_key_is_mended_by_what_the_message_says(make_sink: MakeSink) -> None:
    """It proposed ALTER TABLE … ADD PRIMARY KEY, which SQLite does not have."""
    execute(make_sink, "CREATE TABLE totals (customer text, total bigint)")
    with pytest.raises(SinkError) as refused:
        opened(make_sink(key="customer"))
    said = str(refused.value)
    execute(make_sink, said[said.index("CREATE UNIQUE INDEX") :].replace("ON table", "ON totals"))
    opened(make_sink(key="customer"))


def test_sqlite_a_file_that_is_no_database_says_what_next(make_sqlite: MakeSink) -> None:
    """Not only that it is none."""
    sink = make_sqlite()
    with open(sink.path, "w") as file:
        file.write("this is no database, and it is long enough to be looked at" * 20)
    with pytest.raises(SinkError, match=r"not a database.*Name another file"):
        sink.open(None).prepare(Total)
