"""An ingest on the log in memory, turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semel.ports import Step, Steps
from semel.sources.ingest import Ingest
from tests.support.outboxlog import OutboxLog

TURNS_MAX = 300


class Died(BaseException):
    """The process ends here."""


class die:
    """Ends the process when it reaches `step` for the n-th time."""

    def __init__(self, step: Step, nth: int = 1) -> None:
        self._step, self._left = step, nth

    def reached(self, step: Step) -> None:
        if step is self._step:
            self._left -= 1
            if self._left == 0:
                raise Died


class Reader:
    """One process with one ingest. `dies`: it never runs again, and tells nobody."""

    def __init__(
        self,
        log: OutboxLog,
        topic: Any,
        *,
        follow: bool = False,
        records_max: int = 5_000,
        steps: Steps | None = None,
        begin: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.session = log.session("orders.ingest")
        self.ingest = Ingest(
            self.session,
            topic.source,
            topic,
            owners=log.owner,
            follow=follow,
            begin=begin,
            records_max=records_max,
            steps=steps,
            say=say,
        )
        self.ingest.prepare()
        self.ingest.join()
        self.session.assign(f"{topic.name}-positions", *range(topic.source.lanes))
        self.now_ms = 1_000

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.now_ms += 200
            self.ingest.step(self.now_ms, 0.0)

    def all(self) -> None:
        """Until everything was read."""
        for _ in range(TURNS_MAX):
            self.turn()
            if self.ingest.finished():
                self.ingest.close()
                return
        raise AssertionError("it does not come to an end")

    def dies(self) -> None:
        self.ingest = None  # type: ignore[assignment]


def values(log: OutboxLog, topic: str) -> list[bytes]:
    """Committed values of all partitions."""
    return [r.value for p in log.topics[topic].partitions for r in p if r.visible and r.value is not None]


def keys(log: OutboxLog, topic: str) -> list[bytes | None]:
    return [r.key for p in log.topics[topic].partitions for r in p if r.visible]
