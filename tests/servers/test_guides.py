"""The guides of docs/sinks and docs/sources, played again on the real servers: each example is fed, run and left, and
what the page's commands print is what the page says."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from tests.receiver.served import Served
from tests.sinks.subjects import S3_BUCKET, S3_KEY, S3_SECRET, s3_options
from tests.support.broker import BrokerProcess
from tests.support.clickhouse import ClickHouseProcess
from tests.support.ferretdb import FerretProcess
from tests.support.guides import ROWS, Guide, Played, guides
from tests.support.mariadb import MariaDBServer
from tests.support.opensearch import OpenSearchProcess
from tests.support.prometheus import PrometheusProcess
from tests.support.redis import RedisProcess, redis_server
from tests.support.seaweed import SeaweedProcess

ENTRIES = '{"id":"ann","n":3}\n{"id":"bob","n":5}\n{"id":"ann","n":8}\n'
SAMPLES = """\
{"customer":"ann","total":3,"at":1795453200000}
{"customer":"bob","total":5,"at":1795453200000}
{"customer":"ann","total":8,"at":1795453230000}
"""
SOURCE_ROWS = "customer,total\nann,3\nbob,5\nann,8\n"


@contextmanager
def played(guide: Guide, folder: Path) -> Iterator[Played]:
    """The guide's server, its example fed and delivered."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        replaced, env, hidden = _served(guide, folder, stack)
        play = Played(guide, folder / "run", replaced, env, hidden)
        if guide.path.parent.name == "sources":
            _entered(guide, play)
        else:
            play.fed({"HTTP": ENTRIES, "Prometheus": SAMPLES}.get(guide.name, ROWS))
            play.delivered("totals")
        yield play


def _served(guide: Guide, folder: Path, stack: ExitStack) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Placeholders of the page with what stands for them, the environment of its commands, and what is hidden."""
    name = guide.name
    if name.startswith("Postgres"):
        settings = {"wal_level": "logical", "max_prepared_transactions": "8"}
        server = stack.enter_context(PostgresServer(folder / "postgres", settings=settings))
        dsn = server.dsn
        _tables(dsn)
        at = f"127.0.0.1:{server.port}/postgres"
        return {"postgresql://me@db/shop": dsn}, {"DSN": dsn}, {"db/shop": at}
    if name.startswith("MariaDB"):
        maria = stack.enter_context(MariaDBServer(folder / "mariadb"))
        words = f"-h127.0.0.1 -P{maria.port} -uroot test"
        return {"mysql://me:secret@db/shop": maria.url}, {"DB": words}, {"db/shop": f"127.0.0.1:{maria.port}/test"}
    if name == "Redis":
        redis = stack.enter_context(RedisProcess(redis_server(), folder / "redis"))
        return {"redis://cache:6379/0": redis.url}, {"URL": redis.url}, {"cache:6379": f"127.0.0.1:{redis.port}"}
    if name == "OpenSearch":
        node = stack.enter_context(OpenSearchProcess(folder / "opensearch"))
        return {"http://search:9200": node.url}, {"URL": node.url}, {"search:9200": f"127.0.0.1:{node.port}"}
    if name == "MongoDB":
        mongo = stack.enter_context(FerretProcess(folder / "ferretdb"))
        return {"mongodb://db/shop": mongo.url}, {"URL": mongo.url}, {"db/shop": mongo.url.partition("//")[2]}
    if name == "MultipartObjects":
        seaweed = stack.enter_context(SeaweedProcess(folder / "seaweed"))
        keys = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET, "AWS_ALLOW_HTTP": "true"}
        keys |= {"AWS_REGION": s3_options(seaweed.endpoint)["region"]}
        bucket = {"s3://bucket": f"s3://{S3_BUCKET}", "'bucket'": f"'{S3_BUCKET}'"}
        return bucket | {"https://s3.example": seaweed.endpoint}, keys, {}
    if name == "KafkaTopic":
        target = stack.enter_context(BrokerProcess(folder / "target"))
        return {"kafka://target:9092": f"kafka://{target.address}"}, {}, {"target:9092": target.address}
    if name.startswith("ClickHouse"):
        click = stack.enter_context(ClickHouseProcess(folder / "clickhouse"))
        at = f"127.0.0.1:{click.port}"
        url = {"URL": f"http://{at}/?database=default"}
        return {"http://me:secret@db:8123/shop": click.url}, url, {"db:8123/shop": f"{at}/default"}
    if name == "Prometheus":
        metrics = stack.enter_context(PrometheusProcess(folder / "prometheus"))
        at = f"127.0.0.1:{metrics.port}"
        return {"http://metrics:9090": metrics.url}, {"URL": metrics.url}, {"metrics:9090": at}
    if name == "HTTP":
        (folder / "run").mkdir()
        hook = Served("ours", str(folder / "run" / "hook.db"), folder, "tests.sinks.hook")
        stack.enter_context(hook)
        at = f"127.0.0.1:{hook.port}"
        return {"https://example.org/hook": f"http://{at}/hook"}, {}, {"example.org": at}
    if name == "HTTPEndpoint":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return {"127.0.0.1:8080": f"127.0.0.1:{port}"}, {}, {}
    return {}, {}, {}


def _tables(dsn: str) -> None:
    """What the sources' guides read."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        tables = {"outbox": "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "items": "id bigint PRIMARY KEY"}
        for table, key in tables.items():
            connection.execute(f"CREATE TABLE {table} ({key}, customer text NOT NULL, total bigint NOT NULL)")  # type: ignore[arg-type]
        connection.execute("ALTER TABLE items REPLICA IDENTITY FULL")
        connection.execute("INSERT INTO outbox (customer, total) VALUES ('ann', 3), ('bob', 5), ('ann', 8)")
        connection.execute("INSERT INTO items VALUES (1, 'ann', 3), (2, 'bob', 5)")


def _entered(guide: Guide, play: Played) -> None:
    """What is there before the page's commands."""
    (play.folder / "in").mkdir(exist_ok=True)
    (play.folder / "in" / "totals.csv").write_text(SOURCE_ROWS)
    if guide.name == "PostgresChanges":
        play.ran("semel ingest app.py")  # the snapshot; what follows is the stream
        with psycopg.connect(play.env["DSN"], autocommit=True) as connection:
            connection.execute("UPDATE items SET total = 8 WHERE id = 1")
            connection.execute("DELETE FROM items WHERE id = 2")
    if guide.name == "HTTPEndpoint":
        url = f"http://{play.replaced['127.0.0.1:8080']}/totals"
        words = [sys.executable, "-m", "semel.cli.main", "ingest", "app.py", "--follow"]
        ingest = subprocess.Popen(words, cwd=play.folder, env=play.env, stdout=subprocess.DEVNULL)
        try:
            post = ["curl", "-s", "-m", "5", "-H", 'Idempotency-Key: "one"', "-d", '{"customer":"ann","total":3}', url]
            deadline = time.monotonic() + 30
            while subprocess.run(post, capture_output=True).returncode:
                assert ingest.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            subprocess.run(post, check=True, capture_output=True)  # once more: replayed
            ingest.send_signal(signal.SIGINT)
            assert ingest.wait(30) == 0
        finally:
            ingest.kill()
            ingest.wait()


def _untried(guide: Guide) -> str:
    """Why this guide cannot be played here; "" when it can."""
    if guide.name == "MongoDB" and not os.environ.get("SEMEL_PROOF"):
        return "FerretDB takes minutes to build: `make proof WHAT=guides`"
    tools = {command.split()[0] for command in guide.commands()} - {"semel"}
    return "".join(f"{tool} is not installed" for tool in sorted(tools) if shutil.which(tool) is None)


EVERY = [*guides("sinks"), *guides("sources")]


@pytest.mark.parametrize("guide", EVERY, ids=lambda guide: f"{guide.path.parent.name}-{guide.name}")
def test_what_the_page_shows_is_what_is_printed(guide: Guide, tmp_path: Path) -> None:
    """Word for word, but for process ids, times and places."""
    if why := _untried(guide):
        pytest.skip(why)
    with played(guide, tmp_path / "guide") as play:
        assert play.console() == guide.between("see")
