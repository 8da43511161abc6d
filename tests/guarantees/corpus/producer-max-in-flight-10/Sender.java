producer.send(new ProducerRecord<>("orders", order.id(), order.json()));
