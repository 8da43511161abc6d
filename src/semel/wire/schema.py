"""kio's classes, loaded when first needed: all of them would take a second at start-up.

`request_class` and `response_class` raise `KeyError` for what is not served; `fields_of` is the one place that
reads kio's metadata, for the writer, the reader that skips and the adapter.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import kio.index
from kio.serial._implicit_defaults import get_tagged_field_default
from kio.serial._introspect import EntityField, EntityTupleField, classify_field, get_field_tag, is_optional
from kio.static.protocol import Entity

from semel.wire.versions import SERVED

KioClass = type[Entity]


class SchemaField(NamedTuple):
    name: str  # kio's
    kind: str  # kio's kafka_type; "entity" for a structure
    array: bool
    nullable: bool  # the array, or the single value
    tag: int | None
    entity: KioClass | None
    default: Any  # dataclasses.MISSING when the schema has none; a tagged field always has one

    @property
    def neutral_name(self) -> str:
        """The name in broker.messages: times there are whole milliseconds and say so."""
        return f"{self.name}_ms" if self.kind.startswith(("timedelta", "datetime")) else self.name


@cache
def fields_of(entity: KioClass) -> tuple[SchemaField, ...]:
    found = []
    for field in dataclasses.fields(entity):
        shape = classify_field(field)
        nested = shape.type_ if isinstance(shape, EntityField | EntityTupleField) else None
        tag = get_field_tag(field)
        found.append(
            SchemaField(
                name=field.name,
                kind="entity" if nested is not None else field.metadata["kafka_type"],
                array=shape.is_array,
                nullable=is_optional(field),
                tag=None if tag is None else int(tag),
                entity=nested,
                default=field.default if tag is None else get_tagged_field_default(field),
            )
        )
    return tuple(found)


def _check(api_key: int, version: int) -> None:
    served = SERVED.get(api_key)
    if served is None or not served.first <= version <= served.last:
        raise KeyError((api_key, version))


@cache
def request_class(api_key: int, version: int) -> KioClass:
    _check(api_key, version)
    return kio.index.load_request_schema(api_key, version)


@cache
def response_class(api_key: int, version: int) -> KioClass:
    _check(api_key, version)
    return kio.index.load_response_schema(api_key, version)
