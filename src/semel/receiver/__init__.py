"""The receiver's half of exactly-once over HTTP: a request with an Idempotency-Key has its effect once.

    app.add_middleware(Receiver, keys=AsyncPostgresKeys(pool.connection))

    @app.post("/orders")
    async def create(order: Order, db: Annotated[AsyncConnection, Depends(connection)]) -> Created: ...

What the handler writes with this connection, and the key with the answer, are one transaction of the application's own
database. docs/receiver.md has the rules, also for receivers in other languages; `semel receiver check URL` tries them.
"""

from typing import TYPE_CHECKING, Any

from semel.receiver.keys import Held, Keys, KeysUnavailable, NotOurs
from semel.receiver.middleware import Current, Receiver, connection, current
from semel.receiver.sqlite import SQLiteKeys

if TYPE_CHECKING:
    from semel.receiver.postgres import AsyncPostgresKeys, PostgresKeys

__all__ = [
    "AsyncPostgresKeys",
    "Current",
    "Held",
    "Keys",
    "KeysUnavailable",
    "NotOurs",
    "PostgresKeys",
    "Receiver",
    "SQLiteKeys",
    "connection",
    "current",
]


def __getattr__(name: str) -> Any:
    """Postgres' half is imported when it is asked for: psycopg is an extra."""
    if name in ("PostgresKeys", "AsyncPostgresKeys"):
        from semel.receiver import postgres

        return getattr(postgres, name)
    raise AttributeError(name)
