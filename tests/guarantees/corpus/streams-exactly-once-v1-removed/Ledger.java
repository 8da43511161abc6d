StreamsBuilder builder = new StreamsBuilder();
builder.stream("entries").mapValues(Ledger::book).to("ledger");
