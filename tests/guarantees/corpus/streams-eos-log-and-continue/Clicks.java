StreamsBuilder builder = new StreamsBuilder();
builder.stream("clicks-raw").mapValues(Click::parse).to("clicks");
