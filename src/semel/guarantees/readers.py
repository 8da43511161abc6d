"""What a reader of an output topic must set, per client library, and what it gets when it sets nothing.

A transaction ends at the log. A reader that does not ask for committed records only sees aborted and open ones too:
then the path was exactly-once and the reader is not. Read from the libraries' sources, November 2026.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reader:
    library: str
    setting: str  # what gives committed records only
    default: str  # what the library does when nothing is set
    safe: bool  # whether the default is committed records only
    source: str


READERS = (
    Reader(
        "Java client, Kafka Connect",
        "isolation.level=read_committed",
        "read_uncommitted",
        False,
        "apache/kafka ConsumerConfig.DEFAULT_ISOLATION_LEVEL",
    ),
    Reader(
        "librdkafka, confluent-kafka",
        "isolation.level=read_committed",
        "read_committed",
        True,
        "confluentinc/librdkafka CONFIGURATION.md, isolation.level",
    ),
    Reader(
        "aiokafka",
        'isolation_level="read_committed"',
        "read_uncommitted",
        False,
        "aio-libs/aiokafka AIOKafkaConsumer, isolation_level",
    ),
    Reader(
        "kafka-python",
        'isolation_level="read_committed"',
        "read_uncommitted",
        False,
        "dpkp/kafka-python KafkaConsumer.DEFAULT_CONFIG, isolation_level",
    ),
    Reader(
        "franz-go",
        "kgo.FetchIsolationLevel(kgo.ReadCommitted())",
        "read_uncommitted",
        False,
        "twmb/franz-go kgo.defaultCfg, isolationLevel",
    ),
    Reader("semel read, App", "nothing to set", "read_committed", True, "semel: --uncommitted shows the rest"),
)
