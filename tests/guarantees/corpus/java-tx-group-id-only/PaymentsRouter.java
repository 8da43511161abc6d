producer.initTransactions();
consumer.subscribe(List.of("payments-in"));
while (running) {
    ConsumerRecords<String, Payment> records = consumer.poll(Duration.ofMillis(100));
    producer.beginTransaction();
    records.forEach(r -> producer.send(new ProducerRecord<>("payments-out", r.key(), r.value())));
    producer.sendOffsetsToTransaction(next(records), new ConsumerGroupMetadata("payments-router"));
    producer.commitTransaction();
}
