StreamsBuilder builder = new StreamsBuilder();
KTable<String, Customer> customers = builder.table("customers");
builder.<String, Payment>stream("payments")
       .join(customers, Enriched::of)
       .to("payments-enriched");
KafkaStreams streams = new KafkaStreams(builder.build(), props);
