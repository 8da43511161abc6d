StreamsBuilder builder = new StreamsBuilder();
builder.stream("samples").groupByKey().count().toStream().to("rollups");
