"""An idempotent, transactional producer, sans I/O: sequences, epochs, one transaction at a time (protocol V1).

Who drives it calls `init`, then per transaction `begin`, `send`…, `send_offsets`, `commit` or `abort`, and hands in
every answer, loss and tick; each call returns effects to be carried out in order. Without a transactional id there is
`init` and `send` only.

Invariants. Batches of a partition reach the log in the order of `send`, each at most once: its bytes, sequence
included, are fixed at the first attempt and a later one is sent only behind it. Every request has three outcomes, done,
not done and unknown; a request in doubt is repeated unchanged, or its epoch is given up. There is exactly one
TxnOffsetCommit in a transaction, when every batch is in the log, last before EndTxn (FAULTS B26). A fenced producer
never sends again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from itertools import islice
from typing import Final

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.ports import Done, Fenced, Headers, NotDone, Outcome, Position, TopicPartition, Unknown
from semel.record import Compression, encode

from . import codes
from .codes import Verdict
from .effects import Answer, Call, Died, Effect, Ended, Event, Initialised, Lost, MustAbort, Settled, Tick
from .flights import Flights, backoff_ms, earliest
from .steps import GroupMetadata, Me, Step, message_of, worst


class State(Enum):
    NEW = "new"
    INITIALIZING = "initializing"
    READY = "ready"
    ONGOING = "ongoing"
    COMMITTING = "committing"
    ABORTABLE = "abortable"  # something was refused: the transaction can only be aborted
    ABORTING = "aborting"
    BUMPING = "bumping"  # aborted, and the epoch is raised so that nothing in doubt can arrive any more (KIP-360)
    DEAD = "dead"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.NEW: frozenset({State.INITIALIZING, State.DEAD}),
    State.INITIALIZING: frozenset({State.READY, State.DEAD}),
    State.READY: frozenset({State.ONGOING, State.DEAD}),
    State.ONGOING: frozenset({State.COMMITTING, State.ABORTABLE, State.ABORTING, State.DEAD}),
    State.COMMITTING: frozenset({State.READY, State.ABORTABLE, State.DEAD}),
    State.ABORTABLE: frozenset({State.ABORTING, State.DEAD}),
    State.ABORTING: frozenset({State.READY, State.BUMPING, State.DEAD}),
    State.BUMPING: frozenset({State.READY, State.DEAD}),
    State.DEAD: frozenset(),
}
_SENDING: Final = frozenset({State.ONGOING, State.COMMITTING})
_LEAVING: Final = frozenset({State.ABORTABLE, State.ABORTING})

IN_FLIGHT_MAX: Final = 5  # batches of a partition: as many as a broker remembers


@dataclass(frozen=True, slots=True)
class ProducerConfig:
    transactional_id: str | None = None
    transaction_timeout_ms: int = 10_000
    request_timeout_ms: int = 5_000
    delivery_timeout_ms: int = 60_000  # for a batch, and for each step of a transaction: then it is unknown
    compression: Compression = Compression.NONE
    one_connection: bool = False  # as Java on one node; else the coordinator has its own, as librdkafka


@dataclass(slots=True, eq=False)
class _Batch:
    ticket: int
    at: TopicPartition
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    timestamps: Sequence[int] | int
    headers: Sequence[Headers] | None
    deadline_ms: int
    data: bytes | None = None  # fixed at the first attempt: the log compares a repeated sequence by its bytes
    flying: bool = False
    doubt: bool = False  # an attempt was never answered
    attempts: int = 0
    again_at_ms: int = 0


@dataclass(slots=True)
class _Partition:
    next_sequence: int = 0
    queue: deque[_Batch] = field(default_factory=deque)  # not settled, in the order of `send`


_InFlight = Step | tuple[_Batch, ...]


class Producer:
    def __init__(self, config: ProducerConfig) -> None:
        self.config = config
        self.state = State.NEW
        self.producer_id = -1
        self.producer_epoch = -1
        self._flights: Flights[_InFlight] = Flights(config.request_timeout_ms)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._next_ticket = 0
        # The transaction.
        self._added: set[TopicPartition] = set()
        self._started = False  # the coordinator may know of it
        self._bump = False  # something of this epoch is in doubt, or a sequence is missing
        self._offsets: tuple[GroupMetadata, Mapping[TopicPartition, Position]] | None = None
        self._offsets_added = False
        self._offsets_done = False
        # The step being taken.
        self._step: Step | None = None
        self._step_flying = False
        self._step_doubt = False
        self._step_since_ms = 0
        self._step_attempts = 0
        self._step_again_at_ms = 0

    # --- What the user asks ---------------------------------------------------------------------------------------

    def init(self, now_ms: int) -> list[Effect]:
        """Ends with `Initialised` or `Died`."""
        self._become(State.INITIALIZING)
        return self._advance(now_ms, [])

    def begin(self) -> None:
        assert self.config.transactional_id is not None, "a producer without a transactional id has no transactions"
        self._become(State.ONGOING)

    def send(
        self,
        at: TopicPartition,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        timestamps: Sequence[int] | int | None = None,
        headers: Sequence[Headers] | None = None,
        *,
        now_ms: int,
    ) -> tuple[int, list[Effect]]:
        """One batch. Returns its ticket; it ends with `Settled`."""
        allowed = State.READY if self.config.transactional_id is None else State.ONGOING
        # In ABORTABLE the user may not have seen MustAbort yet: the batch will be settled by the abort.
        assert self.state in (allowed, State.ABORTABLE), f"send in state {self.state}"
        ticket = self._next_ticket
        self._next_ticket += 1
        moments = now_ms if timestamps is None else timestamps
        deadline_ms = now_ms + self.config.delivery_timeout_ms
        batch = _Batch(ticket, at, values, keys, moments, headers, deadline_ms)
        self._partitions.setdefault(at, _Partition()).queue.append(batch)
        return ticket, self._advance(now_ms, [])

    def send_offsets(self, group: GroupMetadata, positions: Mapping[TopicPartition, Position]) -> None:
        """The offsets that this transaction commits, all of them, at once; sent when its batches are in the log."""
        assert self.state in (State.ONGOING, State.ABORTABLE), f"send_offsets in state {self.state}"
        assert self._offsets is None, "offsets are sent once in a transaction (FAULTS B26)"
        assert positions, "a transaction without offsets is not fenced by its group (FAULTS P11)"
        self._offsets = (group, dict(positions))

    def commit(self, now_ms: int) -> list[Effect]:
        """Ends with `Ended(True, …)`: Done; NotDone, and `abort` is next; or the producer is dead, and it is Fenced
        or Unknown. Only Done and Unknown may have happened."""
        if self.state is State.ABORTABLE:
            return [Ended(True, NotDone("something in the transaction was refused"))]
        self._become(State.COMMITTING)
        return self._advance(now_ms, [])

    def abort(self, now_ms: int) -> list[Effect]:
        """Ends with `Ended(False, …)`. Batches that never left are NotDone at once."""
        self._become(State.ABORTING)
        out: list[Effect] = []
        if self._step is not None and not self._step_flying:
            self._drop_step()
        for partition in self._partitions.values():
            for batch in list(partition.queue):
                if not batch.flying:
                    self._settle(batch, self._unfinished(batch, "aborted"), out)
        return self._advance(now_ms, out)

    # --- What the world says --------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        out: list[Effect] = []
        match event:
            case Answer(token, message):
                asked = self._flights.answered(token)
                if isinstance(asked, Step):
                    self._step_flying = False
                    self._step_answered(asked, message, now_ms, out)
                elif asked is not None:
                    self._produced(asked, message, now_ms, out)
            case Lost(connection):
                self._unknown(self._flights.lost(connection), now_ms, out)
            case Tick():
                pass
        self._unknown(self._flights.overdue(now_ms, out), now_ms, out)
        return self._advance(now_ms, out)

    @property
    def wake_at_ms(self) -> int | None:
        """When a Tick is due; None: only an answer or the user moves it."""
        if self.state is State.DEAD:
            return None
        step = None
        if self._step is not None:
            step = self._step_since_ms + self.config.delivery_timeout_ms
            if not self._step_flying:
                step = min(step, self._step_again_at_ms)
        batches: list[int] = []
        for at, partition in self._partitions.items():
            if self._expires:
                batches += [batch.deadline_ms for batch in partition.queue]
            batch = _next_of(partition.queue) if self._may_send(at) else None
            if batch is not None:
                batches.append(batch.again_at_ms)
        return earliest(self._flights.wake_at_ms, step, min(batches, default=None))

    @property
    def pending(self) -> int:
        """Batches that are not settled."""
        return sum(len(partition.queue) for partition in self._partitions.values())

    # --- What is next ---------------------------------------------------------------------------------------------

    def _advance(self, now_ms: int, out: list[Effect]) -> list[Effect]:
        """Everything that may be sent now. The only place that sends."""
        self._expire(now_ms, out)
        if self.state is State.DEAD:
            return out
        if self._step is None:
            self._step = self._next_step(out)
            self._step_doubt = False
            self._step_since_ms = self._step_again_at_ms = now_ms
            self._step_attempts = 0
        if self._step is not None and not self._step_flying and now_ms >= self._step_again_at_ms:
            self._step_flying = True
            api_key = self._step.api_key
            log_lane = self.config.one_connection or api_key == codes.TXN_OFFSET_COMMIT
            call = Call(api_key, codes.VERSIONS[api_key], self._message(self._step))
            self._flights.send(0 if log_lane else 1, call, self._step, now_ms, out)
        self._produce(now_ms, out)
        return out

    def _next_step(self, out: list[Effect]) -> Step | None:
        state = self.state
        if state in (State.INITIALIZING, State.BUMPING):
            return Step(codes.INIT_PRODUCER_ID)
        if state in _SENDING:
            new = tuple(at for at, p in self._partitions.items() if p.queue and at not in self._added)
            if new:
                self._started = True
                return Step(codes.ADD_PARTITIONS_TO_TXN, new)
        if state is State.COMMITTING and not self.pending:
            if self._offsets is not None and not self._offsets_added:
                self._started = True
                return Step(codes.ADD_OFFSETS_TO_TXN)
            if self._offsets is not None and not self._offsets_done:
                return Step(codes.TXN_OFFSET_COMMIT)
            if self._started:
                return Step(codes.END_TXN)
            self._finish(True, out)  # nothing was ever sent: there is nothing to end (FAULTS B9)
        if state is State.ABORTING and not self.pending:
            if self._started:
                return Step(codes.END_TXN)
            self._finish(False, out)
        return None

    def _message(self, step: Step) -> object:
        if step.api_key == codes.INIT_PRODUCER_ID:
            return requests.InitProducerIdRequest(
                transactional_id=self.config.transactional_id,
                transaction_timeout=timedelta(milliseconds=self.config.transaction_timeout_ms),
                producer_id=self.producer_id,
                producer_epoch=self.producer_epoch,
            )
        me = Me(self.config.transactional_id or "", self.producer_id, self.producer_epoch)
        return message_of(step, me, self._offsets, committed=self.state is State.COMMITTING)

    # --- Steps of the transaction ---------------------------------------------------------------------------------

    def _step_answered(self, step: Step, message: object, now_ms: int, out: list[Effect]) -> None:
        code = worst(step.api_key, message)
        verdict = codes.verdict(step.api_key, code)
        reason = f"{type(message).__name__.removesuffix('Response')} was answered {codes.name_of(code)}"
        if verdict is Verdict.DONE:
            self._step = None
            self._step_done(step, message, out)
        elif verdict is Verdict.FENCED:
            self._die(reason, True, out)
        elif self.state in _LEAVING and step.api_key != codes.END_TXN:
            self._drop_step()  # a step of the transaction that is given up; what matters is whether it may still arrive
        elif verdict is Verdict.AGAIN:
            self._step_attempts += 1
            self._step_again_at_ms = now_ms + backoff_ms(self._step_attempts)
        elif verdict is Verdict.ABORT:
            self._step = None
            self._refuse(reason, out)
        elif self.state is State.ABORTING and code == Error.INVALID_TXN_STATE and self._may_be_unknown():
            # What would have begun the transaction never arrived, or was refused: there is nothing to end. If it
            # may still come, the new epoch fences it.
            self._step = None
            self._step_done(step, message, out)
        else:
            self._die(reason, False, out)

    def _may_be_unknown(self) -> bool:
        """The coordinator may know of no transaction, though we have asked for one."""
        return self._bump or not (self._added or self._offsets_added)

    def _drop_step(self) -> None:
        """It is not repeated. If an attempt is in doubt it may arrive at any time: only a new epoch is safe from it."""
        self._bump |= self._step_doubt
        self._step = None

    def _step_done(self, step: Step, message: object, out: list[Effect]) -> None:
        match step.api_key:
            case codes.INIT_PRODUCER_ID:
                assert isinstance(message, messages.InitProducerIdResponse), message
                self.producer_id = message.producer_id
                self.producer_epoch = message.producer_epoch
                for partition in self._partitions.values():
                    partition.next_sequence = 0
                bumping = self.state is State.BUMPING
                self._bump = False
                self._become(State.READY)
                out.append(Ended(False, Done()) if bumping else Initialised(self.producer_id, self.producer_epoch))
            case codes.ADD_PARTITIONS_TO_TXN:
                self._added.update(step.partitions)
            case codes.ADD_OFFSETS_TO_TXN:
                self._offsets_added = True
            case codes.TXN_OFFSET_COMMIT:
                self._offsets_done = True
            case codes.END_TXN:
                self._finish(self.state is State.COMMITTING, out)

    def _finish(self, commit: bool, out: list[Effect]) -> None:
        self._started = self._offsets_added = self._offsets_done = False
        self._added.clear()
        self._offsets = None
        if self._bump:
            assert not commit, "a transaction with something in doubt cannot have committed"
            self._become(State.BUMPING)
            return
        self._become(State.READY)
        out.append(Ended(commit, Done()))

    def _refuse(self, reason: str, out: list[Effect]) -> None:
        """Something in the transaction is certainly not done, so the transaction must not commit."""
        if self.state is State.COMMITTING:
            out.append(Ended(True, NotDone(reason)))
        elif self.state is State.ONGOING:
            out.append(MustAbort(reason))
        if self.state in _SENDING:
            self._become(State.ABORTABLE)

    def _unknown(self, lost: list[_InFlight], now_ms: int, out: list[Effect]) -> None:
        """Nobody will answer these: whether they were done is unknown."""
        for asked in lost:
            if isinstance(asked, Step):
                if self._step is not asked:  # superseded by the producer's death
                    continue
                self._step_flying = False
                self._step_doubt = True
                self._step_attempts += 1
                self._step_again_at_ms = now_ms + backoff_ms(self._step_attempts)
                if self.state in _LEAVING and asked.api_key != codes.END_TXN:
                    self._drop_step()
                continue
            for batch in asked:
                batch.flying = False
                batch.doubt = True
                self._again(batch, "aborted", now_ms, out)

    # --- Batches --------------------------------------------------------------------------------------------------

    def _may_send(self, at: TopicPartition) -> bool:
        if self.config.transactional_id is None:
            return self.state is State.READY
        return self.state in _SENDING and at in self._added

    def _produce(self, now_ms: int, out: list[Effect]) -> None:
        """Sends what may be sent: in rounds, one batch of each partition in a request."""
        while True:
            round_: list[_Batch] = []
            for at, partition in self._partitions.items():
                if self._may_send(at):
                    batch = _next_of(partition.queue)
                    if batch is not None and now_ms >= batch.again_at_ms:
                        round_.append(batch)
            if not round_:
                return
            topics: dict[str, list[requests.PartitionProduceData]] = {}
            for batch in round_:
                if batch.data is None:
                    batch.data = self._encoded(batch)
                batch.flying = True
                topics.setdefault(batch.at.topic, []).append(
                    requests.PartitionProduceData(batch.at.partition, batch.data)
                )
            message = requests.ProduceRequest(
                transactional_id=self.config.transactional_id,
                acks=-1,
                timeout=timedelta(milliseconds=self.config.request_timeout_ms),
                topic_data=tuple(
                    requests.TopicProduceData(topic, tuple(partitions)) for topic, partitions in topics.items()
                ),
            )
            call = Call(codes.PRODUCE, codes.VERSIONS[codes.PRODUCE], message)
            self._flights.send(0, call, tuple(round_), now_ms, out)

    def _encoded(self, batch: _Batch) -> bytes:
        partition = self._partitions[batch.at]
        sequence = partition.next_sequence
        partition.next_sequence = (sequence + len(batch.values)) & 0x7FFFFFFF
        return encode(
            batch.values,
            batch.keys,
            batch.timestamps,
            batch.headers,
            compression=self.config.compression,
            producer_id=self.producer_id,
            producer_epoch=self.producer_epoch,
            base_sequence=sequence,
            transactional=self.config.transactional_id is not None,
        )

    def _produced(self, batches: tuple[_Batch, ...], message: object, now_ms: int, out: list[Effect]) -> None:
        assert isinstance(message, messages.ProduceResponse), message
        answers = {
            TopicPartition(topic.name, answer.index): answer
            for topic in message.responses
            for answer in topic.partition_responses
        }
        for batch in batches:
            batch.flying = False
            answer = answers.get(batch.at)
            if answer is None:  # a broken broker: nothing is known
                batch.doubt = True
                self._again(batch, "the broker did not say what became of it", now_ms, out)
                continue
            code = answer.error_code
            verdict = codes.verdict(codes.PRODUCE, code)
            if code == Error.OUT_OF_ORDER_SEQUENCE_NUMBER and self._partitions[batch.at].queue[0] is not batch:
                verdict = Verdict.AGAIN  # the batch before it is in doubt, and goes first
            reason = f"Produce to {batch.at.topic}-{batch.at.partition} was answered {codes.name_of(code)}"
            if verdict is Verdict.DONE:
                self._settle(batch, Done(), out, answer.base_offset)
            elif verdict is Verdict.AGAIN:
                self._again(batch, reason, now_ms, out)
            elif verdict is Verdict.FENCED:
                self._settle(batch, Unknown(reason) if batch.doubt else Fenced(reason), out)
                self._die(reason, True, out)
            else:
                # Certainly refused now; but an earlier attempt may have been taken.
                self._settle(batch, Unknown(reason) if batch.doubt else NotDone(reason), out)
                self._gap(reason, verdict is Verdict.DEAD, out)

    def _again(self, batch: _Batch, reason: str, now_ms: int, out: list[Effect]) -> None:
        if self.state in _LEAVING:
            self._settle(batch, self._unfinished(batch, reason), out)
            return
        batch.attempts += 1
        batch.again_at_ms = now_ms + backoff_ms(batch.attempts)

    def _gap(self, reason: str, dead: bool, out: list[Effect]) -> None:
        """A sequence number is used up and not in the log: no later batch of this epoch can follow."""
        self._bump = True
        if dead or self.config.transactional_id is None:
            self._die(reason, False, out)
        else:
            self._refuse(reason, out)

    def _unfinished(self, batch: _Batch, reason: str) -> Outcome:
        """The outcome of a batch that will not be sent again."""
        if batch.data is not None:
            self._bump = True  # its sequence is used up
        return Unknown(reason) if batch.doubt or batch.flying else NotDone(reason)

    def _settle(self, batch: _Batch, outcome: Outcome, out: list[Effect], base_offset: int = -1) -> None:
        queue = self._partitions[batch.at].queue
        if batch in queue:  # else it was settled when the producer died
            queue.remove(batch)
            out.append(Settled(batch.ticket, batch.at, outcome, base_offset))

    # --- Ends -----------------------------------------------------------------------------------------------------

    @property
    def _expires(self) -> bool:
        return self.state in _SENDING or self.config.transactional_id is None

    def _expire(self, now_ms: int, out: list[Effect]) -> None:
        if self.state is State.DEAD:
            return
        timeout_ms = self.config.delivery_timeout_ms
        for partition in self._partitions.values():
            for batch in [batch for batch in partition.queue if self._expires and now_ms >= batch.deadline_ms]:
                reason = f"not delivered within {timeout_ms} ms"
                self._settle(batch, self._unfinished(batch, reason), out)
                self._gap(reason, False, out)
        if self._step is not None and now_ms >= self._step_since_ms + timeout_ms:
            self._die(f"the coordinator has not answered for {timeout_ms} ms", False, out)

    def _die(self, reason: str, fenced: bool, out: list[Effect]) -> None:
        if self.state is State.DEAD:
            return
        ending = {State.COMMITTING: True, State.ABORTING: False}.get(self.state)
        if self.state is State.BUMPING:  # it is aborted; only the next transaction will not be
            out.append(Ended(False, Done()))
        # What is in flight at this moment is unknown as well, not only what was lost before.
        deciding = self._step is not None and self._step.api_key == codes.END_TXN
        decision_in_doubt = deciding and (self._step_doubt or self._step_flying)
        self._become(State.DEAD)
        for partition in self._partitions.values():
            for batch in list(partition.queue):
                self._settle(batch, self._unfinished(batch, reason), out)
        self._flights.close(out)
        self._step = None
        certain: Outcome = Fenced(reason) if fenced else NotDone(reason)
        if ending is not None:
            out.append(Ended(ending, Unknown(reason) if decision_in_doubt else certain))
        out.append(Died(reason, fenced))

    def _become(self, target: State) -> None:
        assert target in TRANSITIONS[self.state], (
            f"{self.config.transactional_id}: {self.state} may not become {target}"
        )
        self.state = target


def _next_of(queue: deque[_Batch]) -> _Batch | None:
    """The batch to send next: the first that is not in flight. None when there is none, when one behind it is in
    flight (it must not overtake the repetition of what is before it), or when enough are."""
    for index, batch in enumerate(queue):
        if index >= IN_FLIGHT_MAX:
            return None
        if not batch.flying:
            behind = any(later.flying for later in islice(queue, index + 1, None))
            return None if behind else batch
    return None
