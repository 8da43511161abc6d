"""Where records leave the log. Each sink states its contract in its type."""

from semel.sinks.http import HTTP
from semel.sinks.lines import Lines
from semel.sinks.postgres import Postgres
from semel.sinks.sqlite import SQLite

__all__ = ["HTTP", "Lines", "Postgres", "SQLite"]
