"""Everything that is there in a sink's system, as sentences: what a run of verify found before it and finds after it.

What is there after a run and was not before is an orphan: a table, a prepared transaction, an upload that nobody
completed, a temporary file, a lock, a session. A look is taken with the system's own client, never through a sink.
Each kind of orphan is planted in `tests/servers/test_orphans.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg

Look = Callable[[], set[str]]
SETTLE_S = 15.0  # a session of a killed process ends when its server notices


def left(before: set[str], look: Look, settle_s: float = SETTLE_S) -> list[str]:
    """What is there now and was not before; asked again until nothing is, or for so long."""
    deadline = time.monotonic() + settle_s
    while (found := look() - before) and time.monotonic() < deadline:
        time.sleep(0.3)
    return sorted(found)


POSTGRES = {
    "relation": "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'",
    "schema": "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)'",
    "function": "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
    "WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')",
    "prepared transaction": "SELECT gid FROM pg_prepared_xacts",
    "replication slot": "SELECT slot_name::text FROM pg_replication_slots",
    "publication": "SELECT pubname::text FROM pg_publication",
    "advisory lock": "SELECT concat_ws(' ', classid, objid, pid) FROM pg_locks WHERE locktype = 'advisory'",
    "session": "SELECT concat_ws(' ', pid, application_name, state, query) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
}


def postgres(dsn: str) -> set[str]:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        return {f"{kind} {row[0]}" for kind, query in POSTGRES.items() for row in connection.execute(query)}


MARIADB = {
    "table": "SELECT concat(table_schema, '.', table_name) FROM information_schema.tables WHERE table_schema NOT IN "
    "('mysql', 'sys', 'information_schema', 'performance_schema')",
    "XA transaction": "XA RECOVER",
    "open transaction": "SELECT concat(trx_id, ' ', trx_state) FROM information_schema.innodb_trx",
    "session": "SELECT concat(id, ' ', command, ' ', ifnull(info, '')) FROM information_schema.processlist "
    "WHERE id <> connection_id() AND command <> 'Daemon' AND user <> 'system user'",
}


def mariadb(url: str) -> set[str]:
    from tests.servers.mariadb_subjects import query

    found = set()
    for kind, statement in MARIADB.items():
        rows = query(url, statement)
        found |= {f"{kind} {one.decode() if isinstance(one := row[-1], bytes) else one}" for row in rows}
    return found


def files(folder: Path) -> set[str]:
    """Every file and folder, hidden ones too, and who holds a lock on one of them (Linux: /proc/locks)."""
    paths = [path for path in folder.rglob("*") if path.name != ".gitkeep"]
    inodes = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            inodes[str(path.stat().st_ino)] = path
    found = {f"file {path.relative_to(folder)}" for path in paths}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        inode = next((f.rpartition(":")[2] for f in fields if f.count(":") == 2), "")
        if inode in inodes:
            found.add(f"lock {' '.join(fields[1:5])} on {inodes[inode].relative_to(folder)}")
    return found


def sqlite(path: str) -> set[str]:
    """Its tables, whether its lock is to be had, and what lies beside it (before anybody opens it)."""
    found = files(Path(path).parent)
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        found |= {f"{row[0]} {row[1]}" for row in connection.execute("SELECT type, name FROM sqlite_schema")}
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as why:
            found.add(f"lock: {why}")
    return found


def duckdb(path: str) -> set[str]:
    import duckdb as client

    found = files(Path(path).parent)
    try:
        with client.connect(path) as connection:
            tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            found |= {f"table {row[0]}" for row in tables}
    except client.IOException as why:
        found.add(f"lock: {str(why).splitlines()[0]}")
    return found


def lake(folder: Path) -> set[str]:
    """Files, and what the Iceberg catalog beside them names."""
    found = {one for one in files(folder) if not one.startswith("file catalog.db")}
    catalog = folder / "catalog.db"
    if catalog.exists():
        found |= {one for one in files(folder) if one.startswith("file catalog.db-")}
        with contextlib.closing(sqlite3.connect(catalog, timeout=0)) as connection:
            tables = connection.execute("SELECT table_namespace, table_name FROM iceberg_tables")
            found |= {f"table {space}.{name}" for space, name in tables}
    return found


def s3(endpoint: str) -> set[str]:
    """Every object of the bucket, and every upload that nobody has completed or aborted."""
    import obstore

    from semel.sinks.multipart_requests import Multipart
    from tests.sinks.subjects import S3_BUCKET, _bucket, s3_options

    found = {f"object {one['path']}" for chunk in obstore.list(_bucket(endpoint)) for one in chunk}
    uploads = Multipart(S3_BUCKET, "the bucket", s3_options(endpoint)).listed("")
    return found | {f"upload {one.key} {one.id}" for one in uploads}


def redis(url: str) -> set[str]:
    from tests.servers.redis_subjects import client

    with client(url) as there:
        me = there.client_id()
        keys = {f"key {key}" for key in there.scan_iter("*", count=1_000)}
        clients: Any = there.client_list()
        return keys | {f"session {one['id']} {one['cmd']}" for one in clients if int(one["id"]) != me}


def opensearch(url: str) -> set[str]:
    from tests.servers.opensearch_subjects import asked

    found = {f"index {name}" for name in asked(url, "GET", "/*/_settings?expand_wildcards=all")}
    for index, said in asked(url, "GET", "/_alias?expand_wildcards=all").items():
        found |= {f"alias {alias} of {index}" for alias in said["aliases"]}
    nodes = asked(url, "GET", "/_nodes/stats/indices/search")["nodes"].values()
    scrolls = sum(node["indices"]["search"]["scroll_current"] for node in nodes)
    return found | ({f"{scrolls} open scrolls"} if scrolls else set())


def mongodb(url: str) -> set[str]:
    import pymongo

    with pymongo.MongoClient(url) as client:  # type: ignore[var-annotated]
        names = client.list_database_names()
        return {f"collection {base}.{one}" for base in names for one in client[base].list_collection_names()}


CLICKHOUSE = {
    "table": "database || '.' || name FROM system.tables WHERE database NOT IN "
    "('system', 'INFORMATION_SCHEMA', 'information_schema')",
    "database": "name FROM system.databases",
    "detached part": "database || '.' || table || ' ' || name FROM system.detached_parts",
    "mutation": "database || '.' || table || ' ' || command FROM system.mutations WHERE NOT is_done",
}


def clickhouse(url: str) -> set[str]:
    from tests.servers.clickhouse_subjects import asked

    every = " UNION ALL ".join(f"SELECT '{kind}', {query}" for kind, query in CLICKHOUSE.items())
    return {f"{kind} {name}" for kind, name in asked(url, every)}


def prometheus(url: str) -> set[str]:
    """Every series with a sample, of any time. (/api/v1/series names those that were deleted for hours: until the
    head is cut, 2.42 keeps the names of what has no sample any more.)"""
    last_s = int(time.time()) + 86_400
    asked = urlencode({"query": f'last_over_time({{__name__=~".+"}}[{last_s}s])', "time": last_s})
    with urllib.request.urlopen(f"{url}/api/v1/query?{asked}") as answer:
        found = json.load(answer)["data"]["result"]
    return {f"series {json.dumps(one['metric'], sort_keys=True)}" for one in found}


def kafka(address: str) -> set[str]:
    """Topics and groups (but those that a cluster keeps for itself), and what nobody has committed or aborted. Ids of
    transactions are not listed: a cluster forgets them a week after their last one."""
    from confluent_kafka import KafkaException

    deadline = time.monotonic() + SETTLE_S  # whoever asks first makes a cluster make its own topics
    while True:
        try:
            return _kafka(address)
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _kafka(address: str) -> set[str]:
    from confluent_kafka.admin import AdminClient

    from tests.servers.kafka_subjects import open_transactions

    there = AdminClient({"bootstrap.servers": address, "log_level": 0})
    found = {f"topic {name}" for name in there.list_topics(timeout=10).topics if not name.startswith("__")}
    groups = there.list_consumer_groups(request_timeout=10).result()
    found |= {f"group {one.group_id}" for one in groups.valid}
    return found | {f"open transaction: {one}" for one in open_transactions(address, "")}


def receiver(database: Path) -> set[str]:
    """Of a receiver on SQLite: whether a request's transaction is still open. (Its rows, keys and floors are its own:
    verify removes nothing from a receiver.)"""
    with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as why:
            return {f"lock: {why}"}
    return set()


def processes(mark: str) -> set[str]:
    """Processes that have CAMPAIGN=`mark` in their environment: what verify started, and whatever that started."""
    wanted = f"CAMPAIGN={mark}".encode()
    return {f"process {pid} {words}" for pid, environ, words in _processes() if wanted in environ}


def _processes() -> Iterator[tuple[int, list[bytes], str]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                environ = (folder / "environ").read_bytes().split(b"\0")
                yield int(folder.name), environ, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]


def environment(folder: Path, mark: str) -> Mapping[str, str]:
    """For a run whose temporary files and processes are to be found again."""
    (folder / "tmp").mkdir(exist_ok=True)
    return {"TMPDIR": str(folder / "tmp"), "CAMPAIGN": mark}
