"""ClickHouse's HTTP interface over chdb, in a process of its own: `clickhouse_serving.py FOLDER PORT [merges]`.

The engine is ClickHouse itself, in process (chdb); only the few lines of HTTP around it are ours: a statement in the
body or in `query`, settings in the address, Native in both directions, `X-ClickHouse-Exception-Code` on an error. One
statement at a time. An answer is written when the engine has answered, as the server's own is.
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb

OWN = {"query", "database", "user", "password", "session_id", "query_id", "wait_end_of_query", "default_format"}
OWN |= {"send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression"}
OWN |= {"client_protocol_version", "session_timeout", "compress", "decompress", "buffer_size"}
INSERT = re.compile(rb"\s*(INSERT\s+INTO\s[^\n]*?)\s+FORMAT\s+(\w+)\s*\n", re.IGNORECASE)
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*$", re.IGNORECASE)


class Engine:
    def __init__(self, folder: str, merges: bool) -> None:
        self.connection = chdb.connect(folder)
        self.lock = threading.Lock()
        if not merges:  # repeats that are stored are counted by tests: nothing removes them behind their back
            self.connection.query("SYSTEM STOP MERGES")

    def run(self, sql: bytes, parameters: dict[str, str]) -> tuple[bytes, str]:
        settings = {name: value for name, value in parameters.items() if name not in OWN}
        with self.lock:
            for name, value in settings.items():
                self.connection.query(f"SET {name} = '{value}'".replace("\\", "\\\\"))
            try:
                return self._run(sql, parameters)
            finally:
                for name in settings:
                    self.connection.query(f"SET {name} = DEFAULT")

    def _run(self, sql: bytes, parameters: dict[str, str]) -> tuple[bytes, str]:
        if database := parameters.get("database"):
            self.connection.query(f"USE `{database}`")
        if found := INSERT.match(sql):
            with tempfile.NamedTemporaryFile(suffix=".native") as data:
                data.write(sql[found.end() :])
                data.flush()
                into = f"{found[1].decode()} FROM INFILE '{data.name}' FORMAT {found[2].decode()}"
                self.connection.query(into, "TabSeparated")
            return b"", ""
        text = sql.decode()
        said = FORMAT.search(text)
        format = said[1] if said else parameters.get("default_format", "TabSeparated")
        answer = self.connection.query(text, format)
        return answer.bytes() or b"", format


def handler_of(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._answer(self._body())

        def do_GET(self) -> None:
            self._answer(b"")

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            parts = []
            while True:
                line = self.rfile.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionError("the request ended before its last chunk")
                size = int(line.split(b";")[0], 16)
                data = self.rfile.read(size + 2)
                if len(data) < size + 2:
                    raise ConnectionError("the request ended before its last chunk")
                if not size:
                    return b"".join(parts)
                parts.append(data[:-2])

        def _answer(self, body: bytes) -> None:
            parameters: dict[str, str] = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            query = parameters.get("query", "").encode()
            sql = b"\n".join(part for part in (query, body) if part)
            status, code, format = 200, "", ""
            try:
                answer, format = engine.run(sql, parameters) if sql else (b"Ok.\n", "")
            except Exception as why:
                found = re.search(r"Code: (\d+)", str(why))
                status, code, answer = 500, found[1] if found else "1002", str(why).encode()
            self.send_response(status)
            if code:
                self.send_header("X-ClickHouse-Exception-Code", code)
            if answer and format:
                self.send_header("X-ClickHouse-Format", format)
            self.send_header("X-ClickHouse-Summary", "{}")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: Any) -> None:
            return

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a client that has gone


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    Server(("127.0.0.1", int(sys.argv[2])), handler_of(Engine(sys.argv[1], sys.argv[3:] == ["merges"]))).serve_forever()
