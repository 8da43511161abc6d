"""`semel run` as real processes: killed, stopped, asked to leave; whatever happens, every order counts once."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semel.host.embedded import EmbeddedLog
from semel.host.engine import Engine
from semel.host.free_port import free_port
from semel.host.steps import read_counters
from semel.host.worker import QUIET_S, Standing
from semel.ports import Log, NewTopic, Step
from tests.host.logs import Logs, broker_logs, cluster_logs, parts

APP = Path(__file__).parent / "apps" / "counts.py"
WAIT_S = 60.0
CUSTOMERS = 20


class Job:
    """The app on one log, and what its outputs must be."""

    def __init__(self, folder: Path, logs: Logs, url: str) -> None:
        self.folder, self.logs, self.url = folder, logs, url
        self.database = folder / "totals.db"
        self.fed = 0
        self.processes: list[subprocess.Popen[str]] = []
        self.errors: list[Path] = []  # what each wrote to stderr
        self.look = logs.open("counts")
        self.look.create([NewTopic("orders", 4)])
        self.write = self.look.writer("orders")

    def feed(self, count: int) -> None:
        for n in range(self.fed, self.fed + count):
            order = json.dumps({"customer": f"c{n % CUSTOMERS}", "amount": 1}).encode()
            self.write(-1, b"%d" % n, order, 1_700_000_000_000 + n, None)
        self.look.flush()
        self.fed += count

    def feed_again(self, log: Log) -> None:
        """Through another session than the one that it was made with."""
        self.look, self.write = log, log.writer("orders")
        self.feed(500)

    def start(self, *words: str, state: str = "state", **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "semel.cli.main", "run", str(APP), "--on", self.url]
        command += ["--state", str(self.folder / state), *words]
        environ = {**os.environ, "COUNTS_DB": str(self.database), "PYTHONFAULTHANDLER": "1", **env}
        self.errors.append(self.folder / f"{len(self.processes)}.err")
        with self.errors[-1].open("w") as err:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=environ)
        self.processes.append(process)
        return process

    def committed(self) -> int:
        return sum(p.offset for p in self.look.committed(parts("orders", 4)).values() if p)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.said()
            for process in self.processes:
                assert process.poll() in (None, -signal.SIGKILL, 0), self.said()
            time.sleep(0.02)

    def said(self) -> str:
        for process in self.processes:
            process.kill()
        told = [process.communicate()[0] for process in self.processes]
        return "\n".join(out + err.read_text() for out, err in zip(told, self.errors))

    def outputs_are_right(self, look: Log | None = None) -> None:
        """Each customer's totals count 1, 2, 3 … without a gap or a repeat, up to what was fed; SQLite has the last."""
        look = look or self.look
        last: dict[str, int] = {}
        for at, end in look.ends(parts("totals", 4)).items():
            for records in look.read(at, 0, end):
                for value in records.values:
                    total = json.loads(value or b"")
                    assert total["total"] == last.get(total["customer"], 0) + 1
                    last[total["customer"]] = total["total"]
        expected = {f"c{c}": len(range(c, self.fed, CUSTOMERS)) for c in range(CUSTOMERS)}
        assert last == expected
        assert self.rows() == expected

    def rows(self) -> dict[str, int]:
        with sqlite3.connect(self.database) as database:
            try:
                return dict(database.execute("select customer, total from totals").fetchall())
            except sqlite3.OperationalError:
                return {}  # not there yet

    def delivered(self) -> bool:
        return sum(self.rows().values()) == self.fed

    def leave(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Asks it to leave; exit code, standard output and error."""
        process.send_signal(signal.SIGTERM)
        return self.ended(process)

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        try:
            out, _ = process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # its threads' stacks go to stderr
            process.communicate()
            raise AssertionError(self.said()) from None
        return process.returncode, out, self.errors[self.processes.index(process)].read_text()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """On `semel broker`."""
    logs = cluster_logs(tmp_path)
    made = Job(tmp_path, logs, logs.open().name)
    yield made
    made.close()
    logs.close()


def test_killed_workers_count_every_order_once(job: Job) -> None:
    """kill -9 in the middle of the work, again and again; the next start takes over under the same identity, at once:
    the time from the kill to the next commit is far below the session timeout that others would have to wait for."""
    for _ in range(4):
        job.feed(2_000)
        before = job.committed()
        process = job.start("--session-timeout-ms", "20000")
        job.until(lambda before=before: job.committed() > before)  # type: ignore[misc]
        process.kill()
        process.wait()
    killed = time.monotonic()
    job.feed(100)
    before = job.committed()
    process = job.start("--session-timeout-ms", "20000")
    job.until(lambda: job.committed() > before)
    assert time.monotonic() - killed < 10
    job.until(job.delivered)
    code, out, _ = job.leave(process)
    assert (code, out) == (0, f"running counts on {job.url}, exactly-once, 4 partitions\n")
    job.outputs_are_right()


def test_sigterm_commits_and_leaves(job: Job) -> None:
    """With a commit interval of a minute nothing is committed until the signal; then everything taken is."""
    job.feed(500)
    process = job.start(COUNTS_INTERVAL_MS="60000", SEMEL_STEPS=str(job.folder / "steps"))
    job.until(lambda: read_counters(job.folder / "steps")[Step.OUTPUT_BEFORE] > 0)
    job.until(lambda: job.look.ends(parts("totals", 4)) is not None)
    code, _, err = job.leave(process)
    said = re.fullmatch(r"left counts: (\d+) records processed, 1 commit\n", err)  # all 500, if it had taken them
    assert code == 0 and said and 0 < int(said[1]) == job.committed() <= 500, err
    assert read_counters(job.folder / "steps")[Step.COMMIT_AFTER] > 0
    again = job.start()
    job.until(job.delivered)
    assert job.leave(again)[0] == 0
    job.outputs_are_right()


def test_a_parent_starts_killed_workers_again(job: Job) -> None:
    """Two workers under one parent; each is killed once; the parent replaces them, and ends with 0 when asked.

    The test's own story: it looked for both workers' names at the end, when one of them may have had no time to say
    it, and failed CI."""
    parent = job.start("--workers", "2", "--session-timeout-ms", "2000")
    job.feed(2_000)
    assert parent.stdout is not None
    told = ""
    while not ("worker 1 of 2" in told and "worker 2 of 2" in told):
        line = parent.stdout.readline()
        assert line, told + job.said()
        told += line
    job.until(lambda: job.committed() >= 500)
    killed: set[int] = set()
    for _ in range(2):
        job.until(lambda: len(children(parent.pid) - killed) == 2)
        victim = min(children(parent.pid) - killed)
        killed.add(victim)
        os.kill(victim, signal.SIGKILL)
        job.feed(1_000)
    job.until(job.delivered)
    code, _, err = job.leave(parent)
    assert code == 0, err
    assert err.count("was ended by SIGKILL; starting it again") == 2
    job.outputs_are_right()


def test_workers_die_with_their_parent(job: Job) -> None:
    parent = job.start("--workers", "2")
    job.until(lambda: len(children(parent.pid)) == 2)
    orphans = children(parent.pid)
    parent.kill()
    parent.wait()
    job.until(lambda: not any(map(alive, orphans)))


@pytest.mark.parametrize("step", [Step.OUTPUT_AFTER, pytest.param(Step.COMMIT_BEFORE, marks=pytest.mark.long)])
def test_a_stopped_worker_is_fenced_when_it_comes_back(job: Job, step: Step) -> None:
    """SIGSTOP in the middle of a transaction; the other worker takes the partitions over and commits; SIGCONT: what the
    zombie then tries to commit is refused, it joins anew, and nothing counts twice."""
    job.feed(1_000)
    fast = ("--session-timeout-ms", "1500")
    zombie = job.start(*fast, state="a", SEMEL_STOP=f"{step}:2", SEMEL_STEPS=str(job.folder / "a.steps"))
    job.until(lambda: stopped(zombie.pid))
    other = job.start(*fast, state="b")
    job.feed(1_000)
    job.until(lambda: job.committed() >= job.fed)
    zombie.send_signal(signal.SIGCONT)
    # Refused, or (its connection was lost over the pause) not known: then it goes back to what is committed as well.
    refused = job.folder / "a.steps"
    job.until(lambda: read_counters(refused)[Step.LOG_FENCED] > 0 or "commit unknown" in job.errors[0].read_text())
    job.feed(1_000)
    job.until(job.delivered)
    assert job.leave(zombie)[0] == 0
    assert job.leave(other)[0] == 0
    job.outputs_are_right()


@pytest.mark.parametrize("step", [Step.OFFSETS_BEFORE, Step.OFFSETS_AFTER, Step.COMMIT_AFTER, Step.SINK_BEFORE])
def test_killed_at_a_step(job: Job, step: Step) -> None:
    job.feed(1_000)
    process = job.start(SEMEL_KILL=f"{step}:2")
    job.until(lambda: process.poll() is not None)
    assert process.returncode == -signal.SIGKILL
    again = job.start()
    job.until(job.delivered)
    assert job.leave(again)[0] == 0
    job.outputs_are_right()


@pytest.mark.long
def test_a_commit_interval_longer_than_the_transaction_timeout(job: Job) -> None:
    """The transaction's own timeout grows with it: nothing is aborted half-way, again and again."""
    job.feed(200)
    process = job.start(COUNTS_INTERVAL_MS="12000")
    job.until(lambda: job.committed() >= job.fed)
    code, _, err = job.leave(process)
    assert (code, err.count("\n")) == (0, 1) and err.startswith("left counts: ")


@pytest.mark.parametrize("mode", ["at-least-once", "at-most-once"])
def test_the_other_modes_are_right_when_nothing_happens(job: Job, mode: str) -> None:
    job.feed(1_000)
    process = job.start("--mode", mode)
    job.until(job.delivered)
    code, out, err = job.leave(process)
    assert (code, out) == (0, f"running counts on {job.url}, {mode}, 4 partitions\n")
    assert re.fullmatch(r"left counts: \d,\d{3} records processed, [1-9]\d* commits?\n", err), err
    job.outputs_are_right()


def test_at_least_once_loses_nothing_when_killed(job: Job) -> None:
    """Killed between output and positions: what was written is written again."""
    job.feed(1_000)
    process = job.start("--mode", "at-least-once", SEMEL_KILL="offsets.before:2")
    job.until(lambda: process.poll() is not None)
    again = job.start("--mode", "at-least-once")
    job.until(lambda: sum(job.rows().values()) > job.fed and job.committed() >= job.fed)
    assert job.leave(again)[0] == 0


def test_a_worker_says_how_it_stands_when_that_is_new() -> None:
    """Each line: after so many seconds, holding a partition, running, and what it says then. The story: who had run, or
    had begun to restore, and lost all its partitions said nothing for ever."""
    assert QUIET_S == 3.0
    for name, line in {
        "alone": [(0.1, False, False, ""), (0.4, True, False, ""), (0.5, True, True, "running"), (99, True, True, "")],
        "never given one": [(2.9, False, False, ""), (3.1, False, False, "idle"), (99, False, False, "")],
        "left with none": [
            (1, True, True, "running"), (2, False, False, ""), (3.9, False, False, ""), (4.1, False, False, "idle"),
            (60, True, False, ""), (61, True, True, "running"),
        ],
        "a long restore, then none": [
            (2.9, True, False, ""), (3.1, True, False, "restoring"), (5, False, False, ""), (6.2, False, False, "idle"),
        ],
        "a rebalance": [(1, True, True, "running"), (2, False, False, ""), (3, True, False, ""), (9, True, True, "")],
    }.items():  # fmt: skip
        standing = Standing(0)
        for seconds, holds, running, says in line:
            assert standing.changed(round(seconds * 1000), holds=holds, running=running) == bool(says), (name, seconds)
            standing.said = says or standing.said


def test_more_workers_than_partitions_are_told_apart(job: Job) -> None:
    """Of five workers on four partitions one has nothing to do, and says so. The story: the one that is left without
    may be one that had a partition before the others came, and had said that it runs; it never said more."""
    job.feed(100)
    parent = job.start("--workers", "5")
    job.until(job.delivered)
    assert parent.stdout is not None
    lines: list[str] = []
    while not any("0 partitions, worker" in line and ": idle, " in line for line in lines):
        lines.append(parent.stdout.readline())
        assert lines[-1], (lines, job.said())
    assert job.leave(parent)[0] == 0


def test_a_log_that_does_not_answer_is_named_and_a_ctrl_c_ends_it(tmp_path: Path) -> None:
    """A wrong port was thirty seconds of silence. Ctrl-C before it runs is an interrupted command: 130."""
    url = f"kafka://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "semel.cli.main", "run", str(APP), "--on", url],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"connecting to {url} …\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out, err) == (130, "", "")
    finally:
        process.kill()
        process.wait()


# --- the embedded log ---


def test_embedded_killed_and_started_again(tmp_path: Path) -> None:
    """One process with log, state and sink in it, killed at steps of the commit and anywhere."""
    folder = tmp_path / "data"
    job = fed_embedded(tmp_path, 1_000)
    try:
        for step in (
            Step.OFFSETS_AFTER, Step.DECISION_AFTER, Step.MARKERS_BEFORE, Step.SYNC_BEFORE, Step.SYNC_AFTER,
            Step.COMMIT_AFTER, Step.SINK_AFTER,
        ):  # fmt: skip
            process = job.start(SEMEL_KILL=f"{step}:1")
            assert job.ended(process)[0] == -signal.SIGKILL, (step, job.said())
            with_engine(folder, job.feed_again)
        process = job.start()
        job.until(job.delivered)
        code, out, _ = job.leave(process)
        assert (code, out) == (0, f"running counts on embedded:{folder}, exactly-once, 4 partitions\n")
        with_engine(folder, job.outputs_are_right)
    finally:
        job.close()


def test_the_folder_of_a_running_app_is_taken(tmp_path: Path) -> None:
    job = fed_embedded(tmp_path, 10)
    try:
        first = job.start()
        job.until(job.delivered)
        second = job.start(state="other")
        code, _, err = job.ended(second)
        assert code == 1
        assert err.startswith("error: ") and f"already open by pid {first.pid}" in err and "Traceback" not in err
        assert job.leave(first)[0] == 0
    finally:
        job.close()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.py"], 2, "no such file"),
        ([str(APP), "--on", "file:x"], 2, "embedded:DIR or kafka://HOST:PORT"),
        ([str(APP), "--on", "embedded:x", "--workers", "2"], 2, "belongs to one process"),
        ([str(APP), "--on", "kafka://127.0.0.1"], 2, "has no port"),
        ([f"{APP}:other"], 2, "no App is called other"),
        ([str(APP), "--mode", "twice"], 2, "exactly-once"),
    ],
)
def test_asked_wrongly(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    """One line, the exit code, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", "run", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "app.py:1: "),
        ("x = 1\ny = nothing\n", "app.py:2: NameError"),
        ("import nothing_of_this_name", "app.py:1: ModuleNotFoundError"),
        ("x = 1", "makes no App"),
        ("from semel import App\na = App('a', print)\nb = App('b', print)\n", "Say which one"),
        ("from semel import App\na = App('a b', print)\n", "app.py:2"),
        ("raise SystemExit(3)", "guard with __main__"),
    ],
)
def test_files_that_make_no_app(text: str, said: str, tmp_path: Path) -> None:
    from semel.errors import UsageError
    from semel.host.load import load_app

    (tmp_path / "app.py").write_text(text)
    with pytest.raises(UsageError, match=said):
        load_app(str(tmp_path / "app.py"))


def fed_embedded(tmp_path: Path, count: int) -> Job:
    """A job whose log is closed again, so that the app can have the folder."""
    folder = tmp_path / "data"
    engine = Engine(folder)
    logs = Logs(lambda **s: EmbeddedLog(engine, **s), engine.close)
    job = Job(tmp_path, logs, f"embedded:{folder}")
    job.feed(count)
    logs.close()
    return job


def with_engine(folder: Path, check: Callable[[Log], None]) -> None:
    engine = Engine(folder)
    log = EmbeddedLog(engine, group="counts")
    try:
        check(log)
    finally:
        log.close()
        engine.close()


def children(pid: int) -> set[int]:
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and state(pid) != "Z"


def stopped(pid: int) -> bool:
    return state(pid) == "T"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.long
def test_an_outage_longer_than_the_session_is_waited_for_and_told(tmp_path: Path) -> None:
    """The broker is away for two sessions: the member that comes back is nobody's rival, and goes on. That the log does
    not answer is said at most once (not while a commit waits for it), and then that it answers again."""
    if os.environ.get("SEMEL_TEST_KAFKA"):
        pytest.skip("the cluster is not ours to kill")
    logs, broker = broker_logs(tmp_path)
    job = Job(tmp_path, logs, logs.open().name)
    try:
        process = job.start("--session-timeout-ms", "1500")
        job.feed(1_000)
        job.until(lambda: job.committed() >= job.fed)
        broker.kill()
        time.sleep(4)  # the outage
        broker.start()
        job.feed(1_000)
        job.until(job.delivered)
        code, _, err = job.leave(process)
        assert code == 0 and err.count("does not answer") == err.count("answers again") <= 1, err
        job.outputs_are_right()
    finally:
        job.close()
        logs.close()
