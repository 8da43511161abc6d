for (Row row : db.rowsSince(lastSeen)) {
    producer.send(new ProducerRecord<>("rows", row.key(), row.json()));
}
