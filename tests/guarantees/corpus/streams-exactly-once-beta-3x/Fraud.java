StreamsBuilder builder = new StreamsBuilder();
builder.stream("transactions").filter(Fraud::suspicious).to("alerts");
