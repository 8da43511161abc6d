StreamsBuilder builder = new StreamsBuilder();
builder.stream("reservations").groupByKey().aggregate(Plan::new, Plan::seat).toStream().to("seat-plans");
