StreamsBuilder builder = new StreamsBuilder();
builder.stream("cleared").groupByKey().count().toStream().to("audit-counts");
