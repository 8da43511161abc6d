StreamsBuilder builder = new StreamsBuilder();
builder.stream("orders").groupByKey().reduce(Total::add).toStream().to("totals-out");
