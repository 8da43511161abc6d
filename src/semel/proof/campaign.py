"""One run of `semel verify`: a world of its own, workers in it, the storm, then the reckoning.

Invariant: the verdict comes from what was read back after the run, and a run that proved little says so.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semel.app import App
from semel.contract import Mode, PositionIn, Settlement
from semel.errors import UsageError
from semel.host.ingesting import fed_topics
from semel.ports import NotDone, Step
from semel.proof.embedded import EmbeddedStorm
from semel.proof.processes import BrokerChild, Child, ProofError, semel_command
from semel.proof.storm import Storm, storm_of
from semel.proof.watching import Watching
from semel.proof.world import RECORDS_PER_S, World, sink_connections
from semel.sinks import DuckDB, SQLite
from semel.streams import graph as g
from semel.verify import checkers
from semel.verify.oracle import reckon, reckon_input, reckon_sink, untried
from semel.verify.promises import Ran, disagreements, promises
from semel.verify.schedule import (
    BROKER_STEPS,
    CUT_STEPS,
    LEFT_IN_DOUBT,
    PHASE_STEPS,
    SETTLING,
    SINK_STEPS,
    SOURCE_STEPS,
    WORKER_STEPS,
    Fault,
    Kind,
    schedule,
)
from semel.verify.verdict import Output, Promise, Report
from semel.verify.watched import KIND as READ_MEANWHILE
from semel.verify.workload import workload

WORKERS = 2
SESSION_MS_BROKER = 1_500
SESSION_MS_KAFKA = 6_000
RECORDS_PER_CRASH = 120
PREPARE_AGAIN_S = (0.2, 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for."""

    app_file: str
    on: str = "broker"
    inputs: Mapping[str, str] = field(default_factory=dict)
    crashes: int = 20
    seed: int = 1
    mode: Mode = Mode.EXACTLY_ONCE
    durability: str = "fsync"
    directed: tuple[Fault, ...] = ()
    keep: bool = False  # leave the folder of the run (logs, counters)


# What only a transaction passes through.
COMMIT_STEPS = frozenset(s for s in Step if s.value.partition(".")[0] in ("commit", "decision", "markers"))


def steps_of(graph: g.Graph, on: str, mode: Mode = Mode.EXACTLY_ONCE) -> tuple[Step, ...]:
    """The named steps that this app passes through on this log."""
    broker = () if on.startswith("kafka://") else BROKER_STEPS
    steps = (*WORKER_STEPS, *broker, *(SINK_STEPS if graph.sinks else ()), *(CUT_STEPS if _by_cuts(graph) else ()))
    steps += SOURCE_STEPS if _fed(graph) else ()
    steps += PHASE_STEPS if _in_phases(graph) else ()
    return steps if mode is Mode.EXACTLY_ONCE else tuple(step for step in steps if step not in COMMIT_STEPS)


def _fed(graph: g.Graph) -> bool:
    return any(True for _ in fed_topics(graph))


def _by_cuts(graph: g.Graph) -> bool:
    return any(sink.contract.position is PositionIn.DELIVERY_TOPIC for sink in graph.sinks.values())


def _in_phases(graph: g.Graph) -> bool:
    return any(sink.contract.settlement is Settlement.DECIDED for sink in graph.sinks.values())


def _left(graph: g.Graph, sinks: Mapping[str, Any]) -> list[Output]:
    """Of each sink that prepares, what is prepared and nobody has settled: an orphan (FAULTS S4, S5)."""
    found = []
    for name, (sink, connection) in sinks.items():
        if sink.contract.settlement is Settlement.DECIDED:
            left = tuple(connection.in_doubt())
            told = tuple(f"left in doubt: {one}" for one in left)
            found.append(Output(f"in doubt at {name}", "settled", 0, len(left), 0, 0, len(left), told))
    return found


def verify(app: App, asked: Asked, say: Callable[[str], None]) -> Report:
    """Runs the whole verification; ProofError or UsageError when it cannot be carried out."""
    graph = app.graph()
    if asked.on == "embedded":
        return _on_embedded(app, asked, say)
    if asked.on != "broker" and not asked.on.startswith("kafka://"):
        raise UsageError(f"--on {asked.on}: broker, embedded or kafka://HOST:PORT.")
    began = time.monotonic()
    dice = random.Random(asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="semel-verify-"))
    prefix = f"verify-{secrets.token_hex(4)}."
    broker: BrokerChild | None = None
    workers: list[Child] = []
    world: World | None = None
    watching: Watching | None = None
    sinks: dict[str, Any] = {}
    files = _new_files(graph)
    try:
        if asked.on == "broker":
            settings = [f"num.partitions={4}", "group.min.session.timeout.ms=1000"]
            broker = BrokerChild(folder, settings, asked.durability)
            broker.start()
            if not broker.wait_ready():
                raise ProofError(f"semel broker does not start:\n{broker.tail()}")
            url, session_ms = f"kafka://{broker.address}", SESSION_MS_BROKER
        else:
            url, session_ms = asked.on, SESSION_MS_KAFKA
        world = World(url, prefix, graph)
        world.log.connect()
        sinks = sink_connections(graph, prefix)
        _prepare(graph, sinks)
        given = workload(world.sources, _sample(app), _files(asked.inputs), dice)
        world.prepare(given, slices=asked.crashes * 2 + 4)
        plan = schedule(
            dice, asked.crashes, workers=WORKERS, broker=broker is not None, sinks=bool(graph.sinks),
            cuts=_by_cuts(graph), phases=_in_phases(graph), sources=_fed(graph),
            file_sinks=any(_is_file(s) for s in graph.sinks.values()), directed=asked.directed,
        )  # fmt: skip
        for slot in range(WORKERS):
            command = semel_command(
                "run", asked.app_file, "--on", url, "--mode", asked.mode.value, "--state", str(folder / f"state-{slot}")
            )
            env = {"SEMEL_PREFIX": prefix, "SEMEL_TRACE": "1", "SEMEL_SESSION_MS": str(session_ms)}
            workers.append(Child(f"worker-{slot + 1}", folder, command, env, folder / f"state-{slot}"))
        storm = storm_of(
            plan,
            workers,
            broker,
            crashes=asked.crashes,
            session_s=session_ms / 1000,
            trickle=world.trickle,
            commit=_commit_step(asked.mode),
            zombies_asked=0 if asked.directed else plan.zombies,
            positions=world.positions,
            outboxes=world.outboxes,
            passed=world.passed,
            say=say,
        )
        watching = Watching(graph, sinks)
        watching.start()
        world.feed(RECORDS_PER_S)
        world.watch()
        unfinished = ""
        try:
            storm.run(deadline_s=120 + 15 * plan.kills)
            storm.calm()
            say(f"{storm.kills_worker + storm.kills_broker} kills; finishing the rest of the input")
            world.finish(everything=bool(asked.inputs))
            if not world.settled(alive=lambda: _alive(storm)):
                raise ProofError(
                    "the app did not finish its input in time, with nothing broken any more. The workers said:\n"
                    + "\n".join(w.tail() for w in workers)
                )
        except ProofError as why:
            # What is there already may show what went wrong: a repeated record is one, however the run ended.
            unfinished = str(why)
            storm.calm_broker()
        hits = _hits(workers, broker)
        for worker in workers:
            if (code := worker.leave()) != 0 and not unfinished:
                storm.failures.append(f"{worker.name} left with exit code {code}:\n{worker.tail()}")
        watching.end()
        committed = world.committed()
        outputs = world.feeding.reckon(committed) + reckon_input(graph, world.given, committed)
        outputs += reckon(graph, committed)
        outputs += [reckon_sink(graph, name, committed, connection) for name, (_, connection) in sinks.items()]
        outputs += watching.reckon(committed, sinks)
        outputs += _left(graph, sinks)
        outputs.append(checkers.monotonic("positions over time", world.history))
        stored = _stored(sinks)
        doubts = [*_doubts(graph, asked, storm, hits), *untried(graph, committed), *_never_stored_twice(sinks, stored)]
        if unfinished:
            outputs, doubts = [_so_far(o) for o in outputs], [unfinished, *doubts]
        return Report(
            app=app.name, on=asked.on, mode=asked.mode.value, seed=asked.seed, kills_worker=storm.kills_worker,
            kills_broker=storm.kills_broker, zombies=storm.zombies, refused=storm.refused,
            steps={step.value: n for step, n in hits.items() if n or step in steps_of(graph, asked.on, asked.mode)},
            struck={step.value: n for step, n in storm.struck.items()}, extra=_extra(stored),
            promises=_promises(graph, storm, hits, stored),
            outputs=tuple(outputs), doubts=tuple(doubts), seconds=time.monotonic() - began, input_records=world.fed,
        )  # fmt: skip
    finally:
        for worker in workers:
            worker.kill()
        if watching is not None:
            watching.end()
        _remove_all(sinks, files, say)
        if world is not None:
            if broker is None:
                world.remove()
            world.feeding.drop()
            world.close()
        if broker is not None:
            broker.kill()
        if asked.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _so_far(output: Output) -> Output:
    """Of a run that did not finish: what is missing may only be late, and so may the last value of a key. A record that
    is there twice, or without a reason, is wrong all the same, and so is a position that went back."""
    judged = output.kind in ("append", "monotonic", READ_MEANWHILE) or "appended" in output.kind
    kept = output if judged else replace(output, repeated=0, wrong=0)
    return replace(kept, lost=0, unknown="the app did not finish its input")


def _on_embedded(app: App, asked: Asked, say: Callable[[str], None]) -> Report:
    graph = app.graph()
    began = time.monotonic()
    dice = random.Random(asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="semel-verify-"))
    prefix = f"verify-{secrets.token_hex(4)}."
    sinks: dict[str, Any] = {}
    files = _new_files(graph)
    storm: EmbeddedStorm | None = None
    watching: Watching | None = None
    try:
        sinks = sink_connections(graph, prefix)
        _prepare(graph, sinks)
        topics = {n.topic.name: n.topic for n in graph.nodes if isinstance(n, g.Read)}
        given = workload(topics, _sample(app), _files(asked.inputs), dice)
        plan = schedule(
            dice, asked.crashes, workers=1, broker=True, sinks=bool(graph.sinks),
            cuts=_by_cuts(graph), phases=_in_phases(graph), sources=_fed(graph),
            file_sinks=any(_is_file(s) for s in graph.sinks.values()), directed=asked.directed,
        )  # fmt: skip
        # The broker's steps are this process's too; without a sink nobody could fence a zombie. And a source has one
        # reader: two copies of a log would share a slot and a port, and what one of them let go of the other has not.
        zombies = bool(graph.sinks) and not _fed(graph)
        faults = [f for f in (*plan.workers[0], *plan.broker) if f.kind is not Kind.ZOMBIE or zombies]
        if _fed(graph):
            say("no zombies on an embedded log with sources: its copy would read from them, too")
        faults = [replace(f, kind=Kind.STEP) if f.kind in (Kind.HANDOVER, Kind.LATE) else f for f in faults]
        dice.shuffle(faults)
        # Something is left in doubt for who is to be killed while it settles.
        first = Fault(Kind.STEP, LEFT_IN_DOUBT)
        faults = [one for f in faults for one in ((first, f) if f.step in SETTLING else (f,))]
        storm = EmbeddedStorm(
            folder,
            asked.app_file,
            asked.mode.value,
            prefix,
            graph,
            deque(faults),
            asked.crashes,
            {name: connection for name, (_, connection) in sinks.items()},
            say,
            commit=_commit_step(asked.mode),
        )
        storm.prepare(given, slices=asked.crashes * 2 + 4)
        watching = Watching(graph, sinks)
        watching.start()
        storm.run()
        say(f"{storm.kills_worker} kills; finishing the rest of the input")
        storm.finish(storm.children[-1])
        hits = _hits(storm.children, None)
        watching.end()
        committed = storm.committed()
        outputs = storm.feeding.reckon(committed) + reckon_input(graph, storm.given, committed)
        outputs += reckon(graph, committed)
        outputs += [reckon_sink(graph, name, committed, connection) for name, (_, connection) in sinks.items()]
        outputs += watching.reckon(committed, sinks)
        stored = _stored(sinks)
        outputs += _left(graph, sinks)
        return Report(
            app=app.name, on=asked.on, mode=asked.mode.value, seed=asked.seed, kills_worker=storm.kills_worker,
            kills_broker=0, zombies=storm.zombies, refused=storm.refused,
            steps={step.value: n for step, n in hits.items() if n or step in steps_of(graph, asked.on, asked.mode)},
            struck={step.value: n for step, n in storm.struck.items()}, extra=_extra(stored),
            promises=_promises(graph, storm, hits, stored),
            outputs=tuple(outputs),
            doubts=(
                *_doubts(graph, asked, storm, hits), *untried(graph, committed), *_never_stored_twice(sinks, stored)
            ),
            seconds=time.monotonic() - began, input_records=storm.fed,
        )  # fmt: skip
    finally:
        for child in storm.children if storm is not None else ():
            child.kill()
        if watching is not None:
            watching.end()
        if storm is not None:
            storm.feeding.drop()
        _remove_all(sinks, files, say)
        if asked.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _commit_step(mode: Mode) -> Step:
    return Step.COMMIT_AFTER if mode is Mode.EXACTLY_ONCE else Step.OFFSETS_AFTER


def _prepare(graph: g.Graph, sinks: Mapping[str, Any]) -> None:
    """The run's own tables, created; ProofError when a sink is away. Whoever opened the connections drops what was made
    and closes them: a sink that went away in the middle of this has made some of it."""
    for name, (_, connection) in sinks.items():
        write = next(w for w in graph.writes() if w.sink is not None and w.sink.name == name)
        for pause_s in PREPARE_AGAIN_S:
            if not isinstance(away := connection.prepare(write.value), NotDone):
                break
            time.sleep(pause_s)  # one lost connection is no sink that is away
        else:
            raise ProofError(f"sink {name}: {away.reason}. Start it, or name another in the app, then again.")


def _doubts(graph: g.Graph, asked: Asked, storm: Storm | EmbeddedStorm, hits: Mapping[Step, int]) -> list[str]:
    """Why this run, though nothing was found, proves little (DESIGN §7)."""
    doubts = disagreements(graph)
    missed = [s.value for s in steps_of(graph, asked.on, asked.mode) if not hits.get(s)]
    if missed:
        doubts.append(f"steps of the path that were never reached: {', '.join(missed)}")
    if storm.kills_worker + storm.kills_broker < asked.crashes:
        doubts.append(f"{storm.kills_worker + storm.kills_broker} kills, {asked.crashes} were asked for")
    if storm.zombies and not storm.refused:
        doubts.append(f"{storm.zombies} zombies were resumed after their successor's commit, and none was refused")
    if isinstance(storm, EmbeddedStorm) and storm.missed and not storm.zombies:
        doubts.append("no zombie had a successor that got on at every sink: none was resumed")
    doubts += [f"not a crash of ours: {failure}" for failure in storm.failures]
    return doubts


def _promises(
    graph: g.Graph, storm: Storm | EmbeddedStorm, hits: Mapping[Step, int], stored: Mapping[str, int]
) -> tuple[Promise, ...]:
    kills = storm.kills_worker + storm.kills_broker
    return promises(graph, Ran(storm.struck, hits, kills, storm.zombies, storm.refused, stored))


def _stored(sinks: Mapping[str, Any]) -> dict[str, int]:
    """Of the sinks that store repeats: how many rows lie before the view."""
    found = {}
    for name, (sink, connection) in sinks.items():
        if sink.contract.through and hasattr(connection, "stored"):
            found[name] = connection.stored()
    return found


def _never_stored_twice(sinks: Mapping[str, Any], stored: Mapping[str, int]) -> list[str]:
    """A view that had nothing to remove was not tried."""
    return [
        f"sink {name}: no row was stored twice, so {sinks[name][0].contract.through} had nothing to remove"
        for name, count in stored.items()
        if count <= len(sinks[name][1].rows())
    ]


def _extra(stored: Mapping[str, int]) -> dict[str, object]:
    return {"stored": dict(stored)} if stored else {}


def _hits(workers: list[Child], broker: BrokerChild | None) -> dict[Step, int]:
    total = dict.fromkeys(Step, 0)
    for child in (*workers, *((broker,) if broker else ())):
        for step, count in child.hits().items():
            total[step] += count
    return total


def _alive(storm: Storm) -> None:
    for slot in storm.slots:
        code = slot.child.exit_code()
        if code is not None:
            raise ProofError(f"{slot.child.name} ended by itself with exit code {code}:\n{slot.child.tail(30)}")


def _is_file(sink: object) -> bool:
    return isinstance(sink, SQLite | DuckDB)


def _sample(app: App) -> Any:
    return app.sample() if callable(app.sample) else app.sample


def _files(inputs: Mapping[str, str]) -> dict[str, tuple[str, Callable[[], Iterator[bytes]]]]:
    found: dict[str, tuple[str, Callable[[], Iterator[bytes]]]] = {}
    for topic, path in inputs.items():
        if not Path(path).is_file():
            raise UsageError(f"--input {topic}={path}: there is no such file.")

        def lines(path: str = path) -> Iterator[bytes]:
            with open(path, "rb") as file:
                yield from file

        found[topic] = (path, lines)
    return found


def _new_files(graph: g.Graph) -> list[str]:
    """The SQLite and DuckDB files that are not there yet, and will be by the run's own table."""
    paths = {os.path.abspath(sink.path) for sink in graph.sinks.values() if isinstance(sink, SQLite | DuckDB)}
    return sorted(path for path in paths if not os.path.exists(path))


def _remove_all(sinks: Mapping[str, Any], new_files: Sequence[str], say: Callable[[str], None]) -> None:
    for _, connection in sinks.values():
        _remove(connection, say)
    for path in new_files:
        if not os.path.exists(path):
            continue
        if not _is_empty(path):
            continue  # it has become somebody's
        for left in (path, path + "-wal", path + "-shm", path + ".wal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)


def _is_empty(path: str) -> bool:
    """A database without a table."""
    with open(path, "rb") as file:
        if file.read(16)[:6] in (b"", b"SQLite"):
            with contextlib.closing(sqlite3.connect(path)) as database:
                return database.execute("SELECT 1 FROM sqlite_schema").fetchone() is None
    from semel.sinks.duckdb_connection import is_empty  # a client library, where it is used only

    return is_empty(path)


def _remove(connection: Any, say: Callable[[str], None]) -> None:
    try:
        connection.drop()
    except Exception as why:
        say(f"the run's own table could not be removed: {why}")
    finally:
        connection.close()
