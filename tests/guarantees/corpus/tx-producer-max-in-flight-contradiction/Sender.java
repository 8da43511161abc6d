producer.initTransactions();
producer.beginTransaction();
producer.send(new ProducerRecord<>("orders", order.id(), order.json()));
producer.commitTransaction();
