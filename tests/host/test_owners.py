"""`ports.Owner` on the embedded log and on `semel broker`: one id, one owner, one partition a transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semel.ports import Done, Fenced, Ingestor, Log, NewRecord, NewTopic, NotDone, Owner, Owners, TopicPartition
from tests.sinks.cut_child import opened
from tests.support.broker import BrokerProcess

AT = TopicPartition("app-orders-delivery", 1)


@pytest.fixture(params=["embedded", "broker"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Log, Owners, BrokerProcess | None]]:
    with contextlib.ExitStack() as stack:
        broker = None
        url = f"embedded:{tmp_path / 'log'}"
        if request.param == "broker":
            broker = stack.enter_context(BrokerProcess(tmp_path / "data"))
            url = f"kafka://{broker.address}"
        log, owners = opened(url, None)
        stack.callback(log.close)
        log.create([NewTopic(AT.topic, 2, {"cleanup.policy": "compact"})])
        made: list[Owner] = []

        def owner(transactional_id: str) -> Owner:
            made.append(owners(transactional_id))
            return made[-1]

        yield log, owner, broker
        for one in made:
            one.close()
        if (engine := getattr(log, "_engine", None)) is not None:
            engine.close()


def values(log: Log) -> list[bytes | None]:
    """What a read_committed reader sees; no transaction is open, so nothing is waited for."""
    found: list[bytes | None] = []
    for records in log.read(AT, log.starts([AT])[AT], log.ends([AT])[AT]):
        assert not records.undecided
        found += records.values
    return found


def test_what_it_appends_is_committed_when_it_says_so(place: tuple[Log, Owners, object]) -> None:
    """Several transactions one after the other, of one and of several records; null is a value."""
    log, owners, _ = place
    owner = owners("app.orders.1")
    owner.initialise()
    assert owner.append(AT, [(b"k", b"1")], 1_000) == Done()
    assert values(log) == [b"1"]
    assert owner.append(AT, [(b"k", b"2"), (b"l", None)], 1_000) == Done()
    assert values(log) == [b"1", b"2", None]


def test_who_initialises_last_owns_it(place: tuple[Log, Owners, object]) -> None:
    """The former owner is fenced: nothing of it is seen, and it does not take the id back by itself. Initialising again
    does."""
    log, owners, _ = place
    former, heir, other = owners("app.orders.1"), owners("app.orders.1"), owners("app.orders.0")
    for owner in (former, other, heir):
        owner.initialise()
    assert isinstance(former.append(AT, [(b"k", b"former")], 1_000), Fenced)
    assert heir.append(AT, [(b"k", b"heir")], 1_000) == Done()
    assert other.append(AT._replace(partition=0), [(b"k", b"other id")], 1_000) == Done()
    former.initialise()
    assert isinstance(heir.append(AT, [(b"k", b"late")], 1_000), Fenced)
    assert former.append(AT, [(b"k", b"again")], 1_000) == Done()
    assert values(log) == [b"heir", b"again"]


@pytest.mark.parametrize("place", ["broker"], indirect=True)
def test_a_connection_lost_before_the_next_transaction_is_no_done(
    place: tuple[Log, Owners, BrokerProcess],
) -> None:
    """The broker dies and comes back between two transactions: whatever the client makes of it, what was told as done
    is there, what was told as not done is not, and after anything but done the owner initialises again."""
    log, owners, broker = place
    owner = owners("app.orders.1")
    owner.initialise()
    told = []
    for n in range(6):
        if n % 2:
            broker.restart()
        outcome = owner.append(AT, [(b"k", b"%d" % n)], 1_000)
        told.append(outcome)
        if not isinstance(outcome, Done):
            owner.initialise()
    found = values(log)
    for n, outcome in enumerate(told):
        if isinstance(outcome, Done):
            assert b"%d" % n in found
        if isinstance(outcome, NotDone | Fenced):
            assert b"%d" % n not in found


def test_a_transaction_of_several_partitions(place: tuple[Log, Callable[[str], Ingestor], object]) -> None:
    """Sent in two goes, visible when it is committed and not before, with its headers; the next one follows."""
    log, owners, _ = place
    owner = owners("orders.ingest.0")
    owner.initialise()
    for n in range(2):
        first = [NewRecord(AT.topic, p, b"k", b"%d" % n, 1_000, [("why", b"so")]) for p in (0, 1)]
        assert owner.send(first) == Done()
        assert owner.send([NewRecord(AT.topic, 1, b"p", b"position", 1_000)]) == Done()
        # (Nobody reads meanwhile: a reader waits for the end of the transaction.)
        assert owner.commit() == Done()
    assert values(log) == [b"0", b"position", b"1", b"position"]
    at = AT._replace(partition=0)
    (records,) = [r for r in log.read(at, 0, log.ends([at])[at]) if r.offsets]
    assert list(records.values) == [b"0", b"1"]
    assert records.headers is not None and [list(pairs) for pairs in records.headers] == [[("why", b"so")]] * 2


@pytest.mark.parametrize("sent", [False, True])
def test_what_a_former_ingestor_left_open_is_gone(
    place: tuple[Log, Callable[[str], Ingestor], object], sent: bool
) -> None:
    """Its successor initialises: what was sent is aborted, and sending or committing the rest is refused."""
    log, owners, _ = place
    former, heir = owners("orders.ingest.0"), owners("orders.ingest.0")
    former.initialise()
    if sent:
        assert former.send([NewRecord(*AT, b"k", b"former", 1_000)]) == Done()
    heir.initialise()
    assert isinstance(former.commit() if sent else former.send([NewRecord(*AT, b"k", b"former", 1_000)]), Fenced)
    assert heir.send([NewRecord(*AT, b"k", b"heir", 1_000)]) == Done()
    assert heir.commit() == Done()
    assert values(log) == [b"heir"]
