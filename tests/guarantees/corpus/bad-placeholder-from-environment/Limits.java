@Bean
public KStream<String, Limit> limits(StreamsBuilder builder) {
    KStream<String, Limit> limits = builder.stream("limit-requests");
    limits.to("limit-grants");
    return limits;
}
