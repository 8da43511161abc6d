env.enableCheckpointing(30_000);
KafkaSource<Item> source = KafkaSource.<Item>builder()
    .setBootstrapServers("kafka:9092").setTopics("items").setGroupId("stock")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new ItemSchema()).build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "items")
   .addSink(JdbcSink.exactlyOnceSink(
       "INSERT INTO stock_rows (id) VALUES (?)", (s, i) -> s.setString(1, i.id),
       JdbcExecutionOptions.builder().withMaxRetries(0).build(),
       JdbcExactlyOnceOptions.defaults(),
       () -> { MysqlXADataSource xa = new MysqlXADataSource(); xa.setUrl("jdbc:mysql://db/stock"); return xa; }));
