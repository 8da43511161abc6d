"""The proxy that loses answers, which the contract kit ships."""

from semel.testing.proxy import TcpProxy

__all__ = ["TcpProxy"]
