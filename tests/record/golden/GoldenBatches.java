// Writes the golden batches of the Java client: FOLDER/java-*.bin and java.json, which says what each holds.
//
//   mvn dependency:copy-dependencies   # of org.apache.kafka:kafka-clients:4.3.1, into lib/
//   java -cp 'lib/*' GoldenBatches.java FOLDER
//
// The tests read only the files. Compressed bytes may differ between versions of the codecs: that is their worth.
import java.nio.ByteBuffer;
import java.nio.file.*;
import java.util.*;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.record.internal.*;
import org.apache.kafka.common.utils.Utils;

public class GoldenBatches {
    static final long T = 1_700_000_000_000L;
    static final List<String> json = new ArrayList<>();
    static Path folder;

    static String hex(byte[] b) {
        if (b == null) return "null";
        if (b.length <= 64) return '"' + HexFormat.of().formatHex(b) + '"';
        try {  // long ones by their digest, to keep the file readable
            return "\"sha256:" + HexFormat.of().formatHex(java.security.MessageDigest.getInstance("SHA-256").digest(b)) + '"';
        } catch (java.security.NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    static void save(String name, ByteBuffer buffer) throws Exception {
        byte[] bytes = Utils.toArray(buffer);
        Files.write(folder.resolve("java-" + name + ".bin"), bytes);
        for (MutableRecordBatch b : MemoryRecords.readableRecords(ByteBuffer.wrap(bytes)).batches()) {
            List<String> records = new ArrayList<>();
            for (org.apache.kafka.common.record.internal.Record r : b) {
                List<String> headers = new ArrayList<>();
                for (Header h : r.headers()) headers.add("[\"" + h.key() + "\", " + hex(h.value()) + "]");
                records.add(String.format("[%d, %d, %s, %s, %s]", r.offset(), r.timestamp(),
                    hex(r.hasKey() ? Utils.toArray(r.key()) : null), hex(r.hasValue() ? Utils.toArray(r.value()) : null), headers));
            }
            json.add(String.format("{\"file\": \"java-%s.bin\", \"base_offset\": %d, \"last_offset\": %d, \"leader_epoch\": %d, "
                + "\"crc\": %d, \"compression\": %d, \"append_time\": %b, \"max_timestamp\": %d, \"producer_id\": %d, \"producer_epoch\": %d, "
                + "\"base_sequence\": %d, \"transactional\": %b, \"control\": %b, \"records\": [\n  %s]}",
                name, b.baseOffset(), b.lastOffset(), b.partitionLeaderEpoch(), b.checksum(), b.compressionType().id,
                b.timestampType() == TimestampType.LOG_APPEND_TIME, b.maxTimestamp(), b.producerId(), b.producerEpoch(),
                b.baseSequence(), b.isTransactional(), b.isControlBatch(), String.join(",\n  ", records)));
        }
    }

    static byte[] text(String s) {
        return s.getBytes(java.nio.charset.StandardCharsets.UTF_8);
    }

    static void fill(MemoryRecordsBuilder b, boolean large) {
        Header[] none = new Header[0];
        b.append(T, text("key"), text("value"), none);
        b.append(T + 1, (byte[]) null, text("no key"), none);
        b.append(T - 5, text("no value, earlier"), (byte[]) null, none);
        b.append(T + 70_000, (byte[]) null, (byte[]) null, none);
        b.append(T + 100_000_000L, text(""), text(""), none);
        b.append(T + 2, text("headers"), text("two"), new Header[] {new RecordHeader("a", text("1")), new RecordHeader("é", null), new RecordHeader("", text(""))});
        for (int i = 0; i < 70; i++) b.append(T + i, text("k" + i), text("abcdefgh ".repeat(i % 16)), none);
        if (large) b.append(T, text("several blocks"), text("abcdefgh ".repeat(20_000)), none);  // of lz4 and snappy
    }

    static MemoryRecordsBuilder builder(Compression compression, TimestampType type, long id, short epoch, int sequence, boolean transactional) {
        return MemoryRecords.builder(ByteBuffer.allocate(1 << 20), RecordBatch.MAGIC_VALUE_V2, compression, type,
            42L, T + 9, id, epoch, sequence, transactional, 7);
    }

    public static void main(String[] args) throws Exception {
        folder = Path.of(args[0]);
        Map<String, Compression> codecs = new LinkedHashMap<>();
        codecs.put("none", Compression.NONE);
        codecs.put("gzip", Compression.gzip().build());
        codecs.put("snappy", Compression.snappy().build());
        codecs.put("lz4", Compression.lz4().build());
        codecs.put("zstd", Compression.zstd().build());
        for (var codec : codecs.entrySet()) {
            MemoryRecordsBuilder b = builder(codec.getValue(), TimestampType.CREATE_TIME, -1L, (short) -1, -1, false);
            fill(b, !codec.getKey().equals("none"));
            save(codec.getKey(), b.build().buffer());
            b = builder(codec.getValue(), TimestampType.CREATE_TIME, 4001L, (short) 3, Integer.MAX_VALUE - 1, true);
            fill(b, !codec.getKey().equals("none"));
            save(codec.getKey() + "-transactional", b.build().buffer());
        }
        MemoryRecordsBuilder b = builder(Compression.NONE, TimestampType.LOG_APPEND_TIME, -1L, (short) -1, -1, false);
        fill(b, false);
        save("append-time", b.build().buffer());
        b = builder(Compression.NONE, TimestampType.CREATE_TIME, 5L, (short) 0, 0, false);
        b.appendWithOffset(42L, T, text("a"), text("1"));
        b.appendWithOffset(45L, T, text("b"), text("compacted between"));
        b.appendWithOffset(200L, T, text("c"), text("3"));
        save("gaps", b.build().buffer());
        for (ControlRecordType type : new ControlRecordType[] {ControlRecordType.COMMIT, ControlRecordType.ABORT})
            save("marker-" + type.toString().toLowerCase(), MemoryRecords.withEndTransactionMarker(42L, T, 7, 4001L, (short) 3, new EndTransactionMarker(type, 11)).buffer());
        ByteBuffer two = ByteBuffer.allocate(1 << 20);
        for (String name : new String[] {"gzip", "snappy-transactional"}) two.put(Files.readAllBytes(folder.resolve("java-" + name + ".bin")));
        two.flip();
        save("two-batches", two);
        Files.writeString(folder.resolve("java.json"), "[\n" + String.join(",\n", json) + "\n]\n");
    }
}
