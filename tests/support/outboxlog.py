"""The outbox in memory, which the contract kit ships."""

from semel.testing.outbox import MemTopic, OutboxLog, OutboxSession, Stored

__all__ = ["MemTopic", "OutboxLog", "OutboxSession", "Stored"]
