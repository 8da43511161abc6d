StreamsBuilder builder = new StreamsBuilder();
builder.stream("orders").mapValues(Invoice::of).to("invoices");
