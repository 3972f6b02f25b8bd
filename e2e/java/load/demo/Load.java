package demo;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.OptionalInt;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.LongAdder;
import java.util.function.Function;

/**
 * Calls methods at given rates and says what came of it. The rates come from the system property calls, a list such as
 * "sayHello=20,price=5" (calls a second), and from standard input, which takes "rate METHOD N", "silence", which is rate 0 for
 * all methods, and "quit".
 *
 * <p>It prints READY, then one JSON object a line: each second {"calls": {method: {"ok": n, "exceptions": n, "errors": n,
 * "skipped": n}}} with what returned in that second, "exceptions" being those that the provider's code threw and "errors"
 * those of the RPC itself; and for each new kind of error {"error": class, "code": the RPC framework's, "method": m,
 * "message": text}.
 */
final class Load {
    /** More calls than this at a time are not begun but counted as "skipped". */
    private static final int MAX_AT_ONCE = 64;

    /** Further kinds of error are counted but not printed. */
    private static final int MAX_KINDS = 50;

    private static final class Tally {
        final LongAdder ok = new LongAdder();
        final LongAdder exceptions = new LongAdder();
        final LongAdder errors = new LongAdder();
        final LongAdder skipped = new LongAdder();
    }

    private final Map<String, Callable<?>> methods = new TreeMap<>();
    private final Map<String, Tally> tallies = new TreeMap<>();
    private final Map<String, ScheduledFuture<?>> running = new ConcurrentHashMap<>();
    private final Map<String, Boolean> seen = new ConcurrentHashMap<>();
    private final ScheduledExecutorService clock = Executors.newScheduledThreadPool(2);
    private final ExecutorService callers =
            new ThreadPoolExecutor(0, MAX_AT_ONCE, 30, TimeUnit.SECONDS, new SynchronousQueue<>());
    private final Function<Throwable, OptionalInt> codeOf;

    /** codeOf returns the code of an error of the RPC, nothing for what the provider's code has thrown. */
    Load(Function<Throwable, OptionalInt> codeOf) {
        this.codeOf = codeOf;
    }

    void method(String name, Callable<?> call) {
        methods.put(name, call);
        tallies.put(name, new Tally());
    }

    private void rate(String method, double perSecond) {
        Callable<?> call = methods.get(method);
        if (call == null) {
            throw new IllegalArgumentException("no method " + method + "; there are " + methods.keySet());
        }
        ScheduledFuture<?> old = running.remove(method);
        if (old != null) {
            old.cancel(false);
        }
        if (perSecond > 0) {
            long period = (long) (1e9 / perSecond);
            running.put(method, clock.scheduleAtFixedRate(() -> begin(method, call), period, period, TimeUnit.NANOSECONDS));
        }
    }

    private void begin(String method, Callable<?> call) {
        Tally tally = tallies.get(method);
        try {
            callers.execute(() -> {
                try {
                    call.call();
                    tally.ok.increment();
                } catch (Throwable e) {
                    OptionalInt code = codeOf.apply(e);
                    (code.isPresent() ? tally.errors : tally.exceptions).increment();
                    report(method, e, code.orElse(-1));
                }
            });
        } catch (RejectedExecutionException e) {
            tally.skipped.increment();
        }
    }

    private void report(String method, Throwable e, int code) {
        String message = String.valueOf(e.getMessage());
        // The same fault differs in ids, times and addresses from one call to the next.
        String kind = method + e.getClass().getName() + message.replaceAll("[0-9]+", "#");
        if (seen.size() < MAX_KINDS && seen.putIfAbsent(kind, true) == null) {
            print("{\"error\":" + quote(e.getClass().getName()) + ",\"code\":" + code + ",\"method\":" + quote(method)
                    + ",\"message\":" + quote(message) + "}");
        }
    }

    private void tell() {
        StringBuilder line = new StringBuilder("{\"calls\":{");
        String comma = "";
        for (Map.Entry<String, Tally> e : tallies.entrySet()) {
            Tally t = e.getValue();
            long ok = t.ok.sumThenReset();
            long exceptions = t.exceptions.sumThenReset();
            long errors = t.errors.sumThenReset();
            long skipped = t.skipped.sumThenReset();
            if (ok + exceptions + errors + skipped > 0) {
                line.append(comma).append(quote(e.getKey())).append(":{\"ok\":").append(ok).append(",\"exceptions\":")
                        .append(exceptions).append(",\"errors\":").append(errors).append(",\"skipped\":").append(skipped)
                        .append('}');
                comma = ",";
            }
        }
        print(line.append("}}").toString());
    }

    private static synchronized void print(String line) {
        System.out.println(line);
    }

    private static String quote(String s) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : s.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 0x20 || c > 0x7e) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }

    /** Calls until standard input ends or says "quit", then ends the program. */
    void run() throws IOException {
        for (String part : System.getProperty("calls", "").split(",")) {
            String[] pair = part.split("=", 2);
            if (pair.length == 2) {
                rate(pair[0].trim(), Double.parseDouble(pair[1]));
            }
        }
        print("READY");
        clock.scheduleAtFixedRate(this::tell, 1, 1, TimeUnit.SECONDS);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.trim().split("\\s+");
            if (words[0].equals("quit")) {
                break;
            } else if (words[0].equals("rate") && words.length == 3) {
                rate(words[1], Double.parseDouble(words[2]));
            } else if (words[0].equals("silence")) {
                for (String method : methods.keySet()) {
                    rate(method, 0);
                }
            } else {
                System.err.println("unknown command: " + line);
            }
        }
        System.exit(0);
    }
}
