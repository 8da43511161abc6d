"""Which APIs are served, in which versions, and what ApiVersions says of them.

Two ranges differ on purpose: Produce is advertised from 0 though 0 to 2 are refused, because older librdkafka turns
compression off otherwise (KAFKA-18659). Transactions are served as version 1 of the protocol: EndTxn, TxnOffsetCommit
and AddOffsetsToTxn to 4, Produce to 11, and the finalized `transaction.version` below 2, which together tell every
client to send AddPartitionsToTxn itself. A client meets either all of version 2 or none of it: Produce 12 without a
finalized transaction.version 2 breaks clients.

Invariant: every version in `served` has a schema in kio, and its reply a class in `broker.messages`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from semel.broker import messages


class Range(NamedTuple):
    name: str
    first: int  # the lowest version that is served
    last: int
    advertised_from: int  # the lowest version that ApiVersions names


def _range(name: str, first: int, last: int, advertised_from: int | None = None) -> Range:
    return Range(name, first, last, first if advertised_from is None else advertised_from)


API_VERSIONS = 18
PRODUCE = 0
METADATA = 3

SERVED: dict[int, Range] = {
    0: _range("Produce", 3, 11, advertised_from=0),
    1: _range("Fetch", 4, 18),
    2: _range("ListOffsets", 1, 11),
    3: _range("Metadata", 0, 13),
    8: _range("OffsetCommit", 2, 10),
    9: _range("OffsetFetch", 1, 10),
    10: _range("FindCoordinator", 0, 6),
    11: _range("JoinGroup", 0, 9),
    12: _range("Heartbeat", 0, 4),
    13: _range("LeaveGroup", 0, 5),
    14: _range("SyncGroup", 0, 5),
    15: _range("DescribeGroups", 0, 6),
    16: _range("ListGroups", 0, 5),
    API_VERSIONS: _range("ApiVersions", 0, 4),
    19: _range("CreateTopics", 2, 7),
    20: _range("DeleteTopics", 1, 6),
    21: _range("DeleteRecords", 0, 2),
    22: _range("InitProducerId", 0, 5),
    23: _range("OffsetForLeaderEpoch", 2, 4),
    24: _range("AddPartitionsToTxn", 0, 3),
    25: _range("AddOffsetsToTxn", 0, 4),
    26: _range("EndTxn", 0, 4),
    28: _range("TxnOffsetCommit", 0, 4),
    32: _range("DescribeConfigs", 1, 4),
    33: _range("AlterConfigs", 0, 2),
    35: _range("DescribeLogDirs", 1, 4),
    37: _range("CreatePartitions", 0, 3),
    42: _range("DeleteGroups", 0, 2),
    44: _range("IncrementalAlterConfigs", 0, 1),
    47: _range("OffsetDelete", 0, 0),
    60: _range("DescribeCluster", 0, 2),
    61: _range("DescribeProducers", 0, 0),
    65: _range("DescribeTransactions", 0, 0),
    66: _range("ListTransactions", 0, 2),
}

TRANSACTION_VERSION = 1  # the level that is finalized: every client then speaks V1

UNSUPPORTED_VERSION = 35


def api_name(api_key: int) -> str:
    return SERVED[api_key].name if api_key in SERVED else f"API {api_key}"


def api_versions(
    version: int, handled: Collection[int] | None = None, error_code: int = 0
) -> messages.ApiVersionsResponse:
    """The reply to ApiVersions. `handled` leaves out what this node has no handler for."""
    keys = tuple(
        messages.ApiVersion(key, served.advertised_from, served.last)
        for key, served in SERVED.items()
        if handled is None or key in handled or key == API_VERSIONS
    )
    # Version 3 cannot carry a supported feature whose lowest level is 0 (KAFKA-17011): clients refuse the reply.
    supported = (messages.SupportedFeatureKey("transaction.version", 0, TRANSACTION_VERSION),) if version >= 4 else ()
    return messages.ApiVersionsResponse(
        error_code=error_code,
        api_keys=keys,
        supported_features=supported,
        finalized_features_epoch=1,
        finalized_features=(
            messages.FinalizedFeatureKey("transaction.version", TRANSACTION_VERSION, TRANSACTION_VERSION),
        ),
    )
