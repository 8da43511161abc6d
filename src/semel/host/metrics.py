"""What a worker counts, served to Prometheus (and whoever reads its text format) on an address of its own.

Invariant: what is served is read, never changed, and never waited for: a scrape takes no lock that the work takes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semel.contract import Contract
from semel.errors import UsageError
from semel.sinks.measured import SECONDS, Measures

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(given: str) -> Address:
    """`PORT`, `HOST:PORT` or `[IPv6]:PORT`; a port alone is on this machine only."""
    host, _, port = given.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65_536 or (":" in host and not host.startswith("[")):
        raise UsageError(f"--metrics {given}: write PORT (on 127.0.0.1), HOST:PORT or [IPv6]:PORT, for example 9464")
    return Address(host.strip("[]") or "127.0.0.1", int(port))


@dataclass(frozen=True, slots=True)
class Watched:
    """A sink as it is told."""

    where: str
    contract: Contract
    measures: Measures


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """Collects everything of one worker when it is asked (prometheus_client's protocol)."""

    app: str
    progress: Callable[[], tuple[int, int, int]]  # records, commits, aborts since the start
    sinks: Mapping[str, Watched]

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
        )

        records, commits, aborts = self.progress()
        for name, what, count in (
            ("semel_records", "Records processed", records),
            ("semel_commits", "Transactions committed", commits),
            ("semel_aborts", "Transactions aborted", aborts),
        ):
            total = CounterMetricFamily(name, f"{what} by this worker.", labels=["app"])
            total.add_metric([self.app], count)
            yield total
        by = ["app", "sink"]
        each = [*by, "partition"]
        told = InfoMetricFamily("semel_sink", "Each sink of the app, and what its contract promises.", labels=by)
        outcomes = CounterMetricFamily("semel_sink_calls", "Batches, by what became of them.", labels=[*by, "outcome"])
        claims = CounterMetricFamily("semel_sink_claims", "Partitions that this worker took over.", labels=by)
        seconds = HistogramMetricFamily("semel_sink_batch_seconds", "What a batch took at the sink.", labels=by)
        written = {
            "records": CounterMetricFamily("semel_sink_records", "Records the sink has acknowledged.", labels=each),
            "bytes": CounterMetricFamily("semel_sink_bytes", "Their keys and values, in bytes.", labels=each),
            "batches": CounterMetricFamily("semel_sink_batches", "Batches it has acknowledged.", labels=each),
        }
        newest = GaugeMetricFamily(
            "semel_sink_newest_timestamp_seconds", "The time of the last record it acknowledged.", labels=each
        )
        position = GaugeMetricFamily("semel_sink_position", "The next offset of the outbox to deliver.", labels=each)
        behind = GaugeMetricFamily(
            "semel_sink_lag", "Offsets of the outbox that the sink does not hold yet (markers count).", labels=each
        )
        for name, sink in self.sinks.items():
            here, found = [self.app, name], sink.measures
            told.add_metric(
                here, {"where": sink.where, "contract": sink.contract.name, "guarantee": sink.contract.guarantee}
            )
            for outcome in ("done", "not-done", "unknown", "fenced", "refused"):
                outcomes.add_metric([*here, outcome], found.outcomes[outcome])
            claims.add_metric(here, found.claims)
            buckets, below = [], 0
            for end, count in zip([*map(str, SECONDS), "+Inf"], list(found.seconds), strict=True):
                below += count
                buckets.append((end, float(below)))
            seconds.add_metric(here, buckets, found.seconds_sum)
            for partition, taken in found.taken.items():
                at = [*here, str(partition)]
                for field, family in written.items():
                    family.add_metric(at, getattr(taken, field))
                newest.add_metric(at, taken.newest_ms / 1000)
            for owned, (stands, end_offset) in found.stands.items():
                at = [*here, str(owned.partition)]
                position.add_metric(at, stands)
                behind.add_metric(at, max(0, end_offset - stands))
        yield from (told, outcomes, claims, seconds, *written.values(), newest, position, behind)


def serve(at: Address, figures: Figures) -> Callable[[], None]:
    """Serves `figures` at http://`at`/metrics, in a thread of its own. Returns what ends it."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError as missing:
        if missing.name != "prometheus_client":
            raise
        raise UsageError("--metrics needs prometheus-client: pip install 'semel[metrics]'") from None
    registry: Any = CollectorRegistry(auto_describe=False)
    registry.register(figures)
    try:
        server, thread = start_http_server(at.port, addr=at.host, registry=registry)
    except (OSError, socket.gaierror) as why:
        raise UsageError(
            f"--metrics: {at} cannot be served: {why.strerror or why}. Give another address "
            "(worker number n of several is at the port, plus n - 1)."
        ) from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5.0)

    return end
