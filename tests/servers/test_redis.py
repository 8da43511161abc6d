"""Redis and Valkey on real servers: the contract kit, planted mistakes, and what only they get wrong."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from semel.contract import LogIdentity, Versioned
from semel.errors import UsageError
from semel.host.free_port import free_port
from semel.ports import Done, Fenced, NotDone, Step, Unknown
from semel.sinks import Redis, redis_connection
from semel.sinks.redis import address_of
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import processes, trials
from semel.testing.contracts import IN_PROCESS, ContractTests, Refused, Subject, run
from semel.testing.proxy import TcpProxy
from semel.testing.subject import Counting
from tests.servers import redis_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.test_delivery import EVER, OUTBOX, Worker
from tests.sinks.values import Total, adopted, claimed, deleted, held, opened, renamed_goes_on, rows
from tests.support.outboxlog import OutboxLog
from tests.support.redis import DURABLE, RedisProcess, redis_server, valkey_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def redis_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(redis_server(), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(valkey_server(), tmp_path_factory.mktemp("valkey")) as server:
        yield server


class TestRedis(ContractTests):
    """Hashes on Redis, which is killed."""

    @pytest.fixture
    def subject(self, redis_: RedisProcess) -> Subject:
        return subjects.subject(subjects.hashes, redis_)


class TestValkey:
    """Strings on Valkey, in processes; the trials in one process are below."""

    @pytest.fixture
    def subject(self, valkey: RedisProcess) -> Subject:
        return subjects.subject(subjects.strings, valkey)

    @pytest.mark.proof
    def test_killed_at_every_step_twice(self, subject: Subject) -> None:
        run(subject, processes.crashes)

    def test_a_process_that_comes_back_late_has_no_effect(self, subject: Subject) -> None:
        run(subject, processes.zombies)

    @pytest.mark.proof
    def test_a_process_that_stops_holds_nobody_up(self, subject: Subject) -> None:
        run(subject, processes.paused)


@pytest.mark.parametrize("trial", IN_PROCESS, ids=lambda trial: trial.__name__)
@pytest.mark.parametrize("make", [subjects.hashes, subjects.strings], ids=["hashes", "strings"])
def test_valkey(make: Any, trial: Any, valkey: RedisProcess) -> None:
    """The trials of one process on Valkey, in both forms."""
    run(subjects.subject(make, valkey), trial)


def test_strings_on_redis(redis_: RedisProcess) -> None:
    """The other form, on Redis."""
    for trial in (trials.plain, trials.deletes, trials.poison):
        run(subjects.subject(subjects.strings, redis_), trial)


@pytest.fixture
def make(redis_: RedisProcess) -> MakeSink:
    prefix = f"t{next(_numbers)}"
    return lambda **said: Redis(said.pop("url", redis_.url), said.pop("prefix", prefix), **{"key": "customer", **said})


# --- planted mistakes ------------------------------------------------------------------------------------------------


def _without_guard(text: str) -> str:
    return text.replace("fresh = less(incarnation", "fresh = true or less(incarnation")


def _by_offset_alone(text: str) -> str:
    return text.replace("less(incarnation, ARGV[1]) or (incarnation == ARGV[1] and ", "(")


def _hard_deletes(text: str) -> str:
    return text.replace("redis.call('DEL', KEYS[row])\nend", "redis.call('DEL', KEYS[row], KEYS[count + row])\nend")


def _half_of_it(text: str) -> str:
    return text.replace("    if fresh then\n", "    if fresh and row ~= 2 then\n")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_without_guard, ("zombie", "recut", "deletes", "reborn")),
        (_by_offset_alone, ("reborn",)),
        (_hard_deletes, ("deletes",)),
        (_half_of_it, ("plain",)),
    ],
)
def test_a_mistake_in_the_script_is_found(
    change: Callable[[str], str], names: tuple[str, ...], redis_: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1, S9, S12: the guard dropped, versions without the incarnation, a delete without a mark, a row left out."""
    assert change(redis_connection.ROWS) != redis_connection.ROWS
    monkeypatch.setattr(redis_connection, "ROWS", change(redis_connection.ROWS))
    for name in names:
        subject = subjects.subject(subjects.hashes, redis_)
        with pytest.raises(Refused):
            run(subject, getattr(trials, name))


def _position_first(connection: Any) -> Any:
    def write(real: Any, claim: Any, start: int, end: int, run: str, batch: Any) -> Any:
        real._moved(claim, start, end, run)
        return real.write(claim, start, end, run, batch)

    return Altered(connection, write=write)


def _unknown_is_done(connection: Any) -> Any:
    def write(real: Any, *words: Any) -> Any:
        outcome = real.write(*words)
        return Done() if isinstance(outcome, Unknown) else outcome

    return Altered(connection, write=write)


@pytest.mark.parametrize(
    ("alter", "name"), [(_position_first, "torn"), (_unknown_is_done, "lost_before")], ids=["position", "unknown"]
)
def test_a_mistake_around_the_script_is_found(alter: Any, name: str, redis_: RedisProcess) -> None:
    """S10: a position ahead of its rows; S8: unknown taken for done."""
    planted = subjects.subject(lambda address, suffix: Planted(subjects.hashes(address, suffix), alter), redis_,
                               subjects.read_hashes)  # fmt: skip
    with pytest.raises(Refused):
        run(planted, getattr(trials, name))


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_renamed_sink_goes_on(make: MakeSink) -> None:
    renamed_goes_on(make)


def test_an_older_write_is_stale_and_no_error(make: MakeSink) -> None:
    """It is counted, not raised; a superseded owner is told by the position that it is one."""
    sink = make()
    steps = Counting()
    connection = opened(sink, steps=steps)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 0
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 0)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 1
    heir = opened(sink)
    assert heir.write(claimed(heir, sink), 1, 2, "r", rows(sink, [Total("a", 2)], 1)) == Done()
    assert isinstance(connection.write(claim, 1, 2, "r", rows(sink, [Total("a", 1)], 1)), Fenced)
    assert held(heir) == [("a", "2")]
    assert sink.kind is Versioned


def test_offsets_beyond_what_a_double_tells_apart_are_compared_exactly(make: MakeSink) -> None:
    """Lua's numbers are doubles: 2**53 and 2**53 + 1 are one. The newer one stays, in either order of arrival."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    for at in (2**53, 2**62):
        newer, older = rows(sink, [Total("a", 2)], at + 1), rows(sink, [Total("a", 1)], at)
        assert connection.write(claim, 0, at + 2, "r", newer) == Done()
        assert connection.write(claim, at, at + 2, "r", older) == Done()
        assert held(connection) == [("a", "2")]
        assert connection.write(claim, at, at + 3, "r", rows(sink, [Total("a", 3)], at + 2)) == Done()
        assert held(connection) == [("a", "3")]
    assert claimed(connection, sink).position == 2**62 + 3


def test_the_mark_of_a_deleted_key_stays(make: MakeSink, redis_: RedisProcess) -> None:
    """The key is gone for its readers; the mark says by which record, and since when."""
    for kept_s in (None, 8 * 86_400.0):
        sink = make(prefix=f"d{next(_numbers)}", keep_deleted_s=kept_s)
        connection = opened(sink)
        claim = claimed(connection, sink)
        batch = [*rows(sink, [Total("a", 1)]), deleted(sink, "a", 1)]
        assert connection.write(claim, 0, 2, "r", batch) == Done()
        with redis_.client() as client:
            assert not client.exists(f"{sink.prefix}:a")
            mark = f"semel:mark:{sink.prefix}:a"
            assert str(client.get(mark)).startswith("1:1:1")
            left_ms = client.pttl(mark)
            assert (left_ms == -1) if kept_s is None else (8 * 86_300_000 < int(str(left_ms)) <= 8 * 86_400_000)
            assert connection.write(claim, 2, 3, "r", rows(sink, [Total("a", 5)], 2)) == Done()
            assert (client.get(mark), client.pttl(mark)) == ("1:2", -1)


def test_a_script_whose_answer_is_lost_is_sent_once(make: MakeSink, redis_: RedisProcess) -> None:
    """S8: the client library would send it again by itself and call it done; here it is unknown."""
    proxy = TcpProxy(redis_.port)
    try:
        sink = make(url=f"redis://127.0.0.1:{proxy.port}/0")
        connection = opened(sink)
        claim = claimed(connection, sink)
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
        proxy.lose_answer(b"EVALSHA")
        assert isinstance(connection.write(claim, 1, 2, "r", rows(sink, [Total("a", 2)], 1)), Unknown)
        assert (proxy.cuts, held(connection)) == (1, [("a", "2")])
    finally:
        proxy.close()


def test_a_foreign_mark_stops_and_nothing_is_written(make: MakeSink, redis_: RedisProcess) -> None:
    """The script looks at everything before it changes anything: Redis does not roll back."""
    sink = make()
    connection = opened(sink)
    with redis_.client() as client:
        client.set(f"semel:mark:{sink.prefix}:b", "mine")
    with pytest.raises(SinkError, match=r"semel:mark:.*:b.* is no mark"):
        connection.write(claimed(connection, sink), 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 1)]))
    assert held(connection) == []


# --- values ----------------------------------------------------------------------------------------------------------

Everything = msgspec.defstruct(
    "Everything",
    [("k", str), ("i", int), ("f", float), ("d", Decimal), ("b", bool), ("x", dict[str, Any]), ("o", int | None, None)],
)
BIG = Everything("k:\\1 é\0", 2**63 - 1, 0.1, Decimal("12345678901234567890.123456789"), True, {"n": 2**53 + 1})


def test_values_are_held_as_they_were_committed(make: MakeSink, redis_: RedisProcess) -> None:
    """No number passes through Lua: big ints, decimals and nested ones arrive digit for digit, in both forms."""
    for form in ("hash", "json"):
        sink = make(prefix=f"v{next(_numbers)}", key="k", form=form)
        connection = opened(sink, Everything)
        assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [BIG])) == Done()
        assert list(connection.rows()) == [connection.canonical(sink.encode_value(BIG))]
        with redis_.client() as client:
            key = f"{sink.prefix}:{BIG.k}"
            if form == "json":
                assert client.get(key) == sink.encode_value(BIG).decode()
            else:
                found: Any = client.hgetall(key)
                assert found == {"k": BIG.k, "i": "9223372036854775807", "f": "0.1", "b": "true",
                                 "d": "12345678901234567890.123456789", "x": '{"n":9007199254740993}'}  # fmt: skip


def test_keys_of_several_fields_and_of_numbers(make: MakeSink, redis_: RedisProcess) -> None:
    """An id names one key: a colon within a part is escaped."""
    value_type = msgspec.defstruct("Two", [("a", str), ("b", int)])
    sink = make(key=("a", "b"))
    connection = opened(sink, value_type)
    values = [value_type("x:1", 2), value_type("x", 12), value_type("x\\", 1)]
    assert connection.write(claimed(connection, sink), 0, 3, "r", rows(sink, values)) == Done()
    with redis_.client() as client:
        names = {str(key).partition(":")[2] for key in client.scan_iter(f"{sink.prefix}:*")}
    assert names == {"x\\:1:2", "x:12", "x\\\\:1"}


def test_without_a_type_a_key_is_a_text(make: MakeSink) -> None:
    """5 and '5' would be one key of Redis and two of the outbox (S15)."""
    sink = make(form="json")
    connection = opened(sink, None)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [{"customer": "5", "anything": [1]}])) == Done()
    with pytest.raises(RowRefused, match="value=TYPE"):
        connection.write(claim, 1, 2, "r", rows(sink, [{"customer": 5}], 1))


# --- the server ------------------------------------------------------------------------------------------------------


def test_weak_settings_are_named(tmp_path: Path, make: MakeSink) -> None:
    """S13: appendfsync below always, no append-only file, eviction; none on a server that is set well."""
    assert list(opened(make()).notes()) == []
    for settings, says in (
        ({"appendonly": "yes", "appendfsync": "everysec"}, "appendfsync=everysec"),
        ({"appendonly": "no"}, "appendonly=no"),
        ({**DURABLE, "maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "maxmemory-policy=allkeys-lru"),
    ):
        folder = tmp_path / says.replace("=", "-")
        with RedisProcess(redis_server(), folder, settings) as weak:
            (note,) = opened(make(url=weak.url)).notes()
        assert says in note
    with RedisProcess(redis_server(), tmp_path / "acl") as server:
        with server.client() as client:
            client.execute_command("ACL SETUSER limited on >word ~* &* +@all -config")
        (note,) = opened(make(url=server.url.replace("//", "//limited:word@"))).notes()
        assert "cannot be read" in note and "word" not in note


def test_a_server_without_room_changes_nothing(tmp_path: Path) -> None:
    """Redis does not roll back, and refuses a script at its first write. It is waited for; so is one that is not
    there."""
    for form in ("hash", "json"):
        with RedisProcess(redis_server(), tmp_path / form) as server:
            sink = Redis(server.url, "totals", key="customer", form=form)  # type: ignore[arg-type]
            connection = opened(sink)
            claim = claimed(connection, sink)
            batch = rows(sink, [Total("a", 1), Total("b", 1)])
            assert connection.write(claim, 0, 2, "r", batch) == Done()
            before = held(connection)
            later = [deleted(sink, "a", 2), *rows(sink, [Total("b", 2)], 3)]
            with server.client() as client:
                client.config_set("maxmemory", 1)
                outcome = connection.write(claim, 2, 4, "r", later)
                assert isinstance(outcome, NotDone) and "maxmemory" in outcome.reason
                assert (held(connection), client.get("semel:mark:totals:a")) == (before, "1:0")
                client.config_set("maxmemory", 0)
            assert connection.write(claim, 2, 4, "r", later) == Done()
            assert [row[0] for row in held(connection)] == ["b"]
            server.kill()
            assert isinstance(connection.write(claim, 4, 5, "r", rows(sink, [Total("a", 1)], 4)), Unknown | NotDone)
            assert isinstance(connection.write(claim, 4, 5, "r", rows(sink, [Total("a", 1)], 4)), NotDone)


def test_a_position_that_went_back_is_not_moved_on(tmp_path: Path) -> None:
    """S13: a server that came back without what it acknowledged, unseen by the owner, who goes on with the next batch.
    What it lost would be skipped."""
    with RedisProcess(redis_server(), tmp_path, {"appendonly": "no", "save": ""}) as weak:
        sink = Redis(weak.url, "totals", key="customer")
        connection = opened(sink)
        claim = claimed(connection, sink)
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
        with weak.client() as client:
            client.save()
        assert connection.write(claim, 1, 2, "r", rows(sink, [Total("b", 1)], 1)) == Done()
        weak.kill()
        weak.start()
        connection.close()  # as if it had not been connected meanwhile
        outcome = connection.write(claim, 2, 3, "r", rows(sink, [Total("c", 1)], 2))
        assert isinstance(outcome, Unknown) and "is 1, behind 2" in outcome.reason
        assert claimed(connection, sink).position == 1


def test_a_server_that_forgets_its_tail_is_given_it_again(tmp_path: Path) -> None:
    """S13 without an append-only file: rows and position go back together with its crash, between two batches. The
    position says so, and the rest comes again; nothing is skipped."""
    with RedisProcess(valkey_server(), tmp_path, {"appendonly": "no", "save": ""}) as weak:
        log = OutboxLog()
        log.create(OUTBOX, 1, EVER)
        sink = Redis(weak.url, "totals", key="customer", name="sink")

        def put(*numbers: int) -> None:
            for n in numbers:
                value = Total(f"k{n}", n)
                log.append(OUTBOX, 0, sink.encode_key(value), sink.encode_value(value))

        put(*range(10))
        worker = Worker(log, sink)
        worker.turn(5)
        with weak.client() as client:
            client.save()
        put(*range(10, 20))
        worker.turn(5)
        assert worker.delivery.lag() == 0
        weak.kill()
        weak.start()
        with weak.client() as client:
            assert len(list(client.scan_iter("totals:*"))) == 10, "it has lost what it acknowledged"
        put(*range(20, 30))
        worker.turn(40)
        assert worker.delivery.lag() == 0
        with weak.client() as client:
            assert len(list(client.scan_iter("totals:*"))) == 30


def test_everysec_and_a_power_cut_lose_nothing_for_good(tmp_path: Path) -> None:
    """S13 with `appendfsync everysec`: the server acknowledges, the power fails before its append-only file is synced,
    and the tail is gone. A killed process alone loses nothing (the kernel has what was written), so the file is put
    back to what had been synced. The position went with the rows; the owner, who knows a later one, reads it back."""
    with RedisProcess(redis_server(), tmp_path, {"appendonly": "yes", "appendfsync": "everysec", "save": ""}) as weak:
        sink = Redis(weak.url, "totals", key="customer")
        connection = opened(sink)
        assert any("everysec" in note for note in connection.notes())
        claim = claimed(connection, sink)
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
        with weak.client() as client:
            client.config_set("appendfsync", "always")
            client.set("other", 1)  # synced, with all before it
            client.config_set("appendfsync", "everysec")
        shutil.copytree(tmp_path / "appendonlydir", tmp_path / "synced")
        assert connection.write(claim, 1, 2, "r", rows(sink, [Total("b", 1)], 1)) == Done()  # acknowledged
        weak.kill()
        shutil.rmtree(tmp_path / "appendonlydir")
        (tmp_path / "synced").rename(tmp_path / "appendonlydir")
        weak.start()
        connection.close()  # as if it had not been connected meanwhile
        with weak.client() as client:
            assert not client.exists("totals:b"), "it has lost what it acknowledged"
        outcome = connection.write(claim, 2, 3, "r", rows(sink, [Total("c", 1)], 2))
        assert isinstance(outcome, Unknown) and "is 1, behind 2" in outcome.reason
        heir = claimed(connection, sink)
        assert heir.position == 1, "so the outbox delivers b again"
        assert connection.write(heir, 1, 3, "r", rows(sink, [Total("b", 1), Total("c", 1)], 1)) == Done()
        assert held(connection) == [("a", "1"), ("b", "1"), ("c", "1")]


def test_on_a_cluster_the_prefix_has_a_hash_tag(tmp_path: Path) -> None:
    """Two nodes: without a tag it is refused, with one every key lies in its slot, whichever node was named."""
    settings = [{**DURABLE, "cluster-enabled": "yes", "cluster-port": str(free_port())} for _ in range(2)]
    with RedisProcess(valkey_server(), tmp_path / "a", settings[0]) as one, \
         RedisProcess(valkey_server(), tmp_path / "b", settings[1]) as two:  # fmt: skip
        a, b = one.client(), two.client()
        a.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        b.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        a.execute_command("CLUSTER MEET", "127.0.0.1", two.port, settings[1]["cluster-port"])
        deadline = time.monotonic() + 30
        while any(node.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for node in (a, b)):
            assert time.monotonic() < deadline, "the nodes do not meet"
            time.sleep(0.05)
        with pytest.raises(SinkError, match=r'hash tag: "\{totals\}"'):
            Redis(one.url, "totals", key="customer").open().prepare(Total)
        for url in (one.url, two.url):
            sink = Redis(url, "{totals}", key="customer")
            connection = opened(sink)
            claim = claimed(connection, sink)
            at = claim.position
            assert connection.write(claim, at, at + 1, "r", rows(sink, [Total(f"c{at}", 1)], at)) == Done()
            assert len(connection.rows()) == at + 1
        for node in (a, b):
            node.close()


def test_the_choice_can_be_taken(make: MakeSink) -> None:
    """S16: a person moves it to the other log; a new incarnation, from the start."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 5, "r", rows(sink, [Total("a", 1)])) == Done()
    other = LogIdentity("another", 4)
    with pytest.raises(Diverged, match=r"was re-created.*semel sink adopt APP.py"):
        claimed(connection, sink, log=other)
    adopted(connection, other)
    claim = claimed(connection, sink, log=other)
    assert (claim.incarnation, claim.position) == (2, 0)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 7)])) == Done()
    assert held(connection) == [("a", "7")]


def test_keys_that_were_begun_in_another_form_are_refused(make: MakeSink) -> None:
    """Create or validate: what the keys are is written beside them."""
    opened(make())
    opened(make())
    for other in ({"form": "json"}, {"key": "total"}):
        with pytest.raises(SinkError, match="were begun as"):
            make(**other).open().prepare(Total)


# --- addresses and secrets -------------------------------------------------------------------------------------------


def test_where_names_the_place_and_no_secret() -> None:
    """repr, str and messages: host, port, database, prefix."""
    sink = Redis("rediss://me:hunt%40er2@db.example:6390/2", "totals", key="customer")
    assert (sink.at.password, sink.at.tls) == ("hunt@er2", True)
    for text in (repr(sink), str(sink), sink.where, repr(sink.at)):
        assert "hunt" not in text
    assert sink.where == "Redis keys totals:* at db.example:6390/2"
    assert sink.renamed("_v").prefix == "totals_v"


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: address_of("http://h:1/0"), "wanted is redis://"),
        (lambda: address_of("redis://u:secret@h:x/0"), "cannot be read"),
        (lambda: address_of("redis://u:secret@h/zero"), "wanted is redis://"),
        (lambda: address_of("redis://u:secret@h/0?db=1"), "no option 'db'"),
        (lambda: Redis("redis://h", "a*", key="k"), "wanted is a prefix"),
        (lambda: Redis("redis://h", "semel:a", key="k"), "wanted is a prefix"),
        (lambda: Redis("redis://h", "{}", key="k"), "wanted is a prefix"),
        (lambda: Redis("redis://h", "a", key="k", form="list"), "there are 'hash' and 'json'"),  # type: ignore[arg-type]
        (lambda: Redis("redis://h", "a", key="k", keep_deleted_s=60), "7 days"),
        (lambda: Redis("redis://h", "a", key="k", timeout_s=0), "at least 1 second"),
        (lambda: Redis("redis://h", "a", key=None), "Name key="),  # type: ignore[arg-type]
    ],
)
def test_a_declaration_that_cannot_be_is_refused_where_it_stands(declare: Any, says: str) -> None:
    """Build-time mistakes are refused at build time, without what was given as a password."""
    with pytest.raises(SinkError, match=says) as refused:
        declare()
    assert "secret" not in str(refused.value)


def test_a_refused_login_is_an_error_without_the_password(tmp_path: Path) -> None:
    """Waiting mends no password; a server that is away is waited for."""
    with RedisProcess(redis_server(), tmp_path, {"requirepass": "right", "save": ""}) as server:
        for url in (server.url.replace("//", "//:wrong@"), server.url):
            with pytest.raises(SinkError, match="refuses us") as refused:
                Redis(url, "t", key="customer").open().prepare(Total)
            assert "wrong" not in str(refused.value)
        assert opened(Redis(server.url.replace("//", "//:right@"), "t", key="customer")) is not None
    assert isinstance(Redis("redis://127.0.0.1:1/0", "t", key="customer").open().prepare(Total), NotDone)


def test_a_missing_extra_says_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py the declaration works, opening says what to do."""
    monkeypatch.delitem(sys.modules, "semel.sinks.redis_connection", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UsageError, match=r"pip install 'semel\[redis\]'"):
        Redis("redis://h", "totals", key="k").open()
