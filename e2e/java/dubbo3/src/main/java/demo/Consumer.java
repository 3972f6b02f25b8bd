package demo;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Date;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.LongAdder;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcException;

/**
 * An ordinary Dubbo consumer that calls at given rates and says what came of it. It is configured by Dubbo's own
 * properties, and by one of its own, calls: a list such as "sayHello=20,price=5", calls a second for each method.
 *
 * <p>It prints READY, then one JSON object a line: each second {"calls": {method: {"ok": n, "exceptions": n, "errors": n}}}
 * with what returned in that second, "exceptions" being those that the provider's code threw and "errors" those of the
 * RPC itself; and for each new kind of error {"error": class, "code": of the RpcException, "method": m, "message": text}.
 * On standard input it takes "rate METHOD N" and "quit".
 */
public final class Consumer {
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

    private final Map<String, Callable<Object>> methods = new TreeMap<>();
    private final Map<String, Tally> tallies = new TreeMap<>();
    private final Map<String, ScheduledFuture<?>> running = new ConcurrentHashMap<>();
    private final Map<String, Boolean> seen = new ConcurrentHashMap<>();
    private final ScheduledExecutorService clock = Executors.newScheduledThreadPool(2);
    private final AtomicInteger number = new AtomicInteger();
    private final ExecutorService callers =
            new ThreadPoolExecutor(0, MAX_AT_ONCE, 30, TimeUnit.SECONDS, new SynchronousQueue<>());

    private Consumer(GreetService greet, StockService stock) {
        methods.put("sayHello", () -> greet.sayHello("world " + number.incrementAndGet()));
        methods.put("echo", () -> greet.echo(person(), Map.of("k", 1, "list", List.of("a", "b"))));
        methods.put("fail", () -> greet.fail("no reason"));
        methods.put("slow", () -> greet.slow(200));
        methods.put("price", () -> stock.price("ACME"));
        methods.put("reserve", () -> stock.reserve("ACME", 7));
        for (String name : methods.keySet()) {
            tallies.put(name, new Tally());
        }
    }

    private static Person person() {
        Person p = new Person();
        p.name = "Zo\u00eb \u4e2d";
        p.age = 41;
        p.id = 1234567890123L;
        p.score = 1.5;
        p.member = true;
        p.since = new Date(0);
        p.tags = new java.util.ArrayList<>(List.of("x", "y"));
        return p;
    }

    private void rate(String method, double perSecond) {
        Callable<Object> call = methods.get(method);
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

    private void begin(String method, Callable<Object> call) {
        Tally tally = tallies.get(method);
        try {
            callers.execute(() -> {
                try {
                    call.call();
                    tally.ok.increment();
                } catch (RpcException e) {
                    tally.errors.increment();
                    report(method, e, e.getCode());
                } catch (Throwable e) {
                    tally.exceptions.increment();
                    report(method, e, -1);
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

    public static void main(String[] args) throws IOException {
        ReferenceConfig<GreetService> greet = new ReferenceConfig<>();
        greet.setInterface(GreetService.class);
        greet.setVersion("1.0.0");
        greet.setGroup("g1");
        ReferenceConfig<StockService> stock = new ReferenceConfig<>();
        stock.setInterface(StockService.class);
        DubboBootstrap.getInstance().reference(greet).reference(stock).start();
        Consumer consumer = new Consumer(greet.get(), stock.get());
        for (String part : System.getProperty("calls", "sayHello=10").split(",")) {
            String[] pair = part.split("=", 2);
            consumer.rate(pair[0].trim(), Double.parseDouble(pair[1]));
        }
        System.out.println("READY");
        consumer.clock.scheduleAtFixedRate(consumer::tell, 1, 1, TimeUnit.SECONDS);

        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.trim().split("\\s+");
            if (words[0].equals("quit")) {
                break;
            } else if (words[0].equals("rate") && words.length == 3) {
                consumer.rate(words[1], Double.parseDouble(words[2]));
            } else {
                System.err.println("unknown command: " + line);
            }
        }
        System.exit(0);
    }
}
