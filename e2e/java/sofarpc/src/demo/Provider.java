package demo;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;

/**
 * An ordinary SOFARPC provider. System properties: app.name, port, servers, unique.id, label.version and weight (each
 * optional), and the registry's. servers is what it speaks on which ports, if it is not Bolt on port alone:
 * bolt:12200,h2c:12300. It prints READY when its service is registered, and ends on SIGTERM.
 */
public final class Provider {
    private Provider() {
    }

    static final class Hello implements HelloService {
        @Override
        public String sayHello(String name) {
            return "Hello " + name;
        }

        @Override
        public Person echo(Person person, int copies) {
            person.age++;
            return person;
        }

        @Override
        public String fail(String why) {
            throw new IllegalStateException("refused: " + why);
        }

        @Override
        public String stall(int millis) {
            return slow(millis);
        }

        @Override
        public void note(String text) {
        }

        @Override
        public String later(String name) {
            return "Later " + name;
        }

        @Override
        public String callback(String name) {
            return "Back " + name;
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

    public static void main(String[] args) throws InterruptedException {
        List<ServerConfig> servers = new ArrayList<>();
        for (String server : System.getProperty("servers", "bolt:" + Integer.getInteger("port", 12200)).split(",")) {
            String[] parts = server.split(":");
            servers.add(new ServerConfig().setProtocol(parts[0]).setPort(Integer.parseInt(parts[1])).setDaemon(false));
        }
        ProviderConfig<HelloService> provider = new ProviderConfig<HelloService>()
                .setApplication(new ApplicationConfig().setAppName(System.getProperty("app.name", "hello-provider")))
                .setInterfaceId(HelloService.class.getName())
                .setRef(new Hello())
                .setServer(servers)
                .setRegistry(Registry.configured());
        if (System.getProperty("unique.id") != null) {
            provider.setUniqueId(System.getProperty("unique.id"));
        }
        if (System.getProperty("label.version") != null) {
            provider.setParameter("label.version", System.getProperty("label.version"));
        }
        if (Integer.getInteger("weight") != null) {
            provider.setWeight(Integer.getInteger("weight"));
        }
        provider.export();
        Runtime.getRuntime().addShutdownHook(new Thread(provider::unExport));
        System.out.println("READY");
        new CountDownLatch(1).await();
    }
}
