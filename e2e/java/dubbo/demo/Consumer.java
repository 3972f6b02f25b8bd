package demo;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Date;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;
import org.apache.dubbo.rpc.RpcException;

/** An ordinary Dubbo consumer, configured by Dubbo's own properties; see Load for what it calls and prints. */
public final class Consumer {
    private Consumer() {
    }

    private static Person person() {
        Person p = new Person();
        p.name = "Zo\u00eb \u4e2d";
        p.age = 41;
        p.id = 1234567890123L;
        p.score = 1.5;
        p.member = true;
        p.since = new Date(0);
        p.tags = new ArrayList<>(List.of("x", "y"));
        return p;
    }

    /** Attaches to the next call what the system property "attachments" says: NAME=VALUE, separated by commas. */
    private static void attach() {
        for (String pair : System.getProperty("attachments", "").split(",")) {
            int at = pair.indexOf('=');
            if (at > 0) {
                RpcContext.getContext().setAttachment(pair.substring(0, at), pair.substring(at + 1));
            }
        }
    }

    public static void main(String[] args) throws IOException {
        ReferenceConfig<GreetService> greetReference = new ReferenceConfig<>();
        greetReference.setId("greet"); // Dubbo 2.7 takes two without an id for one
        greetReference.setInterface(GreetService.class);
        greetReference.setVersion(System.getProperty("greet.version", "1.0.0"));
        greetReference.setGroup("g1");
        ReferenceConfig<StockService> stockReference = new ReferenceConfig<>();
        stockReference.setId("stock");
        stockReference.setInterface(StockService.class);
        DubboBootstrap.getInstance().reference(greetReference).reference(stockReference).start();
        GreetService greet = greetReference.get();
        StockService stock = stockReference.get();

        AtomicInteger number = new AtomicInteger();
        Load load = new Load(e -> e instanceof RpcException ? OptionalInt.of(((RpcException) e).getCode()) : OptionalInt.empty());
        load.method("sayHello", () -> greet.sayHello("world " + number.incrementAndGet()));
        load.method("gold", () -> {
            RpcContext.getContext().setAttachment("tenant", "gold");
            return greet.sayHello("gold " + number.incrementAndGet());
        });
        load.method("echo", () -> {
            attach();
            return greet.echo(person(), new HashMap<>(Map.of("k", 1, "list", new ArrayList<>(List.of("a", "b")))));
        });
        load.method("fail", () -> greet.fail("no reason"));
        load.method("slow", () -> greet.slow(200));
        load.method("price", () -> stock.price("ACME"));
        load.method("reserve", () -> stock.reserve("ACME", 7));
        load.run();
    }
}
