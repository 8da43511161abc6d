"""Ingests on real logs: a thread of a worker for each source of its app, or `semel ingest` alone.

Invariant: whoever runs them, a source is read under the same transactional ids and the same group, so a worker and a
`semel ingest` share its lanes and never read one twice.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from semel.errors import SemelError, UsageError
from semel.ports import Ingestors, Log, LogLost, Steps
from semel.sources.ingest import Ingest
from semel.sources.positions import GROUP_ENDING
from semel.streams import graph as g

POLL_S = 0.1
LEAVE_S = 20.0  # for an ingest to finish its transaction
OTHERS_S = 15.0  # without a lane for so long, other members have them all
PROGRESS_S = 1.0

Sessions = Callable[[str, str | None, str | None], Log]  # group, static member id, transactional id


def fed_topics(graph: g.Graph) -> Iterator[Any]:
    """The topics with a source that the app reads, by name."""
    found = {n.topic.name: n.topic for n in graph.nodes if isinstance(n, g.Read) and n.topic.source is not None}
    yield from (found[name] for name in sorted(found))


def made(
    topic: Any,
    sessions: Sessions,
    owners: Ingestors,
    *,
    prefix: str = "",
    member: str | None = None,
    follow: bool = True,
    begin: bool = False,
    steps: Steps | None = None,
) -> tuple[Ingest, Log]:
    """An ingest with a session of its own; its topics are there when this returns."""
    name = prefix + topic.name
    session = sessions(name + GROUP_ENDING, member, None)
    ingest = Ingest(
        session,
        topic.source.renamed(prefix) if prefix else topic.source,
        topic,
        owners=owners,
        name=name,
        follow=follow,
        begin=begin,
        steps=steps,
        say=lambda text: _say(f"source of {topic.name}: {text}"),
    )
    try:
        ingest.prepare()
    except BaseException:
        session.close()
        raise
    return ingest, session


class IngestThread(threading.Thread):
    """One source on its way into its topic. `failed` is why it ended, if it did not end because of `stop` or because
    everything was read."""

    def __init__(self, name: str, ingest: Ingest, session: Log, now_ms: Callable[[], int], follow: bool = True) -> None:
        super().__init__(name=f"semel-ingest-{name}", daemon=True)
        self.failed: SemelError | None = None
        self.topic, self.ingest = name, ingest
        self._session, self._now_ms, self._follow = session, now_ms, follow
        self._stop_asked = threading.Event()
        self._closed = False

    def run(self) -> None:
        try:
            self.ingest.join()
            while not self._stop_asked.is_set() and (self._follow or not self.ingest.finished()):
                self.ingest.step(self._now_ms(), POLL_S)
        except SemelError as error:
            self.failed = error
        except LogLost as lost:
            self.failed = SemelError(str(lost))
        except Exception as bug:
            import traceback

            traceback.print_exc()
            self.failed = SemelError(f"{self.name}: a bug of ours ({type(bug).__name__}: {bug}). Nothing is lost.")

    def stop(self) -> None:
        """Finishes the transaction at hand and lets go. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._stop_asked.set()
        if self.ident is not None:
            self.join(LEAVE_S)
            if self.is_alive():
                _say(f"{self.name}: the source has not answered for {LEAVE_S:.0f} s; leaving it, nothing is lost")
                return
        try:
            self.ingest.close()
        except (SemelError, LogLost) as error:
            _say(f"{self.name}: {error}")
        self._session.close()


def ingest_all(
    topics: Sequence[Any],
    sessions: Sessions,
    owners: Ingestors,
    *,
    follow: bool,
    begin: Sequence[str],
    prefix: str,
    steps: Steps,
    now_ms: Callable[[], int],
    asked: Callable[[], bool],
) -> None:
    """Runs them side by side until each has read everything, or, following, until `asked`."""
    if unknown := sorted(set(begin) - {topic.name for topic in topics}):
        raise UsageError(f"--begin {', '.join(unknown)}: no topic of this name has a source here.")
    threads: list[IngestThread] = []
    try:
        for topic in topics:
            ingest, session = made(
                topic, sessions, owners, prefix=prefix, follow=follow, begin=topic.name in begin, steps=steps
            )
            threads.append(IngestThread(topic.name, ingest, session, now_ms, follow))
        for thread in threads:
            thread.start()
        told, told_at, began = "", time.monotonic(), time.monotonic()
        while any(thread.is_alive() for thread in threads) and not asked():
            time.sleep(0.02)
            for thread in threads:
                if thread.failed is not None:
                    raise thread.failed
                if not follow and not thread.ingest.lanes and time.monotonic() - began > OTHERS_S and thread.is_alive():
                    raise SemelError(
                        f"{thread.topic}: other processes are reading its source. Nothing is left to do here."
                    )
            if time.monotonic() - told_at >= PROGRESS_S:
                told_at = time.monotonic()
                if (text := "\n".join(map(_told, threads))) != told:
                    told = text
                    _say(text)
    finally:
        for thread in threads:
            thread.stop()
    for thread in threads:
        if thread.failed is not None:
            raise thread.failed
        refused = f", {thread.ingest.refused:,} of them refused" if thread.ingest.refused else ""
        _say(f"{thread.topic}: {_many(thread.ingest.records)} read{refused}")


def _told(thread: IngestThread) -> str:
    how_far = thread.ingest.progress()
    return f"{thread.topic}: {_many(thread.ingest.records)}" + (f"; {how_far}" if how_far else "")


def _many(records: int) -> str:
    return f"{records:,} record" + ("" if records == 1 else "s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
