"""What an error code means to a client: done, try again, abort, fenced, dead. One table for all of the producer's APIs.

Kafka's clients are the reference (Java 4.3, TransactionManager). Where they guess, this table does not: a code that
is not listed ends the producer, and what it had asked is then unknown unless it was certainly refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from semel.broker.errors import Error

PRODUCE: Final = 0
FETCH: Final = 1
LIST_OFFSETS: Final = 2
METADATA: Final = 3
OFFSET_COMMIT: Final = 8
OFFSET_FETCH: Final = 9
JOIN_GROUP: Final = 11
HEARTBEAT: Final = 12
LEAVE_GROUP: Final = 13
SYNC_GROUP: Final = 14
INIT_PRODUCER_ID: Final = 22
ADD_PARTITIONS_TO_TXN: Final = 24
ADD_OFFSETS_TO_TXN: Final = 25
END_TXN: Final = 26
TXN_OFFSET_COMMIT: Final = 28

# The versions this client speaks: transactions V1, topics by name.
VERSIONS: Final[dict[int, int]] = {
    PRODUCE: 11,
    FETCH: 12,
    LIST_OFFSETS: 7,
    METADATA: 12,
    OFFSET_COMMIT: 8,
    OFFSET_FETCH: 7,
    JOIN_GROUP: 9,
    HEARTBEAT: 4,
    LEAVE_GROUP: 5,
    SYNC_GROUP: 5,
    INIT_PRODUCER_ID: 4,
    ADD_PARTITIONS_TO_TXN: 3,
    ADD_OFFSETS_TO_TXN: 3,
    END_TXN: 3,
    TXN_OFFSET_COMMIT: 3,
}


class Verdict(Enum):
    DONE = "done"
    AGAIN = "again"  # not done, nothing is wrong with the request: later
    ABORT = "abort"  # not done; the transaction cannot commit, the producer can go on after an abort
    FENCED = "fenced"  # not done; another one has taken over
    DEAD = "dead"  # not done; this producer cannot go on


# Brokers that are starting, moving or electing. semel's is one node and answers few of them.
ELSEWHERE: Final = frozenset(
    {
        5,  # LEADER_NOT_AVAILABLE
        6,  # NOT_LEADER_OR_FOLLOWER
        7,  # REQUEST_TIMED_OUT
        13,  # NETWORK_EXCEPTION
        14,  # COORDINATOR_LOAD_IN_PROGRESS
        Error.COORDINATOR_NOT_AVAILABLE,
        16,  # NOT_COORDINATOR
        19,  # NOT_ENOUGH_REPLICAS
        20,  # NOT_ENOUGH_REPLICAS_AFTER_APPEND
        56,  # KAFKA_STORAGE_ERROR
    }
)

_COMMON: Final[dict[int, Verdict]] = {
    Error.NONE: Verdict.DONE,
    **dict.fromkeys(ELSEWHERE, Verdict.AGAIN),
    Error.INVALID_PRODUCER_EPOCH: Verdict.FENCED,
    Error.PRODUCER_FENCED: Verdict.FENCED,
    Error.CONCURRENT_TRANSACTIONS: Verdict.AGAIN,
}
VERDICTS: Final[Mapping[int, Mapping[int, Verdict]]] = {
    INIT_PRODUCER_ID: _COMMON,
    ADD_PARTITIONS_TO_TXN: {
        **_COMMON,
        Error.UNKNOWN_TOPIC_OR_PARTITION: Verdict.AGAIN,  # being created
        Error.OPERATION_NOT_ATTEMPTED: Verdict.AGAIN,  # because of another partition, whose code decides
        Error.INVALID_TOPIC: Verdict.ABORT,
    },
    PRODUCE: {
        **_COMMON,
        Error.DUPLICATE_SEQUENCE_NUMBER: Verdict.DONE,  # its answer was lost; the log has it
        Error.UNKNOWN_TOPIC_OR_PARTITION: Verdict.AGAIN,
        Error.CORRUPT_MESSAGE: Verdict.ABORT,  # also: other bytes under a used sequence (FAULTS B19)
        Error.MESSAGE_TOO_LARGE: Verdict.ABORT,
        Error.RECORD_LIST_TOO_LARGE: Verdict.ABORT,
        Error.INVALID_TOPIC: Verdict.ABORT,
        Error.INVALID_RECORD: Verdict.ABORT,
        Error.OUT_OF_ORDER_SEQUENCE_NUMBER: Verdict.ABORT,  # at the front; behind a batch in doubt it is AGAIN
        Error.UNKNOWN_PRODUCER_ID: Verdict.ABORT,
        Error.INVALID_TXN_STATE: Verdict.ABORT,
        Error.INVALID_PRODUCER_ID_MAPPING: Verdict.ABORT,
    },
    ADD_OFFSETS_TO_TXN: {**_COMMON, Error.INVALID_GROUP_ID: Verdict.ABORT},
    TXN_OFFSET_COMMIT: {
        **_COMMON,
        Error.UNKNOWN_TOPIC_OR_PARTITION: Verdict.AGAIN,
        Error.ILLEGAL_GENERATION: Verdict.ABORT,  # a later generation owns the partitions (KIP-447)
        Error.UNKNOWN_MEMBER_ID: Verdict.ABORT,
        Error.FENCED_INSTANCE_ID: Verdict.ABORT,
        Error.REBALANCE_IN_PROGRESS: Verdict.ABORT,
        Error.INVALID_GROUP_ID: Verdict.ABORT,
        Error.OFFSET_METADATA_TOO_LARGE: Verdict.ABORT,
    },
    END_TXN: _COMMON,
}


def verdict(api_key: int, code: int) -> Verdict:
    return VERDICTS[api_key].get(code, Verdict.DEAD)


def name_of(code: int) -> str:
    try:
        return Error(code).name
    except ValueError:
        return f"error {code}"
