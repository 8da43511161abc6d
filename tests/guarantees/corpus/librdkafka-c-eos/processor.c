static void configure(rd_kafka_conf_t *cc, rd_kafka_conf_t *pc, char *e, size_t n) {
        rd_kafka_conf_set(cc, "bootstrap.servers", "kafka:9092", e, n);
        rd_kafka_conf_set(cc, "group.id", "tokenizer", e, n);
        rd_kafka_conf_set(cc, "enable.auto.commit", "false", e, n);
        rd_kafka_conf_set(cc, "isolation.level", "read_committed", e, n);
        rd_kafka_conf_set(pc, "bootstrap.servers", "kafka:9092", e, n);
        rd_kafka_conf_set(pc, "transactional.id", "tokenizer-0", e, n);
}

static void subscribe(rd_kafka_t *consumer) {
        rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
        rd_kafka_topic_partition_list_add(topics, "sentences", RD_KAFKA_PARTITION_UA);
        rd_kafka_subscribe(consumer, topics);
}

static void turn(rd_kafka_t *consumer, rd_kafka_t *producer, rd_kafka_topic_partition_list_t *offsets) {
        rd_kafka_begin_transaction(producer);
        produce_words(producer, "words");
        rd_kafka_consumer_group_metadata_t *cgmd = rd_kafka_consumer_group_metadata(consumer);
        rd_kafka_position(consumer, offsets);
        die_on(rd_kafka_send_offsets_to_transaction(producer, offsets, cgmd, 30000));
        die_on(rd_kafka_commit_transaction(producer, 30000));
}
