"""The settings every Kafka client object of ours is made with, and what their errors mean.

One place knows confluent-kafka's names: how `kafka://host:port` becomes settings, which error codes mean that
another owner has taken over, and how to bound a call that may never return. A setting that a guarantee rests on
cannot be given in the URL.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from semel.errors import SemelError, UsageError
from semel.ports import LogLost

try:
    import confluent_kafka
except ImportError as missing:
    raise UsageError(
        "Kafka clusters need the confluent-kafka package, which is not installed here. "
        "Install it with: pip install 'semel[kafka]'"
    ) from missing

KafkaError = confluent_kafka.KafkaError
KafkaException = confluent_kafka.KafkaException

R = TypeVar("R")

# How long one log may be silent before we give up: longer than a broker's restart, shorter than a person's patience.
LOST_AFTER_S = 30.0


def patient() -> float:
    return LOST_AFTER_S


# Guarantees rest on these: the URL may not change them.
OWNED = frozenset(
    {
        "bootstrap.servers", "group.id", "group.instance.id", "transactional.id", "transaction.timeout.ms",
        "enable.idempotence", "enable.auto.commit", "enable.auto.offset.store", "isolation.level", "auto.offset.reset",
        "acks", "request.required.acks", "enable.partition.eof", "partition.assignment.strategy", "partitioner",
        "check.crcs", "debug", "group.protocol", "enable.gapless.guarantee", "delivery.report.only.error",
    }
)  # fmt: skip

# Another member owns what we were about to move. REBALANCE_IN_PROGRESS is not among them: the membership is still
# good, only the commit came too late for it.
FENCED_CODES = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError._FENCED,
    }
)


@dataclass(frozen=True, slots=True)
class Address:
    """A cluster as the user wrote it, and as librdkafka wants it."""

    url: str  # kafka://host:port, without settings: safe to print
    servers: str
    settings: Mapping[str, str]
    # Seconds to wait for a silent log, asked each time: somebody who leaves waits less.
    patience_s: Callable[[], float] = patient

    @property
    def lost(self) -> str:
        return (
            f"{self.url} does not answer. Is a broker running there? "
            f"`semel broker DIR --listen {self.servers.split(',')[0]}` starts one."
        )


def address(url: str) -> Address:
    """kafka://host:port[,host:port…][?setting=value&…] with librdkafka's names of settings."""
    parts = urlsplit(url)
    servers = parts.netloc
    if parts.scheme != "kafka" or not servers or parts.path not in ("", "/"):
        raise UsageError(f"{url!r} is no Kafka address. Write it as kafka://host:port")
    for server in servers.split(","):
        _, colon, port = server.rpartition(":")
        if not colon or not port.isdigit():
            raise UsageError(
                f"{url!r}: {server!r} has no port. Write it as kafka://host:port, for example kafka://127.0.0.1:9092"
            )
    settings = dict(parse_qsl(parts.query))
    if refused := sorted(set(settings) & OWNED):
        raise UsageError(f"{url!r}: {', '.join(refused)} cannot be set: exactly-once rests on semel's own choice")
    return Address(f"kafka://{servers}", servers, settings)


class Lines:
    """Takes librdkafka's log lines: keeps the connection losses, drops the rest.

    Only the FAIL lines of `debug=broker` report every loss: error_cb reported none of three, INFO lines two of
    three (the same error is suppressed for 30 s). Has the one method that confluent-kafka calls on a logger.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []

    def log(self, level: int, form: str, facility: str = "", *rest: str) -> None:
        if facility == "FAIL":
            self.failures.append(rest[-1] if rest else form)


def base_settings(at: Address) -> dict[str, Any]:
    """What all clients share. A broker of ours restarts within a second or two, so reconnects must not back off for
    ten; the client library must not print: what matters is raised."""
    return {
        "bootstrap.servers": at.servers,
        "client.id": "semel",
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 500,
        "log_level": 0,
        # Off in librdkafka: a batch that rotted on a disk would be taken as it is. Found, it is _BAD_MSG
        # (kafka_columns).
        "check.crcs": True,
        # The default, rebootstrap, forgets every broker once none can be reached; a transactional producer then sends
        # its TxnOffsetCommit to the forgotten one and waits without end (librdkafka 2.16.1, one broker, killed between
        # AddOffsetsToTxn and TxnOffsetCommit; tests/servers/clients/copy_confluent.py found it).
        "metadata.recovery.strategy": "none",
        **at.settings,
    }


def error_of(raised: BaseException) -> confluent_kafka.KafkaError:
    """The KafkaError in an exception. With `logger=`, a fatal error surfaces as SystemError caused by it."""
    seen: BaseException | None = raised
    while seen is not None:
        if isinstance(seen, KafkaException) and seen.args and isinstance(seen.args[0], KafkaError):
            return seen.args[0]
        seen = seen.__cause__ or seen.__context__
    return KafkaError(KafkaError._FAIL, str(raised))


def is_fenced(error: confluent_kafka.KafkaError) -> bool:
    return error.code() in FENCED_CODES


class ConfigRefused(SemelError):
    """librdkafka did not take our settings."""

    exit_code = 2


def made(make: Callable[[dict[str, Any]], R], settings: dict[str, Any], at: Address) -> R:
    """A client object; a setting of the user's that librdkafka refuses is the user's error."""
    try:
        return make(settings)
    except KafkaException as refused:
        raise ConfigRefused(
            f"{at.url}: {error_of(refused).str()}. Check the settings after '?' in the URL."
        ) from refused


class Stuck(Exception):
    """The call has not returned in time and may never."""


class Watchdog:
    """Runs calls into librdkafka that may ignore their own timeout (send_offsets_to_transaction: librdkafka #5456,
    FAULTS P7) on a thread of its own, so that the caller gets its answer in bounded time.

    A stuck thread is abandoned with the object it hangs in; after `STUCK_MAX` of them the process should be
    restarted, and `call` says so with LogLost.
    """

    STUCK_MAX = 3

    def __init__(self, at: Address) -> None:
        self._at = at
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] | None = None
        self._stuck = 0

    def call(self, function: Callable[[], R], timeout_s: float) -> R:
        """The function's result, or what it raised; Stuck when `timeout_s` passed without either."""
        if self._calls is None:
            if self._stuck >= self.STUCK_MAX:
                raise LogLost(f"{self._at.url}: {self._stuck} calls of the Kafka client never returned; start again")
            self._calls = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._calls,), name="semel-kafka-calls", daemon=True).start()
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._calls.put((function, answer))
        try:
            returned, value = answer.get(timeout=timeout_s)
        except queue.Empty:
            self._calls = None
            self._stuck += 1
            raise Stuck(f"no answer from the Kafka client in {timeout_s:.0f} s") from None
        if returned:
            result: R = value
            return result
        raise value

    def close(self) -> None:
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def _serve(calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None]) -> None:
    while (call := calls.get()) is not None:
        function, answer = call
        try:
            answer.put((True, function()))
        except BaseException as raised:  # handed to the caller, who asked
            answer.put((False, raised))
        del function, answer, call  # a producer that was given up must not live on in this frame


def bury(thing: object) -> None:
    """Lets go of a client object on a thread of its own: destroying one waits for its threads, and one that hangs
    never ends."""
    grave = [thing]
    threading.Thread(target=grave.clear, name="semel-kafka-bury", daemon=True).start()
