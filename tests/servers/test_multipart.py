"""Multipart uploads on a real S3 server (SeaweedFS): through the contract kit, and what only uploads can get wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from semel.ports import Done, Step
from semel.sinks import MultipartObjects
from semel.sinks.sink import Diverged, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, over_the_wire, run
from tests.servers import two_phase_subjects as subjects
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.subjects import S3_SECRET
from tests.sinks.test_cuts import DELIVERY, Died, Worker, die, outbox, put
from tests.support.seaweed import SeaweedProcess

_numbers = itertools.count()


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with SeaweedProcess(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class TestMultipart(ContractTests):
    """The contract kit on the real server, which is killed."""

    @pytest.fixture
    def subject(self, seaweed: SeaweedProcess) -> Subject:
        def crash() -> None:
            seaweed.kill()
            seaweed.start()

        return subjects.multipart_subject(seaweed.port, crash)


# --- the kit finds what is planted -----------------------------------------------------------------------------------


def _completed_at_once(connection: Any, claim: Any, attempt: Any, run: str, rows: Any) -> Any:
    outcome = connection.prepare_cut(claim, attempt, run, rows)
    connection._completed(connection._key_of(claim, attempt))
    return outcome


def _aborts_nothing(connection: Any, delivery: Any, log: Any, latest: Any, decided: bool) -> Any:
    connection._aborted = lambda upload: None
    return connection.take_over(delivery, log, latest, decided)


def _no_such_upload_is_done(connection: Any, claim: Any, attempt: Any) -> Any:
    try:
        return connection.commit_cut(claim, attempt)
    except Diverged:
        return Done()


@pytest.mark.parametrize(
    ("mistake", "trial"),
    [
        ({"prepare_cut": _completed_at_once}, trials.torn),
        ({"take_over": _aborts_nothing}, trials.torn),  # orphan uploads
        ({"commit_cut": _no_such_upload_is_done}, trials.undone),
    ],
    ids=["completed at once", "orphan", "NoSuchUpload is done"],
)
def test_a_mistake_in_the_two_phases_is_found(mistake: dict[str, Any], trial: Any, seaweed: SeaweedProcess) -> None:
    """S5: each turns the kit red."""

    def make(address: str, suffix: str) -> Any:
        return Planted(subjects.multipart(address, suffix), lambda connection: Altered(connection, **mistake))

    with pytest.raises((Refused, AssertionError)):
        run(replace(subjects.multipart_subject(seaweed.port, lambda: None), make=make), trial)


# --- what only uploads can get wrong ---------------------------------------------------------------------------------


class Place:
    """A sink with a prefix of its own, fed from a log in memory."""

    def __init__(self, server: SeaweedProcess, **said: Any) -> None:
        self.server, self.prefix = server, f"place-{next(_numbers)}"
        self.sink = self.at(server.endpoint, **said)
        self.log = outbox()
        self.log.create(DELIVERY, 1, {"cleanup.policy": "compact"})
        self.values: list[Any] = []

    def at(self, endpoint: str, **said: Any) -> MultipartObjects:
        said = {"name": "orders", "records": 10, "seconds": 5.0, "options": self.server.options(endpoint), **said}
        return MultipartObjects(f"s3://semel-test/{self.prefix}", **said)

    def put(self, *values: Any) -> None:
        put(self.log, *values)
        self.values += values

    def finish(self) -> None:
        """A last owner delivers everything: each record once, and no upload is left."""
        worker = Worker(self.log, self.sink)
        worker.turn(20)
        worker.close()
        connection = self.sink.open()
        assert [msgspec.json.decode(line) for line in connection.rows()] == self.values
        assert connection.in_doubt() == []
        connection.close()


@pytest.mark.parametrize("step", [Step.ROWS_AFTER, Step.PREPARE_AFTER, Step.DECIDE_AFTER])
def test_an_object_of_several_parts_is_there_once_or_not_at_all(step: Step, seaweed: SeaweedProcess) -> None:
    """Ended after the first of three parts, after the last, and decided: an upload is listed until the next owner
    aborts it, or completes it."""
    place = Place(seaweed, part_bytes=5 << 20, bytes=64 << 20)
    place.put(*(f"{n:06}" * 200_000 for n in range(10)))
    worker = Worker(place.log, place.sink)
    worker.steps.at[step] = die
    with pytest.raises(Died):
        worker.turn(4)
    worker.close()
    connection = place.sink.open()
    (left,) = connection.in_doubt()
    assert left == "00001-00000/00001-00000-00000000000000000000-00000000000000000010-1.jsonl"
    assert connection.rows() == []
    connection.close()
    place.finish()


@pytest.mark.parametrize("effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("needle", [b"?uploads= HTTP", b"partNumber=1", b"<CompleteMultipartUpload>", b"DELETE /semel"])
def test_an_answer_of_each_request_is_lost(needle: bytes, effect: bool, seaweed: SeaweedProcess) -> None:
    """S8: nothing is sent again by itself. An upload that was made unheard is found by its key; one that was completed
    unheard is gone (NoSuchUpload), and the object is looked at."""
    place = Place(seaweed)
    place.put(*range(20))
    if needle.startswith(b"DELETE"):
        dying = Worker(place.log, place.sink)
        dying.steps.at[Step.PREPARE_AFTER] = die
        with pytest.raises(Died):
            dying.turn(3)
    with over_the_wire(seaweed.port, needle, lambda port: f"http://127.0.0.1:{port}") as loses:
        worker = Worker(place.log, place.at(loses.address()))
        loses.lose(None, after_effect=effect)  # type: ignore[arg-type]
        worker.turn(14)
        assert loses.lost() == 1
        worker.close()
    place.finish()


def test_a_superseded_owner_aborts_what_it_uploaded_late(seaweed: SeaweedProcess) -> None:
    """S17: under its own number; its successor's object and uploads are untouched."""
    place = Place(seaweed)
    place.put(*range(10))
    late = Worker(place.log, place.sink)

    def overtaken() -> None:
        heir = Worker(place.log, place.sink)
        heir.turn(5)
        heir.close()

    late.steps.at[Step.ROWS_BEFORE] = overtaken
    late.turn(4)
    late.close()
    assert late.steps.hits[Step.SINK_FENCED] >= 1
    assert place.sink.open().in_doubt() == []
    place.finish()


def test_what_was_aborted_by_hand_after_the_decision_stops_the_delivery(seaweed: SeaweedProcess) -> None:
    """A lifecycle rule for unfinished uploads does the same. NoSuchUpload without an object is no success."""
    place = Place(seaweed)
    place.put(*range(10))
    worker = Worker(place.log, place.sink)

    def by_hand() -> None:
        connection: Any = place.sink.open()
        for upload in connection._uploads(""):
            connection._aborted(upload)

    worker.steps.at[Step.DECIDE_AFTER] = by_hand
    with pytest.raises(Diverged, match="aborted"):
        worker.turn(4)
    with pytest.raises(Diverged, match="nothing prepared beyond it"):
        Worker(place.log, place.sink).turn(4)


def test_a_copy_of_the_log_is_noticed(seaweed: SeaweedProcess) -> None:
    """S12: the sink holds more than the log has decided."""
    place = Place(seaweed)
    place.put(*range(10))
    copied = place.log.copy()
    Worker(place.log, place.sink).turn(4)
    place.log.put_back(copied)
    with pytest.raises(Diverged, match="went back behind the sink"):
        Worker(place.log, place.sink).turn(4)


def test_errors_tell_no_secret(seaweed: SeaweedProcess) -> None:
    """A wrong key, none at all, parts that S3 does not take, a place that is no bucket."""
    place = Place(seaweed)
    place.put(*range(10))
    options = seaweed.options() | {"secret_access_key": "wrong-secret"}
    with pytest.raises(SinkError, match="Check the URL") as told:
        Worker(place.log, place.at(seaweed.endpoint, options=options)).turn(4)
    assert "wrong-secret" not in str(told.value)
    assert S3_SECRET not in str(told.value)
    with pytest.raises(SinkError, match="5 MiB"):
        MultipartObjects("s3://b/p", part_bytes=1)
    with pytest.raises(SinkError, match="s3://BUCKET"):
        MultipartObjects("/a/folder")
