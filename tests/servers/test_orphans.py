"""What a run may leave behind is found where it lies: each kind is planted, and the look at the system names it. And a
run of `semel verify` that is interrupted in the middle of everything leaves nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import campaigns, inventories
from tests.support.campaigns import Place
from tests.support.planted import ROOT

Plant = Callable[[Place, contextlib.ExitStack], None]


# --- what is planted -------------------------------------------------------------------------------------------------


def postgres(place: Place, stack: contextlib.ExitStack) -> psycopg.Connection[Any]:
    return stack.enter_context(contextlib.closing(psycopg.connect(place.environ["EVERY_POSTGRES"], autocommit=True)))


def a_table(place: Place, stack: contextlib.ExitStack) -> None:
    postgres(place, stack).execute("CREATE TABLE left_behind (x int)")


def prepared(place: Place, stack: contextlib.ExitStack) -> None:
    connection = postgres(place, stack)
    for statement in ("BEGIN", "CREATE TABLE beside (x int)", "PREPARE TRANSACTION 'left behind'"):
        connection.execute(statement)


def an_open_transaction(place: Place, stack: contextlib.ExitStack) -> None:
    postgres(place, stack).execute("BEGIN")


def an_advisory_lock(place: Place, stack: contextlib.ExitStack) -> None:
    postgres(place, stack).execute("SELECT pg_advisory_lock(1, 2)")


def maria(place: Place, stack: contextlib.ExitStack) -> Any:
    from tests.servers.mariadb_subjects import connected

    connection = stack.enter_context(contextlib.closing(connected(place.environ["EVERY_MARIADB"])))
    connection.cursor().execute("CREATE TABLE IF NOT EXISTS mine (x int)")
    return connection.cursor()


def a_maria_table(place: Place, stack: contextlib.ExitStack) -> None:
    maria(place, stack)


def xa(place: Place, stack: contextlib.ExitStack) -> None:
    cursor = maria(place, stack)
    for statement in ("XA START 'a'", "INSERT INTO mine VALUES (1)", "XA END 'a'", "XA PREPARE 'a'"):
        cursor.execute(statement)


def a_maria_transaction(place: Place, stack: contextlib.ExitStack) -> None:
    cursor = maria(place, stack)
    cursor.execute("BEGIN")
    cursor.execute("INSERT INTO mine VALUES (1)")


def an_object(place: Place, stack: contextlib.ExitStack) -> None:
    import obstore

    from tests.sinks.subjects import _bucket

    obstore.put(_bucket(place.environ["EVERY_S3"]), "every/left", b"x")


def an_upload(place: Place, stack: contextlib.ExitStack) -> None:
    from semel.sinks.multipart_requests import Multipart
    from tests.sinks.subjects import S3_BUCKET, s3_options

    upload = Multipart(S3_BUCKET, "here", s3_options(place.environ["EVERY_S3"])).create("every/part", "tag")
    Multipart(S3_BUCKET, "here", s3_options(place.environ["EVERY_S3"])).part(upload, 1, b"x")


def a_hidden_file(place: Place, stack: contextlib.ExitStack) -> None:
    (Path(place.environ["EVERY_FILES"]) / ".00001-00000-0.1.tmp").write_bytes(b"x")


def a_locked_file(place: Place, stack: contextlib.ExitStack) -> None:
    import fcntl

    file = stack.enter_context((Path(place.environ["EVERY_FILES"]) / "lock").open("w"))
    fcntl.lockf(file, fcntl.LOCK_EX)


def a_sqlite_table(place: Place, stack: contextlib.ExitStack) -> None:
    with contextlib.closing(sqlite3.connect(place.environ["EVERY_SQLITE"])) as connection:
        connection.execute("CREATE TABLE left_behind (x)")


def a_journal(place: Place, stack: contextlib.ExitStack) -> None:
    """Of a transaction that nobody finished."""
    connection = stack.enter_context(
        contextlib.closing(sqlite3.connect(place.environ["EVERY_SQLITE"], isolation_level=None))
    )
    for statement in ("BEGIN IMMEDIATE", "INSERT INTO mine VALUES (1)"):
        connection.execute(statement)


def duck(place: Place, statement: str) -> None:
    import duckdb

    with duckdb.connect(place.environ["EVERY_DUCKDB"]) as connection:
        connection.execute(statement)


def a_duckdb_table(place: Place, stack: contextlib.ExitStack) -> None:
    duck(place, "CREATE TABLE left_behind (x INTEGER)")


def a_held_database(place: Place, stack: contextlib.ExitStack) -> None:
    """Another process has the file open."""
    code = f"import duckdb; c = duckdb.connect({place.environ['EVERY_DUCKDB']!r}); print('open', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    stack.callback(process.communicate, b"\n")
    assert process.stdout is not None
    process.stdout.readline()


def a_data_file(place: Place, stack: contextlib.ExitStack) -> None:
    (Path(place.environ["EVERY_LAKE"]) / "part-0.parquet").write_bytes(b"x")


def a_catalogued_table(place: Place, stack: contextlib.ExitStack) -> None:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.schema import Schema

    folder = place.environ["EVERY_LAKE"]
    said = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    catalog: Any = load_catalog("default", **said)
    catalog.create_namespace("sales")
    catalog.create_table("sales.left", Schema())
    catalog.engine.dispose()
    shutil.rmtree(Path(folder) / "warehouse")  # the name alone


def a_key(place: Place, stack: contextlib.ExitStack) -> None:
    from tests.servers.redis_subjects import client

    with client(place.environ["EVERY_REDIS"]) as there:
        there.set("left", "x")


def a_client(place: Place, stack: contextlib.ExitStack) -> None:
    from tests.servers.redis_subjects import client

    stack.enter_context(client(place.environ["EVERY_REDIS"])).ping()


def an_index(place: Place, stack: contextlib.ExitStack) -> None:
    from tests.servers.opensearch_subjects import asked

    asked(place.environ["EVERY_OPENSEARCH"], "PUT", "/left-behind")


def an_alias(place: Place, stack: contextlib.ExitStack) -> None:
    from tests.servers.opensearch_subjects import asked

    asked(place.environ["EVERY_OPENSEARCH"], "PUT", "/left-behind/_alias/left-live")


def a_running_request(place: Place, stack: contextlib.ExitStack) -> None:
    """The receiver's transaction, open."""
    connection = stack.enter_context(
        contextlib.closing(sqlite3.connect(place.environ["EVERY_HTTP_DATABASE"], isolation_level=None))
    )
    connection.execute("BEGIN IMMEDIATE")


def clickhouse(place: Place, *statements: str) -> None:
    from tests.servers.clickhouse_subjects import asked

    for statement in statements:
        asked(place.environ["EVERY_CLICKHOUSE"], statement)


def a_clickhouse_table(place: Place, stack: contextlib.ExitStack) -> None:
    clickhouse(place, "CREATE TABLE left_behind (x Int64) ENGINE = MergeTree ORDER BY x")


def a_clickhouse_view(place: Place, stack: contextlib.ExitStack) -> None:
    clickhouse(place, "CREATE VIEW left_view AS SELECT x FROM left_behind")


def a_detached_part(place: Place, stack: contextlib.ExitStack) -> None:
    clickhouse(place, "INSERT INTO left_behind VALUES (1)", "ALTER TABLE left_behind DETACH PARTITION tuple()")


def a_mutation(place: Place, stack: contextlib.ExitStack) -> None:
    """One that nobody carries out."""
    clickhouse(
        place,
        "SYSTEM STOP MERGES left_behind",
        "INSERT INTO left_behind VALUES (2)",
        "ALTER TABLE left_behind DELETE WHERE x = 2 SETTINGS mutations_sync = 0",
    )


def a_series(place: Place, stack: contextlib.ExitStack) -> None:
    from semel.sinks.prometheus_connection import WRITES
    from semel.sinks.prometheus_form import Sample, encoded

    body = encoded([Sample(0, (("__name__", "left_behind"),), 5, 1.0)])
    url = f"{place.environ['EVERY_PROMETHEUS']}/api/v1/write"
    urllib.request.urlopen(urllib.request.Request(url, body, WRITES)).close()


def a_topic(place: Place, stack: contextlib.ExitStack) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    there = AdminClient({"bootstrap.servers": place.environ["EVERY_BROKER"]})
    there.create_topics([NewTopic("left-behind", 1)])["left-behind"].result(10)


def an_open_batch(place: Place, stack: contextlib.ExitStack) -> None:
    """A transaction that nobody ends."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": place.environ["EVERY_BROKER"], "transactional.id": "left"})
    producer.init_transactions(10)
    producer.begin_transaction()
    stack.callback(producer.abort_transaction, 10)
    producer.produce("left-behind", b"x", partition=0)
    producer.flush(10)


def a_group(place: Place, stack: contextlib.ExitStack) -> None:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": place.environ["EVERY_BROKER"], "group.id": "left"})
    stack.callback(consumer.close)
    consumer.commit(offsets=[TopicPartition("left-behind", 0, 0)], asynchronous=False)


# Tried by test_opensearch.py, whose node takes long to start.
IN_OPENSEARCH: list[tuple[Plant, str]] = [
    (an_index, "index left-behind"),
    (an_alias, "alias left-live of left-behind"),
]
# By system: what is planted, and how the look names it. Later ones may need earlier ones.
PLANTS: dict[str, tuple[campaigns.System, list[tuple[Plant, str]]]] = {
    "postgres": (
        campaigns.postgres,
        [
            (an_open_transaction, "session"),
            (an_advisory_lock, "advisory lock 1 2"),
            (a_table, "relation public.left_behind"),
            (prepared, "prepared transaction left behind"),
        ],
    ),
    "mariadb": (
        campaigns.mariadb,
        [
            (a_maria_table, "table test.mine"),
            (a_maria_transaction, "open transaction"),
            (a_maria_transaction, "session"),
            (xa, "XA transaction a"),
        ],
    ),
    "s3": (campaigns.s3, [(an_object, "object every/left"), (an_upload, "upload every/part")]),
    "files": (campaigns.a_folder, [(a_hidden_file, "file .00001-00000-0.1.tmp"), (a_locked_file, "lock POSIX")]),
    "sqlite": (
        campaigns.sqlite,
        [(a_sqlite_table, "table left_behind"), (a_journal, "file orders.db-journal"), (a_journal, "lock: ")],
    ),
    "duckdb": (campaigns.duckdb, [(a_duckdb_table, "table left_behind"), (a_held_database, "lock")]),
    "lake": (
        campaigns.lake,
        [(a_data_file, "file part-0.parquet"), (a_catalogued_table, "table sales.left")],
    ),
    "redis": (campaigns.redis, [(a_client, "session"), (a_key, "key left")]),
    "receiver": (campaigns.receiver, [(a_running_request, "lock: ")]),
    "clickhouse": (
        campaigns.clickhouse,
        [
            (a_clickhouse_table, "table default.left_behind"),
            (a_clickhouse_view, "table default.left_view"),
            (a_detached_part, "detached part default.left_behind"),
            (a_mutation, "mutation default.left_behind"),
        ],
    ),
    "prometheus": (campaigns.prometheus, [(a_series, 'series {"__name__": "left_behind"}')]),
    "kafka": (
        campaigns.other_broker,
        [
            (a_topic, "topic left-behind"),
            (an_open_batch, "open transaction: left-behind-0"),
            (a_group, "group left"),
        ],
    ),
}


def found(place: Place, plants: list[tuple[Plant, str]]) -> None:
    for plant, named in plants:
        before = place.look()
        assert not inventories.left(before, place.look)
        with contextlib.ExitStack() as stack:
            plant(place, stack)
            seen = inventories.left(before, place.look, settle_s=0)
            assert any(one.startswith(named) for one in seen), (named, seen)


@pytest.mark.parametrize("system", PLANTS)
def test_what_is_planted_is_found(system: str, tmp_path: Path) -> None:
    """Nothing before it, and its name afterwards."""
    serves, plants = PLANTS[system]
    with serves(tmp_path) as place:
        found(Place({**place.environ, "EVERY_HTTP_DATABASE": str(tmp_path / "hook.db")}, place.look), plants)


def test_a_process_and_a_temporary_file_are_found(tmp_path: Path) -> None:
    environ = {**os.environ, **inventories.environment(tmp_path, "a-mark-of-this-test")}
    process = subprocess.Popen(["sleep", "60"], env=environ)
    try:
        deadline = time.monotonic() + 10
        while not inventories.processes("a-mark-of-this-test") and time.monotonic() < deadline:
            pass
        assert [one for one in inventories.processes("a-mark-of-this-test") if f"process {process.pid} " in one]
    finally:
        process.kill()
        process.wait()
    assert not inventories.processes("a-mark-of-this-test")
    (tmp_path / "tmp" / "semel-verify-x").mkdir()
    assert inventories.files(tmp_path / "tmp") == {"file semel-verify-x"}


# --- a run that is interrupted ---------------------------------------------------------------------------------------

PREPARING = campaigns.all_of([campaigns.SINKS[name] for name in ("two-phase", "xa", "multipart", "files")])


@pytest.fixture(scope="module")
def prepares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with PREPARING.system(tmp_path_factory.mktemp("prepares")) as place:
        yield place


def test_an_interrupted_run_leaves_nothing_prepared(prepares: Place, tmp_path: Path) -> None:
    """SIGTERM to verify while workers that are dead have cuts prepared and nobody has settled them. (It could not
    remove its own tables, which the prepared transactions held, said so in the system's words, and left both.)"""
    environ = {**os.environ, **prepares.environ, "EVERY_SINKS": " ".join(PREPARING.sinks)}
    environ |= inventories.environment(tmp_path, "interrupted")
    before = prepares.look()
    command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/servers/apps/every.py", "--crashes=50"]
    # Each worker is killed whenever it has prepared something.
    command += ["--at=prepare.after", "--at=decide.before", "--seed=4"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if sum("killed at a step" in one for one in said) == 3:
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130, said
    assert not [line for line in said if "could not be removed" in line], said
    assert not inventories.left(before, prepares.look)
    assert not inventories.files(tmp_path / "tmp")
