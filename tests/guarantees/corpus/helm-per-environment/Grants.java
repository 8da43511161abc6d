StreamsBuilder builder = new StreamsBuilder();
builder.stream("requests").filter(Grant::allowed).to("granted");
