@Configuration
@EnableKafkaStreams
public class PriceIndex {
    @Bean
    public KStream<String, Price> prices(StreamsBuilder builder) {
        KStream<String, Price> prices = builder.stream("prices");
        prices.groupByKey().aggregate(Index::new, Index::add).toStream().to("price-index-out");
        return prices;
    }
}
