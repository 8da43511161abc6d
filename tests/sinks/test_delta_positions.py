"""A position as the numbers of a Delta table: everything comes back, whatever was there before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from semel.contract import DeliveryId, LogIdentity, Remembered
from semel.sinks import delta_positions as under

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=80)
NUMBERS = st.integers(0, 2**63 - 1)


@given(NAMES, NAMES, st.integers(0, 99), st.lists(st.tuples(NUMBERS, NUMBERS, TEXTS, TEXTS), min_size=1, max_size=3))
def test_what_was_written_last_is_read(
    app: str, sink: str, partition: int, written: list[tuple[int, int, str, str]]
) -> None:
    """A shorter text after a longer one leaves nothing of it, a claim keeps position and run; every number fits."""
    table: dict[str, int] = {}
    delivery = DeliveryId(app, sink, partition)
    for epoch, position, run, holder in written:
        table |= under.moved(delivery, epoch, position, run)
        now = under.lane(table.get, delivery)
        assert (now.epoch, now.position, now.run) == (epoch, position, run)
        table |= under.claimed(delivery, now, holder)
        assert under.lane(table.get, delivery) == (epoch + 1, position, run, holder)
        assert under.at(table.get, delivery) == (epoch + 1, position)
    assert all(0 <= number <= 2**63 for number in table.values())


@given(NAMES, NAMES, NAMES, NAMES)
def test_two_deliveries_share_no_number(app: str, sink: str, other_app: str, other_sink: str) -> None:
    """Whatever their names hold."""
    log = LogIdentity("topic", 3)
    names = [
        set(under.moved(DeliveryId(a, s, 0), 1, 2, "run")) | set(under.described(a, s, log, 1))
        for a, s in ((app, sink), (other_app, other_sink))
    ]
    assert (app, sink) == (other_app, other_sink) or not names[0] & names[1]


def test_what_a_person_moves_fences_every_former_owner() -> None:
    """Also of partitions that are no more; and it is what the table says then."""
    table: dict[str, int] = dict(under.described("app", "sink", LogIdentity("old", 3), 1))
    for partition in range(3):
        table |= under.moved(DeliveryId("app", "sink", partition), 7, 100, "run")
    new = LogIdentity("new", 2)
    to = [Remembered(partition, 0, 2, 40 + partition, "mark", new) for partition in range(3)]
    table |= under.put(table.get, "app", "sink", to, "a person")
    assert under.remembered(table.get, "app", "sink") == [
        Remembered(partition, 8, 2, 40 + partition, "mark", new, "a person") for partition in range(2)
    ]
    assert under.lane(table.get, DeliveryId("app", "sink", 2)).epoch == 8
