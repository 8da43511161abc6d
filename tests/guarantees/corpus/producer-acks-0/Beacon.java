producer.send(new ProducerRecord<>("beacons", payload));
