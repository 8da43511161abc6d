"""Files into the log, once: formats, files that grow, are renamed, replaced or cut off, bad rows."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from semel import Topic
from semel.sources import Files
from semel.sources.source import SourceDiverged, SourceError
from tests.sources.world import Reader, keys, values
from tests.support.outboxlog import OutboxLog


@dataclass(frozen=True)
class Order:
    id: int
    customer: str
    note: str | None = None
    amount: float | None = None


def topic(source: Files, **more: object) -> Topic[str, Order]:
    return Topic("orders", key=str, value=Order, source=source, partitions=2, **more)  # type: ignore[arg-type]


def lines(*ids: int) -> str:
    return "".join(json.dumps({"id": n, "customer": f"c{n % 3}"}) + "\n" for n in ids)


def ids(log: OutboxLog) -> list[int]:
    return sorted(json.loads(value)["id"] for value in values(log, "orders"))


def test_json_lines_csv_text_and_compressed_ones(tmp_path: Path) -> None:
    """A folder of all kinds is read in the order of the names; keys come from fields; an empty cell is None where the
    type takes it; what is quoted may hold delimiters and ends of lines."""
    (tmp_path / "a.jsonl").write_text(lines(1, 2))
    (tmp_path / "b.csv").write_text('id,customer,note,amount\r\n3,c0,"a, ""b""\nc",1.5\r\n4,c1,,\r\n')
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfcustomer,id\nc2,5\n"))
    (tmp_path / "d.tsv").write_text("id\tcustomer\n6\tc0\n")
    log = OutboxLog()
    Reader(log, topic(Files(str(tmp_path), key="customer"))).all()
    assert ids(log) == [1, 2, 3, 4, 5, 6]
    by_id = {json.loads(v)["id"]: json.loads(v) for v in values(log, "orders")}
    assert by_id[3] == {"id": 3, "customer": "c0", "note": 'a, "b"\nc', "amount": 1.5}
    assert by_id[4]["note"] == "" and by_id[4]["amount"] is None
    assert sorted(keys(log, "orders")) == [b"c0", b"c0", b"c1", b"c1", b"c2", b"c2"]


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\n\ntwo\nthree")
    log = OutboxLog()
    Reader(log, Topic("orders", key=str, value=str, source=Files(str(tmp_path / "*.log")))).all()
    assert sorted(values(log, "orders")) == [b"", b"one", b"three", b"two"]


def test_parquet_by_row_groups(tmp_path: Path) -> None:
    """Read from a row on, whatever row group it lies in; an unwritten end is waited for, and told at the end."""
    table = pyarrow.Table.from_pylist([{"id": n, "customer": "c"} for n in range(2_500)])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "*.parquet"), key="customer"))
    reader = Reader(log, declared, records_max=450)
    reader.turn(3)
    assert len(ids(log)) == 1_350
    reader.dies()
    Reader(log, declared, records_max=450).all()
    assert ids(log) == list(range(2_500))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"b.parquet is no whole Parquet file"):
        Reader(log, declared).all()
    assert len(ids(log)) == 2_500


def test_a_file_that_grows_is_followed(tmp_path: Path) -> None:
    """Only whole lines; what was read is not read again by the next owner."""
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1, 2))
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "*.jsonl")))
    reader = Reader(log, declared, follow=True)
    reader.turn(4)
    with path.open("a") as file:
        file.write(lines(3)[:-5])
    reader.turn(4)
    assert ids(log) == [1, 2]
    with path.open("a") as file:
        file.write(lines(3)[-5:] + lines(4))
    reader.turn(4)
    assert ids(log) == [1, 2, 3, 4]
    reader.dies()
    with path.open("a") as file:
        file.write(lines(5))
    Reader(log, declared).all()
    assert ids(log) == [1, 2, 3, 4, 5]


def test_a_last_line_without_an_end(tmp_path: Path) -> None:
    """Taken when the file is not followed. An end of line may come later; more of the same line stops the ingest."""
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1, 12).rstrip("\n"))
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "*.jsonl")))
    Reader(log, declared).all()
    with path.open("a") as file:
        file.write("\n" + lines(3).rstrip("\n"))
    Reader(log, declared).all()
    assert ids(log) == [1, 3, 12]
    with path.open("a") as file:
        file.write("   \n")
    with pytest.raises(SourceDiverged, match="it went on in its last line, line 3"):
        Reader(log, declared).all()
    assert ids(log) == [1, 3, 12]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_a_renamed_file_goes_on(tmp_path: Path, compressed: bool, long: bool) -> None:
    """A log is rotated: its file is renamed (a long one also compressed), a new one gets its name. Nothing is read
    twice and nothing is left out."""
    count = 300 if long else 3
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*range(count)))
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "*.jsonl*")))
    Reader(log, declared).all()
    with path.open("a") as file:
        file.write(lines(count))
    if compressed and long:
        (tmp_path / "a.1.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    else:
        path.rename(tmp_path / "a.1.jsonl")
    path.write_text(lines(*range(count + 1, count + 5)))
    Reader(log, declared).all()
    assert ids(log) == list(range(count + 5))


def test_files_that_are_rotated_and_the_oldest_removed(tmp_path: Path) -> None:
    """Each has the former name of the one before it, whose file is gone. Again and again, by one ingest and by others,
    whose positions tell former names."""
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "a.*.jsonl")))
    for name, begin in (("a.1.jsonl", 0), ("a.0.jsonl", 300)):
        (tmp_path / name).write_text(lines(*range(begin, begin + 300)))
    Reader(log, declared, records_max=200).all()
    reader = Reader(log, declared, follow=True)
    for turn in range(2, 6):
        with (tmp_path / "a.0.jsonl").open("a") as file:
            file.write(lines(turn * 1_000))
        (tmp_path / "a.0.jsonl").rename(tmp_path / "a.1.jsonl")
        (tmp_path / "a.0.jsonl").write_text(lines(*range(turn * 300, turn * 300 + 300)))
        if turn % 2:
            Reader(log, declared).all()
        else:
            reader = Reader(log, declared, follow=True)
            reader.turn(9)
        assert ids(log) == sorted([*range(turn * 300 + 300), *range(2_000, turn * 1_000 + 1, 1_000)])


def test_one_that_got_the_name_of_a_file_that_was_not_read_to_its_end_stops(tmp_path: Path) -> None:
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "a.*.jsonl")))
    for name, begin in (("a.0.jsonl", 0), ("a.1.jsonl", 300)):
        (tmp_path / name).write_text(lines(*range(begin, begin + 300)))
    Reader(log, declared, follow=True, records_max=200).turn(4)
    (tmp_path / "a.1.jsonl").write_text(lines(*range(300, 700)))  # goes on, unread
    (tmp_path / "a.2.jsonl").write_text(lines(*range(900, 1_300)))
    Reader(log, declared, follow=True, records_max=100).turn(3)
    before = ids(log)
    (tmp_path / "a.0.jsonl").rename(tmp_path / "a.2.jsonl")
    with pytest.raises(SourceDiverged, match="not to its end"):
        Reader(log, declared).all()
    assert ids(log) == before


@pytest.mark.parametrize("what", ["replaced", "cut off", "rewritten in place", "gone"])
def test_a_file_that_is_not_what_was_read_stops_the_ingest(tmp_path: Path, what: str) -> None:
    """Never reset, never guessed: nothing is read, and the message names the file and what to do."""
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*range(10)))
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "*.jsonl")))
    reader = Reader(log, declared, follow=True, records_max=4)
    reader.turn(4 if what != "gone" else 2)
    before = ids(log)
    reader.dies()
    if what == "replaced":
        path.unlink()
        path.write_text(lines(*range(100, 140)))
    elif what == "cut off":
        path.write_text(lines(*range(7)))
    elif what == "rewritten in place":
        with path.open("r+") as file:
            file.write(lines(9))
    else:
        path.unlink()
    (tmp_path / "b.jsonl").write_text(lines(77))
    with pytest.raises(
        SourceDiverged, match=r"a.jsonl is (gone, and was read up to line 8|not the file that was read)"
    ):
        Reader(log, declared).all()
    assert ids(log) == before


def test_a_file_replaced_while_it_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(1, 2, 3))
    log = OutboxLog()
    reader = Reader(log, topic(Files(str(path))), follow=True)
    reader.turn(4)
    (tmp_path / "new").write_text(lines(7, 8, 9, 10))
    (tmp_path / "new").rename(path)
    with pytest.raises(SourceDiverged, match="not the file that was read"):
        reader.turn(4)
    assert ids(log) == [1, 2, 3]


def test_a_file_that_was_read_to_its_end_may_go(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(1, 2))
    log = OutboxLog()
    declared = topic(Files(str(tmp_path / "*.jsonl")))
    Reader(log, declared).all()
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").write_text(lines(1, 2))  # as long and as short: another inode or the same, it is a new file
    (tmp_path / "c.jsonl").write_text(lines(3))
    Reader(log, declared).all()
    assert 3 in ids(log)


def test_a_bad_row_stops_before_it(tmp_path: Path) -> None:
    """What is before it is in the log, the message names file and line; once mended, it goes on there."""
    path = tmp_path / "a.csv"
    path.write_text("id,customer\n1,a\nx,b\n3,c\n")
    log = OutboxLog()
    declared = topic(Files(str(path), key="id"))
    with pytest.raises(
        SourceError, match=r"a.csv line 3: Expected `int`, got `str`.*\nNeither it nor what follows"
    ) as e:
        Reader(log, declared).all()
    assert "x,b" in str(e.value)
    assert ids(log) == [1]
    path.write_text("id,customer\n1,a\n2,b\n3,c\n")
    Reader(log, declared).all()
    assert ids(log) == [1, 2, 3]


def test_a_bad_row_to_the_dead_letters(tmp_path: Path) -> None:
    """With its reason and its place, in the transaction of the rows around it."""
    (tmp_path / "a.csv").write_text("id,customer\n1,a\nx,b\n3\n4,d\n")
    (tmp_path / "b.jsonl").write_text('{"id": 5, "customer": "e"}\n{"id": 6}\nnot json\n')
    log = OutboxLog()
    reader = Reader(log, topic(Files(str(tmp_path), key="customer"), on_error="dead-letter"))
    reader.all()
    assert ids(log) == [1, 4, 5]
    assert values(log, "orders-refused") == [b"x,b", b"3", b'{"id": 6}', b"not json"]
    assert reader.ingest.refused == 4


def test_an_open_quote_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,customer\n1,a\n2,"b\n3,c\n')
    log = OutboxLog()
    with pytest.raises(SourceError, match=r"a.csv line 3"):
        Reader(log, topic(Files(str(tmp_path)))).all()
    assert ids(log) == [1]


def test_compressed_data_that_ends_in_the_middle(tmp_path: Path) -> None:
    """What can be had of it is read; then it is waited for, or told."""
    whole = gzip.compress(lines(*range(3_000)).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    log = OutboxLog()
    declared = topic(Files(str(path)))
    with pytest.raises(SourceError, match="ends in the middle of its compressed data"):
        Reader(log, declared).all()
    some = ids(log)
    assert some == list(range(len(some)))
    reader = Reader(log, declared, follow=True)
    reader.turn(3)
    path.write_bytes(whole)
    reader.turn(6)
    assert ids(log) == list(range(3_000))


def test_what_cannot_be_right_is_refused_when_it_is_declared(tmp_path: Path) -> None:
    for wrong, why in (
        (lambda: topic(Files("a.csv", key="nmae")), "key=nmae is no field of Order"),
        (lambda: topic(Files("a.csv", key=("id", "customer"))), "a key of 2 fields is a tuple"),
        (lambda: Files("a.csv", format="xml"), "format='xml'"),  # type: ignore[arg-type]
        (lambda: Files("a.csv", delimiter="||"), "one character"),
        (lambda: topic(Files("a.csv", format="lines")), "lines of text are values of str or bytes"),
    ):
        with pytest.raises(Exception, match=why):
            wrong()
    with pytest.raises(SourceError, match="there is no such file"):
        Reader(OutboxLog(), topic(Files(str(tmp_path / "nothing.csv")))).all()
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(SourceError, match="cannot be told from its name"):
        Reader(OutboxLog(), topic(Files(str(tmp_path)))).all()
    (tmp_path / "a.xml").rename(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("id,id\n1,2\n")
    with pytest.raises(SourceError, match="empty or equal names: id, id"):
        Reader(OutboxLog(), topic(Files(str(tmp_path)))).all()
