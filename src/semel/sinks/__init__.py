"""Where records leave the log. Each sink states its contract in its type."""

from semel.sinks.files import Files
from semel.sinks.http import HTTP
from semel.sinks.lines import Lines
from semel.sinks.mariadb import MariaDB
from semel.sinks.mariadb_two_phase import MariaDBTwoPhase
from semel.sinks.multipart import MultipartObjects
from semel.sinks.objects import Objects
from semel.sinks.postgres import Postgres
from semel.sinks.postgres_two_phase import PostgresTwoPhase
from semel.sinks.postgres_versioned import PostgresVersioned
from semel.sinks.sqlite import SQLite

__all__ = [
    "HTTP",
    "Files",
    "Lines",
    "MariaDB",
    "MariaDBTwoPhase",
    "MultipartObjects",
    "Objects",
    "Postgres",
    "PostgresTwoPhase",
    "PostgresVersioned",
    "SQLite",
]
