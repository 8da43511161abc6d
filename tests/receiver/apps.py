"""Receivers in processes of their own: `apps.py KIND ADDRESS PORT`, the check's endpoint behind each.

Ours on Starlette and FastAPI, over each kind of keys; and receivers as they are often written, each with one mistake.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import litestar
import psycopg
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from semel.receiver import AsyncPostgresKeys, PostgresKeys, Receiver, SQLiteKeys, connection
from tests.receiver.asgi import respond

Headers = list[tuple[bytes, bytes]]

EXPIRES_S = float(os.environ.get("RECEIVER_EXPIRES_S", "86400"))


def wanted(headers: Mapping[str, str]) -> tuple[float, int]:
    """What the check asks of the handler: how long to take, and how to answer. Or to die."""
    if headers.get("check-kill") == "now":
        os.kill(os.getpid(), signal.SIGKILL)
    return float(headers.get("check-sleep-ms", 0)) / 1000, int(headers.get("check-status", 201))


def killing(keys: Any) -> Any:
    """RECEIVER_KILL=before-commit:3 kills the process before its third commit of a key, after-commit after it."""
    where, _, number = os.environ.get("RECEIVER_KILL", "").partition(":")
    if not where:
        return keys
    begin, seen = keys.begin, 0

    async def begin_to_die(sent: Any, now_ms: int) -> Any:
        held = await begin(sent, now_ms)
        if held is None:
            return None
        commit = held.commit

        async def commit_and_die(kept: Any, *, undo: bool = False) -> None:
            nonlocal seen
            seen += kept is not None
            if where == "before-commit" and kept is not None and seen == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            await commit(kept, undo=undo)
            if where == "after-commit" and kept is not None and seen == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

        held.commit = commit_and_die
        return held

    keys.begin = begin_to_die
    return keys


# --- ours -------------------------------------------------------------------------------------------------------------


def starlette_sqlite(address: str) -> Any:
    """Plain functions, run in threads; the connection from `request.state`."""

    def write(request: Any, effect: str, answer: int, sleep_s: float) -> Response:
        db = request.state.semel.connection
        db.execute("INSERT INTO effects (name) VALUES (?)", (effect,))
        time.sleep(sleep_s)
        run = uuid.uuid4().hex
        return JSONResponse({"effect": effect, "run": run}, answer, {"Check-Run": run})

    async def post(request: Any) -> Response:
        sleep_s, answer = wanted_after = wanted({}) if "check-kill" in request.headers else wanted(request.headers)
        effect = (await request.json())["effect"]
        if "check-kill" in request.headers:
            request.state.semel.connection.execute("INSERT INTO effects (name) VALUES (?)", (effect,))
            wanted(request.headers)
        assert wanted_after
        return await asyncio.to_thread(write, request, effect, answer, sleep_s)

    def get(request: Any) -> Response:
        return JSONResponse({"effects": counted_sqlite(address, request.query_params["effect"])})

    routes = [Route("/check", post, methods=["POST"]), Route("/check", get)]
    middleware = [Middleware(Receiver, keys=killing(SQLiteKeys(address)), expires_s=EXPIRES_S)]
    return Starlette(routes=routes, middleware=middleware)


class Effect(BaseModel):
    effect: str


def fastapi_postgres(address: str) -> Any:
    """A plain function and psycopg's blocking connection, given by a dependency."""
    app = FastAPI()
    app.add_middleware(Receiver, keys=killing(PostgresKeys(address, running_s=5)), expires_s=EXPIRES_S)

    @app.post("/check")
    def post(
        body: Effect, request: Request, response: Response, db: Annotated[Any, Depends(connection)]
    ) -> dict[str, str]:
        db.execute("INSERT INTO effects (name) VALUES (%s)", (body.effect,))
        sleep_s, response.status_code = wanted(request.headers)
        time.sleep(sleep_s)
        run = uuid.uuid4().hex
        response.headers["Check-Run"] = run
        return {"effect": body.effect, "run": run}

    @app.get("/check")
    def get(effect: str) -> dict[str, int]:
        return {"effects": counted_postgres(address, effect)}

    return app


def fastapi_async_postgres(address: str) -> Any:
    """Coroutines and psycopg's async connection."""
    app = FastAPI()
    app.add_middleware(Receiver, keys=killing(AsyncPostgresKeys(address, running_s=5)), expires_s=EXPIRES_S)

    @app.post("/check")
    async def post(
        body: Effect, request: Request, response: Response, db: Annotated[Any, Depends(connection)]
    ) -> dict[str, str]:
        await db.execute("INSERT INTO effects (name) VALUES (%s)", (body.effect,))
        sleep_s, response.status_code = wanted(request.headers)
        await asyncio.sleep(sleep_s)
        run = uuid.uuid4().hex
        response.headers["Check-Run"] = run
        return {"effect": body.effect, "run": run}

    @app.get("/check")
    def get(effect: str) -> dict[str, int]:
        return {"effects": counted_postgres(address, effect)}

    return app


def starlette_async_postgres(address: str) -> Any:
    async def post(request: Any) -> Response:
        effect = (await request.json())["effect"]
        await request.state.semel.connection.execute("INSERT INTO effects (name) VALUES (%s)", (effect,))
        sleep_s, answer = wanted(request.headers)
        await asyncio.sleep(sleep_s)
        run = uuid.uuid4().hex
        return JSONResponse({"effect": effect, "run": run}, answer, {"Check-Run": run})

    def get(request: Any) -> Response:
        return JSONResponse({"effects": counted_postgres(address, request.query_params["effect"])})

    keys = killing(AsyncPostgresKeys(address, running_s=5))
    middleware = [Middleware(Receiver, keys=keys, expires_s=EXPIRES_S)]
    return Starlette(routes=[Route("/check", post, methods=["POST"]), Route("/check", get)], middleware=middleware)


def litestar_async_postgres(address: str) -> Any:
    """Litestar answers an exception outside of its middleware, so the receiver stands around the whole app."""

    @litestar.post("/check")
    async def create(request: litestar.Request[Any, Any, Any]) -> litestar.Response[dict[str, str]]:
        effect = (await request.json())["effect"]
        await connection().execute("INSERT INTO effects (name) VALUES (%s)", (effect,))
        sleep_s, answer = wanted({name.lower(): value for name, value in request.headers.items()})
        await asyncio.sleep(sleep_s)
        run = uuid.uuid4().hex
        return litestar.Response({"effect": effect, "run": run}, status_code=answer, headers={"Check-Run": run})

    @litestar.get("/check", sync_to_thread=True)
    def count(effect: str) -> dict[str, int]:
        return {"effects": counted_postgres(address, effect)}

    keys = killing(AsyncPostgresKeys(address, running_s=5))
    return Receiver(litestar.Litestar([create, count]), keys=keys, expires_s=EXPIRES_S)


def counted_sqlite(address: str, effect: str) -> int:
    db = sqlite3.connect(address, timeout=30)
    try:
        return int(db.execute("SELECT count(*) FROM effects WHERE name = ?", (effect,)).fetchone()[0])
    finally:
        db.close()


def counted_postgres(address: str, effect: str) -> int:
    with psycopg.connect(address) as db:
        row = db.execute("SELECT count(*) FROM effects WHERE name = %s", (effect,)).fetchone()
        assert row is not None
        return int(row[0])


# --- as they are often written ---------------------------------------------------------------------------------------


class Naive:
    """Idempotency-Keys by hand over SQLite, right but for what `wrong` names."""

    def __init__(self, address: str, *wrong: str) -> None:
        self.address, self.wrong = address, wrong
        self.answers: dict[tuple[str, str], tuple[str, int, Headers, bytes]] = {}
        self.running: set[tuple[str, str]] = set()
        self.floors: dict[tuple[str, str, str], int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            effect = scope["query_string"].decode().rpartition("effect=")[2]
            await respond(send, 200, json.dumps({"effects": counted_sqlite(self.address, effect)}).encode())
            return
        from semel.receiver import rules

        body = (await receive())["body"]
        target = scope["raw_path"] + b"?" + scope["query_string"]
        sent = rules.parse(scope["headers"], "POST", target, body)
        if "ignores keys" in self.wrong:
            await self.handle(scope, body, send)
            return
        if isinstance(sent, rules.Problem):
            await respond(send, sent.status, sent.body(""), sent.headers(""))
            return
        name, place = (sent.sender, sent.key), sent.place
        lane = (sent.sender, place.incarnation, str(place.partition)) if place else None
        about: Headers = [(b"semel-key-expires", b"Sat, 01 Jan 2400 00:00:00 GMT")]
        if lane is not None:
            assert sent.floor is not None and place is not None
            floor = self.floors.get(lane, 0)
            if "floor from keys" not in self.wrong:
                self.floors[lane] = max(floor, sent.floor)
            about.append((b"semel-floor", str(max(floor, sent.floor)).encode()))
        if name in self.answers:
            fingerprint, status, headers, answer = self.answers[name]
            if fingerprint != sent.fingerprint and "no fingerprint" not in self.wrong:
                problem = rules.decide(sent, rules.Kept(fingerprint, rules.Answer(0, (), b""), 10**18), 0, 0)
                assert isinstance(problem, rules.Problem)
                await respond(send, problem.status, problem.body(""), problem.headers(""))
                return
            await respond(send, status, answer, [*headers, *about])
            return
        if lane is not None and place is not None and place.offset < floor:
            await respond(send, 200, b"{}", [(b"semel-answer", b"done"), *about])
            return
        if name in self.running:
            problem = rules.running(sent)
            await respond(send, problem.status, problem.body(""), problem.headers(""))
            return
        self.running.add(name)
        try:
            status, headers, answer = await self.handle(scope, body, send, about)
        finally:
            self.running.discard(name)
        if status < 500 or "5xx is final" in self.wrong:
            self.answers[name] = (sent.fingerprint, status, headers, answer)
        if "floor from keys" in self.wrong and lane is not None and place is not None:
            self.floors[lane] = max(floor, place.offset + 1)

    async def handle(self, scope: Any, body: bytes, send: Any, about: Any = ()) -> tuple[int, Headers, bytes]:
        """The effect, in a transaction of its own; the key is remembered afterwards, somewhere else."""
        told = {name.decode(): value.decode() for name, value in scope["headers"]}
        db = sqlite3.connect(self.address, timeout=30, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO effects (name) VALUES (?)", (json.loads(body)["effect"],))
        sleep_s, status = wanted(told)
        db.execute("COMMIT" if status < 400 else "ROLLBACK")
        db.close()
        await asyncio.sleep(sleep_s)
        run = uuid.uuid4().hex
        headers = [(b"content-type", b"application/json"), (b"check-run", run.encode())]
        answer = json.dumps({"run": run}).encode()
        await respond(send, status, answer, [*headers, *about])
        return status, headers, answer


APPS: dict[str, Callable[[str], Any]] = {
    "starlette-sqlite": starlette_sqlite,
    "starlette-async-postgres": starlette_async_postgres,
    "fastapi-postgres": fastapi_postgres,
    "fastapi-async-postgres": fastapi_async_postgres,
    "litestar-async-postgres": litestar_async_postgres,
    "naive-ignores-keys": lambda address: Naive(address, "ignores keys"),
    "naive-memory": lambda address: Naive(address),
    "naive-no-fingerprint": lambda address: Naive(address, "no fingerprint"),
    "naive-5xx-final": lambda address: Naive(address, "5xx is final"),
    "naive-floor-from-keys": lambda address: Naive(address, "floor from keys"),
}


def main(kind: str, address: str, port: str) -> None:
    if kind == "starlette-sqlite" or kind.startswith("naive"):
        assert Path(address).exists(), address
    uvicorn.run(APPS[kind](address), host="127.0.0.1", port=int(port), log_level="warning", lifespan="off")


if __name__ == "__main__":
    main(*sys.argv[1:])
