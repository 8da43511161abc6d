"""The same as copy_confluent.py, on kafka-python."""

import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

bootstrap, source, target, total, size, abort_every = *sys.argv[1:4], *map(int, sys.argv[4:7])
consumer = KafkaConsumer(source, bootstrap_servers=bootstrap, group_id=f"copy-{target}", auto_offset_reset="earliest",
                         enable_auto_commit=False, isolation_level="read_committed", max_poll_records=size)  # fmt: skip


def fresh_producer() -> KafkaProducer:
    one = KafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"copy-{target}", acks="all", linger_ms=2,
                        request_timeout_ms=5_000, delivery_timeout_ms=10_000)  # fmt: skip
    one.init_transactions()
    return one


def rewind() -> int:
    positions = {at: consumer.committed(at) or 0 for at in consumer.assignment()}
    for at, offset in positions.items():
        consumer.seek(at, offset)
    return sum(positions.values())


producer = fresh_producer()
committed = transaction = 0
while committed < total:
    batches = consumer.poll(timeout_ms=1000, max_records=size)
    messages = [m for batch in batches.values() for m in batch]
    if not messages:
        continue
    transaction += 1
    try:
        producer.begin_transaction()
        ends, sent = {}, []
        for m in messages:
            value = b"%d:%d" % (m.partition, m.offset)
            sent.append(producer.send(target, value, key=m.key, partition=m.partition))
            ends[TopicPartition(source, m.partition)] = OffsetAndMetadata(m.offset + 1, "", -1)
        producer.flush()
        for future in sent:
            # commit_transaction of kafka-python 3.0.12 succeeds though a batch of the transaction expired unsent (its
            # AddPartitionsToTxn was dropped with a refused connection): outputs lost, offsets committed. Ask each.
            future.get(30)
        producer.send_offsets_to_transaction(ends, consumer.group_metadata())
        if transaction % abort_every == 0:
            producer.abort_transaction()
            rewind()
            print("aborted", transaction, flush=True)
            continue
        producer.commit_transaction()
    except KafkaError as e:
        print("error", repr(e), file=sys.stderr, flush=True)
        try:
            producer.abort_transaction()
        except (KafkaError, AssertionError) as again:
            print("error", repr(again), file=sys.stderr, flush=True)
            producer.close(timeout=1)
            producer = fresh_producer()
        committed = rewind()
        continue
    committed += len(messages)
    print("progress", committed, flush=True)
consumer.close()
print("done", committed, flush=True)
