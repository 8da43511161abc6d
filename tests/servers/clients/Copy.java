// The same as copy_confluent.py, on the Java client.
//     java -cp 'libs/*' Copy.java BOOTSTRAP INPUT OUTPUT TOTAL TRANSACTION_SIZE ABORT_EVERY

import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Copy {
    static KafkaProducer<byte[], byte[]> freshProducer(String bootstrap, String id) {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        p.put("transactional.id", id);
        p.put("linger.ms", "2");
        KafkaProducer<byte[], byte[]> one = new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer());
        one.initTransactions();
        return one;
    }

    static int rewind(KafkaConsumer<byte[], byte[]> consumer) {
        int covered = 0;
        for (var e : consumer.committed(consumer.assignment()).entrySet()) {
            long offset = e.getValue() == null ? 0 : e.getValue().offset();
            consumer.seek(e.getKey(), offset);
            covered += (int) offset;
        }
        return covered;
    }

    public static void main(String[] a) {
        String bootstrap = a[0], source = a[1], target = a[2];
        int total = Integer.parseInt(a[3]), size = Integer.parseInt(a[4]), abortEvery = Integer.parseInt(a[5]);
        String group = "copy-" + target;
        Properties c = new Properties();
        c.put("bootstrap.servers", bootstrap);
        c.put("group.id", group);
        c.put("auto.offset.reset", "earliest");
        c.put("enable.auto.commit", "false");
        c.put("isolation.level", "read_committed");
        c.put("max.poll.records", String.valueOf(size));
        KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(c, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        KafkaProducer<byte[], byte[]> producer = freshProducer(bootstrap, group);
        consumer.subscribe(List.of(source));
        int committed = 0, transaction = 0;
        while (committed < total) {
            var records = consumer.poll(Duration.ofSeconds(1));
            if (records.isEmpty()) continue;
            transaction++;
            try {
                producer.beginTransaction();
                Map<TopicPartition, OffsetAndMetadata> ends = new HashMap<>();
                for (ConsumerRecord<byte[], byte[]> r : records) {
                    producer.send(new ProducerRecord<>(target, r.partition(), r.key(), (r.partition() + ":" + r.offset()).getBytes()));
                    ends.put(new TopicPartition(source, r.partition()), new OffsetAndMetadata(r.offset() + 1));
                }
                producer.sendOffsetsToTransaction(ends, consumer.groupMetadata());
                if (transaction % abortEvery == 0) {
                    producer.flush();
                    producer.abortTransaction();
                    rewind(consumer);
                    System.out.println("aborted " + transaction);
                    continue;
                }
                producer.commitTransaction();
            } catch (KafkaException e) {
                System.err.println("error " + e);
                try {
                    producer.abortTransaction();
                } catch (KafkaException again) {
                    System.err.println("error " + again);
                    producer.close(Duration.ofSeconds(1));
                    producer = freshProducer(bootstrap, group);
                }
                committed = rewind(consumer);
                continue;
            }
            committed += records.count();
            System.out.println("progress " + committed);
        }
        producer.close();
        consumer.close();
        System.out.println("done " + committed);
    }
}
