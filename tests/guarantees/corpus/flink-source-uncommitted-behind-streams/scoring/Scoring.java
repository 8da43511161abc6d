StreamsBuilder builder = new StreamsBuilder();
builder.stream("applications").mapValues(Score::of).to("scores");
