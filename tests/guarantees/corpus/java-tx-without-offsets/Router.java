producer.initTransactions();
consumer.subscribe(List.of("inbox"));
while (true) {
    ConsumerRecords<String, String> records = consumer.poll(Duration.ofMillis(100));
    producer.beginTransaction();
    for (ConsumerRecord<String, String> r : records) producer.send(new ProducerRecord<>("outbox", r.key(), r.value()));
    producer.commitTransaction();
    consumer.commitSync();
}
