"""The contract kit is worth what it finds: a mistake planted in a sink turns the named trials red, a field taken out of
a contract is refused, and who claims more than it shows is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semel import contract as words
from semel.contract import Atomicity, Contract, Fence, Guarantee, Identity, PositionIn, Resolution, Settlement, Window
from semel.ports import NoSteps
from semel.sinks import Lines, operate
from semel.sinks.sink import SinkError
from semel.testing import operating, processes, trials
from semel.testing.contracts import IN_PROCESS, Refused, Subject, run, tried
from tests.guarantees.test_rules import DEDUPLICATED, EVERY, VERSIONED, WHOLE, WINDOWED
from tests.sinks import planted_sinks as planted
from tests.sinks import subjects
from tests.support.outboxlog import OutboxLog

OPERATING = (operating.operated, operating.outmoved, operating.interrupted)
BY_NAME = {trial.__name__: trial for trial in IN_PROCESS}


def found_by(subject: Subject, names: tuple[str, ...]) -> None:
    """Each of these trials is red, and says that the sink shows too little."""
    for name in names:
        with pytest.raises(Refused):
            run(subject, BY_NAME[name])


@pytest.mark.parametrize("name", planted.ANY_SINK)
def test_a_mistake_of_any_sink_is_found(name: str, tmp_path: Path) -> None:
    """Planted in SQLite: outcomes, poison, deletes, positions, what is left behind."""
    plant, names = planted.ANY_SINK[name]
    make = plant(subjects.sqlite_keyed if name == "deletes forgotten" else subjects.sqlite_appended)
    found_by(subjects.sqlite_subject(make, tmp_path), names)


@pytest.mark.parametrize("name", planted.IN_SQL)
def test_a_mistake_in_the_transaction_is_found(name: str, tmp_path: Path) -> None:
    """S1, S10: the guard of the position's row, and rows and position apart."""
    make, names = planted.IN_SQL[name]
    found_by(subjects.sqlite_subject(make, tmp_path), names)


@pytest.mark.parametrize("name", planted.MOVES)
def test_a_mistake_in_a_move_is_found(name: str, tmp_path: Path) -> None:
    """S1, S10, S12: the fence, the identity of what comes again, the comparison, and a move that is half done."""
    make, names = planted.MOVES[name]
    found_by(subjects.sqlite_subject(make, tmp_path), names)


def test_a_sink_that_cannot_be_operated_is_told_so(tmp_path: Path) -> None:
    """A third party's without the two methods: not refused, and not passed over in silence."""
    told = tried(subjects.sqlite_subject(planted.without_methods, tmp_path), OPERATING)
    assert set(told) == {"operated", "outmoved", "interrupted"}
    for said in told.values():
        assert said.startswith("not tried: its connection has no remembered() and move()")
    connection: Any = planted.without_methods(str(tmp_path / "x"), "").open(NoSteps())
    with pytest.raises(SinkError, match="cannot be operated"):
        operate.Delivery(
            OutboxLog().session(), subjects.sqlite_appended(str(tmp_path / "x"), ""), app="a", outbox="a-b-outbox",
            owners=OutboxLog().owner, connection=connection,
        )  # fmt: skip


@pytest.mark.long
def test_a_position_outside_the_transaction_is_found_by_killed_processes(tmp_path: Path) -> None:
    """The same mistake under SIGKILL."""
    with pytest.raises(Refused, match="more"):
        run(subjects.sqlite_subject(planted.position_outside_sqlite, tmp_path), processes.crashes)


def test_a_sink_that_forgets_and_names_no_window_is_found(tmp_path: Path) -> None:
    """S7: what it recognises a repeat by is gone after a while. With a window in its contract that is what it said."""
    import sqlite3

    def forget(address: str, suffix: str) -> None:
        connection = sqlite3.connect(address)
        with connection:
            connection.execute(f'UPDATE "semel_positions{suffix}" SET position = 0')
        connection.close()

    subject = replace(subjects.sqlite_subject(subjects.sqlite_appended, tmp_path), forget=forget)
    with pytest.raises(Refused, match="without a window"):
        run(subject, trials.forgets)
    said = planted.claiming(subjects.sqlite_appended, replace(WHOLE, window=Window(60)), words.Windowed)
    run(replace(subject, make=said), trials.forgets)


FIELDS: list[dict[str, Any]] = [
    {"name": "Twice"},
    {"guarantee": Guarantee.AT_LEAST_ONCE},
    {"identity": Identity.NONE},
    {"atomicity": Atomicity.NONE},
    {"fence": Fence.NONE},
    {"resolution": Resolution.NONE},
    {"settlement": Settlement.NONE},
    {"durability": ""},
]
OWN: list[tuple[Contract, dict[str, Any]]] = [
    (WHOLE, {"remembers_position": False}),
    (WHOLE, {"position": PositionIn.GROUP_OFFSETS}),
    (WHOLE, {"atomicity": Atomicity.RECORD}),
    (WHOLE, {"window": Window(60)}),
    (VERSIONED, {"guarantee": Guarantee.EXACTLY_ONCE}),
    (VERSIONED, {"window": Window(60)}),
    (WINDOWED, {"window": None}),
    (WINDOWED, {"guarantee": Guarantee.EFFECTIVELY_ONCE}),
    (DEDUPLICATED, {"through": ""}),
]


@pytest.mark.parametrize(
    ("contract", "lack"),
    # What Deduplicated does about zombies is nothing: their rows are repeats like any other.
    [*((c, lack) for c in EVERY for lack in FIELDS if (c, lack) != (DEDUPLICATED, {"fence": Fence.NONE})), *OWN],
    ids=str,
)
def test_a_field_taken_out_of_a_contract_is_refused(contract: Contract, lack: dict[str, Any], tmp_path: Path) -> None:
    """Every field of every kind: deleted, or put above what the others carry."""
    kind = getattr(words, contract.name)
    whole = planted.claiming(subjects.sqlite_keyed, contract, kind)
    run(subjects.sqlite_subject(whole, tmp_path), trials.agreement)
    less = planted.claiming(subjects.sqlite_keyed, replace(contract, **lack), kind)
    with pytest.raises(Refused):
        run(subjects.sqlite_subject(less, tmp_path), trials.agreement)


def test_a_type_that_write_believes_and_the_contract_does_not_is_refused(tmp_path: Path) -> None:
    """A weak sink under a strong type would be taken without accept=."""
    for kind in (words.Weak, words.Versioned):
        make = planted.claiming(subjects.sqlite_keyed, WHOLE, kind)
        with pytest.raises(Refused, match="its type is"):
            run(subjects.sqlite_subject(make, tmp_path), trials.agreement)


def lines(address: str, suffix: str) -> Lines:
    return Lines(address).renamed(suffix)


def lines_subject(make: Any, folder: Path) -> Subject:
    from semel.testing.subject import shown

    def read(address: str, suffix: str) -> list[tuple[str, int]]:
        file = Path(address + suffix)
        return [shown(line) for line in file.read_bytes().splitlines()] if file.exists() else []

    return Subject(make=make, address=str(folder / "lines"), read=read, poison=())


@pytest.mark.long
def test_a_plain_file_is_what_it_says(tmp_path: Path) -> None:
    """Lines, weak and named so, goes through the kit: what it does not claim is not asked of it."""
    found = tried(lines_subject(lines, tmp_path), [*IN_PROCESS, processes.crashes])
    wrong = {name: told for name, told in found.items() if told and not told.startswith("not tried")}
    assert not wrong
    assert [name for name, told in found.items() if not told] == [
        "agreement", "plain", "torn", "deletes", "operated", "crashes",
    ]  # fmt: skip


@pytest.mark.parametrize("contract", EVERY, ids=lambda c: c.name)
def test_a_plain_file_that_claims_more_is_found_out(contract: Contract, tmp_path: Path) -> None:
    """The fields agree with each other; what they say is shown by nothing."""
    make = planted.claiming(lines, contract, getattr(words, contract.name))
    found = tried(lines_subject(make, tmp_path))
    assert found["agreement"] == ""
    wrong = {name for name, told in found.items() if told and not told.startswith("not tried")}
    assert {"replay", "zombie"} <= wrong, found
