"""Reads every sink all through a storm, each on a connection of its own, as its users would.

Invariant: a reading is what one call of the sink's own reader returned; a reader that fails has read nothing, and says
nothing. The readers take a tenth of the time at most, so that the storm is not about them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from semel.contract import Atomicity, Identity
from semel.ports import NoSteps, NotDone
from semel.sinks import DuckDB
from semel.streams import graph as g
from semel.verify.oracle import Committed, history
from semel.verify.verdict import Output
from semel.verify.watched import Watch, appended, keyed

PAUSE_S = 0.3
SHARE = 9  # a reading is followed by a pause so many times as long


def watchable(sink: Any) -> bool:
    """Not where a reader shuts the writer out (DuckDB: one process has the file), repeats are accepted (weak sinks),
    equal samples are one, or the sink is a log, whose order is compared record by record in the end."""
    weak = sink.contract.name in ("AtLeastOnce", "AtMostOnce")
    return not (
        weak or isinstance(sink, DuckDB) or sink.contract.identity is Identity.SAMPLE or hasattr(sink, "read_by_others")
    )


class Watching(threading.Thread):
    """Of all sinks of one run. `end` before anything is reckoned or removed."""

    def __init__(self, graph: g.Graph, sinks: Mapping[str, tuple[Any, Any]]) -> None:
        super().__init__(name="verify-watches-the-sinks", daemon=True)
        self._graph = graph
        self._sinks = {name: sink for name, (sink, _) in sinks.items() if watchable(sink)}
        self._watches = {name: Watch() for name in self._sinks}
        self._ended = threading.Event()

    def run(self) -> None:
        open_: dict[str, Any] = {}
        pause_s = PAUSE_S
        while not self._ended.wait(pause_s):
            began = time.monotonic()
            for name, sink in self._sinks.items():
                if self._ended.is_set():
                    break
                try:
                    if name not in open_:
                        made = sink.open(NoSteps())
                        write = next(w for w in self._graph.writes() if w.sink is not None and w.sink.name == name)
                        if isinstance(made.prepare(write.value), NotDone):
                            made.close()
                            continue
                        open_[name] = made
                    rows = [bytes(row) for row in open_[name].rows()]
                except Exception:  # of any client library: the sink, or the way to it, is away
                    self._close(open_.pop(name, None))
                    continue
                self._watches[name].look(rows)
            pause_s = max(PAUSE_S, SHARE * (time.monotonic() - began))
        for connection in open_.values():
            self._close(connection)

    @staticmethod
    def _close(connection: Any) -> None:
        with contextlib.suppress(Exception):  # it was away
            if connection is not None:
                connection.close()

    def end(self) -> None:
        self._ended.set()
        if self.ident is not None:
            self.join()

    def reckon(self, committed: Committed, sinks: Mapping[str, tuple[Any, Any]]) -> list[Output]:
        """What was seen against what was committed; a sink that nobody could read meanwhile has no line."""
        found = []
        for name, watch in self._watches.items():
            if not watch.readings:
                continue
            sink, connection = sinks[name]
            contract = sink.contract
            whole = contract.remembers_position and contract.atomicity is Atomicity.BATCH
            written, key_of = history(self._graph, name, committed, connection)
            if sink.key is None:
                found.append(appended(f"sink {name}", watch, written, whole=whole))
            else:
                found.append(keyed(f"sink {name}", watch, written, key_of, whole=whole))
        return found
