@Bean
public KStream<String, Product> feed(StreamsBuilder builder, ElasticsearchClient client) {
    KStream<String, Product> products = builder.stream("products");
    products.foreach((id, product) -> {
        try { client.index(i -> i.index("products-index").document(product)); } catch (IOException e) { throw new UncheckedIOException(e); }
    });
    return products;
}
