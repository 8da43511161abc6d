"""The input of a verification: a file, the app's own sample, or generated from the topics' types and a seed. Pure.

Invariant: the same seed gives the same records, and every record decodes under its topic's types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as kinds

from semel.errors import UsageError
from semel.ports import Random
from semel.streams.graph import AnyTopic
from semel.streams.topic import milliseconds

RECORDS = 4_000  # generated per topic
KEYS = 23  # different keys, so that they meet in state
FIRST_MS = 1_700_000_000_000


class Given(NamedTuple):
    """One input record, encoded."""

    key: bytes | None
    value: bytes | None
    timestamp: int


def encoded(topic: AnyTopic, pairs: Iterable[tuple[Any, Any]]) -> list[Given]:
    """Pairs as the app's `sample` gives them."""
    found = []
    for i, (key, value) in enumerate(pairs):
        time = milliseconds(topic.time(value)) if topic.time is not None else FIRST_MS + i
        found.append(
            Given(
                None if key is None else topic.key_serde.encode(key),
                None if value is None else topic.value_serde.encode(value),
                time,
            )
        )
    return found


def from_lines(topic: AnyTopic, lines: Iterable[bytes], where: str) -> list[Given]:
    """One JSON object per line: {"key": …, "value": …, "timestamp": ms}; or the value alone, with no key."""
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = msgspec.json.decode(line)
            wrapped = isinstance(data, dict) and "value" in data and data.keys() <= {"key", "value", "timestamp"}
            key, value = (data.get("key"), data["value"]) if wrapped else (None, data)
            time = data.get("timestamp") if wrapped else None
            key = None if key is None else msgspec.convert(key, topic.key, strict=False)
            value = None if value is None else msgspec.convert(value, topic.value)
            (one,) = encoded(topic, [(key, value)])
        except (msgspec.MsgspecError, TypeError, ValueError) as why:
            raise UsageError(f"{where}, line {number}: not a record of {topic!r}: {why}.") from None
        found.append(one._replace(timestamp=time if time is not None else one.timestamp + number))
    if not found:
        raise UsageError(f"{where} has no records: nothing could be proved with it.")
    return found


def generated(topic: AnyTopic, dice: Random, count: int = RECORDS) -> list[Given]:
    """Records of the topic's types: few keys, small numbers, now and then the edges."""
    keys = [_made(topic.key, dice, n) for n in range(KEYS)]
    return encoded(topic, ((dice.choice(keys), _made(topic.value, dice, i)) for i in range(count)))


def _made(of: Any, dice: Random, n: int) -> Any:
    try:
        builtin = _builtin(kinds.type_info(of), dice, n)
        return msgspec.convert(builtin, of, strict=False)
    except (TypeError, msgspec.MsgspecError, KeyError) as why:
        raise UsageError(
            f"no values of {of!r} can be generated ({why}). "
            "Give the app a sample=, or verify an --input TOPIC=FILE.jsonl."
        ) from None


def _builtin(kind: kinds.Type, dice: Random, n: int) -> Any:
    match kind:
        case kinds.NoneType():
            return None
        case kinds.BoolType():
            return dice.random() < 0.5
        case kinds.IntType():
            low, high = kind.ge if kind.ge is not None else -20, kind.le if kind.le is not None else 200
            return dice.randint(max(low, -20), max(low, min(high, 200)))
        case kinds.FloatType():
            return dice.randint(-2000, 20_000) / 100
        case kinds.DecimalType():
            return Decimal(dice.randint(-2000, 20_000)) / 100
        case kinds.StrType():
            return f"{dice.choice(('ant', 'bee', 'cat', 'dog', 'eel', 'fox'))}-{n % KEYS}"
        case kinds.BytesType():
            return b"%d" % n
        case kinds.DateTimeType():
            return datetime.fromtimestamp(FIRST_MS / 1000, UTC) + timedelta(seconds=n)
        case kinds.DateType():
            return date(2026, 1, 1) + timedelta(days=n % 365)
        case kinds.LiteralType():
            return dice.choice(kind.values)
        case kinds.EnumType():
            return dice.choice([member.value for member in kind.cls])
        case kinds.UnionType():
            return _builtin(dice.choice(kind.types), dice, n)
        case kinds.ListType() | kinds.VarTupleType() | kinds.SetType() | kinds.FrozenSetType():
            return [_builtin(kind.item_type, dice, n + i) for i in range(dice.randint(0, 3))]
        case kinds.TupleType():
            return [_builtin(item, dice, n) for item in kind.item_types]
        case kinds.DictType():
            return {_builtin(kind.key_type, dice, i): _builtin(kind.value_type, dice, n) for i in range(2)}
        case kinds.StructType() | kinds.DataclassType() | kinds.TypedDictType() | kinds.NamedTupleType():
            fields = {f.encode_name: _builtin(f.type, dice, n) for f in kind.fields}
            return list(fields.values()) if isinstance(kind, kinds.NamedTupleType) else fields
        case kinds.AnyType():
            return n
        case kinds.UUIDType():
            return f"00000000-0000-4000-8000-{n:012x}"
    raise TypeError(f"no generator for {type(kind).__name__}")


def workload(
    topics: Mapping[str, AnyTopic],
    sample: Mapping[AnyTopic, Iterable[tuple[Any, Any]]] | None,
    files: Mapping[str, tuple[str, Callable[[], Iterator[bytes]]]],
    dice: Random,
) -> dict[str, list[Given]]:
    """Input for each source topic: from its file, else from the sample, else generated."""
    unknown = set(files) - set(topics)
    if unknown:
        raise UsageError(
            f"--input {', '.join(sorted(unknown))}: the app reads no such topic. It reads {', '.join(sorted(topics))}."
        )
    sampled = {topic.name: records for topic, records in (sample or {}).items()}
    found = {}
    for name, topic in sorted(topics.items()):
        if name in files:
            where, lines = files[name]
            found[name] = from_lines(topic, lines(), where)
        elif name in sampled:
            found[name] = encoded(topic, sampled[name])
        else:
            found[name] = generated(topic, dice)
    return found
