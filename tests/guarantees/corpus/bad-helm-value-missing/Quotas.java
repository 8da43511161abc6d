StreamsBuilder builder = new StreamsBuilder();
builder.stream("usage").groupByKey().count().toStream().to("quotas-left");
