CREATE CONSTRAINT kafka_offset FOR (n:__KafkaOffset) REQUIRE (n.strategy, n.topic, n.partition) IS NODE KEY;
