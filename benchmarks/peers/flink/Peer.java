import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.table.functions.ScalarFunction;

/** Work W in Flink's SQL: arguments are broker, topic, number of events, time after them (ms), and length,slide of each window (s). */
public class Peer {
    static final OperatingSystemMXBean MACHINE = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    static final AtomicLong COUNTED = new AtomicLong(); // events of closed windows
    static long events, left, begun, spent, wall, cpu; // only the one thread of the source counts

    /** A function that is called for its effect: once for each row, which is not to be done twice or left out. */
    public abstract static class Effect extends ScalarFunction {
        @Override
        public boolean isDeterministic() {
            return false;
        }
    }

    /** Counts events, and says when the last one has come. */
    public static class Come extends Effect {
        public Double eval(Double amount) {
            if (left == events) {
                begun = System.nanoTime();
                spent = MACHINE.getProcessCpuTime();
            }
            if (--left == 0) {
                wall = System.nanoTime() - begun;
                cpu = MACHINE.getProcessCpuTime() - spent;
            }
            return amount;
        }
    }

    /** Counts the events of windows that close. */
    public static class Closed extends Effect {
        public Long eval(Long count) {
            COUNTED.addAndGet(count);
            return count;
        }
    }

    public static void main(String[] arguments) throws Exception {
        events = left = Long.parseLong(arguments[2]);
        var settings = Map.of("parallelism.default", "1", "state.backend.type", "hashmap");
        var flink = TableEnvironment.create(
            EnvironmentSettings.newInstance().withConfiguration(Configuration.fromMap(settings)).build());
        flink.createTemporarySystemFunction("come", Come.class);
        flink.createTemporarySystemFunction("closed", Closed.class);
        flink.executeSql("""
            CREATE TABLE payments (card_id STRING, amount DOUBLE, ts BIGINT,
                happened AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR happened AS happened)
            WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '%s', 'topic' = '%s', 'format' = 'json',
                'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'timestamp',
                'scan.bounded.timestamp-millis' = '%s')
            """.formatted(arguments[0], arguments[1], arguments[3]));
        flink.executeSql("CREATE VIEW amounts AS SELECT card_id, come(amount) AS amount, happened FROM payments");
        flink.executeSql("""
            CREATE TABLE nowhere (card_id STRING, ends TIMESTAMP(3), n BIGINT, total DOUBLE, low DOUBLE, high DOUBLE,
                mean DOUBLE, deviation DOUBLE)
            WITH ('connector' = 'blackhole')""");
        var windows = flink.createStatementSet();
        for (int i = 4; i < arguments.length; i++) {
            String[] window = arguments[i].split(",");
            windows.addInsertSql("""
                INSERT INTO nowhere
                SELECT card_id, window_end, closed(COUNT(*)), SUM(amount), MIN(amount), MAX(amount), AVG(amount),
                    STDDEV_SAMP(amount)
                FROM HOP(TABLE amounts, DESCRIPTOR(happened), INTERVAL '%s' SECOND(6), INTERVAL '%s' SECOND(6))
                GROUP BY card_id, window_start, window_end
                """.formatted(window[1], window[0]));
        }
        windows.execute().await();
        System.out.printf("{\"wall\": %.6f, \"cpu\": %.6f, \"counted\": %d}%n", wall / 1e9, cpu / 1e9, COUNTED.get());
        System.exit(0);
    }
}
