"""Where the HTTP benchmark posts to, in a process of its own: `bench.hook KIND DATABASE PORT`.

POST /hook inserts the body; GET /rows tells how many there are. `ours`: behind semel.receiver; `naive`: without.
Both write to SQLite in WAL mode with synchronous FULL, a transaction per request, as semel.receiver has it.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from semel.receiver import Receiver, SQLiteKeys, connection


def app_of(kind: str, database: str) -> Any:
    def opened() -> sqlite3.Connection:
        db = sqlite3.connect(database, timeout=30, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        return db

    with opened() as first:
        first.execute("CREATE TABLE IF NOT EXISTS entries (body text NOT NULL)")
    plain = opened()

    async def post(request: Request) -> Response:
        row = ((await request.body()).decode(),)
        if kind == "ours":
            connection().execute("INSERT INTO entries VALUES (?)", row)
        else:
            plain.execute("INSERT INTO entries VALUES (?)", row)
            plain.commit()
        return JSONResponse({"taken": True}, 201)

    routes = [Route("/hook", post, methods=["POST"])]
    if kind != "ours":
        return Starlette(routes=routes)
    return Starlette(routes=routes, middleware=[Middleware(Receiver, keys=SQLiteKeys(database))])


if __name__ == "__main__":
    # Who waits for the other's turn is not to be hung up on.
    uvicorn.run(
        app_of(sys.argv[1], sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", lifespan="off",
        timeout_keep_alive=600,
    )  # fmt: skip
