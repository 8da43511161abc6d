consumer.subscribe(List.of("invoices"));
while (true) {
    for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(200))) {
        mail.send(record.value());
    }
    consumer.commitSync();
}
