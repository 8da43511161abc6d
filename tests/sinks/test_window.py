"""Sinks that forget: a cut that may have been sent goes again only while the sink surely knows it (S7, law 9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semel.contract import Claim, Contract, Row, Window, Windowed
from semel.ports import Done, NotDone, Outcome, Step, Unknown
from semel.sinks import HTTP, operate
from semel.sinks.cuts import Rule
from semel.sinks.sink import SinkError
from semel.sinks.window import BACK_MS, Forgotten
from tests.sinks.test_cuts import OUTBOX, Died, Worker, die, outbox, put

CONTRACT = HTTP("http://x/", forgets_after_s=100).contract
HOUR_MS = 3_600_000


class Forgetful:
    """A sink in memory that knows the tokens of its last inserts, and when they came. A repeat that it does not know is
    taken like any other."""

    name, where, key, kind, timeout_s, rule = "orders", "memory", None, Windowed, 1.0, Rule(10, 1 << 20, 0)
    keeps_nothing = True

    def __init__(self, window: Window) -> None:
        self.contract: Contract = replace(CONTRACT, window=window)
        self.now_ms = 0
        self.inserts = 0
        self.held: list[bytes | None] = []
        self.tokens: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.outcomes: list[Outcome] = []  # instead of Done, one after the other
        self.until_ms: int | None = None
        self.claimed: Claim | None = None

    def open(self, steps: Any) -> Any:
        return self

    def prepare(self, value_type: object) -> Done:
        return Done()

    def notes(self) -> list[str]:
        return []

    def claim(self, delivery: Any, log: Any) -> Claim:
        return Claim(delivery, 0, 0, -1, "", log)

    def seen(self) -> str:
        return str(self.inserts)

    def inserts_since(self, seen: str) -> int | NotDone:
        return self.inserts - int(seen)

    def remind(self, until_ms: int | None, seen: str) -> None:
        self.until_ms = until_ms

    def remembered(self, app: str) -> list[Any]:
        return []

    def move(self, app: str, seen: Any, to: Any) -> Done:
        return Done()

    def write(self, claim: Claim, start: int, end: int, run: str, rows: list[Row]) -> Outcome:
        self.claimed = claim
        number, at_ms = self.tokens.get((claim.incarnation, start, end), (-1, 0))
        window = self.contract.window
        assert window is not None
        known = number >= 0 and (window.inserts is None or self.inserts - number <= window.inserts)
        known = known and (window.seconds is None or self.now_ms - at_ms < window.seconds * 1000)
        if not known:
            self.tokens[claim.incarnation, start, end] = self.inserts, self.now_ms
            self.inserts += 1
            self.held += [row.value for row in rows]
        return self.outcomes.pop(0) if self.outcomes else Done()

    def close(self) -> None:
        return


def worker(log: Any, sink: Forgetful, now_ms: int) -> Worker:
    made = Worker(log, sink)
    made.now_ms = sink.now_ms = now_ms
    return made


@pytest.mark.parametrize("step", [Step.SINK_AFTER, Step.CUT_AFTER])
@pytest.mark.parametrize(("later_ms", "stops"), [(50_000, False), (99_000, True), (HOUR_MS, True), (-HOUR_MS, True)])
def test_a_cut_under_way_goes_again_within_the_window_only(step: Step, later_ms: int, stops: bool) -> None:
    """100 s, less what a request takes. Nobody knows whether it had left: that is the same before and after. A clock
    that went back by more than two machines may differ ends the window, too."""
    log, sink = outbox(), Forgetful(Window(seconds=100))
    put(log, *range(5))
    first = worker(log, sink, 10 * HOUR_MS)
    first.steps.at[step] = die
    with pytest.raises(Died):
        first.turn(2)
    held = list(sink.held)
    assert len(held) == (5 if step is Step.SINK_AFTER else 0)
    for _ in range(2):  # every time it is started
        second = worker(log, sink, 10 * HOUR_MS + later_ms)
        if not stops:
            second.turn(2)
            assert len(sink.held) == 5
            continue
        with pytest.raises(Forgotten, match=r"\[0, 5\), 5 records, may have been sent.*adopt APP.py orders --at 0:5"):
            second.turn(2)
        assert sink.held == held, "nothing was sent"
    assert BACK_MS < HOUR_MS


def test_an_outage_longer_than_the_window_is_waited_out_when_nothing_was_sent() -> None:
    """Down for hours with records waiting: no cut was under way, so nothing is in doubt and nobody is asked."""
    log, sink = outbox(), Forgetful(Window(seconds=100))
    put(log, *range(5))
    first = worker(log, sink, HOUR_MS)
    first.turn(2)
    put(log, *range(5, 9))
    worker(log, sink, 30 * HOUR_MS).turn(2)
    assert len(sink.held) == 9


def test_a_sink_that_refuses_for_long_is_no_doubt() -> None:
    """NotDone is certain; an unknown outcome starts the doubt, which the window ends."""
    log, sink = outbox(), Forgetful(Window(seconds=100))
    sink.outcomes = [NotDone("away")] * 5
    sink.write = lambda *words: sink.outcomes.pop(0) if sink.outcomes else Done()  # type: ignore[method-assign]
    put(log, *range(5))
    one = worker(log, sink, HOUR_MS)
    assert one.turn(8, ms=HOUR_MS) == 5, "hours later, and certain"
    sink.outcomes = [Unknown("no answer"), NotDone("away"), NotDone("away")]
    put(log, *range(5))
    one.turn(1, ms=1_000)
    with pytest.raises(Forgotten, match="ago"):
        one.turn(3, ms=HOUR_MS)


@pytest.mark.parametrize(("others", "stops"), [(2, False), (3, True), (-1, True)])
def test_inserts_of_everybody_fill_the_window(others: int, stops: bool) -> None:
    """Three inserts: ours and two more are known; a count that went back says nothing."""
    log, sink = outbox(), Forgetful(Window(inserts=3))
    sink.inserts = 7
    put(log, *range(5))
    first = worker(log, sink, HOUR_MS)
    first.steps.at[Step.SINK_AFTER] = die
    with pytest.raises(Died):
        first.turn(2)
    sink.inserts = 8 + others if others >= 0 else 3
    second = worker(log, sink, HOUR_MS)
    if stops:
        with pytest.raises(Forgotten, match=r"inserts came since|counted backwards"):
            second.turn(2)
    else:
        second.turn(2)
    assert len(sink.held) == 5


def test_what_passed_while_it_was_sent_again_is_said() -> None:
    """The window ended between looking and the answer: it may be there twice, and nothing claims otherwise."""
    log, sink = outbox(), Forgetful(Window(inserts=3))
    put(log, *range(5))
    first = worker(log, sink, HOUR_MS)
    first.steps.at[Step.SINK_AFTER] = die
    with pytest.raises(Died):
        first.turn(2)
    second = worker(log, sink, HOUR_MS)

    def meanwhile() -> None:
        sink.inserts += 10

    second.steps.at[Step.SINK_BEFORE] = meanwhile
    with pytest.raises(Forgotten, match="may be there twice"):
        second.turn(2)
    assert len(sink.held) == 10


def test_who_may_only_send_until_then_is_told() -> None:
    """A process that is stopped after it has looked does not send when it comes back: it has a time."""
    log, sink = outbox(), Forgetful(Window(seconds=100))
    put(log, 1)
    one = worker(log, sink, HOUR_MS)
    one.turn(2)
    assert sink.until_ms is not None and sink.until_ms < HOUR_MS + 102_000


def test_a_window_shorter_than_an_answer_is_none() -> None:
    with pytest.raises(SinkError, match="no request could ever be sent again"):
        HTTP("http://x/", forgets_after_s=10, timeout_s=10)


@pytest.mark.parametrize(("there", "stands"), [(True, 5), (False, 0)])
def test_a_person_says_whether_it_is_there(there: bool, stands: int) -> None:
    """`semel sink adopt --at 0:5` skips the cut, `--at 0:0` sends it under another name; then it goes on."""
    log, sink = outbox(), Forgetful(Window(seconds=100))
    put(log, *range(5))
    first = worker(log, sink, HOUR_MS)
    first.steps.at[Step.SINK_AFTER if there else Step.CUT_AFTER] = die
    with pytest.raises(Died):
        first.turn(2)
    with pytest.raises(Forgotten):
        worker(log, sink, 5 * HOUR_MS).turn(2)
    delivery = operate.Delivery(
        log.session("app.orders"), sink, app="app", outbox=OUTBOX, owners=log.owner, connection=sink
    )
    standing = delivery.standing()
    assert not standing.problem and delivery.under_way(standing) == [0]
    renew = delivery.renewed(standing, again=False)
    places = {place.at: stands for place in standing.places}
    assert delivery.move(standing, places, renew=renew, now_ms=1, delete=lambda topics: None) == 2
    put(log, 5)
    second = worker(log, sink, 6 * HOUR_MS)
    second.turn(3)
    assert len(sink.held) == 6
    assert sink.claimed is not None and sink.claimed.incarnation == 2, "the tokens from here on are others"
