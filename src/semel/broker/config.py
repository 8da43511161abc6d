"""The broker's settings, under Kafka's own names where Kafka has one.

`Config.parse` turns `--set key=value` into a value of this class or a UsageError that names the key. Invariant: a
Config is right by construction, so nothing behind it checks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from semel.errors import UsageError

FSYNC: Final = "fsync"
OS: Final = "os"


@dataclass(frozen=True, slots=True)
class Config:
    node_id: int = 1
    num_partitions: int = 1
    auto_create_topics_enable: bool = True
    durability: str = FSYNC  # `fsync`: acknowledged survives a power cut; `os`: a killed process, as Kafka's default
    message_max_bytes: int = 1_048_588
    fetch_max_bytes: int = 57_671_680
    transaction_max_timeout_ms: int = 900_000
    group_min_session_timeout_ms: int = 1_000
    group_max_session_timeout_ms: int = 1_800_000
    group_initial_rebalance_delay_ms: int = 0
    group_max_size: int = 10_000
    offsets_topic_num_partitions: int = 1
    offset_metadata_max_bytes: int = 4_096
    log_segment_bytes: int = 256 << 20
    # Of journal since the last checkpoint: what a restart replays. Ours, Kafka has no journal. In small records 64 MB
    # are some seconds.
    checkpoint_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"{key_of(name)}={value} is too small: the least is {least}.")
        if self.durability not in (FSYNC, OS):
            raise UsageError(f"durability={self.durability} is not known: choose {FSYNC} or {OS}.")
        if self.group_min_session_timeout_ms > self.group_max_session_timeout_ms:
            raise UsageError(
                f"group.min.session.timeout.ms={self.group_min_session_timeout_ms} is above "
                f"group.max.session.timeout.ms={self.group_max_session_timeout_ms}."
            )

    @classmethod
    def parse(cls, settings: Iterable[str] | Mapping[str, str] = ()) -> Config:
        """From `key=value` texts, or from a mapping."""
        pairs = settings.items() if isinstance(settings, Mapping) else map(_pair, settings)
        changes: dict[str, Any] = {}
        for key, text in pairs:
            name = _NAMES.get(key)
            if name is None:
                raise UsageError(f"Unknown setting `{key}`. Known: {', '.join(sorted(_NAMES))}.")
            changes[name] = _value(key, text, getattr(_DEFAULT, name))
        return replace(_DEFAULT, **changes)

    def topic_defaults(self) -> dict[str, str]:
        """What holds for a topic that says nothing of its own."""
        return TOPIC_DEFAULTS | {
            "max.message.bytes": str(self.message_max_bytes),
            "segment.bytes": str(self.log_segment_bytes),
            "flush.messages": "1" if self.durability == FSYNC else str(2**63 - 1),
        }

    def described(self) -> dict[str, str]:
        """All settings as Kafka's tools show them."""
        return {key: _text(getattr(self, name)) for key, name in _NAMES.items()}


def key_of(name: str) -> str:
    return name.replace("_", ".")


def _pair(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise UsageError(f"`{setting}` is not a setting: write key=value, for example num.partitions=4.")
    return key.strip(), value.strip()


def _value(key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"{key}={text} is not true or false.")
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{key}={text} is not a whole number.") from None
    return text


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_NAMES: Final = {key_of(field.name): field.name for field in fields(Config)}
_LEAST: Final = {
    "node_id": 0,
    "num_partitions": 1,
    "message_max_bytes": 1,
    "fetch_max_bytes": 1024,
    "transaction_max_timeout_ms": 1,
    "group_min_session_timeout_ms": 1,
    "group_initial_rebalance_delay_ms": 0,
    "group_max_size": 1,
    "offsets_topic_num_partitions": 1,
    "offset_metadata_max_bytes": 0,
    "log_segment_bytes": 1024,
    "checkpoint_bytes": 1024,
}
_DEFAULT: Final = Config()


# --- Topics -----------------------------------------------------------------------------------------------------

# What a topic may be given, with what holds when it is not. All are stored and reported. Acted on is max.message.bytes;
# nothing is deleted by age or size and nothing is compacted yet, so retention and compaction settings only tell readers
# what the topic is for, and the defaults say what is so: no limit.
TOPIC_DEFAULTS: Final[dict[str, str]] = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "file.delete.delay.ms": "60000",
    "flush.messages": "1",
    "flush.ms": "9223372036854775807",
    "index.interval.bytes": "4096",
    "max.compaction.lag.ms": "9223372036854775807",
    "max.message.bytes": "1048588",
    "message.timestamp.after.max.ms": "3600000",
    "message.timestamp.before.max.ms": "9223372036854775807",
    "message.timestamp.type": "CreateTime",
    "min.cleanable.dirty.ratio": "0.5",
    "min.compaction.lag.ms": "0",
    "min.insync.replicas": "1",
    "preallocate": "false",
    "retention.bytes": "-1",
    "retention.ms": "-1",
    "segment.bytes": "1073741824",
    "segment.index.bytes": "10485760",
    "segment.jitter.ms": "0",
    "segment.ms": "604800000",
    "unclean.leader.election.enable": "false",
}

_TOPIC_CHOICES: Final[dict[str, frozenset[str]]] = {
    "cleanup.policy": frozenset({"delete", "compact"}),  # one or both, by commas
    "message.timestamp.type": frozenset({"CreateTime"}),  # append times are not written (yet)
    "compression.type": frozenset({"producer"}),  # batches are kept as they came
}


def refused_topic_config(key: str, value: str) -> str | None:
    """Why a topic cannot be given this, None when it can."""
    if key not in TOPIC_DEFAULTS:
        return f"Unknown topic config name: {key}"
    default = TOPIC_DEFAULTS[key]
    choices = _TOPIC_CHOICES.get(key)
    if choices is not None:
        parts = {part.strip() for part in value.split(",")}
        wrong = parts - choices
        return (
            f"{key}: {', '.join(sorted(wrong))} is not served; known: {', '.join(sorted(choices))}" if wrong else None
        )
    if default in ("true", "false"):
        return None if value in ("true", "false") else f"{key}={value} is not true or false"
    try:
        number = float(value) if "." in default else int(value)
    except ValueError:
        return f"{key}={value} is not a number"
    least = -1 if key.startswith("retention.") else 0
    return None if number >= least else f"{key}={value} is below {least}"
