StreamsBuilder builder = new StreamsBuilder();
builder.stream("stock-moves").groupByKey().reduce(Move::add).toStream().to("stock-levels");
