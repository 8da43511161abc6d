producer.initTransactions();
consumer.subscribe(List.of("temperatures-f"));
while (true) {
    ConsumerRecords<String, Double> records = consumer.poll(Duration.ofMillis(200));
    if (records.isEmpty()) continue;
    producer.beginTransaction();
    Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
    for (ConsumerRecord<String, Double> r : records) {
        producer.send(new ProducerRecord<>("temperatures-c", r.key(), (r.value() - 32) * 5 / 9));
        offsets.put(new TopicPartition(r.topic(), r.partition()), new OffsetAndMetadata(r.offset() + 1));
    }
    producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
    producer.commitTransaction();  // an exception ends the process; the next one starts at the committed offsets
}
