"""The middleware over each kind of keys: one effect per key, kept with its answer in the handler's transaction."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime
from typing import Any

import psycopg
import pytest

from semel.receiver import Receiver, connection, current
from tests.receiver.asgi import Got, post, respond
from tests.receiver.conftest import Place

FLOOR = '{};sender="app.hook"'


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_a_repeated_key_has_one_effect_and_one_answer(place: Place) -> None:
    """Status, body and the headers of the result come again; nothing runs."""

    async def scene() -> tuple[Got, Got]:
        app = Receiver(place.app(), place.keys())
        return await post(app, b"x", '"a"'), await post(app, b"x", '"a"', chunks=3)

    first, again = run(scene())
    assert (first.status, first.answer) == (201, "first")
    assert (again.status, again.body, again.answer) == (201, first.body, "replayed")
    assert again.headers["location"] == "/orders/1" and again.headers["content-type"] == "application/json"
    assert again.headers["semel-key-expires"] == first.headers["semel-key-expires"]
    assert place.effects() == 1


def test_the_answer_outlives_the_process(place: Place) -> None:
    """It lies in the database, not in memory."""
    first = run(post(Receiver(place.app(), place.keys()), b"x", '"a"'))
    app = place.app()
    again = run(post(Receiver(app, place.keys()), b"x", '"a"'))
    assert (again.body, again.answer, app.runs) == (first.body, "replayed", 0)
    assert place.effects() == 1


def test_the_same_key_with_another_request_is_refused(place: Place) -> None:
    """S7: 422, for another body, path, query or method; the first answer stays."""

    async def scene() -> list[Got]:
        app = Receiver(place.app(), place.keys())
        return [
            await post(app, b"x", '"a"'),
            await post(app, b"y", '"a"'),
            await post(app, b"x", '"a"', path="/other"),
            await post(app, b"x", '"a"', query=b"q=1"),
            await post(app, b"x", '"a"', method="PATCH"),
            await post(app, b"x", '"a"'),
        ]

    got = run(scene())
    assert [g.status for g in got] == [201, 422, 422, 422, 422, 201]
    assert got[1].headers["content-type"] == "application/problem+json"
    assert got[1].json["next"] and got[5].answer == "replayed"
    assert place.effects() == 1


def test_requests_that_do_not_apply_pass_untouched(place: Place) -> None:
    async def plain(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(RuntimeError, match="No request with an Idempotency-Key"):
            current()
        await respond(send, 200, b"plain")

    for method in ("GET", "PUT", "DELETE"):
        got = run(post(Receiver(plain, place.keys()), method=method))
        assert (got.status, got.answer) == (200, "")


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_final_error_is_kept_and_leaves_nothing_else(place: Place, status: int) -> None:
    """The draft: the result is replayed, success or error. What an error's handler wrote is undone."""
    app = place.app()
    app.status = status

    async def scene() -> tuple[Got, Got]:
        receiver = Receiver(app, place.keys())
        first = await post(receiver, b"x", '"a"')
        app.status = 201
        return first, await post(receiver, b"x", '"a"')

    first, again = run(scene())
    assert (first.status, again.status, again.body) == (status, status, first.body)
    assert (first.answer, again.answer, app.runs) == ("first", "replayed", 1)
    assert place.effects() == 0


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_an_answer_that_is_not_final_is_passed_on_and_forgotten(place: Place, status: int) -> None:
    """The same key runs again, with the same body or another."""
    app = place.app()
    app.status = status

    async def scene() -> tuple[Got, Got]:
        receiver = Receiver(app, place.keys())
        first = await post(receiver, b"x", '"a"')
        app.status = 201
        return first, await post(receiver, b"y", '"a"')

    first, again = run(scene())
    assert (first.status, first.answer) == (status, "not-kept")
    assert (again.status, again.answer) == (201, "first")
    assert place.effects() == 1


def test_a_handler_that_raises_leaves_nothing(place: Place) -> None:
    app = place.app()

    def fail() -> None:
        raise ValueError("of the application")

    app.do = fail

    async def scene() -> Got:
        receiver = Receiver(app, place.keys())
        with pytest.raises(ValueError, match="of the application"):
            await post(receiver, b"x", '"a"')
        app.do = None
        return await post(receiver, b"x", '"a"')

    assert run(scene()).answer == "first"
    assert place.effects() == 1


def test_while_the_first_runs_the_second_is_told_so(place: Place) -> None:
    """409 with Retry-After at once, also when another process holds the key; then the answer."""
    app = place.app()

    async def scene() -> tuple[list[Got], Got, Got]:
        entered, release = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            entered.set()
            await release.wait()

        app.do = wait
        here, there = Receiver(app, place.keys()), Receiver(place.app(), place.keys())
        first = asyncio.create_task(post(here, b"x", '"a"'))
        await entered.wait()
        async with asyncio.timeout(10):
            meanwhile = [await post(here, b"x", '"a"'), await post(there, b"x", '"a"')]
        release.set()
        return meanwhile, await first, await post(there, b"x", '"a"')

    meanwhile, first, again = run(scene())
    for got in meanwhile:
        assert (got.status, got.headers["retry-after"]) == (409, "1")
        assert got.json["type"] == "urn:semel:receiver:key-running"
    assert first.answer == "first" and again.answer == "replayed" and again.body == first.body
    assert place.effects() == 1


def test_many_at_once_in_two_processes_worth_of_receivers(place: Place) -> None:
    """Twenty requests with one key: one runs, the others are replayed or told to wait."""

    async def scene() -> list[Got]:
        receivers = [Receiver(place.app(), place.keys()) for _ in range(2)]
        return await asyncio.gather(*(post(receivers[n % 2], b"x", '"a"') for n in range(20)))

    got = run(scene())
    assert sum(g.answer == "first" for g in got) == 1
    assert {g.status for g in got} <= {201, 409}
    assert len({g.body for g in got if g.status == 201}) == 1
    assert place.effects() == 1


def test_different_keys_at_once_all_run(place: Place) -> None:
    async def scene() -> list[Got]:
        receivers = [Receiver(place.app(), place.keys()) for _ in range(2)]
        return await asyncio.gather(*(post(receivers[n % 2], b"x", f'"{n}"') for n in range(20)))

    assert [g.status for g in run(scene())] == [201] * 20
    assert place.effects() == 20


def test_a_cancelled_request_leaves_nothing_and_its_key_free(place: Place) -> None:
    app = place.app()

    async def scene() -> Got:
        entered = asyncio.Event()

        async def hang() -> None:
            entered.set()
            await asyncio.sleep(3600)

        app.do = hang
        receiver = Receiver(app, place.keys())
        task = asyncio.create_task(post(receiver, b"x", '"a"'))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        app.do = None
        return await post(receiver, b"x", '"a"')

    assert run(scene()).answer == "first"
    assert place.effects() == 1


def test_a_body_beyond_the_limit_is_refused_before_anything(place: Place) -> None:
    app = place.app()
    got = run(post(Receiver(app, place.keys(), body_bytes_max=10), b"x" * 11, '"a"', chunks=4))
    assert (got.status, app.runs) == (413, 0)
    assert "10 bytes" in got.json["detail"]


def test_an_answer_beyond_the_limit_is_an_error_that_says_so(place: Place) -> None:
    """A stream is held back up to the limit; beyond it the effect is undone, since its answer could not be replayed."""
    left = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        done = connection().execute("INSERT INTO effects (name) VALUES ('|x')")
        if hasattr(done, "__await__"):
            await done
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
        except BaseException:
            left.append("stopped")
            raise

    got = run(post(Receiver(endless, place.keys(), answer_bytes_max=1000), b"x", '"a"'))
    assert (got.status, left) == (500, ["stopped"])
    assert got.json["type"] == "urn:semel:receiver:answer-too-long" and "1,000 bytes" in got.json["detail"]
    assert place.effects() == 0


def test_a_streamed_answer_within_the_limit_is_kept_whole(place: Place) -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]})
        for part in (b"a", b"b", b"c"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def scene() -> tuple[Got, Got]:
        app = Receiver(stream, place.keys())
        return await post(app, b"x", '"a"'), await post(app, b"x", '"a"')

    first, again = run(scene())
    assert first.body == again.body == b"abc"
    assert first.headers["content-length"] == "3" and "transfer-encoding" not in first.headers


def test_an_answer_that_breaks_off_leaves_nothing(place: Place) -> None:
    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    app = place.app()

    async def scene() -> Got:
        with pytest.raises(RuntimeError, match="without a complete answer"):
            await post(Receiver(breaks_off, place.keys()), b"x", '"a"')
        return await post(Receiver(app, place.keys()), b"x", '"a"')

    assert run(scene()).answer == "first"


def test_the_connection_ends_with_the_answer(place: Place) -> None:
    """A background task that writes after the answer would write beside the transaction: it is told."""
    told = []

    async def background(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, b"")
        with pytest.raises(RuntimeError, match="has been answered") as why:
            current().connection  # noqa: B018
        told.append(str(why.value))

    run(post(Receiver(background, place.keys()), b"x", '"a"'))
    assert "background task" in told[0]


def test_a_handler_that_commits_itself_is_refused_or_found_out(place: Place) -> None:
    """SQLite does not let it; psycopg does not let `commit()`; a COMMIT as text is found out and answered with 500."""
    app = place.app()
    app.do = lambda: connection().commit()

    async def scene() -> None:
        refused: Any = (psycopg.ProgrammingError, Exception)[place.kind == "sqlite"]
        with pytest.raises(refused, match=r"not authorized|forbidden"):
            await post(Receiver(app, place.keys()), b"x", '"a"')

    run(scene())
    assert place.effects() == 0
    if place.kind != "sqlite":
        app.do = lambda: connection().execute("COMMIT")
        got = run(post(Receiver(app, place.keys()), b"x", '"b"'))
        assert got.status == 500 and got.json["type"] == "urn:semel:receiver:transaction-not-ours"


def test_a_swallowed_error_of_the_database_is_not_taken_for_success(place: Place) -> None:
    """Postgres' transaction has failed, and COMMIT would roll back without an error (SERVERS, Postgres)."""
    if place.kind == "sqlite":
        pytest.skip("a failed statement leaves SQLite's transaction as it was")
    app = place.app()

    async def swallow() -> None:
        try:
            done = connection().execute("SELECT no_such_column")
            if hasattr(done, "__await__"):
                await done
        except psycopg.Error:
            pass

    app.do = swallow
    got = run(post(Receiver(app, place.keys()), b"x", '"a"'))
    assert got.status == 500 and got.json["type"] == "urn:semel:receiver:transaction-not-ours"
    assert place.effects() == 0
    app.status = 409  # an error answer undoes to before the handler, and is kept
    again = run(post(Receiver(app, place.keys()), b"x", '"a"'))
    assert (again.status, again.answer) == (409, "first")


def test_without_its_key_nothing_is_committed(place: Place) -> None:
    """S10: a database that takes the handler's rows and then not the key keeps neither."""
    run(post(Receiver(place.app(), place.keys()), b"x", '"made"'))
    if place.kind == "sqlite":
        place.query("CREATE TRIGGER no BEFORE INSERT ON semel_keys BEGIN SELECT RAISE(ABORT, 'no more keys'); END")
    else:
        place.query("ALTER TABLE semel_keys ADD CONSTRAINT no CHECK (key = 'made')")
    got = run(post(Receiver(place.app(), place.keys()), b"x", '"a"'))
    assert (got.status, got.json["type"]) == (503, "urn:semel:receiver:keys-unavailable")
    assert (place.effects("made"), place.effects("a")) == (1, 0)


# --- floors -----------------------------------------------------------------------------------------------------------


def test_what_parallel_requests_overtake_is_not_lost(place: Place) -> None:
    """S18: 12 is done before 11 arrives. The sender's floor is 11, and 11 runs."""

    async def scene() -> list[Got]:
        app = Receiver(place.app(), place.keys())
        return [
            await post(app, b"10", '"i/0/10"', floor=FLOOR.format(10)),
            await post(app, b"12", '"i/0/12"', floor=FLOOR.format(11)),
            await post(app, b"11", '"i/0/11"', floor=FLOOR.format(11)),
            await post(app, b"11", '"i/0/11"', floor=FLOOR.format(11)),
        ]

    got = run(scene())
    assert [g.answer for g in got] == ["first", "first", "first", "replayed"]
    assert [g.headers["semel-floor"] for g in got] == ["10", "11", "11", "11"]
    assert place.effects("i/0/11") == 1


def test_what_has_expired_below_the_floor_is_known_as_done_and_above_it_is_kept(place: Place) -> None:
    """Keys 0 to 9; the floor is 6; a year later. 0 to 5 are forgotten, and answered as done; 6 to 9 are replayed."""
    clock = [1_000_000.0]

    async def scene() -> list[Got]:
        keys = place.keys()
        app = Receiver(place.app(), keys, expires_s=60, now=lambda: clock[0])
        for n in range(10):
            await post(app, b"%d" % n, f'"i/0/{n}"', floor=FLOOR.format(min(n, 6)))
        assert await keys.purge(int(clock[0] * 1000), 100) == 0
        clock[0] += 365 * 86400
        assert await keys.purge(int(clock[0] * 1000), 4) == 4
        assert await keys.purge(int(clock[0] * 1000), 100) == 2
        return [await post(app, b"%d" % n, f'"i/0/{n}"', floor=FLOOR.format(0)) for n in range(10)]

    got = run(scene())
    assert [g.answer for g in got] == ["done"] * 6 + ["replayed"] * 4
    assert {g.status for g in got[:6]} == {200} and got[0].json["answered"] is True
    assert place.effects() == 10


def test_a_rewind_takes_a_new_incarnation(place: Place) -> None:
    """Below the floor of one incarnation nothing runs; in another, everything does."""

    async def scene() -> list[Got]:
        app = Receiver(place.app(), place.keys())
        return [
            await post(app, b"x", '"i/0/20"', floor=FLOOR.format(20)),
            await post(app, b"x", '"i/0/5"', floor=FLOOR.format(5)),
            await post(app, b"x", '"j/0/5"', floor=FLOOR.format(5)),
            await post(app, b"x", '"i/1/5"', floor=FLOOR.format(5)),
            await post(app, b"x", '"i/0/5"', floor='5;sender="another"'),
        ]

    got = run(scene())
    assert [g.answer for g in got] == ["first", "done", "first", "first", "first"]
    assert got[1].headers["semel-floor"] == "20", "the highest that is kept"


def test_a_foreign_key_expires_as_announced(place: Place) -> None:
    """The draft's plain rule: until then it is replayed, afterwards it is a new key."""
    clock = [1_000_000.0]

    async def scene() -> list[Got]:
        app = Receiver(place.app(), place.keys(), expires_s=60, now=lambda: clock[0])
        first = await post(app, b"x", '"i/0/1"')
        clock[0] += 59.9
        second = await post(app, b"x", '"i/0/1"')
        clock[0] += 0.1
        return [first, second, await post(app, b"y", '"i/0/1"')]

    got = run(scene())
    assert [g.answer for g in got] == ["first", "replayed", "first"]
    assert parsedate_to_datetime(got[0].headers["semel-key-expires"]).timestamp() == 1_000_060
    assert place.effects() == 2


def test_a_key_is_kept_from_its_answer_on(place: Place) -> None:
    """A handler that takes longer than keys are kept. The time was once counted from the request's arrival: the key had
    expired before its answer was there, and the repetition ran (found by `semel receiver check`, key-running)."""
    clock = [1_000_000.0]
    app = place.app()

    def slow() -> None:
        clock[0] += 90

    app.do = slow

    async def scene() -> list[Got]:
        receiver = Receiver(app, place.keys(), expires_s=60, now=lambda: clock[0])
        return [await post(receiver, b"x", '"a"') for _ in range(2)]

    assert [g.answer for g in run(scene())] == ["first", "replayed"]
    assert place.effects() == 1


def test_expired_keys_go_by_themselves(place: Place) -> None:
    clock = [1_000_000.0]

    async def scene() -> None:
        app = Receiver(place.app(), place.keys(), expires_s=60, now=lambda: clock[0])
        await post(app, b"x", '"a"')
        clock[0] += 61
        await post(app, b"x", '"b"')

    run(scene())
    assert place.query("SELECT key FROM semel_keys") == [("b",)]


def test_a_client_cannot_touch_anothers_keys_or_floors(place: Place) -> None:
    """Who the client is, the application says; what it calls itself only tells its own senders apart."""

    async def scene() -> list[Got]:
        app = Receiver(place.app(), place.keys(), client=lambda scope: dict(scope["headers"])[b"x-user"].decode())
        ann, bob = [(b"x-user", b"ann")], [(b"x-user", b"bob")]
        return [
            await post(app, b"x", '"i/0/9"', floor=FLOOR.format(9), headers=ann),
            await post(app, b"x", '"i/0/5"', floor=FLOOR.format(5), headers=bob),
            await post(app, b"x", '"a"', headers=ann),
            await post(app, b"x", '"a"', headers=bob),
        ]

    assert [g.answer for g in run(scene())] == ["first"] * 4
