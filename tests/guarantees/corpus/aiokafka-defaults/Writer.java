producer.initTransactions();
producer.beginTransaction();
producer.send(new ProducerRecord<>("wallet-moves", move.account(), move.json()));
producer.commitTransaction();
