"""The outbox in memory, which the contract kit ships."""

from semel.testing.outbox import MemTopic, OutboxLog, OutboxOwner, OutboxSession, Stored

__all__ = ["MemTopic", "OutboxLog", "OutboxOwner", "OutboxSession", "Stored"]
