StreamsBuilder builder = new StreamsBuilder();
builder.stream("pages").groupByKey().aggregate(Rank::new, Rank::add).toStream().to("ranks");
