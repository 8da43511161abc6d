"""MongoDB's protocol on an imitation (FerretDB over SQLite): the contract kit, and planted mistakes.

What MongoDB itself does under these commands was not tried: its server is not to be had here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semel.contract import LogIdentity
from semel.ports import Done, Fenced, NotDone, Step, Unknown
from semel.sinks import MongoDB
from semel.sinks.sink import Diverged, RowRefused
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from semel.testing.subject import Counting
from tests.servers import mongodb_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.values import Total, adopted, claimed, deleted, held, opened, renamed_goes_on, rows
from tests.support.ferretdb import FerretProcess

if os.environ.get("FERRETDB") != "build":
    pytest.skip("imitated, and long to build: `make proof WHAT=mongodb`", allow_module_level=True)

_numbers = itertools.count()


@pytest.fixture(scope="session")
def ferret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FerretProcess]:
    with FerretProcess(tmp_path_factory.mktemp("ferretdb")) as server:
        yield server


class TestImitatedMongoDB(ContractTests):
    """On FerretDB, which is killed."""

    @pytest.fixture
    def subject(self, ferret: FerretProcess) -> Subject:
        return subjects.subject(subjects.documents, ferret)


@pytest.fixture
def make(ferret: FerretProcess) -> MakeSink:
    collection = f"t{next(_numbers)}"
    return lambda **said: MongoDB(
        said.pop("url", ferret.url), said.pop("collection", collection), **{"key": "customer", **said}
    )


def _other_filter(alter: Any) -> Any:
    """The updates as they would be written without, or with half of, the guard."""

    def plant(connection: Any) -> Any:
        import bson
        from bson.raw_bson import RawBSONDocument

        line = connection._line

        def altered(claim: Any, document: Any) -> Any:
            made = line(claim, document)
            update = bson.decode(made.update.raw)
            alter(update)
            return made._replace(update=RawBSONDocument(bson.encode(update)))

        connection._line = altered
        return connection

    return plant


def _without_guard(update: Any) -> None:
    del update["q"]["$or"]


def _by_offset_alone(update: Any) -> None:
    update["q"]["semel_offset"] = update["q"].pop("$or")[1]["semel_offset"]


def _hard_deletes(connection: Any) -> Any:
    sent = connection._sent

    def then_deleted(lines: Any) -> int:
        stale: int = sent(lines)
        connection._collection().delete_many({"semel_hidden": "deleted"})
        return stale

    connection._sent = then_deleted
    return connection


def _duplicate_is_success(connection: Any) -> Any:
    """All that a command did not do is taken for stale."""
    failed = connection._failed
    connection._failed = lambda lines: None if (found := failed(lines)) and found[1] == 11000 else found
    return connection


def _position_first(connection: Any) -> Any:
    def write(real: Any, claim: Any, start: int, end: int, run: str, batch: Any) -> Any:
        real._moved(claim, start, end, run)
        return real.write(claim, start, end, run, batch)

    return Altered(connection, write=write)


def _unknown_is_failure(connection: Any) -> Any:
    def write(real: Any, *words: Any) -> Any:
        outcome = real.write(*words)
        return NotDone(outcome.reason) if isinstance(outcome, Unknown) else outcome

    return Altered(connection, write=write)


@pytest.mark.parametrize(
    ("alter", "names"),
    [
        (_other_filter(_without_guard), ("zombie", "recut", "deletes", "reborn")),
        (_other_filter(_by_offset_alone), ("reborn",)),
        (_hard_deletes, ("deletes",)),
        (_duplicate_is_success, ("recut",)),
        (_position_first, ("torn",)),
        (_unknown_is_failure, ("lost_after",)),
    ],
    ids=["no guard", "no incarnation", "hard deletes", "duplicate", "position first", "unknown"],
)
def test_a_mistake_is_found(alter: Any, names: tuple[str, ...], ferret: FerretProcess) -> None:
    """S1, S6, S8, S9, S10, S12."""
    planted = subjects.subject(lambda address, suffix: Planted(subjects.documents(address, suffix), alter), ferret)
    for name in names:
        with pytest.raises((Refused, RowRefused)):  # refused: what is read back does not fit
            run(planted, getattr(trials, name))


def test_a_renamed_sink_goes_on(make: MakeSink) -> None:
    renamed_goes_on(make)


def test_an_older_write_is_stale_and_no_error(make: MakeSink) -> None:
    """A duplicate key is counted once it is read back; a superseded owner is told by the position."""
    sink = make()
    steps = Counting()
    connection = opened(sink, steps=steps)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 0
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 0)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 1
    heir = opened(sink)
    assert heir.write(claimed(heir, sink), 1, 2, "r", rows(sink, [Total("a", 2)], 1)) == Done()
    assert isinstance(connection.write(claim, 1, 2, "r", rows(sink, [Total("a", 1)], 1)), Fenced)
    assert held(heir) == [("a", 2)]


def test_a_position_that_went_back_is_not_moved_on(make: MakeSink) -> None:
    """S13: a server that lost what it acknowledged has an older position: what went with it would be skipped."""
    sink = make()
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    for at in range(2):
        assert connection.write(claim, at, at + 1, "r", rows(sink, [Total(f"c{at}", 1)], at)) == Done()
    connection._collection().update_one({"_id": f"semel:position:app/{sink.name}/0"}, {"$set": {"position": 1}})
    outcome = connection.write(claim, 2, 3, "r", rows(sink, [Total("c2", 1)], 2))
    assert isinstance(outcome, Unknown) and "is 1, behind 2" in outcome.reason
    assert claimed(connection, sink).position == 1


def test_a_unique_index_of_somebodys_refuses_by_offset(make: MakeSink) -> None:
    """A duplicate key of another index than _id's is no older version."""
    sink = make()
    connection: Any = opened(sink)
    connection._collection().create_index("total", unique=True)
    with pytest.raises(RowRefused) as refused:
        connection.write(claimed(connection, sink), 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 1)]))
    assert refused.value.offset == 1


def test_a_deleted_document_is_hidden(make: MakeSink) -> None:
    """The tombstone has the key, the version and the time; a later write takes its place."""
    sink = make()
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", [*rows(sink, [Total("a", 1)]), deleted(sink, "a", 1)]) == Done()
    there = connection._collection().find_one({"_id": "a"})
    assert (there["customer"], there["semel_hidden"], there["semel_offset"]) == ("a", "deleted", 1)
    assert held(connection) == []
    assert connection.write(claim, 2, 3, "r", rows(sink, [Total("a", 5)], 2)) == Done()
    assert held(connection) == [("a", 5)]


def test_the_choice_can_be_taken(make: MakeSink) -> None:
    """What the message of S16 prints does what it says: a new incarnation, from the start."""
    sink = make()
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 5, "r", rows(sink, [Total("a", 1)])) == Done()
    other = LogIdentity("another", 4)
    with pytest.raises(Diverged, match=r"was re-created.*semel sink adopt APP.py"):
        claimed(connection, sink, log=other)
    adopted(connection, other)
    claim = claimed(connection, sink, log=other)
    assert (claim.incarnation, claim.position) == (2, 0)
    assert connection.write(replace(claim), 0, 1, "r", rows(sink, [Total("a", 7)])) == Done()
    assert held(connection) == [("a", 7)]


def test_verify_holds(tmp_path: Path) -> None:
    """`semel verify`, 24 kills and more, at every step; afterwards nothing of the run is left."""
    from tests.support.campaigns import IMITATED
    from tests.support.campaigns import run as campaign

    found = campaign(IMITATED["mongodb"], tmp_path, crashes=24, seed=3, lossy=True)
    assert found.holds, f"{found.as_json()}\n{found.said}"
