"""Each checker catches what its docstring says, on histories made wrong by hand, and says nothing about right ones."""

from __future__ import annotations

from collections import Counter

from semel.verify import checkers
from semel.verify.checkers import Entry
from semel.verify.verdict import Output, Report, Verdict


def entry(n: int, value: str = "", key: str = "k") -> Entry:
    return Entry(f"out|in|0|{n}|0", key.encode(), (value or f"v{n}").encode(), f"out-0@{n}")


def counts(found: Output) -> tuple[int, int, int]:
    return found.lost, found.repeated, found.wrong


THREE = [entry(0), entry(1), entry(2)]


def test_an_append_output_is_a_multiset() -> None:
    """Any order is right; each absent origin is lost, each second one repeated, another value or origin wrong."""
    assert checkers.append_output("out", THREE, THREE[::-1]).good
    assert counts(checkers.append_output("out", THREE, THREE[:2])) == (1, 0, 0)
    assert counts(checkers.append_output("out", THREE, [*THREE, entry(1)])) == (0, 1, 0)
    assert counts(checkers.append_output("out", THREE, [*THREE[:2], entry(2, "other")])) == (0, 0, 1)
    assert counts(checkers.append_output("out", THREE, [*THREE, entry(7)])) == (0, 0, 1)
    assert counts(checkers.append_output("out", THREE, [*THREE[:2], entry(2, key="another")])) == (0, 0, 1)


def test_nothing_is_netted() -> None:
    """One lost and one repeated are two failures, though the number of records is right."""
    found = checkers.append_output("out", THREE, [entry(0), entry(0), entry(1)])
    assert counts(found) == (1, 1, 0) and found.expected == found.present == 3


def test_a_keyed_output_may_leave_updates_out_but_not_the_last() -> None:
    """Coalescing drops earlier values of a key. Its last one must be there, and none that was never a value."""
    assert checkers.keyed_output("out", THREE, [entry(0), entry(2)]).good
    assert checkers.keyed_output("out", THREE, [entry(2)]).good
    assert counts(checkers.keyed_output("out", THREE, [entry(0), entry(1)])) == (0, 0, 1)
    assert counts(checkers.keyed_output("out", THREE, [])) == (1, 0, 0)
    assert counts(checkers.keyed_output("out", THREE, [entry(2), entry(2)])) == (0, 1, 0)
    assert counts(checkers.keyed_output("out", THREE, [entry(1, "half"), entry(2)])) == (0, 0, 1)


def test_a_state_is_its_last_values() -> None:
    """A tombstone is an absent key; a missing key is lost, another value or an extra key wrong."""

    def compare(expected: dict[bytes, bytes | None], present: dict[bytes, bytes | None]) -> Output:
        return checkers.last_per_key("state s", "state", expected, present)

    assert compare({b"a": b"1", b"b": None}, {b"a": b"1"}).good
    assert counts(compare({b"a": b"1"}, {})) == (1, 0, 0)
    assert counts(compare({b"a": b"1"}, {b"a": b"2"})) == (0, 0, 1)
    assert counts(compare({b"a": None}, {b"a": b"1"})) == (0, 0, 1)


def test_rows_without_identity_are_counted() -> None:
    """A plain insert: as often as in the log; once more is repeated, a row of no reason wrong."""
    rows = Counter([b"a", b"a", b"b"])
    assert checkers.multiset("sink", "rows", rows, rows).good
    assert counts(checkers.multiset("sink", "rows", rows, Counter([b"a", b"b"]))) == (1, 0, 0)
    assert counts(checkers.multiset("sink", "rows", rows, Counter([b"a", b"a", b"b", b"b"]))) == (0, 1, 0)
    assert counts(checkers.multiset("sink", "rows", rows, rows + Counter([b"c"]))) == (0, 0, 1)


def test_positions_are_the_ends() -> None:
    """Behind the end records would come again, beyond it some never did."""
    ends = {"in-0": 5, "in-1": 3}
    assert checkers.offsets("positions", ends, {"in-0": 5, "in-1": 3}).good
    assert counts(checkers.offsets("positions", ends, {"in-0": 4, "in-1": 3})) == (0, 1, 0)
    assert counts(checkers.offsets("positions", ends, {"in-0": 5})) == (0, 1, 0)
    assert counts(checkers.offsets("positions", ends, {"in-0": 6, "in-1": 3})) == (1, 0, 0)


def test_positions_never_go_back() -> None:
    """Standing still is right; going back is a zombie's commit (B14)."""
    assert checkers.monotonic("over time", {"in-0": [1, 1, 4], "in-1": []}).good
    assert counts(checkers.monotonic("over time", {"in-0": [1, 4, 3, 5]})) == (0, 0, 1)


def report(*outputs: Output, doubts: tuple[str, ...] = ()) -> Report:
    return Report("app", "broker", "exactly-once", 1, 5, 1, 1, 1, {}, outputs, doubts)


def test_the_verdict_is_the_worst_of_its_outputs() -> None:
    """Broken beats unknown; a doubt, an output that could not be compared, or no output at all is unknown."""
    good = Output("out", "append", 1, 1, 0, 0, 0)
    bad = Output("sink", "rows", 1, 2, 0, 1, 0, ("repeated: x",))
    unclear = Output("state", "state", 1, 1, 0, 0, 0, unknown="why")
    assert report(good).verdict is Verdict.HOLDS and report(good).counterexample is None
    assert report(good, doubts=("few kills",)).verdict is Verdict.UNKNOWN
    assert report(good, unclear).verdict is Verdict.UNKNOWN
    assert report().verdict is Verdict.UNKNOWN
    broken = report(good, unclear, bad, doubts=("few kills",))
    assert broken.verdict is Verdict.BROKEN and broken.counterexample == "sink: repeated: x"
    assert [v.exit_code for v in (Verdict.HOLDS, Verdict.BROKEN, Verdict.UNKNOWN)] == [0, 1, 2]


def test_the_json_has_what_others_read() -> None:
    """The keys that the command promises."""
    found = report(Output("out", "append", 3, 2, 1, 0, 0, ("lost: x",))).as_json()
    assert found.keys() >= {"verdict", "seed", "on", "mode", "kills", "zombies", "steps", "outputs", "counterexample"}
    assert found["kills"] == {"worker": 5, "broker": 1}
    assert found["outputs"] == {
        "out": {"kind": "append", "expected": 3, "present": 2, "lost": 1, "repeated": 0, "wrong": 0,
                "examples": ("lost: x",)}
    }  # fmt: skip
