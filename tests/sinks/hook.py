"""Where the HTTP sink posts to, in a process of its own: `hook.py KIND DATABASE PORT`.

POST /hookSUFFIX inserts {"id": …, "n": …}; GET /rowsSUFFIX shows what is there. `ours`: behind semel.receiver, whose
keys expire after half a second (EXPIRES_S), and which keeps refusals with KEPT only. `naive`: the same insert, as it is
mostly written, without it.
"""

from __future__ import annotations

import json
import os
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
        db = sqlite3.connect(database, timeout=30)
        db.execute("CREATE TABLE IF NOT EXISTS entries (suffix text NOT NULL, id text NOT NULL, n integer NOT NULL)")
        db.commit()
        return db

    async def post(request: Request) -> Response:
        body = json.loads(await request.body())
        if not isinstance(body, dict) or not isinstance(body.get("id"), str) or not isinstance(body.get("n"), int):
            return JSONResponse({"detail": "an id and a number n are wanted"}, 422)
        row = (request.path_params["suffix"], body["id"], body["n"])
        if kind == "ours":
            connection().execute("INSERT INTO entries VALUES (?, ?, ?)", row)
        else:
            db = opened()
            with db:
                db.execute("INSERT INTO entries VALUES (?, ?, ?)", row)
            db.close()
        return JSONResponse({"taken": True}, 201)

    def rows(request: Request) -> Response:
        db = opened()
        try:
            where = (request.path_params["suffix"],)
            found = db.execute("SELECT id, n FROM entries WHERE suffix = ?", where).fetchall()
        finally:
            db.close()
        return JSONResponse([{"id": id, "n": n} for id, n in found])

    opened().close()
    routes = [Route("/hook{suffix:path}", post, methods=["POST"]), Route("/rows{suffix:path}", rows)]
    if kind != "ours":
        return Starlette(routes=routes)
    # An error is not kept (unless KEPT): once the receiver takes a record, the sink's next try brings it in.
    ours = Middleware(
        Receiver,
        keys=SQLiteKeys(database),
        expires_s=float(os.environ.get("EXPIRES_S", "0.5")),
        purge_every_s=0.1,
        **({} if os.environ.get("KEPT") else {"final": lambda status: status < 400}),
    )
    return Starlette(routes=routes, middleware=[ours])


if __name__ == "__main__":
    uvicorn.run(
        app_of(sys.argv[1], sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", lifespan="off"
    )
