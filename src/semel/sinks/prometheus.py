"""Prometheus as a sink, by remote write: `Prometheus("http://host:9090", "orders_total", value="count")`.
Contract: Windowed.

A record is one sample: a value that is absolute (a total, a level), at the time of its event. Its identity is its
series and its stamp: the same sample again is no second one. An increment would be: it is nothing that this sink can
send. Nothing is opened here; `prometheus_connection.py` does the work, `prometheus_form.py` makes samples and bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    Resolution,
    Settlement,
    Window,
    Windowed,
)
from semel.ports import NoSteps, Steps
from semel.sinks.prometheus_form import LABEL, METRIC
from semel.sinks.sink import SinkError, encode_deleted, encode_parts, encode_row, field_of

if TYPE_CHECKING:
    from semel.sinks.prometheus_connection import PrometheusConnection

DAY_S = 86_400.0


def contract(window: Window) -> Contract:
    return Contract(
        name="Windowed",
        guarantee=Guarantee.ONCE_IN_WINDOW,
        identity=Identity.SAMPLE,
        atomicity=Atomicity.RECORD,
        remembers_position=False,
        fence=Fence.CREATE_ONLY,
        resolution=Resolution.READ_BACK,
        durability="kill -9: always (its write-ahead log); a power cut can lose the last seconds, which are not synced",
        position=PositionIn.GROUP_OFFSETS,
        settlement=Settlement.REPEATED,
        window=window,
    )


class Prometheus:
    """Samples of one metric, to Prometheus 2.42 or newer (`--web.enable-remote-write-receiver`).

    `value` names the field with the sample's value, `labels` the fields that are its labels, `at` the one with its
    event time (a datetime with a zone, or an int: ms since the epoch; without it, the record's own time). `constant`
    are labels that each sample has. The outbox is partitioned by the labels, so a series stays in order.
    `retention_s`: how long the server keeps samples, at least; it is asked. `headers` travel with each request
    (credentials belong there; they are never shown).
    """

    partitions_outbox = True  # by `encode_key`, though no record replaces another

    def __init__(
        self,
        url: str,
        metric: str,
        *,
        value: str,
        labels: Sequence[str] = (),
        at: str | None = None,
        constant: Mapping[str, str] | None = None,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        retention_s: float = 15 * DAY_S,
        timeout_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        try:
            self.address = urlsplit(url)
            _ = self.address.port
        except ValueError:
            raise SinkError("Prometheus: the address cannot be read; wanted is http://HOST:9090.") from None
        if self.address.scheme not in ("http", "https") or not self.address.hostname or self.address.query:
            raise SinkError(f"Prometheus at {self.address.hostname or '?'}: wanted is http://HOST:9090, or https.")
        if self.address.username or self.address.password:
            raise SinkError(
                f"{self.address.scheme}://…@{self.address.hostname}: credentials in an address end in logs. Give them "
                'as headers={"Authorization": …}.'
            )
        self.constant = dict(constant or {})
        for label in (*labels, *self.constant):
            if not re.fullmatch(LABEL, label) or label.startswith("__"):
                raise SinkError(
                    f"Prometheus metric {metric}: {label!r} cannot be a label: letters, digits and _, no digit first, "
                    "and not __ (which Prometheus keeps for itself). Rename the field, or map it first."
                )
        if not re.fullmatch(METRIC, metric + _suffix):
            raise SinkError(f"Prometheus: {metric + _suffix!r} cannot be a metric: letters, digits, _ and :.")
        if twice := sorted(set(labels) & set(self.constant)) or sorted(
            {a for a in labels if list(labels).count(a) > 1}
        ):
            raise SinkError(f"Prometheus metric {metric}: the label {twice[0]!r} is named twice.")
        if any(not text for text in self.constant.values()):
            raise SinkError(f"Prometheus metric {metric}: a label that is empty is none.")
        if value in labels or (at is not None and at in labels):
            raise SinkError(
                f"Prometheus metric {metric}: a label that is the value, or the time, makes every sample a series."
            )
        if retention_s <= 0 or timeout_s <= 0:
            raise SinkError(f"Prometheus metric {metric}: retention_s and timeout_s are above 0.")
        self.url, self.plain_metric, self.suffix = url, metric, _suffix
        self.value, self.labels, self.at_field = value, tuple(labels), at
        self.headers = dict(headers or {})
        self.window = Window(seconds=retention_s)  # declared; when the server was asked, what it has
        self.retention_s, self.timeout_s = retention_s, timeout_s
        self._name = name or metric.replace(":", "-")

    @property
    def name(self) -> str:
        return self._name

    @property
    def metric(self) -> str:
        return self.plain_metric + self.suffix

    @property
    def where(self) -> str:
        port = f":{self.address.port}" if self.address.port else ""
        return f"Prometheus metric {self.metric} at {self.address.hostname}{port}"

    @property
    def kind(self) -> type[Windowed]:
        return Windowed

    @property
    def contract(self) -> Contract:
        return contract(self.window)

    @property
    def key(self) -> tuple[str, ...] | None:
        return None

    def encode_key(self, value: object) -> bytes | None:
        """The series: its samples lie in one partition, in one order."""
        return encode_parts(self.labels, [field_of(value, label) for label in self.labels])

    def encode_deleted(self, key: object) -> bytes:
        return encode_deleted(None, key, self.where)

    def encode_value(self, value: object) -> bytes:
        return encode_row(value)

    def renamed(self, suffix: str) -> Prometheus:
        return Prometheus(
            self.url,
            self.plain_metric,
            value=self.value,
            labels=self.labels,
            at=self.at_field,
            constant=self.constant,
            name=self._name,
            headers=self.headers,
            retention_s=self.retention_s,
            timeout_s=self.timeout_s,
            _suffix=self.suffix + re.sub(r"[^a-zA-Z0-9_]", "_", suffix),
        )

    def open(self, steps: Steps | None = None) -> PrometheusConnection:
        from semel.sinks.prometheus_connection import PrometheusConnection

        return PrometheusConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, value={self.value}>"
