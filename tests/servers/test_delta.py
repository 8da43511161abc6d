"""Delta tables, in a folder and on a real S3 server: through the contract kit, through the tests of every transactional
sink, and what only a log of versions gets wrong."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from semel.contract import Claim, LogIdentity
from semel.errors import UsageError
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Unknown
from semel.sinks import DeltaLake
from semel.sinks import delta_connection as under
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import processes, trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import lake_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.planted_sinks import Planted
from tests.sinks.subjects import S3_BUCKET, S3_SECRET
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
from tests.support.seaweed import SeaweedProcess

REFUSED, PACKAGE = CommitFailedError, "deltalake"
MAKES, SUBJECT = [subjects.delta_keyed, subjects.delta_appended], subjects.delta_subject


def made(folder: Path, schema: Any) -> None:
    DeltaTable.create(folder / "totals", schema)


def removed(folder: Path) -> None:
    shutil.rmtree(folder / "totals")


def apart(connection: Any, pending: list[Any]) -> None:
    """A mistake: the position in a commit of its own."""
    commit = connection._commit

    def without(table: Any, batch: Any, numbers: Any, properties: Any) -> None:
        if batch is None:
            return commit(table, batch, numbers, properties)
        real, connection._commit_numbers = connection._commit_numbers, lambda *words: None
        commit(table, batch, numbers, CommitProperties())
        connection._commit_numbers = real
        pending.append(lambda: real(connection._opened(), numbers, "late"))
        return None

    connection._commit = without


@pytest.fixture
def make_sink(tmp_path: Path) -> MakeSink:
    return lambda table="totals", **said: DeltaLake(tmp_path / table, **said)


class TestDelta(ContractTests):
    """In a folder, by key; also in processes that are killed and stopped."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return subjects.delta_subject(subjects.delta_keyed, tmp_path)


def test_the_kit_on_appended_rows(tmp_path: Path) -> None:
    assert not subjects.held(subjects.delta_subject(subjects.delta_appended, tmp_path))


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with SeaweedProcess(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class TestDeltaOnS3:
    """By key, in processes; the trials in one process are below."""

    @pytest.fixture
    def subject(self, seaweed: SeaweedProcess) -> Subject:
        made = subjects.delta_s3_subject(subjects.delta_s3_keyed, seaweed.port, lambda: None)
        return replace(made, hand_over_s=20.0)  # there is no lock: time for the successor's commits

    def test_a_process_that_comes_back_late_has_no_effect(self, subject: Subject) -> None:
        run(subject, processes.zombies)

    @pytest.mark.proof
    def test_killed_at_every_step_twice(self, subject: Subject) -> None:
        run(subject, processes.crashes)

    @pytest.mark.proof
    def test_a_process_that_stops_holds_nobody_up(self, subject: Subject) -> None:
        run(subject, processes.paused)


@pytest.mark.parametrize("make", [subjects.delta_s3_keyed, subjects.delta_s3_appended], ids=["keyed", "appended"])
def test_the_kit_on_s3(make: Any, seaweed: SeaweedProcess) -> None:
    """On the real server, which is killed; the answers to commits are cut on the wire."""

    def crash() -> None:
        seaweed.kill()
        seaweed.start()

    assert not subjects.held(subjects.delta_s3_subject(make, seaweed.port, crash))


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


# --- what only Delta gets wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        ({"delta.appendOnly": "true"}, "customer", "append-only"),
        ({"delta.setTransactionRetentionDuration": "interval 1 days"}, None, "would be forgotten"),
    ],
)
def test_a_table_whose_settings_break_the_promise_is_refused(
    make_sink: MakeSink, tmp_path: Path, settings: dict[str, str], key: str | None, says: str
) -> None:
    columns = pa.schema([("customer", pa.string()), ("total", pa.int64())])
    DeltaTable.create(tmp_path / "totals", columns, configuration=settings, raise_if_key_not_exists=False)
    with pytest.raises(SinkError, match=says):
        make_sink(key=key).open().prepare(Total)


def test_a_table_with_a_check_is_refused(make_sink: MakeSink, tmp_path: Path) -> None:
    """S11: the record that breaks it could not be named."""
    opened(make_sink()).close()
    DeltaTable(tmp_path / "totals").alter.add_constraint({"small": "total < 5"})
    with pytest.raises(SinkError, match=r"delta.constraints.small"):
        make_sink().open().prepare(Total)


@pytest.mark.parametrize("option", ["AWS_S3_ALLOW_UNSAFE_RENAME", "allow_unsafe_rename"])
def test_unsafe_commits_are_refused(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By option and by environment."""
    with pytest.raises(SinkError, match="conditional put"):
        DeltaLake("s3://bucket/x", options={option: "true"})
    with pytest.raises(SinkError, match="conditional put"):
        DeltaLake("s3://bucket/x", options={"aws_conditional_put": "disabled"})
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(SinkError, match="Unset it"):
        DeltaLake("s3://bucket/x").open().prepare(Total)


@pytest.mark.parametrize("url", ["", "ftp://x/y", "memory://x", "s3://key:secret@bucket/x", "s3://bucket/x?secret=1"])
def test_an_address_that_cannot_be_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(SinkError) as refused:
        DeltaLake(url)
    assert "secret" not in str(refused.value)


def test_the_position_outlives_checkpoints_compaction_and_cleaning(make_sink: MakeSink, tmp_path: Path) -> None:
    """What maintenance rewrites or removes is not where the position lies; and it is no conflict for an append."""
    sink = make_sink()
    connection = opened(sink)
    claim = claimed(connection, sink)
    for at in range(5):
        assert connection.write(claim, at, at + 1, f"run {at}", rows(sink, [Total("a", at)], at)) == Done()
    table = DeltaTable(tmp_path / "totals")
    between = opened(sink, steps=At(Step.SINK_BEFORE, table.optimize.compact))
    claim = claimed(between, sink)
    table.update_incremental()
    assert between.write(claim, 5, 6, "run 5", rows(sink, [Total("a", 5)], 5)) == Done()
    table.update_incremental()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    table.create_checkpoint()
    for file in sorted((tmp_path / "totals" / "_delta_log").glob("*.json"))[:-1]:
        file.unlink()
    again = claimed(connection, sink)
    assert (again.position, again.run) == (6, "run 5")
    assert len(held(connection)) == 6


def test_a_number_that_is_lower_is_accepted_by_the_library(make_sink: MakeSink, tmp_path: Path) -> None:
    """Why the comparison is ours: deltalake takes any number of a writer that nobody came before."""
    opened(make_sink()).close()
    table = DeltaTable(tmp_path / "totals")
    batch = pa.table({"customer": ["a"], "total": [1]})
    for number in (5, 5, 3):
        properties = CommitProperties(app_transactions=[Transaction("a writer", number)])
        write_deltalake(table, batch, mode="append", commit_properties=properties)
    assert table.transaction_version("a writer") == 3
    assert table.count() == 3


def test_other_writers_rows_under_the_key_are_replaced(make_sink: MakeSink, tmp_path: Path) -> None:
    """And columns that semel does not write keep their values."""
    columns = pa.schema([("customer", pa.string()), ("total", pa.int64()), ("note", pa.string())])
    made(tmp_path, columns)
    theirs = pa.table({"customer": ["a", "b"], "total": [1, 1], "note": ["keep", "keep"]}, schema=columns)
    write_deltalake(tmp_path / "totals", theirs, mode="append")
    sink = make_sink(key="customer")
    connection = opened(sink)
    batch = [*rows(sink, [Total("a", 7), Total("c", 7)]), deleted(sink, "b", 2)]
    assert connection.write(claimed(connection, sink), 0, 3, "r", batch) == Done()
    found = sorted(DeltaTable(tmp_path / "totals").to_pyarrow_table().to_pylist(), key=lambda row: row["customer"])
    assert [tuple(row.values()) for row in found] == [("a", 7, "keep"), ("c", 7, None)]


# --- on S3 -----------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_error_without_a_secret(seaweed: SeaweedProcess) -> None:
    """A person decides; neither the key that was tried nor the right one is in the message."""
    options = seaweed.options() | {"secret_access_key": "wrong-secret"}
    with pytest.raises(SinkError, match="Check the URL, the options") as refused:
        DeltaLake(f"s3://{S3_BUCKET}/delta/denied", options=options).open().prepare(Total)
    assert "wrong-secret" not in str(refused.value) and S3_SECRET not in str(refused.value)


def test_a_store_that_is_away_is_waited_for() -> None:
    """Not done, with a sentence; the delivery tries again."""
    options = {"endpoint": "http://127.0.0.1:9", "region": "us-east-1", "access_key_id": "k", "max_retries": "0"}
    sink = DeltaLake("s3://bucket/x", options={**options, "secret_access_key": "the-secret"})
    outcome = sink.open().prepare(Total)
    assert isinstance(outcome, NotDone)
    assert "the-secret" not in outcome.reason
