"""Planted bugs in the two phases: in the delivery, in what is settled, and in each sink; see
`test_processor_and_sinks.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.canaries.test_processor_and_sinks import Bug, Edit
from tests.canaries.test_processor_and_sinks import test_a_planted_bug_is_found as planted_and_found

MODEL = "tests/sinks/test_two_phase.py::"
KIT = "tests/servers/test_files.py::TestFiles::"
POSTGRES = "tests/servers/test_postgres_two_phase.py::"

_NOT_WRITTEN = Edit(
    "sinks/cut_delivery.py",
    "        outcome = self._append(lane, two_phase.decided(progress))\n",
    "        outcome: Outcome = Done()\n",
)
_COMMITTED_BEFORE = Edit(
    "sinks/cut_delivery.py",
    "        self._steps.reached(Step.DECIDE_BEFORE)\n",
    "        connection.commit_cut(claim, attempt)\n        self._steps.reached(Step.DECIDE_BEFORE)\n",
)
_ORPHANS = Edit(
    "sinks/two_phase.py",
    "        tuple(one for one in prepared if one <= latest and not (decided and one == latest)),\n",
    "        (),\n",
)

BUGS = [
    Bug(
        "P4: the decision is not written down",
        (_NOT_WRITTEN,),
        (MODEL + "test_ended_at_every_step_twice",),
        "was never decided",
    ),
    Bug(
        "P4: the decision is not written down, seen by the kit",
        (_NOT_WRITTEN,),
        (KIT + "test_killed_at_every_step_twice",),
        "the log has decided up to",
        slow=True,
    ),
    Bug(
        "P4: the commit comes before the decision",
        (_COMMITTED_BEFORE,),
        (MODEL + "test_ended_at_every_step_twice",),
        "was never decided",
    ),
    Bug(
        "P4: the commit comes before the decision, seen by the kit",
        (_COMMITTED_BEFORE,),
        (KIT + "test_killed_at_every_step_twice",),
        "the log has decided up to",
        slow=True,
    ),
    Bug(
        "S4: what a former owner prepared is not rolled back",
        (_ORPHANS,),
        (MODEL + "test_ended_at_every_step_twice",),
        "left prepared",
    ),
    Bug(
        "S5: temporary files of a dead owner stay, seen by the kit",
        (_ORPHANS,),
        (KIT + "test_killed_while_it_settles_what_another_left",),
        "left in doubt",
        slow=True,
    ),
    Bug(
        "S17: a new owner goes on under its predecessor's number",
        (Edit("sinks/two_phase.py", "attempt=cut.attempt + 1", "attempt=cut.attempt"),),
        (MODEL + "test_an_answer_that_is_lost_is_not_guessed",),
    ),
    Bug(
        "S12: what is later than the log tells is rolled back",
        (
            Edit("sinks/two_phase.py", "if one <= latest and not", "if not"),
            Edit("sinks/two_phase.py", "tuple(one for one in prepared if one > latest)", "()"),
        ),
        (MODEL + "test_what_the_log_never_decided_stops_the_delivery",),
        "DID NOT RAISE",
    ),
    Bug(
        "S4: 42704 is taken for success",
        (
            Edit(
                "sinks/postgres_two_phase_connection.py",
                "        if position == attempt.end:\n",
                "        if position is not None:\n",
            ),
        ),
        (POSTGRES + "TestPostgresTwoPhase::test_what_was_taken_back_is_not_taken_for_committed",),
        "a commit of what was taken back is",
    ),
    Bug(
        "S4: the answer to PREPARE TRANSACTION is not looked at",
        (
            Edit(
                "sinks/postgres_two_phase_connection.py",
                "        if status != PREPARED:\n",
                "        if status is None:\n",
            ),
        ),
        (POSTGRES + "test_a_failed_transaction_is_not_taken_for_prepared",),
        "which is not prepared",
    ),
    Bug(
        "S5: a file has its name before it is synced",
        (Edit("sinks/files_connection.py", "                    os.fsync(file.fileno())\n", ""),),
        ("tests/servers/test_files.py::test_everything_is_synced_before_it_has_its_name",),
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    planted_and_found(bug, tmp_path)
