"""A state between its cache, its changelog and its store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semel import App, Builder, Topic
from semel.ports import Headers
from semel.streams import state as module
from semel.streams.lineage import History, Lineage
from semel.streams.state import MemoryStore, State, fit

HOUR = 3_600_000


@pytest.fixture
def state() -> State:
    def build(b: Builder) -> None:
        b.read(Topic("t", key=str, value=int)).fold(0, lambda a, v: a + v, name="sums")

    return State(next(App("app", build).graph().folds()), MemoryStore())


def update(state: State, key: bytes, value: int | None) -> None:
    """As the compiled code does it."""
    state.cache[key] = value
    state.dirty[key] = 5


class Changelog:
    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes | None]] = []

    def __call__(self, p: int, key: bytes | None, value: bytes | None, ms: int, headers: Headers | None) -> None:
        self.records.append((key, value))


def test_one_changelog_record_per_dirty_key_and_the_store_only_after_the_commit(state: State) -> None:
    """However often a key changed; deletions are tombstones."""
    state.take_over(Lineage(), "a", topic_id="id", start=0, end=0, now_ms=HOUR)
    log = Changelog()
    for value in range(5):
        update(state, b"a", value)
    update(state, b"b", None)
    state.flush(log, 0, trace=False)
    assert log.records == [(b"a", b"4"), (b"b", None)]
    assert list(state._store.items()) == []
    state.flush(log, 0, trace=False)
    assert len(log.records) == 2
    state.committed(7, 9, HOUR)
    assert list(state._store.items()) == [(b"a", b"4")]
    assert fit(state._store.mark(), topic_id="id", lineage=state.lineage, start=0, end=9, now_ms=HOUR).offset == 7


def test_reads_see_cache_then_pending_then_store(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the cache let go of what the store has."""
    monkeypatch.setattr(module, "CACHE_KEYS_MAX", 4)
    log = Changelog()
    for n in range(10):
        update(state, b"k%d" % n, n)
        state.flush(log, 0, trace=False)
    state.committed(10, 10, HOUR)
    assert len(state.cache) < 10
    update(state, b"k0", 100)
    state.flush(log, 0, trace=False)
    update(state, b"k1", None)
    assert [state.get(b"k%d" % n) for n in range(4)] == [100, None, 2, 3]
    assert state.load(b"k1") == 0 and state.load(b"k2") == 2 and state.load(b"new") == 0
    assert dict(state.items()) == {b"k0": 100} | {b"k%d" % n: n for n in range(2, 10)}


MARK = b'{"topic_id":"id","history":"b","offset":50,"top":50,"time_ms":0}'


@pytest.mark.parametrize(
    ("mark", "topic_id", "start", "end", "now_ms", "offset", "reason"),
    [
        (MARK, "id", 0, 60, HOUR, 50, ""),
        (MARK, "id", 0, 50, HOUR, 50, ""),
        (None, "id", 3, 60, HOUR, 3, "it is new"),
        (None, "id", 0, 0, HOUR, 0, ""),
        (MARK, "other", 0, 60, HOUR, 0, "another changelog topic"),
        (MARK, "id", 0, 49, HOUR, 0, "the log went back"),
        (MARK.replace(b'"offset":50', b'"offset":40'), "id", 0, 60, HOUR, 40, ""),
        (MARK.replace(b'"offset":50', b'"offset":40'), "id", 0, 45, HOUR, 0, "the log went back"),
        (
            MARK.replace(b'"b"', b'"a"').replace(b'"offset":50', b'"offset":15'),
            "id",
            0,
            60,
            HOUR,
            0,
            "ended at offset 20",
        ),
        (MARK, "id", 51, 60, HOUR, 51, "begins at 51"),
        (MARK, "id", 0, 60, 13 * HOUR, 0, "13.0 h ago"),
        (b"?", "id", 0, 60, HOUR, 0, "cannot be read"),
        (MARK.replace(b'"b"', b'"a"').replace(b"50", b"20"), "id", 0, 60, HOUR, 20, ""),
        (MARK.replace(b'"b"', b'"a"').replace(b"50", b"21"), "id", 0, 60, HOUR, 0, "a history that ended at offset 20"),
        (MARK.replace(b'"b"', b'"z"'), "id", 0, 60, HOUR, 0, "a history that its changelog does not know"),
    ],
)
def test_a_store_is_used_only_where_its_mark_fits(
    mark: bytes | None, topic_id: str, start: int, end: int, now_ms: int, offset: int, reason: str
) -> None:
    """Else it is rebuilt from the start of the changelog, with a reason for people."""
    lineage = Lineage((History("a", 0), History("b", 20)))
    found = fit(mark, topic_id=topic_id, lineage=lineage, start=start, end=end, now_ms=now_ms)
    assert found.offset == offset
    assert (reason in found.rebuild) if reason else not found.rebuild


def test_repeating_the_end_of_the_changelog_over_a_newer_store_is_harmless(state: State) -> None:
    """The mark is a lower bound: changes are whole values, so the last ones win whatever was there."""
    log = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"b", None), (b"c", b"4")]

    def final(applied: Iterator[tuple[bytes, bytes | None]]) -> dict[bytes, bytes]:
        store = MemoryStore()
        for key, value in applied:
            store.write({key: value}, MARK)
        return dict(store.items())

    for mark in range(len(log) + 1):
        assert final(iter([*log, *log[mark:]])) == {b"a": b"3", b"c": b"4"}
