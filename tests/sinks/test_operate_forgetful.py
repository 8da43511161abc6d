"""What a person does to a delivery by cuts over a sink that keeps nothing: the log alone tells where it is, and has to
tell when it went back and when a move is half done. Each check is dropped in turn, and the kit must see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from semel.contract import LogIdentity
from semel.ports import TopicPartition
from semel.sinks import agreement, cut_delivery, cuts, group_position, operate
from semel.sinks.cuts import Cut, Progress, Undecided
from semel.sinks.group_position import Stands
from semel.testing import operating
from semel.testing.contracts import Refused, run
from semel.testing.outbox import OutboxLog, OutboxOwner
from tests.sinks import forgetful

TRIALS = (operating.operated, operating.outmoved, operating.interrupted)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    forgetful.STORES.clear()


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
def test_it_goes_through_the_trials(trial: Any) -> None:
    run(forgetful.subject(), trial)


def _half_moves_go_on(m: pytest.MonkeyPatch) -> None:
    """Each partition looks at its own record."""
    m.setattr(agreement, "half_moved", lambda said, here: False)


def _only_the_command_sees_it(m: pytest.MonkeyPatch) -> None:
    m.setattr(cut_delivery, "alone", lambda *words: None)


def _the_group_is_not_asked(m: pytest.MonkeyPatch) -> None:
    m.setattr(agreement, "gone_back", lambda told, found: False)


def _the_group_is_told_as_before(m: pytest.MonkeyPatch) -> None:
    """A lag, and nothing else."""
    written = group_position.written
    m.setattr(group_position, "written", lambda position, mark, incarnation, moments="": written(position, "", 1))


def _a_move_keeps_the_incarnation(m: pytest.MonkeyPatch) -> None:
    """What comes again comes under its former tokens."""
    m.setattr(operate.Delivery, "renewed", lambda self, standing, again: False)


def _a_move_fences_nobody(m: pytest.MonkeyPatch) -> None:
    """Its records go into the topic beside those of the owner."""

    def decided(self: Any, standing: Any, there: Sequence[Any], now_ms: int, delete: Any) -> None:
        for one in there:
            said = Progress(one.incarnation, one.log.topic_id, one.log.partitions, one.position, one.run)
            ((key, value),) = cuts.encoded(said)
            self._log._log.append(self._topic, one.partition, key, value)

    m.setattr(operate.Delivery, "_decided", decided)


def _an_owner_that_is_never_fenced(m: pytest.MonkeyPatch) -> None:
    append = OutboxOwner.append

    def anyway(self: Any, at: TopicPartition, records: Any, now_ms: int) -> Any:
        self._log.owned[self._id] = self
        return append(self, at, records, now_ms)

    m.setattr(OutboxOwner, "append", anyway)


@pytest.mark.parametrize(
    ("plant", "trial", "says"),
    [
        (_half_moves_go_on, operating.interrupted, "a part of it is done, and a delivery would go on"),
        (_only_the_command_sees_it, operating.interrupted, "a delivery goes on, and the command says that it would"),
        (_the_group_is_not_asked, operating.operated, "after the log went back: a delivery would go on"),
        (_the_group_is_told_as_before, operating.operated, "after the log went back: a delivery would go on"),
        (_a_move_keeps_the_incarnation, operating.operated, "after a rewind to the start, the sink holds"),
        (_a_move_fences_nobody, operating.outmoved, "goes on after it|had not been"),
        (_an_owner_that_is_never_fenced, operating.outmoved, "goes on after it: [1-9]"),
    ],
)
def test_a_check_that_is_dropped_is_found(plant: Any, trial: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1, S10, S12."""
    plant(monkeypatch)
    with pytest.raises(Refused, match=says):
        run(forgetful.subject(), trial)


def progress(incarnation: int, position: int, cut: int = 0, topic_id: str = "id") -> Progress:
    under_way = Cut(position, cut, 1, 1, "", "") if cut else None
    return Progress(incarnation, topic_id, 2, position, "", under_way)


@pytest.mark.parametrize(
    ("told", "found", "back"),
    [
        (None, progress(1, 5), False),
        (Stands(9, "", 1), progress(1, 5), False),  # a lag, as it was told before, or a person's: no evidence
        (Stands(5, "mark", 1), progress(1, 5), False),
        (Stands(3, "mark", 1), progress(1, 5), False),  # it follows
        (Stands(6, "mark", 1), progress(1, 5), True),
        (
            Stands(6, "mark", 1),
            progress(1, 5, cut=6),
            False,
        ),  # the cut under way was written as done, and that is unheard
        (Stands(9, "mark", 1), progress(2, 5), False),  # a person has moved it since
        (Stands(5, "mark", 2), progress(1, 5), True),
        (Stands(0, "", 2), progress(1, 5), True),  # moved to the start, and then the log went back
        (Stands(5, "mark", 1), None, True),
        (Stands(0, "", 1), None, False),
    ],
)
def test_what_the_group_tells_of_more(told: Stands | None, found: Progress | None, back: bool) -> None:
    assert agreement.gone_back(told, found) is back


@pytest.mark.parametrize(
    ("said", "half"),
    [
        ((None, None), False),
        ((progress(1, 5), None), False),
        ((progress(2, 5), None), True),
        ((None, progress(2, 5)), True),
        ((progress(2, 5), progress(1, 5)), True),
        ((progress(2, 5), progress(2, 9)), False),
        ((progress(3, 5, topic_id="former"), progress(3, 9, topic_id="former")), False),  # that stops by itself
        ((progress(4, 5), progress(3, 9, topic_id="former")), True),
    ],
)
def test_what_is_half_moved(said: tuple[Progress | None, ...], half: bool) -> None:
    assert agreement.half_moved(said, LogIdentity("id", 2)) is half


def test_an_open_transaction_beside_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner was killed, and will be fenced when that partition is claimed; what it has committed counts."""
    log, at = OutboxLog(), TopicPartition("a-b-delivery", 0)
    log.create(at.topic, 1)
    ((key, value),) = cuts.encoded(progress(2, 5))
    log.append(at.topic, 0, key, value)
    session = log.session()
    (committed,) = session.read(at, 0, 1)
    asked: list[TopicPartition] = []

    def read(at: TopicPartition, start: int, target: int) -> Iterator[Any]:
        yield committed
        while True:
            asked.append(at)
            yield committed._replace(offsets=[], keys=[], values=[], undecided=True)

    monkeypatch.setattr(session, "read", read)
    assert cuts.read_progress(session, at, beside=True) == progress(2, 5)
    assert len(asked) == cuts.UNDECIDED_BESIDE + 1
    with pytest.raises(Undecided):
        cuts.read_progress(session, at)
