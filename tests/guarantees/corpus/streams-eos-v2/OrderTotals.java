package com.example.orders;

import java.io.FileInputStream;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;

public class OrderTotals {
    public static void main(String[] args) throws Exception {
        Properties props = new Properties();
        props.load(new FileInputStream("streams.properties"));
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream("orders", Consumed.with(Serdes.String(), Serdes.Long()))
               .groupByKey()
               .reduce(Long::sum)
               .toStream()
               .to("totals", Produced.with(Serdes.String(), Serdes.Long()));
        new KafkaStreams(builder.build(), props).start();
    }
}
