StreamsBuilder builder = new StreamsBuilder();
builder.stream("wires").mapValues(Wire::clear).to("cleared");
