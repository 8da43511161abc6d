consumer.subscribe(List.of("uploads"));
while (true) {
    for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(100))) {
        pool.submit(() -> makeThumbnail(record.value()));
    }
}
