"""A static member that a restarted broker knows by an older name."""

from semel.broker.errors import Error
from semel.broker.group_state import Group
from semel.broker.membership import Membership
from semel.broker.offset_records import Member, Metadata

STORED = Metadata("consumer", 3, "range", "old", 0, (Member("old", "slot-0", "", "", 2_000, 2_000, b"", b""),))


def test_a_name_forgotten_in_a_crash_does_not_kill_its_client() -> None:
    """Found by the demo, seed 1: the broker died between the answer to a join, which renames a static member, and
    the end of that rebalance, which is what is recorded. Back again it fenced the only process there was, for good.
    Until the recorded name has been heard of, the other one is told to join again; from then on it is fenced."""
    membership = Membership.of(Group("g", 0, metadata=STORED), 0)
    assert membership.refused("new", "slot-0") is Error.UNKNOWN_MEMBER_ID
    assert membership.refused("old", "slot-0") is Error.NONE
    membership.members["old"].seen(10)
    assert membership.refused("new", "slot-0") is Error.FENCED_INSTANCE_ID
