"""The demo's reckoning finds each kind of damage, and nothing where there is none."""

from collections import Counter
from dataclasses import replace

from examples.demo import reckon
from examples.demo.data import Alert, Expected, Total
from examples.demo.reckon import Line

A, B = ("AA", "2013-01-01"), ("UA", "2013-01-01")
ONE, TWO, THREE = Total(1, 0, 5, 5), Total(2, 1, 5, 5), Total(3, 1, 205, 200)
LATE = Alert("2013-01-01", "AA", 1, "JFK", "LAX", 200)
OTHER = Alert("2013-01-02", "AA", 1, "JFK", "LAX", 130)
EXPECTED = Expected(4, 1, {A: [ONE, TWO, THREE], B: [ONE]}, Counter([LATE, OTHER]))


def test_a_topic_of_prefixes_that_ends_right_is_clean() -> None:
    """Every update of each key, or only some of them (coalesced), as long as the last is the whole day."""
    assert reckon.topic("m", EXPECTED, [(A, ONE), (B, ONE), (A, TWO), (A, THREE)]).clean
    assert reckon.topic("m", EXPECTED, [(B, ONE), (A, THREE)]).clean


def test_a_topic_shows_what_is_missing_repeated_and_wrong() -> None:
    """A key never written is lost; a prefix seen again is repeated; a value no prefix has is wrong, once per key."""
    assert reckon.topic("m", EXPECTED, [(A, THREE)]).lost == 1
    again = reckon.topic("m", EXPECTED, [(B, ONE), (A, ONE), (A, TWO), (A, TWO), (A, THREE)])
    assert (again.lost, again.repeated, again.wrong) == (0, 1, 0)
    twice = reckon.topic(
        "m", EXPECTED, [(B, ONE), (A, ONE), (A, TWO), (A, Total(3, 1, 10, 5)), (A, Total(4, 1, 210, 200))]
    )
    assert (twice.wrong, twice.counted) == (1, 1)
    unfinished = reckon.topic("m", EXPECTED, [(B, ONE), (A, TWO)])
    assert (unfinished.wrong, unfinished.counted, unfinished.clean) == (1, -1, False)
    assert reckon.topic("m", EXPECTED, [(B, ONE), (A, THREE), (("ZZ", "2013-01-01"), ONE)]).wrong == 1


def test_a_table_is_compared_row_by_row() -> None:
    """A missing row is lost, another value or an unknown key is wrong, a key with two rows is repeated."""
    assert reckon.table("m", EXPECTED, {A: THREE, B: ONE}, 2).clean
    assert reckon.table("m", EXPECTED, {A: THREE}, 1).lost == 1
    assert reckon.table("m", EXPECTED, {A: TWO, B: ONE}, 2).wrong == 1
    assert reckon.table("m", EXPECTED, {A: THREE, B: ONE}, 3).repeated == 1


def test_alerts_are_a_multiset() -> None:
    """Rows have no key: what is there twice is repeated, what nobody sent is wrong."""
    assert reckon.alerts("m", EXPECTED, [LATE, OTHER]).clean
    bad = reckon.alerts("m", EXPECTED, [LATE, LATE, LATE._replace(flight=9)])
    assert (bad.expected, bad.present, bad.lost, bad.repeated, bad.wrong) == (2, 3, 1, 1, 1)


def lines(**damage: dict[str, int]) -> list[Line]:
    clean = [
        reckon.topic("m", EXPECTED, [(B, ONE), (A, THREE)]),
        reckon.table("m", EXPECTED, {A: THREE, B: ONE}, 2),
        reckon.alerts("m", EXPECTED, [LATE, OTHER]),
    ]
    found = []
    for mode in ("at-most-once", "at-least-once", "exactly-once"):
        hurt = damage.get(mode.replace("-", "_"), {})
        for line in clean:
            wrong = hurt.get("wrong", 0) if line.compared != "multiset" else 0
            lost, repeated = (hurt.get("lost", 0), hurt.get("repeated", 0)) if line.compared == "multiset" else (0, 0)
            found.append(replace(line, mode=mode, wrong=wrong, lost=lost, repeated=repeated))
    return found


def test_the_verdict_wants_damage_in_the_weak_modes_and_none_in_the_strong() -> None:
    """Kills that hurt nobody prove nothing; one repeat under exactly-once is one too many."""
    amo, alo = {"lost": 1, "wrong": 1}, {"repeated": 1, "wrong": 1}
    assert reckon.verdict(lines(at_most_once=amo, at_least_once=alo)) == []
    assert len(reckon.verdict(lines(at_most_once=amo))) == 2
    assert len(reckon.verdict(lines(at_least_once=alo))) == 2
    assert len(reckon.verdict(lines(at_most_once=amo, at_least_once=alo, exactly_once={"repeated": 1}))) == 1
    assert len(reckon.verdict(lines(at_most_once=amo, at_least_once=alo)[:-1])) == 1
