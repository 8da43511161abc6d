"""Moving a delivery: what `semel sink adopt` and `rewind` do, for each place where a position can be, over a log in
memory. Restores of the log and of the sink (S12), topics made anew (S16), zombies (S1)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from semel.contract import AtLeastOnce, Claim, Row
from semel.ports import Done, Log, NoSteps, Outcome, Position, Step, TopicPartition
from semel.sinks import Lines, Objects, SQLite, cuts, group_position, operate, origin, positions
from semel.sinks.http import KEYED
from semel.sinks.lines import LinesConnection
from semel.sinks.operate import NotMoved, Standing
from semel.sinks.sink import Diverged
from tests.sinks import test_cuts as cutting
from tests.sinks import test_delivery as delivering
from tests.sinks.conftest import MakeSink
from tests.sinks.values import Total, totals
from tests.support.outboxlog import OutboxLog

OUTBOX = delivering.OUTBOX
AT = TopicPartition(OUTBOX, 0)


def looked(log: OutboxLog, sink: Any, outbox: str = OUTBOX) -> tuple[operate.Delivery, Standing]:
    delivery = operate.Delivery(
        log.session("app.sink"), sink, app="app", outbox=outbox, owners=log.owner, connection=sink.open(NoSteps())
    )
    return delivery, delivery.standing()


def moved(log: OutboxLog, sink: Any, to: int, *, again: bool, outbox: str = OUTBOX) -> int:
    """The incarnation after."""
    delivery, standing = looked(log, sink, outbox)
    return placed(log, delivery, standing, to, again=again)


def placed(log: OutboxLog, delivery: operate.Delivery, standing: Standing, to: int, *, again: bool) -> int:
    return delivery.move(
        standing,
        {place.at: to for place in standing.places},
        renew=delivery.renewed(standing, again=again),
        now_ms=1,
        delete=lambda topics: [log.topics.pop(topic) for topic in topics],
    )


def put(log: OutboxLog, sink: Any, *numbers: int) -> None:
    delivering.put(log, sink, *(Total("a", n) for n in numbers))


def delivered(log: OutboxLog, sink: Any, **more: Any) -> None:
    worker = delivering.Worker(log, sink, **more)
    worker.turn(4)
    worker.close()


# --- the position is at the sink ------------------------------------------------------------------------------------


def test_a_rewind_delivers_again_from_there(make_sink: MakeSink) -> None:
    """Under the next incarnation; who had claimed before is fenced, and claims the position that stands now."""
    log, sink = delivering.outbox(), make_sink()
    put(log, sink, *range(6))
    zombie = delivering.Worker(log, sink)
    zombie.turn(4)
    assert moved(log, sink, 2, again=True) == 2
    delivered(log, sink)
    assert delivering.shown(sink) == totals([("a", n) for n in (0, 1, 2, 2, 3, 3, 4, 4, 5, 5)])
    put(log, sink, 6)
    zombie.turn(1)
    assert zombie.steps.hits[Step.SINK_FENCED] == 1
    zombie.turn(4)
    assert delivering.shown(sink) == totals([("a", n) for n in (0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6)])


def test_a_position_that_was_moved_is_a_position_in_this_log(make_sink: MakeSink) -> None:
    """S12 is still noticed after it: its mark names the record before."""
    log, sink = delivering.outbox(), make_sink()
    put(log, sink, *range(3))
    copied = log.copy()
    put(log, sink, *range(3, 6))
    delivered(log, sink)
    moved(log, sink, 5, again=True)
    log.put_back(copied)
    put(log, sink, *range(10, 14))
    with pytest.raises(Diverged):
        delivered(log, sink)


@pytest.mark.parametrize(("stands", "held"), [(6, [0, 1, 2, 3, 4, 5, 13]), (3, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13])])
def test_a_log_that_went_back_goes_on_where_a_person_says(make_sink: MakeSink, stands: int, held: list[int]) -> None:
    """S12: records 3 to 5 were delivered and are gone; 10 to 12 came in their place. At the sink's position they are
    never delivered; at the copy's end they are, beside those that the log has lost."""
    log, sink = delivering.outbox(), make_sink()
    put(log, sink, *range(3))
    copied = log.copy()
    put(log, sink, *range(3, 6))
    delivered(log, sink)
    log.put_back(copied)
    put(log, sink, 10, 11, 12, 13)
    delivery, standing = looked(log, sink)
    assert "went back" in standing.problem or "another" in standing.problem
    assert delivery.count(AT, 0, stands) == stands
    assert delivery.log_went_another_way(standing, standing.places[0])
    assert delivery.runs(AT) == [(1, 0), (2, 3)]  # what came after the copy was put back begins at 3
    assert placed(log, delivery, standing, stands, again=False) == 2  # the log is another: so is the identity
    assert looked(log, sink)[1].problem == ""
    delivered(log, sink)
    assert delivering.shown(sink) == totals([("a", n) for n in held])


def test_a_topic_made_anew_with_more_partitions_is_delivered_from_its_start(make_sink: MakeSink) -> None:
    """S16, S15: and no partition's row speaks of the former topic any more, also where there are fewer now."""
    log, sink = delivering.outbox(3), make_sink()
    put(log, sink, 1)
    delivered(log, sink)
    for partitions in (5, 2):
        log.create(OUTBOX, partitions, delivering.EVER)
        put(log, sink, partitions)
        with pytest.raises(Diverged, match="semel sink adopt"):
            delivered(log, sink)
        _, standing = looked(log, sink)
        assert not standing.same_log and "re-created" in standing.problem
        moved(log, sink, 0, again=False)
        delivered(log, sink)
    assert delivering.shown(sink) == totals([("a", 1), ("a", 5), ("a", 2)])


def test_a_sink_put_back_needs_no_word_while_the_outbox_holds_what_it_lacks(tmp_path: Path) -> None:
    """Rows and position go back together. Where the outbox was truncated meanwhile it stops; `adopt` goes on behind
    what is lost, and says how much that is."""
    log, sink = delivering.outbox(), SQLite(tmp_path / "sink.db", "totals")
    put(log, sink, *range(5))
    delivered(log, sink)
    backup = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    put(log, sink, *range(5, 10))
    delivered(log, sink)

    def put_back() -> None:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, data in backup.items():
            (tmp_path / name).write_bytes(data)

    put_back()
    assert looked(log, sink)[1].problem == ""
    delivered(log, sink)
    assert delivering.shown(sink) == totals([("a", n) for n in range(10)])
    put_back()
    log.session().truncate({AT: 7})
    delivery, standing = looked(log, sink)
    assert "now begins at 7: 2 offsets were deleted before" in standing.problem
    assert not delivery.log_went_another_way(standing, standing.places[0])
    moved(log, sink, 7, again=False)
    delivered(log, sink)
    assert delivering.shown(sink) == totals([("a", n) for n in (0, 1, 2, 3, 4, 7, 8, 9)])


def test_a_dropped_table_is_filled_again_from_the_start_of_a_truncated_outbox(make_sink: MakeSink) -> None:
    """Its start is not 0 then; still the table is made, because nothing is said to have been delivered into it."""
    log, sink = delivering.outbox(), make_sink()
    put(log, sink, *range(10))
    delivered(log, sink)
    log.session().truncate({AT: 4})
    connection: Any = sink.open(NoSteps())
    getattr(connection, "_connected", None)().execute("DROP TABLE totals")
    connection.close()
    moved(log, sink, 4, again=True)
    delivered(log, sink)
    assert delivering.shown(sink) == totals([("a", n) for n in range(4, 10)])


def test_what_moves_between_look_and_move_is_not_moved(make_sink: MakeSink) -> None:
    """What was said to a person is done, or nothing."""
    log, sink = delivering.outbox(), make_sink()
    put(log, sink, *range(6))
    delivered(log, sink)
    delivery, standing = looked(log, sink)
    put(log, sink, 6)
    delivered(log, sink)
    with pytest.raises(NotMoved, match="changed meanwhile"):
        placed(log, delivery, standing, 0, again=True)
    assert looked(log, sink)[1].places[0].position == 7


# --- the position is in the group's offsets, the identity in each request -------------------------------------------


class Requests(Lines):
    """A receiver of requests, as HTTP sends them: what it was asked, by incarnation."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "requests")
        self.asked: list[tuple[int, int]] = []

    @property
    def contract(self) -> Any:
        return KEYED

    def open(self, steps: Any) -> Any:
        return _Asked(self, steps)


class _Asked(LinesConnection):
    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        self._sink.asked += [(claim.incarnation, row.offset) for row in rows]  # type: ignore[attr-defined]
        return Done()


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    return Requests(tmp_path)


def took(sink: Requests) -> list[tuple[int, int]]:
    asked, sink.asked = sink.asked, []
    return asked


def test_requests_that_come_again_have_other_keys(requests: Requests) -> None:
    """A receiver answers a used key without effect: so a rewind takes the next incarnation, each time, and keeps it."""
    log = delivering.outbox()
    put(log, requests, *range(4))
    delivered(log, requests)
    assert took(requests) == [(1, n) for n in range(4)]
    assert moved(log, requests, 2, again=True) == 2
    delivered(log, requests)
    assert took(requests) == [(2, 2), (2, 3)]
    put(log, requests, 4)
    delivered(log, requests)
    assert took(requests) == [(2, 4)]
    assert moved(log, requests, 4, again=True) == 3
    delivered(log, requests)
    assert took(requests) == [(3, 4)]


def test_the_incarnation_outlives_the_groups_offsets(requests: Requests) -> None:
    """Kafka forgets them after a week without members. Then what the rewind began is sent again, under keys that the
    receiver knows: nothing of before it, and nothing under the former incarnation."""
    log = delivering.outbox()
    put(log, requests, *range(4))
    delivered(log, requests)
    moved(log, requests, 2, again=True)
    put(log, requests, 4)
    delivered(log, requests)
    took(requests)
    log.offsets.clear()
    delivered(log, requests)
    assert took(requests) == [(2, 2), (2, 3), (2, 4)]


def test_a_zombie_of_the_former_incarnation_moves_nothing(requests: Requests) -> None:
    """It still sends under the old keys and commits old offsets; the next claim goes on where the rewind said."""
    log = delivering.outbox()
    put(log, requests, *range(4))
    zombie = delivering.Worker(log, requests)
    zombie.turn(4)
    moved(log, requests, 2, again=True)
    put(log, requests, 4)
    zombie.turn(1)
    assert log.offsets[("app.sink", AT)].offset == 5
    took(requests)
    delivered(log, requests)
    assert took(requests) == [(2, 2), (2, 3), (2, 4)]


def test_a_receiver_put_back_is_asked_again_under_the_same_keys(requests: Requests) -> None:
    """What it still knows is answered without effect; so adopting an earlier position repeats nothing."""
    log = delivering.outbox()
    put(log, requests, *range(4))
    delivered(log, requests)
    took(requests)
    assert moved(log, requests, 1, again=False) == 1
    delivered(log, requests)
    assert took(requests) == [(1, 1), (1, 2), (1, 3)]


def test_of_a_topic_before_this_one_nothing_counts(requests: Requests) -> None:
    """S16: its id is part of each key; the incarnation of the former one says nothing."""
    log = delivering.outbox()
    put(log, requests, *range(4))
    delivered(log, requests)
    moved(log, requests, 2, again=True)
    log.create(OUTBOX, 1, delivering.EVER)
    log.offsets.clear()
    put(log, requests, 9)
    took(requests)
    delivered(log, requests)
    assert took(requests) == [(1, 0)]


def test_lines_that_come_again_are_there_again(tmp_path: Path) -> None:
    """A weak sink has no identity, and its rewind no incarnation."""
    log, sink = delivering.outbox(), Lines(tmp_path / "lines")
    put(log, sink, *range(4))
    delivered(log, sink, accept=AtLeastOnce("a test"))
    assert moved(log, sink, 3, again=True) == 1
    delivered(log, sink, accept=AtLeastOnce("a test"))
    assert len((tmp_path / "lines").read_text().splitlines()) == 5


# --- the position is in the delivery topic --------------------------------------------------------------------------


def objects(tmp_path: Path, count: int = 20) -> tuple[OutboxLog, Objects]:
    log, sink = cutting.outbox(), Objects(tmp_path / "orders", records=10, seconds=5.0)
    cutting.put(log, *range(count))
    cut(log, sink)
    return log, sink


def cut(log: OutboxLog, sink: Objects) -> None:
    worker = cutting.Worker(log, sink)
    worker.turn(8)
    worker.close()


def test_objects_that_come_again_lie_beside_the_former_ones(tmp_path: Path) -> None:
    """In order, without a gap, under the next incarnation; and who had begun to deliver is fenced."""
    log, sink = objects(tmp_path)
    zombie = cutting.Worker(log, sink)
    zombie.turn(2)
    assert moved(log, sink, 5, again=True, outbox=cutting.OUTBOX) == 2
    cutting.put(log, *range(20, 23))
    zombie.turn(1, 6_000)
    cut(log, sink)
    assert zombie.steps.hits.get(Step.SINK_FENCED, 0) <= 1
    assert cutting.names(sink) == [
        cutting.name(0, 10),
        cutting.name(10, 20),
        cutting.name(5, 15, incarnation=2),
        cutting.name(15, 23, incarnation=2),
    ]
    assert looked(log, sink, cutting.OUTBOX)[1].problem == ""


@pytest.mark.parametrize("dies", ["before the sink", "before its control object"])
def test_a_move_that_was_interrupted_stops_the_delivery_until_it_is_made_again(
    tmp_path: Path, dies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the log and the sink: neither the former position nor the new one counts."""
    log, sink = objects(tmp_path)
    delivery, standing = looked(log, sink, cutting.OUTBOX)
    connection: Any = delivery._connection

    def die(*given: object) -> None:
        raise cutting.Died

    with monkeypatch.context() as dying:
        if dies == "before the sink":
            dying.setattr(connection, "move", die)
        else:
            replace = connection._store.replace
            dying.setattr(
                connection._store, "replace", lambda key, *rest: die() if "delivery" in key else replace(key, *rest)
            )
        with pytest.raises(cutting.Died):
            placed(log, delivery, standing, 5, again=True)
    cutting.put(log, *range(20, 22))
    with pytest.raises(Diverged, match="a move of its position was interrupted"):
        cut(log, sink)
    assert moved(log, sink, 5, again=True, outbox=cutting.OUTBOX) == 3
    cut(log, sink)
    assert cutting.names(sink)[2:] == [cutting.name(5, 15, incarnation=3), cutting.name(15, 22, incarnation=3)]


def test_objects_put_back_go_on_where_they_end_or_where_the_log_says(tmp_path: Path) -> None:
    """S12, the other way round: the sink lost its last object and its manifest of it."""
    log, sink = objects(tmp_path, 10)
    backup = {path: path.read_bytes() for path in (tmp_path / "orders").rglob("*") if path.is_file()}
    cutting.put(log, *range(10, 20))
    cut(log, sink)
    for path in [path for path in (tmp_path / "orders").rglob("*") if path.is_file()]:
        path.unlink()
    for path, data in backup.items():
        path.write_bytes(data)
    with pytest.raises(Diverged, match=r"the sink was put back.*semel sink adopt"):
        cut(log, sink)
    delivery, standing = looked(log, sink, cutting.OUTBOX)
    assert "the sink was put back" in standing.problem
    assert not delivery.log_went_another_way(standing, standing.places[0])
    assert (standing.seen[0].whole, standing.progress[0] and standing.progress[0].position) == (10, 20)
    placed(log, delivery, standing, 10, again=False)
    cut(log, sink)
    assert cutting.names(sink) == [cutting.name(0, 10), cutting.name(10, 20, incarnation=2)]


def test_a_log_that_went_back_behind_its_objects_goes_on(tmp_path: Path) -> None:
    """S12: outbox and delivery topic went back together."""
    log, sink = objects(tmp_path, 10)
    copied = log.copy()
    cutting.put(log, *range(10, 20))
    cut(log, sink)
    log.put_back(copied)
    cutting.put(log, *range(100, 107))
    delivery, standing = looked(log, sink, cutting.OUTBOX)
    assert "decided cuts up to 10 only" in standing.problem
    assert delivery.log_went_another_way(standing, standing.places[0])
    moved(log, sink, 10, again=False, outbox=cutting.OUTBOX)
    cut(log, sink)
    assert cutting.held(sink) == [*range(20), *range(100, 107)]
    assert cutting.names(sink)[-1] == cutting.name(10, 17, incarnation=2)


def test_another_partition_count_takes_another_delivery_topic(tmp_path: Path) -> None:
    """S15: keys have changed partitions."""
    log, sink = objects(tmp_path, 10)
    log.create(cutting.OUTBOX, 2, cutting.EVER)
    cutting.put(log, 50, partition=1)
    with pytest.raises(Diverged, match="semel sink adopt"):
        cut(log, sink)
    moved(log, sink, 0, again=False, outbox=cutting.OUTBOX)
    cut(log, sink)
    assert cutting.held(sink) == [*range(10), 50]


# --- marks ----------------------------------------------------------------------------------------------------------


def test_a_mark_that_is_made_for_a_position_is_one_of_this_log() -> None:
    """Any position of any log, also behind what no reader sees, over runs, and truncated: validated, it stands; and in
    a log that went another way before it, it does not."""
    for seed in range(60):
        dice = random.Random(seed)
        log = delivering.outbox()
        for n in range(dice.randint(1, 600)):
            if dice.random() < 0.02:
                log.restart()
            log.append(OUTBOX, 0, b"k", b"%d" % n, visible=dice.random() < dice.choice([0.02, 0.8]))
        session: Log = log.session()
        end = session.ends([AT])[AT]
        session.truncate({AT: dice.randint(0, end // 2)})
        known = origin.runs(session, session.topics())
        start = session.starts([AT])[AT]
        for position in {start, end, dice.randint(start, end), dice.randint(start, end)}:
            mark = origin.mark_before(session, AT, position, known)
            origin.validate(session, AT, position, mark, known, "here")
            last = origin.parsed(mark)
            if last is not None and last.offset >= 0:
                records = log.topics[OUTBOX].partitions[0]
                was = records[last.offset]
                records[last.offset] = dataclasses.replace(was, value=b"another")
                with pytest.raises(Diverged):
                    origin.validate(session, AT, position, mark, known, "here")
                records[last.offset] = was


def test_offsets_that_carry_more_than_a_mark_are_read_as_they_were_written(requests: Requests) -> None:
    """The mark, the incarnation and the moments of `keep` share one text."""
    log = delivering.outbox()
    put(log, requests, *range(4))
    delivered(log, requests)
    moved(log, requests, 2, again=True)
    worker = delivering.Worker(log, requests)
    worker.turn(4)
    worker.close()
    kept = log.offsets[("app.sink", AT)]
    assert " @2" in kept.metadata and " #" in kept.metadata
    mark = origin.mark_before(log.session(), AT, 4, origin.runs(log.session(), log.session().topics()))
    assert kept.metadata.startswith(f"{mark} @2 #")
    plain = Position(4, mark)  # as every version before has written it
    here = looked(log, requests)[1].log
    assert group_position.read(plain, None, here) == (4, mark, 1)
    assert group_position.read(kept, None, here) == (4, mark, 2)


# --- planted --------------------------------------------------------------------------------------------------------


PLANTED: dict[str, tuple[object, str, Any, Any]] = {
    "what comes again keeps its identity": (
        operate.Delivery,
        "renewed",
        lambda self, standing, *, again: False,
        test_requests_that_come_again_have_other_keys,
    ),
    "what was seen is not compared": (
        positions,
        "changed",
        lambda seen, now: "",
        test_what_moves_between_look_and_move_is_not_moved,
    ),
    "the moved position has no mark": (
        origin,
        "mark_before",
        lambda log, at, position, known: "",
        test_a_position_that_was_moved_is_a_position_in_this_log,
    ),
    "the incarnation is with the group only": (
        cuts,
        "read_progress",
        lambda log, at: None,
        test_the_incarnation_outlives_the_groups_offsets,
    ),
    "the log is not asked whether it is the same": (
        operate.Delivery,
        "_problem",
        lambda *given: "",
        test_a_topic_made_anew_with_more_partitions_is_delivered_from_its_start,
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes one mechanism out; the test that is there for it fails."""
    owner, name, planted, test = PLANTED[bug]
    monkeypatch.setattr(owner, name, planted)
    sink = Requests(tmp_path) if "requests" in test.__code__.co_varnames[:1] else None
    with pytest.raises((AssertionError, Diverged, pytest.fail.Exception)):
        test(sink or (lambda table="totals", **said: SQLite(tmp_path / "sink.db", table, **said)))
