"""One connection of one delivery to an Iceberg table: claim, write, and what became of a commit.

Invariant: rows and position are one commit of the table: the position is a table property, set in the transaction that
adds the rows. A catalog compares no property; what it compares is the snapshot that `main` stands at. So **every commit
of ours makes a snapshot**, also a claim and a batch without rows, and none is tried again by the library: its retry
would put a superseded owner's batch on top of the newer snapshot, position and all (`commit.retry.num-retries` is 0 in
our handle of the table, whatever the table says to others). A commit that did not go through is looked up before
anything is said of it (FAULTS S8).
"""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    BadRequestError,
    CommitFailedException,
    ForbiddenError,
    NoSuchNamespaceError,
    NoSuchTableError,
    NotInstalledError,
    OAuthError,
    TableAlreadyExistsError,
    UnauthorizedError,
)
from pyiceberg.expressions import And, BooleanExpression, EqualTo, In, Or
from pyiceberg.table import Table, TableProperties, Transaction

from semel.contract import Claim, DeliveryId, LogIdentity, Row
from semel.errors import UsageError
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import arrow_rows, positions
from semel.sinks.columns import Column, canonical_row, decode
from semel.sinks.rows import Delete, Shape, Upsert, split
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import EXACT, SinkError

if TYPE_CHECKING:
    from semel.sinks.iceberg import Iceberg

TRIES, PAUSE_S = 8, 0.02  # of a commit, when another partition's or writer's came first
ICEBERG = arrow_rows.dialect(no_key=arrow_rows.NO_KEY | {"binary"})
PERSON = (BadRequestError, ForbiddenError, OAuthError, UnauthorizedError, ValueError, TypeError, NotImplementedError)
PLAIN = frozenset({"type", "uri", "warehouse", "s3.endpoint", "s3.region", "py-io-impl"})
# Of a table that semel creates: each commit leaves a metadata file and a manifest.
CREATED_WITH = {
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "commit.manifest-merge.enabled": "true",
}

Answer = TypeVar("Answer")


class Lane(msgspec.Struct, frozen=True):
    """The property of one partition of a delivery."""

    epoch: int = 0
    position: int = 0
    run: str = ""
    holder: str = ""
    snapshot: int = 0  # the one that these came with


class Facts(msgspec.Struct, frozen=True):
    """The property of a delivery: the log that its positions are positions in. Incarnation 0: nothing yet."""

    incarnation: int = 0
    topic_id: str = ""
    partitions: int = 0


class IcebergConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: Iceberg, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._value_type: object = None
        self._catalog: Catalog | None = None
        self._shape: Shape | None = None
        self._found: list[Found] = []
        self._schema: Any = None  # Arrow's, of the table
        self._notes: list[str] = []
        self._secrets = [value for name, value in sink.options.items() if name not in PLAIN and len(value) > 3]
        if password := urlsplit(sink.options.get("uri", "")).password:
            self._secrets += [password, unquote(password)]

    # --- the catalog ----------------------------------------------------------------------------------------------

    def _connected(self) -> Catalog:
        if self._catalog is None:
            try:
                self._catalog = load_catalog(self._sink.catalog, **self._sink.options)
            except (NotInstalledError, ImportError) as why:
                raise UsageError(
                    f"{self._sink.where}: its catalog needs a package that is not installed here ({self._told(why)}); "
                    "see pyiceberg's extras, as in pip install 'pyiceberg[sql-sqlite]'"
                ) from None
        return self._catalog

    def close(self) -> None:
        catalog, self._catalog = self._catalog, None
        engine = getattr(catalog, "engine", None)  # of a SQL catalog: its connections
        if engine is not None:
            engine.dispose()

    def _trying(self, what: Callable[[], Answer]) -> Answer | NotDone:
        try:
            return what()
        except (SinkError, UsageError):
            raise
        except Exception as why:  # catalogs raise their drivers' errors
            return self._not_done(why)

    def _not_done(self, why: Exception) -> NotDone:
        text = f"{self._sink.where}: {self._told(why)}"
        if isinstance(why, PERSON) and not isinstance(why, CommitFailedException):
            raise SinkError(f"{text}. Check the catalog's name, the options and the rights.") from None
        self.close()
        return NotDone(text)

    def _told(self, why: Exception) -> str:
        """What the library says, in one line and without a secret."""
        text = " ".join(str(why).split())[:400] or type(why).__name__
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return re.sub(r"(://)[^/@\s]*@", r"\1", text).rstrip(".")

    # --- the table ------------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        self._value_type = value_type if self._sink.value_type is None else self._sink.value_type
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(self) -> Table:
        sink = self._sink
        wanted = arrow_rows.wanted_columns(self._value_type, sink.key, sink.where)
        catalog = self._connected()
        try:
            table = catalog.load_table(sink.table)
        except (NoSuchTableError, NoSuchNamespaceError):
            self._create(catalog, wanted)
            table = catalog.load_table(sink.table)
        self._schema = table.schema().as_arrow()
        self._found = arrow_rows.found(self._schema)
        # Iceberg knows no unique index; that a key is there once is what each batch keeps.
        unique = [frozenset(sink.key or ())]
        columns = judged(ICEBERG, sink.where, self._found, wanted, sink.key, unique)
        self._shape = Shape(columns, arrow_rows.converts(columns, self._found), sink.key, sink.where)
        return _without_retries(table)

    def _create(self, catalog: Catalog, wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        schema: Any = None
        more: dict[str, Any] = {}
        if sink.suffix:  # for `semel verify`: a table like the user's
            try:
                original = catalog.load_table(sink.original)
                schema, more = original.schema(), {"partition_spec": original.spec()}
            except (NoSuchTableError, NoSuchNamespaceError):
                pass
        if schema is None and wanted is None:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: Iceberg(…, value=TYPE), or create the table."
            )
        if schema is None:
            schema = arrow_rows.schema_of(created(ICEBERG, wanted or (), sink.key))
        catalog.create_namespace_if_not_exists(sink.table.rpartition(".")[0])
        with contextlib.suppress(TableAlreadyExistsError):  # another partition's delivery made it at the same time
            catalog.create_table(sink.table, schema=schema, properties=CREATED_WITH, **more)

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda: self._claim(delivery, log))

    def _claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        for turn in range(TRIES):
            table = self._prepare()
            facts = _facts(table, delivery.app, delivery.sink)
            now = _lane(table, delivery)
            if facts.incarnation:
                stored = [positions.Stored(delivery.partition, facts.topic_id, facts.partitions)]
                choice = positions.begin_anew(f"Iceberg({self._sink.table!r}, …)", delivery, log)
                positions.same_log(delivery, log, stored, self._sink.where, choice=choice)
            self._require_history(table, now)
            own_facts = facts if facts.incarnation else Facts(1, log.topic_id, log.partitions)
            given: dict[str, Lane | Facts] = {_of(delivery.app, delivery.sink): own_facts}
            transaction = table.transaction()
            _empty_snapshot(transaction, "claim")
            own = Lane(now.epoch + 1, now.position, now.run, positions.here(), _snapshot(transaction))
            given[_of(delivery.app, delivery.sink, delivery.partition)] = own
            transaction.set_properties(_encoded(given))
            try:
                transaction.commit_transaction()
            except CommitFailedException:  # another one came first; it is looked at
                time.sleep(PAUSE_S * turn)
                continue
            return Claim(delivery, own.epoch, own_facts.incarnation, now.position, now.run, log)
        return NotDone(f"{self._sink.where}: {TRIES} commits of others came before the claim; trying again")

    def _require_history(self, table: Table, now: Lane) -> None:
        """A table that was rolled back has the properties of later, and not the rows."""
        metadata = table.metadata
        if not now.snapshot or metadata.snapshot_by_id(now.snapshot) is None:
            return  # nothing yet; or expired, as old snapshots may be
        at = metadata.current_snapshot()
        while at is not None and at.snapshot_id != now.snapshot:
            at = None if at.parent_snapshot_id is None else metadata.snapshot_by_id(at.parent_snapshot_id)
        if at is None:
            raise SinkError(
                f"{self._sink.where}: its main branch does not hold the snapshot {now.snapshot}, with which the "
                f"position {now.position} came: the table was rolled back, and the rows up to there would be missing "
                "for good. Bring main back to that snapshot; or deliver the log from its start (begin_anew)."
            )

    def begin_anew(self, app: str, log: LogIdentity) -> None:
        """See `Iceberg.begin_anew`. Former owners are fenced, also of partitions that are no more."""
        table = _without_retries(self._connected().load_table(self._sink.table))
        former = _facts(table, app, self._sink.name)
        transaction = table.transaction()
        _empty_snapshot(transaction, "begin anew")
        at = _snapshot(transaction)
        given: dict[str, Lane | Facts] = {
            _of(app, self._sink.name): Facts(former.incarnation + 1, log.topic_id, log.partitions)
        }
        for partition in range(max(former.partitions, log.partitions)):
            epoch = _lane(table, DeliveryId(app, self._sink.name, partition)).epoch
            given[_of(app, self._sink.name, partition)] = Lane(epoch + 1, 0, "", positions.here(), at)
        transaction.set_properties(_encoded(given))
        transaction.commit_transaction()

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert self._shape is not None, "a claim comes before a write"
        assert start < end, (start, end)
        upserts, deletes = split(self._shape, rows)
        arrow_rows.require_values(self._shape, self._found, upserts)
        for turn in range(TRIES):
            table = self._trying(self._latest)
            if isinstance(table, NotDone):
                return table
            there = _lane(table, claim.delivery)
            if not self._mine(claim, start, there):
                return self._superseded(claim, start, there)
            self._steps.reached(Step.ROWS_BEFORE)
            staged = self._trying(lambda: self._staged(table, upserts, deletes))  # noqa: B023
            if isinstance(staged, NotDone):
                return staged
            self._steps.reached(Step.ROWS_AFTER)
            self._steps.reached(Step.POSITION_BEFORE)
            own = Lane(claim.epoch, end, run, there.holder, _snapshot(staged))
            name = _of(claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
            staged.set_properties(_encoded({name: own}))
            self._steps.reached(Step.POSITION_AFTER)
            self._steps.reached(Step.SINK_BEFORE)
            try:
                self._commit(staged)
            except CommitFailedException as why:
                outcome = self._looked_up(claim, start, end, run, why)
                if outcome is None:  # another partition's, or a compaction, came first: on what is there now
                    time.sleep(PAUSE_S * turn)
                    continue
                if not isinstance(outcome, Done):
                    return outcome
            except Exception as why:
                self.close()
                return Unknown(f"{self._sink.where}: the commit of [{start}, {end}) failed: {self._told(why)}")
            self._steps.reached(Step.SINK_AFTER)
            return Done()
        return NotDone(f"{self._sink.where}: {TRIES} commits of others came before this batch; trying again")

    def _latest(self) -> Table:
        return _without_retries(self._connected().load_table(self._sink.table))

    def _mine(self, claim: Claim, start: int, there: Lane) -> bool:
        """Whether this snapshot's epoch and position are what the batch is written under."""
        return (there.epoch, there.position) == (claim.epoch, start)

    def _superseded(self, claim: Claim, start: int, there: Lane) -> Fenced:
        return Fenced(
            f"{self._sink.where}: epoch {there.epoch}, position {there.position}, held by {there.holder}; ours was "
            f"epoch {claim.epoch}, position {start}"
        )

    def _looked_up(self, claim: Claim, start: int, end: int, run: str, why: Exception) -> Outcome | None:
        """What became of a commit that was refused. None: nothing, and it may be tried on the new snapshot."""
        table = self._trying(self._latest)
        if isinstance(table, NotDone):
            return Unknown(f"{table.reason}, after [{start}, {end}) was refused")
        there = _lane(table, claim.delivery)
        if there.position <= start:  # it moves forward only: ours is not there, nor can it come any more
            return None if self._mine(claim, start, there) else self._superseded(claim, start, there)
        if (there.epoch, there.position, there.run) == (claim.epoch, end, run):
            return Done()  # nobody else writes under our epoch
        return Unknown(f"{self._sink.where}: [{start}, {end}) was refused, and {there}: {self._told(why)}")

    def _staged(self, table: Table, upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> Transaction:
        """The rows in a transaction, nothing of it visible yet."""
        assert self._shape is not None
        transaction = table.transaction()
        if self._shape.key is not None and (upserts or deletes):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "did not match any records": a new key
                transaction.delete(self._keys(upserts, deletes))
        if upserts:
            transaction.append(arrow_rows.table(self._shape, self._schema, upserts, whole=True))
        else:
            _empty_snapshot(transaction, "position")
        return transaction

    def _keys(self, upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> BooleanExpression:
        """The rows that a batch replaces or deletes."""
        assert self._shape is not None and self._shape.key is not None
        places = self._shape.key_places
        found: list[tuple[Any, ...]] = [tuple(one.values[place] for place in places) for one in upserts]
        found += [one.key for one in deletes]
        scales = [{one.name: one.scale for one in self._found}.get(name) for name in self._shape.key]
        literals = [[_literal(part, scale) for part, scale in zip(key, scales, strict=True)] for key in found]
        if len(places) == 1:
            keys: BooleanExpression = _in(self._shape.key[0], [parts[0] for parts in literals])
            return keys
        each: list[BooleanExpression] = [
            And(*(_equal(name, part) for name, part in zip(self._shape.key, parts, strict=True))) for parts in literals
        ]
        return each[0] if len(each) == 1 else Or(*each)

    def _commit(self, staged: Transaction) -> None:
        staged.commit_transaction()

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        columns = self._shape.columns
        scan = self._connected().load_table(self._sink.table).scan(selected_fields=tuple(c.name for c in columns))
        return arrow_rows.told(columns, scan.to_arrow())

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical_row(self._shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        catalog = self._connected()
        try:
            table = catalog.load_table(self._sink.table)
        except (NoSuchTableError, NoSuchNamespaceError):
            return
        catalog.drop_table(self._sink.table)
        io: Any = table.io
        scheme, netloc, path = io.parse_location(table.location())
        io.fs_by_scheme(scheme, netloc).delete_dir(path)


def _without_retries(table: Table) -> Table:
    """Our handle of it: what others write to the table keeps its retries."""
    table.metadata.properties[TableProperties.COMMIT_NUM_RETRIES] = "0"
    return table


def _empty_snapshot(transaction: Transaction, what: str) -> None:
    """A snapshot without a file: what a catalog compares."""
    with transaction.update_snapshot(snapshot_properties={"semel": what}).fast_append():
        pass


def _snapshot(transaction: Transaction) -> int:
    """The id of the one that the transaction has staged."""
    return transaction.table_metadata.current_snapshot_id or 0


# pyiceberg's models take their fields by position, too; their types do not tell.
_in: Any = In
_equal: Any = EqualTo


def _literal(part: Any, scale: int | None) -> Any:
    """A decimal has the digits of its column, or pyiceberg does not take it."""
    return part.quantize(Decimal(1).scaleb(-(scale or 0)), context=EXACT) if isinstance(part, Decimal) else part


def _of(app: str, sink: str, partition: int | None = None) -> str:
    own = f"semel/{quote(app, safe='')}/{quote(sink, safe='')}"
    return own if partition is None else f"{own}/{partition}"


def _lane(table: Table, delivery: DeliveryId) -> Lane:
    said = table.metadata.properties.get(_of(delivery.app, delivery.sink, delivery.partition))
    return Lane() if said is None else msgspec.json.decode(said, type=Lane)


def _facts(table: Table, app: str, sink: str) -> Facts:
    said = table.metadata.properties.get(_of(app, sink))
    return Facts() if said is None else msgspec.json.decode(said, type=Facts)


def _encoded(given: dict[str, Any]) -> dict[str, str]:
    return {name: msgspec.json.encode(said).decode() for name, said in given.items()}
