"""The same as copy_confluent.py, on aiokafka (TxnOffsetCommit v0: only the transactional id fences)."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

bootstrap, source, target, total, size, abort_every = *sys.argv[1:4], *map(int, sys.argv[4:7])
group = f"copy-{target}"


async def fresh_producer() -> AIOKafkaProducer:
    while True:
        one = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=group, linger_ms=2)
        try:
            await one.start()
            return one
        except KafkaError as e:
            print("error", repr(e), file=sys.stderr, flush=True)
            await one.stop()


async def main() -> None:
    consumer = AIOKafkaConsumer(source, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest",
                                enable_auto_commit=False, isolation_level="read_committed")  # fmt: skip
    await consumer.start()
    producer = await fresh_producer()

    async def rewind() -> int:
        covered = 0
        for at in consumer.assignment():
            while True:
                try:
                    offset = await consumer.committed(at) or 0
                    consumer.seek(at, offset)
                    covered += offset
                    break
                except KafkaError as e:
                    print("error", repr(e), file=sys.stderr, flush=True)
        return covered

    committed = transaction = 0
    while committed < total:
        batches = await consumer.getmany(timeout_ms=1000, max_records=size)
        messages = [m for batch in batches.values() for m in batch]
        if not messages:
            continue
        transaction += 1
        try:
            await producer.begin_transaction()
            ends = {}
            sent = []
            for m in messages:
                value = b"%d:%d" % (m.partition, m.offset)
                sent.append(await producer.send(target, value, key=m.key, partition=m.partition))
                ends[TopicPartition(source, m.partition)] = m.offset + 1
            await asyncio.gather(*sent)
            await producer.send_offsets_to_transaction(ends, group)
            if transaction % abort_every == 0:
                await producer.abort_transaction()
                await rewind()
                print("aborted", transaction, flush=True)
                continue
            await producer.commit_transaction()
        except KafkaError as e:
            print("error", repr(e), file=sys.stderr, flush=True)
            try:
                await producer.abort_transaction()
            except Exception as again:  # any failure here: a new instance settles what was open
                print("error", repr(again), file=sys.stderr, flush=True)
                await producer.stop()
                producer = await fresh_producer()
            committed = await rewind()
            continue
        committed += len(messages)
        print("progress", committed, flush=True)
    await producer.stop()
    await consumer.stop()
    print("done", committed, flush=True)


asyncio.run(main())
