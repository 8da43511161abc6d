"""Iceberg tables, their catalog in SQLite and in Postgres: through the contract kit, through the tests of every
transactional sink, and what only a catalog that compares snapshots gets wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import CommitFailedException

from semel.contract import Claim, LogIdentity
from semel.errors import UsageError
from semel.host.postgres import PostgresServer
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Unknown
from semel.sinks import Iceberg
from semel.sinks import iceberg_connection as under
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import lake_subjects as subjects
from tests.sinks.conftest import MakeSink, database, server  # noqa: F401
from tests.sinks.planted_sinks import Planted
from tests.sinks.test_tables import (  # noqa: F401
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
    test_none_deletes_the_row_of_its_key,
    test_none_without_a_key_is_refused,
    test_only_renamed_tables_are_dropped,
    test_rows_and_position_are_one,
    test_the_kind_is_transactional,
    test_the_last_value_of_a_key_replaces_the_row,
    test_without_a_key_every_value_is_inserted,
)
from tests.sinks.values import Total, adopted, claimed, deleted, held, opened, rows, totals

REFUSED, PACKAGE = CommitFailedException, "pyiceberg"
MAKES, SUBJECT = [subjects.iceberg_keyed, subjects.iceberg_appended], subjects.iceberg_subject


def catalog(folder: Path) -> Any:
    return load_catalog("default", **subjects.iceberg_options(str(folder)))


def made(folder: Path, schema: Any) -> None:
    catalog(folder).create_namespace_if_not_exists("tests")
    catalog(folder).create_table("tests.totals", schema=schema)


def removed(folder: Path) -> None:
    catalog(folder).drop_table("tests.totals")


def apart(connection: Any, pending: list[Any]) -> None:
    """A mistake: the position in a commit of its own."""

    def without(staged: Any) -> None:
        mine, theirs = staged._updates[-1], staged._updates[:-1]
        staged._updates = theirs
        staged.commit_transaction()

        def late() -> None:
            table = connection._latest()
            with table.transaction() as transaction:
                transaction.set_properties(mine.updates)

        pending.append(late)

    connection._commit = without


@pytest.fixture
def make_sink(tmp_path: Path) -> MakeSink:
    options = subjects.iceberg_options(str(tmp_path))
    return lambda table="totals", **said: Iceberg(f"tests.{table}", options=options, **said)


class TestIceberg(ContractTests):
    """By key; also in processes that are killed and stopped."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return subjects.iceberg_subject(subjects.iceberg_keyed, tmp_path)


def test_the_kit_on_appended_rows(tmp_path: Path) -> None:
    assert not subjects.held(subjects.iceberg_subject(subjects.iceberg_appended, tmp_path))


# --- between the comparison and the commit ---------------------------------------------------------------------------


class At:
    """Steps that do something once, at `step`."""

    def __init__(self, step: Step, do: Callable[[], object]) -> None:
        self._step, self._do = step, do

    def reached(self, step: Step) -> None:
        if step is self._step:
            self._step, do = Step.LOG_FENCED, self._do
            do()


BATCHES = ["rows", "deletes", "nothing"]


def raced(sink: Any, what: str) -> tuple[Outcome, bool]:
    """A batch whose owner is superseded after it has compared epoch and position, before it commits: what is said of
    it, and whether it left anything."""
    successor = opened(sink)
    first = rows(sink, [Total("a", 1), Total("b", 1)])
    claim = claimed(successor, sink)
    assert successor.write(claim, 0, 2, "r", first) == Done()
    taken: list[Claim] = []
    late = opened(sink, steps=At(Step.SINK_BEFORE, lambda: taken.append(claimed(successor, sink))))
    stale = claimed(late, sink)
    batch = rows(sink, [Total("z", 9)], 2) if what == "rows" else []
    if what == "deletes":
        batch = [deleted(sink, "nobody", 2)]
    outcome = late.write(stale, 2, 3, "late", batch)
    assert taken, "nobody came between"
    now = claimed(successor, sink)
    return outcome, held(successor) != totals([("a", 1), ("b", 1)]) or now.position != 2


@pytest.mark.parametrize("what", BATCHES)
@pytest.mark.parametrize("key", ["customer", None])
def test_a_claim_between_comparison_and_commit_fences(make_sink: MakeSink, key: str | None, what: str) -> None:
    """S1: the commit itself is refused, rows or none in it; nothing but the claim stands in its way."""
    if key is None and what == "deletes":
        return
    outcome, left = raced(make_sink(key=key), what)
    assert isinstance(outcome, Fenced), outcome
    assert not left


def test_another_partitions_commit_between_is_none_of_ours(make_sink: MakeSink) -> None:
    """Two partitions of a keyed sink write in turns, each on a snapshot that the other has made old: both are there."""
    sink = make_sink(key="customer")
    other = opened(sink)
    second = claimed(other, sink, 1)
    done: list[Outcome] = []
    batch = rows(sink, [Total("b", 2)])
    connection = opened(sink, steps=At(Step.SINK_BEFORE, lambda: done.append(other.write(second, 0, 1, "r", batch))))
    claim = claimed(connection, sink, 0)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert done == [Done()]
    assert held(connection) == totals([("a", 1), ("b", 2)])
    assert [claimed(connection, sink, partition).position for partition in (0, 1)] == [1, 1]


# --- what is said of a commit that failed ----------------------------------------------------------------------------


def armed(sink: Any, instead: Callable[[Any], object]) -> tuple[Outcome, list[tuple[Any, ...]], int]:
    """One batch whose commit is done by `instead`; what is said, what is held, and the position."""
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    subjects.arm(connection, instead)
    outcome = connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)]))
    return outcome, held(connection), claimed(connection, sink).position


@pytest.mark.parametrize("key", ["customer", None])
def test_a_commit_refused_for_its_own_first_effect_is_done(make_sink: MakeSink, key: str | None) -> None:
    """S8: a client library sends again when the answer is lost, and is told that the version is taken: by itself."""

    def twice(commit: Any) -> None:
        commit()
        raise REFUSED("the version is taken")

    assert armed(make_sink(key=key), twice) == (Done(), totals([("a", 1)]), 1)


@pytest.mark.parametrize("key", ["customer", None])
def test_a_commit_that_was_refused_is_tried_on_what_is_there_now(make_sink: MakeSink, key: str | None) -> None:
    """Somebody else's commit came first; ours had no effect, and has it now."""

    def refused(commit: Any) -> None:
        raise REFUSED("somebody else's commit came first")

    assert armed(make_sink(key=key), refused) == (Done(), totals([("a", 1)]), 1)


@pytest.mark.parametrize("effect", [False, True])
def test_any_other_error_of_a_commit_is_unknown(make_sink: MakeSink, effect: bool) -> None:
    """S8: the claim tells which."""

    def gone(commit: Any) -> None:
        if effect:
            commit()
        raise OSError("the connection is gone")

    outcome, there, position = armed(make_sink(), gone)
    assert isinstance(outcome, Unknown)
    assert (there, position) == ((totals([("a", 1)]), 1) if effect else ([], 0))


def test_a_commit_that_is_refused_for_ever_is_not_done(make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tries have a bound; the delivery goes on trying."""
    monkeypatch.setattr(under, "PAUSE_S", 0)

    def never(*words: Any) -> None:
        raise REFUSED("somebody else's commit came first")

    sink = make_sink()
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    connection._commit = never
    assert isinstance(connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])), NotDone)


# --- another log, and a move ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "says"),
    [(LogIdentity("another", 4), "re-created"), (LogIdentity("topic-id", 6), "6 partitions, the positions .* of 4")],
)
def test_another_log_is_diverged_and_the_choice_can_be_taken(
    make_sink: MakeSink, other: LogIdentity, says: str
) -> None:
    """S16: the claim says so and the choice, and changes nothing; what it names can be done."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 5, "r", rows(sink, [Total("a", 1)])) == Done()
    for partition in (0, 3):
        with pytest.raises(Diverged, match=says) as diverged:
            claimed(connection, sink, partition, other)
        assert "put the former log back" in str(diverged.value)
        assert f"semel sink adopt APP.py {sink.name}" in str(diverged.value)
    assert (
        connection.write(
            claim,
            5,
            6,
            "r",
            [],
        )
        == Done()
    ), "the epoch did not move"
    adopted(connection, other)
    assert isinstance(connection.write(claim, 6, 7, "r", []), Fenced)
    anew = claimed(connection, sink, 0, other)
    assert (anew.incarnation, anew.position, anew.run) == (2, 0, "")
    assert claimed(connection, sink, 3, other).incarnation == 2
    assert held(connection) == totals([("a", 1)])


# --- planted mistakes ------------------------------------------------------------------------------------------------


def later(connection: Any) -> Any:
    """Rows in one commit, their position in the next one."""
    pending: list[Any] = []
    write = connection.write

    def written(*words: Any) -> Any:
        outcome = write(*words)
        for commit in pending:
            commit()
        pending.clear()
        return outcome

    apart(connection, pending)
    connection.write = written
    return connection


def uncompared(connection: Any) -> Any:
    """What the table says of epoch and position is read, and not compared."""
    connection._mine = lambda claim, start, there: True
    return connection


@pytest.mark.parametrize(
    ("mistake", "names"),
    [(later, ("torn",)), (uncompared, ("zombie", "replay"))],
    ids=["position outside", "uncompared"],
)
@pytest.mark.parametrize("make", MAKES)
def test_a_planted_mistake_is_found(make: Any, mistake: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    """S1, S10: the kit is worth what it finds."""
    for name in names:
        with pytest.raises(Refused):
            run(
                SUBJECT(lambda address, suffix: Planted(make(address, suffix), mistake), tmp_path),
                getattr(trials, name),
            )


# --- the table -------------------------------------------------------------------------------------------------------


def test_what_a_column_would_change_is_refused(make_sink: MakeSink, tmp_path: Path) -> None:
    """Arrow rounds and shifts without a word; by its offset, and nothing of the batch is written."""
    columns = {"d": pa.decimal128(9, 2), "i": pa.int32(), "at": pa.timestamp("us", "UTC"), "day": pa.date32()}
    made(tmp_path, pa.schema([pa.field("customer", pa.string()), *(pa.field(n, t) for n, t in columns.items())]))
    sink = make_sink()
    connection = opened(sink, None)
    claim = claimed(connection, sink)
    good = {"customer": "a", "d": "1.25", "i": 7, "at": "2020-01-01T02:00:00.123456+02:00", "day": "2020-01-01"}
    for field, bad in (
        ("d", "1.255"),
        ("d", "10000000"),
        ("i", 2**31),
        ("at", "2020-01-01T00:00:00"),
        ("at", "2020-01-01T00:00:00.1234567Z"),
        ("at", "0001-01-01T00:00:00+14:00"),  # no time in UTC that Python has: retried for ever, once
        ("day", "20200101"),
    ):
        with pytest.raises(RowRefused, match=f"'{field}'") as refused:
            connection.write(claim, 0, 2, "r", rows(sink, [good, {**good, field: bad}]))
        assert refused.value.offset == 1
    batch = rows(sink, [good])
    assert connection.write(claim, 0, 1, "r", batch) == Done()
    assert list(connection.rows()) == [connection.canonical(batch[0].value or b"")]


@pytest.mark.parametrize("kind", [pa.float32(), pa.list_(pa.int64()), pa.struct([("x", pa.int64())])], ids=str)
def test_a_column_that_would_change_any_value_is_refused_at_the_start(
    make_sink: MakeSink, tmp_path: Path, kind: Any
) -> None:
    made(tmp_path, pa.schema([pa.field("customer", pa.string()), pa.field("total", kind)]))
    for value_type in (None, Total):
        with pytest.raises(SinkError, match="'total'"):
            make_sink().open().prepare(value_type)


def test_columns_that_semel_does_not_write_stay(make_sink: MakeSink, tmp_path: Path) -> None:
    """They are null in new rows."""
    made(tmp_path, pa.schema([pa.field(n, t) for n, t in (("note", pa.string()), ("customer", pa.string()),
                                                          ("total", pa.int64()))]))  # fmt: skip
    for key in (None, "customer"):
        sink = make_sink(key=key, name=f"by-{key}")
        connection = opened(sink)
        assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()


def test_a_table_that_goes_away_is_made_anew_with_its_position(make_sink: MakeSink, tmp_path: Path) -> None:
    """Rows and position are one: a batch under the former claim leaves nothing, the next claim begins at 0."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    removed(tmp_path)
    assert isinstance(connection.write(claim, 1, 2, "r", rows(sink, [Total("b", 1)], 1)), NotDone | Unknown)
    again = claimed(connection, sink)
    assert (again.epoch, again.position) == (1, 0)
    assert held(connection) == []


def test_it_is_said_which_package_is_missing(make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    monkeypatch.delitem(sys.modules, under.__name__)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(UsageError, match=r"pip install 'semel\["):
        make_sink().open()


# --- what only Iceberg gets wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "what"), [("_without_retries", "rows"), ("_empty_snapshot", "nothing")], ids=["retries", "no snapshot"]
)
def test_what_a_catalog_does_not_compare_is_found(
    make_sink: MakeSink, mistake: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1: with pyiceberg's own retries, or without a snapshot in each of our commits, a superseded owner's batch is
    accepted, epoch and all: the trial above sees it."""
    monkeypatch.setattr(under, mistake, lambda given, *words: given)
    outcome, left = raced(make_sink(), what)
    assert outcome == Done() and left


def test_others_keep_their_retries(make_sink: MakeSink, tmp_path: Path) -> None:
    """Nothing about retries is written into the table."""
    sink = make_sink()
    connection = opened(sink)
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert "commit.retry.num-retries" not in catalog(tmp_path).load_table("tests.totals").properties


def test_a_table_that_was_rolled_back_stops_the_delivery(make_sink: MakeSink, tmp_path: Path) -> None:
    """Its properties are those of later: the rows in between would be missing for good."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    before = catalog(tmp_path).load_table("tests.totals").metadata.current_snapshot_id
    assert connection.write(claim, 1, 2, "r", rows(sink, [Total("b", 1)], 1)) == Done()
    table = catalog(tmp_path).load_table("tests.totals")
    after = table.metadata.current_snapshot_id
    table.manage_snapshots().set_current_snapshot(before).commit()
    with pytest.raises(SinkError, match="rolled back"):
        claimed(connection, sink)
    catalog(tmp_path).load_table("tests.totals").manage_snapshots().set_current_snapshot(after).commit()
    assert claimed(connection, sink).position == 2


def test_snapshots_that_expired_are_not_missed(make_sink: MakeSink, tmp_path: Path) -> None:
    """Maintenance removes old ones; the position's own is among them once others have written."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    table = catalog(tmp_path).load_table("tests.totals")
    table.append(pa.table({"customer": ["x"], "total": [1]}, schema=table.schema().as_arrow()))
    old = [one.snapshot_id for one in table.metadata.snapshots][:-1]
    table.maintenance.expire_snapshots().by_ids(old).commit()
    assert claimed(connection, sink).position == 1
    assert len(held(connection)) == 2


def test_a_catalog_in_postgres(server: PostgresServer, tmp_path: Path) -> None:  # noqa: F811
    """The contract kit, in process, with the catalog of a real database."""
    uri = database(server).replace("postgresql://", "postgresql+psycopg://")
    assert not subjects.held(subjects.iceberg_subject(subjects.iceberg_keyed, tmp_path, uri))


def test_no_secret_is_in_a_message(tmp_path: Path) -> None:
    """A catalog that is away is waited for; its password and the store's are not said."""
    options = {"type": "sql", "uri": "postgresql+psycopg://me:the-password@127.0.0.1:9/db", "warehouse": "s3://b/w"}
    options |= {"s3.secret-access-key": "the-secret"}
    sink = Iceberg("a.b", options=options)
    try:
        said = sink.open().prepare(Total)
    except SinkError as refused:
        said = refused
    assert "Iceberg table a.b" in str(said)
    assert "the-password" not in str(said) and "the-secret" not in str(said)
    assert "the-password" not in repr(sink)


@pytest.mark.parametrize("table", ["", "alone", ".b", "a."])
def test_a_name_without_a_namespace_is_refused(table: str) -> None:
    with pytest.raises(SinkError, match=r"NAMESPACE\.TABLE"):
        Iceberg(table)


def test_a_key_of_several_columns(make_sink: MakeSink) -> None:
    """Rows of a batch replace and delete those of the same key, and no other."""
    sink = make_sink(key=("customer", "total"))
    connection = opened(sink)
    claim = claimed(connection, sink)
    values = [Total(f"c{n % 5}", n) for n in range(120)]
    assert connection.write(claim, 0, 120, "r", rows(sink, values)) == Done()
    gone = [deleted(sink, ("c0", 0), 120), deleted(sink, ("c0", 1), 121)]
    assert connection.write(claim, 120, 123, "r", [*gone, *rows(sink, [Total("c1", 1)], 122)]) == Done()
    assert held(connection) == totals((v.customer, v.total) for v in values[1:])
