"""Where records enter the log. Each source states its contract as data; `Topic(…, source=…)` declares one."""

from semel.sources.files import Files

__all__ = ["Files"]
