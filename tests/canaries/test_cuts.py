"""Planted bugs in the delivery by cuts and in the object store's sink; see `test_processor_and_sinks.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.canaries.test_processor_and_sinks import Bug, Edit
from tests.canaries.test_processor_and_sinks import test_a_planted_bug_is_found as planted_and_found

CUTS = "tests/sinks/test_cuts.py::"

_NOT_WRITTEN = Edit(
    "sinks/cut_delivery.py",
    "        if not self._written_down(lane, replace(progress, cut=cut)):\n            return False\n",
    "        lane.progress = replace(progress, cut=cut)\n",
)

BUGS = [
    Bug(
        "S3: a cut is not written down before the put",
        (_NOT_WRITTEN,),
        (CUTS + "test_a_replay_makes_the_same_bytes_whatever_is_new",),
        "knows of no delivery",  # the sink is asked, and what it announced stops the next owner
    ),
    Bug(
        "S3: a cut is not written down before the put, and its owner dies",
        (_NOT_WRITTEN,),
        (CUTS + "test_ended_at_every_step_the_same_objects_come_out",),
        "it holds what was delivered up to offset",
    ),
    Bug(
        "S3: 412 is taken for success",
        (
            Edit(
                "sinks/objects_connection.py",
                "                except Taken:\n                    self._compare(key, tag)\n",
                "                except Taken:\n                    pass\n",
            ),
        ),
        ("tests/sinks/test_objects.py::test_other_bytes_under_the_key_are_an_error",),
        "DID NOT RAISE",
    ),
    Bug(
        "S3: the topic is read before the id is initialised",
        (
            Edit("sinks/cut_delivery.py", "        lane.owner.initialise()\n        try:\n", "        try:\n"),
            Edit(
                "sinks/cut_delivery.py",
                "        except Undecided as why:\n            return self._later(lane, str(why))\n",
                "        except Undecided as why:\n            return self._later(lane, str(why))\n"
                "        lane.owner.initialise()\n        self._agreed = lambda lane, claim, found, here: (\n"
                '            found or Progress(claim.incarnation, here.topic_id, here.partitions, 0, "")\n        )\n',
            ),
        ),
        (CUTS + "test_what_the_former_owner_decides_until_it_is_put_out_is_read",),
    ),
    Bug(
        "S8: a decision without an answer is taken for done",
        (
            Edit(
                "sinks/cut_delivery.py",
                "            case Done():\n                lane.progress = progress\n",
                "            case Done() | Unknown():\n                lane.progress = progress\n",
            ),
        ),
        (CUTS + "test_a_commit_without_an_answer_is_read_back",),
    ),
    Bug(
        "S12: the epoch of a claim is not compared at the sink",
        (
            Edit(
                "sinks/objects_connection.py",
                "            if manifest.epoch > claim.epoch:\n",
                "            if manifest.epoch > 2**62:\n",
            ),
        ),
        (
            "tests/sinks/test_cuts_of_other_logs.py::test_a_copy_of_the_log_in_use_is_noticed_before_a_second_object_is_put",
        ),
        "Regex pattern did not match",
    ),
    Bug(
        "S12: the sink is not asked what it holds",
        (Edit("sinks/agreement.py", "    if position > bound:\n", "    if position > 2**62:\n"),),
        ("tests/sinks/test_cuts_of_other_logs.py::test_a_log_put_back_stops_the_delivery",),
        "DID NOT RAISE",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    """On a copy of the source with the bug in it."""
    planted_and_found(bug, tmp_path)
