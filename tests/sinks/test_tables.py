"""Tables are created from a value's type or validated against it; every type arrives as it was committed."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict

import msgspec
import psycopg
import pytest

from semel.contract import Row
from semel.errors import UsageError
from semel.ports import Done
from semel.sinks import Postgres, SQLite
from semel.sinks.postgres_types import POSTGRES
from semel.sinks.schema import Found, judged
from semel.sinks.sink import RowRefused, SinkError, encode_row
from tests.sinks.conftest import MakeSink
from tests.sinks.values import Total, claimed, held, opened, rows


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Everything:
    id: int
    ratio: float
    amount: Decimal
    ok: bool
    text: str
    at: datetime
    day: date
    clock: time
    took: timedelta
    ref: uuid.UUID
    raw: bytes
    more: dict[str, list[int]]
    colour: Colour
    maybe: int | None = None


EVERYTHING = Everything(
    7,
    0.1,
    Decimal("12345678901234567890.123456789"),
    True,
    "a 'quoted' \\ \t\n text ☃",
    datetime(2013, 1, 1, 5, 15, 0, 123456, timezone(timedelta(hours=2))),
    date(2013, 1, 1),
    time(5, 15),
    timedelta(days=1, seconds=2),
    uuid.UUID(int=1),
    b"\0\xff\\",
    {"a": [1, 2]},
    Colour.RED,
)


@pytest.mark.parametrize("copies", [1, 150])
def test_every_type_arrives_as_it_was_committed(make_sink: MakeSink, copies: int) -> None:
    """What `rows` shows equals what `canonical` makes of the record in the log: the comparison of verify."""
    sink = make_sink()
    connection = opened(sink, Everything)
    batch = rows(sink, [EVERYTHING] * copies)
    assert connection.write(claimed(connection, sink), 0, copies, "r", batch) == Done()
    assert batch[0].value is not None
    expected = connection.canonical(batch[0].value)
    assert list(connection.rows()) == [expected] * copies
    shown = msgspec.json.decode(expected)
    assert shown["amount"] == "12345678901234567890.123456789"
    assert (shown["text"], shown["maybe"], shown["more"]) == (EVERYTHING.text, None, {"a": [1, 2]})


class AsNamedTuple(NamedTuple):
    customer: str
    total: int


class AsTypedDict(TypedDict):
    customer: str
    total: int


class AsStruct(msgspec.Struct):
    customer: str
    total: int


class AsRenamed(msgspec.Struct, rename={"who": "customer", "much": "total"}):
    who: str
    much: int


@pytest.mark.parametrize(
    ("value_type", "value"),
    [
        (AsNamedTuple, AsNamedTuple("a", 1)),
        (AsTypedDict, AsTypedDict(customer="a", total=1)),
        (AsStruct, AsStruct("a", 1)),
        (AsRenamed, AsRenamed("a", 1)),
        (Total | None, Total("a", 1)),
    ],
)
def test_any_value_with_named_fields_is_a_row(make_sink: MakeSink, value_type: Any, value: Any) -> None:
    """Dataclass, Struct (renamed fields too), NamedTuple, TypedDict; with or without None beside it."""
    sink = make_sink(key="customer")
    connection = opened(sink, value_type)
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [value])) == Done()
    assert held(connection) == [("a", 1)]


def test_what_is_no_row_is_refused_before_it_enters_the_outbox(make_sink: MakeSink) -> None:
    """In the task, at the user's line, not hours later at the sink."""
    for value in (1, "text", [1], float("nan")):
        with pytest.raises(SinkError, match="named fields"):
            make_sink().encode_value(value)
    with pytest.raises(SinkError, match=r"'more\[1\]' is not a finite number"):
        make_sink().encode_value({"more": [1.0, float("inf")], "none": None})
    with pytest.raises(SinkError, match="cannot be written"):
        make_sink().encode_value({"more": object()})
    with pytest.raises(SinkError, match="no such field"):
        make_sink(key="nobody").encode_key(Total("a", 1))
    with pytest.raises(SinkError, match="'customer' is None"):
        make_sink(key="customer").encode_key({"customer": None})
    with pytest.raises(SinkError, match="named fields"):
        opened(make_sink(), int)
    assert encode_row({"none": None}) == b'{"none":null}'


SHAPES: list[tuple[str, str | None, str]] = [
    # the table that is there, key=, what the message says
    ("(customer text)", None, "no column 'total'; wanted is (bigint|INTEGER)"),
    ("(customer text, total text)", None, "column 'total' is (text|TEXT), wanted is (bigint|INTEGER)"),
    ("(customer bytea, total bigint)", None, "column 'customer' is bytea, wanted is (text|TEXT)"),
    ("(customer text, total bigint, more text NOT NULL)", None, "'more' .* NOT NULL without a default"),
    ("(customer text, total bigint)", "customer", r"no primary key or unique index on exactly \(customer\)"),
    (
        "(customer text, total bigint, PRIMARY KEY (customer, total))",
        "customer",
        r"no primary key or unique index on exactly \(customer\)",
    ),
]


@pytest.mark.parametrize(("table", "key", "says"), SHAPES)
def test_a_table_of_another_shape_is_refused(make_sink: MakeSink, table: str, key: str | None, says: str) -> None:
    """The message names the column, what it is and what is wanted."""
    sink = make_sink(key=key)
    sink.open(None).prepare(Total)
    execute(make_sink, "DROP TABLE totals")
    execute(make_sink, f"CREATE TABLE totals {table}")
    with pytest.raises(SinkError, match=says):
        sink.open(None).prepare(Total)


def execute(make_sink: MakeSink, statement: str) -> None:
    sink = make_sink("unused")
    opened(sink)._connected().execute(statement)  # type: ignore[attr-defined]


def test_a_table_with_more_columns_and_other_fitting_types_is_taken(make_sink: MakeSink) -> None:
    """What fills itself may be there; values land where they belong."""
    execute(
        make_sink,
        "CREATE TABLE totals (customer varchar(9) PRIMARY KEY, total smallint, noted text DEFAULT 'x', more integer)",
    )
    sink = make_sink(key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", rows(sink, [Total("a", 1), Total("a", 2)])) == Done()
    assert held(connection) == [("a", 2)]


def test_a_nullable_field_wants_a_nullable_column(make_sink: MakeSink) -> None:
    """Found when the sink is prepared, not at the first None."""

    class Maybe(msgspec.Struct):
        customer: str
        total: int | None

    execute(make_sink, "CREATE TABLE totals (customer text, total bigint NOT NULL)")
    with pytest.raises(SinkError, match=r"'total' is .* NOT NULL, the field may be None"):
        opened(make_sink(), Maybe)


def test_without_a_type_an_existing_table_decides(make_sink: MakeSink) -> None:
    """A stream of dicts: the table's columns are the fields; no table is an error that says what to do."""
    with pytest.raises(SinkError, match="value=TYPE"):
        opened(make_sink(), None)
    assert opened(make_sink("typed", value=Total), None).rows() == []
    execute(make_sink, "CREATE TABLE totals (customer text, total bigint)")
    connection = opened(make_sink(), None)
    sink = make_sink()
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [{"customer": "a", "total": 1}])) == Done()
    with pytest.raises(RowRefused, match="'other'"):
        connection.write(claim, 1, 2, "r", rows(sink, [{"other": 1}], 1))
    assert held(connection) == [("a", 1)]


def test_a_view_is_no_table(make_sink: MakeSink) -> None:
    """Rows written through a view are somebody else's."""
    execute(make_sink, "CREATE VIEW totals AS SELECT 'a' AS customer, 1 AS total")
    with pytest.raises(SinkError, match="Name a table"):
        opened(make_sink())


# --- what only one of them can get wrong ---------------------------------------------------------------------------


def test_postgres_refuses_a_table_that_its_own_crash_empties(make_postgres: MakeSink) -> None:
    """UNLOGGED: the rows go, the position stays, the records are never delivered again."""
    execute(make_postgres, "CREATE UNLOGGED TABLE totals (customer text, total bigint)")
    with pytest.raises(SinkError, match="UNLOGGED"):
        opened(make_postgres())


def test_postgres_refuses_a_key_that_holds_different_texts_for_equal(make_postgres: MakeSink) -> None:
    """S15: 'a' and 'A' would lie in two partitions and be one row."""
    execute(make_postgres, "CREATE TABLE totals (customer char(9) PRIMARY KEY, total bigint)")
    with pytest.raises(SinkError, match="cannot be a key"):
        opened(make_postgres(key="customer"))
    # The wheel's Postgres is built without ICU, so a case-insensitive collation is shown as the catalog would tell it.
    column = Found("customer", "text", "text", True, False, False, deterministic=False)
    with pytest.raises(SinkError, match="deterministic collation"):
        judged(POSTGRES, "here", [column], None, ("customer",), [frozenset(["customer"])])


def test_postgres_real_would_round(make_postgres: MakeSink) -> None:
    """A column that holds fewer digits than were committed is another shape."""

    class Ratio(msgspec.Struct):
        ratio: float

    execute(make_postgres, "CREATE TABLE totals (ratio real)")
    with pytest.raises(SinkError, match="'ratio' is real, wanted is double precision"):
        opened(make_postgres(), Ratio)


ROUNDED: list[tuple[str, Any, Any, Any]] = [
    # the column, the field's type, a value that it holds, one that it would change silently
    ("numeric(9,2)", Decimal, Decimal("1.50"), Decimal("1.005")),
    ("numeric(9,2)", float, 0.25, 0.125),
    ("numeric(9)", Decimal, Decimal("7.0"), Decimal("7.5")),
    ("numeric(2,-3)", int, 12_000, 12_345),
    ("timestamp(3) with time zone", datetime, EVERYTHING.at.replace(microsecond=5_000), EVERYTHING.at),
    ("timestamp(0)", datetime, datetime(2013, 1, 1), datetime(2013, 1, 1, 0, 0, 0, 1)),
    ("time(0)", time, time(5, 15), time(5, 15, 0, 500_000)),
    ("interval(0)", timedelta, timedelta(days=1, seconds=2), timedelta(seconds=2.5)),
    ("varchar(3)", str, "abc", "abc "),
    ("char(3)", str, "a", "a "),
]


@pytest.mark.parametrize(
    ("column", "kind", "held_", "changed"), ROUNDED, ids=[f"{c}-{k.__name__}" for c, k, *_ in ROUNDED]
)
def test_postgres_what_a_column_would_round_is_refused(
    make_postgres: MakeSink, column: str, kind: Any, held_: Any, changed: Any
) -> None:
    """A column of fewer digits takes what it holds; what it would change without a word is refused by its offset."""
    value_type = msgspec.defstruct("Rounded", [("v", kind)])
    execute(make_postgres, f"CREATE TABLE totals (v {column})")
    sink = make_postgres()
    connection = opened(sink, value_type)
    claim = claimed(connection, sink)
    for count in (1, 150):
        good = rows(sink, [value_type(held_)] * count)
        with pytest.raises(RowRefused, match=r"column 'v' cannot hold") as refused:
            connection.write(claim, 0, 200, "r", [*good, *rows(sink, [value_type(changed)], 190)])
        assert refused.value.offset == 190
    assert connection.write(claim, 0, 1, "r", rows(sink, [value_type(held_)])) == Done()
    shown = [row.rstrip(b' "}') for row in connection.rows()]  # char(n) is shown with its padding
    assert shown == [connection.canonical(sink.encode_value(value_type(held_))).rstrip(b' "}')]


def test_postgres_an_interval_of_some_fields_is_refused(make_postgres: MakeSink) -> None:
    """It would drop the others."""
    execute(make_postgres, "CREATE TABLE totals (v interval day to minute)")
    with pytest.raises(SinkError, match="'v' is interval day to minute, wanted is interval"):
        opened(make_postgres(), msgspec.defstruct("Took", [("v", timedelta)]))


def test_postgres_with_nul_in_a_text_refuses_the_record(make_postgres: MakeSink) -> None:
    """Postgres cannot hold it; the record is named, in a small batch and in a large one."""
    sink = make_postgres()
    connection = opened(sink)
    for count in (0, 200):
        batch = rows(sink, [*(Total("a", n) for n in range(count)), Total("a\0b", 1)])
        with pytest.raises(RowRefused) as refused:
            connection.write(claimed(connection, sink), 0, count + 1, "r", batch)
        assert refused.value.offset == count


def test_postgres_schema_and_long_names(make_postgres: MakeSink) -> None:
    """SCHEMA.TABLE, control table beside it; a name that Postgres would cut is refused."""
    execute(make_postgres, "CREATE SCHEMA reports")
    sink = make_postgres("reports.totals", key="customer")
    connection = opened(sink)
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    found = connection._connected().execute("SELECT position FROM reports.semel_positions").fetchall()  # type: ignore[attr-defined]
    assert found == [(1,)]
    with pytest.raises(SinkError, match="63 bytes"):
        make_postgres("t" * 60).renamed("_v123")
    with pytest.raises(SinkError, match=r"SCHEMA\.TABLE"):
        make_postgres("a.b.c")


def test_postgres_names_weak_settings(make_postgres: MakeSink) -> None:
    """synchronous_commit=off as a default is mended for our session, and said; triggers are said."""
    sink = make_postgres()
    connection = opened(sink)
    assert list(connection.notes()) == []
    name = connection._connected().info.dbname  # type: ignore[attr-defined]
    execute(make_postgres, f"ALTER DATABASE {name} SET synchronous_commit = off")
    connection = opened(sink)
    assert "semel's own session has set it to on" in "".join(connection.notes())
    assert connection._connected().execute("SHOW synchronous_commit").fetchone() == ("on",)  # type: ignore[attr-defined]


def test_two_workers_prepare_at_once(make_postgres: MakeSink) -> None:
    """CREATE TABLE IF NOT EXISTS alone fails for one of two that race."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: opened(make_postgres(key="customer")), range(8)))


def test_sqlite_decimals_lie_in_text(make_sqlite: MakeSink) -> None:
    """NUMERIC would keep them as floating point."""

    class Amount(msgspec.Struct):
        amount: Decimal

    execute(make_sqlite, "CREATE TABLE totals (amount NUMERIC)")
    with pytest.raises(SinkError, match="'amount' is NUMERIC, wanted is TEXT"):
        opened(make_sqlite(), Amount)


def test_sqlite_refuses_a_key_whose_index_ignores_case(make_sqlite: MakeSink) -> None:
    """S15 again: COLLATE NOCASE makes one row of two keys."""
    execute(make_sqlite, "CREATE TABLE totals (customer TEXT COLLATE NOCASE PRIMARY KEY, total INTEGER)")
    with pytest.raises(SinkError, match="unique index on exactly"):
        opened(make_sqlite(key="customer"))


def test_sqlite_syncs_every_commit(make_sqlite: MakeSink) -> None:
    """synchronous=EXTRA in every journal mode; a new file is in WAL mode, a file that was there keeps its own."""
    connection = opened(make_sqlite())._connected()  # type: ignore[attr-defined]
    assert connection.execute("PRAGMA synchronous").fetchone() == (3,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.execute("PRAGMA journal_mode = DELETE")
    again = opened(make_sqlite())._connected()  # type: ignore[attr-defined]
    assert again.execute("PRAGMA journal_mode").fetchone() == ("delete",)


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal("1E+2"), 100),
        (0.0, -0.0),
        (datetime(2013, 1, 1, 12, tzinfo=UTC), datetime(2013, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))),
        (Colour.RED, "red"),
    ],
)
def test_equal_keys_have_equal_bytes(make_sink: MakeSink, one: object, other: object) -> None:
    """S15: what the sink holds for one row lies in one partition of the outbox."""
    sink = make_sink(key="k")
    assert sink.encode_key({"k": one}) == sink.encode_key({"k": other}) == sink.encode_deleted(other)


def test_different_keys_have_different_bytes(make_sink: MakeSink) -> None:
    """Also with 29 digits, where the default decimal context rounds; also across several fields."""
    sink = make_sink(key="k")
    a, b = Decimal("0.1234567890123456789012345678901"), Decimal("0.1234567890123456789012345678902")
    assert sink.encode_key({"k": a}) != sink.encode_key({"k": b})
    two = make_sink(key=("k", "l"))
    assert two.encode_key({"k": "a", "l": "b,c"}) != two.encode_key({"k": "a,b", "l": "c"})
    assert two.encode_deleted(("a", "b")) == two.encode_key({"k": "a", "l": "b"})
    with pytest.raises(SinkError, match="does not say the fields k, l"):
        two.encode_deleted("a")


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (Decimal, Decimal("1.50"), Decimal("1.5")),
        (datetime, datetime(2013, 1, 1, 12, tzinfo=UTC), datetime(2013, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))),
        (uuid.UUID, uuid.UUID(int=5), uuid.UUID(int=5)),
        (int, 5, 5),
    ],
)
def test_a_key_of_any_type_finds_its_row(make_sink: MakeSink, kind: Any, one: Any, other: Any) -> None:
    """Written in one form, replaced and deleted in another that is equal."""
    value_type = msgspec.defstruct("Keyed", [("k", kind), ("n", int)])
    sink = make_sink(key="k")
    connection = opened(sink, value_type)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [value_type(one, 1)])) == Done()
    assert connection.write(claim, 1, 2, "r", rows(sink, [value_type(other, 2)], 1)) == Done()
    assert [n for _, n in held(connection)] == [2]
    assert connection.rows() == [connection.canonical(sink.encode_value(value_type(one, 2)))]
    assert connection.write(claim, 2, 3, "r", [Row(2, 0, sink.encode_deleted(other), None)]) == Done()
    assert held(connection) == []


# --- addresses and secrets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:hunter2@db.example:5433/sales?password=hunter2",
        "host=db.example port=5433 dbname=sales user=me password=hunter2",
        "host='db.example' password='hunt er2 hunter2' port=5433 dbname=sales",
    ],
)
def test_where_names_the_place_and_no_secret(dsn: str) -> None:
    """repr, str and messages: host, port, database, table."""
    sink = Postgres(dsn, "totals", key="customer")
    for text in (repr(sink), str(sink), sink.where):
        assert "db.example:5433/sales" in text
        assert "hunt" not in text
        assert "totals" in text


def test_a_refused_login_is_an_error_without_the_password(make_postgres: MakeSink) -> None:
    """Waiting mends no password: stop and say."""
    dsn = make_postgres().dsn.replace("//postgres:", "//postgres:wrong")
    with pytest.raises(SinkError, match="password authentication failed") as refused:
        make_postgres(dsn=dsn).open().prepare(Total)
    assert "wrong" not in str(refused.value)
    with pytest.raises(SinkError, match="does not exist"):
        make_postgres(dsn=make_postgres().dsn + "_nowhere").open().prepare(Total)
    with pytest.raises(SinkError, match="cannot be read"):
        make_postgres(dsn="host='unclosed").open().prepare(Total)


def test_a_missing_extra_says_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the declaration works, opening says what to do."""
    import sys

    for name in ("connection", "session"):
        monkeypatch.delitem(sys.modules, f"semel.sinks.postgres_{name}", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    sink = Postgres("postgresql://h/d", "totals")
    with pytest.raises(UsageError, match=r"pip install 'semel\[postgres\]'"):
        sink.open()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SQLite(":memory:", "t"), "name a file"),
        (lambda: SQLite("a.db", ""), "wanted is a name"),
        (lambda: SQLite("a.db", "t", key=()), "one field"),
        (lambda: Postgres("", "t", key=("a", "a")), "different ones"),
        (lambda: Postgres("", "t", hand_over_s=0.1), "at least 1 second"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_where_it_stands(make: Callable[[], Any], says: str) -> None:
    """Build-time mistakes are refused at build time."""
    with pytest.raises(SinkError, match=says):
        make()


def test_sqlite_in_a_folder_that_is_not_there(tmp_path: Any) -> None:
    """It is not created: a wrong path would be found by nobody."""
    with pytest.raises(SinkError, match="no folder"):
        SQLite(tmp_path / "nowhere" / "x.db", "t").open().prepare(Total)
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be looked at" * 20)
    with pytest.raises(SinkError, match="not a database"):
        SQLite(tmp_path / "text.db", "t").open().prepare(Total)


def test_the_databases_agree_with_psycopg_on_what_exists(make_postgres: MakeSink) -> None:
    """The created table is plain: anyone can read it with the types one would expect."""
    sink = make_postgres(key="id")
    opened(sink, Everything)
    with psycopg.connect(sink.dsn) as connection:
        found: dict[str, str] = dict(
            connection.execute(
                "SELECT column_name::text, data_type::text FROM information_schema.columns WHERE table_name = 'totals'"
            ).fetchall()
        )
    assert (found["id"], found["at"], found["more"], found["amount"]) == (
        "bigint",
        "timestamp with time zone",
        "jsonb",
        "numeric",
    )
