"""What a delivery says of what does not go on: when it begins, lasts, changes and ends; not at every attempt."""

from __future__ import annotations

from collections.abc import Callable

from semel.ports import TopicPartition

REPEAT_MS = 10_000  # how often a trouble that lasts is said again
CHANGED_MS = 1_000  # … and one that has changed
BACKOFF_MS, BACKOFF_MAX_MS = 50, 1_000


class Trouble:
    """Of one delivery: one loss shows on every partition, each in words of its own: the first says it."""

    def __init__(self, where: str, say: Callable[[str], None], doing: str = "delivering") -> None:
        self._where, self._say, self._doing = where, say, doing
        self._lanes: set[TopicPartition] = set()
        self._text, self._said_ms = "", 0

    def met(self, at: TopicPartition, reason: str, now_ms: int) -> None:
        first = not self._lanes
        self._lanes.add(at)
        since_ms = now_ms - self._said_ms
        if first or since_ms >= REPEAT_MS or (reason != self._text and since_ms >= CHANGED_MS):
            self._text, self._said_ms = reason, now_ms
            self._say(f"{reason}; nothing is lost, trying again")

    def mended(self, at: TopicPartition) -> None:
        if at in self._lanes:
            self._lanes.discard(at)
            if not self._lanes:
                self._say(f"{self._where}: {self._doing} again")

    def dropped(self, at: TopicPartition) -> None:
        """The partition is another one's now."""
        self._lanes.discard(at)


def pause_ms(failures: int) -> int:
    return min(BACKOFF_MS << min(failures, 10), BACKOFF_MAX_MS)
