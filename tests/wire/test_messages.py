"""broker.messages and kio's schemas say the same: each reply class has the fields of all its served versions."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
from kio.index import load_response_schema
from kio.schema.index import api_key_map, schema_name_map

from semel.wire.neutral import nested_class, reply_type, request_type
from semel.wire.schema import fields_of, request_class, response_class
from semel.wire.versions import SERVED, api_versions


def union(entities: list[Any]) -> dict[str, list[Any]]:
    """Neutral field name to the structures it has had (empty for plain fields)."""
    found: dict[str, list[Any]] = {}
    for entity in entities:
        for field in fields_of(entity):
            found.setdefault(field.neutral_name, []).extend([field.entity] if field.entity is not None else [])
    return found


def check(served: list[Any], known: list[Any], into: Any) -> None:
    has = {field.name for field in dataclasses.fields(into)}
    wanted, possible = union(served), union(known)
    assert set(wanted) <= has <= set(possible), into
    hints = typing.get_type_hints(into)
    for name, nested in wanted.items():
        if nested:
            check(nested, possible[name], nested_class(hints[name]))


@pytest.mark.parametrize("key", SERVED)
def test_a_reply_has_the_fields_of_all_its_versions(key: int) -> None:
    """However deep; and no field that no version of kio's has (versions not served yet may be in it)."""
    served, name = SERVED[key], api_key_map[key]
    classes = [response_class(key, version) for version in range(served.first, served.last + 1)]
    known = [load_response_schema(key, version) for version in schema_name_map[name]]
    check(classes, known, reply_type(classes[-1]))


@pytest.mark.parametrize("key", SERVED)
def test_a_request_knows_no_field_that_kio_does_not(key: int) -> None:
    """A misspelt field would never be filled, and its handler see the default for ever."""
    served = SERVED[key]
    entities = [request_class(key, version) for version in range(served.first, served.last + 1)]
    known = {field.name for entity in entities for field in fields_of(entity)}
    assert {field.name for field in dataclasses.fields(request_type(entities[-1]))} <= known


def test_api_versions_names_what_is_handled() -> None:
    """Produce from 0 though 0 to 2 are refused (KAFKA-18659); nothing that has no handler; V1 finalized."""
    reply = api_versions(4, handled={0, 1, 26})
    assert [(one.api_key, one.min_version, one.max_version) for one in reply.api_keys] == [
        (0, 0, 11),
        (1, 4, 18),
        (18, 0, 4),
        (26, 0, 4),
    ]
    assert [(one.name, one.max_version_level) for one in reply.finalized_features] == [("transaction.version", 1)]
    assert api_versions(3).supported_features == ()  # version 3 cannot say 0 (KAFKA-17011)
    assert api_versions(4).supported_features[0].min_version == 0
