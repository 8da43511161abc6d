"""`distinct`: the first record of each key passes, for ever or within a window; its state is like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel import App, Builder, Mode, TestDriver, Topic
from semel.guarantees import Circumstances, analyse
from semel.streams import compile as compiling
from semel.streams.place import GraphError
from tests.streams.test_worker import Machine
from tests.support.memlog import MemBroker


@dataclass(frozen=True, slots=True)
class Click:
    id: str
    n: int


clicks = Topic("clicks", key=int, value=Click)
once = Topic("once", key=str, value=Click)
same = Topic("same", key=int, value=Click)


def drive(window: timedelta | None = None) -> TestDriver:
    def build(b: Builder) -> None:
        b.read(clicks).distinct(key=lambda c: c.id, window=window, name="seen").write(once)

    return TestDriver(App("web", build))


def test_the_first_of_each_key_passes() -> None:
    """Wherever the repeats come from: the records move to their key's partition, and have that key from then on."""
    driver = drive()
    for n, id in enumerate("abacba"):
        driver.put(clicks, n, Click(id, n), time=1_000 * n)
    assert sorted(driver.take(once)) == [(id, Click(id, n)) for id, n in (("a", 0), ("b", 1), ("c", 3))]
    assert driver.state("seen") == {"a": 0, "b": 1_000, "c": 3_000}


def test_without_a_key_it_is_the_streams_own() -> None:
    """No topic in between, and what passes goes on as it came: to several ends, and to another state."""

    def build(b: Builder) -> None:
        first = b.read(clicks).distinct(name="seen")
        first.write(same)
        first.map(lambda key, click: Click(click.id, key)).write(Topic("again", key=int, value=Click))
        first.key_by(lambda c: c.id).count(name="per-id")

    app = App("web", build)
    assert not [name for name in app.graph().internal if "seen-repartition" in name]
    driver = TestDriver(app)
    for n, key in enumerate((1, 2, 1)):
        driver.put(clicks, key, Click("a", n))
    assert driver.take(same) == [(1, Click("a", 0)), (2, Click("a", 1))]
    assert driver.take(Topic("again", key=int, value=Click)) == [(1, Click("a", 1)), (2, Click("a", 2))]
    assert driver.state("per-id") == {"a": 2}


@pytest.mark.parametrize(
    ("times", "passes"),
    [
        ((0, 1, 9_999), [0]),
        ((0, 10_000), [0, 10_000]),  # at the window's end it is over
        ((0, 9_000, 18_000), [0, 18_000]),  # a repeat does not make the window longer
        ((50_000, 1_000, 49_999, 59_999), [50_000]),  # one that is late is a repeat
        ((50_000, 1_000, 60_000), [50_000, 60_000]),
    ],
)
def test_a_window_is_over_so_much_after_the_one_that_passed(times: Sequence[int], passes: list[int]) -> None:
    """By the records' own times."""
    driver = drive(timedelta(seconds=10))
    for at in times:
        driver.put(clicks, 1, Click("a", at), time=at)
    assert [click.n for _, click in driver.take(once)] == passes


def told(records: Sequence[tuple[str, int]], window: int | None) -> list[tuple[str, int]]:
    """The definition, in a few words of Python."""
    passed: dict[str, int] = {}
    found = []
    for id, at in records:
        if id not in passed or (window is not None and at - passed[id] >= window):
            passed[id] = at
            found.append((id, at))
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=30),
    st.sampled_from([None, 1, 7, 20]),
    st.sets(st.integers(0, 30)),
)
def test_it_does_what_it_says(records: list[tuple[str, int]], window: int | None, commits: set[int]) -> None:
    """However the records fall into transactions."""
    driver = drive(None if window is None else timedelta(milliseconds=window))
    for at, (id, time) in enumerate(records):
        driver.put(clicks, 1, Click(id, time), time=time)
        if at in commits:
            driver.advance(1_000)
    found = [(click.id, click.n) for _, click in driver.take(once)]
    assert found == told(records, window)


# --- with the log ----------------------------------------------------------------------------------------------------

numbers = Topic("orders", key=str, value=int)
firsts = Topic("firsts", key=int, value=int)


def by_number(b: Builder) -> None:
    b.read(numbers).distinct(key=lambda n: n % 50, name="seen").write(firsts)


def crashed(build: Any = by_number) -> list[int]:
    """200 numbers, each four times over four partitions, taken by a worker that dies before each of its commits; every
    second time with its disk."""
    broker = MemBroker()
    broker.create("orders", 4)
    machine = Machine("a", broker, build)
    for part in range(8):
        for n in range(part * 25, part * 25 + 25):
            broker.put("orders", b"k%d" % (n % 11), b"%d" % n, ms=n)
        machine.take()
        machine.take()
        if part % 2:
            machine.disk.clear()
        machine.start()
        machine.run(6)
    machine.run(10)
    return sorted(int(key) for key, _ in broker.committed("firsts") if key is not None)


def test_state_and_what_passed_commit_together() -> None:
    """A death before a commit leaves neither: each number has passed once, and none is held for seen in vain."""
    assert crashed() == list(range(50))


def test_a_state_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what has passed is not written to the changelog; the check above sees the repeats."""
    real = compiling._fold

    def forgetful(text: Any, depth: int, node: Any, at: Any) -> None:
        before = len(text.lines)
        real(text, depth, node, at)
        text.lines[before:] = [line.replace(f"= d{node.id}[{at.kb}] = t", "= t") for line in text.lines[before:]]

    monkeypatch.setattr(compiling, "_fold", forgetful)
    assert crashed() != list(range(50))


# --- before anything runs --------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_at_its_line() -> None:
    """A window of nothing, a name taken twice, and records that lead nowhere."""

    def no_window(b: Builder) -> None:
        b.read(clicks).distinct(name="seen", window=timedelta(0)).write(same)

    def seconds(b: Builder) -> None:
        b.read(clicks).distinct(name="seen", window=10).write(same)  # type: ignore[call-overload]

    def twice(b: Builder) -> None:
        b.read(clicks).distinct(name="seen").distinct(name="seen").write(same)

    def nowhere(b: Builder) -> None:
        b.read(clicks).distinct(name="seen")

    for build, says in (
        (no_window, "a timedelta of a millisecond or more"),
        (seconds, "a timedelta of a millisecond or more"),
        (twice, "named 'seen', as is what stands"),
        (nowhere, "what distinct seen .* goes nowhere"),
    ):
        with pytest.raises(GraphError, match=says):
            App("web", build).graph()


def test_check_says_what_a_crash_does_to_it() -> None:
    """Exactly-once in its transaction. Without one a record can be held for seen whose output was lost: unknown."""

    def build(b: Builder) -> None:
        b.read(clicks).distinct(name="seen").write(same)

    graph = App("web", build).graph()
    found = {mode: analyse(graph, Circumstances(mode)).paths[0] for mode in Mode}
    assert {mode: str(path.guarantee) for mode, path in found.items()} == {
        Mode.EXACTLY_ONCE: "exactly-once",
        Mode.AT_LEAST_ONCE: "unknown",
        Mode.AT_MOST_ONCE: "at-most-once",
    }
    assert any("held for seen whose output was lost" in reason for reason in found[Mode.AT_LEAST_ONCE].reasons)
