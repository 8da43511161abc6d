"""One mode's run: a broker, two workers and a feeder, and the schedule happening to them.

The input is fed piece by piece, so that what is killed is killed at the same input position in every mode. Everything
that dies is started again at once; nobody tells it where it was. At the end the workers are left alone until
everything fed has been delivered, and only then are the outputs read.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer
from examples.demo.outputs import Watch
from examples.demo.schedule import Event, Kind, step_in
from examples.demo.screen import Progress, Screen

from semel.contract import Mode
from semel.host.steps import arm
from semel.ports import Step
from semel.proof.processes import BrokerChild, Child, semel_command

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "examples" / "flights.py"
TOPIC = "flights"
PARTITIONS = 4
SESSION_MS = 2_000

# How long an armed process may take to reach its step, before it is killed wherever it is.
ARMED_S = 2.0
READY_S = 6.0
RESTARTS_MAX = 10  # of workers that give up because the broker is away just as they start
TICK_S = 0.02


class DemoFailed(Exception):
    """The demo could not be carried out; says what, and where the logs are."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mode's run keeps its things."""

    folder: Path
    dsn: str  # with the mode's own schema in it
    sqlite: Path


class Run:
    def __init__(
        self, mode: Mode, place: Place, stream: Sequence[tuple[bytes, bytes, int]], screen: Screen, workers: int
    ) -> None:
        self.mode = mode
        self.place = place
        self.stream = stream
        self.screen = screen
        self.progress: Progress = screen.runs[mode]
        # Topics have four partitions by default, so that a topic made on first use has as many as the input.
        self.broker = BrokerChild(place.folder / "broker", [f"num.partitions={PARTITIONS}"])
        self.workers = [self._worker(slot) for slot in range(workers)]
        self.watch: Watch | None = None
        self.producer: Producer | None = None
        self.acknowledged = 0
        self.refused_writes: list[str] = []
        self.gave_up = 0

    def _worker(self, slot: int) -> Child:
        env = {
            "FLIGHTS_POSTGRES": self.place.dsn,
            "FLIGHTS_SQLITE": str(self.place.sqlite),
        }
        return Child(f"worker-{slot}", self.place.folder, [], env)

    # --- the whole run ---

    def go(self, events: Sequence[Event]) -> Watch:
        """Feeds everything through the schedule; returns when all of it has been delivered."""
        self.place.folder.mkdir(parents=True, exist_ok=True)
        self.progress.doing = "starting"
        self._start_broker()
        self.watch = Watch(self.broker.address, TOPIC, PARTITIONS)
        self.watch.create()
        self.producer = self._feeder()
        for slot, worker in enumerate(self.workers):
            worker.command = self._command(slot)
            worker.start()
        for worker in self.workers:
            self._until(functools.partial(_running, worker), 30, f"{worker.name} runs")
        self.progress.began = time.monotonic()
        for n, event in enumerate(events):
            self._feed(event.at)
            following = events[n + 1].at if n + 1 < len(events) else len(self.stream)
            self._happen(event, following)
        self._feed(len(self.stream))
        self.progress.doing = "delivering the rest"
        self.producer.flush(120)
        if self.acknowledged != len(self.stream) or self.refused_writes:
            raise DemoFailed(f"{self.mode}: {self.acknowledged:,} of {len(self.stream):,} records were acknowledged")
        self._until(self._all_done, 120, "everything fed is processed")
        self._until(self._all_delivered, 120, "everything is delivered")
        self._say("everything is delivered", "")
        return self.watch

    def stop(self) -> None:
        """Ends what this run started; workers commit and leave."""
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
        for worker in self.workers:
            worker.leave(20)
        self.progress.ended = self.progress.ended or time.monotonic()
        self.broker.leave(20)

    def kill(self) -> None:
        """Ends what this run started, at once."""
        for child in (*self.workers, self.broker):
            child.kill()

    # --- what happens ---

    def _happen(self, event: Event, following: int) -> None:
        match event.kind:
            case Kind.WORKER:
                self._kill_worker(event, following)
            case Kind.BROKER:
                self._kill_broker(event, following)
            case Kind.STOP:
                self._stop_worker(event, following)
            case Kind.RESUME:
                self._resume(event)

    def _kill_worker(self, event: Event, following: int) -> None:
        worker = self.workers[event.slot]
        self.progress.doing = f"killing worker {event.slot + 1}"
        self._wait(lambda: _running(worker), READY_S)
        self._arm(worker, event, signal.SIGKILL)
        self._feed(following)
        reached = self._strike(worker, event, signal.SIGKILL, lambda: not worker.alive())
        worker.kill()
        self.progress.worker_kills += 1
        worker.start()
        self._say(f"worker {event.slot + 1} killed {reached}", "red")

    def _kill_broker(self, event: Event, following: int) -> None:
        self.progress.doing = "killing the broker"
        self._arm(self.broker, event, signal.SIGKILL)
        self._feed(following)
        reached = self._strike(self.broker, event, signal.SIGKILL, lambda: not self.broker.alive())
        self.broker.kill()
        self.progress.broker_kills += 1
        began = time.monotonic()
        self._start_broker()
        self._say(f"broker killed {reached}, serving again after {time.monotonic() - began:.1f} s", "bold red")

    def _stop_worker(self, event: Event, following: int) -> None:
        worker = self.workers[event.slot]
        self.progress.doing = f"stopping worker {event.slot + 1}"
        self._wait(lambda: _running(worker), READY_S)
        self._arm(worker, event, signal.SIGSTOP)
        self._feed(following)
        reached = self._strike(worker, event, signal.SIGSTOP, worker.stopped)
        self._say(f"worker {event.slot + 1} stopped {reached}: its session runs out", "cyan")

    def _resume(self, event: Event) -> None:
        """Not before its successor has committed everything that was fed, the zombie's share too."""
        self.progress.doing = f"worker {2 - event.slot} takes over"
        self._until(self._all_done, 60, f"worker {2 - event.slot} takes over")
        self.workers[event.slot].signal(signal.SIGCONT)
        self.progress.zombies += 1
        self._say(f"worker {event.slot + 1} let loose again: a zombie, its successor has committed", "cyan")

    def _strike(self, child: Child, event: Event, what: signal.Signals, struck: Callable[[], bool]) -> str:
        """Returns when it has happened: at the armed step, or after a while wherever the process is."""
        step = step_in(self.mode, event)
        if step is not None:
            if self._wait(struck, ARMED_S):
                return f"at {step}"
            arm(child.armed, step, 0)  # it had no reason to come by
        else:
            self._wait(lambda: self._done() > event.at, ARMED_S)  # it works on the piece
        word = "at work" if child is self.broker or _running(child) else "while it starts"
        child.signal(what)
        self._wait(struck, 10)
        return word

    def _arm(self, child: Child, event: Event, what: signal.Signals) -> None:
        step = step_in(self.mode, event)
        if step is not None:
            arm(child.armed, step, what)

    # --- the processes ---

    def _start_broker(self) -> None:
        self.broker.start()
        if not self.broker.wait_ready():
            raise DemoFailed(f"the broker did not start:\n{self.broker.tail()}")

    def _command(self, slot: int) -> list[str]:
        return semel_command(
            "run", str(APP), "--on", f"kafka://{self.broker.address}", "--mode", self.mode,
            "--state", str(self.place.folder / f"state-{slot}"), "--session-timeout-ms", str(SESSION_MS),
        )  # fmt: skip

    def _revive(self) -> None:
        """Starts again a worker that gave up by itself: the broker was away just as it started. More often than a few
        times is a failure of the demo."""
        for worker in self.workers:
            code = worker.exit_code()
            if code is None or code < 0:
                continue
            self.gave_up += 1
            if self.gave_up > RESTARTS_MAX or "does not answer" not in worker.tail(3):
                raise DemoFailed(f"{self.mode}: {worker.name} ended with {code}:\n{worker.tail()}")
            worker.start()

    # --- feeding and waiting ---

    def _feeder(self) -> Producer:
        return Producer(
            {"bootstrap.servers": self.broker.address, "enable.idempotence": True, "linger.ms": 5}
            | {"partitioner": "murmur2_random", "message.timeout.ms": 300_000, "log_level": 0}
            | {"queue.buffering.max.messages": 500_000, "reconnect.backoff.max.ms": 500}
        )

    def _feed(self, upto: int) -> None:
        assert self.producer is not None
        for key, value, timestamp in self.stream[self.progress.fed : upto]:
            self.producer.produce(TOPIC, value, key, timestamp=timestamp, on_delivery=self._answered)
        self.progress.fed = max(self.progress.fed, upto)
        self.producer.poll(0)

    def _answered(self, error: object, _: object) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.refused_writes.append(str(error))

    def _done(self) -> int:
        """How far the group has committed in the input; the last known value while nobody can say."""
        assert self.watch is not None and self.producer is not None
        self.producer.poll(0)
        self.progress.done = max(self.progress.done, self.watch.committed(TOPIC))
        commit = Step.COMMIT_AFTER if self.mode is Mode.EXACTLY_ONCE else Step.OFFSETS_AFTER
        self.progress.transactions = sum(worker.hit(commit) for worker in self.workers)
        self.progress.refused = sum(
            worker.hit(step) for worker in self.workers for step in (Step.LOG_FENCED, Step.SINK_FENCED)
        )
        self.screen.moved(self.progress)
        return self.progress.done

    def _all_done(self) -> bool:
        assert self.watch is not None
        return self._done() >= self.progress.fed

    def _all_delivered(self) -> bool:
        assert self.watch is not None
        self._done()
        return self.watch.done(self.place.dsn, self.place.sqlite)

    def _wait(self, until: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                return False
            self._revive()
            self._done()
            time.sleep(TICK_S)
        return True

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._revive()
            if time.monotonic() > deadline:
                tails = "\n".join(f"{child.name}:\n{child.tail(8)}" for child in (*self.workers, self.broker))
                raise DemoFailed(
                    f"{self.mode}: waited {seconds:.0f} s until {what}; logs in {self.place.folder}\n{tails}"
                )
            time.sleep(TICK_S)

    def _say(self, what: str, style: str) -> None:
        self.screen.say(self.progress, what, style)


def _running(worker: Child) -> bool:
    """Whether this incarnation has said that it runs: it has its partitions."""
    text = worker.output.read_text(errors="replace") if worker.output.exists() else ""
    return "\nrunning " in text.rpartition("--- incarnation")[2]
