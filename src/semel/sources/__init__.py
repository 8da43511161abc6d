"""Where records enter the log. Each source states its contract as data; `Topic(…, source=…)` declares one."""

from semel.sources.files import Files
from semel.sources.http_endpoint import HTTPEndpoint
from semel.sources.postgres_changes import Change, PostgresChanges
from semel.sources.postgres_table import PostgresTable

__all__ = ["Change", "Files", "HTTPEndpoint", "PostgresChanges", "PostgresTable"]
