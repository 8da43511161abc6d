"""Transactional consume-process-produce on confluent-kafka: each input record's (partition, offset) is written once.

    copy_confluent.py BOOTSTRAP INPUT OUTPUT TOTAL TRANSACTION_SIZE ABORT_EVERY

Prints `progress N` after each committed transaction and `done N` at the end; the test kills the broker in between.
"""

import sys

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

bootstrap, source, target, total, size, abort_every = *sys.argv[1:4], *map(int, sys.argv[4:7])
consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"copy-{target}", "auto.offset.reset": "earliest",
                     "enable.auto.commit": False, "isolation.level": "read_committed",
                     "fetch.queue.backoff.ms": 5})  # fmt: skip


def fresh_producer() -> Producer:
    # With the default, rebootstrap, librdkafka forgets a single broker that is down and then waits for it without end.
    one = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": f"copy-{target}",
            "linger.ms": 2,
            "metadata.recovery.strategy": "none",
        }
    )
    one.init_transactions(60)
    return one


def rewind() -> int:
    """Back to the committed offsets; returns how many records they cover (the input starts at 0, without gaps)."""
    positions = consumer.committed(consumer.assignment(), 60)
    for at in positions:
        consumer.seek(TopicPartition(at.topic, at.partition, max(at.offset, 0)))
    return sum(max(at.offset, 0) for at in positions)


producer = fresh_producer()
consumer.subscribe([source])
committed = transaction = 0
while committed < total:
    messages = [m for m in consumer.consume(size, 1.0) if not m.error()]
    if not messages:
        continue
    transaction += 1
    try:
        producer.begin_transaction()
        for m in messages:
            producer.produce(target, b"%d:%d" % (m.partition(), m.offset()), key=m.key(), partition=m.partition())
        ends: dict[int, int] = {}
        for m in messages:
            ends[m.partition()] = m.offset() + 1
        positions = [TopicPartition(source, p, o) for p, o in ends.items()]
        producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), 60)
        if transaction % abort_every == 0:
            producer.flush(60)
            producer.abort_transaction(60)
            rewind()
            print("aborted", transaction, flush=True)
            continue
        while True:
            try:
                producer.commit_transaction(60)
                break
            except KafkaException as e:
                if not e.args[0].retriable():
                    raise
    except KafkaException as e:
        error = e.args[0]
        print("error", error, file=sys.stderr, flush=True)
        if error.txn_requires_abort():
            producer.abort_transaction(60)
        else:  # fatal or unknown: a new instance of the same id settles what was open
            producer = fresh_producer()
        committed = rewind()
        continue
    committed += len(messages)
    print("progress", committed, flush=True)
consumer.close()
print("done", committed, flush=True)
