"""What readers saw meanwhile is held to what was committed: mistakes are found, and no honest run is blamed."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel.verify.watched import Watch, Written, appended, keyed

P, Q = "orders-0", "orders-1"
APPENDED = [Written(P, n * 2, b"", b"p%d" % n) for n in range(4)] + [Written(Q, n, b"", b"q%d" % n) for n in range(2)]
KEYED = [
    Written(P, 0, b"a", b"a=1"),
    Written(P, 1, b"b", b"b=1"),
    Written(P, 3, b"a", b"a=2"),
    Written(P, 4, b"b", None),
    Written(P, 5, b"e", b"e=1"),
    Written(Q, 0, b"c", b"c=1"),
]


def seen(*readings: str) -> Watch:
    watch = Watch()
    for reading in readings:
        watch.look([row.encode() for row in reading.split()])
    return watch


def key_of(row: bytes) -> bytes:
    return row.partition(b"=")[0]


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        (("", "p0 p1", "p0 p1 q0", "q1 p0 p1 p2 p3 q0"), ""),
        (("p0 p0",), "reading 1 has p0 2 times, committed: 1"),
        (("p0", "p0 p0", "p0"), "reading 2 has p0 2 times"),
        (("p0 p1", "p0"), "reading 2 no longer has p1"),
        (("p0 x",), "x, which was never committed"),
        (("p0 p2",), "reading 1 has the record orders-0@4, and 1 before it are not there"),
        (("q1",), "orders-1@1, and 1 before it"),
    ],
)
def test_appended_rows(readings: tuple[str, ...], said: str) -> None:
    found = appended("sink s", seen(*readings), APPENDED, whole=True)
    assert found.good == (said == "") and found.present == len(readings)
    assert not said or said in found.examples[0], found.examples
    torn = "before it" in said
    assert appended("sink s", seen(*readings), APPENDED, whole=False).good == (torn or not said)


def test_of_equal_rows_nobody_knows_the_order() -> None:
    twice = [*APPENDED, Written(Q, 5, b"", b"p0")]
    assert appended("sink s", seen("q1", "q1 p0 p0"), twice, whole=True).good
    assert appended("sink s", seen("p0 p0 p0"), twice, whole=True).repeated == 3


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        (("", "a=1", "a=1 b=1 c=1", "a=2 b=1", "a=2"), "the row of c is gone, and no committed record deletes it"),
        (("", "a=1", "a=1 b=1 c=1", "a=2 b=1 c=1", "a=2 c=1"), ""),
        (("c=1", "a=2 c=1"), ""),  # everything of the partition at once
        (("a=1 b=1", "a=2 b=1", "a=1 b=1"), "reading 3 a is a=1 again, of orders-0@0, after orders-0@3"),
        (("a=2 b=1", "a=2", "a=2 b=1"), "reading 3 b is b=1 again, of orders-0@1, after orders-0@4"),
        (("a=7",), "a=7, which was never committed"),
        (("a=1 a=2",), "two rows of the key a"),
        (("a=1 e=1",), "reading 1 has the record orders-0@5, and not yet orders-0@3"),
        (("e=1 c=1",), "reading 1 has the record orders-0@5, and not yet orders-0@0"),
        (("d=1",), "d=1, which was never committed"),
    ],
)
def test_rows_with_a_key(readings: tuple[str, ...], said: str) -> None:
    found = keyed("sink s", seen(*readings), KEYED, key_of, whole=True)
    assert found.good == (said == ""), found.examples
    assert not said or any(said in example for example in found.examples), found.examples


def test_half_a_batch_is_no_mistake_where_records_are_visible_by_themselves() -> None:
    assert keyed("sink s", seen("e=1"), KEYED, key_of, whole=False).good


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_honest_run_is_never_blamed_and_a_mistake_is_found(seed: int) -> None:
    """Prefixes of random histories, values that come again among them; then one reading is spoilt."""
    dice = random.Random(seed)
    parts = [[f"{n}-{k}" for k in range(dice.randrange(1, 4))] for n in range(2)]
    committed = [
        Written(f"o-{n}", offset, key.encode(), dice.choice((None, b"%s=%d" % (key.encode(), dice.randrange(6)))))
        for n, keys in enumerate(parts)
        for offset, key in ((o, dice.choice(keys)) for o in range(dice.randrange(12)))
    ]
    grown = [(w._replace(row=b"%d" % n, key=b"")) for n, w in enumerate(committed)]
    at = {"o-0": 0, "o-1": 0}
    ends = Counter(w.partition for w in committed)
    rows, kept = Watch(), Watch()
    for _ in range(6):
        at = {p: dice.randint(stood, ends[p]) for p, stood in at.items()}
        rows.look([w.row or b"" for w in grown if w.offset < at[w.partition]])
        state: dict[bytes, bytes | None] = {}
        state.update({w.key: w.row for w in committed if w.offset < at[w.partition]})
        kept.look([row for row in state.values() if row is not None])
    assert appended("s", rows, grown, whole=True).good
    assert keyed("s", kept, committed, key_of, whole=True).good, keyed("s", kept, committed, key_of, whole=True)
    held = [w.row or b"" for w in grown if w.offset < at[w.partition]]
    if held:
        rows.look(held[1:])
        assert not appended("s", rows, grown, whole=False).good
