package demo;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.core.exception.SofaRpcException;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.OptionalInt;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * An ordinary SOFARPC consumer; see Load for what it calls and prints. System properties: app.name, unique.id (optional),
 * and the registry's.
 */
public final class Consumer {
    private Consumer() {
    }

    private static Person person() {
        Person p = new Person();
        p.name = "Zo\u00eb \u4e2d";
        p.age = 41;
        p.id = 1234567890123L;
        p.tags = new ArrayList<>(List.of("x", "y"));
        return p;
    }

    public static void main(String[] args) throws IOException {
        ConsumerConfig<HelloService> config = new ConsumerConfig<HelloService>()
                .setApplication(new ApplicationConfig().setAppName(System.getProperty("app.name", "hello-consumer")))
                .setInterfaceId(HelloService.class.getName())
                .setProtocol("bolt")
                .setTimeout(3000)
                .setAddressWait(10000)
                .setRegistry(Registry.configured());
        if (System.getProperty("unique.id") != null) {
            config.setUniqueId(System.getProperty("unique.id"));
        }
        HelloService hello = config.refer();

        AtomicInteger number = new AtomicInteger();
        Load load = new Load(e -> e instanceof SofaRpcException ? OptionalInt.of(((SofaRpcException) e).getErrorType()) : OptionalInt.empty());
        load.method("sayHello", () -> hello.sayHello("world " + number.incrementAndGet()));
        load.method("echo", () -> hello.echo(person(), 3));
        load.method("fail", () -> hello.fail("no reason"));
        load.method("slow", () -> hello.slow(200));
        load.run();
    }
}
