"""Configurations of topics and of the broker: DescribeConfigs, IncrementalAlterConfigs, AlterConfigs.

A topic's settings are stored and reported; those of the broker are reported, and given at its start (`--set`).
Invariant: what is reported is what was given, or what holds. A value that a client could not live without and that this
broker does not serve (append times, another compression) is refused; which ones are only stored, `config` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from semel.broker.admin_messages import (
    AlterConfigsAlterConfigsResourceResponse,
    AlterConfigsResponse,
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    DescribeConfigsSynonym,
    IncrementalAlterConfigsAlterConfigsResourceResponse,
    IncrementalAlterConfigsResponse,
)
from semel.broker.config import TOPIC_DEFAULTS, refused_topic_config
from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import Ready, Reply, Request
from semel.broker.state import Topic, created

if TYPE_CHECKING:
    from semel.broker.core import Broker

TOPIC: Final = 2
BROKER: Final = 4
_SET, _DELETE, _APPEND, _SUBTRACT = 0, 1, 2, 3
_LISTS: Final = frozenset({"cleanup.policy"})
# Where a value comes from, as Kafka numbers it.
_FROM_TOPIC, _FROM_BROKER, _FROM_DEFAULT = 1, 4, 5
_BOOLEAN, _STRING, _INT, _LONG, _DOUBLE, _LIST = 1, 2, 3, 5, 6, 7


def describe_configs(broker: Broker, request: Request, now_ms: int) -> Ready:
    results = []
    synonyms = getattr(request.message, "include_synonyms", False)
    for wanted in request.message.resources:
        kind, name = wanted.resource_type, wanted.resource_name
        if kind == TOPIC:
            topic = broker.state.topics.get(name)
            if topic is None:
                results.append(DescribeConfigsResult(Error.UNKNOWN_TOPIC_OR_PARTITION, "no such topic", kind, name))
                continue
            rows = [
                _row(
                    key, topic.config.get(key, default), _FROM_TOPIC if key in topic.config else _FROM_DEFAULT, synonyms
                )
                for key, default in broker.config.topic_defaults().items()
            ]
        elif kind == BROKER and name in ("", str(broker.config.node_id)):
            rows = [_row(key, value, _FROM_BROKER, synonyms, True) for key, value in broker.config.described().items()]
        else:
            reason = f"resource {name!r} of type {kind} is not here: topics and broker {broker.config.node_id} are"
            results.append(DescribeConfigsResult(Error.INVALID_REQUEST, reason, kind, name))
            continue
        keys = wanted.configuration_keys
        if keys:
            rows = [row for row in rows if row.name in keys]
        results.append(DescribeConfigsResult(0, None, kind, name, rows))
    return Ready((), (Reply(request.connection, request.token, DescribeConfigsResponse(results=results)),))


def _row(key: str, value: str, source: int, synonyms: bool, read_only: bool = False) -> DescribeConfigsResourceResult:
    same = (DescribeConfigsSynonym(key, value, source),) if synonyms else ()
    return DescribeConfigsResourceResult(key, value, read_only, source, False, same, _type(key, value))


def _type(key: str, value: str) -> int:
    if key in _LISTS:
        return _LIST
    if value in ("true", "false"):
        return _BOOLEAN
    if value.lstrip("-").isdigit():
        return _LONG if key.endswith((".ms", ".bytes", "messages")) else _INT
    return _DOUBLE if value.replace(".", "", 1).isdigit() else _STRING


def incremental_alter_configs(broker: Broker, request: Request, now_ms: int) -> Ready:
    draft = Draft(broker.state)
    results = []
    for resource in request.message.resources:
        error, reason = _alter(broker, draft, resource, request.message.validate_only, _changed)
        results.append(
            IncrementalAlterConfigsAlterConfigsResourceResponse(
                error, reason, resource.resource_type, resource.resource_name
            )
        )
    response = IncrementalAlterConfigsResponse(responses=results)
    draft.replies.append(Reply(request.connection, request.token, response))
    return draft.ready()


def alter_configs(broker: Broker, request: Request, now_ms: int) -> Ready:
    """The older form: what is not named goes back to its default."""
    draft = Draft(broker.state)
    results = []
    for resource in request.message.resources:
        error, reason = _alter(broker, draft, resource, request.message.validate_only, _replaced)
        results.append(
            AlterConfigsAlterConfigsResourceResponse(error, reason, resource.resource_type, resource.resource_name)
        )
    draft.replies.append(Reply(request.connection, request.token, AlterConfigsResponse(responses=results)))
    return draft.ready()


def _alter(broker: Broker, draft: Draft, resource: Any, validate_only: bool, change: Any) -> tuple[Error, str | None]:
    if resource.resource_type != TOPIC:
        return Error.INVALID_REQUEST, "the broker's own settings are given at its start: semel broker --set key=value"
    topic = broker.state.topics.get(resource.resource_name)
    if topic is None:
        return Error.UNKNOWN_TOPIC_OR_PARTITION, "no such topic"
    if topic.internal:
        return Error.INVALID_TOPIC, "the broker's own topic"
    config: dict[str, str] | str = change(topic, resource.configs)
    if isinstance(config, str):
        return Error.INVALID_REQUEST, config
    for key, value in config.items():
        reason = refused_topic_config(key, value)
        if reason is not None:
            return Error.INVALID_CONFIG, reason
    if not validate_only and config != topic.config:
        draft.add(created(topic.number, topic.name, topic.id, len(topic.partitions), config))
    return Error.NONE, None


def _replaced(topic: Topic, settings: Any) -> dict[str, str] | str:
    return {setting.name: setting.value for setting in settings if setting.value is not None}


def _changed(topic: Topic, settings: Any) -> dict[str, str] | str:
    config = dict(topic.config)
    for setting in settings:
        key, value, operation = setting.name, setting.value, setting.config_operation
        if operation == _DELETE:
            config.pop(key, None)
        elif value is None:
            return f"{key}: a value is missing"
        elif operation == _SET:
            config[key] = value
        elif operation in (_APPEND, _SUBTRACT) and key in _LISTS:
            parts = config.get(key, TOPIC_DEFAULTS[key]).split(",")
            named = value.split(",")
            if operation == _APPEND:
                parts += [part for part in named if part not in parts]
            else:
                parts = [part for part in parts if part not in named]
            config[key] = ",".join(part for part in parts if part)
        else:
            return f"{key}: operation {operation} is not known for it"
    return config
