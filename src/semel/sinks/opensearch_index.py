"""The index of an OpenSearch sink: what is created, and what one that is there must be.

Invariant: rows are written through the alias INDEX_live with require_alias, so that an index that is gone is never made
anew by a write, with a guessed mapping and without what was delivered before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from semel.sinks.columns import Column, ColumnType
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.opensearch import OpenSearch
    from semel.sinks.opensearch_http import Http

HIDDEN, DELETED, POSITION = "semel_hidden", "semel_deleted", "semel_position"
FILTER = {"bool": {"must_not": [{"exists": {"field": HIDDEN}}]}}
OURS: Mapping[str, Mapping[str, Any]] = {
    HIDDEN: {"type": "keyword"},
    DELETED: {"type": "date"},
    POSITION: {"type": "object", "enabled": False},
}
_KEYWORD = {
    "type": "keyword",
    "ignore_above": 8191,
}  # a term has 32,766 bytes at most; what is longer is kept, not found
CREATED: Mapping[ColumnType, Mapping[str, Any]] = {
    ColumnType.INTEGER: {"type": "long", "coerce": False},
    ColumnType.FLOAT: {"type": "double", "coerce": False},
    ColumnType.DECIMAL: _KEYWORD,
    ColumnType.BOOLEAN: {"type": "boolean"},
    ColumnType.TEXT: _KEYWORD,
    ColumnType.TIMESTAMP: {"type": "date"},
    ColumnType.DATE: {"type": "date"},
    ColumnType.TIME: _KEYWORD,
    ColumnType.DURATION: _KEYWORD,
    ColumnType.UUID: _KEYWORD,
    ColumnType.BYTES: {"type": "binary"},
    ColumnType.JSON: {"type": "object", "enabled": False},
}
_TEXTS = frozenset(("keyword", "text", "wildcard", "match_only_text"))
# What a field is found by must be what was committed: `float` or `scaled_float` would round it.
TAKEN: Mapping[ColumnType, frozenset[str]] = {
    ColumnType.INTEGER: frozenset(("long", "integer", "short", "byte", "unsigned_long")),
    ColumnType.FLOAT: frozenset(("double",)),
    ColumnType.DECIMAL: _TEXTS,
    ColumnType.BOOLEAN: frozenset(("boolean",)),
    ColumnType.TEXT: _TEXTS,
    ColumnType.TIMESTAMP: frozenset(("date", "date_nanos", "keyword")),
    ColumnType.DATE: frozenset(("date", "date_nanos", "keyword")),
    ColumnType.TIME: _TEXTS,
    ColumnType.DURATION: _TEXTS,
    ColumnType.UUID: _TEXTS,
    ColumnType.BYTES: frozenset(("binary", "keyword")),
    ColumnType.JSON: frozenset(("object", "nested", "flattened", "flat_object")),
}


def field_name(name: str) -> str:
    """Why a field cannot have this name in a document."""
    if name.startswith("semel_"):
        return "begins with semel_, as semel's own do"
    if not name.strip() or "." in name or name.startswith("_"):
        return "is no field of a document: a point makes two fields of it, an underscore before it is the server's"
    return ""


def judged(http: Http, sink: OpenSearch, columns: Sequence[Column] | None) -> list[str]:
    """Creates what is missing, validates what is there; what weakens the contract, in sentences."""
    index = aliased(http, sink)
    if index is None:
        if _asked(http, sink, "GET", f"/{sink.index}", missing=True) is None:
            _create(http, sink, columns)
        else:
            _asked(http, sink, "POST", "/_aliases",
                   {"actions": [{"add": {"index": sink.index, "alias": sink.live, "filter": FILTER}}]})  # fmt: skip
        index = aliased(http, sink)
        assert index is not None, f"{sink.where}: the alias was made and is not there"
    found = _asked(http, sink, "GET", f"/{index}")[index]
    _mapping(sink, index, found["mappings"], columns)
    defaults = _asked(http, sink, "GET", f"/{index}/_settings", include_defaults=True, flat_settings=True)[index]
    return _settings(sink, index, {**defaults.get("defaults", {}), **defaults["settings"]})


def aliased(http: Http, sink: OpenSearch) -> str | None:
    """The one index that the alias stands for."""
    there = _asked(http, sink, "GET", f"/_alias/{sink.live}", missing=True)
    if not there:
        return None
    if len(there) > 1:
        raise SinkError(
            f"{sink.where}: the alias {sink.live} stands for {', '.join(sorted(there))}; wanted is one index. Remove "
            "it from the others."
        )
    ((index, said),) = there.items()
    if said["aliases"][sink.live].get("filter") != FILTER:
        raise SinkError(
            f"{sink.where}: the alias {sink.live} has not semel's filter, so readers would find deleted documents. "
            "Remove it; it is made anew at the next start."
        )
    return str(index)


def _create(http: Http, sink: OpenSearch, columns: Sequence[Column] | None) -> None:
    if columns is None:
        raise SinkError(
            f"{sink.where} does not exist, and the type of the values is not known here. Say it: OpenSearch(…, "
            "value=TYPE), or create the index."
        )
    fields = {**{column.name: CREATED[column.type] for column in columns}, **OURS}
    body = {"mappings": {"dynamic": "strict", "properties": fields}, "aliases": {sink.live: {"filter": FILTER}}}
    status, answer = http.exchange("PUT", f"/{sink.index}", body)
    if status != 200 and _type(answer) != "resource_already_exists_exception":  # of another worker
        raise refusal(sink, status, answer)


def _mapping(sink: OpenSearch, index: str, mappings: Mapping[str, Any], columns: Sequence[Column] | None) -> None:
    source = mappings.get("_source", {})
    if source:
        raise SinkError(f"{sink.where}: _source of {index} is {source}: the values would not be kept as they are.")
    properties: Mapping[str, Mapping[str, Any]] = mappings.get("properties", {})
    wanted: dict[str, tuple[str, ...]] = {name: (said["type"],) for name, said in OURS.items()}
    lacks = {name: OURS[name] for name in OURS if name not in properties}
    for column in columns or ():
        wanted[column.name] = tuple(sorted(TAKEN[column.type]))
        if column.name not in properties:
            lacks[column.name] = CREATED[column.type]
    if lacks:
        said = json.dumps({"properties": lacks})
        raise SinkError(f"{sink.where}: its mapping lacks {', '.join(lacks)}. PUT /{index}/_mapping {said}")
    for name, types in wanted.items():
        there = properties[name].get("type", "object")
        if there not in types:
            raise SinkError(
                f"{sink.where}: the field {name!r} is {there}, wanted is {' or '.join(types)}: what is found must be "
                "what was committed. Change the field's type, or make a new index and put the alias on it."
            )


def _settings(sink: OpenSearch, index: str, settings: Mapping[str, Any]) -> list[str]:
    for name in ("index.default_pipeline", "index.final_pipeline"):
        if settings.get(name, "_none") not in ("_none", ""):
            raise SinkError(f"{sink.where}: {name}={settings[name]}: it changes the documents. Set it to _none.")
    if settings.get("index.translog.durability", "request").lower() == "request":
        return []
    if int(settings.get("index.number_of_shards", "1")) > 1:
        raise SinkError(
            f"{sink.where}: index.translog.durability=async and more than one shard: a crash can lose rows in one and "
            f'keep their position in another. PUT /{index}/_settings {{"index.translog.durability": "request"}}'
        )
    return [
        f"{sink.where}: index.translog.durability=async: what it acknowledged in the last seconds is lost in its "
        "crash; it is sent again as long as the outbox holds it. Set it to request."
    ]


def _asked(
    http: Http, sink: OpenSearch, method: str, path: str, body: object = None, *, missing: bool = False, **query: object
) -> Any:
    """The answer's body; None for what is not there."""
    status, answer = http.exchange(method, path, body, **query)
    if status == 404 and missing:
        return None
    if status != 200:
        raise refusal(sink, status, answer)
    return answer


class Busy(Exception):
    """Waiting may mend it. `unknown`: it may have been done all the same."""

    def __init__(self, message: str, *, unknown: bool) -> None:
        super().__init__(message)
        self.unknown = unknown


def refusal(sink: OpenSearch, status: int, answer: Any) -> SinkError | Busy:
    """Of a whole request: what a person mends, or what passes."""
    told = f"{sink.where}: it answers {status} {reason(answer)}".rstrip()
    if status in (408, 429) or status >= 500 or _type(answer) == "cluster_block_exception":
        return Busy(told, unknown=status not in (429,) and _type(answer) != "cluster_block_exception")
    if status in (401, 403):
        return SinkError(f"{told}. Check user, password and rights.")
    if status == 404:
        return SinkError(
            f"{told}. The index is gone, or its alias {sink.live}: nothing more is delivered. Put it back; or start "
            "the app again: it is made anew and filled from the start of the outbox."
        )
    return SinkError(f"{told}.")


def _type(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("type", "")) if isinstance(error, dict) else ""


def reason(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        inner = error.get("caused_by", {})
        return ": ".join(filter(None, (error.get("type", ""), error.get("reason", ""), inner.get("reason", ""))))[:400]
    return str(error)[:400] if error is not None else ""
