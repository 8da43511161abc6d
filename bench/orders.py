"""The orders of the processors' benchmark: about 186 bytes of JSON, seeded: every run and peer gets the same."""

from __future__ import annotations

import random
from collections.abc import Iterator

PAD = "x" * 88


def orders(
    count: int, customers: int = 1000, seed: int = 1, first_ts: int = 1_700_000_000_000
) -> Iterator[tuple[int, int, int, int]]:
    """(customer, amount, id, ts), amounts in cents; about 9 % are zero or less."""
    uniform = random.Random(seed).random
    for i in range(count):
        yield int(uniform() * customers), int(uniform() * 11_000) - 1_000, i, first_ts + i


def key(customer: int) -> bytes:
    return b"customer-%05d" % customer


def value(customer: int, amount: int, i: int, ts: int) -> bytes:
    text = '{"id":"order-%012d","customer":"customer-%05d","amount":%d,"ts":%d,"note":"%s"}'
    return (text % (i, customer, amount, ts, PAD)).encode()


def expected(count: int, customers: int = 1000, seed: int = 1) -> tuple[int, int, dict[str, int]]:
    """(positive orders, their sum, total per customer): what the two topologies must come to."""
    positive = positive_sum = 0
    totals: dict[str, int] = {}
    for customer, amount, _, _ in orders(count, customers, seed):
        if amount > 0:
            positive += 1
            positive_sum += amount
        name = key(customer).decode()
        totals[name] = totals.get(name, 0) + amount
    return positive, positive_sum, totals
