StreamsBuilder builder = new StreamsBuilder();
builder.stream("meter-raw").mapValues(Meter::of).to("meter-clean");
