consumer.subscribe(List.of("metrics"));
while (true) {
    ConsumerRecords<String, byte[]> records = consumer.poll(Duration.ofMillis(100));
    consumer.commitSync();
    records.forEach(gauge::update);
}
