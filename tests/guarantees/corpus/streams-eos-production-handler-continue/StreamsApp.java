Properties props = new Properties();
props.put(StreamsConfig.APPLICATION_ID_CONFIG, "shipments");
props.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, "kafka:9092");
props.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
props.put(StreamsConfig.DEFAULT_PRODUCTION_EXCEPTION_HANDLER_CLASS_CONFIG, ContinueOnTooLarge.class);

StreamsBuilder builder = new StreamsBuilder();
builder.stream("packed").mapValues(Shipment::of).to("shipped");

public static class ContinueOnTooLarge implements ProductionExceptionHandler {
    @Override
    public ProductionExceptionHandlerResponse handle(ProducerRecord<byte[], byte[]> record, Exception exception) {
        return ProductionExceptionHandlerResponse.CONTINUE;
    }
    @Override
    public void configure(Map<String, ?> configs) {}
}
