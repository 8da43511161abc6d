"""What is counted of a sink is what it answered: nothing before the answer, and a decided cut once it is committed."""

from __future__ import annotations

from typing import Any

import pytest

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Row
from semel.ports import Done, Fenced, NoSteps, NotDone, Unknown
from semel.sinks.measured import MeasuredSink, Measures, Taken
from semel.sinks.sink import RowRefused

CLAIM = Claim(DeliveryId("app", "sink", 3), epoch=1, incarnation=1, position=0, run="", log=LogIdentity("t", 4))
ROWS = [Row(0, 1_000, b"ab", b"cde"), Row(1, 2_000, None, None)]
CUT = Attempt(0, 1, 2)


class Answers:
    """A sink and its connection: answers what it is told to."""

    name, where = "sink", "a sink"
    keeps_nothing = True

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def open(self, steps: Any) -> Answers:
        return self

    def write(self, *given: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    claim = take_over = prepare_cut = commit_cut = write

    def abandon(self, *given: Any) -> None:
        self.abandoned = given


def measured(*answers: Any) -> tuple[Measures, Any, Answers]:
    sink, measures = Answers(*answers), Measures()
    seconds = iter(n * 0.2 for n in range(100))
    wrapped: Any = MeasuredSink(sink, measures, lambda: next(seconds))  # type: ignore[arg-type]
    return measures, wrapped.open(NoSteps()), sink


def test_batches_by_what_became_of_them() -> None:
    refused = RowRefused("too long", 1)
    measures, connection, _ = measured(CLAIM, Done(), Unknown("?"), NotDone("!"), Fenced("x"), refused, Done())
    assert connection.claim() == CLAIM and measures.claims == 1
    for wanted in (Done(), Unknown("?"), NotDone("!"), Fenced("x")):
        assert connection.write(CLAIM, 0, 2, "", ROWS) == wanted
    with pytest.raises(RowRefused):
        connection.write(CLAIM, 0, 2, "", ROWS)
    assert measures.taken == {3: Taken(records=2, bytes=5, batches=1, newest_ms=2_000)}
    connection.write(CLAIM, 2, 5, "", [])  # a position without rows
    assert measures.taken == {3: Taken(records=2, bytes=5, batches=2, newest_ms=2_000)}
    assert measures.outcomes == {"done": 2, "unknown": 1, "not-done": 1, "fenced": 1, "refused": 1}
    assert sum(measures.seconds) == 6 and measures.seconds[7] == 6 and measures.seconds_sum == pytest.approx(1.2)


def test_a_cut_is_counted_when_it_is_committed() -> None:
    measures, connection, sink = measured(CLAIM, Done(), Unknown("?"), Done(), Done(), Done(), CLAIM, Done())
    connection.take_over()
    connection.prepare_cut(CLAIM, CUT, "", ROWS)
    connection.commit_cut(CLAIM, CUT)
    assert measures.taken == {}, "its answer was lost"
    connection.commit_cut(CLAIM, CUT)
    assert measures.taken[3].records == 2
    connection.commit_cut(CLAIM, CUT)
    assert measures.taken[3].records == 2, "a commit that was done before counts nothing again"
    other = Attempt(2, 2, 4)
    connection.prepare_cut(CLAIM, other, "", ROWS)
    connection.abandon(CLAIM, other)
    assert sink.abandoned == (CLAIM, other)
    connection.take_over()
    connection.commit_cut(CLAIM, other)
    assert measures.taken[3].records == 2, "what a former owner has prepared is not ours"


def test_all_else_is_the_sinks_own() -> None:
    _, connection, sink = measured()
    assert connection.keeps_nothing and not hasattr(connection, "remembered")
    wrapped: Any = MeasuredSink(sink, Measures(), lambda: 0.0)  # type: ignore[arg-type]
    assert (wrapped.name, wrapped.where) == ("sink", "a sink") and not hasattr(wrapped, "rule")
