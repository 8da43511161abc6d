StreamsBuilder builder = new StreamsBuilder();
builder.stream("scans").mapValues(Badge::of).to("entries");
