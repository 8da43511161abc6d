"""The worker's core: one member of the app's group, its tasks, and one transaction per commit interval.

It needs a `ports.Log`, and is told the time; processes and threads are the host's. Everything happens in the calling
thread, in `run_once`: polling (with the group's callbacks), processing, committing, restoring.

The rules, each with the failure it prevents (FAULTS, In the processor):

- Outputs, changelogs and offsets are in one transaction (P3); it carries the offset of every task that took or wrote
  anything in it, unchanged if need be, because that is the fence (P11).
- Restore: first the stable committed offsets, *then* the end of each changelog, read_uncommitted, as the target, then
  read committed records up to it (P1). Partitions being restored are paused, the others go on, and the membership is
  kept (P6).
- The store is written only after its transaction is committed (P2).
- `revoked` commits before the partitions go; `lost` aborts. After an abort, or an outcome that is not Done, all tasks
  are dropped and made anew from what is committed: nothing that was not committed is in memory either.
- Positions that are gone while the app's internal topics hold records stop the start, and so does a state that is gone
  behind positions: never a silent reset. A position in a changelog says whose it is and what histories it had.

Steps: the worker reaches output.before, output.after and fenced.log in each mode, and offsets.before/after where it
commits offsets itself (at-least-once, at-most-once); within a transaction `Log.commit` reaches offsets.* and commit.*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from semel.contract import Mode
from semel.errors import SemelError
from semel.ports import (
    Done,
    Fenced,
    Log,
    NoSteps,
    Outcome,
    Position,
    Records,
    Step,
    Steps,
    Stores,
    TopicPartition,
    Unknown,
    Write,
)
from semel.streams import graph as g
from semel.streams.layout import (
    UNFINISHED,
    Asked,
    Delivered,
    Layout,
    LayoutError,
    command,
    holds_records,
    known_again,
    lay_out,
    leftovers,
    other_topics,
    taken_by_others,
)
from semel.streams.lineage import read_lineage
from semel.streams.restore import Restore, Restoring
from semel.streams.state import DELETE_RETENTION_MS
from semel.streams.task import Task, TaskId, compile_graph, read_metadata

LOOK_MS = 1_000  # how often it looks whether its topics are still the same
STORE_INTERVAL_MS = 1_000  # how much of its changelog a restart reads again, at most, in time
STORE_KEYS_MAX = 50_000  # and in changed keys per task
# Commits that failed in a row: what passes by itself (a rebalance, a broker's restart) has passed after both.
FAILED_COMMITS_MAX = 10
FAILED_COMMITS_MS = 60_000
# After a failed commit nothing is taken for a while: a member that was replaced learns it with its next heartbeat.
HOLD_MS, HOLD_MAX_MS = 50, 1_000


class CommitFailed(SemelError):
    """The log refuses this worker's transactions again and again."""


@dataclass
class Progress:
    """Counts since the start, for people."""

    records: int = 0
    commits: int = 0
    aborts: int = 0
    restored: int = 0
    ready: int = field(default=0)
    restoring: int = field(default=0)


class Worker:
    """One member. `start`, then `run_once` again and again, then `close`. Whatever `run_once` raises ends the worker:
    its transaction is aborted, and the next start goes on from what is committed."""

    def __init__(
        self,
        graph: g.Graph,
        log: Log,
        stores: Stores,
        *,
        mode: Mode = Mode.EXACTLY_ONCE,
        steps: Steps | None = None,
        commit_interval_ms: int = 100,
        prefix: str = "",
        trace: bool = False,
        notice: Callable[[str], None] = lambda text: None,
        delivered: Delivered | None = None,
        asked: Asked | None = None,
        id: str = "",  # unlike that of any worker before, also of those on a log that was put back since
    ) -> None:
        self.progress = Progress()
        self._graph = graph
        self._log = log
        self._stores = stores
        self._mode = mode
        self._steps = steps or NoSteps()
        self._interval_ms = commit_interval_ms
        self._prefix = prefix
        self._trace = trace
        self._notice = notice
        self._delivered = delivered
        self._asked = asked
        self._id = id
        self._histories = 0  # of changelogs, begun by this worker
        self._programs = compile_graph(graph, trace=trace)
        self._home = {topic: sub for sub in graph.subtopologies for topic in sub.sources}
        self._layout: Layout | None = None
        self._writers: dict[str, Write] = {}
        self._retention_ms: dict[str, int] = {}
        self._tasks: dict[TopicPartition, Task] = {}  # by each of its partitions, as the topology names them
        self._restoring: dict[TaskId, Restoring] = {}
        self._owned: dict[TopicPartition, None] = {}
        self._open = False  # a transaction is open (exactly-once), or output is not flushed (the other modes)
        self._now_ms = 0
        self._commit_at_ms = 0
        self._store_at_ms = 0
        self._look_at_ms = 0
        self._gone = 0  # looks in a row at which a topic was not there
        self._failed_commits = 0
        self._failing_since_ms = 0
        self._hold_until_ms = 0
        self._checked_positions = False
        self._ended = False

    # --- the host's side ---

    def start(self, now_ms: int) -> None:
        """Validates and creates topics, joins the group. Raises SemelError when the log and the program do not fit."""
        self._now_ms = now_ms
        self._layout = lay_out(self._graph, self._log, prefix=self._prefix, trace=self._trace)
        topics = sorted(self._home)
        self._log.join([self._prefix + topic for topic in topics], self)
        if messages := leftovers(self._graph, self._log, self._layout, self._delivered):
            raise LayoutError("\n".join(messages))
        if self._asked is not None:
            for message in taken_by_others(self._graph, self._log, self._layout, self._asked):
                raise LayoutError(message)
        self._commit_at_ms = now_ms + self._interval_ms

    def run_once(self, now_ms: int, timeout_s: float = 0.1) -> int:
        """One round: some restoring, one poll, processing, a commit if it is due. Returns the records taken. It waits
        at most `timeout_s` (and for what the log itself waits for)."""
        assert not self._ended, "this worker has ended"
        self._now_ms = now_ms
        try:
            if self._restoring:
                busy = any(restoring.states for restoring in self._restoring.values())
                self._restore_some()
                timeout_s = 0.0 if busy else min(timeout_s, max(0.0, (self._hold_until_ms - now_ms) / 1000))
            elif self._touched():
                timeout_s = min(timeout_s, max(0.0, (self._commit_at_ms - now_ms) / 1000))
            taken = 0
            polled = self._log.poll(timeout_s)
            lives = self.progress.aborts
            for records in polled:
                taken += self._take(records)
                if self.progress.aborts != lives:  # started over: the rest is read again from the committed positions
                    break
            self.progress.records += taken
            if now_ms >= self._look_at_ms:
                self._look_again()
            if now_ms >= self._commit_at_ms:
                if self._touched():
                    self._commit()
                self._commit_at_ms = now_ms + self._interval_ms
            return taken
        except BaseException:
            self._give_up()
            raise

    def close(self, now_ms: int) -> None:
        """Commits what was processed and drops the tasks. The log stays the host's, to be closed."""
        if self._ended:
            return
        self._now_ms = now_ms
        try:
            self._commit(store=True)
        except BaseException:
            self._give_up()
            raise
        self._ended = True
        self._drop_all()

    @property
    def assigned_partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(self._owned)

    @property
    def running(self) -> bool:
        """Whether it has partitions and none is being restored."""
        return bool(self._owned) and not self._restoring

    # --- the group's callbacks (ports.Listener), within poll ---

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._owned.update(dict.fromkeys(partitions))
        if partitions:
            self._steps.reached(Step.TASKS_BEFORE)
            self._make_tasks(partitions)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            self._owned.pop(at, None)  # a commit that fails starts over with what stays
        self._commit(store=True)
        self._drop(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._abort()
        for at in partitions:
            self._owned.pop(at, None)
        self._start_over()

    # --- processing ---

    def _take(self, records: Records) -> int:
        assert self._layout is not None
        at = self._layout.bare(records.source)
        task = self._tasks.get(at)
        if task is None:  # paused while it is restored: it is read again from its position
            return 0
        if self._mode is Mode.AT_MOST_ONCE and not self._commit_first(task, records):
            return 0
        if not self._open:
            self._open = True
            if self._mode is Mode.EXACTLY_ONCE:
                self._log.begin()
            self._steps.reached(Step.OUTPUT_BEFORE)
        task.process(records._replace(source=at))
        return len(records.offsets)

    def _commit_first(self, task: Task, records: Records) -> bool:
        """At most once: the offset is committed before anything is done with the records."""
        at = records.source
        position = task.positions()[TopicPartition(at.topic[len(self._prefix) :], at.partition)]
        return self._commit_offsets({at: Position(records.next_offset, position.metadata)})

    def _look_again(self) -> None:
        """Stops when a topic that it reads was deleted or made anew: its positions count in another one (S16)."""
        assert self._layout is not None
        self._look_at_ms = self._now_ms + LOOK_MS
        names = [*self._home, *(fold.topic for fold in self._graph.folds())]
        there = self._log.topic_ids([self._prefix + name for name in names])
        if there is None:
            self._gone = 0
            return
        # A broker that has just started may not know all of its topics yet.
        self._gone = self._gone + 1 if any(self._prefix + name not in there for name in names) else 0
        if found := other_topics(self._graph, self._log, self._layout, names, there, gone=self._gone > 3):
            raise LayoutError(found)

    # --- the commit ---

    def _ready(self) -> list[Task]:
        return list({id(task): task for task in self._tasks.values()}.values())

    def _touched(self) -> bool:
        return any(task.touched for task in self._tasks.values())

    def _commit(self, *, store: bool = False) -> None:
        """Ends the transaction with everything processed so far. Afterwards tasks go on, or were made anew."""
        tasks = self._ready()
        touched = [task for task in tasks if task.touched]
        if not touched:
            return
        assert self._layout is not None
        if not self._open and self._mode is Mode.EXACTLY_ONCE:
            self._log.begin()
        self._open = True
        for task in touched:
            task.flush()
        positions = {self._layout.at(*at): position for task in touched for at, position in task.positions().items()}
        due = store or self._now_ms >= self._store_at_ms or any(_unstored(t) > STORE_KEYS_MAX for t in tasks)
        keep = [task for task in tasks if _unstored(task)] if due else []
        # By each task's first commit, and again by those before its store is written: Kafka forgets positions.
        for task in {id(task): task for task in (*keep, *(t for t in touched if not t.told))}.values():
            positions |= {self._changelog(task, name): s.lineage.position() for name, s in task.states.items()}
        # Asked before the commit: that the commit then succeeds proves that nobody else had written below these ends.
        ends = self._log.ends([self._changelog(task, name) for task in keep for name in task.states]) if keep else {}
        if self._mode is Mode.EXACTLY_ONCE:
            self._steps.reached(Step.OUTPUT_AFTER)
            done = self._judge(self._log.commit(positions))
        else:
            self._log.flush()
            self._steps.reached(Step.OUTPUT_AFTER)
            done = self._commit_offsets(positions)
        if not done:
            return
        self._open = False
        self.progress.commits += 1
        for task in touched:
            task.touched, task.told = False, True
        tops = self._log.ends(list(ends)) if keep else {}
        for task in keep:
            for name, state in task.states.items():
                at = self._changelog(task, name)
                state.committed(ends[at], tops[at], self._now_ms)
        if due:
            self._store_at_ms = self._now_ms + STORE_INTERVAL_MS

    def _commit_offsets(self, positions: Mapping[TopicPartition, Position]) -> bool:
        self._steps.reached(Step.OFFSETS_BEFORE)
        outcome = self._log.commit_offsets(positions)
        if isinstance(outcome, Done):
            self._steps.reached(Step.OFFSETS_AFTER)
        return self._judge(outcome)

    def _judge(self, outcome: Outcome) -> bool:
        """Whether it is done. If not, nothing of it may live on: start over from what is committed."""
        if isinstance(outcome, Done):
            self._failed_commits = 0
            return True
        self._open = False
        self.progress.aborts += 1
        if self._failed_commits == 0:
            self._failing_since_ms = self._now_ms
        self._failed_commits += 1
        if isinstance(outcome, Fenced):
            self._steps.reached(Step.LOG_FENCED)
        word = "fenced" if isinstance(outcome, Fenced) else "unknown" if isinstance(outcome, Unknown) else "not done"
        failing_ms = self._now_ms - self._failing_since_ms
        if self._failed_commits >= FAILED_COMMITS_MAX and failing_ms >= FAILED_COMMITS_MS:
            raise CommitFailed(
                f"{self._log.name}: {self._failed_commits} commits in a row, over {failing_ms // 1000} s, did not "
                f"succeed; the last was {word}: {outcome.reason}. Nothing of them "
                "is lost: the app goes on from its committed positions when it is started again."
            )
        self._notice(f"commit {word}: {outcome.reason}; going back to the committed positions")
        self._hold_until_ms = self._now_ms + min(HOLD_MAX_MS, HOLD_MS << min(self._failed_commits, 10))
        self._start_over()
        return False

    def _abort(self) -> None:
        if self._open:
            self._open = False
            self.progress.aborts += 1
            if self._mode is Mode.EXACTLY_ONCE:
                self._log.abort()

    def _give_up(self) -> None:
        """The worker ends with an error: nothing half-done is committed."""
        self._ended = True
        try:
            self._abort()
        except Exception as why:  # the error that brought us here matters more; the log ends the transaction itself
            self._notice(f"the abort failed too: {why}")
        self._drop_all()

    # --- tasks ---

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        assert self._layout is not None
        for at in partitions:
            bare = self._layout.bare(at)
            task = self._tasks.pop(bare, None)
            if task is not None and task not in self._tasks.values():
                task.close()
            id = TaskId(self._home[bare.topic].name, bare.partition)
            restoring = self._restoring.get(id)
            if restoring is not None and TopicPartition(*bare) in restoring.task.sources:
                self._restoring.pop(id).task.close()
        self._count()

    def _drop_all(self) -> None:
        for task in self._ready():
            task.close()
        for restoring in self._restoring.values():
            restoring.task.close()
        self._tasks.clear()
        self._restoring.clear()
        self._count()

    def _start_over(self) -> None:
        """All tasks anew, from what is committed: after an abort no object of its transaction may live on."""
        self._drop_all()
        if self._owned:
            self._make_tasks(list(self._owned))

    def _make_tasks(self, partitions: Sequence[TopicPartition]) -> None:
        """Positions first, then the targets of the restore, then the tasks: in this order (FAULTS P1)."""
        assert self._layout is not None
        if any(at.partition >= self._layout.partitions[self._layout.bare(at).topic] for at in partitions):
            self._layout = lay_out(self._graph, self._log, prefix=self._prefix, trace=self._trace)
        else:
            self._layout = known_again(self._log, self._layout)
        self._log.pause(partitions)
        by_task: dict[TaskId, list[TopicPartition]] = {}
        for at in partitions:
            bare = self._layout.bare(at)
            by_task.setdefault(TaskId(self._home[bare.topic].name, bare.partition), []).append(at)
        for id, sources in by_task.items():
            self._complete(id, sources)
        changelogs = [
            self._layout.at(fold.topic, id.partition) for id in by_task for fold in self._programs[id.subtopology].folds
        ]
        asked = [*changelogs, *partitions]
        committed = self._log.committed(asked)
        self._positions_are_there(by_task, {at: committed.get(at) for at in partitions})
        ends = self._log.ends(asked)
        starts = self._log.starts(asked)
        for id, sources in by_task.items():
            self._make_task(id, sources, committed, starts, ends)
        self._count()

    def _complete(self, id: TaskId, sources: Sequence[TopicPartition]) -> None:
        assert self._layout is not None
        program = self._programs[id.subtopology]
        if not program.folds:
            return
        wanted = {
            self._layout.at(t, id.partition) for t in program.sub.sources if id.partition < self._layout.partitions[t]
        }
        if absent := wanted.difference(sources):
            raise LayoutError(
                f"{self._log.name}: partition {id.partition} of {', '.join(sorted(at.topic for at in absent))} was not "
                f"assigned together with {', '.join(at.topic for at in sources)}, and they meet in one state. The "
                "group must use the range assignor, and all its members must read the same topics: is an older version "
                "of the app still running?"
            )
        assert id not in self._restoring and all(self._layout.bare(at) not in self._tasks for at in sources), id

    def _positions_are_there(
        self, by_task: Mapping[TaskId, Sequence[TopicPartition]], committed: Mapping[TopicPartition, Position | None]
    ) -> None:
        """Stops when positions are missing that must have been there: the internal topics hold what came of them."""
        assert self._layout is not None
        for id, sources in by_task.items():
            if all(committed.get(at) is not None for at in sources):
                continue
            for fold in self._programs[id.subtopology].folds:
                at = self._layout.at(fold.topic, id.partition)
                if holds_records(self._log, at):
                    raise self._positions_gone(at, [s for s in sources if committed.get(s) is None])
        if self._checked_positions or any(position is not None for position in committed.values()):
            self._checked_positions = True
            return
        everything = [at for topic in self._home for at in self._layout.all(topic)]
        for name, topic in self._graph.internal.items():
            if topic.kind is g.InternalKind.DEAD_LETTER:
                continue
            for at in self._layout.all(name):
                # Asked in this order: another member that has just made its first commit has made its positions, too.
                if holds_records(self._log, at) and not any(self._log.committed(everything).values()):
                    raise self._positions_gone(at, everything)
        self._checked_positions = True

    def _positions_gone(self, at: TopicPartition, missing: Sequence[TopicPartition]) -> SemelError:
        first = missing[0]
        return LayoutError(
            f"{self._log.name}: app {self._graph.app} has no committed position in {first.topic} partition "
            f"{first.partition}, but its internal topic {at.topic} holds records of earlier runs (partition "
            f"{at.partition}). Kafka forgets the positions of a group without members after 7 days. Starting from the "
            f"beginning would count everything twice. Set the group's offsets to where it was, or start anew without "
            f"the old state: {command('reset', self._graph, self._log.name)}."
        )

    def _make_task(
        self,
        id: TaskId,
        sources: Sequence[TopicPartition],
        committed: Mapping[TopicPartition, Position | None],
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        assert self._layout is not None
        positions: dict[str, Position] = {}
        fresh = False
        for at in sources:
            position = committed.get(at)
            if position is None:
                fresh = True
                position = Position(starts[at])
            elif position == UNFINISHED:
                raise LayoutError(
                    f"{self._log.name}: a reset of app {self._graph.app} has begun and not finished, so its state and "
                    f"its positions may not fit. Run it again: {command('reset', self._graph, self._log.name)}."
                )
            elif _of_another_topic(position, self._layout.ids[self._layout.bare(at).topic]):
                raise LayoutError(
                    f"{self._log.name}: app {self._graph.app} stands at offset {position.offset} of {at.topic} "
                    f"partition {at.partition}, but of another topic of this name: it was deleted and made anew since. "
                    "Decide where to go on and set the group's offsets, or start anew: "
                    f"{command('reset', self._graph, self._log.name)}."
                )
            elif not starts[at] <= position.offset <= ends[at]:
                raise LayoutError(
                    f"{self._log.name}: app {self._graph.app} stands at offset {position.offset} of {at.topic} "
                    f"partition {at.partition}, which holds {starts[at]} to {ends[at]}: records were deleted unread, "
                    "the topic was made anew, or the log was restored from a backup. Decide where to go on and set "
                    f"the group's offsets, or start anew: {command('reset', self._graph, self._log.name)}."
                )
            positions[at.topic[len(self._prefix) :]] = position
        program = self._programs[id.subtopology]
        task = Task(
            self._graph, program, id.partition, positions, self._writer, self._stores, self._log.name, self._layout.ids
        )
        # The first commit writes down where it began: from then on a missing position is a loss.
        task.touched = fresh
        restores = []
        for fold in program.folds:
            at = self._layout.at(fold.topic, id.partition)
            self._histories += 1
            fit = task.states[fold.name].take_over(
                read_lineage(committed.get(at)),
                f"{self._id}.{self._histories}",
                topic_id=self._layout.ids[fold.topic],
                start=starts[at],
                end=ends[at],
                now_ms=self._now_ms,
                delete_retention_ms=self._delete_retention_ms(at.topic),
            )
            if fit.rebuild and fit.rebuild != "it is new":
                self._notice(f"state {fold.name} partition {id.partition} is rebuilt from its changelog: {fit.rebuild}")
            if fit.offset < ends[at]:
                records = iter(self._log.read(at, fit.offset, ends[at]))
                restores.append(Restore(fold.name, at, fit.offset, ends[at], records))
        for at in sources:
            self._log.seek(at, positions[at.topic[len(self._prefix) :]].offset)
        if restores or self._now_ms < self._hold_until_ms:
            self._restoring[id] = Restoring(task, restores)
        else:
            self._go(task)

    def _delete_retention_ms(self, topic: str) -> int:
        found = self._retention_ms.get(topic)
        if found is None:
            told = self._log.config(topic).get("delete.retention.ms", "")
            found = self._retention_ms[topic] = int(told) if told.isdigit() else DELETE_RETENTION_MS
        return found

    def _go(self, task: Task) -> None:
        assert self._layout is not None
        for at in task.sources:
            self._tasks[at] = task
        self._log.resume([self._layout.at(*at) for at in task.sources])

    def _restore_some(self) -> None:
        """A slice of each restore, so that polling keeps the membership alive meanwhile."""
        assert self._layout is not None
        for id, restoring in list(self._restoring.items()):
            for restore in list(restoring.states):
                before = restore.restored
                done = restore.slice(restoring.task, self._now_ms, self._notice)
                self.progress.restored += restore.restored - before
                if done:
                    restoring.states.remove(restore)
            if not restoring.states and self._now_ms >= self._hold_until_ms:
                del self._restoring[id]
                for at, position in restoring.task.positions().items():
                    self._log.seek(self._layout.at(*at), position.offset)  # whatever was fetched before the pause
                self._go(restoring.task)
        self._count()

    # --- small things ---

    def _changelog(self, task: Task, state: str) -> TopicPartition:
        assert self._layout is not None
        name = g.internal_name(self._graph.app, state, g.InternalKind.CHANGELOG)
        return self._layout.at(name, task.id.partition)

    def _writer(self, topic: str) -> Write:
        found = self._writers.get(topic)
        if found is None:
            found = self._writers[topic] = self._log.writer(self._prefix + topic)
        return found

    def _count(self) -> None:
        self.progress.ready = len(self._ready())
        self.progress.restoring = len(self._restoring)


def _of_another_topic(position: Position, topic_id: str) -> bool:
    """Not where the log tells no ids, nor of a position that another tool has set."""
    of = read_metadata(position.metadata).topic
    return of != topic_id and bool(of and topic_id)


def _unstored(task: Task) -> int:
    return sum(state.unstored for state in task.states.values())
