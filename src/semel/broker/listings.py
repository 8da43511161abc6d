"""Groups and transactions as tools see them: ListGroups, DescribeGroups, DeleteGroups, ListTransactions,
DescribeTransactions.

Invariant: what is shown is what the handlers decide by; nothing is remembered here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from semel.broker.admin_messages import (
    DeletableGroupResult,
    DeleteGroupsResponse,
    DescribedGroupMember,
    DescribeGroupsDescribedGroup,
    DescribeGroupsResponse,
    DescribeTransactionsResponse,
    DescribeTransactionsTransactionState,
    ListedGroup,
    ListGroupsResponse,
    ListTransactionsResponse,
    ListTransactionsTransactionState,
    TopicData,
)
from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import Ready, Reply, Request
from semel.broker.membership import Phase
from semel.broker.offset_records import GroupKey, OffsetKey, encode_key
from semel.broker.offsets import append_to_offsets
from semel.broker.records import Transaction, TxnState
from semel.record.batch import encode

if TYPE_CHECKING:
    from semel.broker.core import Broker

DEAD = "Dead"
CLASSIC = "classic"


# --- Groups -----------------------------------------------------------------------------------------------------


def list_groups(broker: Broker, request: Request, now_ms: int) -> Ready:
    states = {state.lower() for state in getattr(request.message, "states_filter", ())}
    types = {kind.lower() for kind in getattr(request.message, "types_filter", ())}
    found = []
    for group_id in sorted(broker.memberships.keys() | broker.state.groups.groups.keys()):
        membership = broker.memberships.get(group_id)
        state = Phase.EMPTY.value if membership is None else membership.phase.value
        if (states and state.lower() not in states) or (types and CLASSIC not in types):
            continue
        protocol_type = "" if membership is None else membership.protocol_type
        found.append(ListedGroup(group_id, protocol_type, state, CLASSIC))
    return Ready((), (Reply(request.connection, request.token, ListGroupsResponse(groups=found)),))


def describe_groups(broker: Broker, request: Request, now_ms: int) -> Ready:
    found = []
    for group_id in request.message.groups:
        membership = broker.memberships.get(group_id)
        if membership is None:
            known = broker.state.groups.get(group_id) is not None
            # From version 6 on a group that is not there is an error, before it was a dead one.
            error = Error.GROUP_ID_NOT_FOUND if not known and request.version >= 6 else Error.NONE
            state = Phase.EMPTY.value if known else DEAD
            reason = f"Group {group_id} not found." if error else None
            found.append(DescribeGroupsDescribedGroup(error, reason, group_id, state))
            continue
        stable = membership.phase is Phase.STABLE
        members = [
            DescribedGroupMember(
                member.id,
                member.instance_id,
                member.client_id,
                member.client_host,
                member.metadata(membership.protocol) if stable else b"",
                member.assignment if stable else b"",
            )
            for member in membership.members.values()
        ]
        found.append(
            DescribeGroupsDescribedGroup(
                0,
                None,
                group_id,
                membership.phase.value,
                membership.protocol_type,
                (membership.protocol or "") if stable else "",
                members,
            )
        )
    return Ready((), (Reply(request.connection, request.token, DescribeGroupsResponse(groups=found)),))


def delete_groups(broker: Broker, request: Request, now_ms: int) -> Ready:
    draft = Draft(broker.state)
    results = []
    for group_id in request.message.groups_names:
        membership = broker.memberships.get(group_id)
        group = broker.state.groups.get(group_id)
        if membership is not None and (membership.members or membership.promised):
            results.append(DeletableGroupResult(group_id, Error.NON_EMPTY_GROUP))
        elif group is None:
            known = broker.memberships.pop(group_id, None) is not None
            results.append(DeletableGroupResult(group_id, Error.NONE if known else Error.GROUP_ID_NOT_FOUND))
        else:
            broker.memberships.pop(group_id, None)
            places = sorted(set(group.offsets).union(*group.pending.values()))
            keys = [encode_key(OffsetKey(group_id, *place)) for place in places] + [encode_key(GroupKey(group_id))]
            append_to_offsets(broker, draft, group_id, encode([None] * len(keys), keys, now_ms))
            results.append(DeletableGroupResult(group_id))
    draft.replies.append(Reply(request.connection, request.token, DeleteGroupsResponse(results=results)))
    return draft.ready()


# --- Transactions -----------------------------------------------------------------------------------------------


def list_transactions(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    known = {state.label for state in TxnState}
    states, ids = set(message.state_filters), set(message.producer_id_filters)
    longer_than_ms = getattr(message, "duration_filter", -1)
    text = getattr(message, "transactional_id_pattern", None)
    try:
        pattern = re.compile(text) if text else None
    except re.error:
        response = ListTransactionsResponse(error_code=Error.INVALID_REQUEST)
        return Ready((), (Reply(request.connection, request.token, response),))
    found = []
    for _, one in sorted(broker.state.transactions.items()):
        if (states and one.state.label not in states) or (ids and one.producer_id not in ids):
            continue
        if longer_than_ms >= 0 and (one.started_ms < 0 or now_ms - one.started_ms <= longer_than_ms):
            continue
        if pattern is None or pattern.fullmatch(one.id):
            found.append(ListTransactionsTransactionState(one.id, one.producer_id, one.state.label))
    response = ListTransactionsResponse(unknown_state_filters=sorted(states - known), transaction_states=found)
    return Ready((), (Reply(request.connection, request.token, response),))


def describe_transactions(broker: Broker, request: Request, now_ms: int) -> Ready:
    found = []
    for transactional_id in request.message.transactional_ids:
        one = broker.state.transactions.get(transactional_id)
        if one is None:
            found.append(DescribeTransactionsTransactionState(Error.TRANSACTIONAL_ID_NOT_FOUND, transactional_id))
        else:
            found.append(_described(broker, one))
    response = DescribeTransactionsResponse(transaction_states=found)
    return Ready((), (Reply(request.connection, request.token, response),))


def _described(broker: Broker, one: Transaction) -> DescribeTransactionsTransactionState:
    by_topic: dict[str, list[int]] = {}
    for number, index in one.partitions:
        topic = broker.state.topics_by_number.get(number)
        if topic is not None:
            by_topic.setdefault(topic.name, []).append(index)
    return DescribeTransactionsTransactionState(
        0,
        one.id,
        one.state.label,
        one.timeout_ms,
        one.started_ms,
        one.producer_id,
        one.epoch,
        [TopicData(topic, indexes) for topic, indexes in by_topic.items()],
    )
