StreamsBuilder builder = new StreamsBuilder();
builder.stream("passes").mapValues(Toll::of).to("tolls-due");
