@Bean
public KStream<String, Points> points(StreamsBuilder builder) {
    KStream<String, Points> points = builder.stream("points-in");
    points.to("points-out");
    return points;
}
