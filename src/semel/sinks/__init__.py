"""Where records leave the log. Each sink states its contract in its type."""

from semel.sinks.delta import DeltaLake
from semel.sinks.duckdb import DuckDB
from semel.sinks.http import HTTP
from semel.sinks.iceberg import Iceberg
from semel.sinks.lines import Lines
from semel.sinks.mariadb import MariaDB
from semel.sinks.objects import Objects
from semel.sinks.postgres import Postgres
from semel.sinks.postgres_versioned import PostgresVersioned
from semel.sinks.sqlite import SQLite

__all__ = [
    "HTTP",
    "DeltaLake",
    "DuckDB",
    "Iceberg",
    "Lines",
    "MariaDB",
    "Objects",
    "Postgres",
    "PostgresVersioned",
    "SQLite",
]
