"""A worker process: the core of `streams/worker.py` with a log, a store, a clock and signals; a thread per delivery.

Invariants: a worker runs under the identity of the slot that it has locked and of no other; the processing loop, its
commits and the group's callbacks share the main thread; an error in any thread ends the process, and what was not
committed is aborted by the next start under the same identity. SIGTERM and Ctrl-C commit and leave; a second one
ends it at once.

On Kafka (or `semel broker`) `workers` is a number of processes under one parent (`supervisor.py`). On the embedded log
there is one: its folder belongs to one process, and threads of one process would share one core's time.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from semel.contract import Mode, PositionIn
from semel.errors import SemelError, UsageError
from semel.host.clock import clock
from semel.host.identity import Slot, take_slot
from semel.host.ingesting import IngestThread, Sessions, fed_topics, ingest_all, made
from semel.host.leaving import LEAVE_MAX_S, Leaving, LeftEarly
from semel.host.metrics import Address, Figures, Watched, address_of, serve
from semel.host.steps import steps_from
from semel.host.supervisor import supervise
from semel.ports import Ingestor, Log, LogLost, Owner, Owners, Position, Steps, Stores, TopicPartition
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.cuts import Rule
from semel.sinks.delivery import Delivery
from semel.sinks.measured import MeasuredSink, Measures
from semel.streams import graph as g
from semel.streams.layout import Asked
from semel.streams.worker import Worker

if TYPE_CHECKING:
    from semel.app import App

EMBEDDED, KAFKA = "embedded:", "kafka://"
POLL_S = 0.1
LEAVE_PATIENCE_S = 5.0  # with a silent log, by somebody who was asked to leave
LEAVE_S = 20.0  # for a delivery to finish its batch
CONNECTING_S = 2.0  # a log that has not answered for so long is named
WAITING_MAX = 10_000  # what is left in an outbox is counted up to here
LOOK_MS = 1_000  # how often a delivery asks for the ends of its outbox, for its metrics
QUIET_S = 3.0  # without a partition for so long, it says so


@dataclass(frozen=True, slots=True)
class Run:
    """What one process is asked to do."""

    app: App
    url: str
    mode: Mode
    prefix: str  # of every topic, group, identity and sink table; "" in production (`semel verify`)
    trace: bool
    state_dir: Path
    session_timeout_ms: int | None
    slot: int | None  # None: the first that is free
    of: int = 0  # workers under one parent; 0: none
    metrics: Address | None = None  # where what it counts is served; worker number n is at the port, plus n - 1

    @property
    def name(self) -> str:
        return self.prefix + self.app.name


def run_app(
    app: App,
    url: str,
    mode: Mode = Mode.EXACTLY_ONCE,
    workers: int = 1,
    *,
    prefix: str = "",
    trace: bool = False,
    state_dir: Path | None = None,
    session_timeout_ms: int | None = None,
    metrics: str | None = None,
) -> None:
    """Runs until SIGTERM or Ctrl-C. What goes wrong is one line on stderr and the exit code (SystemExit): 1, or 2 for
    what was asked wrongly."""
    try:
        code = _run(app, url, mode, workers, prefix, trace, state_dir, session_timeout_ms, metrics)
    except SemelError as error:
        _say(f"error: {error}")
        code = error.exit_code
    if code:
        raise SystemExit(code)


def _run(
    app: App,
    url: str,
    mode: Mode,
    workers: int,
    prefix: str,
    trace: bool,
    state_dir: Path | None,
    session_timeout_ms: int | None,
    metrics: str | None,
) -> int:
    if workers < 1:
        raise UsageError(f"workers={workers}: at least 1.")
    app.graph()  # what cannot be right is refused before anything is opened
    name = prefix + app.name
    _check_url(url)
    if url.startswith(EMBEDDED):
        if workers > 1:
            raise UsageError(
                f"{workers} workers on {url}: the folder of an embedded log belongs to one process. Serve it with "
                f"`semel broker {url.removeprefix(EMBEDDED)}` and run the workers on kafka://HOST:PORT."
            )
        default = Path(url.removeprefix(EMBEDDED)) / "state" / name
    else:
        default = Path(".semel") / name
    served = None if metrics is None else address_of(metrics)
    run = Run(app, url, mode, prefix, trace, state_dir or default, session_timeout_ms, None, metrics=served)
    if workers == 1:
        return _process(run)
    return supervise(workers, lambda slot: _child(replace(run, slot=slot, of=workers)))


def _check_url(url: str) -> None:
    if url.startswith(EMBEDDED):
        if not url.removeprefix(EMBEDDED):
            raise UsageError(f"{url}: write embedded:DIR, for example embedded:./data")
    elif url.startswith(KAFKA):
        from semel.host.kafka_client import address  # names its extra when confluent-kafka is missing

        address(url)
    else:
        raise UsageError(f"{url!r} is no log. Write embedded:DIR or kafka://HOST:PORT")


def _child(run: Run) -> int:
    try:
        return _process(run)
    except SemelError as error:
        _say(f"error: {error}")
        return error.exit_code


def _process(run: Run) -> int:
    """The whole life of one worker; 0 after a signal."""
    parent = os.getppid()
    leaving = Leaving(ignore_keyboard=run.of > 0)
    try:
        with leaving, ExitStack() as stack:
            stack.callback(faulthandler.cancel_dump_traceback_later)
            try:
                _work(run, leaving, stack, lambda: run.of > 0 and os.getppid() != parent)
            finally:
                # A bound on closing that needs no Python: a client library may hold the interpreter's lock.
                faulthandler.dump_traceback_later(LEAVE_MAX_S, exit=True)
    except LeftEarly:  # nothing was begun
        return 128 + signal.SIGINT if leaving.by == signal.SIGINT else 0
    except LogLost as lost:
        raise SemelError(str(lost)) from lost
    return 0


def _work(run: Run, leaving: Leaving, stack: ExitStack, orphaned: Callable[[], bool]) -> None:
    graph = run.app.graph()
    steps = steps_from(os.environ)
    now_ms = clock()
    source, owners = stack.enter_context(sessions(run, steps, leaving))
    # After the log's own folder: state on an embedded log lies inside it.
    slot = take_slot(run.state_dir, run.name, run.slot)
    stack.callback(slot.lock.release)
    connecting = threading.Timer(CONNECTING_S, _say, (f"connecting to {run.url.partition('?')[0]} …",))
    connecting.daemon = True
    connecting.start()
    stack.callback(connecting.cancel)
    log = source(run.name, slot.identity, slot.identity if run.mode is Mode.EXACTLY_ONCE else None)
    stack.callback(log.close)
    asked = _asked(run, slot, source)
    worker = Worker(
        graph,
        log,
        _stores(slot, stack),
        mode=run.mode,
        steps=steps,
        commit_interval_ms=run.app.commit_interval_ms,
        prefix=run.prefix,
        trace=run.trace,
        notice=_say,
        delivered=lambda sink, partitions: asked(f"{run.app.name}.{sink}", partitions),
        asked=asked,
        id=secrets.token_hex(5),
    )
    threads: list[_DeliveryThread | IngestThread] = []
    watched: dict[str, Watched] = {}
    for topic in fed_topics(graph):  # before the worker looks for its topics: they may be made here
        member = f"{slot.identity}.{topic.name}.ingest"
        threads.append(
            IngestThread(
                topic.name, *made(topic, source, owners, prefix=run.prefix, member=member, steps=steps), now_ms
            )
        )
        stack.callback(threads[-1].stop)
    worker.start(now_ms())
    connecting.cancel()
    for name, write in _outboxes(graph):
        session = source(f"{run.name}.{name}", f"{slot.identity}.{name}", None)
        measures = None if run.metrics is None else Measures()
        delivery = delivery_of(run, name, write, session, owners, steps, measures=measures)
        threads.append(_DeliveryThread(name, delivery, session, now_ms, measures))
        stack.callback(threads[-1].stop)
        if measures is not None and write.sink is not None:
            watched[name] = Watched(write.sink.where, write.sink.contract, measures)
    if run.metrics is not None:
        at = replace(run.metrics, port=run.metrics.port + (run.slot or 0))
        done = worker.progress
        stack.callback(serve(at, Figures(run.name, lambda: (done.records, done.commits, done.aborts), watched)))
    leaving.later()
    for thread in threads:
        thread.start()
    standing = Standing(now_ms())
    while not (leaving.asked or orphaned()):
        worker.run_once(now_ms(), POLL_S)
        for thread in threads:
            if thread.failed is not None:
                raise thread.failed
        if standing.changed(now_ms(), holds=bool(worker.assigned_partitions), running=worker.running):
            standing.said = _announce(run, slot, log.name, graph, worker)
    worker.close(now_ms())
    for thread in threads:
        thread.stop()
        if thread.failed is not None:
            raise thread.failed
    if leaving.asked:
        done = worker.progress
        told = f"left {run.app.name}: {_many(done.records, 'record')} processed, {_many(done.commits, 'commit')}"
        _say("; ".join([told, *(t.left for t in threads if isinstance(t, _DeliveryThread) and t.left)]))


class Standing:
    """When a worker has something to say of how it stands: once it runs; once it has held no partition for QUIET_S,
    whatever it had before; once what it restores has taken so long since the start. Each only if it is new."""

    def __init__(self, now_ms: int) -> None:
        self.said = ""
        self._began_ms = self._held_ms = now_ms

    def changed(self, now_ms: int, *, holds: bool, running: bool) -> bool:
        if holds:
            self._held_ms = now_ms
        if running:
            return self.said != "running"
        since_ms = self._held_ms if self.said else self._began_ms
        return self.said != "idle" and now_ms - since_ms > QUIET_S * 1000


def _announce(run: Run, slot: Slot, where: str, graph: g.Graph, worker: Worker) -> str:
    """Says how it stands, once per standing; what it says then."""
    number = f", worker {slot.number + 1} of {run.of}" if run.of else ""
    if not worker.running and worker.assigned_partitions:
        _say(f"restoring the state of {run.app.name} on {where}{number}")
        return "restoring"
    inputs = {run.prefix + node.topic.name for node in graph.nodes if isinstance(node, g.Read)}
    mine = sum(at.topic in inputs for at in worker.assigned_partitions)
    idle = "" if worker.assigned_partitions else ": idle, other workers have them all or have not let go yet"
    print(f"running {run.app.name} on {where}, {run.mode.value}, {_many(mine, 'partition')}{number}{idle}", flush=True)
    return "idle" if idle else "running"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _outboxes(graph: g.Graph) -> Iterator[tuple[str, g.Write]]:
    """One per sink: several writes to one sink share its outbox."""
    seen: set[str] = set()
    for write in graph.writes():
        if write.sink is not None and write.sink.name not in seen:
            seen.add(write.sink.name)
            yield write.sink.name, write


# --- what a worker works on ---

Source = Sessions


def _asked(run: Run, slot: Slot, source: Source) -> Asked:
    """Where another group is (a sink's delivery, also one that the program no longer has): asked in its name."""

    def positions(group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        log = source(run.prefix + group, f"{slot.identity}.asks", None)
        try:
            return log.committed(partitions)
        finally:
            log.close()

    return positions


@contextmanager
def sessions(run: Run, steps: Steps, leaving: Leaving) -> Iterator[tuple[Source, _OwnerMaker]]:
    """Functions that open sessions with the log."""
    if run.url.startswith(EMBEDDED):
        from semel.host.embedded import EmbeddedLog
        from semel.host.embedded_owner import EmbeddedOwner
        from semel.host.engine import Engine

        engine = Engine(Path(run.url.removeprefix(EMBEDDED)), steps=steps)
        try:
            yield (
                lambda group, member, transactional: EmbeddedLog(
                    engine, group=group, transactional_id=transactional, steps=steps
                ),
                lambda transactional, timeout_ms=0: EmbeddedOwner(engine, transactional),
            )
        except BaseException:
            with suppress(LogLost):  # what ended the run is what a person must hear of
                engine.close()
            raise
        engine.close()
    else:
        from semel.host.cluster import SESSION_TIMEOUT_MS, open_cluster
        from semel.host.kafka_client import LOST_AFTER_S, address
        from semel.host.kafka_owner import KafkaOwner
        from semel.host.kafka_producer import TRANSACTION_TIMEOUT_MS

        timeout_ms = run.session_timeout_ms or SESSION_TIMEOUT_MS
        at = replace(address(run.url), patience_s=lambda: LEAVE_PATIENCE_S if leaving.asked else LOST_AFTER_S)
        yield (
            lambda group, member, transactional: open_cluster(
                run.url,
                group=group,
                member=member,
                transactional_id=transactional,
                steps=steps,
                session_timeout_ms=timeout_ms,
                # A transaction is open for a whole commit interval: one of a minute must not outlive its own timeout.
                transaction_timeout_ms=max(TRANSACTION_TIMEOUT_MS, 2 * run.app.commit_interval_ms + 5_000),
                patience_s=at.patience_s,
                notice=_say if group == run.name else None,  # once, not by each delivery, too
            ),
            lambda transactional, timeout_ms=TRANSACTION_TIMEOUT_MS: KafkaOwner(at, transactional, timeout_ms),
        )


def _stores(slot: Slot, stack: ExitStack) -> Stores:
    """The stores of this slot; the database is opened when the first state asks for one."""
    opened: list[Any] = []

    def store(name: str, partition: int) -> Any:
        if not opened:
            from semel.host.store import Stores as Database

            opened.append(Database(slot.folder / "stores"))
            stack.callback(opened[0].close)
        return opened[0].store(name, partition)

    return store


def delivery_of(
    run: Run,
    name: str,
    write: g.Write,
    log: Log,
    owners: Owners,
    steps: Steps,
    rule: Rule | None = None,
    measures: Measures | None = None,
) -> Delivery | CutDelivery:
    """By who remembers the position: the sink (or, for a weak one, the group), or the delivery topic."""
    assert write.sink is not None
    sink: Any = write.sink.renamed(run.prefix) if run.prefix else write.sink
    if measures is not None:
        sink = MeasuredSink(sink, measures, time.monotonic)
    outbox = run.prefix + write.outbox

    def say(text: str) -> None:
        _say(f"sink {name}: {text}")

    given: dict[str, Any] = {"app": run.name, "outbox": outbox, "value_type": write.value, "steps": steps, "say": say}
    given["sole_owner"] = run.url.startswith(EMBEDDED)
    given["keep_ms"] = None if run.app.keep is None else round(run.app.keep.total_seconds() * 1000)
    if write.on_error == "dead-letter":
        given["dead_letters"] = g.internal_name(run.name, "", g.InternalKind.DEAD_LETTER)
    if sink.contract.position is PositionIn.DELIVERY_TOPIC:
        return CutDelivery(log, sink, owners=owners, rule=rule, **given)
    return Delivery(log, sink, accept=write.accept, owners=owners, **given)


class _Owner(Owner, Ingestor, Protocol):
    """What both logs have under one transactional id."""


class _OwnerMaker(Protocol):
    def __call__(self, transactional: str, timeout_ms: int = ...) -> _Owner: ...


def run_ingest(
    app: App, url: str, *, topics: Sequence[str] = (), follow: bool = False, begin: Sequence[str] = (), prefix: str = ""
) -> None:
    """The sources of an app, without its processing: until everything was read, or until SIGTERM or Ctrl-C. What goes
    wrong is one line on stderr and the exit code (SystemExit)."""
    run = Run(app, url, Mode.EXACTLY_ONCE, prefix, False, Path(), None, None)
    try:
        code = _ingest(run, topics, follow, begin)
    except SemelError as error:
        _say(f"error: {error}")
        code = error.exit_code
    if code:
        raise SystemExit(code)


def _ingest(run: Run, names: Sequence[str], follow: bool, begin: Sequence[str]) -> int:
    fed = {topic.name: topic for topic in fed_topics(run.app.graph())}
    if unknown := sorted(set(names) - set(fed)):
        raise UsageError(f"--topic {', '.join(unknown)}: no topic that the app reads has this name and a source.")
    if not fed:
        raise UsageError(f"no topic that {run.app.name} reads has a source. Declare one: Topic(…, source=Files(…))")
    _check_url(run.url)
    leaving = Leaving(ignore_keyboard=False)
    try:
        with leaving, ExitStack() as stack:
            stack.callback(faulthandler.cancel_dump_traceback_later)
            steps = steps_from(os.environ)
            source, owners = stack.enter_context(sessions(run, steps, leaving))
            leaving.later()
            try:
                ingest_all(
                    [fed[name] for name in names or sorted(fed)],
                    source,
                    owners,
                    follow=follow,
                    begin=begin,
                    prefix=run.prefix,
                    steps=steps,
                    now_ms=clock(),
                    asked=lambda: leaving.asked,
                )
            finally:
                faulthandler.dump_traceback_later(LEAVE_MAX_S, exit=True)
    except LeftEarly:
        return 128 + signal.SIGINT if leaving.by == signal.SIGINT else 0
    except LogLost as lost:
        raise SemelError(str(lost)) from lost
    if leaving.asked and not follow:
        return 128 + leaving.by  # not everything was read
    return 0


class _DeliveryThread(threading.Thread):
    """One outbox on its way to its sink. `failed` is why it ended, if it did not end because of `stop`."""

    def __init__(
        self,
        name: str,
        delivery: Delivery | CutDelivery,
        log: Log,
        now_ms: Callable[[], int],
        measures: Measures | None = None,
    ) -> None:
        super().__init__(name=f"semel-delivery-{name}", daemon=True)
        self.failed: SemelError | None = None
        self.left = ""  # what the sink has not taken, for the last word
        self._sink = name
        self._log = log
        self._now_ms = now_ms
        self._stop_asked = threading.Event()
        self._ended = False
        self._delivery = delivery
        self._measures, self._looked_ms = measures, -LOOK_MS

    def run(self) -> None:
        try:
            self._delivery.join()
            while not self._stop_asked.is_set():
                self._delivery.step(self._now_ms(), POLL_S)
                if self._measures is not None and self._now_ms() - self._looked_ms >= LOOK_MS:
                    self._looked_ms = self._now_ms()
                    self._measures.stands = self._stands(self._measures.stands)
        except SemelError as error:
            self.failed = error
        except LogLost as lost:
            self.failed = SemelError(str(lost))
        except Exception as bug:
            import traceback

            traceback.print_exc()
            self.failed = SemelError(f"{self.name}: a bug of ours ({type(bug).__name__}: {bug}). Nothing is lost.")

    def _stands(self, before: Mapping[TopicPartition, tuple[int, int]]) -> Mapping[TopicPartition, tuple[int, int]]:
        """Also while the sink cannot be reached: nobody else moves what is assigned here, so what was known last holds,
        or else what the group says."""
        told = self._delivery.positions()
        stand = {at: before[at][0] if position is None and at in before else position for at, position in told.items()}
        if unknown := [at for at, position in stand.items() if position is None]:
            starts = self._log.starts(unknown)
            for at, committed in self._log.committed(unknown).items():
                stand[at] = starts[at] if committed is None else committed.offset
        ends = self._log.ends(list(stand)) if stand else {}
        return {at: (position or 0, ends[at]) for at, position in stand.items()}

    def stop(self) -> None:
        """Finishes the batch at hand and lets go. A second call does nothing."""
        if self._ended:
            return
        self._ended = True
        self._stop_asked.set()
        if self.ident is not None:
            self.join(LEAVE_S)
            if self.is_alive():
                _say(f"{self.name}: the sink has not answered for {LEAVE_S:.0f} s; leaving it, nothing is lost")
                return
        try:
            if self.failed is None and (count := self._delivery.waiting(WAITING_MAX)):
                told = f"more than {WAITING_MAX:,} records" if count > WAITING_MAX else _many(count, "record")
                self.left = f"{told} left in the outbox of {self._sink} for the next start"
            self._delivery.close()
        except (SemelError, LogLost) as error:
            _say(f"{self.name}: {error}")
        self._log.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
