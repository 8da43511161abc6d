StreamsBuilder builder = new StreamsBuilder();
builder.stream("charges").mapValues(Fee::of).to("fees-due");
