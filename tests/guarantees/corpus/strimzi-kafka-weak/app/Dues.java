StreamsBuilder builder = new StreamsBuilder();
builder.stream("members").flatMapValues(Due::of).to("dues-owed");
