env.enableCheckpointing(30_000);
KafkaSource<Entry> source = KafkaSource.<Entry>builder()
    .setBootstrapServers("kafka:9092").setTopics("ledger-entries").setGroupId("ledger")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new EntrySchema()).build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "entries")
   .addSink(JdbcSink.exactlyOnceSink(
       "INSERT INTO ledger_rows (id, amount) VALUES (?, ?)",
       (statement, entry) -> { statement.setString(1, entry.id); statement.setBigDecimal(2, entry.amount); },
       JdbcExecutionOptions.builder().withMaxRetries(0).withBatchSize(1000).build(),
       JdbcExactlyOnceOptions.builder().withTransactionPerConnection(true).build(),
       () -> {
           PGXADataSource xa = new PGXADataSource();
           xa.setUrl("jdbc:postgresql://db:5432/ledger");
           return xa;
       }));
