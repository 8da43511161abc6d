"""`App`: a name and a topology, and the way to run it.

Invariant: making an App does nothing but check its name and settings; the graph is built when somebody asks for it, and
the host (processes, sockets, files) is imported only inside `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from semel.contract import Mode
from semel.errors import SemelError
from semel.streams.builder import Builder
from semel.streams.graph import Graph
from semel.streams.place import GraphError, caller, raised
from semel.streams.topic import Topic, check_name

KEEP_MIN = timedelta(minutes=1)  # a position that a sink acknowledges before its disk has it is there by then
APP_NAME_LENGTH_MAX = 100  # leaves room for the names of states and sinks in 249 characters


class App:
    """One application: its name is its consumer group and the beginning of its internal topics' names.

    `build` gets a `Builder` and must be pure. `commit_interval_ms`: a transaction per worker this often.
    `sample`: records for `semel verify` to feed, by topic, as (key, value) pairs: a mapping, or a function that
    returns one. Without it verify generates them from the topics' types. `keep`: so long an outbox keeps what its sink
    has taken, for `semel sink rewind` and for a sink put back from a backup; None: for ever.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[Builder], object],
        *,
        commit_interval_ms: int = 100,
        sample: Sample | None = None,
        keep: timedelta | None = timedelta(days=7),
    ) -> None:
        self.place = caller()
        self.name = check_name(name, "App", self.place, length_max=APP_NAME_LENGTH_MAX)
        if not callable(build):
            raise GraphError(self.place, f"App {name}: the topology must be a function of a Builder.")
        if not isinstance(commit_interval_ms, int) or not 1 <= commit_interval_ms <= 60_000:
            raise GraphError(self.place, f"App {name}: commit_interval_ms={commit_interval_ms!r}; 1 to 60000.")
        if keep is not None and not (isinstance(keep, timedelta) and keep >= KEEP_MIN):
            raise GraphError(
                self.place, f"App {name}: keep={keep!r}; a timedelta of a minute or more, or None: for ever."
            )
        self.keep = keep
        self.build = build
        self.commit_interval_ms = commit_interval_ms
        self.sample = sample
        self._graph: Graph | None = None

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    def graph(self) -> Graph:
        """The topology; raises GraphError with the user's file and line when it cannot be right."""
        if self._graph is None:
            builder = Builder(self.name)
            try:
                self.build(builder)
            except SemelError:
                raise
            except Exception as wrong:  # a method that is not there, a wrong argument: said as what semel refuses
                text = f"{type(wrong).__name__}: {wrong}"
                if isinstance(wrong, TypeError) and any(f"Stream.{op}()" in text for op in ("count", "fold", "reduce")):
                    text += ". A state's name is given as name=…"
                raise GraphError(raised(wrong, self.place), text) from wrong
            self._graph = builder.build()
        return self._graph

    def run(
        self,
        url: str = "embedded:./data",
        *,
        mode: Mode | str = Mode.EXACTLY_ONCE,
        workers: int = 1,
        metrics: str | None = None,
    ) -> None:
        """Runs until Ctrl-C or SIGTERM, which commit and leave. `url`: `embedded:DIR` or `kafka://HOST:PORT`.
        `metrics`: `[HOST:]PORT`, where Prometheus finds what is counted."""
        from semel.host.worker import run_app

        run_app(self, url, Mode(mode), workers, metrics=metrics)


Records = Mapping[Topic[Any, Any], Iterable[tuple[Any, Any]]]
Sample = Records | Callable[[], Records]
