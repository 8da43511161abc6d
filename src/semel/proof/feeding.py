"""The sources of one run of verify: the app's own, over a place of the run's own, filled while they are read.

Invariant: what a source must have put into its topic is read back from the source itself, not by the ingest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from semel.errors import SemelError
from semel.host.ingesting import fed_topics
from semel.proof.processes import ProofError
from semel.source_ports import SourceTrial
from semel.sources.source import plain
from semel.streams import graph as g
from semel.streams.graph import AnyTopic
from semel.verify.oracle import Committed, reckon_source
from semel.verify.verdict import Output
from semel.verify.workload import Given

AT_ONCE = 40  # rows that are added together


class Feeding:
    """`topics`: those that are filled here and not by writing to them. `begun(topic)`: whether a position of its source
    is committed. Where changes are read, those before it are none: a snapshot shows what they came to, and an ingest
    that dies within its first one begins with another."""

    def __init__(self, graph: g.Graph, prefix: str, begun: Callable[[str], bool]) -> None:
        self._begun = begun
        self.topics: dict[str, AnyTopic] = {topic.name: topic for topic in fed_topics(graph)}
        self._trials: dict[str, SourceTrial] = {}
        self._waiting: dict[str, list[Given]] = {name: [] for name in self.topics}
        self._added: dict[str, int] = dict.fromkeys(self.topics, 0)
        for name, topic in self.topics.items():
            assert topic.source is not None, name
            self._trials[name] = topic.source.renamed(prefix).trial(topic)

    def prepare(self) -> None:
        for name, trial in self._trials.items():
            try:
                trial.prepare()
            except (SemelError, OSError) as why:
                raise ProofError(f"the source of {name}: {why}") from why

    def put(self, name: str, one: Given) -> None:
        if one.value is None:
            return  # a source has rows, not deletions
        self._waiting[name].append(one)
        if len(self._waiting[name]) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        for name, waiting in self._waiting.items():
            if self._trials[name].after_the_start and not self._begun(name):
                continue
            topic = self.topics[name]
            rows = [plain(topic, one.value) for one in waiting if one.value is not None]
            self._added[name] += self._trials[name].add(rows)
            waiting.clear()

    def end(self) -> None:
        """Everything that was put is there, and no transaction of ours is open at a source."""
        self.flush()
        for trial in self._trials.values():
            trial.add([])

    @property
    def waiting(self) -> int:
        """Rows that no source has been given yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def added(self) -> dict[str, int]:
        """How many records each topic must hold in the end."""
        return dict(self._added)

    def reckon(self, committed: Committed) -> list[Output]:
        return [
            reckon_source(name, self._rows(name), committed, topic.source.ordered)
            for name, topic in sorted(self.topics.items())
            if topic.source is not None
        ]

    def _rows(self, name: str) -> Sequence[tuple[bytes | None, bytes | None]]:
        rows = self._trials[name].rows()
        if len(rows) != self._added[name]:
            raise ProofError(f"the source of {name} has {len(rows)} rows, {self._added[name]} were put there.")
        return rows

    def drop(self) -> None:
        for trial in self._trials.values():
            trial.drop()
