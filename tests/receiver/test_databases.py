"""The application's database under the receiver: away, in a schema of its own, opened the application's way, shared."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from semel.receiver import Receiver
from tests.receiver.asgi import Got, post
from tests.receiver.conftest import Place
from tests.receiver.test_receiver import FLOOR, run


def test_a_database_that_is_away_is_said_and_nothing_happens(tmp_path: Any, place: Place) -> None:
    from semel.receiver import AsyncPostgresKeys, PostgresKeys, SQLiteKeys

    nowhere: Any = {
        "sqlite": lambda: SQLiteKeys(tmp_path / "missing" / "app.db", wait_s=0.1),
        "postgres": lambda: PostgresKeys("postgresql://127.0.0.1:1/none"),
        "async-postgres": lambda: AsyncPostgresKeys("postgresql://127.0.0.1:1/none"),
    }[place.kind]
    app = place.app()
    got = run(post(Receiver(app, nowhere()), b"x", '"a"'))
    assert (got.status, got.headers["retry-after"], app.runs) == (503, "1", 0)
    assert got.json["type"] == "urn:semel:receiver:keys-unavailable"


def test_the_tables_can_be_made_by_a_migration(place: Place) -> None:
    """`schema()` gives what the receiver would create; afterwards it needs no right to create."""
    statements = [part for part in place.keys().schema().split(";\n") if part]
    assert len(statements) == 3
    for text in statements:
        place.query(text)
    assert run(post(Receiver(place.app(), place.keys()), b"x", '"a"')).answer == "first"


@pytest.mark.parametrize("kind", ["postgres", "async-postgres"])
def test_postgres_in_a_schema_of_its_own_without_the_right_to_create(kind: str, dsn: str) -> None:
    from tests.receiver.conftest import place_of

    place = place_of(kind, dsn)
    writer = "writer_" + kind.partition("-")[0]
    with psycopg.connect(dsn) as owner:
        owner.execute('CREATE SCHEMA "Own"')
        owner.execute(place.keys(schema="Own").schema())
        owner.execute(f"CREATE ROLE {writer} LOGIN PASSWORD 'w'")
        owner.execute(f'GRANT USAGE ON SCHEMA "Own" TO {writer}')
        owner.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "Own" TO {writer}')
        owner.execute(f"GRANT INSERT ON effects TO {writer}")
    user = f"postgresql://{writer}:w@" + dsn.rpartition("@")[2]
    keys = place_of(kind, user).keys(schema="Own")
    assert run(post(Receiver(place.app(), keys), b"x", '"a"')).answer == "first"
    assert place.query('SELECT key FROM "Own".semel_keys') == [("a",)]


@pytest.mark.parametrize("kind", ["postgres", "async-postgres"])
def test_postgres_ends_the_transaction_of_a_paused_receiver(kind: str, dsn: str) -> None:
    """S14: while it stands still its key is held, no longer than `running_s`; then another one runs it, and what the
    paused one goes on to write is refused."""
    from tests.receiver.conftest import place_of

    place = place_of(kind, dsn)
    app = place.app()

    async def scene() -> tuple[Got, Got, Got]:
        entered, release = asyncio.Event(), asyncio.Event()

        async def stand() -> None:
            entered.set()
            await release.wait()

        app.do = stand
        paused = asyncio.create_task(post(Receiver(app, place.keys(running_s=0.3)), b"x", '"a"'))
        await entered.wait()
        other = Receiver(place.app(), place.keys())
        told = await post(other, b"x", '"a"')
        async with asyncio.timeout(5):
            while (got := await post(other, b"x", '"a"')).status == 409:
                await asyncio.sleep(0.02)
        release.set()
        return told, got, await paused

    told, heir, late = run(scene())
    assert (told.status, heir.answer, late.status) == (409, "first", 503)
    assert place.effects() == 1


def test_an_application_opens_its_connections_its_own_way(place: Place) -> None:
    """A pool's `connection`, dict rows, autocommit: the receiver asks for a connection that is idle, no more."""
    import sqlite3
    from contextlib import asynccontextmanager, contextmanager

    from psycopg.rows import dict_row

    from semel.receiver import AsyncPostgresKeys, PostgresKeys, SQLiteKeys

    opened: list[Any] = []
    address: Any = place.keys()

    if place.kind == "sqlite":

        def connect() -> sqlite3.Connection:
            opened.append(1)
            found = sqlite3.connect(address.path, check_same_thread=False)
            found.row_factory = sqlite3.Row
            return found

        keys: Any = SQLiteKeys(address.path, connect=connect)
    elif place.kind == "postgres":

        @contextmanager
        def pool() -> Any:
            opened.append(1)
            with address._connect() as held:
                held.row_factory, held.autocommit = dict_row, True
                yield held

        keys = PostgresKeys(pool)
    else:

        @asynccontextmanager
        async def async_pool() -> Any:
            opened.append(1)
            async with address._connect() as held:
                held.row_factory = dict_row
                await held.set_autocommit(True)
                yield held

        keys = AsyncPostgresKeys(async_pool)

    async def scene() -> list[Got]:
        app = Receiver(place.app(), keys)
        return [await post(app, b"x", '"i/0/1"', floor=FLOOR.format(1)) for _ in range(2)]

    assert [g.answer for g in run(scene())] == ["first", "replayed"]
    assert opened and place.effects() == 1


def test_no_secret_is_in_what_is_said(dsn: str) -> None:
    from semel.receiver import AsyncPostgresKeys, PostgresKeys

    secret = dsn.partition(":")[2].partition(":")[2].partition("@")[0]
    assert len(secret) > 10
    for keys in (AsyncPostgresKeys(dsn), PostgresKeys(dsn)):
        assert secret not in keys.where


def test_starting_together_the_tables_are_made_once(place: Place) -> None:
    async def scene() -> list[Got]:
        return await asyncio.gather(*(post(Receiver(place.app(), place.keys()), b"x", f'"{n}"') for n in range(8)))

    assert [g.status for g in run(scene())] == [201] * 8
