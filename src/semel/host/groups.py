"""A group as one who tends it sees it, on both logs: its members, its positions, and topics that go.

Invariant: nothing here joins a group or makes a folder or topic by asking for it; a member counts until the log itself
has given it up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from semel.errors import SemelError, UsageError
from semel.ports import Log, LogLost, Owner, Position, TopicPartition
from semel.streams.layout import Delivered

ANSWER_S_MAX = 10.0
GONE_S_MAX = 30.0


class Tended(Protocol):
    """A log to tend groups on."""

    def session(self, group: str) -> Log:
        """In the name of a group, without being its member. Closed with the log."""
        ...

    def members(self, group: str) -> Sequence[str]:
        """Who they are, for people."""
        ...

    def delete(self, topics: Sequence[str]) -> None:
        """Returns when they are gone, whether or not they were there."""
        ...

    def owner(self, transactional_id: str) -> Owner: ...
    def since(self, partitions: Sequence[TopicPartition], timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """The first offset whose record is of that time or later; -1 where there is none."""
        ...


@contextmanager
def tend(url: str) -> Iterator[Tended]:
    """UsageError for a URL that is none, or a folder that holds no log."""
    with ExitStack() as stack:
        if url.startswith("kafka://"):
            yield _Cluster(url, stack)
        elif url.startswith("embedded:") and url != "embedded:":
            yield _Folder(Path(url.removeprefix("embedded:")), stack)
        else:
            raise UsageError(f"--on {url}: write kafka://HOST:PORT or embedded:DIR.")


def delivered(tended: Tended, name: str) -> Delivered:
    """`streams.layout.Delivered` for the sinks of the app that runs as `name` (its prefix included)."""

    def positions(sink: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        return tended.session(f"{name}.{sink}").committed(partitions)

    return positions


class _Cluster:
    def __init__(self, url: str, stack: ExitStack) -> None:
        import confluent_kafka.admin

        from semel.host.cluster import open_cluster  # names its extra when confluent-kafka is missing
        from semel.host.kafka_client import address, base_settings, made

        self._url, self._stack, self._open = url, stack, open_cluster
        self._name = address(url).url
        client: Any = confluent_kafka.admin.AdminClient
        self._admin = made(client, {**base_settings(address(url)), "error_cb": lambda error: None}, address(url))
        self._sessions: dict[str, Log] = {}

    def session(self, group: str) -> Log:
        if group not in self._sessions:
            log = self._sessions[group] = self._open(self._url, group=group)
            self._stack.callback(log.close)
        return self._sessions[group]

    def members(self, group: str) -> Sequence[str]:
        from semel.host.kafka_client import KafkaError, KafkaException, error_of

        try:
            asked = self._admin.describe_consumer_groups([group], request_timeout=ANSWER_S_MAX)
            described = asked[group].result(ANSWER_S_MAX)
        except KafkaException as failed:
            if error_of(failed).code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise LogLost(f"{self._name}: members of group {group}: {error_of(failed).str()}") from failed
        return [f"{member.group_instance_id or member.member_id} on {member.host}" for member in described.members]

    def delete(self, topics: Sequence[str]) -> None:
        from semel.host.kafka_client import KafkaError, KafkaException, error_of

        if not topics:
            return
        for name, future in self._admin.delete_topics(list(topics), request_timeout=ANSWER_S_MAX).items():
            try:
                future.result(ANSWER_S_MAX)
            except KafkaException as failed:
                if error_of(failed).code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise SemelError(f"{self._name}: delete {name}: {error_of(failed).str()}") from failed
        deadline = time.monotonic() + GONE_S_MAX
        while left := set(topics).intersection(self._admin.list_topics(timeout=ANSWER_S_MAX).topics):
            if time.monotonic() > deadline:
                raise SemelError(f"{self._name}: topic {min(left)} was deleted and is still there. Try again.")
            time.sleep(0.05)

    def owner(self, transactional_id: str) -> Owner:
        from semel.host.kafka_client import address
        from semel.host.kafka_owner import KafkaOwner

        return KafkaOwner(address(self._url), transactional_id)

    def since(self, partitions: Sequence[TopicPartition], timestamp_ms: int) -> Mapping[TopicPartition, int]:
        from semel.host.kafka_look import KafkaLook

        look = KafkaLook(self._url)
        try:
            return look.since(partitions, timestamp_ms)
        finally:
            look.close()


class _Folder:
    """The folder is locked: a group here has no members but those that a broker on it has known, and they are gone."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from semel.host.engine import Engine

        if not (folder / "format").exists():
            raise UsageError(f"{folder} holds no semel log. Give the folder of one: --on embedded:DIR.")
        self._stack = stack
        self._engine = Engine(folder)
        stack.callback(self._engine.close)
        self._connection = self._engine.connect()
        self._sessions: dict[str, Log] = {}

    def session(self, group: str) -> Log:
        from semel.host.embedded import EmbeddedLog

        if group not in self._sessions:
            self._leave(group)
            log = self._sessions[group] = EmbeddedLog(self._engine, group=group)
            self._stack.callback(log.close)
        return self._sessions[group]

    def _leave(self, group: str) -> None:
        from semel.broker import requests as api
        from semel.host.engine import Ask

        asked = Ask(15, 5, api.DescribeGroupsRequest((group,)))
        known = self._engine.ask(self._connection, asked).groups[0].members
        members = tuple(api.MemberIdentity(member.member_id, member.group_instance_id) for member in known)
        if members:
            self._engine.ask(self._connection, Ask(13, 5, api.LeaveGroupRequest(group, members=members)))

    def members(self, group: str) -> Sequence[str]:
        return []

    def delete(self, topics: Sequence[str]) -> None:
        from semel.broker.admin_requests import DeleteTopicsRequest
        from semel.broker.errors import Error
        from semel.host.engine import Ask

        if not topics:
            return
        answer = self._engine.ask(self._connection, Ask(20, 5, DeleteTopicsRequest(tuple(topics))))
        for result in answer.responses:
            if result.error_code not in (Error.NONE, Error.UNKNOWN_TOPIC_OR_PARTITION):
                raise SemelError(f"{self._engine.name}: delete {result.name}: {Error(result.error_code).name}")

    def owner(self, transactional_id: str) -> Owner:
        from semel.host.embedded_owner import EmbeddedOwner

        return EmbeddedOwner(self._engine, transactional_id)

    def since(self, partitions: Sequence[TopicPartition], timestamp_ms: int) -> Mapping[TopicPartition, int]:
        from semel.broker.requests import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
        from semel.host.engine import Ask

        found = {}
        for at in partitions:
            topic = ListOffsetsTopic(at.topic, (ListOffsetsPartition(at.partition, timestamp_ms),))
            answer = self._engine.ask(self._connection, Ask(2, 7, ListOffsetsRequest(-1, (topic,))))
            told = answer.topics[0].partitions[0]
            if told.error_code:
                raise LogLost(f"{self._engine.name}: {self._engine.damage(*at) or f'{at}: error {told.error_code}'}")
            found[at] = told.offset
        return found
