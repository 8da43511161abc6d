"""Planted bugs at the sinks that hold versions, and in what each of them must not do; see
`test_processor_and_sinks.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.canaries.test_processor_and_sinks import Bug, Edit
from tests.canaries.test_processor_and_sinks import test_a_planted_bug_is_found as planted_and_found

REFUSALS = "tests/sinks/test_refusals.py::"

BUGS = [
    Bug(
        "S2: outputs are written outside the transaction",
        (
            Edit(
                "streams/worker.py",
                "            self._open = True\n            if self._mode is Mode.EXACTLY_ONCE:\n",
                "            self._open = True\n            if False:\n",
            ),
        ),
        ("tests/sinks/test_versioned.py::test_a_map_that_reads_the_clock_gives_the_sink_one_value_per_record",),
    ),
    Bug(
        "S6: a bulk's 200 is taken for each of its items",
        (
            Edit(
                "sinks/opensearch_connection.py",
                '        return [(line, item["status"], item.get("error", {})) for line',
                "        return [(line, status, {}) for line",
            ),
        ),
        ("tests/sinks/test_bulk.py::test_one_bad_document_in_a_bulk_of_500_is_named",),
        "DID NOT RAISE",
    ),
    Bug(
        "S9: a delete leaves no tombstone",
        (
            Edit(
                "sinks/postgres_versioned_connection.py",
                "            return each(connection, query, [values for piece in pieces for values in zip(*piece)])\n",
                "            taken = each(connection, query, [values for piece in pieces for values in zip(*piece)])\n"
                '            gone = sql.SQL("DELETE FROM {} WHERE semel_deleted IS NOT NULL")\n'
                "            connection.execute(gone.format(self._table))\n            return taken\n",
            ),
        ),
        ("tests/sinks/test_versioned.py::test_an_older_write_does_not_bring_a_deleted_row_back",),
    ),
    Bug(
        "S11: a record that the sink refuses is skipped",
        (
            Edit(
                "sinks/delivery.py",
                "        except RowRefused as why:\n"
                "            self._refused(lane, claim, rows, why)\n            return 0\n",
                "        except RowRefused:\n            outcome = Done()\n",
            ),
        ),
        ("tests/sinks/test_delivery.py::test_a_record_that_the_sink_refuses_stops_and_is_named",),
        "DID NOT RAISE",
    ),
    Bug(
        "S11: a refused record is not written down",
        (Edit("sinks/delivery.py", "lane.owner.together([letter, behind])", "lane.owner.together([letter])"),),
        (REFUSALS + "test_any_history",),
    ),
    Bug(
        "S11: the dead letter is outside of the transaction",
        (
            Edit(
                "sinks/delivery.py",
                "        if not self._concluded(lane, lane.owner.together([letter, behind])):\n",
                "        if not self._concluded(lane, lane.owner.together([letter])):\n            return\n"
                "        if not self._concluded(lane, lane.owner.together([behind])):\n",
            ),
        ),
        (REFUSALS + "test_any_history",),
    ),
    Bug(
        "S11: what was written off is not read back",
        (Edit("sinks/delivery.py", "lane.refused = self._written_off(lane, here)", "self._written_off(lane, here)"),),
        (REFUSALS + "test_any_history",),
    ),
    Bug(
        "S11: an owner goes on that has lost the log between initialising and claiming",
        (Edit("sinks/delivery.py", "if self._by_log and not self._still_owned(lane, here, claim):", "if False:"),),
        (REFUSALS + "test_an_owner_who_claims_the_sink_late_is_found",),
    ),
    Bug(
        "S11: a cut's refusal is not written down",
        (Edit("sinks/cut_delivery.py", "lane.owner.together([letter, *behind])", "lane.owner.together([letter])"),),
        (REFUSALS + "test_any_history",),
    ),
    Bug(
        "S13: a position is moved on from wherever it stands",
        (
            Edit(
                "sinks/redis_scripts.py",
                "if less(now[2], ARGV[3]) then return {'behind', now[1], now[2], now[3]} end\n",
                "",
            ),
        ),
        ("tests/servers/test_redis.py::test_everysec_and_a_power_cut_lose_nothing_for_good",),
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    planted_and_found(bug, tmp_path)
