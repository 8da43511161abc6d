"""What a person does wrong, or the world does to them: an exit code, no traceback, and a message that names what,
where and the next step.

Every case is real `semel` commands on a real folder, broker or database. A case arranges the mishap and returns how
the command that met it ended; what only that case promises (nothing lost, the first one goes on) it asserts itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from semel.broker import admin_requests as admin
from semel.host.embedded import EmbeddedLog
from semel.host.engine import Ask, Engine
from semel.ports import TopicPartition
from tests.support.broker import BrokerProcess
from tests.support.commands import APP, ON_BROKEN, WAIT_S, Ended, World

DELETE_TOPICS = 20


class Case(NamedTuple):
    code: int
    says: tuple[str, ...]
    run: Callable[[World], Ended]


CASES: dict[str, Case] = {}


def case(code: int, *says: str) -> Callable[[Callable[[World], Ended]], Callable[[World], Ended]]:
    """The function's name is the case's; `{data}` and `{folder}` in `says` stand for the world's paths."""

    def add(run: Callable[[World], Ended]) -> Callable[[World], Ended]:
        CASES[run.__name__.strip("_").replace("_", " ")] = Case(code, says, run)
        return run

    return add


def commanded(name: str, code: int, says: Sequence[str], *words: str, **env: str) -> None:
    """A case that is one command."""

    def run(world: World) -> Ended:
        return world.semel(*words, **env)

    CASES[name] = Case(code, tuple(says), run)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


# --- records ---------------------------------------------------------------------------------------------------------


@case(
    1,
    "orders partition 0 offset 1 cannot be decoded",  # what
    "app.py:13",  # where
    "on_error='dead-letter'",  # what next
    "semel read orders --partition 0 --from 1",
)
def an_unreadable_record(world: World) -> Ended:
    """It stops at the record; what was before it is not lost when the next start may pass it."""
    world.orders(1)
    world.feed(b'{"customer": "ann", "amount"')
    return world.app().ended()


@case(0)
def an_unreadable_record_as_a_dead_letter(world: World) -> Ended:
    """The app goes on; the record is in billing.dlq with its reason."""
    world.orders(1)
    world.feed(b"no order")
    world.orders(2)
    app = world.app(ON_BROKEN)
    app.until(lambda: world.sums() == {"ann": 3})
    left = app.left()
    with world.log() as log:
        (at, end), *_ = [(at, end) for at, end in log.ends([TopicPartition("billing.dlq", 0)]).items() if end]
        (records,) = [records for records in log.read(at, 0, end) if records.offsets]
    assert list(records.values) == [b"no order"]
    assert records.headers is not None
    reasons = dict(records.headers[0])
    assert any(b"offset" in name.encode() and value == b"1" for name, value in reasons.items()), reasons
    assert any(b"malformed" in (value or b"").lower() for value in reasons.values()), reasons
    return left


@case(1, "orders partition 0 offset 0", "$.amount", "Expected `int`, got `str`", "app.py:13", "Mend the Topic's types")
def a_value_of_another_type(world: World) -> Ended:
    world.feed(b'{"customer": "ann", "amount": "ten"}')
    return world.app().ended()


@case(1, "orders partition 0 offset 0", "app.py:17", "totals", "Total", "'ann'")
def a_wrong_type_is_written(world: World) -> Ended:
    """The topology gives a topic another type than it has: the record, the line and both types."""
    world.orders(1)
    text = APP.replace('"orders", key=str, value=Order)', '"orders", key=str, value=Order)\ntotals = Topic("totals", '
                       "key=str, value=Total)")  # fmt: skip
    body = "    b.read(orders).map(lambda k, o: o.customer).write(totals)\n"
    before, _, rest = text.partition("    sums = ")
    return world.app(before + body + rest[rest.index("\napp = ") :]).ended()


@case(
    1,
    "fold sums (app.py:16)",
    "partition 0 offset 1",
    "ZeroDivisionError",
    "mend the program",
    "again from the first",
    "semel read billing-sums-repartition --partition 0 --from 1 --max 1 --on embedded:{data}",
)
def a_function_of_the_user_fails(world: World) -> Ended:
    world.orders(1, 0)
    return world.app(APP.replace("acc + o.amount", "acc + 1 // o.amount")).ended()


@case(2, "app.py:17", "sums", "app.py:16", "name")
def two_states_of_one_name(world: World) -> Ended:
    line = '    b.read(orders).key_by(lambda o: o.customer).count(name="sums")\n'
    return world.app(APP.replace("    sums.changes()", line + "    sums.changes()")).ended()


@case(2, "app.py:13", "topic orders, value", "complex")
def a_topic_of_a_type_without_a_serde(world: World) -> Ended:
    return world.app(APP.replace("value=Order)", "value=complex)")).ended()


# --- names -----------------------------------------------------------------------------------------------------------


@case(2, "embedded:{data}", "there is no topic 'ordres'", "semel topics --on embedded:{data}")
def an_unknown_topic(world: World) -> Ended:
    world.orders(1)
    return world.semel("read", "ordres", "--on", world.url)


@case(2, "{folder}/nowhere", "holds no semel log", "embedded:DIR")
def a_folder_without_a_log(world: World) -> Ended:
    ended = world.semel("topics", "--on", f"embedded:{world.folder}/nowhere")
    assert not (world.folder / "nowhere").exists()
    return ended


commanded(
    "an unknown file", 2, ["nowhere.py", "no such file", "the Python file that makes an App"], "run", "nowhere.py"
)


@case(2, "app.py: makes no App", "app = App('name', build)")
def no_app_in_the_file(world: World) -> Ended:
    return world.app("x = 1\n").ended()


@case(2, "app.py: makes 2 Apps", "Say which one", "app.py:other")
def several_apps_in_the_file(world: World) -> Ended:
    return world.app(APP + '\nother = App("other", build)\n').ended()


@case(2, "app.py:1: ", "never closed")
def a_file_that_does_not_parse(world: World) -> Ended:
    return world.app("x = (\n").ended()


@case(2, "file:x", "embedded:DIR or kafka://HOST:PORT")
def a_bad_url(world: World) -> Ended:
    return world.semel("run", world.file(APP), "--on", "file:x")


@case(2, "kafka://127.0.0.1", "has no port", "kafka://127.0.0.1:9092")
def a_url_without_a_port(world: World) -> Ended:
    return world.semel("run", world.file(APP), "--on", "kafka://127.0.0.1")


@case(2, "--mode", "twice", "exactly-once", "at-least-once", "at-most-once")
def an_unknown_mode(world: World) -> Ended:
    return world.semel("run", world.file(APP), "--on", world.url, "--mode", "twice")


@case(2, "SEMEL_KILL=now:x", "step:n", "commit.before")
def a_kill_switch_that_is_none(world: World) -> Ended:
    world.orders(1)
    return world.app(SEMEL_KILL="now:x").ended()


@case(2, "SEMEL_KILL=now:x", "step:n", "commit.before")
def a_kill_switch_that_is_none_of_the_broker(world: World) -> Ended:
    return world.semel("broker", str(world.data), "--listen", "127.0.0.1:0", SEMEL_KILL="now:x")


commanded(
    "an unknown setting of the broker", 2, ["nonsense", "num.partitions"],
    "broker", "data", "--listen", "127.0.0.1:0", "--set", "nonsense=1",
)  # fmt: skip
commanded(
    "a setting of the broker that is no number", 2, ["num.partitions", "many"],
    "broker", "data", "--listen", "127.0.0.1:0", "--set", "num.partitions=many",
)  # fmt: skip
commanded("an address that is none", 2, ["--listen here", "HOST:PORT", "9092"], "broker", "data", "--listen", "here")


@case(2, "python -O", "without -O")
def python_that_skips_assertions(world: World) -> Ended:
    return world.semel("topics", "--on", world.url, python=["-O"])


def _without(world: World, package: str) -> str:
    """A PYTHONPATH in which the package is not installed."""
    stub = world.folder / "without" / package
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(f"raise ModuleNotFoundError(name={package!r})\n")
    return str(stub.parent)


@case(2, "confluent-kafka", "pip install 'semel[kafka]'")
def the_kafka_extra_is_missing(world: World) -> Ended:
    words = ("run", world.file(APP), "--on", "kafka://127.0.0.1:9092")
    assert world.semel("topics", "--on", words[-1], PYTHONPATH=_without(world, "confluent_kafka")).code == 2
    return world.semel(*words, PYTHONPATH=str(world.folder / "without"))


@case(2, "psycopg", "totals", "pip install 'semel[postgres]'")
def the_postgres_extra_is_missing(world: World) -> Ended:
    world.orders(1)
    return world.app(
        _to_postgres("postgresql://me:secret@127.0.0.1:1/x"), PYTHONPATH=_without(world, "psycopg")
    ).ended()


# --- ports and folders -----------------------------------------------------------------------------------------------


@case(1, "127.0.0.1:", "is in use", "--listen 127.0.0.1:PORT", "port 0")
def a_port_in_use(world: World) -> Ended:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = world.semel("broker", str(world.data), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert not world.data.exists()
    return ended


@case(1, "{data}", "already open by pid ", "one folder belongs to one process")
def a_folder_already_open(world: World) -> Ended:
    world.orders(1)
    first = world.app()
    first.until(lambda: world.sums() == {"ann": 1})
    second = world.semel("broker", str(world.data), "--listen", "127.0.0.1:0")
    assert f"by pid {first.process.pid}" in second.said
    assert first.left().code == 0
    return second


@case(1, "{data}", "format 'semel log, format 7'", "this semel reads 'semel log, format 1'", "another folder")
def a_folder_of_another_version(world: World) -> Ended:
    world.orders(1)
    (world.data / "format").write_text("semel log, format 7\n")
    before = _content(world.data)
    ended = world.app().ended()
    (world.data / "format").write_text("semel log, format 7\n")
    assert world.semel("broker", str(world.data), "--listen", "127.0.0.1:0").code == 1
    assert _content(world.data) == before
    return ended


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@case(2, "{data}", "is a file, not a folder", "Give a folder")
def a_file_instead_of_a_folder(world: World) -> Ended:
    world.data.write_text("mine")
    return world.semel("broker", str(world.data), "--listen", "127.0.0.1:0")


@case(1, "journal", "{data}")
def a_damaged_journal(world: World) -> Ended:
    """A byte below what was synced has changed: named, never skipped, and nothing is served."""
    world.orders(*range(50))
    journal = max((world.data / "journal").iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(journal.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    journal.write_bytes(damaged)
    return world.app().ended()


def _damaged_record(folder: Path) -> None:
    """A byte of the third order's value changes, in the only segment that holds it."""
    for segment in (folder / "partitions").glob("*/*.log"):
        data = bytearray(segment.read_bytes())
        if (at := data.find(b'"amount": 333')) >= 0:
            data[at + 11] ^= 1
            segment.write_bytes(data)
            return
    raise AssertionError("no segment holds it")


def _rotten(world: World) -> World:
    for amount in (111, 222, 333, 444):
        world.orders(amount)
    _damaged_record(world.data)
    return world


@case(1, "{data}: orders partition 0, offset 2 is damaged", "checksum", "backup", "--from LATER")
def a_damaged_record_is_read(world: World) -> Ended:
    """A traceback said CorruptBatch. Now: where, and what next."""
    return _rotten(world).semel("read", "orders", "--on", world.url)


@case(1, "{data}: orders partition 0, offset 2 is damaged", "checksum", "backup")
def a_damaged_record_is_processed(world: World) -> Ended:
    return _rotten(world).app().ended()


@case(1, "orders partition 0: the log is damaged there", "failed CRC32C check", "semel read orders --partition 0")
def a_damaged_record_behind_a_broker(world: World) -> Ended:
    """librdkafka compares no checksums unless told: the value was taken as it was."""
    _rotten(world)
    return world.semel("read", "orders", "--on", f"kafka://{world.broker(world.data).address}")


@case(1, "orders partition 0: the log is damaged there")
def a_damaged_header_behind_a_broker(world: World) -> Ended:
    """The broker says which partition, and goes on: another topic of it can still be read."""
    _rotten(world).feed(b"fine", topic="other")
    for segment in (world.data / "partitions").glob("*/*.log"):
        data = bytearray(segment.read_bytes())
        if (at := data.find(b'"amount": 222')) >= 0:
            third = at - at % (len(data) // 4) + len(data) // 4
            data[third + 7] ^= 64  # its base offset, which no checksum covers
            segment.write_bytes(data)
    broker = world.broker(world.data)
    ended = world.semel("read", "orders", "--on", f"kafka://{broker.address}")
    assert world.semel("read", "other", "--on", f"kafka://{broker.address}").code == 0
    return ended


# --- a full disk -----------------------------------------------------------------------------------------------------


def _small_disk(world: World, size: int) -> Path | None:
    """A tmpfs of its own, where this user may mount one."""
    folder = world.folder / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return None
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        return None
    world.defer(partial(subprocess.run, ["umount", "-l", str(folder)], check=True))
    return folder


def _fill_up(folder: Path) -> None:
    """Not a byte is left on the disk."""
    with (folder / "filler").open("ab", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def _produced_until_it_ends(broker: BrokerProcess, topic: str) -> list[int]:
    """Numbers that were acknowledged, in 10 KB records, until the broker ends."""
    from confluent_kafka import Producer

    acked: list[int] = []
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 0, "message.timeout.ms": 60_000,
                         "log_level": 0})  # fmt: skip
    number, process = 0, broker.process
    assert process is not None
    deadline = time.monotonic() + WAIT_S
    while process.poll() is None:
        assert time.monotonic() < deadline, "the disk never filled up"
        if number - len(acked) < 50:
            producer.produce(
                topic, b"%d:" % number + os.urandom(10_000), partition=0,
                on_delivery=lambda error, _, n=number: acked.append(n) if error is None else None,
            )  # fmt: skip
            number += 1
        producer.poll(0 if number - len(acked) < 50 else 0.01)
    producer.purge()
    producer.flush(5)
    return acked


def _held(broker: BrokerProcess, topic: str) -> list[int]:
    """Read by a client without a group: librdkafka looks for its group's coordinator, for which the broker makes
    __consumer_offsets. On a full disk it then ended with 1, rightly, now and then while it was told to leave with 0."""
    from kafka import KafkaConsumer
    from kafka import TopicPartition as Partition

    consumer = KafkaConsumer(bootstrap_servers=broker.address, group_id=None)
    try:
        at = Partition(topic, 0)
        end = consumer.end_offsets([at])[at]
        consumer.assign([at])
        consumer.seek(at, 0)
        found: list[int] = []
        deadline = time.monotonic() + WAIT_S
        while len(found) < end:
            assert time.monotonic() < deadline, f"{len(found)} of {end} records"
            for records in consumer.poll(1000).values():
                found += [int(record.value.partition(b":")[0]) for record in records]
        return found
    finally:
        consumer.close()


@case(1, "{folder}/small/data", "the disk is full", "what was answered is safe", "Free space on that disk")
def a_full_disk(world: World) -> Ended:
    """The broker ends before it answers; on the disk that is still full it starts again, and what it acknowledged is
    there: recovery needs no new space, only the reserve. Where no small disk can be mounted, a limit on its files."""
    small = _small_disk(world, 24 << 20)
    if small is None:
        pytest.skip("needs root to mount a small tmpfs; see the case of a limited file")
    broker = world.broker(small / "data")
    acked = _produced_until_it_ends(broker, "t")
    broker.wait(1)
    first = Ended(1, broker.log)
    _fill_up(small)
    broker.start()
    held = _held(broker, "t")
    assert len(acked) > 100 and held[: len(acked)] == acked == list(range(len(acked)))
    broker.stop()  # it leaves with 0: on the way out nothing is written
    (small / "filler").unlink()
    broker.start()
    assert _held(broker, "t") == held
    return first


@case(1, "{folder}/broker", "writing or syncing failed", "(File too large)", "start")
def a_limited_file(world: World) -> Ended:
    broker = world.broker()
    acked = []
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
    producer.produce("t", b"0:", partition=0, on_delivery=lambda error, _: acked.append(error))
    producer.flush(WAIT_S)
    limit = max(path.stat().st_size for path in (broker.folder / "journal").iterdir()) + 100_000
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (limit, limit))
    more = _produced_until_it_ends(broker, "t")
    broker.wait(1)
    ended = Ended(1, broker.log)
    broker.start()
    held = _held(broker, "t")
    assert acked == [None] and held[: 1 + len(more)] == [0, *more]
    return ended


@case(1, "{folder}/small/data", "the disk is full", "Free space")
def a_full_disk_under_an_app(world: World) -> Ended:
    """The app ends with the reason; with room again, its sums are those of what it was given, each once."""
    small = _small_disk(world, 24 << 20)
    if small is None:
        pytest.skip("needs root to mount a small tmpfs")
    world.data = small / "data"
    world.url = f"embedded:{world.data}"
    world.orders(1, 2)
    app = world.app()
    app.until(lambda: world.sums() == {"ann": 3})
    assert app.left().code == 0
    world.orders(*[1] * 2000)
    _fill_up(small)
    ended = world.app().ended()
    (small / "filler").unlink()
    world.works_until({"ann": 2003})
    return ended


# --- sinks -----------------------------------------------------------------------------------------------------------


def _to_postgres(dsn: str) -> str:
    return APP.replace("import SQLite", "import Postgres").replace('SQLite("totals.db"', f'Postgres("{dsn}"')


@case(0, "Postgres table totals", "127.0.0.1", "delivering again")
def a_database_that_is_away(world: World) -> Ended:
    """The worker says so and keeps trying; when it comes back, everything is delivered."""
    import psycopg

    from semel.host.postgres import PostgresServer

    server = PostgresServer(world.folder / "postgres")
    server.start()
    world.defer(server.kill)
    server.stop()
    world.orders(1, 2)
    app = world.app(_to_postgres(server.dsn))
    app.until(lambda: "Postgres table totals" in app.said)
    assert "delivering again" not in app.said
    assert server.dsn.split(":")[2].split("@")[0] not in app.said, "the password was printed"
    server.start()

    def sums() -> list[Any]:
        with psycopg.connect(server.dsn) as connection:
            there = connection.execute("SELECT to_regclass('totals')").fetchone()
            return connection.execute("SELECT customer, total FROM totals").fetchall() if there != (None,) else []

    app.until(lambda: sums() == [("ann", 3)])
    app.until(lambda: "delivering again" in app.said)
    return app.left()


@case(1, "SQLite table totals in totals.db", "column 'total' is TEXT", "wanted is INTEGER", "name another table")
def a_table_of_another_shape(world: World) -> Ended:
    with contextlib.closing(sqlite3.connect(world.folder / "totals.db")) as database:
        database.execute("CREATE TABLE totals (customer TEXT PRIMARY KEY, total TEXT)")
        database.commit()
    world.orders(1)
    return world.app().ended()


@case(1, "SQLite table totals in totals.db", "'total'", "ADD COLUMN")
def a_table_that_lacks_a_column(world: World) -> Ended:
    with contextlib.closing(sqlite3.connect(world.folder / "totals.db")) as database:
        database.execute("CREATE TABLE totals (customer TEXT PRIMARY KEY)")
        database.commit()
    world.orders(1)
    return world.app().ended()


@case(1, "totals.db", "not a database")
def a_file_that_is_no_database(world: World) -> Ended:
    (world.folder / "totals.db").write_text("my notes, nothing else, but longer than a header of SQLite would be" * 20)
    world.orders(1)
    return world.app().ended()


@case(1, "nowhere/totals.db", "there is no folder {folder}/nowhere", "Create it")
def a_database_in_a_folder_that_is_not_there(world: World) -> Ended:
    world.orders(1)
    return world.app(APP.replace('"totals.db"', '"nowhere/totals.db"')).ended()


@case(1, "billing-totals-outbox", "nothing was delivered", "Put back the log")
def a_log_that_went_back_behind_the_sink(world: World) -> Ended:
    """S12: the data folder is copied, the app goes on, the copy is put back, others write. Diverged: it stops, and the
    rows stay as they are."""
    world.orders(1, 2)
    world.works_until({"ann": 3})
    shutil.copytree(world.data, world.folder / "copy")
    world.orders(3)
    world.works_until({"ann": 6})
    shutil.rmtree(world.data)
    shutil.copytree(world.folder / "copy", world.data)
    world.orders(100)
    ended = world.app().ended()
    assert world.sums() == {"ann": 6}
    return ended


@case(1, "SQLite table totals in totals.db", "the outbox was re-created", "put the former log back", "semel sink adopt")
def an_outbox_made_anew(world: World) -> Ended:
    """S16: deleted and made again, its offsets start at 0 and the position at the sink would skip its first records."""
    world.orders(1, 2)
    world.works_until({"ann": 3})
    engine = Engine(world.data)
    log = EmbeddedLog(engine)
    topic_id = log.topics()["billing-totals-outbox"].topic_id
    connection = engine.connect()
    deleted = admin.DeleteTopicsRequest(("billing-totals-outbox",))
    answer = engine.ask(connection, Ask(DELETE_TOPICS, 5, deleted))
    assert not answer.responses[0].error_code and topic_id
    log.close()
    engine.close()
    world.orders(4)
    ended = world.app().ended()
    assert world.sums() == {"ann": 3}
    return ended


# --- the test --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, world: World) -> None:
    """Its exit code, no traceback, and a message with what, where and the next step."""
    wanted = CASES[name]
    ended = wanted.run(world)
    assert ended.code == wanted.code, ended.said
    assert "Traceback" not in ended.said, ended.said
    if wanted.code:
        assert "error" in ended.said.lower() and ended.said.count("\nerror: ") <= 1, ended.said
    text = " ".join(ended.said.split())
    for words in wanted.says:
        assert words.format(data=world.data, folder=world.folder) in text, f"{words!r} is missing in:\n{ended.said}"
