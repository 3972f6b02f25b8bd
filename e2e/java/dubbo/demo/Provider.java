package demo;

import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/**
 * An ordinary Dubbo provider. It is configured by Dubbo's own properties: dubbo.application.name,
 * dubbo.registry.address, dubbo.protocol.port. It prints READY when its services are registered, and ends on SIGTERM. With -Dbug=true
 * it is a version that should not have been released.
 */
public final class Provider {
    private Provider() {
    }

    static final class Greet implements GreetService {
        @Override
        public String sayHello(String name) {
            if (Boolean.getBoolean("bug")) {
                throw new IllegalStateException("a bug of this version");
            }
            return "Hello " + name;
        }

        @Override
        public Person echo(Person person, Map<String, Object> extra) {
            person.age++;
            return person;
        }

        @Override
        public String fail(String why) {
            throw new IllegalStateException("refused: " + why);
        }

        @Override
        public String slow(int millis) {
            try {
                Thread.sleep(millis);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            return "after " + millis + " ms";
        }
    }

    static final class Stock implements StockService {
        @Override
        public double price(String symbol) {
            return Math.abs(symbol.hashCode() % 10000) / 100.0;
        }

        @Override
        public boolean reserve(String symbol, int amount) {
            return amount < 100;
        }
    }

    public static void main(String[] args) throws InterruptedException {
        ServiceConfig<GreetService> greet = new ServiceConfig<>();
        greet.setId("greet"); // Dubbo 2.7 takes two without an id for one
        greet.setInterface(GreetService.class);
        greet.setRef(new Greet());
        greet.setVersion("1.0.0");
        greet.setGroup("g1");
        ServiceConfig<StockService> stock = new ServiceConfig<>();
        stock.setId("stock");
        stock.setInterface(StockService.class);
        stock.setRef(new Stock());
        DubboBootstrap.getInstance().service(greet).service(stock).start();
        System.out.println("READY");
        new CountDownLatch(1).await();
    }
}
