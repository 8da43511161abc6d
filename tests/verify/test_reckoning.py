"""What proof makes of what it read back: places in the log, and a run that did not finish."""

from __future__ import annotations

from semel.proof.campaign import _so_far
from semel.proof.world import place_of
from semel.verify import checkers
from semel.verify.oracle import Row
from semel.verify.verdict import Output

ROWS = [Row(offset, 0, None, None, "") for offset in (0, 1, 4)]  # 2 and 3 are aborted; 5 is a marker; the end is 6


def test_a_position_past_a_marker_is_right_after_the_last_record() -> None:
    """5 and 6 are one place."""
    assert [place_of(ROWS, position, 6) for position in (0, 1, 2, 4, 5, 6)] == [0, 1, 2, 2, 5, 5]


def test_a_position_beyond_the_end_is_told() -> None:
    """It was folded back to the last record: this half of the checker could not fail. It skips what is to come."""
    assert place_of(ROWS, 900, 6) == 900
    assert checkers.offsets("positions", {"t-0": 5}, {"t-0": place_of(ROWS, 900, 6)}).lost == 1


def test_a_run_that_did_not_finish_still_tells_what_cannot_be_late() -> None:
    """Repeats and positions that went back count however the run ended; what is missing may only be late."""
    appended = _so_far(Output("rows", "sink, appended rows", 9, 9, 1, 1, 0))
    assert (appended.lost, appended.repeated) == (0, 1) and appended.unknown
    assert _so_far(checkers.monotonic("positions over time", {"t-0": [5, 3]})).wrong == 1
    assert _so_far(Output("sink", "sink, last row per key", 9, 9, 0, 0, 2)).wrong == 0
