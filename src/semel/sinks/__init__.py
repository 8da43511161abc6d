"""Where records leave the log. Each sink states its contract in its type."""

from semel.sinks.clickhouse import ClickHouse
from semel.sinks.clickhouse_appended import ClickHouseAppended
from semel.sinks.delta import DeltaLake
from semel.sinks.duckdb import DuckDB
from semel.sinks.files import Files
from semel.sinks.http import HTTP
from semel.sinks.iceberg import Iceberg
from semel.sinks.kafka_topic import KafkaTopic
from semel.sinks.lines import Lines
from semel.sinks.mariadb import MariaDB
from semel.sinks.mariadb_two_phase import MariaDBTwoPhase
from semel.sinks.mongodb import MongoDB
from semel.sinks.multipart import MultipartObjects
from semel.sinks.objects import Objects
from semel.sinks.opensearch import OpenSearch
from semel.sinks.postgres import Postgres
from semel.sinks.postgres_appended import PostgresAppended
from semel.sinks.postgres_two_phase import PostgresTwoPhase
from semel.sinks.postgres_versioned import PostgresVersioned
from semel.sinks.prometheus import Prometheus
from semel.sinks.redis import Redis
from semel.sinks.sqlite import SQLite

__all__ = [
    "HTTP",
    "ClickHouse",
    "ClickHouseAppended",
    "DeltaLake",
    "DuckDB",
    "Files",
    "Iceberg",
    "KafkaTopic",
    "Lines",
    "MariaDB",
    "MariaDBTwoPhase",
    "MongoDB",
    "MultipartObjects",
    "Objects",
    "OpenSearch",
    "Postgres",
    "PostgresAppended",
    "PostgresTwoPhase",
    "PostgresVersioned",
    "Prometheus",
    "Redis",
    "SQLite",
]
