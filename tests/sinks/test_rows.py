"""A batch column by column gives the parameters that its rows give one by one, or leaves it to them."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel.contract import Row, Rows
from semel.host.postgres import PostgresServer
from semel.sinks import rows as rows_module
from semel.sinks.columns import FITS, Column, ColumnType, read
from semel.sinks.postgres_rows import by_column_plain
from semel.sinks.postgres_session import Plain, _copied, copy_text
from semel.sinks.rows import Convert, Shape, last_per_key, one_by_one, split
from semel.sinks.sink import RowRefused

KINDS = list(ColumnType)
TEXTS = ["", "x", "7", "1.5", "2013-01-01", "2013-01-01T05:00:00Z", "2013-01-01T05:00:00.5+02:00", "YQ==", "PT1S"]
TEXTS += ["12345678-1234-5678-1234-567812345678", "12345678-1234-5678-1234-56781234567A", "12:00:00"]
NUMBERS = [0, 1, -1, 2**53 + 1, 2**63, 10**30, True, False, 0.0, -0.0, 1.0, 1.5]
simple: st.SearchStrategy[Any] = st.sampled_from([None, *TEXTS, *NUMBERS]) | st.integers() | st.text()
anything = simple | st.lists(simple, max_size=2) | st.dictionaries(st.text(max_size=2), simple, max_size=2)


def of(kind: ColumnType) -> Convert:
    """What some sinks do, and what refuses some values."""

    def checked(value: Any) -> object:
        read(kind, value)
        return str(value)

    return str if FITS[kind] == {str} and kind is ColumnType.TEXT else checked


def outcome(run: Any) -> object:
    try:
        return [[(type(part), part) for row in part_of for part in (row[0], *row[1])] for part_of in run()]
    except RowRefused as why:
        return why.args, why.offset


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_both_ways_agree(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    columns = [Column(f"c {n}", kind, data.draw(st.booleans())) for n, kind in enumerate(kinds)]
    keyed = data.draw(st.lists(st.sampled_from([c.name for c in columns]), unique=True, max_size=2))
    shape = Shape(columns, [of(kind) for kind in kinds], tuple(keyed) or None, "here")

    def fitting(column: Column) -> st.SearchStrategy[Any]:
        fits = [one for one in (*TEXTS, *NUMBERS) if type(one) in FITS[column.type]]
        return st.sampled_from(fits) if data.draw(st.integers(0, 9)) else anything

    batch = []
    for offset in range(data.draw(st.integers(0, 4))):
        values = {c.name: data.draw(fitting(c)) for c in columns if data.draw(st.integers(0, 9))}
        if not data.draw(st.integers(0, 19)):
            values["other"] = 1
        key = [values.get(name) if data.draw(st.integers(0, 9)) else data.draw(simple) for name in keyed]
        value = (
            msgspec.json.encode(values)
            if data.draw(st.integers(0, 19))
            else data.draw(st.sampled_from([None, b"7", b"{"]))
        )
        batch.append(Row(offset, 0, msgspec.json.encode(key) if keyed else None, value))
    last = list({row.key: row for row in batch}.values()) if keyed else batch
    assert outcome(lambda: split(shape, batch)) == outcome(lambda: one_by_one(shape, last))
    assert outcome(lambda: split(shape, Rows.of(batch))) == outcome(lambda: one_by_one(shape, last))
    piece = rows_module._at_once(shape, Rows.of(last)) if last and all(row.value for row in last) else None
    if piece is not None:  # what is said to be plain text needs no escape, and no column without None has one
        for column, held, plain in zip(columns, piece.columns, piece.plain, strict=True):
            assert not plain or list(_copied(held)) == list(held)
            assert column.nullable or None not in held


def test_a_text_with_an_escape_is_not_plain() -> None:
    """The last assertions of the test above can fail: what JSON escapes, COPY does."""
    shape = Shape([Column("c", ColumnType.TEXT, False)], [str], None, "here")
    for text, plain in (("a b", True), ("ä", True), ("a\tb", False), ("a\\", False), ('"', False), ("\x01", False)):
        upserts, _ = split(shape, [Row(0, 0, None, msgspec.json.encode({"c": text}))])
        assert isinstance(upserts, rows_module.Upserts) and upserts.plain == [plain], text
        assert isinstance(by_column_plain(upserts)[0], Plain) is plain


def test_rows_by_column_are_a_sequence_of_rows() -> None:
    """Whoever wrote a sink against a list of rows finds one."""
    wanted = [Row(n, n + 1, b"k%d" % (n % 3), None if n % 2 else b"v%d" % n) for n in range(7)]
    rows = Rows.of(wanted)
    assert list(rows) == wanted and len(rows) == 7 and rows[-1] == wanted[-1] and rows[2] in rows
    assert list(rows[2:5]) == wanted[2:5] and list(reversed(rows)) == wanted[::-1]
    assert list(rows.at([4, 0])) == [wanted[4], wanted[0]] and Rows.of(rows) is rows
    assert list(last_per_key(wanted)) == [wanted[6], wanted[4], wanted[5]]
    rows.extend(Rows.of(wanted[:2]))
    assert list(rows) == [*wanted, *wanted[:2]]
    with pytest.raises(AssertionError):
        Rows([1], [1], [], [])


def test_a_batch_in_order_goes_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above compares a thing with itself."""
    monkeypatch.setattr(rows_module, "one_by_one", None)
    kinds = [ColumnType.TEXT, ColumnType.INTEGER, ColumnType.TIMESTAMP, ColumnType.DECIMAL, ColumnType.JSON]
    columns = [Column(f"c{n}", kind, True) for n, kind in enumerate(kinds)]
    shape = Shape(columns, [of(kind) for kind in kinds], ("c0", "c2"), "here")
    value = b'{"c1": 7, "c0": "a", "c2": "2013-01-01T05:00:00Z", "c3": "1.50", "c4": [1]}'
    upserts, deletes = split(
        shape, [Row(3, 0, b'["a","2013-01-01T05:00:00Z"]', value), Row(4, 0, b'["b","2013-01-01T05:00:00Z"]', None)]
    )
    assert [(u.offset, u.values) for u in upserts] == [(3, ("a", "7", "2013-01-01T05:00:00Z", "1.50", "[1]"))]
    assert [(d.offset, d.key) for d in deletes] == [(4, ("b", "2013-01-01T05:00:00Z"))]


def test_copy_takes_every_text(server: PostgresServer) -> None:
    texts = ["", "\\N", "\\", "a\tb", "a\nb", "a\r\nb", "\\.", "é€😀", "\\t", " ", "\b\f\v", "\x7f\x01"]
    rows: list[tuple[object, ...]] = [(n, text, None if n % 2 else text) for n, text in enumerate(texts)]
    for some in (rows, rows[:1], [(0, None, "x")], [(7, "plain", "texts")]):
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TEMP TABLE taken (n bigint, a text, b text)")
            with connection.cursor() as cursor, cursor.copy("COPY taken FROM STDIN") as copy:
                copy.write(copy_text(list(zip(*some))))
            assert connection.execute("SELECT n, a, b FROM taken ORDER BY n").fetchall() == some
