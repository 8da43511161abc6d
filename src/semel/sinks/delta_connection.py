"""One connection of one delivery to a Delta table: claim, write, and what became of a commit.

Invariant: rows and position are one commit of the table. A batch is prepared on a snapshot in which epoch and position
are the claim's, and committed on that very snapshot: Delta refuses it when another commit wrote the same partition's
position since (`delta_positions.py`). It accepts a repeated and a lower number as it is, so the comparison is ours. A
commit that did not go through is looked up in the table before anything is said of it (FAULTS S8).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa  # type: ignore[import-untyped]
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import arrow_rows, delta_positions, positions
from semel.sinks.columns import Column, ColumnType, canonical_row, decode
from semel.sinks.delta_positions import Numbers
from semel.sinks.rows import Delete, Shape, Upsert, split
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.delta import DeltaLake

TRIES, PAUSE_S = 8, 0.02  # of a commit, when another partition's or writer's came first
DELETED = "__semel_deleted"
DELTA = arrow_rows.dialect({ColumnType.TIME: "string"})
# An answer that will be the same the next time; not 408, 409, 425, 429.
_PERSON = re.compile(
    r"status code: 4(?!04|08|09|25|29)\d\d|4\d\d (Unauthorized|Forbidden)|AccessDenied|InvalidAccessKey|SignatureDoes|"
    r"NoSuchBucket|Permission denied|[Uu]nsupported|not supported|Invalid table|[Pp]rotocol|[Ff]eature"
)
_PLAIN = frozenset({"region", "endpoint", "bucket", "allow_http", "timeout", "connect_timeout", "max_retries"})

Answer = TypeVar("Answer")


class DeltaConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: DeltaLake, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._value_type: object = None
        self._table: DeltaTable | None = None
        self._shape: Shape | None = None
        self._found: list[Found] = []
        self._schema: Any = None  # Arrow's, of the table
        self._notes: list[str] = []
        # What one snapshot says of partitions, by its version: read from the log, a file for each commit of it.
        self._known: dict[DeliveryId, delta_positions.At] = {}
        self._known_at = -1
        self._remote = "://" in sink.url and not sink.url.startswith("file:")
        self._options = _options(sink)
        self._secrets = [v for k, v in sink.options.items() if _bare(k) not in _PLAIN and len(v) > 3]

    # --- the store ------------------------------------------------------------------------------------------------

    def _opened(self, url: str | None = None) -> DeltaTable:
        return DeltaTable(url or self._sink.url, storage_options=self._options or None)

    def close(self) -> None:
        self._table = None

    def _trying(self, what: Callable[[], Answer]) -> Answer | NotDone:
        try:
            return what()
        except SinkError:
            raise
        except Exception as why:  # the library's errors have no common type: OSError, DeltaError, bare Exception
            return self._not_done(why)

    def _not_done(self, why: Exception) -> NotDone:
        text = self._told(why)
        if not isinstance(why, CommitFailedError) and _PERSON.search(text):
            raise SinkError(
                f"{self._sink.where}: {text}. Check the URL, the options, the rights and the table's features."
            ) from None
        return NotDone(f"{self._sink.where}: {text}")

    def _told(self, why: Exception) -> str:
        """What the library says, in one line and without a secret."""
        text = " ".join(re.sub(r"\x1b\[\d+m|↳", "", str(why)).split())[:400]
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return re.sub(r"(://)[^/@\s]*@", r"\1", re.sub(r"\?[^\s\"')]*", "?…", text)).rstrip(".")

    # --- the table ------------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        self._value_type = value_type if self._sink.value_type is None else self._sink.value_type
        if self._sink.url.startswith(("s3:", "s3a:")) and (said := os.environ.get("AWS_S3_ALLOW_UNSAFE_RENAME")):
            raise SinkError(
                f"{self._sink.where}: AWS_S3_ALLOW_UNSAFE_RENAME={said} is set in the environment: two writers could "
                "commit the same version, and one of the two would be lost. Unset it."
            )
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(self) -> DeltaTable:
        sink = self._sink
        wanted = arrow_rows.wanted_columns(self._value_type, sink.key, sink.where)
        try:
            table = self._opened()
        except TableNotFoundError:
            self._create(wanted)
            table = self._opened()
        self._refuse_settings(table)
        self._schema = pa.schema(table.schema().to_arrow())
        self._found = arrow_rows.found(self._schema)
        # Delta knows no unique index; that a key is there once is what the merge keeps.
        unique = [frozenset(sink.key or ())]
        columns = judged(DELTA, sink.where, self._found, wanted, sink.key, unique)
        self._shape = Shape(columns, arrow_rows.converts(columns, self._found), sink.key, sink.where)
        self._table, self._known_at = table, -1
        return table

    def _create(self, wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        partitions: list[str] = []
        schema: Any = None
        if sink.suffix:  # for `semel verify`: a table like the user's
            try:
                original = self._opened(sink.original_url)
                schema, partitions = original.schema(), original.metadata().partition_columns
            except TableNotFoundError:
                pass
        if schema is None and wanted is None:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: DeltaLake(…, value=TYPE), or create the table."
            )
        if schema is None:
            schema = arrow_rows.schema_of(created(DELTA, wanted or (), sink.key))
        try:
            DeltaTable.create(
                sink.url, schema, mode="error", partition_by=partitions, storage_options=self._options or None
            )
        except Exception as why:
            if "already exists" not in str(why):  # another partition's delivery made it at the same time
                raise

    def _refuse_settings(self, table: DeltaTable) -> None:
        where, said = self._sink.where, table.metadata().configuration
        if self._sink.key is not None and said.get("delta.appendOnly") == "true":
            raise SinkError(f"{where}: the table is append-only (delta.appendOnly), and key= replaces rows.")
        if "delta.setTransactionRetentionDuration" in said:
            raise SinkError(
                f"{where}: delta.setTransactionRetentionDuration is set: the position, which lies in the table's "
                "application transactions, would be forgotten after it. Unset it."
            )
        checks = [name for name in said if name.startswith("delta.constraints.")]
        for field in table.schema().fields:
            checks += [k for k in field.metadata if k in ("delta.invariants", "delta.generationExpression")]
        if checks:
            raise SinkError(
                f"{where}: the table has {checks[0]}: Delta does not say which record breaks a rule, so a record that "
                "does could not be named. Drop the rule, or check it in the stream."
            )

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda: self._claim(delivery, log))

    def _claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        for turn in range(TRIES):
            table = self._prepare()
            version = table.transaction_version
            facts = delta_positions.facts(version, delivery.app, delivery.sink)
            now = delta_positions.lane(version, delivery)
            numbers = dict(delta_positions.claimed(delivery, now, positions.here()))
            if facts.incarnation:
                stored = [positions.Stored(delivery.partition, facts.topic_id, facts.partitions)]
                positions.same_log(delivery, log, stored, self._sink.where)
            else:
                numbers |= delta_positions.described(delivery.app, delivery.sink, log, 1)
            try:
                self._commit_numbers(table, numbers, "claim")
            except CommitFailedError:  # another one came first; it is looked at
                time.sleep(PAUSE_S * turn)
                continue
            incarnation = facts.incarnation or 1
            return Claim(delivery, now.epoch + 1, incarnation, now.position, now.run, log)
        return NotDone(f"{self._sink.where}: {TRIES} commits of others came before the claim; trying again")

    def _commit_numbers(self, table: DeltaTable, numbers: Numbers, what: str) -> None:
        """A commit that holds nothing else."""
        table.create_write_transaction(
            [],
            mode="append",
            schema=table.schema(),
            partition_by=table.metadata().partition_columns,
            commit_properties=_properties(numbers, what),
        )
        table.update_incremental()

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert self._shape is not None, "a claim comes before a write"
        assert start < end, (start, end)
        upserts, deletes = split(self._shape, rows)
        arrow_rows.require_values(self._shape, self._found, upserts)
        self._steps.reached(Step.ROWS_BEFORE)
        batch = self._batch(upserts, deletes)
        self._steps.reached(Step.ROWS_AFTER)
        for turn in range(TRIES):
            seen = self._trying(lambda: self._seen(claim.delivery))
            if isinstance(seen, NotDone):
                return seen
            table, there = seen
            if not self._mine(claim, start, there):
                return self._superseded(claim, start, there)
            self._steps.reached(Step.POSITION_BEFORE)
            numbers = delta_positions.moved(claim.delivery, claim.epoch, end, run)
            properties = _properties(numbers, f"[{start}, {end}) of partition {claim.delivery.partition}")
            self._steps.reached(Step.POSITION_AFTER)
            self._steps.reached(Step.SINK_BEFORE)
            try:
                self._commit(table, batch, numbers, properties)
            except CommitFailedError as why:
                outcome = self._looked_up(claim, start, end, run, why)
                if outcome is None:  # another partition's, or a compaction, came first: on what is there now
                    time.sleep(PAUSE_S * turn)
                    continue
                if not isinstance(outcome, Done):
                    return outcome
            except Exception as why:
                self._table = None
                return Unknown(f"{self._sink.where}: the commit of [{start}, {end}) failed: {self._told(why)}")
            else:
                self._committed(table, claim.delivery, delta_positions.At(claim.epoch, end))
            self._steps.reached(Step.SINK_AFTER)
            return Done()
        return NotDone(f"{self._sink.where}: {TRIES} commits of others came before this batch; trying again")

    def _latest(self) -> DeltaTable:
        if self._table is None:
            self._table, self._known_at = self._opened(), -1
        self._table.update_incremental()
        return self._table

    def _seen(self, delivery: DeliveryId) -> tuple[DeltaTable, delta_positions.At]:
        """The latest snapshot, and what it says of a partition."""
        table = self._latest()
        if table.version() != self._known_at:
            self._known, self._known_at = {}, table.version()
        if delivery not in self._known:
            self._known[delivery] = delta_positions.at(table.transaction_version, delivery)
        return table, self._known[delivery]

    def _committed(self, table: DeltaTable, delivery: DeliveryId, now: delta_positions.At) -> None:
        """What was known of the snapshot before is known of this one, if nothing but our commit lies between."""
        if table.version() == self._known_at + 1:
            self._known[delivery], self._known_at = now, table.version()
        else:
            self._known_at = -1

    def _mine(self, claim: Claim, start: int, there: delta_positions.At) -> bool:
        """Whether this snapshot's epoch and position are what the batch is written under."""
        return there == (claim.epoch, start)

    def _superseded(self, claim: Claim, start: int, there: delta_positions.At) -> Fenced:
        said = self._trying(lambda: delta_positions.lane(self._latest().transaction_version, claim.delivery).holder)
        holder = "" if isinstance(said, NotDone) else f", held by {said}"
        return Fenced(
            f"{self._sink.where}: epoch {there.epoch}, position {there.position}{holder}; ours was epoch "
            f"{claim.epoch}, position {start}"
        )

    def _looked_up(self, claim: Claim, start: int, end: int, run: str, why: Exception) -> Outcome | None:
        """What became of a commit that was refused. A request that was sent twice, because its first answer was lost,
        is refused for its own first effect. None: it had none, and may be tried on the new snapshot."""
        self._table = None
        found = self._trying(lambda: delta_positions.lane(self._latest().transaction_version, claim.delivery))
        if isinstance(found, NotDone):
            return Unknown(f"{found.reason}, after [{start}, {end}) was refused")
        there = delta_positions.At(found.epoch, found.position)
        if there.position <= start:  # it moves forward only: ours is not there, nor can it come any more
            return None if self._mine(claim, start, there) else self._superseded(claim, start, there)
        if (there, found.run) == ((claim.epoch, end), run):
            return Done()  # nobody else writes under our epoch
        return Unknown(f"{self._sink.where}: [{start}, {end}) was refused, and {found}: {self._told(why)}")

    def _batch(self, upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> Any:
        """The rows to append; with a key the rows to merge, those that go away marked. None: no row."""
        assert self._shape is not None
        if not upserts and not deletes:
            return None
        rows = arrow_rows.table(self._shape, self._schema, upserts, whole=self._shape.key is None)
        if self._shape.key is None:
            return rows
        gone = arrow_rows.keys(self._shape, self._schema, deletes)
        marked = [
            part.append_column(DELETED, pa.array([flag] * part.num_rows, pa.bool_()))
            for part, flag in ((rows, False), (gone, True))
        ]
        fields = [pa.field(field.name, field.type) for field in marked[0].schema]  # a key that goes has no values
        nullable = [pa.Table.from_arrays(part.columns, names=part.column_names) for part in marked]
        return pa.concat_tables(nullable, promote_options="default").cast(pa.schema(fields))

    def _commit(self, table: DeltaTable, batch: Any, numbers: Numbers, properties: CommitProperties) -> None:
        """Rows and position, in one commit."""
        if batch is None:
            self._commit_numbers(table, numbers, "position")
        elif self._shape is not None and self._shape.key is None:
            write_deltalake(table, batch, mode="append", commit_properties=properties)
        else:
            before = table.version()
            self._merge(table, batch, properties)
            if table.version() == before:  # nothing was there to delete: a merge commits nothing then
                self._commit_numbers(table, numbers, "position")

    def _merge(self, table: DeltaTable, batch: Any, properties: CommitProperties) -> None:
        assert self._shape is not None and self._shape.key is not None
        every = {_quoted(c.name): f"s.{_quoted(c.name)}" for c in self._shape.columns}
        (
            table.merge(
                batch,
                " AND ".join(f"t.{_quoted(name)} = s.{_quoted(name)}" for name in self._shape.key),
                source_alias="s",
                target_alias="t",
                commit_properties=properties,
            )
            .when_matched_delete(predicate=f"s.{DELETED}")
            .when_matched_update(every, predicate=f"NOT s.{DELETED}")
            .when_not_matched_insert(every, predicate=f"NOT s.{DELETED}")
            .execute()
        )

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._trying(lambda: self._remembered(app)[1])

    def _remembered(self, app: str) -> tuple[DeltaTable | None, list[Remembered]]:
        """The latest snapshot, and what it says."""
        try:
            table = self._opened()
        except TableNotFoundError:
            return None, []
        return table, delta_positions.remembered(table.transaction_version, app, self._sink.name)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        """One commit. Delta refuses it where another one has written a partition's numbers after the snapshot that was
        compared; then it is compared again."""
        for turn in range(TRIES):
            found = self._trying(lambda: self._remembered(app))
            if isinstance(found, NotDone):
                return found
            table, now = found
            if changed := positions.changed(seen, now):
                return Fenced(f"{self._sink.where}: {changed}")
            if table is None:
                return NotDone(f"{self._sink.where}: there is no table yet")
            numbers = delta_positions.put(table.transaction_version, app, self._sink.name, to, positions.OPERATOR)
            try:
                self._commit_numbers(table, numbers, "moved by a person")
            except CommitFailedError:
                time.sleep(PAUSE_S * turn)
                continue
            except Exception as why:
                return Unknown(f"{self._sink.where}: the commit of the move failed: {self._told(why)}")
            return Done()
        return NotDone(f"{self._sink.where}: {TRIES} commits of others came before the move")

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        columns = self._shape.columns
        return arrow_rows.told(columns, self._opened().to_pyarrow_table(columns=[c.name for c in columns]))

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical_row(self._shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        if not self._remote:
            shutil.rmtree(Path(self._sink.url.removeprefix("file://")), ignore_errors=True)
            return
        from deltalake.fs import DeltaStorageHandler
        from pyarrow import fs

        files = fs.PyFileSystem(DeltaStorageHandler(self._sink.url, self._options))
        for one in files.get_file_info(fs.FileSelector("", recursive=True)):
            if one.type == fs.FileType.File:
                files.delete_file(one.path)


def _properties(numbers: Numbers, what: str) -> CommitProperties:
    return CommitProperties(
        custom_metadata={"semel": what},  # for people who read the table's history
        app_transactions=[Transaction(name, number) for name, number in numbers.items()],
    )


def _options(sink: DeltaLake) -> dict[str, str]:
    """The store's settings; no wait of the client's is without end."""
    options = dict(sink.options)
    if "://" not in sink.url or sink.url.startswith("file:"):
        return options
    given = {_bare(name): value for name, value in options.items()}
    if given.get("endpoint", given.get("endpoint_url", "")).startswith("http:"):
        options.setdefault("allow_http", "true")
    for name, value in (("timeout", "30s"), ("connect_timeout", "5s"), ("max_retries", "3")):
        if name not in given:
            options[name] = value
    return options


def _bare(option: str) -> str:
    return re.sub(r"^(aws|azure|google)_", "", option.lower())


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
