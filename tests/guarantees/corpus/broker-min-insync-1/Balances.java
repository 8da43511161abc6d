StreamsBuilder builder = new StreamsBuilder();
builder.stream("moves").groupByKey().reduce(Move::add).toStream().to("balances");
