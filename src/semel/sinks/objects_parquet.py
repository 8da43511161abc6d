"""Parquet, through pyarrow: the records of a cut as one row group, with a schema from the values' type.

Invariant: the file is a function of the records, the schema and pyarrow's version alone; the fingerprint of its records
is in its metadata, so two files of one cut are recognised across versions.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from semel.contract import Row
from semel.errors import UsageError
from semel.sinks.columns import Column, ColumnType
from semel.sinks.rows import Shape, Within, by_column, split

try:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet
except ImportError as missing:
    raise UsageError(
        "Parquet needs the pyarrow package, which is not installed here. Install it with: pip install 'semel[parquet]'"
    ) from missing

TAG = b"semel"
ROWS_MAX = 1 << 30  # of a row group: one per file

_encode = msgspec.json.Encoder(order="sorted").encode


_integer = Within(-(2**63), 2**63 - 1, "beyond 64 bits")


def _instant(value: Any) -> datetime:
    # Nanoseconds, which JSON can carry and a datetime cannot, are cut off; a time without a zone is taken as UTC.
    at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value).replace("Z", "+00:00"))
    return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)


# Arrow's type, and how a JSON value becomes one of it. What Arrow would round or cannot hold stays text.
_TYPES: Mapping[ColumnType, tuple[Any, Callable[[Any], object]]] = {
    ColumnType.INTEGER: (pa.int64(), _integer),
    ColumnType.FLOAT: (pa.float64(), float),
    ColumnType.BOOLEAN: (pa.bool_(), bool),
    ColumnType.TIMESTAMP: (pa.timestamp("us", tz="UTC"), _instant),
    ColumnType.DATE: (pa.date32(), date.fromisoformat),
    ColumnType.BYTES: (pa.binary(), base64.b64decode),
    ColumnType.JSON: (pa.string(), lambda value: _encode(value).decode()),
}


def _of(column: Column) -> tuple[Any, Callable[[Any], object]]:
    return _TYPES.get(column.type, (pa.string(), str))


def packed(columns: Sequence[Column], compression: str, rows: Sequence[Row], fingerprint: str) -> bytes:
    """The file. Raises RowRefused for a record that does not fit."""
    upserts, _ = split(Shape(columns, [_of(column)[1] for column in columns], None, "parquet"), rows)
    schema = pa.schema([(column.name, _of(column)[0]) for column in columns], metadata={TAG: fingerprint.encode()})
    values = by_column(upserts) if upserts else [()] * len(columns)
    arrays = [pa.array(held, type=field.type) for held, field in zip(values, schema)]
    file = io.BytesIO()
    table = pa.Table.from_arrays(arrays, schema=schema)
    parquet.write_table(table, file, compression=compression or "snappy", row_group_size=ROWS_MAX)
    return file.getvalue()


def fingerprint_in(body: bytes) -> str:
    """ "" when it is no file of ours."""
    try:
        metadata = parquet.read_metadata(io.BytesIO(body)).metadata or {}
    except (pa.ArrowException, OSError):
        return ""
    return str(metadata.get(TAG, b"").decode())


def lines(body: bytes) -> list[bytes]:
    """Each record as JSON."""
    return [
        _encode({name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()})
        for row in parquet.read_table(io.BytesIO(body)).to_pylist()
    ]
