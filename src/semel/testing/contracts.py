"""The contract kit: a sink is put through everything that its contract says, against the real system.

    from semel.testing.contracts import ContractTests, Subject

    class TestMySink(ContractTests):
        @pytest.fixture
        def subject(self, server):
            return Subject(make=make_my_sink, address=server.address, read=read_my_table, …)

`ContractTests` has one test per trial, and asks for a fixture `subject`. Without pytest: `tried(subject)`. What a trial
demands follows from the fields of the contract, so a sink that claims more than it shows is refused; what could not be
tried is skipped, with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from semel.ports import SinkConnection
from semel.testing import operating, processes, trials, writing_off
from semel.testing.proxy import TcpProxy
from semel.testing.subject import Entry, Loses, NotTried, Refused, Stand, Subject, standing

__all__ = ["ContractTests", "Entry", "Loses", "NotTried", "Refused", "Subject", "lost_at_the_call", "over_the_wire"]

Trial = Callable[[Stand], None]

IN_PROCESS: tuple[Trial, ...] = (
    trials.agreement,
    trials.plain,
    trials.position,
    trials.replay,
    trials.recut,
    trials.repeats,
    trials.lost_before,
    trials.lost_after,
    trials.torn,
    trials.zombie,
    trials.reborn,
    trials.undone,
    trials.deletes,
    trials.poison,
    writing_off.written_off,
    trials.forgets,
    trials.durable,
    operating.operated,
    operating.outmoved,
    operating.unsettled,
    operating.interrupted,
)
EVERY: tuple[Trial, ...] = IN_PROCESS + processes.TRIALS


def run(subject: Subject, trial: Trial) -> None:
    """One trial under tables of its own. Returns, or raises Refused (an AssertionError) or NotTried (a SkipTest)."""
    with standing(subject, trial.__name__) as stand:
        trial(stand)


def tried(subject: Subject, which: Iterable[Trial] = EVERY) -> dict[str, str]:
    """Each trial's name with "" when it held, with "not tried: …", or with what was wrong."""
    found = {}
    for trial in which:
        found[trial.__name__] = ""
        try:
            run(subject, trial)
        except NotTried as why:
            found[trial.__name__] = f"not tried: {why}"
        except Exception as why:  # whatever a sink raises under a trial, it was not to
            found[trial.__name__] = f"{type(why).__name__}: {why}"
    return found


class ContractTests:
    """One test per trial; give it a fixture `subject`."""

    def test_its_word_its_fields_and_its_type_agree(self, subject: Subject) -> None:
        run(subject, trials.agreement)

    def test_rows_arrive(self, subject: Subject) -> None:
        run(subject, trials.plain)

    def test_the_position_comes_back(self, subject: Subject) -> None:
        run(subject, trials.position)

    def test_a_replay_changes_nothing(self, subject: Subject) -> None:
        run(subject, trials.replay)

    def test_other_batches_over_the_same_records_change_nothing(self, subject: Subject) -> None:
        run(subject, trials.recut)

    def test_repeats_that_are_stored_are_removed(self, subject: Subject) -> None:
        run(subject, trials.repeats)

    def test_a_commit_that_never_arrived_is_mended(self, subject: Subject) -> None:
        run(subject, trials.lost_before)

    def test_an_answer_that_is_lost_is_not_guessed(self, subject: Subject) -> None:
        run(subject, trials.lost_after)

    def test_an_end_at_each_step_tears_nothing(self, subject: Subject) -> None:
        run(subject, trials.torn)

    def test_a_superseded_owner_has_no_effect(self, subject: Subject) -> None:
        run(subject, trials.zombie)

    def test_a_new_incarnation_counts_from_the_start(self, subject: Subject) -> None:
        run(subject, trials.reborn)

    def test_what_was_taken_back_is_not_taken_for_committed(self, subject: Subject) -> None:
        run(subject, trials.undone)

    def test_deletes_are_ordered_with_writes(self, subject: Subject) -> None:
        run(subject, trials.deletes)

    def test_a_poison_record_is_named_and_nothing_else_is_lost(self, subject: Subject) -> None:
        run(subject, trials.poison)

    def test_a_poison_record_becomes_a_dead_letter_once(self, subject: Subject) -> None:
        run(subject, writing_off.written_off)

    def test_it_forgets_no_sooner_than_it_says(self, subject: Subject) -> None:
        run(subject, trials.forgets)

    def test_what_it_acknowledged_survives_its_crash(self, subject: Subject) -> None:
        run(subject, trials.durable)

    def test_a_person_moves_the_position(self, subject: Subject) -> None:
        run(subject, operating.operated)

    def test_a_move_fences_a_living_owner(self, subject: Subject) -> None:
        run(subject, operating.outmoved)

    def test_what_is_prepared_is_settled_before_a_move(self, subject: Subject) -> None:
        run(subject, operating.unsettled)

    def test_a_move_that_is_interrupted_is_made_again(self, subject: Subject) -> None:
        run(subject, operating.interrupted)

    def test_killed_at_every_step_twice(self, subject: Subject) -> None:
        run(subject, processes.crashes)

    def test_killed_while_it_settles_what_another_left(self, subject: Subject) -> None:
        run(subject, processes.in_doubt)

    def test_a_process_that_comes_back_late_has_no_effect(self, subject: Subject) -> None:
        run(subject, processes.zombies)

    def test_a_process_that_stops_holds_nobody_up(self, subject: Subject) -> None:
        run(subject, processes.paused)

    def test_what_is_past_its_window_is_not_sent_again(self, subject: Subject) -> None:
        run(subject, processes.forgotten)


# --- ways to lose an answer ------------------------------------------------------------------------------------------


class _WireLoss:
    def __init__(self, proxy: TcpProxy, needle: bytes, address: Callable[[int], str], answered: bool) -> None:
        self._proxy, self._needle, self._address = proxy, needle, address
        self._lose_answer = proxy.lose_answer_when_it_comes if answered else proxy.lose_answer

    def address(self) -> str:
        return self._address(self._proxy.port)

    def lose(self, connection: SinkConnection, *, after_effect: bool) -> None:
        (self._lose_answer if after_effect else self._proxy.lose_request)(self._needle)

    def lost(self) -> int:
        return self._proxy.cuts


@contextlib.contextmanager
def over_the_wire(
    port: int, needle: bytes, address: Callable[[int], str], *, answered: bool = False
) -> Iterator[Loses]:
    """A system on 127.0.0.1:`port`: a proxy cuts the connection at the next request that holds `needle`, before the
    request arrives or before its answer comes back. `address(port)` is the system's address with another port.
    `answered`: a request comes in several pieces, so its answer is lost when it comes, not when `needle` has passed."""
    proxy = TcpProxy(port)
    try:
        yield _WireLoss(proxy, needle, address, answered)
    finally:
        proxy.close()


Arm = Callable[[SinkConnection, Callable[[Callable[[], Any]], Any]], None]


class _CallLoss:
    def __init__(self, address: str, arm: Arm, error: Callable[[], Exception]) -> None:
        self._address, self._arm, self._error = address, arm, error
        self._lost = 0

    def address(self) -> str:
        return self._address

    def lose(self, connection: SinkConnection, *, after_effect: bool) -> None:
        def instead(commit: Callable[[], Any]) -> Any:
            self._lost += 1
            if after_effect:
                commit()
            raise self._error()

        self._arm(connection, instead)

    def lost(self) -> int:
        return self._lost


@contextlib.contextmanager
def lost_at_the_call(address: str, arm: Arm, error: Callable[[], Exception]) -> Iterator[Loses]:
    """A system in this process: `arm(connection, instead)` makes the connection's next commit call
    `instead(commit)` in its place, which has the effect or not and raises `error()` as the failing system does."""
    yield _CallLoss(address, arm, error)
