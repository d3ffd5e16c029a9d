import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.Stores;

/** Work W on Kafka Streams: arguments are broker, topic, number of events, folder, and length,slide of each window (s). */
public class Peer {
    static final ObjectMapper JSON = new ObjectMapper();
    static final OperatingSystemMXBean MACHINE = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    static final CountDownLatch DONE = new CountDownLatch(1);
    static long events, left, begun, spent; // only the one stream thread counts

    public static void main(String[] arguments) throws InterruptedException {
        events = left = Long.parseLong(arguments[2]);
        var streams = new KafkaStreams(topology(arguments).build(), properties(arguments[0], arguments[3]));
        streams.start();
        DONE.await();
        System.exit(0);
    }

    static Properties properties(String broker, String folder) {
        var made = new Properties();
        made.put("bootstrap.servers", broker);
        made.put("application.id", "peer-" + folder.hashCode());
        made.put("state.dir", folder);
        made.put("num.stream.threads", "1");
        made.put("auto.offset.reset", "earliest");
        return made;
    }

    static StreamsBuilder topology(String[] arguments) {
        var builder = new StreamsBuilder();
        KGroupedStream<String, Double> amounts = builder
            .stream(arguments[1], Consumed.with(Serdes.String(), Serdes.ByteArray()))
            .mapValues(Peer::amount)
            .groupByKey(Grouped.with(Serdes.String(), Serdes.Double()));
        for (int i = 4; i < arguments.length; i++) {
            String[] window = arguments[i].split(",");
            Duration length = Duration.ofSeconds(Long.parseLong(window[0]));
            Duration slide = Duration.ofSeconds(Long.parseLong(window[1]));
            var store = Stores.inMemoryWindowStore("of-" + window[0], length.plus(slide), length, false);
            amounts.windowedBy(TimeWindows.ofSizeWithNoGrace(length).advanceBy(slide)).aggregate(
                () -> new double[] {0, 0, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY, 0, 0},
                (card, amount, old) -> added(old, amount),
                Materialized.<String, double[]>as(store)
                    .withKeySerde(Serdes.String()).withValueSerde(moments()).withLoggingDisabled());
        }
        return builder;
    }

    static double amount(byte[] value) {
        if (left == events) {
            begun = System.nanoTime();
            spent = MACHINE.getProcessCpuTime();
        }
        if (--left == 0) {
            double wall = (System.nanoTime() - begun) / 1e9, cpu = (MACHINE.getProcessCpuTime() - spent) / 1e9;
            System.out.printf("{\"wall\": %.6f, \"cpu\": %.6f}%n", wall, cpu);
            DONE.countDown();
        }
        try {
            return JSON.readTree(value).get("amount").asDouble();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    /** Count, sum, min, max, mean, and the sum of squared deviations from it (Welford), with one more amount. */
    static double[] added(double[] old, double amount) {
        double n = old[0] + 1, off = amount - old[4], mean = old[4] + off / n;
        return new double[] {n, old[1] + amount, Math.min(old[2], amount), Math.max(old[3], amount),
            mean, old[5] + off * (amount - mean)};
    }

    static Serde<double[]> moments() {
        return Serdes.serdeFrom(
            (topic, values) -> {
                var bytes = ByteBuffer.allocate(8 * values.length);
                bytes.asDoubleBuffer().put(values);
                return bytes.array();
            },
            (topic, bytes) -> {
                var values = new double[bytes.length / 8];
                ByteBuffer.wrap(bytes).asDoubleBuffer().get(values);
                return values;
            });
    }
}
